"""Windows between the readers and a batch: compact token IDs, and what is known about each window.

A buffered row group is flat: its windows start `pitch` tokens apart, so overlapping windows share memory as they do in
the text. By eye, windows of 4 tokens and the next token, pitch 2:

    buffered    a b c d e f g h i
    window 0    a b c d e
    window 1        c d e f g
    window 2            e f g h i
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from pipeline.base.permutation import Int64

if TYPE_CHECKING:
    from pipeline.packing import Segments

Count = TypeVar("Count", int, Int64)

# Convert this many tokens to int64 at once (512 KiB) and slice batches from them: allocating each batch separately
# costs a third of the throughput, and moves an embedding's output around in memory, out of the processor's cache.
INT64_TOKENS = 1 << 16


def batches_together(batch_size: int, max_length: int) -> int:
    """Return how many batches are converted at once."""
    return max(1, INT64_TOKENS // (batch_size * max_length))


class RowInfo(NamedTuple):
    """What a row group stores about its windows besides their IDs."""

    starts: np.ndarray  # int64 [B], each window's first token in its split's stream
    lengths: np.ndarray  # int32 [B], its real tokens
    ends: np.ndarray | None = None  # of packed windows: as in RowBatch


class RowBatch(NamedTuple):
    """Windows as rows, in the most compact type that the vocabulary allows."""

    ids: np.ndarray  # uint16 or int32 [B, L + 1]: the inputs and the next token
    bounds: np.ndarray | None  # int32 [B, 2]: the targets from .. to count; None: all do
    # uint8 [B, L // 8 + 1], of packed windows: a bit for each input, set if its document ends with it, so that its
    # target does not count, and one more, set if the window is packed (in a mixture, others are not). The lowest bit of
    # a byte comes first (`unpack_ends`). None: no window is packed.
    ends: np.ndarray | None = None


class GroupMemory(NamedTuple):
    """A decoded row group."""

    tokens: np.ndarray  # flat, of the reader's dtype
    bounds: np.ndarray | None  # int32 [B, 2], as in RowBatch
    ends: np.ndarray | None  # uint8 [B, L // 8 + 1], as in RowBatch


class StartAndEnd(int):
    """The ID of an end-of-text token that starts each document, too (`tokenizer.bos`)."""


class DocumentRule(NamedTuple):
    """How documents are told apart, and what a reader does with that."""

    end_of_text: int | None  # `StartAndEnd` if the same token starts documents, too; None: all rows are packed
    ids: bool = True  # batches say where their documents are
    score_starts: bool = True  # a document's first token is a target that counts


class SampleIds(NamedTuple):
    """Which windows are in a batch."""

    windows: np.ndarray  # int64 [B]: each window's number in its split, -1 for a row that only fills a batch
    sources: np.ndarray | None = None  # int64 [B]: in a mixture, the number of each window's data set


def pack_ends(segments: Segments, *, max_length: int) -> np.ndarray:
    """Return the bits of `RowBatch.ends`: uint8 [B, L // 8 + 1]."""
    bits_BT1 = np.zeros((len(segments.ends), max_length + 1), np.uint8)
    bits_BT1[np.divmod(segments.last_positions(max_length), max_length)] = 1
    bits_BT1[:, max_length] = 1
    return np.packbits(bits_BT1, axis=1, bitorder="little")


def find_ends(ends_BE: np.ndarray, *, max_length: int) -> np.ndarray:
    """Return where documents end by these bits, as positions in the flattened rows: int64, ascending.

    >>> find_ends(np.array([[0b00000101, 0b1], [0b10, 0b1]], np.uint8), max_length=8)
    array([0, 2, 9])
    """
    bits_BT = np.unpackbits(ends_BE, axis=1, count=max_length, bitorder="little")
    return np.flatnonzero(bits_BT.view(bool))  # a tenth of the time that it takes for numbers


def choose_pitch(*, max_length: int, stride: int, order: str, documents: str) -> int:
    """Return the tokens between the starts of two buffered windows.

    Windows that are stored in the order of one text and skip none of it are buffered as that text.
    """
    one_text = order == "sequential" and documents == "join" and stride <= max_length
    return stride if one_text else max_length + 1


def count_slot_tokens(windows: Count, *, pitch: Count, max_length: int) -> Count:
    """Return the tokens that this many buffered windows take; of one row group, or of several, int64 [G]."""
    return (windows - 1) * pitch + max_length + 1


def view_windows(tokens: np.ndarray, *, pitch: int, max_length: int) -> np.ndarray:
    """Return buffered tokens as windows, [B, L + 1]. Nothing is copied, and overlapping windows share memory."""
    windows: np.ndarray = np.lib.stride_tricks.sliding_window_view(tokens, max_length + 1, writeable=True)[::pitch]
    return windows
