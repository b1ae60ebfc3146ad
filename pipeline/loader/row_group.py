"""Windows as they flow from the readers to a batch: token IDs, narrow, and what is known of each window.

A row group is held flat: its windows begin `step` tokens apart, so those that overlap share memory, as they do in the
text. By eye, windows of 4 tokens and the target beyond them, stride 2:

    held        a b c d e f g h i
    window 0    a b c d e
    window 1        c d e f g
    window 2            e f g h i
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np

from pipeline.base.permutation import Int64

Count = TypeVar("Count", int, Int64)


class RowInfo(NamedTuple):
    """What one row group says of its windows besides their IDs."""

    starts: np.ndarray  # int64 [B], each window's first token in its split's stream
    lengths: np.ndarray  # int32 [B], its real tokens


class RowBatch(NamedTuple):
    """Windows side by side, as narrow as the vocabulary allows."""

    ids: np.ndarray  # uint16 or int32 [B, L + 1]: inputs, and the one target beyond them
    bounds: np.ndarray | None  # int32 [B, 2]: which targets count, from .. to; None: all


class SampleIds(NamedTuple):
    """What the windows of a block are called."""

    windows: np.ndarray  # int64 [B]: each window's number in its split, -1 for a row that only fills a batch
    sources: np.ndarray | None = None  # int64 [B]: of a mix, the number of each window's data set


def choose_pitch(*, max_length: int, stride: int, order: str, documents: str) -> int:
    """Tokens from the beginning of a held window to that of the next one.

    Where windows are stored in the order of one text and leave none of it out, they are held as that text.
    """
    one_text = order == "sequential" and documents == "join" and stride <= max_length
    return stride if one_text else max_length + 1


def count_slot_tokens(windows: Count, *, step: Count, max_length: int) -> Count:
    """Tokens that so many windows take, held `step` tokens apart; of one row group, or of all together, int64 [G]."""
    return (windows - 1) * step + max_length + 1


def view_windows(tokens: np.ndarray, *, step: int, max_length: int) -> np.ndarray:
    """Held tokens as windows, [B, L + 1]; nothing is copied, and what overlaps shares its memory."""
    windows: np.ndarray = np.lib.stride_tricks.sliding_window_view(tokens, max_length + 1, writeable=True)[::step]
    return windows
