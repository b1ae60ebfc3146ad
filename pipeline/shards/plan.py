"""The plan stage: estimate from a sample what a write job will produce and cost, before any shard is written.

Algorithm: some evenly spread partitions are tokenized (`plan_sample.py`), and a few row groups of their windows are
encoded. Totals follow from ratios to the input's bytes (the ratio estimator; Cochran, Sampling Techniques, 1977,
chapter 6). Their margins follow from how much the partitions differ: half a 95 % interval by Student's t. The sample's
tokens stay in the cache, so the write stage does not tokenize them again. If the sample is the complete corpus, all is
exact but the bytes, whose margin is at least 5 %. That is also so if the cache has the tokens of all partitions. Of a
large compressed file that is not in the cache, only the start is unpacked, and the rest is assumed to be like it.

Time and memory are measured on the sample under the machine's present load; their margins are fixed.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.memory import peak_memory
from pipeline.base.paths import translate_os_errors
from pipeline.base.wording import counted
from pipeline.corpus.quarantine import count_reasons
from pipeline.packing import PackedWindows, choose_group_tokens
from pipeline.rules import names_arguments
from pipeline.shards.format import group_table, shard_schema
from pipeline.shards.job import as_sections, cut_split, prepare_job
from pipeline.shards.plan_sample import is_cached, tokenize_sample
from pipeline.shards.shard_writer import ShardWriter
from pipeline.tokens.chunk import count_bad, count_skipped
from pipeline.tokens.chunk_tasks import plan_chunks
from pipeline.tokens.encode import describe_tokenizer
from pipeline.tokens.mirror import named_cache
from pipeline.tokens.store import TokenStore
from pipeline.windows import count_cut, count_padding

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

SAMPLED_GROUPS = 4
STUDENT_T = (12.71, 4.30, 3.18, 2.78, 2.57)  # 97.5 % quantiles for 1 to 5 degrees of freedom
TIME_MARGIN = 0.5  # equal work on a shared machine differs up to 1.8-fold from run to run
BYTES_MARGIN = 0.05  # even if the sample is complete: at most SAMPLED_GROUPS of a split's row groups are encoded
MEMORY_MARGIN = 0.4  # an engine's cache grows with the text
ROW_BYTES = 40  # of a window token while it is written: two int32 columns, and four times that in the Parquet writer
FALLBACK_RATE = 1e7  # bytes of text per second and worker, if the complete sample was in the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A quantity and its margin, about half a 95 % interval, in the same unit."""

    value: float
    margin: float

    def __str__(self) -> str:
        """Show both, to three digits below 100."""
        shown = [f"{number:,.0f}" if number >= 100 else f"{number:.3g}" for number in (self.value, self.margin)]
        return " ± ".join(shown if self.margin else shown[:1])


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


NONE = Estimate(value=0.0, margin=0.0)


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
    inputs = [task.partition for task in tasks]
    with translate_os_errors(cache, "cache.path"), named_cache(cache):
        sample, taken = tokenize_sample(job, tasks)
    chunks = [part.made[0] for part in sample]
    new_bytes = sum(part.size for part in sample if part.made[1] != "found")
    total = sum(part.num_bytes for part in inputs)
    sizes = [part.size for part in sample]
    starts = len({part.task.partition.names for part in sample if part.is_start})
    population = max(len(sample) + 1, round(len(sample) * total / max(1.0, sum(sizes)))) if starts else len(inputs)
    extend = partial(estimate_total, sizes=sizes, total=total, population=population)
    documents = extend([sum(part.made[0].num_documents.values()) * part.weight for part in sample])
    if documents.value == 0:
        bad = count_bad(chunks)
        raise ValueError(
            f"none of the sample's {bad.total()} documents can be used ({count_reasons(bad)}); "
            "check corpus.path and corpus.text_field"
            if bad
            else "the sample has no document; check corpus.path"
        )
    store = TokenStore(
        cache=cache, chunks=chunks, tokenizer=describe_tokenizer(job.encoder), validation=sections.split.validation
    )
    is_complete = len(sample) == len(inputs) and not starts
    parts = {name: _plan_split(job, store, name, is_complete=is_complete, extend=extend) for name in store.splits()}
    tokens, windows = (_add([getattr(part, name) for part in parts.values()]) for name in ("tokens", "windows"))
    shards = _add([_count_shards(job, part.windows) for part in parts.values()])
    per_window, per_shard, seconds_per_window = _encode_sample(job, store, is_complete=is_complete)
    rate = new_bytes / taken if new_bytes else FALLBACK_RATE * workers
    remaining = sum(task.partition.num_bytes for task in tasks if not is_cached(job, task))
    stored = windows.value * per_window.value + shards.value * per_shard
    busy = min(workers, max(1.0, shards.value))
    seconds = job.seconds + remaining / rate + windows.value * seconds_per_window / busy
    itemsize = job.encoder.dtype.itemsize
    cached = extend([part.missing_tokens * itemsize for part in sample])
    written = sum(part.new_tokens for part in sample) * itemsize
    cache_bytes = Estimate(value=max(0.0, cached.value - written), margin=cached.margin)
    free = {"cache.path": _free_bytes(cache)}
    if isinstance(sections.place, Path):  # nobody knows how much an object store still takes
        free = {"shards.path": _free_bytes(sections.place), **free}
    bad = count_bad(chunks)
    stops = [*_list_small_splits(job, store, parts, is_complete=is_complete)]
    stops += _list_rejections(job, bad.total(), sum(sum(chunk.num_documents.values()) for chunk in chunks))
    for key, need in (("shards.path", stored), ("cache.path", cache_bytes.value)):
        if key in free and need > free[key]:
            stops.append(f"{key}: about {need / 1e6:,.0f} MB are to be written, and {free[key] / 1e6:,.0f} MB are free")
    mapped = (tokens.value - sum(sum(chunk.tokens.values()) for chunk in chunks)) * itemsize
    groups = (workers - 1) * ROW_BYTES * job.layout.windows_per_group * job.sections.window.max_length
    memory = peak_memory() + mapped + groups
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
        bytes=Estimate(
            value=stored,
            margin=max(
                math.hypot(windows.margin * per_window.value, windows.value * per_window.margin),
                BYTES_MARGIN * stored,
            ),
        ),
        memory=Estimate(value=memory, margin=memory * MEMORY_MARGIN),
        seconds=Estimate(value=seconds, margin=seconds * TIME_MARGIN),
        max_length=job.sections.window.max_length,
        splits={name: part.windows for name, part in parts.items()},
        padding={name: part.padding for name, part in parts.items()},
        cut={name: part.cut for name, part in parts.items()} if job.sections.window.documents == "pack" else {},
        cache_bytes=cache_bytes,
        free_bytes=free,
        rejected=dict(bad),
        skipped=dict(count_skipped(chunks)),
        stops=stops,
    )


def estimate_total(found: Sequence[float], *, sizes: Sequence[float], total: float, population: int) -> Estimate:
    """Estimate the total of a quantity over all partitions from its values in some of them and their sizes.

    Args:
        found: the quantity in each sampled partition.
        sizes: the size of each sampled partition.
        total: the size of all partitions.
        population: how many partitions there are.

    """
    values, weights = np.asarray(found, float), np.asarray(sizes, float)
    ratio = values.sum() / max(1.0, weights.sum())
    value, n = ratio * total, len(values)
    assert n <= population, f"{n} of {population} were sampled"
    if n == population:
        return Estimate(value=float(values.sum()), margin=0.0)
    if n == 1:
        return Estimate(value=value, margin=value)
    spread = math.sqrt(n / (n - 1) * float(np.square(values - ratio * weights).sum()))
    unseen = 1 - n / population
    return Estimate(value=value, margin=STUDENT_T[min(n - 2, 4)] * total / weights.sum() * spread * math.sqrt(unseen))


def _list_small_splits(
    job: Job, store: TokenStore, parts: Mapping[str, SplitPlan], *, is_complete: bool
) -> Iterator[str]:
    """Say which splits would have no window."""
    for name, part in parts.items():
        if part.windows.value >= 1:
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


def _free_bytes(folder: Path) -> int:
    """Return how many bytes are free on the disk of a folder that need not exist yet."""
    return shutil.disk_usage(next(one for one in (folder, *folder.absolute().parents) if one.exists())).free


class SplitPlan(NamedTuple):
    """What is expected of a split."""

    tokens: Estimate
    windows: Estimate
    padding: Estimate
    cut: Estimate


def _plan_split(job: Job, store: TokenStore, name: str, *, is_complete: bool, extend: Any) -> SplitPlan:
    """Estimate a split's tokens, windows, padding and cut documents."""
    stored = job.cut(store, name)
    stream, windows = stored.stream, stored.windows
    padding, cut = count_padding(windows), count_cut(windows)
    if is_complete:
        counts = (len(stream), len(windows), padding, cut)
        return SplitPlan(*(Estimate(value=float(count), margin=0.0) for count in counts))
    tokens = extend([chunk.tokens[name] for chunk in store.chunks])
    max_length = job.sections.window.max_length
    if job.sections.window.documents == "join":  # one segment: about one window per stride, and one padded window
        stride = job.sections.window.stride_tokens
        value = max(0.0, (tokens.value - max_length) / stride)
        half = max_length / 2 if windows.tail == "pad" else 0.0
        found = Estimate(value=value, margin=tokens.margin / stride)
        return SplitPlan(tokens, found, Estimate(value=half, margin=half), NONE)
    per_token = len(windows) / max(1, len(stream))
    documents = extend([chunk.num_documents[name] for chunk in store.chunks])
    empty = tokens.value * padding / max(1, len(stream))
    spread = empty * tokens.margin / max(1.0, tokens.value)
    if isinstance(windows, PackedWindows):  # each group has a last window that is not full
        groups = tokens.value / choose_group_tokens(max_length) + 1
        margins, long = groups, documents.value * cut / max(1, len(store.documents(name)[0]))
    else:  # each document has a tail
        margins, long = documents.margin, 0.0
    share = documents.margin / max(1.0, documents.value)
    return SplitPlan(
        tokens,
        Estimate(value=tokens.value * per_token, margin=tokens.margin * per_token + margins),
        Estimate(value=empty, margin=spread + margins * max_length),
        Estimate(value=long, margin=long * share + math.sqrt(long)),
    )


def _count_shards(job: Job, windows: Estimate) -> Estimate:
    """Estimate a split's shards. Their size depends on the number of windows too, so the margin is found by trial."""

    def count(num_windows: float) -> int:
        rounded = max(0, round(num_windows))
        return -(-rounded // job.layout.shard_size(rounded))

    value = count(windows.value)
    around = (count(windows.value - windows.margin), count(windows.value + windows.margin))
    return Estimate(value=value, margin=max(abs(value - other) for other in around))


def _encode_sample(job: Job, store: TokenStore, *, is_complete: bool) -> tuple[Estimate, int, float]:
    """Return bytes on disk per window, the bytes of a shard without windows, and seconds per window.

    A row group's part of the footer counts towards its windows.
    """
    sizes: list[int] = []
    counts: list[int] = []
    taken, groups = 0.0, 0
    window, compression = job.sections.window, job.layout.compression
    padded = window.tail == "pad"
    schema = shard_schema(window.max_length, padded=padded, packed=window.documents == "pack")
    empty = pa.BufferOutputStream()
    ShardWriter(empty, schema, compression=compression).close()
    per_shard = empty.getvalue().size
    one = np.zeros((1, job.sections.window.max_length + 1), np.int32)
    group_table(one, np.zeros(1, np.int64), np.ones(1, np.int32), padded=padded)  # the first call imports: not timed
    for name in store.splits():
        stored = job.cut(store, name)
        group = job.layout.windows_per_group
        in_split = -(-len(stored) // group)
        groups += in_split
        chosen = np.unique(np.linspace(0, in_split - 1, min(SAMPLED_GROUPS, in_split)).round().astype(int))
        sink = pa.BufferOutputStream()
        with ShardWriter(sink, schema, compression=compression) as writer:
            for first in chosen * group:  # complete row groups, each once: overlapping samples have no variance
                started = time.perf_counter()
                last = min(int(first) + group, len(stored))
                writer.write_table(group_table(*stored.read(int(first), last), padded=padded))
                taken += time.perf_counter() - started
                counts.append(last - int(first))
        content = sink.getvalue()
        metadata = pq.read_metadata(pa.BufferReader(content))
        written = [_stored_bytes(metadata.row_group(number)) for number in range(metadata.num_row_groups)]
        in_footer = (content.size - per_shard - sum(written)) // max(1, len(written))
        sizes += [size + in_footer for size in written]
    if not counts:
        return Estimate(value=0.0, margin=0.0), per_shard, 0.0
    rows = sum(counts)
    total = estimate_total(sizes, sizes=counts, total=rows, population=groups if is_complete else sys.maxsize)
    return Estimate(value=total.value / rows, margin=min(total.margin, total.value) / rows), per_shard, taken / rows


def _stored_bytes(group: pq.RowGroupMetaData) -> int:
    return sum(group.column(number).total_compressed_size for number in range(group.num_columns))


def _add(estimates: Sequence[Estimate]) -> Estimate:
    """Add estimates from one sample: their errors are correlated, so the margins add up."""
    return Estimate(value=sum(one.value for one in estimates), margin=sum(one.margin for one in estimates))
