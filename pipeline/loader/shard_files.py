"""The files of one split of a data set: row groups by number, each checked to be what the manifest says.

A shard's footer is parsed once, after its hash was compared with the manifest, and kept. Pages carry checksums. A file
that is replaced while it is read is noticed by its inode, modification time and size. What cannot be read is read again
where that may help (`pipeline.base.retry`); what cannot be read at all is a `DamagedRowGroup`.

Files of a local folder are opened by Parquet's reader itself. Those of an object store are fetched by ranges
(`FetchedShards`), and so are those of a folder if there is a cache (`loader.cache_dir`).
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.base.reading import open_regular
from pipeline.base.retry import PAUSES, retry
from pipeline.loader.damage import OWN_FAULTS, DamagedRowGroup
from pipeline.loader.fetched_shards import FetchedShards, ReplacedShardError
from pipeline.loader.row_group import RowInfo, pack_ends
from pipeline.shards.entries import MANIFEST_NAME, shard_number
from pipeline.shards.format import open_shard, read_columns, read_footer, shard_schema
from pipeline.shards.id_pages import IdPages
from pipeline.shards.manifest import read_manifest
from pipeline.shards.pages import check_pages
from pipeline.storage.open import open_storage

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    import pyarrow.parquet as pq

    from pipeline.loader.disk_cache import DiskCache
    from pipeline.loader.fetched_shards import FetchedShard
    from pipeline.shards.entries import ShardEntry
    from pipeline.shards.format import Columns

Read = TypeVar("Read")

FOOTERS_KEPT = 128  # of about 0.4 MB each
MOST_REPLACED = 8  # times that a shard is read again because it was replaced
Fetch: TypeAlias = "Future[FetchedShard | None]"
Mark: TypeAlias = tuple[int, int, int]  # a file's inode, modification time and size


class ShardFiles:
    """The shards of one split. It may be used by many threads at once, and can be pickled.

    Args:
        folder: the data set's folder, or its URI.
        split: `train` or `validation`.
        cache: where row groups are kept on a local disk.

    Raises:
        ValueError: the data set has no such split.

    """

    def __init__(self, folder: Path | str, split: str, *, cache: DiskCache | None = None) -> None:
        self._manifest_mark = None if isinstance(folder, str) else mark_file(folder / MANIFEST_NAME)
        self.manifest = read_manifest(folder)
        is_fetched = isinstance(folder, str) or cache is not None
        self.fetched = FetchedShards(open_storage(folder), cache) if is_fetched else None
        if split not in self.manifest.splits:
            raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(self.manifest.splits)}")
        self.path, self.split, self.entry = folder, split, self.manifest.splits[split]
        self._padded = self.manifest.windows["tail"] == "pad"
        self._packed = self.manifest.windows["documents"] == "pack"
        self.groups = self.entry.row_groups
        self._listed: dict[str, ShardEntry] = {}  # the shards of format 1, by path
        self._first_groups: np.ndarray | None = None  # of each of these
        if self.entry.windows_per_group is None:
            self._listed = {shard.path: shard for shard in self.entry.shards}
            self._first_groups = np.cumsum([0, *(len(shard.row_groups) for shard in self.entry.shards)])
        self._marks: dict[str, Mark] = {}  # of each shard whose footer was read
        self._failed: set[str] = set()  # shards that could not be read: no second wait for them
        self._footers: OrderedDict[str, pq.FileMetaData] = OrderedDict()
        self._checked: set[int] = set()  # row groups whose page headers agree with the footer
        self._pages = IdPages()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_footers": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def fetch_bytes(self) -> int:
        """About the bytes of a row group as it is fetched; 0 where none are fetched."""
        if self.fetched is None or not len(self.groups):
            return 0
        return self.entry.num_bytes // len(self.groups)

    def fetch(self, group: int, *, with_ids: bool = True) -> FetchedShard | None:
        """Fetch a row group's bytes for `read`, where shards are fetched; several at once are sooner there.

        Raises:
            OSError, ValueError: it cannot be read; `read` says so in the words of a user.

        """
        if self.fetched is None:
            return None
        self.fetched.check_process()  # before a lock is taken, which a fork may have left locked
        path, number = self._find(group)
        return self.fetched.fetch(self._entry(path), self._footer(path), number, with_ids=with_ids)

    def read(
        self, group: int, *, with_ids: bool, fetched: Fetch | None = None
    ) -> tuple[np.ndarray | None, np.ndarray, RowInfo]:
        """Decode a row group as `read_columns` does, and make sure that it is what the manifest of the start describes.

        Args:
            group: its number.
            with_ids: decode the inputs, too.
            fetched: what `fetch` returns of it, once it is there.

        Raises:
            DamagedRowGroup: the shard is missing or is not what the manifest says; the message names the row group.
            OSError: the folder contains another data set than at the start, or this process may not read it; or the
                object store cannot be reached.

        """
        path = self._find(group)[0]
        if self.fetched is not None:
            self.fetched.check_process()
        for _ in range(MOST_REPLACED):
            try:
                found = self._read_columns(group, with_ids=with_ids, fetched=fetched)
            except OSError as error:
                if self._is_unchanged(path, error):  # if the data set was replaced, that is the error
                    raise
            else:
                if self._is_unchanged(path):
                    return found
            fetched = None
        raise DamagedRowGroup(f"{self.name(group)} cannot be read: its shard is being replaced again and again")

    def _is_unchanged(self, path: str, error: OSError | None = None) -> bool:
        """Return False if a shard was replaced since its footer was read, which calls for another try.

        A writer removes the manifest before it replaces a shard. So with the manifest of the start still in place, the
        shards are those it describes, and the footer of one that was replaced alone is compared again. What was fetched
        from an object store is of the version that its footer was in, so there the manifest is read after errors alone.

        Raises:
            OSError: the folder contains another data set than at the start.

        """
        is_replaced = error is not None and isinstance(error.__cause__, ReplacedShardError)
        if isinstance(self.path, str):
            if not isinstance(error, DamagedRowGroup):
                return True
            self._check_manifest()
        else:
            mark = mark_file(self.path / MANIFEST_NAME)
            if mark != self._manifest_mark:
                self._check_manifest()
                self._manifest_mark = mark
            known = self._marks.get(path)
            is_replaced |= known is not None and mark_file(self.path / path) not in (known, None)
        if is_replaced:
            with self._lock:
                self._footers.pop(path, None)
                self._checked.clear()
                self._marks.pop(path, None)
                if self.fetched is not None:
                    self.fetched.versions.pop(path, None)
        return not is_replaced

    def _check_manifest(self) -> None:
        again = "open it again to read what is there now"
        try:
            manifest = read_manifest(self.path)
        except ValueError as error:
            raise OSError(f"{self.path} was replaced or removed while it was read; {again} ({error})") from error
        entry = manifest.splits.get(self.split)
        known = self.manifest.index
        if entry is None or (known and known != manifest.index) or entry.shards != self.entry.shards:
            raise OSError(f"{self.path} was replaced by another data set while it was read; {again}")
        self.manifest, self.entry = manifest, entry

    def _read_columns(
        self, group: int, *, with_ids: bool, fetched: Fetch | None
    ) -> tuple[np.ndarray | None, np.ndarray, RowInfo]:
        path = self._find(group)[0]
        try:
            if self.fetched is None:
                footer = self._footer(path)
                columns = self._retry(path, lambda: self._read_pages(group, footer, with_ids))
            else:
                coming = iter([] if fetched is None else [fetched])
                columns = self._retry(path, lambda: self._decode(group, with_ids, next(coming, None)))
        except (OSError, ValueError, pa.ArrowException) as error:
            if isinstance(error, MemoryError):
                raise
            # A footer's damage is all of the shard's, whichever row group was needed first.
            name = self.name(group) if path in self._footers else self._place(path)
            said = " ".join(str(error).split())  # the library's may have several lines
            raise self._kind(error)(f"{name} cannot be read: {said}") from error
        inputs_BT, next_ids, starts, lengths, segments = columns
        shape = (len(starts), self.entry.max_length if inputs_BT is None else inputs_BT.shape[1])
        if shape != (self.groups[group], self.entry.max_length):
            expected = (self.groups[group], self.entry.max_length)
            raise DamagedRowGroup(f"{self.name(group)} has [windows, tokens] of {shape}; the manifest says {expected}")
        ends = None if segments is None else pack_ends(segments, max_length=self.entry.max_length)
        return inputs_BT, next_ids, RowInfo(starts, lengths, ends)

    def _read_pages(self, group: int, footer: pq.FileMetaData, with_ids: bool) -> Columns:
        path, number = self._find(group)
        file_path = Path(self._place(path))
        if group not in self._checked:
            check_pages(file_path, footer, number)
            self._checked.add(group)
        if not with_ids:
            with open_shard(file_path, footer=footer) as file:
                return read_columns(file, number, with_ids=False)
        with open_regular(file_path) as content:
            read = partial(_read_at, content.fileno())
            known = self._pages.read_known(footer, number, read, max_length=self.entry.max_length)
            if known is not None:
                return known
            with open_shard(file_path, footer=footer) as file:
                return self._pages.read_columns(file, number, read)

    def _decode(self, group: int, with_ids: bool, coming: Fetch | None) -> Columns:
        """Decode a row group that was fetched; if it is one of the cache and damaged, fetch it again."""
        assert self.fetched is not None, "shards are fetched"
        path, number = self._find(group)
        entry, found = self._entry(path), None if coming is None else coming.result()
        found = found or self.fetch(group, with_ids=with_ids)
        assert found is not None, "shards are fetched"
        try:
            return self.fetched.decode(entry, found, number, with_ids=with_ids)
        except (OSError, ValueError, pa.ArrowException):
            if not found.is_cached:
                raise
        self.fetched.forget(entry, number)
        again = self.fetched.fetch(entry, found.footer, number, with_ids=with_ids)
        return self.fetched.decode(entry, again, number, with_ids=with_ids)

    def _kind(self, error: Exception) -> type[OSError]:
        """Tell damage from what says nothing about the stored data, such as an object store that does not answer."""
        number = getattr(error, "errno", None)
        is_outage = isinstance(self.path, str) and number not in (None, errno.ENOENT, errno.EINVAL)
        return OSError if number in OWN_FAULTS or is_outage else DamagedRowGroup

    def _retry(self, path: str, read: Callable[[], Read]) -> Read:
        """Read from a shard, again if that may help, and without a pause where it did not help before."""
        pauses = () if path in self._failed or self.fetched is not None else PAUSES  # a storage waits itself
        try:
            found = retry(read, self._place(path), unclear=(ValueError, pa.ArrowException), pauses=pauses)
        except OSError:
            self._failed.add(path)
            raise
        self._failed.discard(path)
        return found

    def _footer(self, path: str) -> pq.FileMetaData:
        if self.fetched is None:
            return self._find_footer(path)
        with self.fetched.lock(path):  # many threads may need it: one asks
            return self._find_footer(path)

    def _find_footer(self, path: str) -> pq.FileMetaData:
        with self._lock:
            footer = self._footers.get(path)
            if footer is not None:
                self._footers.move_to_end(path)
                return footer
        schema = shard_schema(self.entry.max_length, padded=self._padded, packed=self._packed)
        entry = self._entry(path)
        if self.fetched is None:
            file = Path(self._place(path))
            mark, footer = mark_file(file), self._retry(path, lambda: read_footer(file, entry, schema))
        else:
            fetched = self.fetched
            mark, footer = None, self._retry(path, lambda: fetched.read_footer(entry, schema))
        with self._lock:
            self._footers[path] = footer
            if mark is not None:
                self._marks.setdefault(path, mark)
            if len(self._footers) > FOOTERS_KEPT:
                self._marks.pop(self._footers.popitem(last=False)[0], None)
        return footer

    def _find(self, group: int) -> tuple[str, int]:
        """Return the path of a row group's shard, and the row group's number there."""
        if self._first_groups is None:
            per_group, per_shard = self.entry.windows_per_group, self.entry.windows_per_shard
            assert per_group, "without a list of sizes there is one size"
            assert per_shard, "as above"
            shard, at = divmod(group, per_shard // per_group)
        else:
            shard = int(np.searchsorted(self._first_groups, group, side="right")) - 1
            at = group - int(self._first_groups[shard])
        return self.entry.shard_path(shard), at

    def _entry(self, path: str) -> ShardEntry:
        """Return what the data set says of a shard."""
        return self._listed[path] if self._listed else self.entry.shards[shard_number(path)]

    def name(self, group: int) -> str:
        """Return a row group's file, and its number there."""
        path, number = self._find(group)
        return f"{self._place(path)}: row group {number}"

    def _place(self, path: str) -> str:
        """Return a shard's path or URI."""
        return f"{self.path}/{path}" if isinstance(self.path, str) else str(self.path / path)


def _read_at(descriptor: int, start: int, size: int) -> bytes:
    return os.pread(descriptor, size, start)


def mark_file(path: Path) -> Mark | None:
    """Return what changes when a file is replaced or written to; None if there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
