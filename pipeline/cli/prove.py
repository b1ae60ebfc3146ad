"""The stage `prove`: check what the loader promises, by running it on a data set.

1. An epoch contains each window exactly once, in every order.
2. All world sizes, batch sizes and resume points give one sequence of windows.
3. How well the windows are mixed, compared with a random order of the same windows.

Of a mixture, the first part checks that each window of a source comes as often as any other, and that the loader counts
what each source gave; there is no third part.

The first part reads a complete epoch in each order. The second reads the next two batches of every rank from each
resume point, or as many as the epoch still has, and compares them with the epoch of the first part. The third uses the
windows' positions in the text: the windows of a data set that is stored shuffled are numbered in shuffled order.
"""

from __future__ import annotations

import itertools
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.base.wording import counted
from pipeline.cli.sources import open_loader
from pipeline.loader.fetched_shards import REQUESTS
from pipeline.loader.mixture import Mixture
from pipeline.loader.order import Order
from pipeline.loader.readers import place_of
from pipeline.loader.shard_files import ShardFiles
from pipeline.shards.manifest import read_manifest

if TYPE_CHECKING:
    from pipeline import ShardLoader
    from pipeline.cli.config import ProveConfig
    from pipeline.settings import LoaderConfig

BATCH = 8
SHOWN_SOURCES = 9
SHUFFLES = ("none", "full", "lanes")


class BrokenPromiseError(ValueError):
    """The loader did not do what it promises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProveReport:
    """What was tried."""

    windows: int = 0
    compared: dict[str, int] = field(default_factory=dict)  # by order: the samples compared after a resume
    unproven: list[str] = field(default_factory=list)  # orders for which something failed, or nothing could be tried


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One order of one data set, or of the mixture of `loader.sources`."""

    path: str
    loader: LoaderConfig
    shuffle: str
    epoch: int

    def open(self, **options: Any) -> ShardLoader:
        """Open a loader at the start of the epoch, which it reads to the last window."""
        given = {"shuffle": self.shuffle, "drop_last": False, "batch_size": 8, "step_size": None, "on_bad": "raise"}
        loader = open_loader(self.path, self.loader, **given | options)
        loader.set_epoch(self.epoch)
        return loader


def prove_loader(path: str, *, loader: LoaderConfig, prove: ProveConfig) -> ProveReport:
    """Try each order and print what was found.

    Raises:
        ValueError: there is no such data set or split.

    """
    windows = len(Case(path=path, loader=loader, shuffle="none", epoch=0).open().order)
    compared: dict[str, int] = {}
    unproven = []
    print("prove")
    for shuffle in prove.shuffles or SHUFFLES:
        case = Case(path=path, loader=loader, shuffle=shuffle, epoch=prove.epoch)
        try:
            case.open()
        except ValueError as error:  # the memory budget does not allow it
            _say(shuffle, f"not tried: {error}")
            unproven += [shuffle] if prove.shuffles else []
            continue
        try:
            epoch = prove_shares(case) if loader.sources else prove_once(case)
            compared[shuffle] = prove_resume(case, epoch, prove)
            if not loader.sources:
                chosen = np.sort(epoch)  # all windows, or those of loader.limit and loader.exclude
                starts, stops = window_spans(path, loader.split)
                show_quality(shuffle, np.searchsorted(chosen, epoch), (starts[chosen], stops[chosen]))
        except BrokenPromiseError as error:
            _say(shuffle, f"FAILED: {error}")
            unproven.append(shuffle)
        except (ValueError, OSError) as error:
            _say(shuffle, f"the data set cannot be read: {error}")
            unproven.append(shuffle)
        else:
            unproven += [] if compared[shuffle] else [shuffle]
    return ProveReport(windows=windows, compared=compared, unproven=unproven)


def prove_once(case: Case) -> np.ndarray:
    """Read an epoch, check that each window occurs once, and return the windows in the epoch's order."""
    loader = case.open()
    windows = read_batches(loader, len(loader))
    windows = windows[windows >= 0]
    order = loader.order
    assert isinstance(order, Order), "one data set"
    expected = selected_windows(order)
    counts = np.bincount(windows, minlength=order.stored.num_windows)
    times = np.zeros(len(counts), np.int64)
    times[expected] = 1
    wrong = np.flatnonzero(counts != times)
    if len(wrong):
        raise BrokenPromiseError(f"epoch {case.epoch} has window {wrong[0]} {counts[wrong[0]]} times")
    _say(case.shuffle, f"epoch {case.epoch} contains each of {counted(len(windows), 'window')} once")
    return windows


def selected_windows(order: Order) -> np.ndarray:
    """Return the stored windows that an order has: all, or those of `loader.limit` and `loader.exclude`; int64 [N]."""
    numbers = np.arange(len(order))
    return numbers if order.selection is None else order.selection.stored(numbers)


def prove_shares(case: Case) -> np.ndarray:
    """Read an epoch of a mixture, check what each source gave, and return the windows, numbered through all sources."""
    loader = case.open()
    order, before = loader.order, np.array(loader.source_samples)
    assert isinstance(order, Mixture), "several sources"
    windows = read_batches(loader, len(loader))
    sources = np.searchsorted(order.offsets, windows, side="right") - 1
    counts = np.bincount(sources, minlength=len(order.orders))
    if not np.array_equal(counts, np.array(loader.source_samples) - before):
        raise BrokenPromiseError(f"the sources gave {counts.tolist()} samples, which source_samples does not say")
    for source, one in enumerate(order.orders):
        counted_windows = np.bincount(
            windows[sources == source] - order.offsets[source], minlength=one.stored.num_windows
        )
        times = counted_windows[selected_windows(one)]
        if times.sum() < counted_windows.sum():
            raise BrokenPromiseError(f"source {source} gave a window that loader.limit or loader.exclude leaves out")
        # An epoch of the mixture starts and ends within an epoch of the source, where rows are ahead of one another.
        ahead = 0 if order.num_rows == 1 else -(-4 * (1 + len(counts)) * order.num_rows // len(one))
        if times.max() - times.min() > 2 + ahead:
            raise BrokenPromiseError(f"source {source} gave a window {times.max()} times, another {times.min()} times")
    shown = ", ".join(f"{count:,}" for count in counts[:SHOWN_SOURCES].tolist())
    more = f" and {len(counts) - SHOWN_SOURCES} more" if len(counts) > SHOWN_SOURCES else ""
    _say(case.shuffle, f"epoch {case.epoch} has {counted(len(windows), 'sample')} of the sources: {shown}{more}")
    return windows[: len(order)]  # its last batch goes on into the next epoch


def prove_resume(case: Case, epoch: np.ndarray, prove: ProveConfig) -> int:
    """Resume at several points with every world size and compare with the epoch; return how many samples."""
    sizes = list(dict.fromkeys(prove.world_sizes))
    points = np.unique(np.linspace(0, len(epoch) - 1, prove.stops, dtype=int)).tolist()
    compared = sum(
        compare_rest(case, epoch, start=start, world_size=world_size, batch_size=batch_size)
        for start, world_size, batch_size in itertools.product(points, sizes, (1, BATCH))
    )
    what = f"{_world_sizes(sizes)}, batches of 1 and {BATCH}, resumed at {counted(len(points), 'point')}"
    _say(case.shuffle, f"{what}: one sequence ({counted(compared, 'sample')} compared)")
    return compared


def compare_rest(case: Case, epoch: np.ndarray, *, start: int, world_size: int, batch_size: int) -> int:
    """Resume at one point and read two batches on every rank, or to the epoch's end; return how many samples."""
    global_batch = world_size * batch_size
    at_start = case.open()
    batches = min(2, -(-(len(epoch) - start) // global_batch))
    if at_start.order.endless:  # a mixture's last batch goes on into its next epoch
        batches = min(2, (len(epoch) - start) // global_batch)
    if not batches:
        return 0
    remaining = epoch[start : start + batches * global_batch]
    consumed = at_start.consumed + start
    state = {**at_start.state_dict(), "consumed": consumed}
    if at_start.order.endless:  # the first step of its epoch may start after the epoch does
        state["epoch"] = at_start.order.next_epoch(case.epoch, consumed)[0]
    received = np.empty((world_size, batches, batch_size), np.int64)
    for rank in range(world_size):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of what these shapes cost, and of a schedule in their steps
            loader = case.open(rank=rank, world_size=world_size, batch_size=batch_size)
            loader.load_state_dict(state)
        windows = read_batches(loader, batches)
        received[rank] = windows.reshape(batches, batch_size) if len(windows) == batches * batch_size else -1
    expected = np.full(batches * global_batch, -1)  # -1: a row that only fills the epoch's last step
    expected[: len(remaining)] = remaining
    steps = received.transpose(1, 0, 2).reshape(batches, -1)  # which rank reads which window of a step is up to it
    if not np.array_equal(np.sort(steps), np.sort(expected.reshape(batches, -1))):
        raise BrokenPromiseError(
            f"{counted(world_size, 'rank')}, resumed at sample {start}, got other windows than remained"
        )
    return len(remaining)


def window_spans(path: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the span of its split's tokens that each window contains, from .. to, int64 [windows] each."""
    manifest = read_manifest(path)
    entry = manifest.splits[split]
    if manifest.windows["documents"] == "join" and manifest.windows["order"] == "sequential":
        starts = np.arange(entry.num_windows, dtype=np.int64) * entry.stride
        return starts, np.minimum(starts + entry.max_length, entry.num_tokens - 1)  # a padded tail is shorter
    files = ShardFiles(place_of(path), split)
    with ThreadPoolExecutor(REQUESTS) as pool:
        rows = list(pool.map(lambda group: files.read(group, with_ids=False)[2], range(len(files.groups))))
    starts, lengths = (np.concatenate(columns) for columns in zip(*(row[:2] for row in rows), strict=True))
    if manifest.windows["documents"] == "pack":  # several texts, which no other window has
        return starts, starts
    return starts, starts + lengths


def show_quality(shuffle: str, epoch: np.ndarray, spans: tuple[np.ndarray, np.ndarray]) -> None:
    """Print how well the windows are mixed, next to the same figures of a random order."""
    if len(epoch) < BATCH:
        _say(shuffle, f"{counted(len(epoch), 'window')}, fewer than a batch of {BATCH}, so mixing is not measured")
        return
    distance, pairs = measure(epoch, *spans)
    random_distance, random_pairs = measure(np.random.default_rng(0).permutation(len(epoch)), *spans)
    _say(
        shuffle,
        f"distance between neighbours, relative to chance: {distance:.2f} (random order: {random_distance:.2f}); "
        f"overlapping pairs in a batch of {BATCH}: {pairs:.3f} (random order: {random_pairs:.3f})",
    )


def measure(windows: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> tuple[float, float]:
    """Return the mean distance of neighbours in the text, 1.0 by chance, and the overlapping pairs of a batch."""
    total = len(windows)
    below = np.arange(1, total)  # windows before each gap between two starts
    across = below / total * 2 * (total - below) / (total - 1)  # the share of all pairs that the gap separates
    chance = float((np.diff(np.sort(starts)) * across).sum())
    distance = float(np.abs(np.diff(starts[windows])).mean()) / chance
    batches = windows[: total // BATCH * BATCH].reshape(-1, BATCH)
    first, after = starts[batches], stops[batches]
    pairs = sum(
        int((np.maximum(first[:, a], first[:, b]) < np.minimum(after[:, a], after[:, b])).sum())
        for a, b in itertools.combinations(range(BATCH), 2)
    )
    return distance, pairs / len(batches)


def read_batches(loader: ShardLoader, count: int) -> np.ndarray:
    """Return the windows of the next batches, int64; -1 for a row that only fills a batch.

    Those of a mixture are numbered through all sources.
    """
    found = [np.empty(0, np.int64)]
    epochs = itertools.repeat(loader) if loader.order.endless else [loader]
    for batch in itertools.islice(itertools.chain.from_iterable(epochs), count):
        windows = batch.window_ids.numpy()
        if isinstance(loader.order, Mixture) and batch.source_ids is not None:
            windows = windows + loader.order.offsets[batch.source_ids.numpy()]
        found.append(windows)
    return np.concatenate(found)


def _world_sizes(sizes: list[int]) -> str:
    return f"world size{'s' * (len(sizes) > 1)} {', '.join(map(str, sizes))}"


def _say(shuffle: str, what: str) -> None:
    print(f"  {shuffle:<8}  {' '.join(what.split())}", flush=True)
