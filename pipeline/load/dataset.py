"""The map-style twin of the loader: a window by its number, for torch's own DataLoader and the trainers built on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.load.reader import SplitReader
from pipeline.manifest import read_manifest
from pipeline.windows import IGNORED

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence


class WindowDataset(Dataset[dict[str, torch.Tensor]]):
    """Windows of one split by number: `{"input_ids": int64 [T], "target_ids": int64 [T]}`.

    `target_ids` is shifted already: do not hand it as `labels` to a model that shifts once more.
    """

    def __init__(self, path: str | os.PathLike[str], *, split: str = "train") -> None:
        self.manifest = read_manifest(path)
        self._reader = SplitReader(Path(path), self.manifest, split)

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, window: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([window])[0]

    def __getitems__(self, windows: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """Several windows in one gather."""
        numbers = np.asarray(windows, dtype=np.int64)
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(self)):
            raise IndexError(f"windows {numbers.min()} to {numbers.max()} of a split of {len(self)}")
        ids_BT1, _, lengths = self._reader.read(numbers)
        ids_BT1 = ids_BT1.astype(np.int64)
        inputs_BT, targets_BT = ids_BT1[:, :-1], ids_BT1[:, 1:]
        targets_BT = np.where(np.arange(targets_BT.shape[1]) < lengths[:, None], targets_BT, IGNORED)
        pairs = zip(torch.from_numpy(np.ascontiguousarray(inputs_BT)), torch.from_numpy(targets_BT), strict=True)
        return [{"input_ids": inputs, "target_ids": targets} for inputs, targets in pairs]
