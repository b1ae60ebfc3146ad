"""The plan stage: estimate from a sample what a write job will produce and cost, before any shard is written.

Algorithm: some evenly spread partitions are tokenized, and a few row groups of their windows are encoded
(`plan_sample.py`). Totals follow from ratios to the input's bytes, and their margins from how much the partitions
differ (`estimate.py`). The sample's tokens stay in the cache, so the write stage does not tokenize them again. If the
sample is the complete corpus, all is exact but the bytes, whose margin is at least 5 %. That is also so if the cache
has the tokens of all partitions. Of a large compressed file that is not in the cache, only the start is unpacked, and
the rest is assumed to be like it.

Time and memory are measured on the sample under the machine's present load; their margins are fixed.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.memory import peak_memory
from pipeline.base.paths import translate_os_errors
from pipeline.base.wording import counted
from pipeline.corpus.quarantine import count_reasons
from pipeline.rules import names_arguments
from pipeline.shards.estimate import Estimate, add_estimates, estimate_total
from pipeline.shards.job import as_sections, cut_split, prepare_job
from pipeline.shards.plan_sample import encode_sample, is_cached, tokenize_sample
from pipeline.shards.plan_split import SplitPlan, count_shards, plan_split
from pipeline.tokens.chunk import count_bad, count_skipped
from pipeline.tokens.chunk_tasks import plan_chunks
from pipeline.tokens.encode import describe_tokenizer
from pipeline.tokens.mirror import named_cache
from pipeline.tokens.store import TokenStore

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.settings import (
        CacheConfig,
        CorpusConfig,
        ExecutorConfig,
        ShardsConfig,
        SplitConfig,
        TokenizerConfig,
        WindowConfig,
    )
    from pipeline.shards.job import Job

TIME_MARGIN = 0.5  # equal work on a shared machine differs up to 1.8-fold from run to run
BYTES_MARGIN = 0.05  # even if the sample is complete: only some of a split's row groups are encoded
MEMORY_MARGIN = 0.4  # an engine's cache grows with the text
ROW_BYTES = 40  # of a window token while it is written: two int32 columns, and four times that in the Parquet writer
FALLBACK_RATE = 1e7  # bytes of text per second and worker, if the complete sample was in the cache


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PlanReport:
    """What the write stage is expected to produce and to cost."""

    path: Path | str  # the folder, or the URI
    input_bytes: int
    sampled_bytes: int
    sampled_starts: int  # compressed files of which only the start was read
    documents: Estimate
    tokens: Estimate
    windows: Estimate
    shards: Estimate
    bytes: Estimate  # of the data set, on disk
    memory: Estimate  # peak resident bytes; they include the mapped token store, which the system can take back
    passed_over: dict[str, dict[str, Any]]  # files of the corpus's folders that it does not take, by kind
    seconds: Estimate  # of the write stage that follows
    max_length: int  # tokens per window
    splits: dict[str, Estimate]  # windows of each split
    padding: dict[str, Estimate]  # positions of each split's windows that have no token
    cut: dict[str, Estimate]  # of packed windows: documents of each split that are longer than one
    cache_bytes: Estimate  # of tokens that the cache does not have yet
    free_bytes: dict[str, int]  # on the disks of `shards.path`, unless it is a URI, and `cache.path`
    rejected: dict[str, int]  # documents of the sample that cannot be used, by reason
    skipped: dict[str, int]  # documents of the sample without text, by reason
    stops: list[str]  # why the write stage would stop with exit code 1

    def __repr__(self) -> str:
        """Show the estimates in one line."""
        names = ("documents", "tokens", "windows", "shards", "bytes", "seconds")
        found = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"PlanReport({Path(self.path).name!r:.99}: {found})"

    def _repr_html_(self) -> str:
        """Show the estimates as a table in a notebook."""
        names = ("documents", "tokens", "windows", "shards", "bytes", "memory", "seconds")
        rows = "".join(f"<tr><td>{name}</td><td>{getattr(self, name)}</td></tr>" for name in names)
        return f"<table>{rows}</table>"


@names_arguments
def plan_shards(
    path: str | os.PathLike[str],
    *,
    corpus: CorpusConfig | str | Sequence[str] = "python_docs",
    tokenizer: TokenizerConfig | str = "gpt2",
    window: WindowConfig | None = None,
    split: SplitConfig | None = None,
    shards: ShardsConfig | None = None,
    executor: ExecutorConfig | None = None,
    cache: CacheConfig | str | os.PathLike[str] = "outputs/cache",
) -> PlanReport:
    """Estimate from a sample of the corpus what `write_shards` would write and cost with the same arguments.

    Nothing is written but the tokens of the sample, into the cache.

    Raises:
        ValueError: as `write_shards`, or the sample has no document.

    """
    return plan_job(
        prepare_job(
            as_sections(
                path,
                corpus=corpus,
                tokenizer=tokenizer,
                window=window,
                split=split,
                shards=shards,
                executor=executor,
                cache=cache,
            )
        )
    )


def plan_job(job: Job) -> PlanReport:
    """Estimate a job's outcome.

    Raises:
        ValueError: the sample has no document, or a document is bad and `corpus.on_bad=raise`.

    """
    sections = job.sections
    cache, workers = sections.cache_folder, sections.executor.num_workers
    tasks = plan_chunks(job.partitions, cache=cache, rules=job.rules)
    with translate_os_errors(cache, "cache.path"), named_cache(cache):
        sample, taken = tokenize_sample(job, tasks)
    chunks = [part.made[0] for part in sample]
    bad = count_bad(chunks)
    total, sizes = sum(task.partition.num_bytes for task in tasks), [part.size for part in sample]
    starts = len({part.task.partition.names for part in sample if part.is_start})
    is_complete = len(sample) == len(tasks) and not starts
    population = max(len(sample) + 1, round(len(sample) * total / max(1.0, sum(sizes)))) if starts else len(tasks)
    extend = partial(estimate_total, sizes=sizes, total=total, population=population)
    documents = extend([sum(part.made[0].num_documents.values()) * part.weight for part in sample])
    if documents.value == 0:
        raise ValueError(
            f"none of the sample's {bad.total()} documents can be used ({count_reasons(bad)}); "
            "check corpus.path and corpus.text_field"
            if bad
            else "the sample has no document; check corpus.path"
        )

    store = TokenStore(
        cache=cache, chunks=chunks, tokenizer=describe_tokenizer(job.encoder), validation=sections.split.validation
    )
    splits = {name: plan_split(job, store, name, is_complete=is_complete, extend=extend) for name in store.splits()}
    tokens = add_estimates([split.tokens for split in splits.values()])
    windows = add_estimates([split.windows for split in splits.values()])
    shards = add_estimates([count_shards(job, split.windows) for split in splits.values()])

    encoded = encode_sample(job, store, is_complete=is_complete)
    itemsize = job.encoder.dtype.itemsize
    missing = extend([part.missing_tokens * itemsize for part in sample])
    made = sum(part.new_tokens for part in sample) * itemsize
    cache_bytes = Estimate(value=max(0.0, missing.value - made), margin=missing.margin)
    stored = windows.value * encoded.per_window.value + shards.value * encoded.per_shard
    spread = math.hypot(windows.margin * encoded.per_window.value, windows.value * encoded.per_window.margin)

    new_bytes = sum(part.size for part in sample if part.made[1] != "found")
    rate = new_bytes / taken if new_bytes else FALLBACK_RATE * workers
    remaining = sum(task.partition.num_bytes for task in tasks if not is_cached(job, task))
    busy = min(workers, max(1.0, shards.value))
    seconds = job.seconds + remaining / rate + windows.value * encoded.seconds / busy

    mapped = (tokens.value - sum(sum(chunk.tokens.values()) for chunk in chunks)) * itemsize
    groups = (workers - 1) * ROW_BYTES * job.layout.windows_per_group * sections.window.max_length
    memory = peak_memory() + mapped + groups

    free = {"cache.path": _free_bytes(cache)}
    if isinstance(sections.place, Path):  # nobody knows how much an object store still takes
        free = {"shards.path": _free_bytes(sections.place), **free}
    stops = [*_list_small_splits(job, store, splits, is_complete=is_complete)]
    stops += _list_rejections(job, bad.total(), sum(sum(chunk.num_documents.values()) for chunk in chunks))
    stops += _list_full_disks(free, {"shards.path": stored, "cache.path": cache_bytes.value})
    return PlanReport(
        path=sections.place,
        input_bytes=total,
        sampled_bytes=round(sum(sizes)),
        sampled_starts=starts,
        passed_over={kind: one._asdict() for kind, one in job.passed_over.items()},
        documents=documents,
        tokens=tokens,
        windows=windows,
        shards=shards,
        bytes=Estimate(value=stored, margin=max(spread, BYTES_MARGIN * stored)),
        memory=Estimate(value=memory, margin=memory * MEMORY_MARGIN),
        seconds=Estimate(value=seconds, margin=seconds * TIME_MARGIN),
        max_length=sections.window.max_length,
        splits={name: split.windows for name, split in splits.items()},
        padding={name: split.padding for name, split in splits.items()},
        cut={name: split.cut for name, split in splits.items()} if sections.window.documents == "pack" else {},
        cache_bytes=cache_bytes,
        free_bytes=free,
        rejected=dict(bad),
        skipped=dict(count_skipped(chunks)),
        stops=stops,
    )


def _list_small_splits(
    job: Job, store: TokenStore, splits: Mapping[str, SplitPlan], *, is_complete: bool
) -> Iterator[str]:
    """Say which splits would have no window."""
    for name, split in splits.items():
        if split.windows.value >= 1:
            continue
        try:
            cut_split(job, store, name)
        except ValueError as error:
            yield str(error) if is_complete else f"by the sample, {error}"


def _list_rejections(job: Job, bad: int, good: int) -> Iterator[str]:
    """Say whether more documents are rejected than `corpus.max_bad_fraction` allows, as in the sample."""
    limit, total = job.sections.corpus.max_bad_fraction, bad + good
    if bad > limit * total:
        yield (
            f"{bad:,} of {counted(total, 'document')} in the sample are rejected ({bad / total:.2%}), more than "
            f"corpus.max_bad_fraction={limit}; raise it, or mend them: the first write stage lists them"
        )


def _list_full_disks(free: Mapping[str, int], needed: Mapping[str, float]) -> Iterator[str]:
    """Say on which disks there is too little room."""
    for key, need in needed.items():
        if key in free and need > free[key]:
            yield f"{key}: about {need / 1e6:,.0f} MB are to be written, and {free[key] / 1e6:,.0f} MB are free"


def _free_bytes(folder: Path) -> int:
    """Return how many bytes are free on the disk of a folder that need not exist yet."""
    return shutil.disk_usage(next(one for one in (folder, *folder.absolute().parents) if one.exists())).free
