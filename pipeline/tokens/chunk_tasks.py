"""Plan pass one of the write stage: which chunk has the tokens of each partition, or will have them.

A source (a file, or a range of one) is identified by its unit: a hash of its content, the tokenizer and the rules for
documents. Names and neighbours are no part of it. So a file that is renamed, moved or copied is found in the cache, and
so are small files that were grouped with others when their chunk was made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipeline.base.hashing import hash_json, hash_list, hash_pairs
from pipeline.tokens.chunk import DamagedChunk, find_chunk
from pipeline.tokens.file_index import read_index
from pipeline.tokens.mirror import has_chunk
from pipeline.tokens.store import FORMAT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.corpus.documents import Partition
    from pipeline.settings import CorpusConfig, SplitConfig
    from pipeline.tokenizer.tokenizer import Tokenizer
    from pipeline.tokens.chunk import Chunk


class ChunkTask(NamedTuple):
    """A partition, and the chunk that has its tokens or will have them."""

    partition: Partition
    units: tuple[str, ...]  # of the partition's sources
    chunk: str
    first: int = 0  # number of the partition's first source in that chunk


def hash_rules(*, tokenizer: Tokenizer, corpus: CorpusConfig, split: SplitConfig) -> str:
    """Hash everything but the text that decides a chunk's content.

    What cannot change a row is left out: `on_bad`, which keeps the same documents or none, and a seed that picks none.
    """
    longest = corpus.max_document_bytes or tokenizer.max_document_bytes
    rules = [split.validation, split.seed if split.validation else 0, longest]
    return hash_json([FORMAT, tokenizer.hash, tokenizer.special_text, rules])


def units_of(partition: Partition, rules: str) -> tuple[str, ...]:
    """Return what identifies the tokens of a partition's sources."""
    return hash_pairs(rules, partition.keys)


def chunk_id(units: Sequence[str]) -> str:
    """Return the ID of the chunk with the tokens of these sources."""
    return hash_list(units)


def plan_chunks(partitions: Sequence[Partition], *, cache: Path, rules: str) -> list[ChunkTask]:
    """Return the tasks that give the partitions' tokens, in order.

    A group of small files becomes several tasks if some of its files are in other chunks.
    """
    tasks: list[ChunkTask] = []
    index: dict[str, tuple[str, int]] | None = None
    chunks: dict[str, Chunk | None] = {}
    for partition in partitions:
        units = units_of(partition, rules)
        task = ChunkTask(partition, units, chunk_id(units))
        if not partition.is_group or has_chunk(cache, task.chunk):
            tasks.append(task)
            continue
        index = read_index(cache, rules) if index is None else index
        tasks += _divide(task, index, chunks, cache)
    return tasks


def _divide(
    task: ChunkTask, index: dict[str, tuple[str, int]], chunks: dict[str, Chunk | None], cache: Path
) -> list[ChunkTask]:
    """Divide a task into ones for consecutive files of a chunk, and for consecutive files that no chunk has."""
    found = [_look_up(unit, index, chunks, cache) for unit in task.units]
    tasks, start = [], 0
    for stop in range(1, len(found) + 1):
        if stop < len(found) and _follows(found[stop - 1], found[stop]):
            continue
        units, known = task.units[start:stop], found[start]
        chunk, first = known or (chunk_id(units), 0)
        tasks.append(ChunkTask(task.partition.select(start, stop), units, chunk, first))
        start = stop
    return tasks


def _follows(before: tuple[str, int] | None, after: tuple[str, int] | None) -> bool:
    return after is None if before is None else after == (before[0], before[1] + 1)


def _look_up(
    unit: str, index: dict[str, tuple[str, int]], chunks: dict[str, Chunk | None], cache: Path
) -> tuple[str, int] | None:
    """Return the chunk that contains a file, and its number there, if the chunk itself says so."""
    if unit not in index:
        return None
    chunk_of, number = index[unit]
    if chunk_of not in chunks:
        try:
            chunks[chunk_of] = find_chunk(cache, chunk_of)
        except DamagedChunk:
            chunks[chunk_of] = None
    chunk = chunks[chunk_of]
    is_there = chunk is not None and number < len(chunk.by_source) and chunk.by_source.unit[number] == unit
    return (chunk_of, number) if is_there else None
