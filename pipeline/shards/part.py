"""One part of an array job: its share of the write stage's tasks, without waiting for any other part.

Parts are processes on any machines that run one config with `executor.part=0/16` to `15/16`, in any order or at once.
They share the cache and the data set's folder, or their URIs, and nothing else. A part makes its chunks. If those of
all other parts are there as well, it writes its shards; if not, the report says whose are missing, and the part is run
again later.
A call without `executor.part` makes what is missing, and commits: it alone writes the manifest.

Guarantee: the bytes are those of one process. A part may be killed at any instant and run again.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.base.paths import translate_os_errors
from pipeline.base.progress import ProgressBar
from pipeline.base.wording import counted
from pipeline.executor.choose import UPLOADS
from pipeline.executor.local import LocalExecutor
from pipeline.shards.folder import is_finished_by_now
from pipeline.shards.job import as_sections, cut_split, list_files, prepare_job
from pipeline.shards.outline import working_folder
from pipeline.shards.prefix import check_reach
from pipeline.shards.shard import plan_shard_tasks, run_shard_tasks
from pipeline.shards.shared_folder import find_written, prepare_share, share_folder
from pipeline.shards.shared_prefix import find_written_at, prepare_shared_prefix, share_prefix
from pipeline.shards.write import find_complete
from pipeline.tokens.encode_part import tokenize_part
from pipeline.tokens.mirror import named_cache

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

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
    from pipeline.shards.job import Job
    from pipeline.tokens.encode_part import PartOfTokens
    from pipeline.tokens.store import TokenStore


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReport:
    """What one part did, and what is still missing."""

    path: Path | str  # the folder, or the URI
    part: int
    parts: int
    finished_before: bool  # the data set was there already, so nothing was done
    finished_meanwhile: bool  # a call without executor.part has finished it while this part ran (at a URI)
    chunks: int  # of all parts
    own_chunks: int
    chunks_made: int  # the others of its own were found in the cache
    chunks_mended: int  # how many of these replaced a damaged one
    bytes_tokenized: int  # of text, in the chunks that this run made
    missing_chunks: dict[int, int]  # part -> how many of its chunks were not there at the end of pass one
    shards: int  # of all parts; 0 until the chunks of all parts are there
    own_shards: int
    shards_written: int  # the others of its own were intact
    missing_shards: dict[int, int]  # part -> how many of its shards were not there at the end
    start_seconds: float
    tokenize_seconds: float
    write_seconds: float

    @property
    def waiting(self) -> str:
        """Whose chunks pass two waits for, in words; empty if this part has done its share of both passes."""
        count = sum(self.missing_chunks.values())
        return f"{counted(count, 'chunk')} of {name_parts(self.missing_chunks)}" if count else ""


def write_part(
    path: str | os.PathLike[str],
    *,
    corpus: CorpusConfig | str | Sequence[str] = "python_docs",
    tokenizer: TokenizerConfig | str = "gpt2",
    window: WindowConfig | None = None,
    split: SplitConfig | None = None,
    shards: ShardsConfig | None = None,
    executor: ExecutorConfig | None = None,
    cache: CacheConfig | str | os.PathLike[str] = "outputs/cache",
) -> PartReport:
    """Do the part `executor.part` of what `write_shards` does with the same arguments.

    Raises:
        ConfigError: a value is refused.
        ValueError: as `write_shards`; or a run that is no part, or a part of another data set, writes there.

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
    honours = check_reach(sections)
    job = prepare_job(sections)
    ready = time.perf_counter()
    with (
        translate_os_errors(sections.place, "shards.path"),
        working_folder(sections.place) as (folder, storage),
        named_cache(sections.cache_folder),
    ):
        if find_complete(folder, storage, job):
            return _report(job, seconds=(ready - started, 0.0, 0.0))
        with share_folder(job) if storage is None else share_prefix(storage, folder, job, honours) as lock:
            tokens = _tokenize(job)
            tokenized = time.perf_counter()
            written = _write(job, tokens.store, lock) if tokens.store else None
    ended = time.perf_counter()
    return _report(job, tokens, written, seconds=(ready - started, tokenized - ready, ended - tokenized))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What pass two of a part did."""

    shards: int
    own: int
    written: int
    missing: dict[int, int]


def _report(
    job: Job,
    tokens: PartOfTokens | None = None,
    written: _Written | None = None,
    *,
    seconds: tuple[float, float, float],
) -> PartReport:
    part, parts = job.sections.executor.share
    origins = tokens.origins if tokens else Counter[str]()
    return PartReport(
        path=job.sections.place,
        part=part,
        parts=parts,
        finished_before=tokens is None,
        finished_meanwhile=tokens is not None and tokens.store is not None and written is None,
        chunks=tokens.chunks if tokens else 0,
        own_chunks=tokens.own_chunks if tokens else 0,
        chunks_made=origins["made"] + origins["mended"],
        chunks_mended=origins["mended"],
        bytes_tokenized=origins["bytes"],
        missing_chunks=tokens.missing if tokens else {},
        shards=written.shards if written else 0,
        own_shards=written.own if written else 0,
        shards_written=written.written if written else 0,
        missing_shards=written.missing if written else {},
        start_seconds=seconds[0],
        tokenize_seconds=seconds[1],
        write_seconds=seconds[2],
    )


def _tokenize(job: Job) -> PartOfTokens:
    sections = job.sections
    part, parts = sections.executor.share
    total = sum(partition.num_bytes for partition in job.partitions[part::parts])
    with ProgressBar("tokenize", total, "B") as bar, translate_os_errors(sections.cache_folder, "cache.path"):
        return tokenize_part(
            job.partitions,
            share=(part, parts),
            cache=sections.cache_folder,
            tokenizer=job.encoder,
            corpus=sections.corpus,
            split=sections.split,
            audit=sections.tokenizer.audit,
            executor=_executor(job),
            advance=bar.update,
        )


def _write(job: Job, store: TokenStore, lock: FolderLock) -> _Written | None:
    """Write this part's shards: shard i of a split belongs to part `i % parts`.

    Return None if a call without `executor.part` has finished the data set by now.
    """
    part, parts = job.sections.executor.share
    executor = _executor(job)
    plans = {name: cut_split(job, store, name) for name in store.splits()}
    if lock.storage is None:
        lock = prepare_share(lock, job, list_files(job, plans))
    elif not prepare_shared_prefix(lock, list_files(job, plans)):
        return None
    tasks = {
        name: plan_shard_tasks(name, len(stored), job.layout, recorded=lock.recorded) for name, stored in plans.items()
    }
    own = {name: every[part::parts] for name, every in tasks.items()}
    total = sum(task.last - task.first for mine in own.values() for task in mine)
    written = 0
    with ProgressBar("write", total, "windows") as bar:
        for name, mine in own.items():
            run = run_shard_tasks(lock, mine, stored=plans[name], layout=job.layout, executor=executor)
            for task, entry in zip(mine, run, strict=True):
                written += entry is not task.known
                bar.update(entry.num_windows)
    if lock.storage is not None and is_finished_by_now(lock.storage, lock.identity):
        return None
    there = find_written(lock, job) if lock.storage is None else find_written_at(lock.storage)
    missing = Counter(
        at % parts for every in tasks.values() for at, task in enumerate(every) if f"data/{task.name}" not in there
    )
    return _Written(
        shards=sum(map(len, tasks.values())),
        own=sum(map(len, own.values())),
        written=written,
        missing=dict(sorted(missing.items())),
    )


def _executor(job: Job) -> LocalExecutor:
    return LocalExecutor(job.sections.executor.num_workers, UPLOADS if job.sections.is_remote else 1)


def name_parts(missing: dict[int, int]) -> str:
    """Name some parts: 'part 3', 'parts 0-4 and 7'."""
    ranges: list[list[int]] = []
    for part in sorted(missing):
        if ranges and ranges[-1][1] == part - 1:
            ranges[-1][1] = part
        else:
            ranges.append([part, part])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    return f"part{'s' * (len(missing) > 1)} {' and '.join(filter(None, [', '.join(shown[:-1]), shown[-1]]))}"
