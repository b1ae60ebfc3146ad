"""Read small files that somebody else may have made: regular files only, up to a size, and with the hash they carry.

A pipe would wait for a writer that never comes, and a device such as /dev/zero never ends.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import TYPE_CHECKING, Any

from pipeline.base.hashing import hash_json
from pipeline.base.retry import retry

if TYPE_CHECKING:
    from io import BufferedReader
    from pathlib import Path

SMALL = 1 << 26  # 64 MiB: far more than a plan, a record, a token store or a chunk's description takes


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading.

    Raises:
        OSError: it does not exist, cannot be read, or is not a regular file (a folder, pipe or device).

    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # without it a pipe would block
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_fields(path: Path, *, limit: int = SMALL) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        OSError: as `open_regular`.
        ValueError: it has more than `limit` bytes, or is not a JSON object; the message does not name the file.

    """

    def read() -> bytes:
        with open_regular(path) as file:
            return file.read(limit + 1)

    return parse_fields(retry(read, path), limit=limit)


def parse_fields(content: bytes, *, limit: int = SMALL) -> dict[str, Any]:
    """Return the JSON object that a file contains.

    Raises:
        ValueError: as `read_fields`.

    """
    if len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    try:
        fields = json.loads(content)
    except RecursionError:
        raise ValueError("it is not valid JSON: its values are nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError(f"it is not a JSON object but a {type(fields).__name__}")  # noqa: TRY004 - the file is wrong
    return fields


def sign(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields with the hash of all of them, for `check_signature`."""
    return {**fields, "sha256": hash_fields(fields)}


def check_signature(fields: dict[str, Any]) -> dict[str, Any]:
    """Return signed fields without their hash.

    Raises:
        ValueError: they do not have the hash that they carry, or carry none.

    """
    if fields.get("sha256") != hash_fields(fields):
        raise ValueError("its content does not have the sha256 recorded in it: it was changed after it was written")
    return {key: value for key, value in fields.items() if key != "sha256"}


def hash_fields(fields: dict[str, Any]) -> str:
    """Return the sha256 of fields without the hash itself, as JSON with sorted keys and no spaces."""
    content = {key: value for key, value in fields.items() if key != "sha256"}
    return hash_json(content, compact=True)
