"""Open a file of a corpus for reading, on this machine or in an object store, where it is read by ranges."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.corpus.spool import PlacedFile, SpooledFile
from pipeline.storage.interface import Entry
from pipeline.storage.names import Location, is_uri, split_found
from pipeline.storage.open import open_shared

if TYPE_CHECKING:
    import io
    from collections.abc import Callable

    from pipeline.storage.interface import Buffer, Storage

WINDOW_BYTES = 8 << 20  # that a request asks for: at 30 ms each, 270 MB/s of a worker
TO_END = 1 << 62  # as `stop`: all is read in order
FIRST_BYTES = 256 << 10  # that the first request asks for if nobody knows how much is read


Stamp = tuple[int, int]  # a file's size and modification time: they alone show a change during the run
CHANGED = "was changed while this run was reading it; run again once it no longer changes"


class Status(NamedTuple):
    """What is known of an object, by the names of `os.stat_result`."""

    st_size: int
    st_mtime_ns: int  # a number made of the etag, which changes with the content
    st_ctime_ns: int = 0
    st_dev: int = 0
    st_ino: int = 0


def open_raw(path: str | Path, *, stop: int | None = None, stamp: Stamp | None = None) -> io.RawIOBase:
    """Open a file without a buffer. `stop` and `stamp` are those of `ObjectFile`.

    Raises:
        OSError: it cannot be read.

    """
    if isinstance(path, str) and is_uri(path):
        return ObjectFile(path, stop=stop, stamp=stamp)
    return Path(path).open("rb", buffering=0)


def find_status(path: str | Path) -> os.stat_result | Status:
    """Return the size and the time of change of a file; raises OSError."""
    if isinstance(path, str) and is_uri(path):
        storage, name = split_object(path)
        return status_of(storage.stat(name))
    return os.stat(path)  # noqa: PTH116 - a `Path` takes several times as long


def read_object(path: str, size: int) -> tuple[Buffer, Status]:
    """Return the first `size` bytes of an object, and its status if it has no more; raises OSError."""
    storage, name = split_object(path)
    content, etag = storage.read_range(name, 0, size)
    return content, status_of(Entry(name, size, 0.0, etag))


def status_of(entry: Entry) -> Status:
    """Return what a listing says of an object as its status."""
    number = hashlib.sha256(entry.etag.strip('"').encode()).digest()[:7]
    return Status(entry.size, int.from_bytes(number, "little"))


def split_object(uri: str) -> tuple[Storage, str]:
    """Return the storage of an object's bucket, and its name there."""
    location = split_found(uri)
    return bucket_of(location), location.key


def bucket_of(location: Location) -> Storage:
    """Return the storage of a whole bucket."""
    return open_shared(str(location._replace(key="")))


class ObjectFile(PlacedFile):
    """An object as a file that is read by ranges, a window at a time.

    All its bytes are of one version.

    Args:
        uri: of the object.
        stop: it is read in order up to there, so that each window may be large; None: windows grow as it is read.
        stamp: of the version that is meant; None: of the one that is there.

    """

    def __init__(self, uri: str, *, stop: int | None = None, stamp: Stamp | None = None) -> None:
        super().__init__()
        self.name = uri
        self._storage, self._object = split_object(uri)
        self._stamp = stamp or status_of(self._storage.stat(self._object))[:2]
        self.size = self._stamp[0]
        self._stop = self.size if stop is None else min(stop, self.size)
        self._step = FIRST_BYTES if stop is None else WINDOW_BYTES
        self._at, self._start, self._window = 0, 0, memoryview(b"")

    def readinto(self, target: Any) -> int:
        """Copy the next bytes: those that the window has, or else of a new one."""
        view = memoryview(target).cast("B")
        if self._at >= self.size or not len(view):
            return 0
        skipped = self._at - self._start
        if not 0 <= skipped < len(self._window):
            content = self.read_window(self._at, len(view))
            self._start, self._window, skipped = self._at, memoryview(content), 0
            self._step = min(4 * self._step, WINDOW_BYTES)
        part = self._window[skipped : skipped + len(view)]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)

    def read_window(self, start: int, least: int = 0) -> Buffer:
        """Return the bytes from `start` that one request asks for: at least so many, if they are there.

        Raises:
            OSError: they cannot be read, or are of another version.

        """
        stop = min(self._stop if start < self._stop else self.size, start + max(self._step, least))
        content, etag = self._storage.read_range(self._object, start, stop)
        self._check_version(etag)
        return content

    def copy(self, start: int, take: Callable[[int, Buffer], object]) -> None:
        """Hand on all bytes from `start` to `stop` as they come, each piece with its offset, by one request.

        Raises:
            OSError: they cannot be read, or are of another version.

        """
        self._check_version(self._storage.copy_range(self._object, start, self._stop, take))

    def _check_version(self, etag: str) -> None:
        if status_of(Entry(self._object, self.size, 0.0, etag))[:2] != self._stamp:
            raise OSError(errno.EINVAL, CHANGED, self.name)


def size_of(file: io.RawIOBase) -> int:
    """Return the size of an open file."""
    return file.size if isinstance(file, ObjectFile | SpooledFile) else os.fstat(file.fileno()).st_size
