"""Pass two of the write stage: token store to Parquet shards.

A shard's windows are a range, and a window's tokens are arithmetic, so each shard is a task of its own: its bytes
depend on the token stream and the layout, not on the number of workers or on what was written before. A task holds
one row group at a time, about 2^18 tokens. A shard is written under a temporary name outside `data/`, flushed to the
disk, and renamed.
"""

from __future__ import annotations

import hashlib
import os
from functools import partial
from typing import TYPE_CHECKING

from pipeline.manifest import ShardEntry
from pipeline.shard_format import group_table, shard_schema, shard_writer
from pipeline.windows import read_windows
from pipeline.write.executor import run_tasks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.layout import Layout
    from pipeline.token_store import TokenStream
    from pipeline.windows import Windows


def write_split(
    folder: Path,
    split: str,
    *,
    stream: TokenStream,
    windows: Windows,
    layout: Layout,
    pad_id: int,
    workers: int,
    advance: Callable[[int], object],
) -> list[ShardEntry]:
    """Write a split's windows to `folder/data/<split>-*.parquet`. `advance` is called with each shard's windows."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / ".tmp").mkdir(exist_ok=True)
    total = -(-len(windows) // layout.windows_per_shard)
    task = partial(
        write_shard,
        folder=folder,
        split=split,
        total=total,
        stream=stream,
        windows=windows,
        layout=layout,
        pad_id=pad_id,
    )
    entries = []
    for entry in run_tasks(task, range(total), workers=workers):
        entries.append(entry)
        advance(entry.num_windows)
    return entries


def write_shard(
    index: int,
    *,
    folder: Path,
    split: str,
    total: int,
    stream: TokenStream,
    windows: Windows,
    layout: Layout,
    pad_id: int,
) -> ShardEntry:
    """Write shard `index` of `total` and return its entry for the manifest."""
    name = f"{split}-{index:05d}-of-{total:05d}.parquet"
    temporary = folder / ".tmp" / f"{name}.{os.getpid()}"
    padded = windows.tail == "pad"
    first = index * layout.windows_per_shard
    last = min(first + layout.windows_per_shard, len(windows))
    groups = []
    with temporary.open("wb") as file:
        schema = shard_schema(windows.max_length, padded=padded)
        with shard_writer(file, schema, compression=layout.compression) as writer:
            for begin in range(first, last, layout.windows_per_group):
                end = min(begin + layout.windows_per_group, last)
                writer.write_table(
                    group_table(*read_windows(stream, windows, begin, end, pad_id=pad_id), padded=padded)
                )
                groups.append(end - begin)
        file.flush()
        os.fsync(file.fileno())
    with temporary.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = temporary.stat().st_size
    temporary.rename(folder / "data" / name)
    return ShardEntry(path=f"data/{name}", num_windows=last - first, bytes=size, sha256=digest, row_groups=groups)
