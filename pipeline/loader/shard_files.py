"""The files of one split of a data set: row groups by number, each checked to be what the manifest says.

A shard's footer is parsed once, after its hash was compared with the manifest, and kept. Pages carry checksums. A file
that is replaced while it is read is noticed by its inode, modification time and size. What cannot be read is read again
where that may help (`pipeline.base.retry`); what cannot be read at all is a `DamagedRowGroup`.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import pyarrow as pa

from pipeline.base.reading import open_regular
from pipeline.base.retry import PAUSES, retry
from pipeline.loader.damage import OWN_FAULTS, DamagedRowGroup
from pipeline.loader.row_group import RowInfo, pack_ends
from pipeline.shards.format import open_shard, read_columns, read_footer, shard_schema
from pipeline.shards.id_pages import IdPages
from pipeline.shards.manifest import MANIFEST_NAME, read_manifest
from pipeline.shards.pages import check_pages
from pipeline.shards.row_groups import as_row_groups

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    import pyarrow.parquet as pq

    from pipeline.shards.format import Columns

Read = TypeVar("Read")

FOOTERS_KEPT = 128  # of about 0.4 MB each
Mark: TypeAlias = tuple[int, int, int]  # a file's inode, modification time and size


class ShardFiles:
    """The shards of one split. It may be used by many threads at once, and can be pickled.

    Raises:
        ValueError: the data set has no such split.

    """

    def __init__(self, folder: Path, split: str) -> None:
        self._manifest_mark = mark_file(folder / MANIFEST_NAME)
        self.manifest = read_manifest(folder)
        if split not in self.manifest.splits:
            raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(self.manifest.splits)}")
        self.path, self.split, self.entry = folder, split, self.manifest.splits[split]
        shards = self.entry.shards
        self._padded = self.manifest.windows["tail"] == "pad"
        self._packed = self.manifest.windows["documents"] == "pack"
        self._entries = {shard.path: shard for shard in shards}
        self.groups = as_row_groups([count for shard in shards for count in shard.row_groups])
        self._files = [(shard.path, group) for shard in shards for group in range(len(shard.row_groups))]
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

    def read(self, group: int, *, with_ids: bool) -> tuple[np.ndarray | None, np.ndarray, RowInfo]:
        """Decode a row group as `read_columns` does, and make sure that it is what the manifest of the start describes.

        Raises:
            DamagedRowGroup: the shard is missing or is not what the manifest says; the message names the row group.
            OSError: the folder contains another data set than at the start, or this process may not read it.

        """
        path = self._files[group][0]
        while True:
            try:
                found = self._read_columns(group, with_ids=with_ids)
            except OSError:
                if self._is_unchanged(path):  # if the data set was replaced, that is the error
                    raise
            else:
                if self._is_unchanged(path):
                    return found

    def _is_unchanged(self, path: str) -> bool:
        """Return False if a shard was replaced since its footer was read, which calls for another try.

        A writer removes the manifest before it replaces a shard. So with the manifest of the start still in place, the
        shards are those it describes, and the footer of one that was replaced alone is compared again.

        Raises:
            OSError: the folder contains another data set than at the start.

        """
        mark = mark_file(self.path / MANIFEST_NAME)
        if mark != self._manifest_mark:
            again = "open it again to read what is there now"
            try:
                manifest = read_manifest(self.path)
            except ValueError as error:
                raise OSError(f"{self.path} was replaced or removed while it was read; {again} ({error})") from error
            entry = manifest.splits.get(self.split)
            if entry is None or {shard.path: shard for shard in entry.shards} != self._entries:
                raise OSError(f"{self.path} was replaced by another data set while it was read; {again}")
            self._manifest_mark = mark
        with self._lock:
            known = self._marks.get(path)
            if known is None or mark_file(self.path / path) in (known, None):
                return True
            self._footers.pop(path, None)
            self._checked.clear()
            del self._marks[path]
        return False

    def _read_columns(self, group: int, *, with_ids: bool) -> tuple[np.ndarray | None, np.ndarray, RowInfo]:
        path = self._files[group][0]
        name = f"{self.path / path}"  # a footer's damage is all of the shard's, whichever row group was needed first
        try:
            footer = self._footer(path)
            name = self.name(group)
            inputs_BT, next_ids, starts, lengths, segments = self._retry(
                path, lambda: self._read_pages(group, footer, with_ids)
            )
        except (OSError, ValueError, pa.ArrowException) as error:
            if isinstance(error, MemoryError):
                raise
            kind = OSError if getattr(error, "errno", None) in OWN_FAULTS else DamagedRowGroup
            said = " ".join(str(error).split())  # the library's may have several lines
            raise kind(f"{name} cannot be read: {said}") from error
        shape = (len(starts), self.entry.max_length if inputs_BT is None else inputs_BT.shape[1])
        if shape != (self.groups[group], self.entry.max_length):
            expected = (self.groups[group], self.entry.max_length)
            raise DamagedRowGroup(f"{name} has [windows, tokens] of {shape}; the manifest says {expected}")
        ends = None if segments is None else pack_ends(segments, max_length=self.entry.max_length)
        return inputs_BT, next_ids, RowInfo(starts, lengths, ends)

    def _read_pages(self, group: int, footer: pq.FileMetaData, with_ids: bool) -> Columns:
        path, number = self._files[group]
        if group not in self._checked:
            check_pages(self.path / path, footer, number)
            self._checked.add(group)
        with open_shard(self.path / path, footer=footer) as file:
            if not with_ids:
                return read_columns(file, number, with_ids=False)
            with open_regular(self.path / path) as content:
                descriptor = content.fileno()
                return self._pages.read_columns(file, number, lambda start, size: os.pread(descriptor, size, start))

    def _retry(self, path: str, read: Callable[[], Read]) -> Read:
        """Read from a shard, again if that may help, and without a pause where it did not help before."""
        pauses = () if path in self._failed else PAUSES
        try:
            found = retry(read, self.path / path, unclear=(ValueError, pa.ArrowException), pauses=pauses)
        except OSError:
            self._failed.add(path)
            raise
        self._failed.discard(path)
        return found

    def _footer(self, path: str) -> pq.FileMetaData:
        with self._lock:
            footer = self._footers.get(path)
            if footer is not None:
                self._footers.move_to_end(path)
                return footer
        schema = shard_schema(self.entry.max_length, padded=self._padded, packed=self._packed)
        file = self.path / path
        mark, footer = mark_file(file), self._retry(path, lambda: read_footer(file, self._entries[path], schema))
        with self._lock:
            self._footers[path] = footer
            if mark is not None:
                self._marks.setdefault(path, mark)
            if len(self._footers) > FOOTERS_KEPT:
                self._footers.popitem(last=False)
        return footer

    def name(self, group: int) -> str:
        """Return a row group's file, and its number there."""
        path, number = self._files[group]
        return f"{self.path / path}: row group {number}"


def mark_file(path: Path) -> Mark | None:
    """Return what changes when a file is replaced or written to; None if there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
