"""Keep what was fetched of a corpus until it is tokenized, so that an object is fetched once.

It is cut, hashed and tokenized from there. A spool is one file without a name in the system's folder for temporary
files (TMPDIR), so nothing is left of it when the process ends, however it ends. It has a limit; what is beyond it is
fetched a second time.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.storage.interface import Buffer

SPOOL_BYTES = 4 << 30  # and at most a quarter of what is free


class UnnamedFile:
    """An open file without a name, closed when nobody refers to it any more."""

    def __init__(self) -> None:
        self.descriptor, path = tempfile.mkstemp(prefix="stridemill-")
        os.unlink(path)  # noqa: PTH108 - text

    def __del__(self) -> None:
        os.close(self.descriptor)


class Spool:
    """A temporary file for ranges of objects. Threads write different ranges at once.

    Args:
        limit: most bytes in it; None: `SPOOL_BYTES`, or a quarter of the free disk space if that is less.

    """

    def __init__(self, limit: int | None = None) -> None:
        free = shutil.disk_usage(tempfile.gettempdir()).free
        self._limit = min(SPOOL_BYTES, free // 4) if limit is None else limit
        self._file: UnnamedFile | None = None
        self._used = 0
        self._lock = Lock()

    def reserve(self, size: int, step: int) -> SpooledRange | None:
        """Return room for an object, or for a multiple of `step` bytes at its start; None if the spool is full."""
        with self._lock:
            left = self._limit - self._used
            size = size if size <= left else left // step * step
            if size <= 0:
                return None
            self._file = self._file or UnnamedFile()
            self._used += size
            return SpooledRange(self._file, self._used - size, size)


class SpooledRange:
    """The first `stop` bytes of an object, in a spool."""

    def __init__(self, file: UnnamedFile | None, base: int, stop: int) -> None:
        self._file, self._base, self.stop = file, base, stop
        self._missing = stop
        self._lock = Lock()

    def put(self, start: int, content: Buffer) -> None:
        """Keep some bytes, once; a full disk makes the range incomplete, and it is then not used."""
        file, view = self._file, memoryview(content)
        try:
            while file is not None and view:
                count = os.pwrite(file.descriptor, view, self._base + start)
                start, view = start + count, view[count:]
                with self._lock:
                    self._missing -= count
        except OSError:
            self.forget()

    def covers(self, stop: int | None) -> bool:
        """Tell whether it has the bytes up to there; None: not known how many."""
        return self._file is not None and not self._missing and stop is not None and stop <= self.stop

    def open(self, name: str) -> io.RawIOBase:
        """Open it as a file; `name` is for messages."""
        assert self._file is not None, "an incomplete range is not read"
        return SpooledFile(name, self._file, self._base, self.stop)

    def forget(self) -> None:
        """Forget the bytes."""
        self._file = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the bytes behind: another process fetches the object itself."""
        return SpooledRange, (None, 0, self.stop)


class PlacedFile(io.RawIOBase):
    """What files share that are read from any place: their `size` in bytes, and the place `_at` of the next one."""

    size: int
    _at = 0

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it can be read from anywhere."""
        return True

    def tell(self) -> int:
        """Return the offset of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to another offset."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = max(0, base + offset)
        return self._at


class SpooledFile(PlacedFile):
    """The start of an object as a file."""

    def __init__(self, name: str, file: UnnamedFile, shift: int, size: int) -> None:
        super().__init__()
        self.name, self.size = name, size
        self._file, self._shift, self._at = file, shift, 0

    def readinto(self, target: Any) -> int:
        """Copy the next bytes."""
        view = memoryview(target).cast("B")[: max(0, self.size - self._at)]
        count = os.preadv(self._file.descriptor, [view], self._shift + self._at) if len(view) else 0
        self._at += count
        return count
