"""Decoding in worker processes, for a training program whose own threads leave the loader's too little of the GIL.

Worker w of n reads what rank r + w W of n W ranks would read, so that together they decode no row group twice, and
hands over blocks of many batches as uint16 (int32 for large vocabularies): passing a small int64 tensor between
processes costs far more than decoding it. The parent lays the blocks' rows side by side again, so that its batches are
those of a loader without workers, and so is its state. Workers live as long as an iteration; with `spawn` or
`forkserver` each imports torch first, which takes seconds.

A plain `DataLoader(loader, batch_size=None, num_workers=n)` works too: worker w gives the batches t with t % n == w,
each as one narrow parcel that is a batch again when it arrives. But every worker then decodes every row group, and the
state of the loader in the parent does not move.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.loader.batch import to_int64
from pipeline.loader.prefetch import PrefetchUnit
from pipeline.loader.row_group import RowBatch, SampleIds

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from pipeline.loader.batch import Batch
    from pipeline.loader.prefetch import Prefetcher

CONTEXTS = ("fork", "spawn", "forkserver")


class WorkerBlocks(IterableDataset[Any]):
    """What one worker hands over: its part of each block, as narrow tensors."""

    def __init__(self, blocks: Prefetcher, *, epoch: int, start: int, batches: int, workers: int) -> None:
        self.blocks, self.epoch, self.start = blocks, epoch, start
        self.batches, self.workers = -(-batches // workers), workers

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]]:
        info = get_worker_info()
        assert info is not None, "runs in a worker"
        world = self.blocks.world_size
        first = self.start + (self.blocks.rank - self.start) % world
        part = copy(self.blocks)
        part.rank, part.world_size = (first + info.id * world) % (world * self.workers), world * self.workers
        part.threads = max(1, self.blocks.threads // self.workers)
        for block in part.read(self.epoch, self.start, self.batches):
            if block.held is not None and block.held.error is not None:
                raise block.held.error
            ids, bounds = block.gathered
            counting = None if bounds is None else torch.from_numpy(bounds)
            yield _to_tensor(ids), counting, torch.from_numpy(block.window_ids)


def worker_blocks(
    blocks: Prefetcher, epoch: int, start: int, batches: int, *, workers: int, context: str | None
) -> Generator[PrefetchUnit, None, None]:
    """The blocks of `blocks.read`, gathered by worker processes, which are started as `context` says."""
    width, size = blocks.reader.max_length + 1, blocks.batch_size
    dataset = WorkerBlocks(blocks, epoch=epoch, start=start, batches=batches, workers=workers)
    parts = iter(
        DataLoader(dataset, batch_size=None, num_workers=workers, collate_fn=_same, multiprocessing_context=context)
    )
    try:
        while batches > 0:
            round_ = [next(parts) for _ in range(workers)]
            rows = len(round_[0][0]) * workers
            ids = np.empty((rows, width), blocks.reader.dtype)
            window_ids = np.empty(rows, np.int64)
            bounds = None
            if any(part[1] is not None for part in round_):
                bounds = np.zeros((rows, 2), np.int32)
                bounds[:, 1] = width - 1
            for worker, (part_ids, part_bounds, part_window_ids) in enumerate(round_):
                ids[worker::workers] = part_ids.numpy().view(ids.dtype)
                window_ids[worker::workers] = part_window_ids.numpy()
                if bounds is not None and part_bounds is not None:
                    bounds[worker::workers] = part_bounds.numpy()
            yield PrefetchUnit(RowBatch(ids, bounds), window_ids, min(batches, rows // size))
            batches -= rows // size
    finally:
        del parts  # ends the processes


def make_parcel(gathered: RowBatch, rows: slice, *, names: SampleIds, end_of_text: int | None) -> Any:
    """RowInfo of a block on their way out of a worker of a plain DataLoader: unpickled, a parcel is a `Batch`."""
    bounds = None if gathered.bounds is None else gathered.bounds[rows]
    sources = None if names.sources is None else names.sources[rows]
    return Parcel((gathered.ids[rows], bounds, names.windows[rows], sources, end_of_text))


class Parcel:
    """A narrow batch that is widened where it is unpickled."""

    def __init__(self, parts: tuple[Any, ...]) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[Any, ...]]:
        return _unpack, self.parts


def _unpack(
    ids: np.ndarray,
    bounds: np.ndarray | None,
    window_ids: np.ndarray,
    source_ids: np.ndarray | None,
    end_of_text: int | None,
) -> Batch:
    names = SampleIds(window_ids, source_ids)
    return to_int64(RowBatch(ids, bounds), slice(0, len(ids)), names=names, end_of_text=end_of_text)


def _to_tensor(ids: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(ids.view(np.int16) if ids.dtype == np.uint16 else ids)


def _same(item: Any) -> Any:
    return item
