"""Windows as they flow from the readers to a batch: rows of narrow IDs, and what is known of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class Rows(NamedTuple):
    """What one row group says of its windows besides their IDs."""

    starts: np.ndarray  # int64 [B], each window's first token in its split's stream
    lengths: np.ndarray  # int32 [B], its real tokens


class Gathered(NamedTuple):
    """Windows side by side, as narrow as the vocabulary allows."""

    ids: np.ndarray  # uint16 or int32 [B, L + 1]: inputs, and the one target beyond them
    bounds: np.ndarray | None  # int32 [B, 2]: which targets count, from .. to; None: all


class Names(NamedTuple):
    """What the windows of a block are called."""

    windows: np.ndarray  # int64 [B]: each window's number in its split, -1 for a row that only fills a batch
    sources: np.ndarray | None = None  # int64 [B]: of a mix, the number of each window's data set
