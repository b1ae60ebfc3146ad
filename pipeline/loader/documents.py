"""Where the documents of a batch are, for attention that stays within documents.

Each row is cut into pieces: its documents, or what the window has of them, and at its end its padding, which is one
piece. A document ends with its end-of-text token. Padding starts after the last input that has a target; a row that
only fills a batch is padding from end to end. By eye, a row of 9 inputs, of which 7 have targets, end-of-text 0:

    input_ids       5  6  0  7  0  8  9  0  0
    document_ids    0  0  0  1  1  2  2 -1 -1
    position_ids    0  1  2  0  1  0  1  0  1
    cu_seqlens      0        3     5     7     9    (and so on in the next row)

Cost: the pieces of a prefetch unit are found in its compact IDs, all at once, when one of its batches is first asked
for them. What is not looked at is not computed.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from pipeline.loader.row_group import StartAndEnd

if TYPE_CHECKING:
    from pipeline.loader.row_group import RowBatch


class DocumentRule(NamedTuple):
    """How documents are told apart, and what a reader does with that."""

    end_of_text: int  # `StartAndEnd` if the same token starts documents, too
    ids: bool = True  # batches say where their documents are
    score_starts: bool = True  # a document's first token is a target that counts


class Pieces(NamedTuple):
    """The pieces of some rows, in order: they cover each position of the flattened rows once."""

    starts: np.ndarray  # int64 [S], the position of each piece's first token
    sizes: np.ndarray  # int64 [S], its tokens
    numbers: np.ndarray  # int64 [S], its document, counted within the row; -1 for padding
    first_pieces: np.ndarray  # int64 [B + 1], the number of each row's first piece, and S

    def cut(self, rows: slice, width: int) -> Pieces:
        """Return the pieces of some of the rows, each of `width` tokens."""
        first, last = int(self.first_pieces[rows.start]), int(self.first_pieces[rows.stop])
        firsts = self.first_pieces[rows.start : rows.stop + 1] - first
        starts = self.starts[first:last] - rows.start * width
        return Pieces(starts, self.sizes[first:last], self.numbers[first:last], firsts)


def find_first_targets(rows: RowBatch, end_of_text: int) -> np.ndarray:
    """Return which targets are a document's first token, as positions in the flattened rows: int64, ascending."""
    ids_BT1, (height, width) = rows.ids, (len(rows.ids), rows.ids.shape[1] - 1)
    is_first_BT: np.ndarray = ids_BT1[:, :-1] == end_of_text
    if isinstance(end_of_text, StartAndEnd):
        is_first_BT &= ids_BT1[:, 1:] == end_of_text  # the second of two
    if rows.bounds is not None:  # padding may consist of end-of-text tokens
        is_first_BT &= np.arange(width, dtype=np.int32) < padding_starts(rows)[:, None]
    assert is_first_BT.shape == (height, width), "one for each target"
    return np.flatnonzero(is_first_BT)


def padding_starts(rows: RowBatch) -> np.ndarray:
    """Return where the padding of each row starts: int32 [B], the row's length if it has none, 0 if it only fills."""
    if rows.bounds is None:
        return np.full(len(rows.ids), rows.ids.shape[1] - 1, np.int32)
    from_B, to_B = rows.bounds.T
    return np.where(from_B < to_B, to_B, np.int32(0))


def find_pieces(rows: RowBatch, first_targets: np.ndarray) -> Pieces:
    """Return the pieces of rows, of which `find_first_targets` has told the documents' first tokens."""
    height, width = len(rows.ids), rows.ids.shape[1] - 1
    stops_B = padding_starts(rows).astype(np.int64)
    row_starts_B = np.arange(height) * width
    firsts = first_targets + 1
    inside = first_targets % width + 1 < stops_B[first_targets // width]  # the last target is no input of its row
    padding = (row_starts_B + stops_B)[(stops_B > 0) & (stops_B < width)]
    starts = np.sort(np.concatenate([row_starts_B, firsts[inside], padding]))
    rows_of = starts // width
    first_pieces = np.searchsorted(starts, np.arange(height + 1) * width)
    numbers = np.arange(len(starts)) - first_pieces[rows_of]
    numbers[starts - row_starts_B[rows_of] >= stops_B[rows_of]] = -1
    return Pieces(starts, np.diff(starts, append=height * width), numbers, first_pieces)


class DocumentTable:
    """The documents of a unit's rows. They are found when they are first asked for."""

    def __init__(self, rows: RowBatch, rule: DocumentRule) -> None:
        self.rule, self.width, self._rows = rule, rows.ids.shape[1] - 1, rows

    @cached_property
    def pieces(self) -> Pieces:
        """The pieces of all rows."""
        return find_pieces(self._rows, self._first_targets)

    def documents(self, rows: slice, device: torch.device | None = None) -> Documents | None:
        """Return the documents of some rows, on a device or in main memory; None if they are not wanted."""
        return Documents(self, rows, self.width, device=device) if self.rule.ids else None

    def unscored(self, rows: slice) -> np.ndarray | None:
        """Return the targets of some rows that shall not count, as positions in these rows; None if all may count."""
        if self.rule.score_starts:
            return None
        first, last = np.searchsorted(self._first_targets, (rows.start * self.width, rows.stop * self.width))
        found: np.ndarray = self._first_targets[first:last] - rows.start * self.width
        return found

    @cached_property
    def _first_targets(self) -> np.ndarray:
        return find_first_targets(self._rows, self.rule.end_of_text)


class Documents:
    """Where the documents of a batch are; computed when it is first looked at.

    Args:
        source: the unit's table, or the pieces of the rows.
        rows: which rows of the unit.
        width: tokens of a row.
        block: a larger part of the unit, for which `document_ids` and `position_ids` are computed at once.
        device: where the tensors are made; None: in main memory.

    """

    def __init__(
        self,
        source: DocumentTable | Pieces,
        rows: slice,
        width: int,
        *,
        block: Documents | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._source, self._rows, self._width, self._block, self._device = source, rows, width, block, device

    def __getstate__(self) -> dict[str, Any]:
        """Return these rows' pieces alone: pickling one batch does not pickle those that were read with it."""
        return {
            "_source": self._pieces,
            "_rows": self._rows,
            "_width": self._width,
            "_block": None,
            "_device": self._device,
        }

    def part(self, rows: slice) -> Documents:
        """Return the documents of some of the rows."""
        start = self._rows.start
        return Documents(self._source, slice(start + rows.start, start + rows.stop), self._width, block=self)

    def to(self, device: torch.device | str) -> Documents:
        """Return the same with tensors that are made on a device."""
        return Documents(self._source, self._rows, self._width, device=device)

    @cached_property
    def _pieces(self) -> Pieces:
        if isinstance(self._source, Pieces):
            return self._source
        return self._source.pieces.cut(self._rows, self._width)

    @cached_property
    def document_ids(self) -> torch.Tensor:
        """The document of each input, counted within its row, -1 for padding: int64 [B, T]."""
        if self._block is not None:
            return self._block.document_ids[self._here]
        return self._spread(self._pieces.numbers)

    @cached_property
    def position_ids(self) -> torch.Tensor:
        """The position of each input in its piece: int64 [B, T]."""
        if self._block is not None:
            return self._block.position_ids[self._here]
        starts_BT = self._spread(self._pieces.starts)
        positions = torch.arange(starts_BT.numel(), device=starts_BT.device).view_as(starts_BT)
        return torch.sub(positions, starts_BT, out=starts_BT)

    @cached_property
    def cu_seqlens(self) -> torch.Tensor:
        """Where each piece starts in the flattened batch, and the batch's size: int32 [S + 1]."""
        starts = self._pieces.starts
        bounds = np.empty(len(starts) + 1, np.int32)
        bounds[:-1], bounds[-1] = starts, (self._rows.stop - self._rows.start) * self._width
        found = torch.from_numpy(bounds)
        return found if self._device is None else found.to(self._device, non_blocking=True)

    @cached_property
    def max_seqlen(self) -> int:
        """The tokens of the longest piece."""
        return int(self._pieces.sizes.max())

    @property
    def _here(self) -> slice:
        assert self._block is not None, "a part of a block"
        start = self._block._rows.start  # noqa: SLF001 - of the same class
        return slice(self._rows.start - start, self._rows.stop - start)

    def _spread(self, values_S: np.ndarray) -> torch.Tensor:
        """Give each token the value of its piece: int64 [B, T]."""
        sizes_S = self._pieces.sizes
        if self._device is None:
            return torch.from_numpy(np.repeat(values_S, sizes_S).reshape(-1, self._width))
        values, sizes = (torch.from_numpy(one).to(self._device, non_blocking=True) for one in (values_S, sizes_S))
        tokens = (self._rows.stop - self._rows.start) * self._width
        return values.repeat_interleave(sizes, output_size=tokens).view(-1, self._width)
