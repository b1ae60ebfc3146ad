"""Pass two of the write stage: token store to Parquet shards.

A shard's windows are a range of positions, and a window's tokens are arithmetic, so each shard is a task of its own:
its bytes depend on the token stream, the layout and the order, not on the number of workers or on what was written
before. Under `order=shuffled`, position i holds window `permute(i)`, an exact shuffle of all windows of the split that
is never stored; each row group gathers its own windows from the mapped token store.

A shard is written under a temporary name outside `data/`, hashed on its way to the disk, flushed, recorded and renamed.
One that an earlier run has recorded is read instead, and kept if its bytes are those that were recorded. A task holds
one row group at a time.
"""

from __future__ import annotations

import hashlib
import os
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pipeline.manifest import ShardEntry
from pipeline.shard_format import group_table, shard_schema, shard_writer
from pipeline.windows import read_rows
from pipeline.write.executor import run_tasks
from pipeline.write.folder import WRITING, record_shard

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO

    from pipeline.layout import Layout
    from pipeline.token_store import TokenStream
    from pipeline.windows import Windows


class _HashingFile:
    """A file for pyarrow to write to, which hashes what passes through: no second read for the manifest's sha256."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, content: bytes) -> int:
        self._digest.update(content)
        self.size += len(content)
        return self._file.write(content)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Nothing: whoever opened the file flushes it to the disk before it is closed."""

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def shard_names(split: str, num_windows: int, layout: Layout) -> list[str]:
    """The file names of a split's shards."""
    total = -(-num_windows // layout.shard_size(num_windows))
    return [f"{split}-{index:05d}-of-{total:05d}.parquet" for index in range(total)]


def write_split(
    folder: Path,
    split: str,
    *,
    stream: TokenStream,
    windows: Windows,
    layout: Layout,
    order: str,
    seed: int,
    pad_id: int,
    workers: int,
    recorded: dict[str, ShardEntry],
    advance: Callable[[int], object],
) -> list[ShardEntry]:
    """Write a split's windows to `folder/data/<split>-*.parquet`. `advance` is called with each shard's windows.

    `recorded` are entries of shards, by path, that need not be written again if their bytes are as recorded.
    """
    names = shard_names(split, len(windows), layout)
    size = layout.shard_size(len(windows))

    def task(index: int) -> ShardEntry:
        known = recorded.get(f"data/{names[index]}")
        if known and is_intact(folder, known):
            return known
        first = index * size
        last = min(first + size, len(windows))
        read = partial(read_rows, stream, windows, order=order, seed=seed, pad_id=pad_id)
        return write_shard(folder, names[index], first, last, windows=windows, layout=layout, read=read)

    entries = []
    for entry in run_tasks(task, range(len(names)), workers=workers):
        entries.append(entry)
        advance(entry.num_windows)
    return entries


def write_shard(
    folder: Path,
    name: str,
    first: int,
    last: int,
    *,
    windows: Windows,
    layout: Layout,
    read: Callable[[int, int], tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> ShardEntry:
    """Write one shard, rows [first, last) of its split, and return its entry for the manifest."""
    temporary = folder / WRITING / name
    padded = windows.tail == "pad"
    groups = []
    rows = min(layout.windows_per_group, last - first)
    scratch_2BT = np.empty((2, rows, windows.max_length), np.int32)  # no memory until it is touched
    with temporary.open("wb") as file:
        sink = _HashingFile(file)
        schema = shard_schema(windows.max_length, padded=padded)
        with shard_writer(sink, schema, compression=layout.compression) as writer:
            for begin in range(first, last, layout.windows_per_group):
                end = min(begin + layout.windows_per_group, last)
                writer.write_table(group_table(*read(begin, end), padded=padded, scratch_2BT=scratch_2BT))
                groups.append(end - begin)
        file.flush()
        os.fsync(file.fileno())
    entry = ShardEntry(
        path=f"data/{name}", num_windows=last - first, bytes=sink.size, sha256=sink.hexdigest(), row_groups=groups
    )
    record_shard(folder, entry)
    temporary.rename(folder / entry.path)
    return entry


def is_intact(folder: Path, entry: ShardEntry) -> bool:
    """Whether a shard is there with the size and the sha256 that its entry says."""
    path = folder / entry.path
    if not path.is_file() or path.stat().st_size != entry.bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
