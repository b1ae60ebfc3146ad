"""The write stage: a corpus becomes a data set. Tokens first, windows second, the manifest last.

Guarantee: the same config and text give the same Parquet bytes for any number of workers, and after any number of
crashes; `pipeline.write.folder` says how. A folder has a manifest only if every file that it names is whole and on the
disk.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from tqdm import tqdm

from pipeline.manifest import Manifest, SplitEntry, write_manifest
from pipeline.memory import peak_memory
from pipeline.schema import fraction, local, truth
from pipeline.write.card import write_card
from pipeline.write.folder import claim_folder, explained, find_finished, prepare_folder, remove_leftovers, sync_folder
from pipeline.write.job import Job, prepare_job
from pipeline.write.left_over import count_left_over
from pipeline.write.quarantine import FILE as QUARANTINE
from pipeline.write.quarantine import check_fraction, count_bad, refuse_bad, write_quarantine
from pipeline.write.shards import shard_names, write_split
from pipeline.write.tokens import describe_tokenizer, tokenize

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from pipeline.token_store import TokenStore, TokenStream
    from pipeline.windows import Windows


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteReport:
    """What the write stage did."""

    path: Path
    manifest: Manifest
    finished_before: bool  # the data set was there already: nothing was written
    chunks: int
    chunks_made: int  # the rest was found in the cache
    chunks_mended: int  # of these: were there, but not with the bytes that were written
    engine: str
    start_seconds: float  # to load the tokenizer, and to find and hash the input
    tokenize_seconds: float
    write_seconds: float
    peak_memory: int  # bytes resident at most in this process so far, mapped files included


def write_shards(
    path: str | os.PathLike[str],
    *,
    corpus: str = "python_docs",
    corpus_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
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
    allow_gaps: bool = False,
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
    `max_length`. `config` is recorded in the manifest and has no other effect. A data set that is there already and has
    the same fingerprint is left as it is.

    After a crash the same call keeps the shards whose bytes are as recorded, and writes the rest.

    Raises:
        ValueError: the corpus is empty, unreadable or too short for one window; the folder holds something else, or
            another run writes there; the disk is full, or a folder cannot be written.

    """
    started = time.perf_counter()
    path = local("shards.path", path)
    truth("shards.overwrite", overwrite)
    fraction("corpus.max_bad_fraction", max_bad_fraction)
    fraction("tokenizer.audit", audit)
    job = prepare_job(
        corpus=corpus,
        corpus_path=corpus_path,
        corpus_url=corpus_url,
        corpus_sha256=corpus_sha256,
        corpus_subset=corpus_subset,
        corpus_part=corpus_part,
        text_field=text_field,
        on_bad=on_bad,
        max_document_bytes=max_document_bytes,
        tokenizer=tokenizer,
        tokenizer_path=tokenizer_path,
        tokenizer_pattern=tokenizer_pattern,
        engine=engine,
        special_text=special_text,
        max_length=max_length,
        stride=stride,
        allow_gaps=allow_gaps,
        tail=tail,
        documents=documents,
        validation=validation,
        split_seed=split_seed,
        windows_per_shard=windows_per_shard,
        windows_per_group=windows_per_group,
        compression=compression,
        order=order,
        order_seed=order_seed,
        cache_path=cache_path,
        workers=workers,
    )
    folder, encoder, identity = Path(path), job.encoder, job.fingerprint
    ready = time.perf_counter()
    report = partial(
        WriteReport, path=folder, chunks=len(job.inputs), engine=encoder.engine, start_seconds=ready - started
    )
    with explained(folder, "shards.path"):
        finished = find_finished(folder, identity)
        if finished:
            bad, good = Counter(finished.corpus["bad"]), finished.corpus["documents"]
            if on_bad == "raise":
                refuse_bad(bad, folder / QUARANTINE)
            check_fraction(bad, good, max_bad_fraction=max_bad_fraction, path=folder / QUARANTINE)
            remove_leftovers(folder, identity)
            return report(
                manifest=finished,
                finished_before=True,
                chunks_made=0,
                chunks_mended=0,
                tokenize_seconds=0.0,
                write_seconds=0.0,
                peak_memory=peak_memory(),
            )
        with claim_folder(folder, identity, overwrite=overwrite) as claim:
            with (
                _bar("tokenize", sum(part.num_bytes for part in job.inputs), "B") as bar,
                explained(job.cache, "cache.path"),
            ):
                store, origins = tokenize(
                    job.inputs,
                    cache=job.cache,
                    tokenizer=encoder,
                    policy=job.policy,
                    audit=audit,
                    max_bad_fraction=max_bad_fraction,
                    workers=workers,
                    advance=bar.update,
                )
            tokenized = time.perf_counter()
            plans = {name: cut_split(job, store, name) for name in store.splits()}
            names = {
                file for name, (_, windows) in plans.items() for file in shard_names(name, len(windows), job.layout)
            }
            prepare_folder(claim, names)
            splits, left_over = {}, {}
            with _bar("write", sum(len(windows) for _, windows in plans.values()), "windows") as bar:
                for name, (stream, windows) in plans.items():
                    entries = write_split(
                        folder,
                        name,
                        stream=stream,
                        windows=windows,
                        layout=job.layout,
                        order=order,
                        seed=job.seed,
                        pad_id=encoder.end_of_text,
                        workers=workers,
                        recorded=claim.recorded,
                        advance=bar.update,
                    )
                    documents_of_split = store.documents(name)
                    left_over[name] = count_left_over(windows, *documents_of_split)
                    splits[name] = SplitEntry(
                        num_documents=len(documents_of_split[0]),
                        num_tokens=len(stream),
                        num_windows=len(windows),
                        max_length=windows.max_length,
                        stride=windows.stride,
                        shards=entries,
                    )
            manifest = Manifest(
                fingerprint=identity,
                tokenizer=describe_tokenizer(encoder),
                corpus=count_corpus(store),
                store=store.id,
                windows={
                    **job.stored,
                    "end_of_text": encoder.end_of_text,
                    "pad_id": encoder.end_of_text if tail == "pad" else None,
                    "left_over": left_over,
                },
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
        chunks_made=origins["made"] + origins["mended"],
        chunks_mended=origins["mended"],
        tokenize_seconds=tokenized - ready,
        write_seconds=time.perf_counter() - tokenized,
        peak_memory=peak_memory(),
    )


def cut_split(job: Job, store: TokenStore, split: str) -> tuple[TokenStream, Windows]:
    """A split's token stream and its windows.

    Raises:
        ValueError: the split has no token, or is too short for a single window.

    """
    stream, windows = job.cut(store, split)
    if len(windows) == 0:
        remedy = "lower window.max_length or set window.tail=pad" if len(stream) > 1 else "look at the corpus"
        if store.validation:
            remedy += ", or change split.validation or split.seed"
        segments = len(windows.firsts) if len(stream) else 0
        raise ValueError(
            f"the {split} split has {len(stream)} tokens in {segments} segments, but a window of window.max_length="
            f"{windows.max_length} needs {windows.max_length + 1} tokens of one; {remedy}"
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
