"""A local folder as a storage."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.atomic import final_name, part_of, replace_file
from pipeline.base.reading import open_regular
from pipeline.base.retry import retry
from pipeline.storage.interface import Entry
from pipeline.storage.names import check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pipeline.storage.interface import Buffer, Content, Range


class LocalStorage:
    """A folder. Only regular files count as objects, and folders are made when something is put into them."""

    is_remote = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __repr__(self) -> str:
        return f"LocalStorage({self.uri!r})"

    @property
    def uri(self) -> str:
        """The folder's path."""
        return str(self._folder)

    def read(self, name: str) -> bytes:
        """Return the content of a file."""

        def read() -> bytes:
            with open_regular(self._path(name)) as file:
                return file.read()

        return retry(read, self._path(name))

    def read_ranges(self, name: str, ranges: Sequence[Range]) -> list[Buffer]:
        """Return byte ranges of a file."""

        def read() -> list[Buffer]:
            with open_regular(self._path(name)) as file:
                return [self._read_range(file.fileno(), name, one) for one in ranges]

        return retry(read, self._path(name))

    def read_range(self, name: str, start: int, stop: int) -> tuple[Buffer, str]:
        """Return consecutive bytes of a file, and the etag of the version that they are of."""

        def read() -> tuple[Buffer, str]:
            with open_regular(self._path(name)) as file:
                return self._read_range(file.fileno(), name, (start, stop)), _etag(os.fstat(file.fileno()))

        return retry(read, self._path(name))

    def copy_range(self, name: str, start: int, stop: int, take: Callable[[int, Buffer], object]) -> str:
        """Hand on consecutive bytes of a file, all at once."""
        content, etag = self.read_range(name, start, stop)
        take(start, content)
        return etag

    def stat(self, name: str) -> Entry:
        """Return a file's size and time of change; its etag is made of both and its number."""
        status = self._path(name).stat()
        return Entry(name, status.st_size, status.st_mtime, _etag(status))

    def size(self, name: str) -> int:
        """Return the bytes of a file."""
        return self.stat(name).size

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the files below the folder, or below a folder in it."""
        found = []
        for folder, _, files in os.walk(self._path(prefix) if prefix else self._folder):
            paths = (Path(folder) / file for file in files if final_name(file) is None)
            found += [path.relative_to(self._folder).as_posix() for path in paths if path.is_file()]
        for name in sorted(found):
            yield self.stat(name)

    def put(self, name: str, content: Content, *, if_absent: bool = True) -> str:
        """Write a file under a temporary name, and give it its own."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = _content_of(content)
        if not if_absent:
            with replace_file(path) as file:
                file.write(data)
            return self.stat(name).etag
        temporary = part_of(path, uuid.uuid4().hex[:8])
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                path.hardlink_to(temporary)
            except FileExistsError:
                if self.read(name) != data:
                    raise FileExistsError(errno.EEXIST, "is there with another content", str(path)) from None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        return self.stat(name).etag

    def put_if_match(self, name: str, content: Content, etag: str) -> str:
        """Replace a file that was not changed. Another process may do so between the look and the change."""
        found = self.stat(name).etag
        if found != etag:
            if self.read(name) != _content_of(content):
                raise FileExistsError(errno.EEXIST, "was changed by another run", str(self._path(name)))
            return found
        return self.put(name, content, if_absent=False)

    def delete(self, names: Iterable[str]) -> None:
        """Remove files."""
        for name in names:
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / check_name(name, str(self._folder))

    def _read_range(self, descriptor: int, name: str, one: Range) -> bytes:
        start, stop = one
        parts, at = [], start
        while at < stop and (part := os.pread(descriptor, stop - at, at)):
            parts.append(part)
            at += len(part)
        if at < stop:
            raise OSError(errno.EINVAL, f"ends at byte {at:,}, and bytes {start:,} to {stop:,} were asked for", name)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _content_of(content: Content) -> bytes | bytearray | memoryview:
    return content.read_bytes() if isinstance(content, Path) else content


def _etag(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"
