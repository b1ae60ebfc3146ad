"""Read row groups of windows by number from the shards of a data set.

Cost: a shard's footer is parsed once (0.5 ms for 250 row groups) and kept; opening the file again with it takes 20
microseconds. Decoding a row group of 2^18 tokens takes about 1.1 ms of one core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.loader.damage import DamagedRowGroup, check_files
from pipeline.loader.fetched_shards import REQUESTS
from pipeline.loader.row_group import RowInfo, SampleIds, choose_pitch, view_windows
from pipeline.loader.shard_files import ShardFiles
from pipeline.loader.token_ids import compact_dtype
from pipeline.windows import IGNORED

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from pipeline.loader.disk_cache import DiskCache
    from pipeline.loader.fetched_shards import FetchedShard
    from pipeline.loader.shard_files import Fetch


class ShardReader:
    """The row groups of one split of a data set in shards.

    Raises:
        ValueError: the data set has no such split.

    """

    def __init__(
        self,
        folder: Path | str,
        split: str,
        *,
        score: str = "all",
        on_bad: str = "raise",
        cache: DiskCache | None = None,
    ) -> None:
        self._files = ShardFiles(folder, split, cache=cache)
        manifest, entry = self._files.manifest, self._files.entry
        if not isinstance(folder, str):  # in an object store each would take a request: the first read says so
            check_files(folder, entry.shards, on_bad=on_bad)
        self.path = folder
        self.split, self.score, self.on_bad = split, score, on_bad
        self.fingerprint, self.store = manifest.fingerprint, manifest.store
        self.closes_documents: bool = manifest.windows.get("end_of_text_is_target", False)
        self.tokenizer = manifest.tokenizer
        self.max_length, self.stride = entry.max_length, entry.stride
        self.documents, self.layout = manifest.windows["documents"], manifest.windows["order"]
        self.groups = self._files.groups
        self.dtype = compact_dtype(manifest.tokenizer["vocab_size"])
        self._pitch = choose_pitch(
            max_length=self.max_length, stride=self.stride, order=self.layout, documents=self.documents
        )
        self.padded, self.packed = manifest.windows["tail"] == "pad", self.documents == "pack"
        self.end_of_text: int | None = manifest.windows.get("end_of_text")
        self.requests = 0 if self._files.fetched is None else REQUESTS
        self.fetch_bytes, self.is_remote = self._files.fetch_bytes, isinstance(folder, str)

    def fetch(self, group: int) -> FetchedShard | None:
        """Fetch a row group's bytes for `read_group`, if this reader has `requests` to make at once.

        Raises:
            OSError, ValueError: it cannot be read; `read_group` says so in the words of a user.

        """
        return self._files.fetch(group)

    def read_group(self, group: int, tokens: np.ndarray, fetched: Fetch | None = None) -> RowInfo:
        """Decode a row group into `tokens`, flat, with its windows `pitch_of(group)` apart.

        Give it what `fetch` returns, once it is there, or it fetches the row group itself.

        Raises:
            DamagedRowGroup: a shard is missing, a page's checksum does not match its bytes, or its content is not what
                the manifest says; the message names the file and the row group.
            OSError: the folder contains another data set than at the start, or this process may not read it.

        """
        inputs_BT, next_ids, rows = self._files.read(group, with_ids=True, fetched=fetched)
        assert inputs_BT is not None, "asked for with the IDs"
        if not len(inputs_BT):
            return rows
        next_ids = np.where(next_ids == IGNORED, 0, next_ids)  # after a padded tail: never a target that counts
        new = min(self._pitch, self.max_length)  # tokens of a window that the previous one does not have
        old = self.max_length - new
        if self._pitch <= self.max_length and not (
            (inputs_BT[1:, :old] == inputs_BT[:-1, new:]).all()
            and (inputs_BT[1:, old] == next_ids[:-1]).all()
            and (np.diff(rows.starts) == new).all()
        ):
            raise DamagedRowGroup(f"{self._files.name(group)} contains windows that are not of one text")
        parts = inputs_BT[0], inputs_BT[1:, old:], next_ids  # each token once, where windows overlap
        if max(int(part.view(np.uint32).max(initial=0)) for part in parts) >= self.tokenizer["vocab_size"]:
            # A negative ID is a huge one as uint32.
            raise DamagedRowGroup(f"{self._files.name(group)} contains IDs outside the vocabulary")
        windows_BT1 = view_windows(tokens, pitch=self._pitch, max_length=self.max_length)
        windows_BT1[0, :-1] = inputs_BT[0]
        windows_BT1[1:, old:-1] = inputs_BT[1:, old:]
        windows_BT1[:, -1] = next_ids
        return rows

    def pitch_of(self, group: int) -> int:  # noqa: ARG002 - those of a mixture differ
        """Return the tokens between the starts of two windows of a row group in memory."""
        return self._pitch

    def read_last(self, group: int) -> tuple[int, int]:
        """Return the start and the length of a row group's last window; no IDs are decoded."""
        rows = self._files.read(group, with_ids=False)[2]
        return int(rows.starts[-1]), int(rows.lengths[-1])

    def source_of(self, group: int) -> tuple[Self, int]:
        """Return the data set of a row group, and its number there."""
        return self, group

    def sample_ids(self, windows: np.ndarray) -> SampleIds:
        """Return the windows' numbers in their data set."""
        return SampleIds(windows)
