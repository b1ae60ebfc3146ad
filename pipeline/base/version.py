"""The installed release of stridemill."""

from __future__ import annotations

from functools import cache


@cache
def find_version() -> str:
    """Return the installed release, or `0+unknown` if the package runs from a folder that was never installed."""
    from importlib.metadata import PackageNotFoundError, version  # takes longer than all else that every command needs

    try:
        return version("stridemill")
    except PackageNotFoundError:
        return "0+unknown"
