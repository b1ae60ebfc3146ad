"""The map-style twin of the loader: a window by its number, for torch's own DataLoader and the trainers built on it.

The row groups that were used last stay decoded, within a memory budget. A sampler that jumps around in more data than
fits pays the decoding of a row group (about a millisecond) for every window. The loader's own order does not, so use
`ShardLoader` if the framework allows it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from operator import index
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.base.display import html_table
from pipeline.loader.batch import convert_all
from pipeline.loader.disk_cache import open_cache
from pipeline.loader.readers import describe, document_rule, open_split
from pipeline.loader.row_group import RowBatch, SampleIds, view_windows
from pipeline.loader.row_group_cache import decode_group, ends_bytes, has_ends, slot_bytes
from pipeline.rules import MAX_COUNT, check_bool, check_choice, check_path, check_range, names_arguments
from pipeline.settings import CACHE_LIMIT, SPLITS

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from pipeline.loader.readers import Source
    from pipeline.loader.row_group import GroupMemory
    from pipeline.loader.shard_files import Fetch

MEMORY_BUDGET = 1 << 28  # 256 MiB, of each process


class WindowDataset(Dataset[dict[str, torch.Tensor]]):
    """The windows of one split by number: `{"input_ids": int64 [T], "target_ids": int64 [T]}`.

    `target_ids` is shifted already: do not pass it as `labels` to a model that shifts once more.

        x, y = next(iter(DataLoader(WindowDataset("outputs/shards/...", pairs=True), batch_size=8, shuffle=True)))

    Args:
        path: the data set's folder or URI, or windows of a token store that were never written (`StoreWindows`).
        split: `train` or `validation`.
        pairs: items are `(input_ids, target_ids)`, as teaching material has them.
        score: `new` turns targets that an earlier window has scored into -100.
        document_ids: items have `document_ids` and `position_ids` too, int64 [T], as a loader's batches have; not with
            `pairs`.
        score_document_starts: False turns targets that are a document's first token into -100.
        tokenizer: the expected one, as a manifest names it (`name`, `hash`); a data set of another one is refused.
        memory_budget: bytes of decoded row groups to keep, at most (one is always kept).
        cache_dir, cache_limit: as for a `ShardLoader`: where row groups are kept on a local disk, and how many bytes.

    It can be pickled: worker processes get it without the decoded row groups. Those that read an object store must be
    started by spawn: `DataLoader(..., multiprocessing_context="spawn")`.

    """

    @names_arguments
    def __init__(
        self,
        path: Source,
        *,
        split: str = "train",
        pairs: bool = False,
        score: str = "all",
        document_ids: bool = False,
        score_document_starts: bool = True,
        tokenizer: Mapping[str, Any] | None = None,
        memory_budget: int = MEMORY_BUDGET,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit: int = CACHE_LIMIT,
    ) -> None:
        memory_budget = check_range("memory_budget", memory_budget, 1, MAX_COUNT)
        cache = open_cache(
            None if cache_dir is None else check_path("cache_dir", cache_dir),
            check_range("cache_limit", cache_limit, 1, MAX_COUNT),
        )
        split = check_choice("split", split, SPLITS)
        self.reader = open_split(path, split, score=score, tokenizer=tokenizer, cache=cache)
        self.pairs = check_bool("pairs", pairs)
        self._document_rule = document_rule(
            self.reader,
            ids=check_bool("document_ids", document_ids),
            score_starts=check_bool("score_document_starts", score_document_starts),
        )
        if pairs and document_ids:
            raise ValueError("document_ids: items of pairs=True are (input_ids, target_ids); leave one of the two out")
        self._most = max(1, memory_budget // max(1, slot_bytes(self.reader)))
        self._cached: OrderedDict[int, GroupMemory] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.reader.groups.num_windows

    def __repr__(self) -> str:
        return f"WindowDataset({describe(self.reader)})"

    def _repr_html_(self) -> str:
        return html_table("WindowDataset", {"data": describe(self.reader)})

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and name in self.__dict__:
            raise AttributeError(f"WindowDataset.{name} is read-only; make a new WindowDataset with another {name}")
        super().__setattr__(name, value)

    @overload
    def __getitem__(self, window: int) -> dict[str, torch.Tensor]: ...

    @overload
    def __getitem__(self, window: slice) -> list[dict[str, torch.Tensor]]: ...

    def __getitem__(self, window: int | slice) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
        if isinstance(window, slice):
            return self.__getitems__(range(*window.indices(len(self))))
        if not hasattr(window, "__index__"):
            raise TypeError(f"WindowDataset: a window's number is a whole number, or a slice of them; got {window!r}")
        return self.__getitems__([index(window)])[0]

    def __getitems__(self, windows: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """Return several windows, gathered together: each row group that contains some of them is looked up once."""
        numbers = np.asarray(windows, dtype=np.int64)
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(self)):
            wrong = next(one for one in windows if not -len(self) <= one < len(self))
            raise IndexError(f"window {wrong}: this is a split of {len(self):,} windows, 0 to {len(self) - 1:,}")
        ids_BT1 = np.empty((len(numbers), self.reader.max_length + 1), self.reader.dtype)
        bounds_B2 = np.tile(np.array([0, self.reader.max_length], np.int32), (len(numbers), 1))
        ends_BE = np.zeros((len(numbers), ends_bytes(self.reader)), np.uint8) if has_ends(self.reader) else None
        groups, rows = self.reader.groups.locate(numbers)
        for group, memory in self._groups(np.unique(groups).tolist()):
            here = np.flatnonzero(groups == group)
            pitch = self.reader.pitch_of(group)
            ids_BT1[here] = view_windows(memory.tokens, pitch=pitch, max_length=self.reader.max_length)[rows[here]]
            if memory.bounds is not None:
                bounds_B2[here] = memory.bounds[rows[here]]
            if ends_BE is not None and memory.ends is not None:
                ends_BE[here] = memory.ends[rows[here]]
        batch = convert_all(RowBatch(ids_BT1, bounds_B2, ends_BE), SampleIds(numbers), self._document_rule)
        if self.pairs:
            return list(zip(*batch, strict=True))  # type: ignore[arg-type]  # not what most callers meet
        names = ["input_ids", "target_ids", *(["document_ids", "position_ids"] if batch.documents is not None else [])]
        columns = [batch[name] for name in names]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def _groups(self, groups: list[int]) -> Iterator[tuple[int, GroupMemory]]:
        """Yield row groups; where each costs a request, several are asked for at once."""
        at_once = self.reader.requests
        if not at_once:
            yield from ((group, self._group(group)) for group in groups)
            return
        for start in range(0, len(groups), at_once):
            here = groups[start : start + at_once]
            with ThreadPoolExecutor(len(here)) as pool:
                missing = {group: pool.submit(self.reader.fetch, group) for group in here if group not in self._cached}
                yield from ((group, self._group(group, missing.get(group))) for group in here)

    def _group(self, group: int, fetched: Fetch | None = None) -> GroupMemory:
        with self._lock:  # two threads would decode the same row group, and cache more than the budget allows
            if group in self._cached:
                self._cached.move_to_end(group)
            else:
                if len(self._cached) == self._most:
                    self._cached.popitem(last=False)
                self._cached[group] = decode_group(self.reader, group, fetched=fetched)
            return self._cached[group]
