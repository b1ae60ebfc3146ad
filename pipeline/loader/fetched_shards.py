"""Shards whose bytes are fetched by ranges: from an object store, or from a folder with a cache (`loader.cache_dir`).

A row group costs one request. The columns that are read have the targets between them; one request for all is sooner
there than two, and a request costs more than the bytes of a row group. Only the columns that are read are cached.

Every answer names the version of its object (etag). A footer is compared with the manifest by its hash; row groups must
then come from the version that the footer was in. So the manifest is not asked for again, unless something is wrong.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.shards.format import check_footer, check_footer_bytes, open_shard, read_columns
from pipeline.shards.id_pages import IdPages
from pipeline.shards.pages import HEADER_BYTES, check_column
from pipeline.storage.client import check_process

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.loader.disk_cache import DiskCache
    from pipeline.shards.entries import ShardEntry
    from pipeline.shards.format import Columns
    from pipeline.storage.interface import Storage

TARGETS, IDS = ("target_ids",), ("target_ids", "input_ids")
REQUESTS = 32  # at once: at 30 ms each, 250 Mtok/s of row groups of 2^18 tokens


class ReplacedShardError(OSError):
    """A shard is another version than that of the footer."""


class Part(NamedTuple):
    """Consecutive bytes of a shard."""

    start: int
    content: memoryview


class FetchedShard(NamedTuple):
    """What was fetched of a row group."""

    footer: pq.FileMetaData
    parts: list[Part]
    is_cached: bool


class FetchedShards:
    """The shards below a prefix of a bucket, or in a folder.

    Args:
        storage: where they are.
        cache: where row groups are kept; None: nowhere.

    """

    def __init__(self, storage: Storage, cache: DiskCache | None) -> None:
        self.storage, self.cache = storage, cache
        self._pages = IdPages()
        self.versions: dict[str, str] = {}  # of each shard whose footer was read
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # one request for a footer

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_locks": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._locks = defaultdict(threading.Lock)

    def check_process(self) -> None:
        """Refuse to read an object store in a process that was forked from one that has read it.

        Raises:
            OSError: this is one; the message says how to start it.

        """
        if self.storage.is_remote:
            check_process(self.storage.uri)

    def lock(self, path: str) -> threading.Lock:
        """Return the lock under which a shard's footer is read."""
        return self._locks[path]

    def read_footer(self, entry: ShardEntry, schema: pa.Schema) -> pq.FileMetaData:
        """Read a shard's footer, and compare it with the manifest before anything parses it.

        Of a shard of release 0.1.0 the manifest has only the hash of the complete file, which is then read once.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not the footer of the manifest.

        """
        content = self._cached_footer(entry) or self._fetch_footer(entry)
        footer = pq.read_metadata(pa.BufferReader(pa.py_buffer(content)))
        check_footer(footer, entry, schema)
        return footer

    def fetch(self, entry: ShardEntry, footer: pq.FileMetaData, group: int, *, with_ids: bool) -> FetchedShard:
        """Fetch the bytes of a row group's columns: from the cache, or by one request.

        Raises:
            ReplacedShardError: the shard was replaced since its footer was read.
            OSError: it cannot be read.

        """
        row_group = footer.row_group(group)
        spans = join_spans(column_spans(row_group, left_out=TARGETS if with_ids else IDS))
        if self.cache is not None and (parts := self._cached_parts(entry, row_group, group, spans)):
            return FetchedShard(footer, parts, is_cached=True)
        if entry.path not in self.versions:
            self._fetch_footer(entry)  # it was in the cache
        start = spans[0][0]
        content, version = self.storage.read_range(entry.path, start, spans[-1][1])
        if version != self.versions[entry.path]:
            raise ReplacedShardError("it was replaced while it was read")
        return FetchedShard(footer, [Part(start, memoryview(content))], is_cached=False)

    def decode(self, entry: ShardEntry, fetched: FetchedShard, group: int, *, with_ids: bool) -> Columns:
        """Decode a row group, whose pages are checked, and keep it in the cache.

        Raises:
            OSError, ValueError: a page is damaged.

        """
        row_group = fetched.footer.row_group(group)
        spans = column_spans(row_group, left_out=TARGETS if with_ids else IDS)
        content = RangeFile(fetched.parts)
        with open_parts(content, fetched.footer, row_group, list(spans)) as file:
            if with_ids:
                columns = self._pages.read_columns(file, group, content.bytes_at)
            else:
                columns = read_columns(file, group, with_ids=False)
        if self.cache is not None and with_ids and not fetched.is_cached:
            (part,) = fetched.parts
            stored = [part.content[start - part.start : stop - part.start] for start, stop in join_spans(spans)]
            self.cache.write(entry_name(entry, group), stored)
        return columns

    def forget(self, entry: ShardEntry, group: int) -> None:
        """Remove a row group from the cache, since what was read from there is damaged."""
        if self.cache is not None:
            self.cache.remove(entry_name(entry, group))

    def _fetch_footer(self, entry: ShardEntry) -> memoryview:
        """Read a footer from the storage, and note the version of its shard."""
        content, version = self.storage.read_range(entry.path, entry.footer_start or 0, entry.bytes)
        footer = check_footer_bytes(content, entry)
        self.versions[entry.path] = version
        if self.cache is not None and entry.footer_sha256 is not None:
            self.cache.write(entry.footer_sha256, [footer])
        return footer

    def _cached_parts(
        self, entry: ShardEntry, row_group: pq.RowGroupMetaData, group: int, spans: list[tuple[int, int]]
    ) -> list[Part] | None:
        """Return parts of a row group from the cache, where the columns that are read lie end to end."""
        assert self.cache is not None, "asked for with a cache"
        offset, ranges = 0, []
        for first, last in join_spans(column_spans(row_group, left_out=TARGETS)):
            here = [(start - first + offset, stop - first + offset) for start, stop in spans if first <= start < last]
            ranges += here
            offset += last - first
        found = self.cache.read(entry_name(entry, group), ranges, size=offset)
        if found is None:
            return None
        return [Part(start, memoryview(content)) for (start, _), content in zip(spans, found, strict=True)]

    def _cached_footer(self, entry: ShardEntry) -> memoryview | None:
        if self.cache is None or entry.footer_sha256 is None or entry.footer_start is None:
            return None
        size = entry.bytes - entry.footer_start
        found = self.cache.read(entry.footer_sha256, [(0, size)], size=size)
        if found is None:
            return None
        try:
            return check_footer_bytes(found[0], entry)
        except ValueError:
            self.cache.remove(entry.footer_sha256)
            return None


def entry_name(entry: ShardEntry, group: int) -> str:
    """Return the name of a row group in the cache: its shard's sha256 and its number there."""
    return f"{entry.sha256}-{group}"


def column_spans(row_group: pq.RowGroupMetaData, *, left_out: tuple[str, ...] = ()) -> dict[int, tuple[int, int]]:
    """Return where the columns of a row group are in the file, by their number, without those that are left out."""
    spans = {}
    for index in range(row_group.num_columns):
        column = row_group.column(index)
        if column.path_in_schema.partition(".")[0] not in left_out:
            start = column.data_page_offset
            spans[index] = start, start + column.total_compressed_size
    return spans


def join_spans(spans: dict[int, tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans from the first to the last; those that touch become one.

    >>> join_spans({0: (4, 10), 2: (20, 24), 3: (24, 30)})
    [(4, 10), (20, 30)]

    """
    joined: list[tuple[int, int]] = []
    for start, stop in spans.values():
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], stop
        else:
            joined.append((start, stop))
    return joined


def open_parts(
    file: RangeFile, footer: pq.FileMetaData, row_group: pq.RowGroupMetaData, columns: Sequence[int]
) -> pq.ParquetFile:
    """Open parts of a file to read columns of a row group that are in them. Their pages are compared with the footer.

    Raises:
        ValueError: a page states other sizes than the footer.

    """
    for index in columns:
        check_column(lambda at: bytes(file.bytes_at(at, HEADER_BYTES)), row_group, index)
    return open_shard(pa.PythonFile(file, mode="r"), footer=footer)


class RangeFile:
    """Parts of a file as a file, for Parquet's reader."""

    closed = False

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts, self._at = parts, 0
        self._size = max(part.start + len(part.content) for part in parts)

    def tell(self) -> int:
        """Return the offset of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset."""
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int = -1) -> memoryview:
        """Return the next bytes, without a copy."""
        content = self.bytes_at(self._at, self._size - self._at if size < 0 else size)
        self._at += len(content)
        return content

    def close(self) -> None:
        """Do nothing."""

    def bytes_at(self, start: int, size: int) -> memoryview:
        """Return bytes from an offset on, up to the end of the last part at most.

        Parquet's reader reads across a small gap between two columns, and uses nothing of it: a gap is zeros here.
        """
        stop = max(start, min(start + size, self._size))
        for first, content in self._parts:
            if first <= start and stop <= first + len(content):
                return content[start - first : stop - first]
        found = bytearray(stop - start)
        for first, content in self._parts:
            low, high = max(start, first), min(stop, first + len(content))
            if low < high:
                found[low - start : high - start] = content[low - first : high - first]
        return memoryview(found)
