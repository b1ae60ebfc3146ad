"""Pass one of one part of an array job: its share of the chunks, and which chunks of other parts are still missing.

Partition i belongs to part `i % parts`, and so do the chunks of its files. Parts see nothing of each other but finished
chunks in the shared cache.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.base.memory import keep_freed_memory
from pipeline.tokens.chunk import DamagedChunk
from pipeline.tokens.chunk_tasks import hash_rules, plan_chunks
from pipeline.tokens.chunk_writer import remove_leftovers
from pipeline.tokens.encode import count_result, encode_partition, find_part, make_store, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pipeline.corpus.documents import Partition
    from pipeline.executor.choose import Executor
    from pipeline.settings import CorpusConfig, SplitConfig
    from pipeline.tokenizer.tokenizer import Tokenizer
    from pipeline.tokens.chunk import Chunk
    from pipeline.tokens.chunk_tasks import ChunkTask
    from pipeline.tokens.store import TokenStore


class PartOfTokens(NamedTuple):
    """What pass one of a part did and found."""

    store: TokenStore | None  # None: chunks of other parts are missing
    origins: Counter[str]  # as of `tokenize`
    chunks: int  # of the whole corpus
    own_chunks: int
    missing: dict[int, int]  # part -> how many of its chunks are not there yet


def tokenize_part(
    partitions: Sequence[Partition],
    *,
    share: tuple[int, int],
    cache: Path,
    tokenizer: Tokenizer,
    corpus: CorpusConfig,
    split: SplitConfig,
    audit: float,
    executor: Executor,
    advance: Callable[[int], object],
) -> PartOfTokens:
    """Make the chunks of one part; the token store is complete if those of all others are there.

    The arguments are those of `tokenize`, and `share`: which part, and of how many.

    Raises:
        ValueError: as `tokenize`.

    """
    part, parts = share
    keep_freed_memory()
    remove_leftovers(cache)
    tasks = plan_chunks(partitions, cache=cache, rules=hash_rules(tokenizer=tokenizer, corpus=corpus, split=split))
    owners = find_owners(tasks, partitions, parts)
    unique = {task[1:]: task for task in tasks}  # two files of one content have one chunk
    own = [task for key, task in unique.items() if owners[key] == part]
    for key, task in unique.items():
        if owners[key] != part:
            task.partition.forget()
    encode = partial(encode_partition, cache=cache, tokenizer=tokenizer, corpus=corpus, split=split, audit=audit)
    origins: Counter[str] = Counter()
    found: dict[tuple[object, ...], Chunk] = {}
    for task, result in zip(own, executor.run_and_flush(partial(measure, encode), own), strict=True):
        found[task[1:]] = count_result(origins, result)
        advance(task.partition.num_bytes)
    missing: Counter[int] = Counter()
    for key, task in unique.items():
        if key in found:
            continue
        if (chunk := _look_up(task, cache, tokenizer)) is None:
            missing[owners[key]] += 1
        else:
            found[key] = chunk
    chunks = [found[task[1:]] for task in tasks if task[1:] in found]
    store = None
    if not missing:
        made = bool(origins["made"] or origins["mended"])
        store = make_store(
            tasks, chunks, cache=cache, tokenizer=tokenizer, corpus=corpus, split=split, is_new=made, checks=True
        )
    return PartOfTokens(store, origins, len(owners), len(own), dict(sorted(missing.items())))


def find_owners(
    tasks: Sequence[ChunkTask], partitions: Sequence[Partition], parts: int
) -> dict[tuple[object, ...], int]:
    """Return the part of each chunk: that of the first partition whose text it has.

    It does not depend on the cache, which decides only into how many tasks a group of small files is divided.
    """
    ends = np.cumsum([len(partition.keys) for partition in partitions])
    firsts = np.cumsum([0, *(len(task.units) for task in tasks[:-1])])
    owners: dict[tuple[object, ...], int] = {}
    for task, partition in zip(tasks, np.searchsorted(ends, firsts, side="right").tolist(), strict=True):
        owners.setdefault(task[1:], partition % parts)
    return owners


def _look_up(task: ChunkTask, cache: Path, tokenizer: Tokenizer) -> Chunk | None:
    try:
        return find_part(task, cache, tokenizer, reads=False)[0]
    except DamagedChunk:
        return None
