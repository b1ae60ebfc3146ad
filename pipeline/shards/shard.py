"""Pass two of the write stage: from the token store to Parquet shards.

A shard's windows are a range of rows, and a window's tokens are arithmetic, so each shard is a task of its own. Its
bytes depend on the token stream, the layout and the order, not on the number of workers or on earlier runs. Under
`order=shuffled`, row i holds window `permute(i)`: an exact shuffle of all windows of the split that is never stored.
Each row group gathers its own windows from the mapped token store.

A shard is written under a temporary name of its own outside `data/`, hashed while it is written, flushed, recorded and
renamed. A shard that an earlier run has recorded is kept if it has the recorded bytes. A task holds one row group at a
time.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.base.atomic import part_of
from pipeline.base.scratch import scratch_folder
from pipeline.packing import PackedWindows
from pipeline.shards.complete import WRITING
from pipeline.shards.entries import ShardEntry
from pipeline.shards.folder import (
    is_finished_by_now,
    read_record,
    read_record_at,
    record_name,
    record_shard,
    refuse_other_plan,
)
from pipeline.shards.format import find_footer, group_table, shard_schema
from pipeline.shards.shard_writer import ShardWriter
from pipeline.storage.hashing import hash_object
from pipeline.storage.interface import SINGLE_BYTES, exists

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import BinaryIO

    from pipeline.executor.choose import Executor
    from pipeline.shards.folder import FolderLock
    from pipeline.shards.layout import Layout
    from pipeline.storage.interface import Storage
    from pipeline.windows import StoredWindows


class HashingFile:
    """A file for pyarrow to write to. It hashes what is written, so the manifest's sha256 needs no second read."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, content: bytes) -> int:
        """Write, hash and count."""
        self._digest.update(content)
        self.size += len(content)
        return self._file.write(content)

    def tell(self) -> int:
        """Return the bytes so far."""
        return self.size

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Do nothing: `write_shard` flushes the file to the disk before it closes it."""

    def hexdigest(self) -> str:
        """Return the sha256 of what was written."""
        return self._digest.hexdigest()


def shard_names(split: str, num_windows: int, layout: Layout) -> list[str]:
    """Return the file names of a split's shards."""
    total = -(-num_windows // layout.shard_size(num_windows))
    return [f"{split}-{index:05d}-of-{total:05d}.parquet" for index in range(total)]


class ShardTask(NamedTuple):
    """A shard to be written, and what an earlier run has recorded of it."""

    name: str
    first: int  # of the rows of its split
    last: int  # the one after the last
    known: ShardEntry | None


def plan_shard_tasks(
    split: str, num_windows: int, layout: Layout, *, recorded: dict[str, ShardEntry]
) -> list[ShardTask]:
    """Return the tasks that write a split's shards, in order."""
    size = layout.shard_size(num_windows)
    return [
        ShardTask(name, at * size, min((at + 1) * size, num_windows), recorded.get(f"data/{name}"))
        for at, name in enumerate(shard_names(split, num_windows, layout))
    ]


def write_split(
    lock: FolderLock,
    split: str,
    *,
    stored: StoredWindows,
    layout: Layout,
    executor: Executor,
    advance: Callable[[int], object],
) -> list[ShardEntry]:
    """Write a split's windows to `data/<split>-*.parquet`. `advance` is called with the number of each shard's windows.

    Shards that an earlier run has recorded are kept if they have the recorded bytes.
    """
    tasks = plan_shard_tasks(split, len(stored), layout, recorded=lock.recorded)
    entries = []
    for entry in run_shard_tasks(lock, tasks, stored=stored, layout=layout, executor=executor):
        entries.append(entry)
        advance(entry.num_windows)
    return entries


def run_shard_tasks(
    lock: FolderLock, tasks: Sequence[ShardTask], *, stored: StoredWindows, layout: Layout, executor: Executor
) -> Iterator[ShardEntry]:
    """Yield the entry of each shard, in the tasks' order."""
    shared: dict[str, Any] = {"identity": lock.identity, "stored": stored, "layout": layout}
    if lock.storage is not None:
        return executor.run_and_flush(partial(keep_or_upload, storage=lock.storage, **shared), tasks)
    return executor.run_tasks(partial(keep_or_write, folder=lock.folder, **shared), tasks)


def keep_or_write(task: ShardTask, *, folder: Path, identity: str, stored: StoredWindows, layout: Layout) -> ShardEntry:
    """Return the entry of a shard for the manifest: the recorded shard is kept if it is intact, else it is written."""
    if task.known and is_intact(folder, task.known):
        return task.known
    return write_shard(folder, identity, task, stored=stored, layout=layout)


def write_shard(
    folder: Path, identity: str, task: ShardTask, *, stored: StoredWindows, layout: Layout, sync: bool = True
) -> ShardEntry:
    """Write one shard and return its entry for the manifest.

    Several runs of one task may overlap: each has a temporary file of its own. What another one has published is kept
    if it has the bytes that are recorded; else this one's takes its place. Without `sync` a power cut may take it.

    Raises:
        ValueError: the folder is by now another data set's.

    """
    final, max_length = folder / f"data/{task.name}", stored.windows.max_length
    temporary = part_of(folder / WRITING / task.name, uuid.uuid4().hex[:8])
    padded, packed = stored.windows.tail == "pad", isinstance(stored.windows, PackedWindows)
    groups = []
    rows = min(layout.windows_per_group, task.last - task.first)
    scratch_2BT = np.empty((2, rows, max_length), np.int32)  # takes no memory until it is used
    try:
        with temporary.open("xb") as file:
            sink = HashingFile(file)
            schema = shard_schema(max_length, padded=padded, packed=packed)
            with ShardWriter(sink, schema, compression=layout.compression) as writer:
                for start in range(task.first, task.last, layout.windows_per_group):
                    stop = min(start + layout.windows_per_group, task.last)
                    writer.write_table(group_table(*stored.read(start, stop), padded=padded, scratch_2BT=scratch_2BT))
                    groups.append(stop - start)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        footer_start, footer = find_footer(temporary)
        entry = ShardEntry(
            path=f"data/{task.name}",
            num_windows=task.last - task.first,
            bytes=sink.size,
            sha256=sink.hexdigest(),
            row_groups=groups,
            footer_start=footer_start,
            footer_sha256=hashlib.sha256(footer).hexdigest(),
        )
        refuse_other_plan(folder, identity)
        published = read_record(folder / record_name(task.name), identity)
        if published and is_intact(folder, published):
            temporary.unlink()
            return published
        record_shard(folder, entry, identity)
        temporary.rename(final)
    except BaseException:
        with suppress(OSError):  # the first error says what happened
            temporary.unlink()
        raise
    return entry


def is_intact(folder: Path, entry: ShardEntry) -> bool:
    """Return whether a shard has the size and the sha256 of its entry."""
    path = folder / entry.path
    if not path.is_file() or path.stat().st_size != entry.bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256


def keep_or_upload(
    task: ShardTask, *, storage: Storage, identity: str, stored: StoredWindows, layout: Layout
) -> Callable[[], ShardEntry]:
    """Write a shard, unless the recorded object is intact. Return the step that uploads it and returns its entry.

    Raises:
        ValueError: the prefix is by now another data set's.

    """
    if task.known and is_intact_at(storage, task.known):
        known = task.known
        return lambda: known
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder())
        (folder / WRITING).mkdir()
        (folder / "data").mkdir()
        entry = write_shard(folder, identity, task, stored=stored, layout=layout, sync=False)
        still_there = stack.pop_all()

    def upload() -> ShardEntry:
        with still_there:
            return publish_shard(storage, folder, entry, identity=identity)

    return upload


def publish_shard(storage: Storage, folder: Path, entry: ShardEntry, *, identity: str) -> ShardEntry:
    """Upload a shard and its record from a folder. Return the entry of what is at the URI after that.

    Something may be there already: of an overlapping run of this task, whose record has its hash. It is kept if it has
    that hash, and replaced if not, unless it was changed since. Nothing is uploaded once another run has finished the
    data set `identity`.

    Raises:
        ValueError: the prefix is by now another data set's.
        FileExistsError: another run has changed the object since this one looked.

    """
    if is_finished_by_now(storage, identity):
        return entry
    name = record_name(Path(entry.path).name)
    is_large = entry.bytes > SINGLE_BYTES  # uploaded in parts, where no condition is set
    try:
        if is_large and exists(storage, entry.path):
            raise FileExistsError  # noqa: TRY301 - as the store would say
        storage.put(entry.path, folder / entry.path, if_absent=not is_large)
    except FileExistsError:
        seen = _etag_of(storage, entry.path)
        published = read_record_at(storage, name, identity)
        if published and is_intact_at(storage, published):
            return published
        if is_finished_by_now(storage, identity):  # which removes the records, so it was no damage
            return entry
        if is_large or seen is None:
            storage.put(entry.path, folder / entry.path, if_absent=not is_large)
        else:
            storage.put_if_match(entry.path, folder / entry.path, seen)
    storage.put(name, (folder / name).read_bytes(), if_absent=False)
    return entry


def _etag_of(storage: Storage, name: str) -> str | None:
    try:
        return storage.stat(name).etag
    except FileNotFoundError:
        return None


def is_intact_at(storage: Storage, entry: ShardEntry) -> bool:
    """Return whether an object has the size and the sha256 of its entry."""
    try:
        return storage.size(entry.path) == entry.bytes and hash_object(storage, entry.path, entry.bytes) == entry.sha256
    except FileNotFoundError:
        return False
