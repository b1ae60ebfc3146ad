"""Read row groups of windows that were never written: each is cut from a token store when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pipeline.base.hashing import hash_json
from pipeline.loader.damage import DamagedRowGroup
from pipeline.loader.row_group import RowInfo, SampleIds, choose_pitch, pack_ends, view_windows
from pipeline.loader.token_ids import compact_dtype, end_of_text_id
from pipeline.packing import choose_group_tokens
from pipeline.rules import reject
from pipeline.settings import ShardsConfig, WindowConfig
from pipeline.shards.layout import choose_layout
from pipeline.shards.row_groups import divide_windows
from pipeline.tokens.chunk import DamagedChunk
from pipeline.tokens.store import open_store
from pipeline.windows import StoredWindows, cut_windows

if TYPE_CHECKING:
    import os
    from pathlib import Path
    from typing import Self

    from pipeline.loader.shard_files import Fetch


@dataclass(frozen=True, slots=True)
class StoreWindows:
    """Windows of a token store that were never written as shards.

    Args:
        store: the token store, `<cache>/stores/<id>.json`.
        window: how windows are cut.
        shards: the layout that shards of these windows would have.

    """

    store: str | os.PathLike[str]
    window: WindowConfig
    shards: ShardsConfig = field(default_factory=ShardsConfig)


class StoreReader:
    """The row groups of windows that were never written: each is cut from a token store when asked for.

    Args:
        path: the token store.
        window: how windows are cut.
        shards: the layout that shards of these windows would have.
        split: `train` or `validation`.
        score: see `loader/target_mask.py`.

    """

    def __init__(
        self,
        path: Path,
        window: WindowConfig,
        shards: ShardsConfig,
        *,
        split: str,
        score: str = "all",
        on_bad: str = "raise",
    ) -> None:
        if shards.order != "sequential":
            reject("shards.order", "windows of a token store are always in the text's order", shards.order)
        store = open_store(path)
        if split not in store.splits():
            raise ValueError(f"{path} has no split {split!r}; it has {', '.join(store.splits())}")
        joined, self.packed = window.documents == "join", window.documents == "pack"
        stream = store.stream(split, closed=not joined)
        documents = None if joined else store.documents(split)
        layout, group_tokens = choose_layout(window, shards), choose_group_tokens(window.max_length)
        self.path, self.store, self.closes_documents = path, store.id, not joined
        self.windows = cut_windows(window, num_tokens=len(stream), documents=documents, group_tokens=group_tokens)
        self.split, self.score, self.on_bad = split, score, on_bad
        self.tokenizer = store.tokenizer
        self.max_length, self.stride, self.documents = window.max_length, window.stride_tokens, window.documents
        self.layout = "sequential"
        self._pitch = choose_pitch(
            max_length=self.max_length, stride=self.stride, order=self.layout, documents=self.documents
        )
        per_group, per_shard = layout.windows_per_group, layout.shard_size(len(self.windows))
        self.groups = divide_windows(len(self.windows), per_group=per_group, per_shard=per_shard)
        self.dtype = compact_dtype(store.tokenizer["vocab_size"])
        shape = [self.max_length, self.stride, window.tail, self.documents]
        rule: list[str | int] = (
            [] if joined else ["end_of_text_is_target"]
        )  # since release 0.1.0, whose states are of other windows
        rule += [group_tokens] if self.packed else []
        self.fingerprint = hash_json([store.id, split, *shape, *rule, per_group, per_shard])
        self.padded = window.tail == "pad"
        self.end_of_text: int | None = store.tokenizer.get("end_of_text")
        self.requests = self.fetch_bytes = 0
        self.is_remote = False
        self._stored = StoredWindows(
            stream=stream, windows=self.windows, order="sequential", seed=0, pad_id=end_of_text_id(self)
        )

    def fetch(self, group: int) -> None:
        """Fetch nothing: a token store is on this machine."""

    def read_group(self, group: int, tokens: np.ndarray, fetched: Fetch | None = None) -> RowInfo:  # noqa: ARG002
        """Read a row group into `tokens`, flat, with its windows `pitch_of(group)` apart."""
        first = self.groups.first_window(group)
        try:
            found_BT1, starts, lengths, *segments = self._stored.read(first, first + self.groups[group])
        except DamagedChunk as error:
            raise DamagedRowGroup(f"{self.path}: row group {group} cannot be read: {error}") from error
        windows_BT1 = view_windows(tokens, pitch=self._pitch, max_length=self.max_length)
        old = self.max_length + 1 - self._pitch
        windows_BT1[0], windows_BT1[1:, old:] = found_BT1[0], found_BT1[1:, old:]  # each token once
        ends = pack_ends(*segments, max_length=self.max_length) if segments else None
        return RowInfo(starts, lengths, ends)

    def pitch_of(self, group: int) -> int:  # noqa: ARG002 - as above
        """Return the tokens between the starts of two windows of a row group in memory."""
        return self._pitch

    def read_last(self, group: int) -> tuple[int, int]:
        """Return the start and the length of a row group's last window."""
        last = self.groups.first_window(group) + self.groups[group] - 1
        starts, lengths = self.windows.locate(np.array([last]))
        return int(starts[0]), int(lengths[0])

    def source_of(self, group: int) -> tuple[Self, int]:
        """Return the data set of a row group, and its number there."""
        return self, group

    def sample_ids(self, windows: np.ndarray) -> SampleIds:
        """Return the windows' numbers in their data set."""
        return SampleIds(windows)
