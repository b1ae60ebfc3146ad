"""The write stage: a corpus becomes a data set. Tokens first, windows second, the manifest last.

Guarantee: the same config and text give the same Parquet bytes for any number of workers, and after any number of
crashes; `pipeline.write.folder` says how. A folder has a manifest only if every file that it names is whole and on the
disk.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from pipeline.layout import Layout, choose_layout
from pipeline.manifest import FORMAT_VERSION, Manifest, SplitEntry, write_manifest
from pipeline.token_store import store_id
from pipeline.windows import Windows
from pipeline.write.card import write_card
from pipeline.write.corpus import CorpusOptions, find_splits
from pipeline.write.folder import claim_folder, explained, find_finished, prepare_folder, remove_leftovers, sync_folder
from pipeline.write.quarantine import FILE as QUARANTINE
from pipeline.write.quarantine import check_fraction, count_bad, write_quarantine
from pipeline.write.shards import shard_names, write_split
from pipeline.write.tokenizer import load_tokenizer
from pipeline.write.tokens import Policy, chunk_id, describe_tokenizer, tokenize

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from pipeline.token_store import TokenStore, TokenStream


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteReport:
    """What the write stage did."""

    path: Path
    manifest: Manifest
    finished_before: bool  # the data set was there already: nothing was written
    chunks: int
    chunks_made: int  # the rest was found in the cache
    engine: str
    start_seconds: float  # to load the tokenizer, and to find and hash the input
    tokenize_seconds: float
    write_seconds: float


def write_shards(
    path: str | os.PathLike[str],
    *,
    corpus: str = "python_docs",
    corpus_path: str | Sequence[str] | None = None,
    corpus_url: str | None = None,
    corpus_sha256: str | None = None,
    corpus_subset: str | None = None,
    corpus_part: str = "train",
    text_field: str = "text",
    on_bad: str = "quarantine",
    max_bad_fraction: float = 0.01,
    max_document_bytes: int | None = None,
    tokenizer: str = "gpt2",
    tokenizer_path: str | None = None,
    tokenizer_pattern: str | None = None,
    engine: str = "auto",
    special_text: str = "literal",
    audit: float = 0.001,
    max_length: int = 256,
    stride: int | None = None,
    tail: str = "drop",
    documents: str = "join",
    validation: float = 0.0,
    split_seed: int = 0,
    windows_per_shard: int | None = None,
    windows_per_group: int | None = None,
    compression: str = "zstd",
    order: str = "sequential",
    order_seed: int = 0,
    overwrite: bool = False,
    cache_path: str | os.PathLike[str] = "outputs/cache",
    workers: int = 1,
    config: dict[str, Any] | None = None,
) -> WriteReport:
    """Write a corpus as a data set of token windows in Parquet shards.

    The arguments are the config's keys of the same names (`order_seed` is `shards.seed`); `stride` left out is
    `max_length`. `config` is recorded in
    the manifest and has no other effect. A data set that is there already and has the same fingerprint is left as it
    is.

    After a crash the same call keeps the shards whose bytes are as recorded, and writes the rest.

    Raises:
        ValueError: the corpus is empty, unreadable or too short for one window; the folder holds something else, or
            another run writes there; the disk is full, or a folder cannot be written.

    """
    folder, cache = Path(path), Path(cache_path)
    stride = max_length if stride is None else stride
    started = time.perf_counter()
    layout = choose_layout(
        max_length=max_length,
        windows_per_group=windows_per_group,
        windows_per_shard=windows_per_shard,
        compression=compression,
    )
    encoder = load_tokenizer(
        name=tokenizer, path=tokenizer_path, pattern=tokenizer_pattern, engine=engine, special_text=special_text
    )
    paths = (corpus_path,) if isinstance(corpus_path, str) else tuple(corpus_path or ())
    options = CorpusOptions(
        paths=paths,
        text_field=text_field,
        subset=corpus_subset,
        part=corpus_part,
        url=corpus_url,
        sha256=corpus_sha256,
        cache=cache,
        cut_safe=encoder.cut_safe,
        workers=workers,
    )
    inputs = find_splits(corpus, options)
    policy = Policy(validation=validation, seed=split_seed, on_bad=on_bad, max_document_bytes=max_document_bytes)
    ids = [chunk_id(part, tokenizer_hash=encoder.hash, special_text=special_text, policy=policy) for part in inputs]
    window: dict[str, Any] = {"max_length": max_length, "stride": stride, "tail": tail, "documents": documents}
    stored = {"order": order, "seed": order_seed if order == "shuffled" else None}
    identity = fingerprint(store_id(ids, validation=validation), {**window, **stored}, layout)
    ready = time.perf_counter()
    report = partial(WriteReport, path=folder, chunks=len(ids), engine=encoder.engine, start_seconds=ready - started)
    with explained(folder, "shards.path"):
        finished = find_finished(folder, identity)
        if finished:
            bad, good = Counter(finished.corpus["bad"]), finished.corpus["documents"]
            check_fraction(bad, good, max_bad_fraction=max_bad_fraction, path=folder / QUARANTINE)
            remove_leftovers(folder, identity)
            return report(
                manifest=finished, finished_before=True, chunks_made=0, tokenize_seconds=0.0, write_seconds=0.0
            )
        with claim_folder(folder, identity, overwrite=overwrite) as claim:
            with _bar("tokenize", sum(part.num_bytes for part in inputs), "B") as bar, explained(cache, "cache.path"):
                store, made = tokenize(
                    inputs,
                    cache=cache,
                    tokenizer=encoder,
                    policy=policy,
                    audit=audit,
                    max_bad_fraction=max_bad_fraction,
                    workers=workers,
                    advance=bar.update,
                )
            tokenized = time.perf_counter()
            plans = {name: plan_split(store, name, **window) for name in store.splits()}
            names = {file for name, (_, windows) in plans.items() for file in shard_names(name, len(windows), layout)}
            prepare_folder(claim, names)
            splits = {}
            with _bar("write", sum(len(windows) for _, windows in plans.values()), "windows") as bar:
                for name, (stream, windows) in plans.items():
                    entries = write_split(
                        folder,
                        name,
                        stream=stream,
                        windows=windows,
                        layout=layout,
                        order=order,
                        seed=order_seed,
                        pad_id=encoder.end_of_text,
                        workers=workers,
                        recorded=claim.recorded,
                        advance=bar.update,
                    )
                    splits[name] = SplitEntry(
                        num_documents=len(store.documents(name)[0]),
                        num_tokens=len(stream),
                        num_windows=len(windows),
                        max_length=max_length,
                        stride=stride,
                        shards=entries,
                    )
            manifest = Manifest(
                fingerprint=identity,
                tokenizer=describe_tokenizer(encoder),
                corpus=count_corpus(store),
                store=store.id,
                windows={**window, **stored, "pad_id": encoder.end_of_text if tail == "pad" else None},
                splits=splits,
                written_by={"pyarrow": pa.__version__},
                config=config or {},
            )
            write_card(folder, manifest, [name for chunk in store.chunks for name in chunk.sources])
            write_quarantine(store, folder / QUARANTINE)
            sync_folder(folder / "data")
            write_manifest(folder, manifest)
            sync_folder(folder)
    return report(
        manifest=manifest,
        finished_before=False,
        chunks_made=made,
        tokenize_seconds=tokenized - ready,
        write_seconds=time.perf_counter() - tokenized,
    )


def fingerprint(store: str, window: dict[str, Any], layout: Layout) -> str:
    """A data set's identity: sha256 over the token store's identity, the windows with their order, and the layout."""
    parts = [FORMAT_VERSION, store, window, layout.windows_per_group, layout.windows_per_shard, layout.compression]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def plan_split(
    store: TokenStore, split: str, *, max_length: int, stride: int, tail: str, documents: str
) -> tuple[TokenStream, Windows]:
    """A split's token stream and its windows.

    Raises:
        ValueError: the split has no token, or is too short for a single window.

    """
    stream = store.stream(split)
    if documents == "separate":
        firsts, sizes = store.documents(split)
    else:
        firsts, sizes = np.zeros(1, np.int64), np.array([len(stream)], np.int64)
    windows = Windows(firsts=firsts, sizes=sizes, max_length=max_length, stride=stride, tail=tail)
    if len(windows) == 0:
        remedy = "lower window.max_length or set window.tail=pad" if len(stream) > 1 else "look at the corpus"
        if store.validation:
            remedy += ", or change split.validation or split.seed"
        raise ValueError(
            f"the {split} split has {len(stream)} tokens in {len(firsts) if len(stream) else 0} segments, but a window "
            f"of window.max_length={max_length} needs {max_length + 1} tokens of one; {remedy}"
        )
    return stream, windows


def count_corpus(store: TokenStore) -> dict[str, Any]:
    """What the corpus held, for the manifest and the summary."""
    return {
        "documents": store.num_documents,
        "characters": sum(chunk.characters for chunk in store.chunks),
        "bytes": sum(chunk.bytes for chunk in store.chunks),
        "special_text_found": sum(chunk.special_text_found for chunk in store.chunks),
        "audited": sum(chunk.audited for chunk in store.chunks),
        "bad": dict(sorted(count_bad(store.chunks).items())),
    }


def _bar(name: str, total: int, unit: str) -> tqdm[Any]:
    return tqdm(desc=name, total=total, unit=unit, unit_scale=True, disable=None, file=sys.stderr)
