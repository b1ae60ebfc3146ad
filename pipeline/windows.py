"""Sliding windows as arithmetic: how many there are, where each starts, and which tokens it has.

Window k of a segment of N tokens starts at `s = k * stride`. Its inputs are `ids[s : s + L]` and its targets are
`ids[s + 1 : s + L + 1]`, so it needs L + 1 tokens, and a segment has `max(0, ceil((N - L) / stride))` windows: those of
`range(0, N - L, stride)`. A segment is the complete token stream (windows cross documents) or one document with the
end-of-text token after it (they do not). Nothing is stored for a window; finding one takes O(log segments).

Windows of several whole documents (`documents=pack`) are those of `pipeline.packing`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from pipeline.base.permutation import make_key, permute
from pipeline.packing import PackedWindows, pack_documents, read_packed

if TYPE_CHECKING:
    from pipeline.packing import PackedRows
    from pipeline.settings import WindowConfig

Documents: TypeAlias = tuple[np.ndarray, np.ndarray]  # first token in the stream and number of tokens, int64 [D]


class TokenStream(Protocol):
    """The token IDs of one split; in practice `pipeline.tokens.store.TokenStream`."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return token IDs [start, stop), 1-D."""

    def gather(self, starts: np.ndarray, width: int, *, out: np.ndarray, rows: np.ndarray) -> None:
        """Copy the `width` tokens from each of `starts`, int64 [B], into `out[rows]`, [B, width]."""

    def copy_spans(self, starts: np.ndarray, sizes: np.ndarray, *, out: np.ndarray, at: np.ndarray) -> None:
        """Copy tokens [start, start + size) of each span to `out[at : at + size]`; `out` is flat."""


IGNORED = -100  # a target that no loss counts: the default `ignore_index` of torch's cross_entropy


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """The windows of a token stream.

    Args:
        firsts: int64 [segments], each segment's first token in the stream.
        sizes: int64 [segments], each segment's number of tokens.
        max_length: tokens per window, L.
        stride: tokens between the starts of two windows.
        tail: the last tokens of a segment, too few for a window: `drop` leaves them out, `pad` makes a shorter window.

    """

    firsts: np.ndarray
    sizes: np.ndarray
    max_length: int
    stride: int
    tail: str = "drop"
    ends: np.ndarray = field(init=False)  # int64 [segments], windows up to the end of each segment

    def __post_init__(self) -> None:
        counts = count_windows(self.sizes, max_length=self.max_length, stride=self.stride, tail=self.tail)
        object.__setattr__(self, "ends", np.cumsum(counts, dtype=np.int64))

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def locate(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return each window's first token in the stream, int64 [B], and its number of real tokens, int32 [B].

        A window has `max_length` real tokens unless it is the padded tail of its segment.
        """
        segments = np.searchsorted(self.ends, windows, side="right")
        before = np.where(segments > 0, self.ends[segments - 1], 0)
        starts = self.firsts[segments] + (windows - before) * self.stride
        with_target = self.firsts[segments] + self.sizes[segments] - 1 - starts  # inputs left in the segment
        return starts, np.minimum(with_target, self.max_length).astype(np.int32)


def cut_windows(
    window: WindowConfig,
    *,
    num_tokens: int,
    documents: Documents | None,
    end_is_target: bool = True,
    group_tokens: int | None = None,
) -> Windows | PackedWindows:
    """Return the windows of a split.

    Args:
        window: how they are cut.
        num_tokens: of the split's stream, which has end-of-text after its last document only if that is a target.
        documents: of the split, if windows must not cross them.
        end_is_target: the last target of each document is the end-of-text token after it; not so in release 0.1.0.
        group_tokens: for packed windows, the size of a group of documents.

    """
    if window.documents == "pack":
        assert documents is not None, "packing needs to know where documents are"
        assert group_tokens is not None, "packing needs the size of its groups"
        firsts = documents[0]
        sizes = np.diff(firsts, append=num_tokens)
        return pack_documents(firsts, sizes, max_length=window.max_length, group_tokens=group_tokens)
    if window.documents == "separate":
        assert documents is not None, "windows of separate documents need to know where these are"
        firsts, sizes = documents
        sizes = np.diff(firsts, append=num_tokens) if end_is_target else sizes
    else:
        firsts, sizes = np.zeros(1, np.int64), np.array([num_tokens], np.int64)
    return Windows(
        firsts=firsts, sizes=sizes, max_length=window.max_length, stride=window.stride_tokens, tail=window.tail
    )


def count_windows(sizes: np.ndarray, *, max_length: int, stride: int, tail: str = "drop") -> np.ndarray:
    """Count the windows of segments of the given numbers of tokens, int64 [segments].

    `tail=pad` adds a window where the segment's last token is not yet a target.
    """
    full: np.ndarray = np.maximum(0, -((max_length - sizes) // stride))
    if tail == "drop":
        return full
    reach = np.where(full > 0, (full - 1) * stride + max_length, 0)  # the last target of the full windows
    padded: np.ndarray = full + ((reach < sizes - 1) & (full * stride < sizes - 1))
    return padded


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWindows:
    """The windows of a split in stored order.

    Row i is window i under `order=sequential`, and window `permute(i)` under `shuffled`: an exact shuffle of all of
    the split's windows, chosen by `seed`, that is never held in memory.

    Args:
        stream: the split's token IDs.
        windows: how they are cut.
        order: `sequential` or `shuffled`.
        seed: of a shuffled order.
        pad_id: the ID after the real tokens of a window.

    """

    stream: TokenStream
    windows: Windows | PackedWindows
    order: str
    seed: int
    pad_id: int

    def __len__(self) -> int:
        return len(self.windows)

    def numbers(self, first: int, last: int) -> np.ndarray:
        """Return the numbers of the windows in rows [first, last), int64 [B]."""
        rows = np.arange(first, last, dtype=np.int64)
        return rows if self.order == "sequential" else permute(rows, len(self.windows), make_key(self.seed))

    def read(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | PackedRows:
        """Return rows [first, last) as `read_windows` does: `ids_BT1`, `starts` and `lengths`; packed ones as rows."""
        if isinstance(self.windows, PackedWindows):
            return read_packed(self.stream, self.windows, self.numbers(first, last), pad_id=self.pad_id)
        if self.order == "sequential":
            return read_windows(self.stream, self.windows, first, last, pad_id=self.pad_id)
        return gather_windows(self.stream, self.windows, self.numbers(first, last), pad_id=self.pad_id)


def read_windows(
    stream: TokenStream, windows: Windows, first: int, last: int, *, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the tokens of windows [first, last), read in one pass over the stream that skips large gaps.

    Returns:
        `ids_BT1`, int32 [B, L + 1]: the inputs and the target after the last of them; `pad_id` follows the real tokens.
        It may be a read-only view in which overlapping windows share memory. `starts`, int64 [B]; `lengths`, int32 [B]:
        the real tokens of each window.

    """
    numbers = np.arange(first, last, dtype=np.int64)
    starts, lengths = windows.locate(numbers)
    width = windows.max_length + 1
    if int(starts[-1] - starts[0]) > 4 * len(starts) * width:  # mostly gaps: read the windows' tokens alone
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
    """Return the same as `read_windows` for windows in any order, `numbers`, int64 [B].

    The stream is read from front to back, whatever the order of `numbers`.
    """
    starts, lengths = windows.locate(numbers)
    width = windows.max_length + 1
    ids_BT1 = np.full((len(numbers), width), pad_id, dtype=np.int32)
    forward = np.argsort(starts, kind="stable")
    inside = forward[starts[forward] + width <= len(stream)]
    stream.gather(starts[inside], width, out=ids_BT1, rows=inside)
    for row in forward[len(inside) :]:  # padded tails at the stream's end
        tail = stream.read(int(starts[row]), len(stream))
        ids_BT1[row, : len(tail)] = tail
    return _padded(ids_BT1, lengths, pad_id), starts, lengths


def _padded(ids_BT1: np.ndarray, lengths: np.ndarray, pad_id: int) -> np.ndarray:
    """Overwrite what follows each window's last target by `pad_id`: it belongs to another segment."""
    short = np.flatnonzero(lengths < ids_BT1.shape[1] - 1)
    if not len(short):
        return ids_BT1
    after = np.arange(ids_BT1.shape[1]) > lengths[short, None]
    ids_BT1 = ids_BT1 if ids_BT1.flags.writeable else ids_BT1.copy()
    ids_BT1[short] = np.where(after, pad_id, ids_BT1[short])
    return ids_BT1


def count_unused(windows: Windows | PackedWindows, firsts: np.ndarray, counts: np.ndarray) -> dict[str, int]:
    """Count the unused tokens, which no window contains, and the documents that consist of nothing else.

    Args:
        windows: of the split; one segment for all of it, or one for each document.
        firsts: int64 [documents], each document's first token in the split's stream.
        counts: int64 [documents], its tokens.

    """
    if isinstance(windows, PackedWindows):
        return {"tokens": 0, "documents": 0}
    span = windows.max_length + 1
    in_segment = np.diff(windows.ends, prepend=0)
    last = np.maximum(in_segment - 1, 0) * windows.stride  # the start of each segment's last window
    ends = np.where(in_segment > 0, np.minimum(last + span, windows.sizes), 0)  # after its last target
    gaps = np.maximum(in_segment - 1, 0) * max(0, windows.stride - span)
    if len(windows.sizes) == len(firsts):  # an unused end-of-text token does not count
        tokens = int((np.maximum(counts - ends, 0) + gaps).sum())
        return {"tokens": tokens, "documents": int((in_segment == 0).sum())}
    (last,), (end,) = last, ends
    in_stride = firsts % windows.stride
    in_gap = (firsts < last) & (in_stride >= span) & (in_stride + counts <= windows.stride)
    tokens = int((windows.sizes - ends + gaps).sum())
    return {"tokens": tokens, "documents": int(((firsts >= end) | in_gap).sum())}


def count_cut(windows: Windows | PackedWindows) -> int:
    """Count the documents that are longer than a packed window, and therefore cut."""
    return windows.num_cut if isinstance(windows, PackedWindows) else 0


def count_padding(windows: Windows | PackedWindows) -> int:
    """Count the positions of all windows that have no token: only a segment's last window can have any."""
    if isinstance(windows, PackedWindows):
        return windows.count_padding()
    lasts = windows.ends[np.diff(windows.ends, prepend=0) > 0] - 1
    return int((windows.max_length - windows.locate(lasts)[1].astype(np.int64)).sum())
