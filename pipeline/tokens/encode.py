"""Pass one of the write stage: every partition of the input becomes a chunk of the token store.

A task reads one partition batch by batch, encodes its documents and appends them to one chunk. It depends on nothing
else, so tasks give the same bytes in any order and on any number of workers. A chunk's ID is the hash of everything
that decides its content: the partition's text, the tokenizer and the rules for documents (`chunk_tasks`). An existing
chunk is used again if it has the bytes that were written: each is read through before any of its tokens is used.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from pipeline.base.arrow import numbers_of
from pipeline.base.memory import keep_freed_memory
from pipeline.base.paths import allow_read_only, make_folder
from pipeline.base.wording import counted
from pipeline.corpus.documents import KEY_BYTES, describe_location
from pipeline.corpus.quarantine import (
    QUARANTINE_NAME,
    check_fraction,
    count_reasons,
    first_of_all,
    name_sources,
    parse_line,
    raise_first,
    write_quarantine,
)
from pipeline.corpus.reader import read_partition
from pipeline.tokenizer.audit import AT_LEAST, choose_documents
from pipeline.tokenizer.engines import DocumentError
from pipeline.tokens.chunk import DamagedChunk, check_chunk, count_bad, count_skipped, find_chunk
from pipeline.tokens.chunk_tasks import chunk_id, hash_rules, plan_chunks
from pipeline.tokens.chunk_writer import ChunkWriter, remove_leftovers
from pipeline.tokens.file_index import add_to_index
from pipeline.tokens.mirror import fetch_missing, publish_chunk, publish_file
from pipeline.tokens.source_counts import TOTALS
from pipeline.tokens.store import TokenStore, save_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from pipeline.corpus.documents import DocumentBatch, Partition
    from pipeline.executor.choose import Executor
    from pipeline.settings import CorpusConfig, SplitConfig
    from pipeline.tokenizer.engines import Counts, Ids
    from pipeline.tokenizer.tokenizer import Tokenizer
    from pipeline.tokens.chunk import Chunk
    from pipeline.tokens.chunk_tasks import ChunkTask

HOPELESS = 1000  # after this many rejected documents and no good one, the field's name or the format must be wrong


def tokenize(
    partitions: Sequence[Partition],
    *,
    cache: Path,
    tokenizer: Tokenizer,
    corpus: CorpusConfig,
    split: SplitConfig,
    audit: float,
    executor: Executor,
    advance: Callable[[int], object],
) -> tuple[TokenStore, Counter[str]]:
    """Return the token store of a corpus, and a count of chunks `made`, `found` and `mended`.

    It also counts the `bytes` of the text encoded, and the nanoseconds that tasks took: `new` for those that encoded,
    `known` for those that found a chunk.

    A damaged chunk is mended: it is made again from its text. `audit` is the fraction of documents that a second engine
    encodes again. `advance` is called with the number of input bytes of each finished partition.

    Raises:
        ValueError: no document is usable, more than `corpus.max_bad_fraction` are rejected, or the engines disagree.

    """
    keep_freed_memory()
    remove_leftovers(cache)
    rules = hash_rules(tokenizer=tokenizer, corpus=corpus, split=split)
    tasks = plan_chunks(partitions, cache=cache, rules=rules)
    encode = partial(encode_partition, cache=cache, tokenizer=tokenizer, corpus=corpus, split=split, audit=audit)
    # two files of one content have one chunk, and are one task
    results = executor.run_and_flush(partial(measure, encode), {task[1:]: task for task in tasks}.values())
    done: dict[tuple[object, ...], Chunk] = {}
    chunks: list[Chunk] = []
    origins: Counter[str] = Counter()
    num_bad, some_good = 0, False
    for task in tasks:
        if task[1:] not in done:
            done[task[1:]] = count_result(origins, next(results))
        chunk = done[task[1:]]
        chunks.append(chunk)
        advance(task.partition.num_bytes)
        num_bad += count_bad([chunk]).total()
        some_good = some_good or any(chunk.num_documents.values())
        if num_bad >= HOPELESS and not some_good:
            break
    del results
    for task in tasks:
        task.partition.forget()
    made = bool(origins["made"] or origins["mended"])
    store = make_store(tasks, chunks, cache=cache, tokenizer=tokenizer, corpus=corpus, split=split, is_new=made)
    return store, origins


def make_store(
    tasks: Sequence[ChunkTask],
    chunks: Sequence[Chunk],
    *,
    cache: Path,
    tokenizer: Tokenizer,
    corpus: CorpusConfig,
    split: SplitConfig,
    is_new: bool,
    checks: bool = False,
) -> TokenStore:
    """Return the store of all chunks, and write its file; `chunks` are those of the first tasks if the run gives up.

    Args:
        tasks: of the corpus.
        chunks: of each task, in order.
        cache: the folder of the token store.
        tokenizer: that encoded them.
        corpus: its limits.
        split: how the documents are divided.
        is_new: one of the chunks was made by this run: then the cache must be writable.
        checks: whether each file is checked when it is first read.

    Raises:
        ValueError: as `tokenize`.

    """
    store = TokenStore(
        cache=cache,
        chunks=list(chunks),
        tokenizer=describe_tokenizer(tokenizer) | {"end_of_text": tokenizer.eos},
        validation=split.validation,
        names=[list(task.partition.names) for task in tasks[: len(chunks)]],
        checks=checks,
    )
    quarantine = cache / "quarantine" / f"{store.id}.jsonl"
    needed = nullcontext if is_new else allow_read_only
    with needed():
        if count_bad(chunks):
            make_folder(quarantine.parent)
            write_quarantine(rejected_lines(store), quarantine)
            publish_file(cache, f"quarantine/{quarantine.name}")
    bad = count_bad(chunks)
    check_fraction(bad, store.num_documents, max_bad_fraction=corpus.max_bad_fraction, path=quarantine)
    if store.num_documents == 0:
        what = f"none of {bad.total()} documents is usable ({count_reasons(bad)}){first_of_all(quarantine)}"
        raise ValueError(what if bad else f"the corpus contains no text{describe_skipped(chunks)}; check corpus.path")
    assert len(chunks) == len(tasks), "a run that stops early has too many rejected documents"
    with needed():
        save_store(store)
    return store


def count_result(origins: Counter[str], result: tuple[tuple[Chunk, str], int]) -> Chunk:
    """Count what a task did, and return its chunk."""
    (chunk, origin), taken = result
    origins[origin] += 1
    origins["bytes"] += 0 if origin == "found" else chunk.bytes
    origins["known" if origin == "found" else "new"] += taken
    return chunk


def measure(
    task: Callable[[ChunkTask], Callable[[], tuple[Chunk, str]]], item: ChunkTask
) -> Callable[[], tuple[tuple[Chunk, str], int]]:
    """Run a task of two steps; its last one also returns the nanoseconds that both took."""
    started = time.perf_counter_ns()
    finish = task(item)
    taken = time.perf_counter_ns() - started

    def finish_and_measure() -> tuple[tuple[Chunk, str], int]:
        started = time.perf_counter_ns()
        result = finish()
        return result, taken + time.perf_counter_ns() - started

    return finish_and_measure


def describe_skipped(chunks: Sequence[Chunk]) -> str:
    """Say how many documents of some chunks have no text, if any."""
    skipped = count_skipped(chunks)
    return f": {counted(skipped.total(), 'document')} skipped ({count_reasons(skipped)})" if skipped else ""


def tokenize_partition(
    task: ChunkTask, *, cache: Path, tokenizer: Tokenizer, corpus: CorpusConfig, split: SplitConfig, audit: float
) -> tuple[Chunk, str]:
    """Read, encode and write one partition. Return its chunk, and whether it was `made`, `found` or `mended`."""
    return encode_partition(task, cache=cache, tokenizer=tokenizer, corpus=corpus, split=split, audit=audit)()


def encode_partition(
    task: ChunkTask, *, cache: Path, tokenizer: Tokenizer, corpus: CorpusConfig, split: SplitConfig, audit: float
) -> Callable[[], tuple[Chunk, str]]:
    """Do all of `tokenize_partition` but its last step, which waits for the disk. Return that step; call it."""
    partition, identity, origin = task.partition, chunk_id(task.units), "made"
    try:
        part, replace = find_part(task, cache, tokenizer)
        if part is not None:
            if corpus.on_bad == "raise" and part.bad:
                line = next(_read_rejected(cache, part, partition.names), None)
                raise_first(parse_line(line) if line else None, count_bad([part]))
            return lambda: (_published(cache, part), "found")
    except DamagedChunk:
        origin, replace = "mended", False
    batches = read_partition(
        partition,
        max_document_bytes=corpus.max_document_bytes or tokenizer.max_document_bytes,
        on_bad=corpus.on_bad,
        cut_safe=tokenizer.cut_safe,
    )
    with ExitStack() as stack:
        writer = stack.enter_context(
            ChunkWriter(cache, identity, units=task.units, dtype=tokenizer.dtype, end_of_text=tokenizer.eos)
        )
        number = 0  # of the batches with texts
        for batch in batches:
            if batch.rollback:
                writer.drop_document()
            writer.add_bad(batch.rejected)
            writer.add_skipped(batch.skipped)
            if not len(batch.texts):
                continue
            sample = choose_documents(
                len(batch.texts),
                fraction=audit if tokenizer.audited else 0.0,
                seed=int(identity[:12], 16) + number,
                at_least=1 if number else AT_LEAST,
            )
            number += 1
            ids, counts, totals = _encode(partition, batch, tokenizer=tokenizer, sample=sample)
            if batch.key is None:
                texts = (memoryview(text.as_buffer()) for text in batch.texts)
                held_out = assign_split(texts, len(counts), fraction=split.validation, seed=split.seed)
                writer.add_documents(
                    ids, counts, held_out=held_out, sources=batch.sources, rows=batch.rows, totals=totals
                )
            else:
                held_out = assign_split([batch.key], 1, fraction=split.validation, seed=split.seed)
                writer.add_segment(
                    ids,
                    held_out=int(held_out[0]),
                    source=int(batch.sources[0]),
                    row=int(batch.rows[0]),
                    continued=partition.start > 0,
                    is_last=not batch.continues,
                    totals=totals,
                )
        still_open = stack.pop_all()

    def finish() -> tuple[Chunk, str]:
        with still_open:
            if partition.is_group:
                rules = hash_rules(tokenizer=tokenizer, corpus=corpus, split=split)
                add_to_index(cache, rules, task.units, identity)
            chunk = writer.finish(tokenizer=tokenizer.hash, engine=tokenizer.engine, replace=replace)
            return _published(cache, chunk, is_new=True), origin

    return finish


def find_part(task: ChunkTask, cache: Path, tokenizer: Tokenizer, *, reads: bool = True) -> tuple[Chunk | None, bool]:
    """Return the finished chunk with a task's tokens; and whether there is one, if only by an engine not to be used.

    Without `reads` it is not read through, so a changed byte is not noticed here.

    Raises:
        DamagedChunk: it is there, but not as it was written.

    """
    is_there = False
    for name, first in {task.chunk: task.first, chunk_id(task.units): 0}.items():
        found = find_chunk(cache, name)
        is_there = is_there or found is not None
        if found is None or not tokenizer.accepts(found.engine):
            continue
        if reads:
            check_chunk(cache, found)
        part = found.select(first, first + len(task.units))
        assert part.units == list(task.units), f"{name} has other sources than its ID or the index says"
        return part, True
    return None, is_there


def _published(cache: Path, chunk: Chunk, *, is_new: bool = False) -> Chunk:
    publish_chunk(cache, chunk.id, chunk.files, is_new=is_new)
    return chunk


def _encode(
    partition: Partition, batch: DocumentBatch, *, tokenizer: Tokenizer, sample: tuple[list[int], list[int]]
) -> tuple[Ids, Counts, np.ndarray]:
    """Encode a batch, audit a sample of it, and count. An error names the document by its source."""
    texts, (in_full, starts) = batch.texts, sample
    try:
        ids, counts = tokenizer.encode_batch(texts)
        audited = tokenizer.audit(texts, ids, counts, in_full) + tokenizer.audit(texts, ids, counts, starts, start=True)
    except DocumentError as error:
        location = describe_location(partition.reader, int(batch.rows[error.document]))
        offset = f" (Positions count from byte {batch.offset}, where a segment starts.)" if batch.offset else ""
        source = partition.names[batch.sources[error.document]]
        raise ValueError(f"{source}{location and ', '}{location} {error.what}{offset}") from error
    if tokenizer.bos is not None and not batch.offset:
        ids = np.insert(ids, np.cumsum(counts) - counts, tokenizer.bos)
        counts = counts + 1
    totals = np.zeros(len(texts), TOTALS)
    totals["characters"] = numbers_of(pc.utf8_length(texts))
    totals["bytes"] = numbers_of(pc.binary_length(texts))
    totals["special_text_found"] = tokenizer.count_special(texts)
    if audited and not batch.offset:  # a long document's first segment counts for all
        totals["audited"][[*in_full, *starts]] = 1
    return ids, counts, totals


def assign_split(texts: Iterable[bytes | memoryview], count: int, *, fraction: float, seed: int) -> np.ndarray:
    """Return which of `count` documents go to the validation split: uint8 [count], 1 for validation.

    The choice is a keyed hash of the text's first `KEY_BYTES`. So it does not depend on the file or format, copies of a
    text are always in the same split, and so are all segments of a long document.
    """
    if fraction == 0:
        return np.zeros(count, np.uint8)
    key = seed.to_bytes(8, "little", signed=True)
    bound = int(fraction * 2**64)
    digests = (hashlib.blake2b(text[:KEY_BYTES], digest_size=8, key=key).digest() for text in texts)
    return np.fromiter((int.from_bytes(digest, "little") < bound for digest in digests), np.uint8, count)


def rejected_lines(store: TokenStore) -> Iterator[str]:
    """Yield a line of JSON for each rejected document of a store, in order."""
    for chunk, names in zip(store.chunks, store.names, strict=True):
        if chunk.bad:
            yield from _read_rejected(store.cache, chunk, names)


def _read_rejected(cache: Path, chunk: Chunk, names: Sequence[str]) -> Iterator[str]:
    path = cache / "chunks" / chunk.id / QUARANTINE_NAME
    fetch_missing(path)
    return name_sources(path, names, chunk.first)


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, object]:
    """Return what the manifest says of the tokenizer."""
    return {
        "name": tokenizer.name,
        "hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": tokenizer.special_tokens,
        "eos": tokenizer.end_token.describe(),
        "bos": tokenizer.start_token.describe() if tokenizer.start_token else None,
        **({"notes": list(tokenizer.notes)} if tokenizer.notes else {}),
    }
