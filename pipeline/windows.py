"""Sliding windows as arithmetic: how many there are, where each starts, and its tokens.

Window k of a segment of N tokens starts at `k * stride`. Its inputs are `ids[s : s + L]` and its targets the same one
token later, `ids[s + 1 : s + L + 1]`, so it needs L + 1 tokens and a segment has `max(0, ceil((N - L) / stride))`
windows: those of `range(0, N - L, stride)`. A token stream is one segment (windows cross documents), or each document
is a segment of its own (they do not). Nothing is stored for a window: any of them is found in O(log segments).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pipeline.permutation import make_key, permute

if TYPE_CHECKING:
    from pipeline.token_store import TokenStream

IGNORED = -100  # a target that counts in no loss: torch's cross_entropy skips it by default


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """The windows of a token stream.

    Args:
        firsts: int64 [segments], each segment's first token in the stream.
        sizes: int64 [segments], each segment's number of tokens.
        max_length: tokens per window, L.
        stride: tokens between the starts of two windows.
        tail: `drop` leaves out the rest of a segment that fills no window; `pad` makes one shorter window of it.

    """

    firsts: np.ndarray
    sizes: np.ndarray
    max_length: int
    stride: int
    tail: str = "drop"
    ends: np.ndarray = field(init=False)  # int64 [segments], windows up to and with each segment

    def __post_init__(self) -> None:
        counts = count_windows(self.sizes, max_length=self.max_length, stride=self.stride, tail=self.tail)
        object.__setattr__(self, "ends", np.cumsum(counts, dtype=np.int64))

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def locate(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where windows lie: their first tokens in the stream, int64 [B], and their real tokens, int32 [B].

        A window has `max_length` real tokens unless it is the padded tail of its segment.
        """
        segments = np.searchsorted(self.ends, windows, side="right")
        before = np.where(segments > 0, self.ends[segments - 1], 0)
        starts = self.firsts[segments] + (windows - before) * self.stride
        left = self.firsts[segments] + self.sizes[segments] - 1 - starts  # inputs that still have a target
        return starts, np.minimum(left, self.max_length).astype(np.int32)


def count_windows(sizes: np.ndarray, *, max_length: int, stride: int, tail: str = "drop") -> np.ndarray:
    """How many windows segments of so many tokens have, int64 [segments].

    `tail=pad` adds one where some token is a target of no full window: `ids[N - 1]` must be one.
    """
    full: np.ndarray = np.maximum(0, -((max_length - sizes) // stride))
    if tail == "drop":
        return full
    reach = np.where(full > 0, (full - 1) * stride + max_length, 0)  # the last target of the full windows
    padded: np.ndarray = full + ((reach < sizes - 1) & (full * stride < sizes - 1))
    return padded


def number_rows(first: int, last: int, num_windows: int, *, order: str, seed: int) -> np.ndarray:
    """The windows in rows [first, last) of a split as it is stored, int64 [B].

    Row i holds window i under `order=sequential`, and window `permute(i)` under `shuffled`: an exact shuffle of all the
    split's windows, picked by `seed`, that is never stored.
    """
    rows = np.arange(first, last, dtype=np.int64)
    return rows if order == "sequential" else permute(rows, num_windows, make_key(seed))


def read_rows(
    stream: TokenStream, windows: Windows, first: int, last: int, *, order: str, seed: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows [first, last) of a split as it is stored: `ids_BT1`, `starts` and `lengths`, as `read_windows` has them.

    `order` and `seed` mean what they mean for `number_rows`.
    """
    if order == "sequential":
        return read_windows(stream, windows, first, last, pad_id=pad_id)
    numbers = number_rows(first, last, len(windows), order=order, seed=seed)
    return gather_windows(stream, windows, numbers, pad_id=pad_id)


def read_windows(
    stream: TokenStream, windows: Windows, first: int, last: int, *, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens of windows [first, last) in one sequential read of the stream, which passes over large gaps.

    Returns:
        `ids_BT1`, int32 [B, L + 1], inputs and the one target beyond them, `pad_id` behind the real tokens; it may be a
        read-only view in which overlapping windows share memory. `starts`, int64 [B]; `lengths`, int32 [B], the real
        tokens of each window.

    """
    numbers = np.arange(first, last, dtype=np.int64)
    starts, lengths = windows.locate(numbers)
    width = windows.max_length + 1
    if int(starts[-1] - starts[0]) > 4 * len(starts) * width:  # mostly gaps: only what lies in a window is read
        return gather_windows(stream, windows, numbers, pad_id=pad_id)
    offsets = starts - starts[0]
    span = int(offsets[-1]) + width
    tokens = np.full(span, pad_id, dtype=np.int32)
    stop = min(int(starts[0]) + span, len(stream))
    tokens[: stop - int(starts[0])] = stream.read(int(starts[0]), stop)
    views_BT1 = np.lib.stride_tricks.sliding_window_view(tokens, width)
    ids_BT1 = views_BT1[:: windows.stride] if len(windows.firsts) == 1 else views_BT1[offsets]
    return _padded(ids_BT1, lengths, pad_id), starts, lengths


def gather_windows(
    stream: TokenStream, windows: Windows, numbers: np.ndarray, *, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens of any windows, int64 [B] in any order: what `read_windows` returns, row by row.

    The stream is read from its beginning to its end, whatever the order of `numbers`.
    """
    starts, lengths = windows.locate(numbers)
    width = windows.max_length + 1
    ids_BT1 = np.full((len(numbers), width), pad_id, dtype=np.int32)
    forward = np.argsort(starts, kind="stable")
    inside = forward[starts[forward] + width <= len(stream)]
    stream.gather(starts[inside], width, out=ids_BT1, rows=inside)
    for row in forward[len(inside) :]:  # padded tails at the stream's end
        rest = stream.read(int(starts[row]), len(stream))
        ids_BT1[row, : len(rest)] = rest
    return _padded(ids_BT1, lengths, pad_id), starts, lengths


def _padded(ids_BT1: np.ndarray, lengths: np.ndarray, pad_id: int) -> np.ndarray:
    """`pad_id` over all behind each window's real tokens and their last target: it belongs to another segment."""
    short = np.flatnonzero(lengths < ids_BT1.shape[1] - 1)
    if not len(short):
        return ids_BT1
    behind = np.arange(ids_BT1.shape[1]) > lengths[short, None]
    ids_BT1 = ids_BT1 if ids_BT1.flags.writeable else ids_BT1.copy()
    ids_BT1[short] = np.where(behind, pad_id, ids_BT1[short])
    return ids_BT1
