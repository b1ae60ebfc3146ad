"""Files that are there whole or not at all.

A new file is written beside its place, flushed to the disk and renamed. Its temporary name is always the same, and who
writes there holds a lock that the system gives up when its process ends, however it ends. So two writers take turns,
and what a killed one has left is written over by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO


def part_of(path: Path) -> Path:
    """Where a file is written before it has its name."""
    return path.with_name(f".{path.name}.part")


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` when the block ends; an error leaves what was there."""
    temporary = part_of(path)
    with os.fdopen(hold(temporary), "wb") as file:
        try:
            file.truncate()
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    r"""Replace a file by a text in UTF-8. A surrogate, a byte of a file's name that is no UTF-8, becomes \udcNN."""
    with replace_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, fields: dict[str, Any]) -> None:
    r"""Replace a file by JSON. A file's name that is not UTF-8 is read back as it was."""
    write_text(path, json.dumps(fields, indent=1, ensure_ascii=False) + "\n")


def hold(path: Path) -> int:
    """Open a file, made where it is missing, and lock it, alone among all that do so; waits. Close it to give it up."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(lock).st_ino:
                return lock
        os.close(lock)  # it was renamed or removed in between
