"""The sample of a plan: evenly spread partitions, tokenized into the cache, and a few row groups of their windows.

All partitions are taken if the cache has the tokens of them all. Of a large compressed file that is not in the cache,
only the start is unpacked: it is tokenized as a file of its own.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.progress import ProgressBar
from pipeline.corpus.sample import take_start
from pipeline.executor.local import run_tasks
from pipeline.shards.estimate import NONE, Estimate, estimate_total
from pipeline.shards.format import group_table, shard_schema
from pipeline.shards.shard_writer import ShardWriter
from pipeline.tokens.chunk import DamagedChunk, find_chunk
from pipeline.tokens.chunk_tasks import plan_chunks
from pipeline.tokens.encode import tokenize_partition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.shards.job import Job
    from pipeline.tokens.chunk import Chunk
    from pipeline.tokens.chunk_tasks import ChunkTask
    from pipeline.tokens.store import TokenStore

SAMPLED_PARTITIONS = 6
SAMPLED_GROUPS = 4  # of each split


class Part(NamedTuple):
    """A part of the input."""

    task: ChunkTask
    size: float  # bytes of the input, as they are on disk
    is_start: bool = False  # of a compressed file
    weight: float = 1.0  # of its documents: a part of one text is that part of a document


class Sampled(NamedTuple):
    """A part of the input that was tokenized."""

    task: ChunkTask
    size: float
    is_start: bool
    weight: float
    made: tuple[Chunk, str]  # its tokens, and whether they were made, found or mended

    @property
    def missing_tokens(self) -> int:
        """The tokens that the write stage would not have found before the sample was made."""
        chunk, origin = self.made
        return 0 if origin == "found" and not self.is_start else sum(chunk.tokens.values())

    @property
    def new_tokens(self) -> int:
        """Those of them that it will find now: it does not use the tokens of a file's start."""
        return 0 if self.is_start else self.missing_tokens


def tokenize_sample(job: Job, tasks: Sequence[ChunkTask]) -> tuple[list[Sampled], float]:
    """Tokenize some of the partitions. Return them with their tokens, and the seconds that it took."""
    sections = job.sections
    most = len(tasks) if all(is_cached(job, task) for task in tasks) else min(SAMPLED_PARTITIONS, len(tasks))
    chosen = np.unique(np.linspace(0, len(tasks) - 1, most).round().astype(int))
    run_task = partial(
        tokenize_partition,
        cache=sections.cache_folder,
        tokenizer=job.encoder,
        corpus=sections.corpus,
        split=sections.split,
        audit=sections.tokenizer.audit,
    )
    started = time.perf_counter()
    sample = []
    with TemporaryDirectory() as folder:
        parts = [part for at in chosen for part in _take(job, tasks[at], Path(folder))]
        with ProgressBar("plan", round(sum(part.size for part in parts)), "B") as bar:
            made = run_tasks(run_task, [part.task for part in parts], workers=sections.executor.num_workers)
            for part, one in zip(parts, made, strict=True):
                sample.append(Sampled(*part, one))
                bar.update(round(part.size))
    return sample, time.perf_counter() - started


def _take(job: Job, task: ChunkTask, folder: Path) -> list[Part]:
    """Return what to read of a partition: all of it or, of a large compressed file, the start."""
    partition = task.partition
    start = None if is_cached(job, task) else take_start(partition, folder, cut_safe=job.encoder.cut_safe)
    if start is None:
        return [Part(task, partition.num_bytes)]
    weight = start.share if partition.reader == "text" else 1.0
    tasks = plan_chunks(start.partitions, cache=job.sections.cache_folder, rules=job.rules)
    return [Part(one, size, is_start=True, weight=weight) for one, size in zip(tasks, start.sizes, strict=True)]


def is_cached(job: Job, task: ChunkTask) -> bool:
    """Tell whether the write stage will find the tokens of a task."""
    try:
        chunk = find_chunk(job.sections.cache_folder, task.chunk)
    except DamagedChunk:
        return False
    return chunk is not None and job.encoder.accepts(chunk.engine)


class Encoded(NamedTuple):
    """What windows take on disk, measured on some row groups, each with its part of the footer."""

    per_window: Estimate  # bytes
    per_shard: int  # bytes without any window
    seconds: float  # to encode a window


def encode_sample(job: Job, store: TokenStore, *, is_complete: bool) -> Encoded:
    """Encode some row groups of each split in memory."""
    sizes: list[int] = []
    counts: list[int] = []
    taken, groups = 0.0, 0
    window, compression = job.sections.window, job.layout.compression
    padded = window.tail == "pad"
    schema = shard_schema(window.max_length, padded=padded, packed=window.documents == "pack")
    empty = pa.BufferOutputStream()
    ShardWriter(empty, schema, compression=compression).close()
    per_shard = empty.getvalue().size
    one = np.zeros((1, job.sections.window.max_length + 1), np.int32)
    group_table(one, np.zeros(1, np.int64), np.ones(1, np.int32), padded=padded)  # the first call imports: not timed
    for name in store.splits():
        stored = job.cut(store, name)
        group = job.layout.windows_per_group
        in_split = -(-len(stored) // group)
        groups += in_split
        chosen = np.unique(np.linspace(0, in_split - 1, min(SAMPLED_GROUPS, in_split)).round().astype(int))
        sink = pa.BufferOutputStream()
        with ShardWriter(sink, schema, compression=compression) as writer:
            for first in chosen * group:  # complete row groups, each once: overlapping samples have no variance
                started = time.perf_counter()
                last = min(int(first) + group, len(stored))
                writer.write_table(group_table(*stored.read(int(first), last), padded=padded))
                taken += time.perf_counter() - started
                counts.append(last - int(first))
        content = sink.getvalue()
        metadata = pq.read_metadata(pa.BufferReader(content))
        written = [_stored_bytes(metadata.row_group(number)) for number in range(metadata.num_row_groups)]
        in_footer = (content.size - per_shard - sum(written)) // max(1, len(written))
        sizes += [size + in_footer for size in written]
    if not counts:
        return Encoded(NONE, per_shard, 0.0)
    rows = sum(counts)
    total = estimate_total(sizes, sizes=counts, total=rows, population=groups if is_complete else sys.maxsize)
    per_window = Estimate(value=total.value / rows, margin=min(total.margin, total.value) / rows)
    return Encoded(per_window, per_shard, taken / rows)


def _stored_bytes(group: pq.RowGroupMetaData) -> int:
    return sum(group.column(number).total_compressed_size for number in range(group.num_columns))
