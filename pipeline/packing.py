"""Packing as arithmetic: whole documents in windows by best fit, from the documents' lengths alone.

A document is its tokens with the end-of-text token after them (and `tokenizer.bos` before them). One that fits into a
window is never cut. A longer one is cut into full windows, and what is left after them, its rest, is packed like a
document. So a window is a row of *segments*: complete documents, or one part of a long one.

Each token of a split is an input exactly once, and each token of a document but its first is a target exactly once. The
target of an input is the next token of its document. A document's last token, its end-of-text, has no next one: its
target is -100. In a full window of a document that continues, the last target is the first token of the document's next
window (`next_id`), as in windows that cross documents. By eye, `max_length` 6, a dot as the end-of-text token, an
underscore as padding and a star as -100:

    documents    abc.   fghijklmn.   de.   x.
    window 0     a b c . x .   ->   b c . * . *     4 + 2 tokens
    window 1     f g h i j k   ->   g h i j k l     the first 6 tokens of a document of 10
    window 2     l m n . _ _   ->   m n . * * *     its rest
    window 3     d e . _ _ _   ->   e . * * * *

Documents are packed in groups of consecutive ones: the first token of a document, divided by `group_tokens`, gives its
group. The windows of a group depend on its documents alone, and follow those of the group before. Within a group:

1. Best fit decreasing: take the documents and rests from the longest to the shortest, in the text's order where they
   are equal. Put each into the window with the least room that still holds it, or else into a new window. Of windows
   with equal room, one of those that came to it last is taken.
2. A window takes its place in the text's order by its longest segment. So neither the lengths of documents nor their
   number in a window has a trend within a group, and the windows of a long document follow one another.
3. The segments of a window are in the text's order.

Algorithm: documents of one length are placed together. The windows are kept by their room, as ranges of numbers, and a
sorted list of the rooms gives the best fit. The steps in Python are at most one for each length and each range that it
fills; all the rest is numpy's. Cost: 0.4 to 0.5 microseconds of one core for a document of 5,000 tokens, and 12 bytes
for each segment and 13 for each window.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP_TOKENS = 1 << 27  # a group has this many tokens where windows have 1,024 to 2,097,152 of them
GROUP_WINDOWS = (64, 131_072)  # the fewest and the most windows' worth of tokens in a group


class SpanStream(Protocol):
    """Where the token IDs of a split come from."""

    def copy_spans(self, starts: np.ndarray, sizes: np.ndarray, *, out: np.ndarray, at: np.ndarray) -> None:
        """Copy tokens [start, start + size) of each span to `out[at : at + size]`; `out` is flat."""


class Segments(NamedTuple):
    """The segments of some windows."""

    sizes: np.ndarray  # int32 [segments], tokens of each, in the windows' order
    ends: np.ndarray  # int64 [B], segments up to the end of each window
    continued: np.ndarray  # bool [B], the window is full, and its document continues in another one

    @property
    def lengths(self) -> np.ndarray:
        """The tokens of each window, int64 [B]."""
        stops = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.sizes, dtype=np.int64)])
        lengths: np.ndarray = np.diff(stops[self.ends], prepend=0)
        return lengths

    def last_positions(self, max_length: int) -> np.ndarray:
        """Return where documents end: int64, each the flat index of a position in [B, `max_length`]."""
        lengths, counts = self.lengths, np.diff(self.ends, prepend=0)
        shifts = np.arange(len(counts)) * max_length - (np.cumsum(lengths) - lengths)  # the padding of windows before
        lasts = np.cumsum(self.sizes, dtype=np.int64) - 1 + np.repeat(shifts, counts)
        return np.delete(lasts, self.ends[self.continued] - 1)


class PackedRows(NamedTuple):
    """Packed windows with their tokens."""

    ids: np.ndarray  # int32 [B, L + 1]: the inputs, and the next token where the document continues
    starts: np.ndarray  # int64 [B], each window's first token in the split's stream
    lengths: np.ndarray  # int32 [B], its real tokens
    segments: Segments


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWindows:
    """The packed windows of a token stream.

    Args:
        firsts: int64 [segments], each segment's first token in the stream; the segments of window 0 come first.
        sizes: int32 [segments], their tokens.
        ends: int64 [windows], segments up to the end of each window.
        lengths: int32 [windows], the real tokens of each.
        continued: bool [windows], the window is full, and its document continues in another one.
        max_length: tokens per window, L.
        num_cut: documents longer than a window.

    """

    firsts: np.ndarray
    sizes: np.ndarray
    ends: np.ndarray
    lengths: np.ndarray
    continued: np.ndarray
    max_length: int
    num_cut: int

    tail = "pad"  # the end of a window that no document fits into is padded

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def stride(self) -> int:
        """Packed windows do not overlap."""
        return self.max_length

    def locate(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first token of each window in the stream, int64 [B], and its number of real tokens, int32 [B]."""
        return self.firsts[self._begins(windows)], self.lengths[windows]

    def segments(self, windows: np.ndarray) -> tuple[Segments, np.ndarray]:
        """Return the segments of some windows, and the first token of each of them in the stream, int64."""
        begins = self._begins(windows)
        counts = self.ends[windows] - begins
        ends = np.cumsum(counts)
        chosen = np.repeat(begins - ends + counts, counts) + np.arange(ends[-1] if len(ends) else 0)
        return Segments(self.sizes[chosen], ends, self.continued[windows]), self.firsts[chosen]

    def count_padding(self) -> int:
        """Count the positions of all windows that have no token."""
        return len(self) * self.max_length - int(self.lengths.sum(dtype=np.int64))

    def _begins(self, windows: np.ndarray) -> np.ndarray:
        begins: np.ndarray = np.where(windows > 0, self.ends[windows - 1], 0)
        return begins


def choose_group_tokens(max_length: int) -> int:
    """Return the size of a group of documents.

    The more windows a group has, the less its last one counts; a large group takes memory, and mixes distant documents.
    """
    fewest, most = GROUP_WINDOWS
    return min(max(GROUP_TOKENS, fewest * max_length), most * max_length)


def pack_documents(firsts: np.ndarray, sizes: np.ndarray, *, max_length: int, group_tokens: int) -> PackedWindows:
    """Return the packed windows of documents, as the module's docstring defines them.

    Args:
        firsts: int64 [documents], each document's first token in the stream, ascending.
        sizes: int64 [documents], its tokens, end-of-text included.
        max_length: tokens per window, L.
        group_tokens: of the stream, for each group of documents.

    >>> firsts, sizes = np.array([0, 4, 14, 17]), np.array([4, 10, 3, 2])
    >>> windows = pack_documents(firsts, sizes, max_length=6, group_tokens=100)
    >>> windows.firsts.tolist(), windows.sizes.tolist(), windows.ends.tolist()
    ([0, 17, 4, 10, 14], [4, 2, 6, 4, 3], [2, 3, 4, 5])

    """
    parts = list(_pack_groups(firsts, sizes, max_length=max_length, group_tokens=group_tokens))
    columns = zip(*parts, strict=True) if parts else [[np.empty(0, np.int64)]] * 5
    all_firsts, all_sizes, counts, lengths, continued = (
        column[0] if len(column) == 1 else np.concatenate(column) for column in columns
    )
    return PackedWindows(
        firsts=all_firsts,
        sizes=all_sizes.astype(np.int32, copy=False),
        ends=np.cumsum(counts, dtype=np.int64),
        lengths=lengths.astype(np.int32, copy=False),
        continued=continued.astype(bool, copy=False),
        max_length=max_length,
        num_cut=int((sizes > max_length).sum()),
    )


def _pack_groups(
    firsts: np.ndarray, sizes: np.ndarray, *, max_length: int, group_tokens: int
) -> Iterator[tuple[np.ndarray, ...]]:
    at, total = 0, len(firsts)
    while at < total:
        border = (int(firsts[at]) // group_tokens + 1) * group_tokens
        stop = at + int(np.searchsorted(firsts[at:], border))
        yield _pack_group(firsts[at:stop], sizes[at:stop], max_length)
        at = stop


def _pack_group(firsts: np.ndarray, sizes: np.ndarray, max_length: int) -> tuple[np.ndarray, ...]:
    """Pack one group.

    Return firsts and sizes of its segments, and for each window its segments, tokens and `continued`.
    """
    full, rests = np.divmod(sizes, max_length)
    packed = np.flatnonzero(rests)  # documents with a rest, or shorter than a window
    rest_firsts, rest_sizes = firsts[packed] + full[packed] * max_length, rests[packed]
    bins, longest = pack_sizes(rest_sizes, max_length)
    # In the text's order, a document has its full windows, and then the one in which its rest is the longest segment.
    leading = packed[longest]
    windows_of = full.copy()
    windows_of[leading] += 1
    first_window = np.cumsum(windows_of) - windows_of
    place = first_window[leading] + full[leading]  # of each bin
    number = np.arange(windows_of.sum())
    window_firsts = number * max_length + np.repeat(firsts - first_window * max_length, windows_of)
    is_continued = np.ones(len(number), bool)  # a full window is, unless its document has no rest and ends with it
    is_continued[place] = False
    is_continued[(first_window + full)[(rests == 0) & (full > 0)] - 1] = False
    # The segments of a window are in the text's order; those of a full window are one.
    counts = np.ones(len(number), np.int64)
    in_bins = np.bincount(bins, minlength=len(place))
    counts[place] = in_bins
    lengths = np.full(len(number), max_length, np.int32)
    lengths[place] = np.bincount(bins, weights=rest_sizes, minlength=len(place))
    begins = np.cumsum(counts) - counts
    by_bin = sort_stably(bins)
    at = np.arange(len(bins)) + np.repeat(begins[place] - np.cumsum(in_bins) + in_bins, in_bins)
    segment_firsts, segment_sizes = np.empty(counts.sum(), np.int64), np.full(counts.sum(), max_length, np.int32)
    segment_firsts[begins] = window_firsts
    segment_firsts[at], segment_sizes[at] = rest_firsts[by_bin], rest_sizes[by_bin]
    return segment_firsts, segment_sizes, counts, lengths, is_continued


def pack_sizes(sizes: np.ndarray, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Pack pieces by best fit decreasing: return the window of each, and the longest piece of each window.

    Windows are numbered as they are opened. Each size is from 1 to `max_length`.

    >>> pack_sizes(np.array([4, 4, 3, 2]), 6)
    (array([0, 1, 2, 0]), array([0, 1, 2]))

    """
    order = sort_stably(max_length - sizes)
    falling = sizes[order]
    borders = np.flatnonzero(np.diff(falling, prepend=0, append=0))
    steps, opened = _best_fit(falling[borders[:-1]].tolist(), np.diff(borders).tolist(), max_length)
    pieces, windows, each = np.array(steps, np.int64).reshape(-1, 3).T
    counts = np.diff(pieces, append=len(falling))
    number = np.arange(len(falling)) - np.repeat(pieces, counts)
    found = np.repeat(windows, counts) + number // np.repeat(each, counts)
    bins, longest = np.empty(len(order), np.int64), np.empty(opened, np.int64)
    bins[order] = found
    longest[found[::-1]] = order[::-1]  # a window's first piece is its longest: it is written last
    return bins, longest


def sort_stably(values: np.ndarray) -> np.ndarray:
    """Return the order of numbers from 0 to 2^32 - 1: numpy's sort by radix, which takes 16 bits at a time."""
    order: np.ndarray = np.argsort(values.astype(np.uint16), kind="stable")
    if values.max(initial=0) >> 16:
        order = order[np.argsort((values[order] >> 16).astype(np.uint16), kind="stable")]
    return order


def _best_fit(  # noqa: C901, PLR0912 - functions would take a quarter of its time
    lengths: list[int], counts: list[int], max_length: int
) -> tuple[list[int], int]:
    """Place pieces, grouped by their lengths, from the longest to the shortest.

    Return the steps, flat (first piece, first window, pieces for each window), and the number of windows. The windows
    of a step, and its pieces, are consecutive; its last window may get fewer pieces. Of a small group, this loop takes
    most of the time: it divides nothing where a window gets one piece. A room that no window has any longer keeps an
    empty list.
    """
    rooms, ranges, opened, large = _open_windows(lengths, counts, max_length)
    steps = [0, 0, 1] if opened else []
    piece, shortest = opened, lengths[-1] if lengths else 0
    for length, count in zip(lengths[large:], counts[large:], strict=True):
        left, at = count, bisect_left(rooms, length)
        while left:
            if at < len(rooms):
                room = rooms[at]
                same = ranges[room]
                first, stop = same.pop()
                each = 1 if room < 2 * length else room // length
            else:
                room, same, first, each = max_length, [], opened, max_length // length
                stop = opened = first - (-left // each)
            steps += (piece, first, each)
            if each == 1:
                full, more, space = min(first + left, stop), 0, room - length
                placed = full - first
            else:
                placed = min(left, (stop - first) * each)
                filled, more = divmod(placed, each)
                full, space = first + filled, room - each * length
            piece, left = piece + placed, left - placed
            used = full + 1 if more else full
            if used < stop:
                same.append((used, stop))
            elif not same and at < len(rooms):
                del rooms[at]
            if space >= shortest and full > first:
                if known := ranges.get(space):
                    known.append((first, full))
                else:
                    ranges[space] = [(first, full)]
                    insort(rooms, space)
                    at += 1  # this room is less than the length, so it comes before the best fit
            if more:  # the last window that is needed has got fewer pieces
                space = room - more * length
                if known := ranges.get(space):
                    known.append((full, full + 1))
                else:
                    ranges[space] = [(full, full + 1)]
                    insort(rooms, space)
    return steps, opened


def _open_windows(
    lengths: list[int], counts: list[int], max_length: int
) -> tuple[list[int], dict[int, list[tuple[int, int]]], int, int]:
    """Open a window for each piece of more than half of `max_length`: none fits into a window that has one.

    Return the rooms that windows have, ascending; the ranges of windows (first, stop) by their room; the number of
    windows; and the number of these lengths.
    """
    rooms: list[int] = []
    ranges: dict[int, list[tuple[int, int]]] = {}
    opened = large = 0
    for length, count in zip(lengths, counts, strict=True):
        if 2 * length <= max_length:
            break
        if length < max_length:
            rooms.append(max_length - length)
            ranges[max_length - length] = [(opened, opened + count)]
        opened, large = opened + count, large + 1
    return rooms, ranges, opened, large


def read_packed(stream: SpanStream, windows: PackedWindows, numbers: np.ndarray, *, pad_id: int) -> PackedRows:
    """Return the tokens of packed windows by number, int64 [B]; `pad_id` follows the real tokens."""
    segments, firsts = windows.segments(numbers)
    width, counts = windows.max_length + 1, np.diff(segments.ends, prepend=0)
    ids_BT1 = np.full((len(numbers), width), pad_id, np.int32)
    begins, lengths = segments.ends - counts, segments.lengths
    shifts = np.arange(len(numbers)) * width - (np.cumsum(lengths) - lengths)
    at = np.cumsum(segments.sizes, dtype=np.int64) - segments.sizes + np.repeat(shifts, counts)
    sizes = segments.sizes.astype(np.int64)
    sizes[begins[segments.continued]] += 1  # the next token, too
    stream.copy_spans(firsts, sizes, out=ids_BT1.reshape(-1), at=at)
    return PackedRows(ids_BT1, firsts[begins], windows.lengths[numbers], segments)
