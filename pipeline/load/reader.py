"""Windows by their numbers: the row groups that hold them are decoded once, and kept while they are used."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from pipeline.shard_format import open_shard, read_group

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.manifest import Manifest

CACHE_TOKENS = 1 << 26  # 256 MiB of int32


class SplitReader:
    """Random access to the windows of one split of a data set.

    Row groups are numbered through all shards, in stored order. About `CACHE_TOKENS` tokens of decoded row groups are
    kept, the least recently used given up first.

    Raises:
        ValueError: the data set has no such split.

    """

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        if split not in manifest.splits:
            raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(manifest.splits)}")
        entry = manifest.splits[split]
        self.folder = folder
        self.split = split
        self.max_length = entry.max_length
        self.groups = [count for shard in entry.shards for count in shard.row_groups]
        self._ends = np.cumsum(self.groups, dtype=np.int64)
        self._files = [(shard.path, group) for shard in entry.shards for group in range(len(shard.row_groups))]
        self._decoded: OrderedDict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = OrderedDict()
        self._keep = max(2, CACHE_TOKENS // (self.max_length * max(self.groups, default=1)))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Windows by number, int64 [B]: ids_BT1 int32 [B, L + 1], starts int64 [B], lengths int32 [B].

        Raises:
            OSError: a page's checksum does not match its bytes, or a shard is gone.

        """
        ids_BT1 = np.empty((len(windows), self.max_length + 1), np.int32)
        starts, lengths = np.empty(len(windows), np.int64), np.empty(len(windows), np.int32)
        groups = np.searchsorted(self._ends, windows, side="right")
        for group in np.unique(groups):
            here = np.flatnonzero(groups == group)
            rows = windows[here] - (self._ends[group] - self.groups[group])
            ids, start, length = self._group(int(group))
            ids_BT1[here], starts[here], lengths[here] = ids[rows], start[rows], length[rows]
        return ids_BT1, starts, lengths

    def _group(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if number in self._decoded:
            self._decoded.move_to_end(number)
            return self._decoded[number]
        path, group = self._files[number]
        with open_shard(self.folder / path) as file:
            decoded = read_group(file, group)
        self._decoded[number] = decoded
        if len(self._decoded) > self._keep:
            self._decoded.popitem(last=False)
        return decoded
