"""Pass one of the write stage: every input split becomes a chunk of the token store.

A task reads one split batch by batch, encodes its documents and appends them to one chunk; it depends on nothing else,
so tasks run in any order on any number of workers and give the same bytes. A chunk's ID is the hash of all that decides
its content: the split's text, the tokenizer and the rules for documents. A chunk that is there is not made again
if its bytes are those that were written: each is read through before a token of it is used.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from pipeline.chunk import DamagedChunk, check_chunk, find_chunk
from pipeline.memory import keep_freed_memory
from pipeline.token_store import FORMAT, TokenStore, save_store
from pipeline.write.audit import AT_LEAST, choose_documents
from pipeline.write.chunks import ChunkWriter, Totals, remove_leftovers
from pipeline.write.documents import KEY_BYTES
from pipeline.write.engines import DocumentError
from pipeline.write.executor import run_and_flush
from pipeline.write.quarantine import FILE as QUARANTINE
from pipeline.write.quarantine import (
    check_fraction,
    count_bad,
    count_reasons,
    first_of_all,
    refuse_bad,
    write_quarantine,
)
from pipeline.write.readers import place_of, read_split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from pipeline.chunk import Chunk
    from pipeline.write.documents import Batch, InputSplit
    from pipeline.write.engines import Counts, Ids
    from pipeline.write.vocabulary import Tokenizer

HOPELESS = 1000  # so many bad documents and no good one: the field's name or the format is wrong, and the rest is too


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What decides, besides text and tokenizer, which documents a chunk holds and in which split."""

    validation: float
    seed: int
    on_bad: str
    max_document_bytes: int | None


def tokenize(
    splits: Sequence[InputSplit],
    *,
    cache: Path,
    tokenizer: Tokenizer,
    policy: Policy,
    audit: float,
    max_bad_fraction: float,
    workers: int,
    advance: Callable[[int], object],
) -> tuple[TokenStore, Counter[str]]:
    """The token store of a corpus, and how many of its chunks were `made`, `found`, and `mended`.

    A chunk that is found damaged is mended: made again from its text.

    `audit` is the fraction of documents that a second engine encodes again. `advance` is called with the number of
    input bytes that are done.

    Raises:
        ValueError: no document is usable, more than `max_bad_fraction` of them is bad, or the engines disagree.

    """
    keep_freed_memory()
    remove_leftovers(cache)
    task = partial(encode_split, cache=cache, tokenizer=tokenizer, policy=policy, audit=audit)
    description = describe_tokenizer(tokenizer) | {"end_of_text": tokenizer.end_of_text}
    chunks: list[Chunk] = []
    origins: Counter[str] = Counter()
    num_bad, some_good = 0, False
    for split, (chunk, origin) in zip(splits, run_and_flush(task, splits, workers=workers), strict=True):
        chunks.append(chunk)
        origins[origin] += 1
        advance(split.num_bytes)
        num_bad += count_bad([chunk]).total()
        some_good = some_good or any(chunk.num_documents.values())
        if num_bad >= HOPELESS and not some_good:
            break
    store = TokenStore(cache=cache, chunks=chunks, tokenizer=description, validation=policy.validation)
    quarantine = cache / "quarantine" / f"{store.id}.jsonl"
    write_quarantine(store, quarantine)
    bad = count_bad(chunks)
    check_fraction(bad, store.num_documents, max_bad_fraction=max_bad_fraction, path=quarantine)
    if store.num_documents == 0:
        what = f"of {bad.total()} documents none is usable ({count_reasons(bad)}){first_of_all(quarantine)}"
        raise ValueError(what if bad else "the corpus holds no document; look at corpus.path")
    assert len(chunks) == len(splits), "a run that is given up has too many bad documents"
    save_store(store)
    return store, origins


def chunk_id(split: InputSplit, *, tokenizer_hash: str, special_text: str, policy: Policy) -> str:
    """The identity of the chunk that a split becomes: sha256 over its content, the tokenizer and the policy.

    What cannot change a row is left out: `on_bad`, which keeps the same documents or none, and a seed that picks none.
    """
    rules = [policy.validation, policy.seed if policy.validation else 0, policy.max_document_bytes]
    parts = [FORMAT, split.identity, tokenizer_hash, special_text, rules]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def tokenize_split(
    split: InputSplit, *, cache: Path, tokenizer: Tokenizer, policy: Policy, audit: float
) -> tuple[Chunk, str]:
    """Read, encode and write one split. Returns its chunk, and whether it was `made` now, `found` or `mended`."""
    return encode_split(split, cache=cache, tokenizer=tokenizer, policy=policy, audit=audit)()


def encode_split(
    split: InputSplit, *, cache: Path, tokenizer: Tokenizer, policy: Policy, audit: float
) -> Callable[[], tuple[Chunk, str]]:
    """`tokenize_split` without its last step, which waits for the disk. Returns that step; it must be called."""
    identity = chunk_id(split, tokenizer_hash=tokenizer.hash, special_text=tokenizer.special_text, policy=policy)
    origin = "made"
    try:
        found = find_chunk(cache, identity)
        if found:
            check_chunk(cache, found)
            if policy.on_bad == "raise":
                refuse_bad(count_bad([found]), cache / "chunks" / identity / QUARANTINE)
            return lambda: (found, "found")
    except DamagedChunk:
        origin = "mended"
    batches = read_split(
        split,
        max_document_bytes=policy.max_document_bytes,
        on_bad=policy.on_bad,
        cut_safe=tokenizer.cut_safe,
    )
    with ExitStack() as stack:
        writer = stack.enter_context(
            ChunkWriter(cache, identity, dtype=tokenizer.dtype, end_of_text=tokenizer.end_of_text)
        )
        number = 0  # of the batches with texts
        for batch in batches:
            if batch.abandoned:
                writer.abandon()
            writer.add_bad(batch.bad)
            if not len(batch.texts):
                continue
            sample = choose_documents(
                len(batch.texts),
                fraction=audit if tokenizer.audited else 0.0,
                seed=int(identity[:12], 16) + number,
                at_least=1 if number else AT_LEAST,
            )
            number += 1
            ids, counts, totals = _encode(split, batch, tokenizer=tokenizer, sample=sample)
            if batch.document is None:
                texts = (memoryview(text.as_buffer()) for text in batch.texts)
                held_out = hold_out(texts, len(counts), fraction=policy.validation, seed=policy.seed)
                writer.add_documents(
                    ids, counts, held_out=held_out, sources=batch.sources, rows=batch.rows, totals=totals
                )
            else:
                held_out = hold_out([batch.document], 1, fraction=policy.validation, seed=policy.seed)
                writer.add_piece(
                    ids,
                    held_out=int(held_out[0]),
                    source=int(batch.sources[0]),
                    row=int(batch.rows[0]),
                    continued=split.start > 0,
                    goes_on=batch.goes_on,
                    totals=totals,
                )
        still_open = stack.pop_all()

    def finish() -> tuple[Chunk, str]:
        with still_open:
            return writer.finish(sources=split.names, tokenizer=tokenizer.hash), origin

    return finish


def _encode(
    split: InputSplit, batch: Batch, *, tokenizer: Tokenizer, sample: tuple[list[int], list[int]]
) -> tuple[Ids, Counts, Totals]:
    """Encode a batch, and audit a sample of it; an error names the document by its source."""
    texts, (whole, begins) = batch.texts, sample
    try:
        ids, counts = tokenizer.encode_batch(texts)
        audited = tokenizer.audit(texts, ids, counts, whole) + tokenizer.audit(texts, ids, counts, begins, begin=True)
    except DocumentError as error:
        place = place_of(split.reader, int(batch.rows[error.document]))
        piece = f" (Places count from byte {batch.before} of it, where a piece of it begins.)" if batch.before else ""
        source = split.names[batch.sources[error.document]]
        raise ValueError(f"{source}{place and ', '}{place} {error.what}{piece}") from error
    return (
        ids,
        counts,
        Totals(
            characters=pc.sum(pc.utf8_length(texts)).as_py(),
            bytes=pc.sum(pc.binary_length(texts)).as_py(),
            special_text_found=int(np.sum(tokenizer.count_special(texts))),
            audited=audited if not batch.before else 0,  # of a long text, its first piece counts for all
        ),
    )


def hold_out(texts: Iterable[bytes | memoryview], count: int, *, fraction: float, seed: int) -> np.ndarray:
    """Which of `count` documents are held out for validation: uint8 [count], 1 for validation.

    By a keyed hash of the text itself, of its first `KEY_BYTES`: the choice is the same whatever file or format a
    document comes from, two copies of one text never lie on both sides, and all pieces of a long one on the same.
    """
    if fraction == 0:
        return np.zeros(count, np.uint8)
    key = seed.to_bytes(8, "little", signed=True)
    bound = int(fraction * 2**64)
    digests = (hashlib.blake2b(text[:KEY_BYTES], digest_size=8, key=key).digest() for text in texts)
    return np.fromiter((int.from_bytes(digest, "little") < bound for digest in digests), np.uint8, count)


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, object]:
    """The tokenizer as the manifest names it."""
    return {
        "name": tokenizer.name,
        "hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": tokenizer.special_tokens,
    }
