"""Files that are either complete or absent.

A new file is written next to its final path, flushed and renamed. Its temporary name is always the same, and
the writer holds a lock that the operating system releases when the process exits, for whatever reason. So two writers
take turns, and the next writer overwrites what a killed one left.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

from pipeline.base.locks import hold

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


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk: a rename survives a power cut only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
