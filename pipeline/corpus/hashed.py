"""What is hashed of a corpus, complete small files and byte ranges of larger ones, and how it is read after that."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pipeline.corpus.compression import divide_content, is_packed, read_blocks
from pipeline.corpus.opened import CHANGED, find_status, read_object
from pipeline.storage.names import is_uri

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from pipeline.corpus.documents import Partition
    from pipeline.corpus.files import FoundFile
    from pipeline.corpus.opened import Stamp, Status
    from pipeline.corpus.spool import SpooledRange


class Trusted(NamedTuple):
    """A part of a partition's file that was not read: an earlier run has hashed it."""

    source: int
    start: int
    stop: int | None
    digest: str


@dataclass(frozen=True, slots=True)
class FileRange:
    """Files of a group, or a byte range of one file."""

    files: tuple[FoundFile, ...]
    start: int = 0
    stop: int | None = None
    is_group: bool = False  # complete small files


class Hashed(NamedTuple):
    """What reading all bytes of a file range shows."""

    digests: tuple[str, ...]  # sha256 of each file
    stamps: tuple[Stamp, ...]
    num_bytes: int
    num_rows: int = 0  # that end in a range of a file: lines, or documents with a delimiter after them
    is_text: bool = False  # UTF-8, and no block is binary
    longest: int = 0  # most bytes of consecutive blocks without a cut point
    held: HeldFiles | None = None
    spooled: SpooledRange | None = None
    trusted: tuple[Trusted, ...] = ()


class HeldFiles:
    """The contents of small files from their hashing to their only reading: each is given once and then forgotten."""

    __slots__ = ("_contents",)

    def __init__(self, contents: Iterable[bytes | None] = ()) -> None:
        self._contents = list(contents)

    def take(self, number: int) -> bytes | None:
        """Return the content of a file, and forget it; None if it is to be read."""
        if number >= len(self._contents):
            return None
        content, self._contents[number] = self._contents[number], None
        return content

    def select(self, start: int, stop: int) -> HeldFiles:
        """Return the contents of some files, and forget them here."""
        return HeldFiles([self.take(number) for number in range(start, stop)])

    def forget(self) -> None:
        """Forget all contents."""
        self._contents = []

    def __reduce__(self) -> tuple[type[HeldFiles], tuple[()]]:
        """Leave the contents behind: another process reads the files itself."""
        return HeldFiles, ()


def read_complete(path: str, expected: Stamp | None) -> tuple[bytes, Stamp]:
    """Read a small file in one step. Return its content, and its stamp after that.

    Raises:
        ValueError: it cannot be read, or was changed; if a stamp is `expected`, since it had that.

    """
    if is_uri(path):
        assert expected, "a listing gives the stamp of an object"
        return _read_object(path, expected)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            before = expected or _stamp(os.fstat(descriptor))
            parts, left = [], before[0] + 1
            while left > 0 and (part := os.read(descriptor, left)):
                parts.append(part)
                left -= len(part)
            after = _stamp(os.fstat(descriptor))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    if before != after or left != 1:
        raise changed(path)
    return parts[0] if len(parts) == 1 else b"".join(parts), after


def _read_object(path: str, expected: Stamp) -> tuple[bytes, Stamp]:
    try:
        content, status = read_object(path, expected[0]) if expected[0] else (b"", find_status(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    if _stamp(status) != expected:
        raise changed(path)
    return bytes(content), expected


def read_file(partition: Partition, source: int) -> Iterator[bytes]:
    """Yield what a partition has of one of its files, in blocks, unpacked; raises like `read_blocks`."""
    path = partition.paths[source]
    if not partition.is_group:
        yield from read_range(partition)
    elif is_packed(path):
        yield from read_blocks(path)
    else:
        yield from divide_content(read_small(partition, source))


def read_range(partition: Partition) -> Iterator[bytes]:
    """Yield what a partition has of its only file, in blocks, unpacked; raises like `read_blocks`."""
    return read_blocks(
        partition.paths[0],
        start=partition.start,
        stop=partition.stop,
        stamp=next(iter(partition.stamps), None),
        spooled=partition.spooled,
    )


def read_small(partition: Partition, source: int) -> bytes:
    """Return a plain file of a group: what is held of it since it was hashed, or else read again.

    Raises:
        ValueError: it cannot be read, or was changed since it was hashed.

    """
    if partition.held is not None and (content := partition.held.take(source)) is not None:
        return content
    return read_complete(partition.paths[source], partition.stamps[source])[0]


def check_unchanged(partition: Partition) -> None:
    """Raise a ValueError if a file's size or modification time is not what it was when the file was hashed.

    The plain files of a group are left to `read_small`; what was spooled is not read again.
    """
    if partition.spooled and partition.spooled.covers(_end_of(partition)):
        return
    for path, stamp in zip(partition.paths, partition.stamps, strict=bool(partition.stamps)):
        if (not partition.is_group or is_packed(path)) and file_stamp(path) != stamp:
            raise changed(path)


def _end_of(partition: Partition) -> int:
    return partition.stamps[0][0] if partition.stop is None else partition.stop


def listed_stamp(file: FoundFile) -> Stamp | None:
    """Return the stamp that an object had when it was found; None of a file, which is asked when it is read."""
    return _stamp(file.status) if is_uri(file.path) else None


def file_stamp(path: str | Path) -> Stamp:
    """Return a file's stamp; raise a ValueError if it cannot be read."""
    try:
        return _stamp(find_status(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


def _stamp(status: os.stat_result | Status) -> Stamp:
    return status.st_size, status.st_mtime_ns


def changed(path: str | Path) -> ValueError:
    """Return the error of a file that does not stay as it is."""
    return ValueError(f"{path}: {CHANGED}")
