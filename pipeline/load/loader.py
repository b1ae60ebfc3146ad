"""Shards to batches, in an order that is a pure function of the manifest, the seed and the epoch.

The whole state is one count: the samples of the epoch that all ranks together have received.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.load.batch import Batch
from pipeline.load.order import Order, default_block, num_batches, rank_positions, resolve_shuffle
from pipeline.load.reader import SplitReader
from pipeline.manifest import read_manifest
from pipeline.windows import IGNORED

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

STATE_FORMAT = 1


class ShardLoader:
    """Batches of one split of a data set.

    Args:
        path: the data set's folder.
        split: `train` or `validation`.
        batch_size: windows per batch of this rank, B.
        shuffle: `none`, `full`, `lanes`, or `auto`, which picks one of the last two by the data set's size.
        seed: of the order.
        lanes: places of the data set that a batch draws from under `lanes`; world sizes must divide it.
        drop_last: drop the last partial global batch; otherwise it is filled with rows whose targets are -100.
        rank, world_size: this process's place; from `torch.distributed` where it is initialised, else 0 of 1.

    Each iteration yields the batches that are left of the current epoch; the next one begins the next epoch.

    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: str = "train",
        batch_size: int = 8,
        shuffle: str = "auto",
        seed: int = 0,
        lanes: int = 64,
        drop_last: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        self.manifest = read_manifest(path)
        self.reader = SplitReader(Path(path), self.manifest, split)
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.rank, self.world_size = _place(rank, world_size)
        max_length = self.reader.max_length
        groups = self.reader.groups
        kind = resolve_shuffle(shuffle, num_windows=sum(groups), max_length=max_length)
        block = default_block(groups, max_length=max_length)
        self.order = Order(groups=groups, shuffle=kind, seed=seed, lanes=lanes, block=block)
        self.order.check_world_size(self.world_size)
        self.epoch = 0
        self.consumed = 0  # samples of this epoch that all ranks together have received

    def __len__(self) -> int:
        """Batches of a whole epoch, equal on all ranks."""
        return self._batches(len(self.order))

    def __iter__(self) -> Iterator[Batch]:
        """The batches that are left of this epoch."""
        step = self.batch_size * self.world_size
        while self._batches(len(self.order) - self.consumed):
            positions = rank_positions(
                self.consumed, self.batch_size, rank=self.rank, world_size=self.world_size, stop=len(self.order)
            )
            batch = self._batch(self.order.windows(positions, self.epoch))
            self.consumed += step
            yield batch
        self.set_epoch(self.epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch."""
        self.epoch, self.consumed = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: small, JSON-able, and valid for any world size and batch size."""
        return {"version": STATE_FORMAT, **self._identity(), "epoch": self.epoch, "consumed": self.consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another loader of the same data and order stood.

        Raises:
            ValueError: the state is of another data set, or of another order; the message names what differs.

        """
        for key, mine in {"version": STATE_FORMAT, **self._identity()}.items():
            if state.get(key) != mine:
                raise ValueError(
                    f"the state has {key}={state.get(key)!r}, this loader has {mine!r}: their orders differ"
                )
        self.epoch, self.consumed = state["epoch"], state["consumed"]

    def _identity(self) -> dict[str, Any]:
        order = self.order
        return {
            "fingerprint": self.manifest.fingerprint,
            "split": self.reader.split,
            "shuffle": order.shuffle,
            "seed": order.seed,
            "lanes": order.lanes,
            "block": order.block,
        }

    def _batches(self, samples: int) -> int:
        if samples <= 0:
            return 0
        return num_batches(samples, batch_size=self.batch_size, world_size=self.world_size, drop_last=self.drop_last)

    def _batch(self, windows: np.ndarray) -> Batch:
        ids_BT1, _, lengths = self.reader.read(windows)
        missing = self.batch_size - len(windows)
        inputs_BT = torch.from_numpy(np.pad(ids_BT1[:, :-1], ((0, missing), (0, 0))).astype(np.int64))
        targets_BT = torch.from_numpy(np.pad(ids_BT1[:, 1:], ((0, missing), (0, 0))).astype(np.int64))
        places_T = torch.arange(self.reader.max_length)
        targets_BT[places_T >= torch.from_numpy(np.pad(lengths, (0, missing)))[:, None]] = IGNORED
        window_ids = torch.from_numpy(np.pad(windows, (0, missing), constant_values=-1))
        return Batch(input_ids=inputs_BT, target_ids=targets_BT, window_ids=window_ids)


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise ValueError(f"give both rank and world_size, or neither; got rank={rank}, world_size={world_size}")
    if rank is None or world_size is None:
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to world_size - 1; got rank={rank}, world_size={world_size}")
    return rank, world_size
