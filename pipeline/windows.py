"""Sliding windows as arithmetic: how many there are, where each starts, and its tokens.

Window k of a segment of N tokens starts at `k * stride`. Its inputs are `ids[s : s + L]` and its targets the same one
token later, `ids[s + 1 : s + L + 1]`, so it needs L + 1 tokens and a segment has `max(0, ceil((N - L) / stride))`
windows: those of `range(0, N - L, stride)`. A token stream is one segment (windows cross documents), or each document
is a segment of its own (they do not). Nothing is stored for a window: any of them is found in O(log segments).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from pipeline.base.permutation import make_key, permute

if TYPE_CHECKING:
    from pipeline.settings import WindowConfig

Documents: TypeAlias = tuple[np.ndarray, np.ndarray]  # each one's first token in the stream and its tokens, int64 [D]


class TokenStream(Protocol):
    """The token IDs of one split, one after the other; `pipeline.tokens.store.TokenStream` in practice."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return token IDs [start, stop), 1-D."""

    def gather(self, starts: np.ndarray, width: int, *, out: np.ndarray, rows: np.ndarray) -> None:
        """Copy the `width` tokens from each of `starts`, int64 [B], into `out[rows]`, [B, width]."""


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


def cut_windows(window: WindowConfig, *, num_tokens: int, documents: Documents | None) -> Windows:
    """Return the windows of a split: of its `documents` if windows must not cross them, else of one segment."""
    if window.documents == "separate":
        assert documents is not None, "windows of separate documents need to know where these are"
        firsts, sizes = documents
    else:
        firsts, sizes = np.zeros(1, np.int64), np.array([num_tokens], np.int64)
    return Windows(
        firsts=firsts, sizes=sizes, max_length=window.max_length, stride=window.stride_tokens, tail=window.tail
    )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWindows:
    """The windows of a split in their stored order.

    Row i is window i under `order=sequential`, and window `permute(i)` under `shuffled`: an exact shuffle of all the
    split's windows, picked by `seed`, that is never stored.

    Args:
        stream: the split's token IDs.
        windows: how they are cut.
        order: `sequential` or `shuffled`.
        seed: of a shuffled order.
        pad_id: the ID after the real tokens of a window.

    """

    stream: TokenStream
    windows: Windows
    order: str
    seed: int
    pad_id: int

    def __len__(self) -> int:
        return len(self.windows)

    def numbers(self, first: int, last: int) -> np.ndarray:
        """Return the windows in rows [first, last), int64 [B]."""
        rows = np.arange(first, last, dtype=np.int64)
        return rows if self.order == "sequential" else permute(rows, len(self.windows), make_key(self.seed))

    def read(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows [first, last): `ids_BT1`, `starts` and `lengths`, as `read_windows` returns them."""
        if self.order == "sequential":
            return read_windows(self.stream, self.windows, first, last, pad_id=self.pad_id)
        return gather_windows(self.stream, self.windows, self.numbers(first, last), pad_id=self.pad_id)


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


def count_unused(windows: Windows, firsts: np.ndarray, counts: np.ndarray) -> dict[str, int]:
    """How many tokens, and how many documents as a whole, lie in none of a split's windows.

    Args:
        windows: of the split; one segment for all of it, or one for each document.
        firsts: int64 [documents], each document's first token in the split's stream.
        counts: int64 [documents], its tokens.

    """
    span = windows.max_length + 1
    in_segment = np.diff(windows.ends, prepend=0)
    last = np.maximum(in_segment - 1, 0) * windows.stride  # where the last window of each segment begins
    ends = np.where(in_segment > 0, np.minimum(last + span, windows.sizes), 0)  # behind its last target
    gaps = np.maximum(in_segment - 1, 0) * max(0, windows.stride - span)
    tokens = int((windows.sizes - ends + gaps).sum())
    if len(windows.sizes) == len(firsts) > 1:
        return {"tokens": tokens, "documents": int((in_segment == 0).sum())}
    (last,), (end,) = last, ends
    place = firsts % windows.stride
    in_gap = (firsts < last) & (place >= span) & (place + counts <= windows.stride)
    return {"tokens": tokens, "documents": int(((firsts >= end) | in_gap).sum())}
