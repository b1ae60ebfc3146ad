"""Read row groups of several data sets by number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.loader.row_group import RowInfo, SampleIds
from pipeline.loader.token_ids import check_tokenizer
from pipeline.shards.row_groups import JoinedRowGroups

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from pipeline.loader.fetched_shards import FetchedShard
    from pipeline.loader.shard_files import Fetch
    from pipeline.loader.shard_reader import ShardReader
    from pipeline.loader.store_reader import StoreReader


class MixtureReader:
    """The row groups of several data sets, numbered from the first data set to the last.

    Raises:
        ValueError: they differ in their tokenizer or `max_length`.

    """

    def __init__(self, readers: Sequence[ShardReader | StoreReader]) -> None:
        if not readers:
            raise ValueError("a mixture needs at least one data set; got an empty list")
        one = readers[0]
        for number, other in enumerate(readers):
            check_tokenizer(other.tokenizer, one.tokenizer, f"source {number} of the mixture")
            if other.max_length != one.max_length:
                raise ValueError(
                    f"source {number} of the mixture has windows of {other.max_length} tokens, source 0 of "
                    f"{one.max_length}: all windows of a batch have the same length"
                )
        self.readers = list(readers)
        self.split, self.tokenizer, self.max_length, self.dtype = one.split, one.tokenizer, one.max_length, one.dtype
        self.fingerprint = [reader.fingerprint for reader in readers]
        self.groups = JoinedRowGroups([reader.groups for reader in readers])
        self.padded, self.packed = any(one.padded for one in readers), any(one.packed for one in readers)
        self.score = one.score
        self.end_of_text = one.end_of_text
        self.requests = max(reader.requests for reader in readers)
        self.fetch_bytes = max(reader.fetch_bytes for reader in readers)
        self.is_remote = any(reader.is_remote for reader in readers)

    def fetch(self, group: int) -> FetchedShard | None:
        """Fetch a row group as the reader of its data set does."""
        reader, number = self.source_of(group)
        return reader.fetch(number)

    def read_group(self, group: int, tokens: np.ndarray, fetched: Fetch | None = None) -> RowInfo:
        """Decode a row group as the reader of its data set does."""
        reader, number = self.source_of(group)
        return reader.read_group(number, tokens, fetched)

    def source_of(self, group: int) -> tuple[ShardReader | StoreReader, int]:
        """Return the data set of a row group, and its number there."""
        source, number = self.groups.source_of(group)
        return self.readers[source], number

    def pitch_of(self, group: int) -> int:
        """Return the tokens between the starts of two windows of a row group in memory."""
        reader, number = self.source_of(group)
        return reader.pitch_of(number)

    def sample_ids(self, windows: np.ndarray) -> SampleIds:
        """Return the data sets of windows that are numbered through all, int64 [B], and their numbers there."""
        sources, numbers = self.groups.sources_of(windows)
        return SampleIds(numbers, sources)
