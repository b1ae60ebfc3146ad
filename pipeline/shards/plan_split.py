"""What is expected of a split: its tokens and windows, what is empty in them, and the documents that are cut."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from pipeline.packing import PackedWindows, choose_group_tokens
from pipeline.shards.estimate import NONE, Estimate
from pipeline.windows import count_cut, count_padding

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.shards.job import Job
    from pipeline.tokens.store import TokenStore


class SplitPlan(NamedTuple):
    """What is expected of a split."""

    tokens: Estimate
    windows: Estimate
    padding: Estimate
    cut: Estimate


def plan_split(
    job: Job, store: TokenStore, name: str, *, is_complete: bool, extend: Callable[[list[float]], Estimate]
) -> SplitPlan:
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


def count_shards(job: Job, windows: Estimate) -> Estimate:
    """Estimate a split's shards. Their size depends on the number of windows too, so the margin is found by trial."""

    def count(num_windows: float) -> int:
        rounded = max(0, round(num_windows))
        return -(-rounded // job.layout.shard_size(rounded))

    value = count(windows.value)
    around = (count(windows.value - windows.margin), count(windows.value + windows.margin))
    return Estimate(value=value, margin=max(abs(value - other) for other in around))
