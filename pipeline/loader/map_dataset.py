"""The map-style twin of the loader: a window by its number, for torch's own DataLoader and the trainers built on it.

The row groups that were used last are kept decoded, within a memory budget. With a sampler that jumps about in more
data than fits, every window costs the decoding of a row group (about a millisecond): the loader's own order does not,
so use `ShardLoader` where the framework allows it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.loader.batch import ignore_targets
from pipeline.loader.readers import open_split
from pipeline.loader.row_group import view_windows
from pipeline.loader.row_group_cache import decode_group, slot_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.loader.readers import Source

MEMORY_BUDGET = 1 << 28  # 256 MiB, of each process


class WindowDataset(Dataset[dict[str, torch.Tensor]]):
    """Windows of one split by number: `{"input_ids": int64 [T], "target_ids": int64 [T]}`.

    `target_ids` is shifted already: do not hand it as `labels` to a model that shifts once more.

    Args:
        path: the data set's folder, or windows of a token store that were never written (`StoreWindows`).
        split: `train` or `validation`.
        score: `new` turns targets that an earlier window has scored into -100.
        tokenizer: the expected one, as a manifest names it (`name`, `hash`); a data set of another one is refused.
        memory_budget: bytes of decoded row groups that are kept, at most (one is always kept).

    It can be pickled: worker processes get it without what is kept in memory.

    """

    def __init__(
        self,
        path: Source,
        *,
        split: str = "train",
        score: str = "all",
        tokenizer: Mapping[str, Any] | None = None,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        self.reader = open_split(path, split, score=score, tokenizer=tokenizer)
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.reader.groups, dtype=np.int64)])
        self._keep = max(1, memory_budget // max(1, slot_bytes(self.reader)))
        self._kept: OrderedDict[int, tuple[np.ndarray, np.ndarray | None]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, window: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index(window)])[0]

    def __getitems__(self, windows: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """Several windows in one gather: each row group that holds some of them is looked up once."""
        numbers = np.asarray(windows, dtype=np.int64)
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(self)):
            raise IndexError(f"windows {min(windows)} to {max(windows)} of a split of {len(self)}")
        ids_BT1 = np.empty((len(numbers), self.reader.max_length + 1), np.int64)
        bounds_B2 = np.tile(np.array([0, self.reader.max_length], np.int32), (len(numbers), 1))
        groups = np.searchsorted(self._starts, numbers, side="right") - 1
        for group in np.unique(groups).tolist():
            here = np.flatnonzero(groups == group)
            rows = numbers[here] - self._starts[group]
            tokens, held_B2 = self._group(group)
            held_BT1 = view_windows(tokens, step=int(self.reader.steps[group]), max_length=self.reader.max_length)
            ids_BT1[here] = held_BT1[rows]
            if held_B2 is not None:
                bounds_B2[here] = held_B2[rows]
        inputs_BT = torch.from_numpy(ids_BT1[:, :-1].copy())  # always a copy: targets are overwritten below
        targets_BT = torch.from_numpy(ids_BT1[:, 1:].copy())
        ignore_targets(targets_BT, torch.from_numpy(bounds_B2))
        pairs = zip(inputs_BT, targets_BT, strict=True)
        return [{"input_ids": inputs, "target_ids": targets} for inputs, targets in pairs]

    def _group(self, group: int) -> tuple[np.ndarray, np.ndarray | None]:
        with (
            self._lock
        ):  # one thread at a time decodes: two would decode the same, and keep more than the budget allows
            if group in self._kept:
                self._kept.move_to_end(group)
            else:
                if len(self._kept) == self._keep:
                    self._kept.popitem(last=False)
                self._kept[group] = decode_group(self.reader, group)
            return self._kept[group]
