"""Plain values for files: what JSON and YAML take, without secrets."""

from __future__ import annotations

import os
from typing import Any

from pipeline.rules import hide_secrets


def jsonable(value: Any) -> Any:
    """Turn nested values into what JSON takes: tuples become lists, paths text. Secrets of URLs are left out."""
    if isinstance(value, dict):
        return {key: jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    value = str(value) if isinstance(value, os.PathLike) else value
    return hide_secrets(value) if isinstance(value, str) else value
