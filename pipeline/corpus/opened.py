"""Open a file of a corpus for reading, on this machine or in an object store, where it is read by ranges."""

from __future__ import annotations

import hashlib
import io
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.storage.names import Location, is_uri, split_uri
from pipeline.storage.open import open_storage

if TYPE_CHECKING:
    from pipeline.storage.interface import Entry, Storage

WINDOW_BYTES = 8 << 20  # that a request asks for: at 30 ms each, 270 MB/s of a worker


class Status(NamedTuple):
    """What is known of an object, by the names of `os.stat_result`."""

    st_size: int
    st_mtime_ns: int  # a number made of the etag, which changes with the content
    st_ctime_ns: int = 0
    st_dev: int = 0
    st_ino: int = 0


def open_raw(path: str | Path) -> io.RawIOBase:
    """Open a file without a buffer.

    Raises:
        OSError: it cannot be read.

    """
    return ObjectFile(path) if isinstance(path, str) and is_uri(path) else Path(path).open("rb", buffering=0)


def find_status(path: str | Path) -> os.stat_result | Status:
    """Return the size and the time of change of a file; raises OSError."""
    if isinstance(path, str) and is_uri(path):
        storage, name = split_object(path)
        return status_of(storage.stat(name))
    return os.stat(path)  # noqa: PTH116 - a `Path` takes several times as long


def read_object(path: str) -> bytes:
    """Return the complete content of an object; raises OSError."""
    storage, name = split_object(path)
    return storage.read(name)


def status_of(entry: Entry) -> Status:
    """Return what a listing says of an object as its status."""
    number = hashlib.sha256(entry.etag.encode()).digest()[:7]
    return Status(entry.size, int.from_bytes(number, "little"))


def split_object(uri: str) -> tuple[Storage, str]:
    """Return the storage of an object's bucket, and its name there."""
    location = split_uri(uri)
    return bucket_of(location), location.key


def bucket_of(location: Location) -> Storage:
    """Return the storage of a whole bucket."""
    return _open_bucket(str(location._replace(key="")), os.getpid())


@lru_cache(maxsize=64)
def _open_bucket(uri: str, _: int) -> Storage:
    return open_storage(uri)


class ObjectFile(io.RawIOBase):
    """An object as a file that is read by ranges, a window at a time."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self.name = uri
        self._storage, self._object = split_object(uri)
        self.size = self._storage.size(self._object)
        self._at, self._start, self._window = 0, 0, memoryview(b"")

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

    def readinto(self, target: Any) -> int:
        """Copy the next bytes: those that the window has, or else of a new one."""
        view = memoryview(target).cast("B")
        if self._at >= self.size or not len(view):
            return 0
        skipped = self._at - self._start
        if not 0 <= skipped < len(self._window):
            stop = min(self.size, self._at + max(WINDOW_BYTES, len(view)))
            (content,) = self._storage.read_ranges(self._object, [(self._at, stop)])
            self._start, self._window, skipped = self._at, memoryview(content), 0
        part = self._window[skipped : skipped + len(view)]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)


def size_of(file: io.RawIOBase) -> int:
    """Return the size of an open file."""
    return file.size if isinstance(file, ObjectFile) else os.fstat(file.fileno()).st_size
