"""Where the documents of a batch are, for attention that stays within documents.

Each row is cut into pieces: its documents, or what the window has of them, and at its end its padding, which is one
piece. A document ends with its end-of-text token. Padding starts after the last input that has a target; a row that
only fills a batch is padding from end to end. By eye, a row of 9 inputs, of which 7 have targets, end-of-text 0:

    input_ids       5  6  0  7  0  8  9  0  0
    document_ids    0  0  0  1  1  2  2 -1 -1
    position_ids    0  1  2  0  1  0  1  0  1
    cu_seqlens      0        3     5     7     9    (and so on in the next row)

Cost: the thread that gathers a prefetch unit finds its documents in the compact IDs (0.3 ns a token), and makes the
tensors that were looked at before for all batches of the unit. So the caller's thread only picks its batch's.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from pipeline.loader.row_group import DocumentRule, RowBatch, StartAndEnd, find_ends

if TYPE_CHECKING:
    from typing import Self


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


def find_first_targets(rows: RowBatch, end_of_text: int | None) -> np.ndarray:
    """Return which targets are a document's first token, as positions in the flattened rows: int64, ascending.

    End-of-text tokens end documents. Packed rows say themselves where they do (`RowBatch.ends`).
    """
    ids_BT1, width = rows.ids, rows.ids.shape[1] - 1
    found = np.empty(0, np.int64)
    if end_of_text is not None:
        at = np.flatnonzero(ids_BT1.reshape(-1) == ids_BT1.dtype.type(end_of_text))
        row, column = np.divmod(at, width + 1)
        is_first = column < width  # the last token of a row is a target alone
        if isinstance(end_of_text, StartAndEnd):
            is_first[is_first] = ids_BT1[row[is_first], column[is_first] + 1] == end_of_text  # the second of two
        found = (at - row)[is_first]
    if rows.ends is not None:
        is_packed_B = (rows.ends[:, width // 8] >> width % 8 & 1).astype(bool)  # in a mixture, others may be not
        found = found[~is_packed_B[found // width]]
        found = np.sort(np.concatenate([found, find_ends(rows.ends, max_length=width)]))
    if rows.bounds is not None:  # padding may consist of end-of-text tokens
        row, column = np.divmod(found, width)
        found = found[column < padding_starts(rows)[row]]
    return found


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
    """The documents of a unit's batches.

    Args:
        rows: the unit.
        rule: how documents are told apart.
        batch_size: rows of a batch; all rows if left out.
        looked_at: names of the tensors that readers look at; this table adds those that it is asked for.

    """

    def __init__(
        self, rows: RowBatch, rule: DocumentRule, *, batch_size: int | None = None, looked_at: set[str] | None = None
    ) -> None:
        self.rule, self.width = rule, int(rows.ids.shape[1]) - 1
        self.batch_size = batch_size or len(rows.ids)
        self.looked_at = set[str]() if looked_at is None else looked_at
        self._rows, self._prepared = rows, dict[tuple[int, int], DocumentBlock]()

    def prepare(self, together: int) -> Self:
        """Make what readers look at before they do: in the thread that gathers the rows.

        `together`: batches whose tensors are made together.
        """
        _ = (self.cu_seqlens, self.max_seqlen) if self.rule.ids else self._first_targets
        batches = len(self._rows.ids) // self.batch_size
        for first in range(0, batches if self.looked_at else 0, together):
            count = min(together, batches - first)
            block = self._prepared[first, count] = DocumentBlock(self, first, count)
            for name in tuple(self.looked_at):
                getattr(block, name)
        return self

    def documents(self, number: int, device: torch.device | None = None) -> Documents | None:
        """Return the documents of one of the batches, on a device or in main memory; None if they are not wanted."""
        block = self.block(number, 1, device)
        return None if block is None else Documents(block, 0)

    def block(self, first: int, batches: int, device: torch.device | str | None = None) -> DocumentBlock | None:
        """Return the documents of several batches; None if they are not wanted."""
        if not self.rule.ids:
            return None
        prepared = self._prepared.pop((first, batches), None) if device is None else None
        return prepared or DocumentBlock(self, first, batches, device)

    def unscored(self, rows: slice) -> np.ndarray | None:
        """Return the targets of some rows that shall not count, as positions in these rows; None if all may count."""
        if self.rule.score_starts:
            return None
        first, last = np.searchsorted(self._first_targets, (rows.start * self.width, rows.stop * self.width))
        found: np.ndarray = self._first_targets[first:last] - rows.start * self.width
        return found

    def rows_of(self, number: int) -> RowBatch:
        """Return the compact rows of one of the batches."""
        here = slice(number * self.batch_size, (number + 1) * self.batch_size)
        ids, *others = self._rows
        return RowBatch(ids[here], *(None if one is None else one[here] for one in others))

    def pieces_of(self, first: int, batches: int) -> Pieces:
        """Return the pieces of some of the batches."""
        return self.pieces.cut(slice(first * self.batch_size, (first + batches) * self.batch_size), self.width)

    @cached_property
    def pieces(self) -> Pieces:
        """The pieces of all rows."""
        return find_pieces(self._rows, self._first_targets)

    @cached_property
    def cu_seqlens(self) -> tuple[np.ndarray, list[int]]:
        """The batches' `cu_seqlens` one after the other, int32, and where each starts, with the end."""
        size, starts = self.batch_size * self.width, self.pieces.starts
        firsts = self.pieces.first_pieces[:: self.batch_size]
        bounds = np.full(len(starts) + len(firsts) - 1, size, np.int32)  # after the pieces of each batch, its size
        bounds[np.arange(len(starts)) + starts // size] = starts % size
        return bounds, (firsts + np.arange(len(firsts))).tolist()

    @cached_property
    def max_seqlen(self) -> list[int]:
        """Each batch's `max_seqlen`."""
        firsts = self.pieces.first_pieces[: -1 : self.batch_size]
        found: list[int] = np.maximum.reduceat(self.pieces.sizes, firsts).tolist()
        return found

    @cached_property
    def _first_targets(self) -> np.ndarray:
        return find_first_targets(self._rows, self.rule.end_of_text)


class DocumentBlock:
    """The documents of batches whose tensors are made together, when one of them is first looked at.

    Args:
        table: the documents of the unit.
        first: the first of the batches.
        batches: how many.
        device: where the tensors are made; None: in main memory.

    """

    def __init__(
        self, table: DocumentTable, first: int, batches: int, device: torch.device | str | None = None
    ) -> None:
        self.table, self.first, self.device = table, first, device
        self._batches = batches

    @cached_property
    def document_ids(self) -> tuple[torch.Tensor, ...]:
        """The document of each input, counted within its row, -1 for padding: int64 [B, T] for each batch."""
        if self.device is not None:
            return self._split(self._spread(self._pieces.numbers))
        self.table.looked_at.add("document_ids")
        numbers = np.repeat(self._pieces.numbers.astype(self._compact), self._pieces.sizes)
        return self._split(torch.from_numpy(numbers.astype(np.int64)))

    @cached_property
    def position_ids(self) -> tuple[torch.Tensor, ...]:
        """The position of each input in its piece: int64 [B, T] for each batch."""
        width, pieces = self.table.width, self._pieces
        if self.device is not None:
            starts = self._spread(pieces.starts)
            return self._split(torch.arange(len(starts), device=self.device) - starts)
        self.table.looked_at.add("position_ids")
        starts_BT = np.repeat((pieces.starts % width).astype(self._compact), pieces.sizes).reshape(-1, width)
        positions_BT = np.subtract(np.arange(width, dtype=self._compact), starts_BT, out=starts_BT)
        return self._split(torch.from_numpy(positions_BT.astype(np.int64)))

    @cached_property
    def cu_seqlens(self) -> tuple[torch.Tensor, ...]:
        """Where each piece starts in the flattened batch, and the batch's size: int32 [S + 1] for each batch."""
        bounds, firsts = self.table.cu_seqlens
        here = firsts[self.first : self.first + self._batches + 1]
        found = (torch.from_numpy(bounds[start:stop]) for start, stop in pairwise(here))
        return tuple(found if self.device is None else (one.to(self.device, non_blocking=True) for one in found))

    @cached_property
    def _pieces(self) -> Pieces:
        return self.table.pieces_of(self.first, self._batches)

    @property
    def _compact(self) -> np.dtype[Any]:
        """The type of numbers from -1 to less than a row's length: a pass over int16 takes a fifth of one over int64.

        `np.repeat` keeps the interpreter's lock, so the caller's thread waits for it; `astype` does not.
        """
        return np.min_scalar_type(-self.table.width)

    def _spread(self, values_S: np.ndarray) -> torch.Tensor:
        """Return each piece's value at each of its tokens, flat, on the device."""
        sizes_S = self._pieces.sizes
        values, sizes = (torch.from_numpy(one).to(self.device) for one in (values_S, sizes_S))
        tokens = self._batches * self.table.batch_size * self.table.width
        return values.repeat_interleave(sizes, output_size=tokens)

    def _split(self, numbers: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return numbers.view(self._batches, self.table.batch_size, self.table.width).unbind()


class Documents:
    """Where the documents of a batch are; computed when it is first looked at.

    Args:
        block: the documents of some batches.
        number: which of these.

    """

    __slots__ = ("_block", "_number")

    def __init__(self, block: DocumentBlock, number: int) -> None:
        self._block, self._number = block, number

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle this batch's rows alone, not those that were read with it."""
        table, number = self._block.table, self._block.first + self._number
        return _restore, (table.rows_of(number), table.rule, self._block.device)

    def to(self, device: torch.device | str) -> Documents:
        """Return the same with tensors that are made on a device."""
        return Documents(DocumentBlock(self._block.table, self._block.first + self._number, 1, device), 0)

    @property
    def document_ids(self) -> torch.Tensor:
        """The document of each input, counted within its row, -1 for padding: int64 [B, T]."""
        return self._block.document_ids[self._number]

    @property
    def position_ids(self) -> torch.Tensor:
        """The position of each input in its piece: int64 [B, T]."""
        return self._block.position_ids[self._number]

    @property
    def cu_seqlens(self) -> torch.Tensor:
        """Where each piece starts in the flattened batch, and the batch's size: int32 [S + 1]."""
        return self._block.cu_seqlens[self._number]

    @property
    def max_seqlen(self) -> int:
        """The tokens of the longest piece."""
        return self._block.table.max_seqlen[self._block.first + self._number]


def _restore(rows: RowBatch, rule: DocumentRule, device: torch.device | str | None) -> Documents:
    return Documents(DocumentBlock(DocumentTable(rows, rule), 0, 1, device), 0)
