"""A file of a chunk while it is written: its size and checksum are known at its end, and its end can be taken back."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from pipeline.tokens.chunk import NPY_HEADER_BYTES, FileSum

if TYPE_CHECKING:
    from pathlib import Path


class SummedFile:
    """A new file whose size and checksum are known when it is finished."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._sum = FileSum()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._sum.size

    def write(self, content: bytes | memoryview) -> None:
        """Append bytes."""
        content = memoryview(content)
        self._file.write(content)
        self._sum.add(content)

    def write_header(self, header: bytes) -> None:
        """Replace the first `NPY_HEADER_BYTES`."""
        assert len(header) == len(self._sum.head) == NPY_HEADER_BYTES, "a header replaces a header"
        self._file.seek(0)
        self._file.write(header)
        self._sum.head = header

    def savepoint(self) -> FileSum:
        """Return the state to which `rollback` returns."""
        return dataclasses.replace(self._sum)

    def rollback(self, savepoint: FileSum) -> None:
        """Drop all that was written since `savepoint`."""
        self._sum = savepoint
        self._file.flush()
        self._file.truncate(self.size)
        self._file.seek(0, os.SEEK_END)

    def finish(self) -> list[int]:
        """Flush to the disk and close. Return the size and the checksum."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return [self.size, self._sum.checksum]

    def close(self) -> None:
        """Close without a flush to the disk."""
        self._file.close()
