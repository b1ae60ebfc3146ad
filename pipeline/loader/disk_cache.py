"""Row groups on a local disk (`loader.cache_dir`), for data sets in object stores and on slow shared folders.

The unit is the row group, not the shard: a first batch of 8 lanes needs 8 row groups, 6 MB, where 8 shards would be
half a gigabyte. An entry has the bytes of the columns that the loader reads, as they are in the shard, and is named by
the shard's sha256. So processes share entries, whatever path they read from, and a replaced data set has other ones.
What is read from here is checked as what comes from the store: by the headers and the checksums of its pages.

All files are in a folder of its own, `stridemill-row-groups`, and only files with the cache's own names are removed.
Each is written under a temporary name and renamed, so a reader sees all of it or none, and one that is removed while it
is read stays readable. A small file, `total`, counts the bytes of all entries; who adds some locks it, removes the
oldest entries first if the limit would be passed, and does without caching if another process is busy with that. A
cache that cannot be read or written costs time, never data.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
import uuid
from typing import TYPE_CHECKING, NamedTuple

from pipeline.base.locks import try_to_hold
from pipeline.base.paths import expand_user, make_folder, translate_os_errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

FOLDER = "stridemill-row-groups"
TOTAL = "total"
KEPT_PERCENT = 90  # of the limit, after entries were removed: a listing of all of them serves many that come
TRIES, PAUSE = 250, 0.001  # for the lock, which is held for microseconds except while entries are removed
BUSY = 2.0  # seconds without caching after a lock that could not be had
FORGOTTEN = 600  # seconds after which a temporary file is that of a killed process
_ENTRY = re.compile(r"[0-9a-f]{64}(-\d+)?")
_PART = re.compile(r"\.[0-9a-f]{64}(-\d+)?\.[0-9a-f]{32}\.part")
_SUBFOLDER = re.compile(r"[0-9a-f]{2}")


class Entry(NamedTuple):
    """A file of the cache."""

    modified: int  # nanoseconds since 1970
    size: int
    path: str


def open_cache(folder: str | None, limit: int) -> DiskCache | None:
    """Return the cache in the folder that `loader.cache_dir` names; None if it names none.

    Raises:
        ValueError: the folder cannot be created, or the cache's own folder in it is a link.

    """
    if folder is None:
        return None
    path = expand_user(folder).absolute()
    with translate_os_errors(path, "loader.cache_dir"):
        return DiskCache(path, limit)


class DiskCache:
    """Entries by name, up to a number of bytes. It can be used by many threads and processes, and pickled.

    Args:
        folder: what `loader.cache_dir` names; it is created.
        limit: bytes of all entries together, at most.

    Raises:
        ValueError: the cache's own folder in it is a link.
        OSError: it cannot be created.

    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder / FOLDER, limit
        make_folder(self.folder)
        self._has_warned, self._busy_until = False, 0.0

    def read(self, name: str, ranges: Sequence[tuple[int, int]], *, size: int) -> list[bytes] | None:
        """Return byte ranges of an entry; None if it is not there or has another size."""
        try:
            descriptor = os.open(self._path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if os.fstat(descriptor).st_size != size:
                return None
            found = [os.pread(descriptor, stop - start, start) for start, stop in ranges]
        except OSError:
            return None
        finally:
            os.close(descriptor)
        is_complete = all(len(one) == stop - start for one, (start, stop) in zip(found, ranges, strict=True))
        return found if is_complete else None

    def write(self, name: str, parts: Sequence[bytes | memoryview]) -> None:
        """Write an entry, and remove old ones if there are too many bytes; do nothing if that is not possible now."""
        path, size = self._path(name), sum(len(part) for part in parts)
        try:
            if size > self.limit or time.monotonic() < self._busy_until or path.exists():
                return
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_name(f".{name}.{uuid.uuid4().hex}.part")
            try:
                with temporary.open("xb") as file:
                    file.writelines(parts)
                with self._lock() as descriptor:
                    if descriptor is not None and not path.exists():
                        self._count(descriptor, size)
                        temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                text = "%s: row groups are not cached: %s (loader.cache_dir)"
                logging.getLogger(__name__).warning(text, self.folder, error.strerror)

    def remove(self, name: str) -> None:
        """Remove an entry, which proved to be damaged. The next listing corrects the count of bytes."""
        with contextlib.suppress(OSError):
            self._path(name).unlink()

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name

    @contextlib.contextmanager
    def _lock(self) -> Iterator[int | None]:
        """Lock the count of bytes; give None if another process has it for longer, to make room."""
        descriptor = None
        for _ in range(TRIES):
            if (descriptor := try_to_hold(self.folder / TOTAL)) is not None:
                break
            time.sleep(PAUSE)
        else:
            self._busy_until = time.monotonic() + BUSY
        try:
            yield descriptor
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _count(self, descriptor: int, size: int) -> None:
        """Add bytes to the count, and make room for them first."""
        text = os.pread(descriptor, 32, 0)
        total = int(text) if re.fullmatch(rb"\d{1,20}\n", text) else None
        if total is None or total + size > self.limit:
            total = self._make_room(size)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % (total + size), 0)

    def _make_room(self, size: int) -> int:
        """Remove the oldest entries, if these bytes do not fit, and return the bytes of those that remain."""
        entries = sorted(self._entries())
        total = sum(entry.size for entry in entries)
        if total + size > self.limit:
            target = max(0, min(self.limit * KEPT_PERCENT // 100, self.limit - size))
            for entry in entries:
                if total <= target:
                    break
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)  # noqa: PTH108 - a path for each entry would take a third of the time
                total -= entry.size
        return total

    def _entries(self) -> Iterator[Entry]:
        """List the files of the cache; remove temporary ones of killed processes."""
        oldest = time.time_ns() - FORGOTTEN * 10**9
        for folder in list(os.scandir(self.folder)):
            if not (_SUBFOLDER.fullmatch(folder.name) and folder.is_dir(follow_symlinks=False)):
                continue
            for file in os.scandir(folder.path):
                is_part = _PART.fullmatch(file.name) is not None
                if not (is_part or _ENTRY.fullmatch(file.name)) or not file.is_file(follow_symlinks=False):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = file.stat(follow_symlinks=False)
                    if is_part and status.st_mtime_ns < oldest:
                        os.unlink(file.path)  # noqa: PTH108
                        continue
                    yield Entry(status.st_mtime_ns, 0 if is_part else status.st_size, file.path)
