"""The write stage turns a corpus into a data set: tokens first, windows second, the manifest last.

Guarantee: the same config and text give the same Parquet bytes for any number of workers and after any number of
crashes; `pipeline.shards.folder` says how. A folder has a manifest only if every file that it names is complete and on
the disk.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.base.atomic import sync_folder
from pipeline.base.memory import peak_memory, translate_memory_errors
from pipeline.base.paths import translate_os_errors
from pipeline.base.progress import ProgressBar
from pipeline.base.wording import counted
from pipeline.corpus.quarantine import QUARANTINE_NAME, check_fraction, refuse_bad, write_quarantine
from pipeline.corpus.small_files import HELD_BYTES
from pipeline.executor.choose import check_executor, open_executor
from pipeline.executor.ray import wait_until_seen
from pipeline.rules import conflict, names_arguments
from pipeline.shards.card import write_card
from pipeline.shards.documents import write_documents
from pipeline.shards.entries import DOCUMENTS_FOLDER
from pipeline.shards.folder import find_finished, lock_folder, prepare_folder, remove_leftovers
from pipeline.shards.job import Job, as_sections, cut_split, list_files, prepare_job
from pipeline.shards.manifest import Manifest, SplitEntry, write_manifest
from pipeline.shards.outline import working_folder
from pipeline.shards.prefix import (
    check_reach,
    claim_prefix,
    find_finished_at,
    prepare_prefix,
    publish,
    remove_working,
)
from pipeline.shards.shard import write_split
from pipeline.storage.names import is_uri
from pipeline.tokens.chunk import count_bad, count_skipped
from pipeline.tokens.chunk_writer import remove_leftovers as remove_unfinished_chunks
from pipeline.tokens.encode import describe_tokenizer, rejected_lines, tokenize
from pipeline.tokens.mirror import named_cache
from pipeline.windows import count_cut, count_padding, count_unused

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from pipeline.executor.choose import Executor
    from pipeline.settings import (
        CacheConfig,
        CorpusConfig,
        ExecutorConfig,
        ShardsConfig,
        SplitConfig,
        TokenizerConfig,
        WindowConfig,
    )
    from pipeline.shards.folder import FolderLock
    from pipeline.storage.interface import Storage
    from pipeline.tokens.store import TokenStore


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WriteReport:
    """What the write stage did."""

    path: Path | str  # the folder, or the URI
    manifest: Manifest
    finished_before: bool  # the data set was there already, so nothing was written
    chunks: int
    chunks_made: int  # the others were found in the cache
    chunks_mended: int  # how many of these replaced a damaged one
    bytes_tokenized: int  # of text, in the chunks that this run made
    skipped: dict[str, int]  # documents without text, by reason
    passed_over: dict[str, dict[str, Any]]  # files of the corpus's folders that it does not take, by kind
    padding: dict[str, int]  # by split, the positions of its windows that have no token
    engine: str
    start_seconds: float  # to load the tokenizer, to find and hash the input, and to start or reach a cluster
    tokenize_seconds: float
    new_text_seconds: float  # the part of them that went into the chunks made, not into reading those found
    write_seconds: float
    peak_memory: int  # the most bytes resident in this process so far, mapped files included

    def __repr__(self) -> str:
        """Show what was done in one line."""
        windows = ", ".join(f"{name}={split.num_windows:,}" for name, split in self.manifest.splits.items())
        done = (
            "up to date"
            if self.finished_before
            else f"{self.chunks_made:,} of {counted(self.chunks, 'chunk')} tokenized"
        )
        return f"WriteReport({Path(self.path).name!r:.99}: {windows} windows, {done}, {self.engine})"

    def _repr_html_(self) -> str:
        """Show the splits as a table in a notebook."""
        return f"<p>{escape(repr(self))}</p>{self.manifest._repr_html_()}"


@names_arguments
@translate_memory_errors("executor.workers, corpus.max_document_bytes or shards.windows_per_group")
def write_shards(
    path: str | os.PathLike[str],
    *,
    corpus: CorpusConfig | str | Sequence[str] = "python_docs",
    tokenizer: TokenizerConfig | str = "gpt2",
    window: WindowConfig | None = None,
    split: SplitConfig | None = None,
    shards: ShardsConfig | None = None,
    executor: ExecutorConfig | None = None,
    cache: CacheConfig | str | os.PathLike[str] = "outputs/cache",
) -> WriteReport:
    """Write a corpus as a data set of token windows in Parquet shards.

    An existing data set with the same fingerprint is left as it is. After a crash the same call keeps the shards that
    have the recorded bytes and writes the others.

    Args:
        path: the data set's folder or URI.
        corpus: where the text comes from: a section, a corpus's name, or a list of texts.
        tokenizer: a section, or a tokenizer's name.
        window: how token IDs become windows.
        split: what goes to the validation split.
        shards: the layout; its own `path` is the argument `path`.
        executor: where the tasks run, and how many at once.
        cache: the folder or URI of the token store.

    Raises:
        ConfigError: a value is refused.
        ValueError: the corpus is empty, unreadable or too short for one window; the folder holds something else, or
            another run writes there; the disk is full, or a folder cannot be written.

    >>> from pipeline import WindowConfig
    >>> texts = ["one text", "another"]
    >>> report = write_shards("ds", corpus=texts, tokenizer="bytes", window=WindowConfig(max_length=4))
    >>> report.manifest.splits["train"].num_windows
    3

    """
    started = time.perf_counter()
    sections = as_sections(
        path,
        corpus=corpus,
        tokenizer=tokenizer,
        window=window,
        split=split,
        shards=shards,
        executor=executor,
        cache=cache,
    )
    corpus_section = sections.corpus
    if sections.executor.part is not None:
        conflict("executor.part", "in Python, call pipeline.shards.part.write_part", sections.executor.part)
    check_executor(sections.executor)
    honours = check_reach(sections)
    job = prepare_job(sections, hold=HELD_BYTES if sections.executor.name == "local" else 0)
    ready = time.perf_counter()
    report = partial(
        WriteReport,
        path=sections.place,
        passed_over=describe_passed_over(job),
        engine=job.encoder.engine,
    )
    with (
        translate_os_errors(sections.place, "shards.path"),
        working_folder(sections.place) as (folder, storage),
        named_cache(sections.cache_folder),
    ):
        finished = find_complete(folder, storage, job)
        if finished and not lacks_documents(finished, sections.shards):
            bad, good = Counter(finished.corpus["bad"]), finished.corpus["documents"]
            if corpus_section.on_bad == "raise":
                refuse_bad(bad, folder / QUARANTINE_NAME)
            limit = corpus_section.max_bad_fraction
            check_fraction(bad, good, max_bad_fraction=limit, path=folder / QUARANTINE_NAME)
            _tidy_up(folder, storage, finished.fingerprint)
            with suppress(OSError):
                remove_unfinished_chunks(sections.cache_folder)
            return report(
                manifest=finished,
                finished_before=True,
                start_seconds=ready - started,
                chunks=len(job.partitions),
                padding=finished.windows.get("padding", {}),
                skipped=finished.corpus.get("skipped", {}),
                chunks_made=0,
                chunks_mended=0,
                bytes_tokenized=0,
                tokenize_seconds=0.0,
                new_text_seconds=0.0,
                write_seconds=0.0,
                peak_memory=peak_memory(),
            )
        with (
            _lock(folder, storage, job, honours=honours) as lock,
            open_executor(sections.executor, uploads=sections.is_remote) as cluster,
        ):
            opened = time.perf_counter()
            store, origins = _tokenize(job, cluster)
            if sections.executor.name == "ray":
                remove_unfinished_chunks(sections.cache_folder)  # what killed workers have left
                if not is_uri(sections.cache.path):
                    chunks = sections.cache_folder / "chunks"
                    wait_until_seen({chunks / chunk.id / "chunk.json" for chunk in store.chunks}, "cache.path")
            tokenized = time.perf_counter()
            splits, counts = _write_splits(job, store, lock, cluster)
            if sections.executor.name == "ray" and storage is None:
                written = [folder / shard.path for split in splits.values() for shard in split.shards]
                wait_until_seen(written, "shards.path")
            manifest = Manifest(
                fingerprint=job.fingerprint,
                tokenizer=describe_tokenizer(job.encoder),
                corpus={**count_corpus(store), "passed_over": describe_passed_over(job)},
                store=store.id,
                windows={
                    **job.stored,
                    "end_of_text": job.encoder.eos,
                    "pad_id": job.encoder.eos if sections.window.tail == "pad" else None,
                    **counts,
                },
                splits=splits,
                written_by={"pyarrow": pa.__version__},
                config=sections.describe(),
            )
            write_card(folder, manifest, [name for names in store.names for name in names])
            write_quarantine(rejected_lines(store), folder / QUARANTINE_NAME)
            manifest = _commit(lock, manifest)
    return report(
        manifest=manifest,
        finished_before=False,
        start_seconds=opened - started,
        chunks=len({chunk.id for chunk in store.chunks}),
        padding=manifest.windows["padding"],
        skipped=manifest.corpus["skipped"],
        chunks_made=origins["made"] + origins["mended"],
        chunks_mended=origins["mended"],
        bytes_tokenized=origins["bytes"],
        tokenize_seconds=tokenized - opened,
        new_text_seconds=(tokenized - opened) * origins["new"] / max(1, origins["new"] + origins["known"]),
        write_seconds=time.perf_counter() - tokenized,
        peak_memory=peak_memory(),
    )


def find_complete(folder: Path, storage: Storage | None, job: Job) -> Manifest | None:
    """Return the manifest of the job's data set if all of it is there: in a folder, or in a storage."""
    if storage is None:
        return next(filter(None, (find_finished(folder, one) for one in job.fingerprints)), None)
    return find_finished_at(storage, folder, job.fingerprints)


def _tidy_up(folder: Path, storage: Storage | None, identity: str) -> None:
    """Remove what a run that was killed after its manifest has left."""
    if storage is None:
        remove_leftovers(folder, identity)
    else:
        remove_working(storage)


def _lock(
    folder: Path, storage: Storage | None, job: Job, *, honours: bool | None
) -> AbstractContextManager[FolderLock]:
    if storage is None:
        return lock_folder(folder, job.fingerprint, overwrite=job.sections.shards.overwrite, job=job)
    return claim_prefix(storage, folder, job, honours=honours)


def _commit(lock: FolderLock, manifest: Manifest) -> Manifest:
    """Write the manifest, after everything that it names is on the disk or in the store; return it as written."""
    if lock.storage is not None:
        return publish(lock, manifest)
    sync_folder(lock.folder / "data")
    if (lock.folder / DOCUMENTS_FOLDER).is_dir():
        sync_folder(lock.folder / DOCUMENTS_FOLDER)
    written = write_manifest(lock.folder, manifest)
    sync_folder(lock.folder)
    return written


def _tokenize(job: Job, executor: Executor) -> tuple[TokenStore, Counter[str]]:
    sections, total = job.sections, sum(partition.num_bytes for partition in job.partitions)
    with ProgressBar("tokenize", total, "B") as bar, translate_os_errors(sections.cache_folder, "cache.path"):
        return tokenize(
            job.partitions,
            cache=sections.cache_folder,
            tokenizer=job.encoder,
            corpus=sections.corpus,
            split=sections.split,
            audit=sections.tokenizer.audit,
            executor=executor,
            advance=bar.update,
        )


def _write_splits(
    job: Job, store: TokenStore, lock: FolderLock, executor: Executor
) -> tuple[dict[str, SplitEntry], dict[str, dict[str, Any]]]:
    """Write the shards of all splits. Return the splits' entries, and what the manifest counts of their windows."""
    plans = {name: cut_split(job, store, name) for name in store.splits()}
    has_tables = job.sections.shards.documents
    if lock.storage is None:
        prepare_folder(lock, list_files(job, plans))
    else:
        prepare_prefix(lock, list_files(job, plans))
    splits, unused, padding, cut = {}, {}, {}, {}
    with ProgressBar("write", sum(map(len, plans.values())), "windows") as bar:
        for name, stored in plans.items():
            entries = write_split(
                lock,
                name,
                stored=stored,
                layout=job.layout,
                executor=executor,
                advance=bar.update,
            )
            documents = store.documents(name)
            unused[name] = count_unused(stored.windows, *documents)
            padding[name] = count_padding(stored.windows)
            cut[name] = count_cut(stored.windows)
            splits[name] = SplitEntry(
                num_documents=len(documents[0]),
                num_tokens=len(stored.stream),
                num_windows=len(stored),
                max_length=stored.windows.max_length,
                stride=stored.windows.stride,
                shards=entries,
                windows_per_group=job.layout.windows_per_group,
                windows_per_shard=job.layout.shard_size(len(stored)),
                documents=write_documents(lock.folder, name, store) if has_tables else None,
            )
    counts: dict[str, dict[str, Any]] = {"left_over": unused, "padding": padding}
    if job.sections.window.documents == "pack":
        counts["cut"] = cut
    return splits, counts


def lacks_documents(finished: Manifest, shards: ShardsConfig) -> bool:
    """Tell whether a finished data set has no documents' table, and the config asks to replace it by one that has."""
    return shards.overwrite and shards.documents and not all(split.documents for split in finished.splits.values())


def count_corpus(store: TokenStore) -> dict[str, Any]:
    """Return the corpus's counts, for the manifest and the summary."""
    return {
        "documents": store.num_documents,
        "characters": sum(chunk.characters for chunk in store.chunks),
        "bytes": sum(chunk.bytes for chunk in store.chunks),
        "special_text_found": sum(chunk.special_text_found for chunk in store.chunks),
        "audited": sum(chunk.audited for chunk in store.chunks),
        "bad": dict(sorted(count_bad(store.chunks).items())),
        "skipped": dict(sorted(count_skipped(store.chunks).items())),
    }


def describe_passed_over(job: Job) -> dict[str, dict[str, Any]]:
    """Return the files that the corpus passed over, for the manifest and the summary."""
    return {kind: one._asdict() for kind, one in job.passed_over.items()}
