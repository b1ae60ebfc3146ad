"""Plain values for files: what JSON and YAML take, without secrets."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from pipeline.rules import hide_secrets


def jsonable(value: Any) -> Any:
    """Turn nested values into what JSON takes: sequences become lists, dataclasses dicts, and paths text.

    Secrets of URLs are left out.
    """
    if isinstance(value, dict):
        return {jsonable(key): jsonable(inner) for key, inner in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return jsonable(dataclasses.asdict(value))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [jsonable(inner) for inner in value]
    value = str(value) if isinstance(value, os.PathLike) else value
    return hide_secrets(value) if isinstance(value, str) else value
