"""A file of a chunk that is summed on its way to the disk, so that nothing is read again for its checksum."""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING

from pipeline.chunk import NPY_HEADER_BYTES

if TYPE_CHECKING:
    from pathlib import Path


class SummedFile:
    """A new file, its size and its checksum (`chunk.sum_file`): of all but the head, then of the head."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._head = b""
        self._sum = 0
        self.size = 0

    def write(self, content: bytes | memoryview) -> None:
        """Append bytes."""
        content = memoryview(content)
        self._file.write(content)
        self.size += len(content)
        if (left := NPY_HEADER_BYTES - len(self._head)) > 0:
            self._head += content[:left]
            content = content[left:]
        self._sum = zlib.crc32(content, self._sum)

    def write_head(self, head: bytes) -> None:
        """Write the head over the one that kept its place."""
        assert len(head) == len(self._head) == NPY_HEADER_BYTES, "a head replaces a head"
        self._file.seek(0)
        self._file.write(head)
        self._head = head

    def mark(self) -> tuple[int, int]:
        """A place behind the head to which `go_back` returns."""
        return self.size, self._sum

    def go_back(self, mark: tuple[int, int]) -> None:
        """Take back all that was written since `mark`."""
        self.size, self._sum = mark
        self._file.flush()
        self._file.truncate(self.size)
        self._file.seek(0, os.SEEK_END)

    def finish(self) -> list[int]:
        """Flush to the disk, and close. Returns the size and the checksum."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return [self.size, zlib.crc32(self._head, self._sum)]

    def close(self) -> None:
        """Close without a flush: what was written is given up."""
        self._file.close()
