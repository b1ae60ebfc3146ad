"""Pass one of the write stage: every input split becomes a chunk of the token store.

A task reads one split, encodes its documents and writes one chunk; it depends on nothing else, so tasks run in any
order on any number of workers and give the same bytes. A chunk's ID is the hash of all that decides its content: the
split's text, the tokenizer and the document policy. A chunk that is there already is not made again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from pipeline.token_store import DOCUMENT, FORMAT, SPLITS, Chunk, TokenStore, find_chunk, save_store, write_chunk
from pipeline.write.corpus import read_split
from pipeline.write.executor import run_tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pyarrow as pa

    from pipeline.write.corpus import InputSplit
    from pipeline.write.tokenizer import Tokenizer


def tokenize(
    splits: Sequence[InputSplit],
    *,
    cache: Path,
    tokenizer: Tokenizer,
    validation: float,
    seed: int,
    on_bad: str,
    max_bad_fraction: float,
    max_document_bytes: int,
    workers: int,
    advance: Callable[[Chunk], object],
) -> tuple[TokenStore, int]:
    """The token store of a corpus, and how many of its chunks were made now rather than found.

    `advance` is called with each chunk, in order, as it is ready.

    Raises:
        ValueError: no document is usable, or more than `max_bad_fraction` of them is bad.

    """
    policy = {"validation": validation, "seed": seed, "on_bad": on_bad, "max_document_bytes": max_document_bytes}
    task = partial(tokenize_split, cache=cache, tokenizer=tokenizer, policy=policy)
    chunks: list[Chunk] = []
    made = 0
    for chunk, is_new in run_tasks(task, splits, workers=workers):
        chunks.append(chunk)
        made += is_new
        advance(chunk)
    store = TokenStore(cache=cache, chunks=chunks, tokenizer=describe_tokenizer(tokenizer), validation=validation)
    _check(store, max_bad_fraction)
    save_store(store)
    return store, made


def chunk_id(split: InputSplit, *, tokenizer_hash: str, special_text: str, policy: dict[str, object]) -> str:
    """The identity of the chunk that a split becomes: sha256 over its content, the tokenizer and the policy."""
    parts = [FORMAT, split.reader, split.identity, tokenizer_hash, special_text, policy]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tokenize_split(
    split: InputSplit, *, cache: Path, tokenizer: Tokenizer, policy: dict[str, object]
) -> tuple[Chunk, bool]:
    """Read, encode and write one split. Returns its chunk, and whether it was made now."""
    identity = chunk_id(split, tokenizer_hash=tokenizer.hash, special_text=tokenizer.special_text, policy=policy)
    found = find_chunk(cache, identity)
    if found:
        return found, False
    documents = read_split(
        split, max_document_bytes=int(str(policy["max_document_bytes"])), on_bad=str(policy["on_bad"])
    )
    ids, counts = tokenizer.encode_batch(documents.texts)
    held_out = hold_out(documents.texts, fraction=float(str(policy["validation"])), seed=int(str(policy["seed"])))
    table = np.zeros(len(counts), DOCUMENT)
    table["split"], table["source"], table["row"], table["count"] = held_out, documents.sources, documents.rows, counts
    parts = {}
    for index, name in enumerate(SPLITS):
        mine = held_out == index
        flat, firsts = join_documents(ids, counts, mine, end_of_text=tokenizer.end_of_text)
        table["first"][mine] = firsts
        parts[name] = flat
    chunk = Chunk(
        id=identity,
        tokens={name: len(part) for name, part in parts.items()},
        num_documents={name: int(np.sum(held_out == index)) for index, name in enumerate(SPLITS)},
        characters=pc.sum(pc.utf8_length(documents.texts)).as_py() or 0,
        bytes=pc.sum(pc.binary_length(documents.texts)).as_py() or 0,
        special_text_found=int(np.sum(tokenizer.count_special(documents.texts))),
        bad=dict(Counter(bad.reason for bad in documents.bad)),
        sources=list(split.names),
        continued=False,
    )
    quarantine = [
        {
            "source": b.source,
            "row": b.row,
            "reason": b.reason,
            "detail": b.detail,
            "head": b.head.decode(errors="replace"),
        }
        for b in documents.bad
    ]
    return write_chunk(cache, chunk, ids=parts, documents=table, quarantine=quarantine), True


def join_documents(
    ids: np.ndarray, counts: np.ndarray, chosen: np.ndarray, *, end_of_text: int
) -> tuple[np.ndarray, np.ndarray]:
    """The chosen documents' IDs with an end-of-text token behind each, and each one's first token, int64 [chosen].

    `ids` holds all documents' IDs end to end, `counts` int64 [documents] how many each has, `chosen` bool [documents].
    """
    sizes = counts[chosen] + 1
    ends = np.cumsum(sizes, dtype=np.int64)
    joined = np.full(int(ends[-1]) if len(ends) else 0, end_of_text, dtype=ids.dtype)
    is_text = np.ones(len(joined), dtype=bool)
    is_text[ends - 1] = False
    joined[is_text] = ids if chosen.all() else ids[np.repeat(chosen, counts)]
    return joined, ends - sizes


def hold_out(texts: pa.LargeStringArray, *, fraction: float, seed: int) -> np.ndarray:
    """Which documents are held out for validation, uint8 [documents], 1 for validation.

    By a keyed hash of the text itself: the choice is the same whatever file or format a document comes from, and two
    copies of one text never lie on both sides.
    """
    if fraction == 0:
        return np.zeros(len(texts), np.uint8)
    key = seed.to_bytes(8, "little", signed=True)
    bound = int(fraction * 2**64)
    digests = (hashlib.blake2b(text.as_buffer(), digest_size=8, key=key).digest() for text in texts)
    return np.fromiter((int.from_bytes(digest, "little") < bound for digest in digests), np.uint8, len(texts))


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, object]:
    """The tokenizer as the manifest names it."""
    return {
        "name": tokenizer.name,
        "hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": tokenizer.special_tokens,
    }


def _check(store: TokenStore, max_bad_fraction: float) -> None:
    bad: Counter[str] = Counter()
    for chunk in store.chunks:
        bad.update(chunk.bad)
    total = store.num_documents + bad.total()
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(bad.items()))
    if bad.total() > max_bad_fraction * total:
        examples = [store.cache / "chunks" / chunk.id / "quarantine.jsonl" for chunk in store.chunks if chunk.bad]
        first = json.loads(examples[0].read_text(encoding="utf-8").splitlines()[0])
        raise ValueError(
            f"{bad.total()} of {total} documents are bad ({reasons}), more than "
            f"corpus.max_bad_fraction={max_bad_fraction}; the first is {first['source']}: {first['detail']}. "
            f"All are listed in {examples[0]}"
        )
    if store.num_documents == 0:
        raise ValueError("the corpus holds no document; look at corpus.path")
