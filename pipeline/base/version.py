"""The installed release of stridemill."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def find_version() -> str:
    """Return the installed release, or `0+unknown` if the package runs from a folder that was never installed."""
    try:
        return version("stridemill")
    except PackageNotFoundError:
        return "0+unknown"
