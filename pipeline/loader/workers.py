"""Decode in worker processes, for a training program whose own threads leave the loader's too little of the GIL.

Each worker reads a part of the rank's batches (`RankSlice.split`), lanes of its own if possible, so that together they
decode no row group twice. It sends prefetch units as uint16 (int32 for large vocabularies): passing a small int64
tensor between processes costs far more than decoding it. The parent puts the units' rows in order, so that its batches
and its state are those of a loader without workers. Workers live as long as an iteration; with `spawn` or `forkserver`
each imports torch first, which takes seconds.

A plain `DataLoader(loader, batch_size=None, num_workers=n)` works too: worker w yields the batches t with t % n == w,
each as one compact parcel that becomes a batch when it arrives. But every worker then decodes every row group, and the
state of the loader in the parent does not move.
"""

from __future__ import annotations

import multiprocessing.connection
import os
import threading
from copy import copy
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map

from pipeline.base.signals import restore_signals, signals_wait
from pipeline.loader.batch import Batch, convert_all, refuse_to_collate
from pipeline.loader.damage import Damage
from pipeline.loader.metrics import Counters
from pipeline.loader.prefetch import PrefetchUnit
from pipeline.loader.row_group import RowBatch, SampleIds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipeline.loader.division import RankSlice
    from pipeline.loader.mixture import Mixture
    from pipeline.loader.order import Order
    from pipeline.loader.prefetch import Prefetcher, Units
    from pipeline.loader.readers import Reader
    from pipeline.loader.row_group import DocumentRule

CONTEXTS = ("fork", "spawn", "forkserver")
WATCHER = "stridemill-parent"


def choose_context(context: str | None, reader: Reader) -> str | None:
    """Return how worker processes are started: not by a fork, if they read an object store.

    Raises:
        ValueError: `context` asks for a fork there.

    """
    if not reader.is_remote:
        return context
    if context == "fork":
        raise ValueError(
            "worker_context: the client of an object store hangs in a forked process; choose spawn or forkserver, or "
            "leave it out"
        )
    return context or "spawn"


def end_with_parent() -> None:
    """Let this worker process end within about a second of its parent, however that ends, and whatever it waits for.

    With `forkserver` the parent is not the process that forked this one; with `fork` later workers inherit the pipe
    whose end would tell. So both are watched.
    """
    parent, forked_by = multiprocessing.parent_process(), os.getppid()
    if parent is None or any(thread.name == WATCHER for thread in threading.enumerate()):
        return

    def watch() -> None:
        while not multiprocessing.connection.wait([parent.sentinel], timeout=1) and os.getppid() == forked_by:
            pass
        os._exit(1)  # the other threads may wait for ever

    threading.Thread(target=watch, name=WATCHER, daemon=True).start()


# Of a unit: IDs, bounds, window numbers, what could not be read, and the counts of row groups and bytes so far.
Maybe: TypeAlias = torch.Tensor | None
Part: TypeAlias = tuple[torch.Tensor, Maybe, Maybe, torch.Tensor, "Damage | None", tuple[int, int, int]]


class WorkerUnits(IterableDataset[Any]):
    """What one worker sends: its part of each prefetch unit, as compact tensors."""

    def __init__(
        self, prefetcher: Prefetcher, order: Order | Mixture, *, epoch: int, start: int, batches: int, workers: int
    ) -> None:
        self.prefetcher, self.order, self.epoch, self.start = prefetcher, order, epoch, start
        self.parts = prefetcher.part.split(workers)
        self.batches = -(-batches * prefetcher.part.global_batch // self.parts[0].global_batch)  # of a worker

    def __iter__(self) -> Iterator[Part]:
        info = get_worker_info()
        assert info is not None, "runs in a worker"
        restore_signals()  # it was forked while they were waiting
        end_with_parent()
        own = copy(self.prefetcher)
        own.part = self.parts[info.id]
        own.counters = Counters()  # of this worker alone, also where it was forked
        own.documents = None  # found by the parent
        own.threads = max(1, own.threads // len(self.parts))
        for unit in own.read(self.order, self.epoch, self.start, self.batches):
            assert unit is not None, "None answers a move alone"
            ids, bounds, ends = unit.rows
            yield (
                torch.from_numpy(ids.view(np.int16) if ids.dtype == np.uint16 else ids),
                None if bounds is None else torch.from_numpy(bounds),
                None if ends is None else torch.from_numpy(ends),
                torch.from_numpy(unit.window_ids),
                unit.damage,
                (own.counters.row_groups_decoded, own.counters.bytes_decoded, own.counters.row_groups_cached),
            )


def read_in_workers(
    prefetcher: Prefetcher,
    order: Order | Mixture,
    *,
    epoch: int,
    start: int,
    batches: int,
    workers: int,
    context: str | None,
) -> Units:
    """Yield the units of `prefetcher.read`, gathered by worker processes, which are started as `context` says."""
    width, size, dtype = prefetcher.reader.max_length + 1, prefetcher.batch_size, prefetcher.reader.dtype
    dataset = WorkerUnits(prefetcher, order, epoch=epoch, start=start, batches=batches, workers=workers)
    loader = DataLoader(
        dataset, batch_size=None, num_workers=workers, collate_fn=_same, multiprocessing_context=context
    )
    counters, counted, parts = prefetcher.counters, np.zeros(3, np.int64), None
    try:
        with signals_wait():
            parts = iter(loader)
        while batches > 0:
            received = [next(parts) for _ in range(workers)]
            now = np.array([part[-1] for part in received], np.int64)
            counters.add(*(now.sum(axis=0) - counted)[:2].tolist())
            counted, counters.in_workers = now.sum(axis=0), now[:, 2].tolist()
            rows = sum(len(part[0]) for part in received)
            ids = np.empty((rows, width), dtype)
            window_ids = np.empty(rows, np.int64)
            bounds, damage = None, None
            if any(part[4] is not None for part in received):
                damage = Damage(np.full(rows, -1), {})
            if any(part[1] is not None for part in received):
                bounds = np.zeros((rows, 2), np.int32)
                bounds[:, 1] = width - 1
            ends = None if received[0][2] is None else np.empty((rows, received[0][2].shape[1]), np.uint8)
            rows_of = rows_of_workers(prefetcher.part, dataset.parts, start, rows // size)
            for to, (part_ids, part_bounds, part_ends, part_window_ids, part_damage, _) in zip(
                rows_of, received, strict=True
            ):
                ids[to] = part_ids.numpy().view(dtype)
                window_ids[to] = part_window_ids.numpy()
                if bounds is not None and part_bounds is not None:
                    bounds[to] = part_bounds.numpy()
                if damage is not None and part_damage is not None:
                    damage.groups[to] = part_damage.groups
                    damage.errors.update(part_damage.errors)
                if ends is not None and part_ends is not None:
                    ends[to] = part_ends.numpy()
            unit = RowBatch(ids, bounds, ends)
            documents = prefetcher.find_documents(unit)
            yield PrefetchUnit(unit, window_ids, min(batches, rows // size), damage, documents)
            batches -= rows // size
            start += rows // size * prefetcher.part.global_batch
    finally:
        counters.in_workers = ()
        del parts  # ends the processes


def rows_of_workers(part: RankSlice, parts: Sequence[RankSlice], start: int, batches: int) -> list[np.ndarray]:
    """Return where each worker's rows belong in the rank's next batches from an index: int64 [its rows] each."""
    steps = batches * part.global_batch // parts[0].global_batch
    indices = [one.indices(start, steps).ravel() for one in parts]
    row_of = np.argsort(np.argsort(np.concatenate(indices)))
    return np.split(row_of, np.cumsum([len(one) for one in indices])[:-1])


def make_parcel(rows: RowBatch, which: slice, *, samples: SampleIds, rule: DocumentRule | None) -> Any:
    """Return rows of a unit for their way out of a plain DataLoader's worker: unpickled, a parcel is a `Batch`."""
    sliced = (None if part is None else part[which] for part in (*rows, *samples))
    return Parcel((*sliced, rule))


class Parcel:
    """A compact batch that is converted to int64 where it is unpickled."""

    def __init__(self, parts: tuple[Any, ...]) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[Any, ...]]:
        return _unpack, self.parts


# Where torch's `default_collate` looks first.
default_collate_fn_map.update({Batch: refuse_to_collate, Parcel: refuse_to_collate})


def _unpack(*parts: Any) -> Batch:
    ids, bounds, ends, window_ids, source_ids, rule = parts
    return convert_all(RowBatch(ids, bounds, ends), SampleIds(window_ids, source_ids), rule)


def _same(item: Any) -> Any:
    return item
