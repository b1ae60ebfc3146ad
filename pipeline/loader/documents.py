"""Where the documents of a batch are, for attention that stays within documents.

Each row is cut into pieces: its documents, or what the window has of them, and at its end its padding, which is one
piece. A document ends with its end-of-text token. Padding starts after the last input that has a target; a row that
only fills a batch is padding from end to end. By eye, a row of 9 inputs, of which 7 have targets, end-of-text 0:

    input_ids       5  6  0  7  0  8  9  0  0
    document_ids    0  0  0  1  1  2  2 -1 -1
    position_ids    0  1  2  0  1  0  1  0  1
    cu_seqlens      0        3     5     7     9    (and so on in the next row)

Cost: the thread that gathers a prefetch unit finds its documents in the compact IDs (0.3 ns a token), and computes the
tensors that were looked at before for all batches of the unit. So the caller's thread only picks its batch's.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from pipeline.loader.row_group import INT64_TOKENS, DocumentRule, RowBatch, StartAndEnd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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
        bits_BT = np.unpackbits(rows.ends, axis=1, count=width, bitorder="little")
        found = found[~is_packed_B[found // width]]
        found = np.sort(np.concatenate([found, np.flatnonzero(bits_BT)]))
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
    """The documents of a unit's batches. Each tensor is computed for all batches, when one of them is looked at.

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
        self._rows, self._looked_at = rows, set[str]() if looked_at is None else looked_at

    def prepare(self) -> Self:
        """Compute what readers look at before they do: in the thread that gathers the rows."""
        _ = self._first_targets
        for name in tuple(self._looked_at):
            getattr(self, name)
        return self

    def documents(self, number: int, device: torch.device | None = None) -> Documents | None:
        """Return the documents of one of the batches, on a device or in main memory; None if they are not wanted."""
        return Documents(self, number, device) if self.rule.ids else None

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

    def pieces_of(self, number: int) -> Pieces:
        """Return the pieces of one of the batches."""
        return self.pieces.cut(slice(number * self.batch_size, (number + 1) * self.batch_size), self.width)

    @cached_property
    def pieces(self) -> Pieces:
        """The pieces of all rows."""
        return find_pieces(self._rows, self._first_targets)

    def part(self, name: str, number: int) -> torch.Tensor:
        """Return a batch's part of `document_ids` or `position_ids`, [B, T]."""
        block, first = divmod(number, self._spread_batches)
        rows = slice(first * self.batch_size, (first + 1) * self.batch_size)
        return torch.from_numpy(getattr(self, name)[block][rows])

    @cached_property
    def document_ids(self) -> list[np.ndarray]:
        """The batches' `document_ids`, as many together as are converted to int64 at once."""
        self._looked_at.add("document_ids")
        return [self._spread(pieces.numbers, pieces.sizes).astype(np.int64) for pieces in self._cut()]

    @cached_property
    def position_ids(self) -> list[np.ndarray]:
        """The batches' `position_ids`, as many together."""
        self._looked_at.add("position_ids")
        places_T, found = np.arange(self.width, dtype=self._compact), []
        for pieces in self._cut():
            starts_BT = self._spread(pieces.starts % self.width, pieces.sizes)
            found.append(np.subtract(places_T, starts_BT, out=starts_BT).astype(np.int64))
        return found

    @property
    def _compact(self) -> np.dtype[Any]:
        """The type of numbers from -1 to less than a row's length: a pass over int16 takes a fifth of one over int64.

        `np.repeat` keeps the interpreter's lock, so the caller's thread waits for it; `astype` does not.
        """
        return np.min_scalar_type(-self.width)

    def _spread(self, values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        return np.repeat(values.astype(self._compact), sizes).reshape(-1, self.width)

    def bounds_of(self, number: int) -> torch.Tensor:
        """Return a batch's `cu_seqlens`."""
        bounds, firsts = self.cu_seqlens
        return torch.from_numpy(bounds[firsts[number] : firsts[number + 1]])

    @cached_property
    def cu_seqlens(self) -> tuple[np.ndarray, list[int]]:
        """The batches' `cu_seqlens` one after the other, int32, and where each starts."""
        self._looked_at.add("cu_seqlens")
        size, starts = self.batch_size * self.width, self.pieces.starts
        firsts = np.append(self.pieces.first_pieces[: -1 : self.batch_size], len(starts))
        batches = np.arange(len(firsts))
        bounds = np.full(len(starts) + len(firsts) - 1, size, np.int32)  # after the pieces of each batch, its size
        bounds[np.arange(len(starts)) + starts // size] = starts % size
        return bounds, (firsts + batches).tolist()

    @cached_property
    def max_seqlen(self) -> list[int]:
        """Each batch's `max_seqlen`."""
        self._looked_at.add("max_seqlen")
        firsts = self.pieces.first_pieces[: -1 : self.batch_size]
        found: list[int] = np.maximum.reduceat(self.pieces.sizes, firsts).tolist()
        return found

    @cached_property
    def _first_targets(self) -> np.ndarray:
        return find_first_targets(self._rows, self.rule.end_of_text)

    @property
    def _spread_batches(self) -> int:
        """Batches for which tensors are made at once, as inputs and targets are."""
        return max(1, INT64_TOKENS // (self.batch_size * self.width))

    def _cut(self) -> Iterator[Pieces]:
        """Yield the pieces of the rows for which tensors are made at once."""
        height = self._spread_batches * self.batch_size
        for start in range(0, len(self._rows.ids), height):
            yield self.pieces.cut(slice(start, min(start + height, len(self._rows.ids))), self.width)


class Documents:
    """Where the documents of a batch are; computed when it is first looked at.

    Args:
        table: the documents of the unit.
        number: which of its batches.
        device: where the tensors are made; None: in main memory.

    """

    __slots__ = ("_device", "_made", "_number", "_table")

    def __init__(self, table: DocumentTable, number: int, device: torch.device | str | None = None) -> None:
        self._table, self._number, self._device = table, number, device
        self._made: dict[str, torch.Tensor] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle this batch's rows alone, not those that were read with it."""
        return _restore, (self._table.rows_of(self._number), self._table.rule, self._device)

    def to(self, device: torch.device | str) -> Documents:
        """Return the same with tensors that are made on a device."""
        return Documents(self._table, self._number, device)

    @property
    def document_ids(self) -> torch.Tensor:
        """The document of each input, counted within its row, -1 for padding: int64 [B, T]."""
        return self._once("document_ids", self._pick if self._device is None else self._spread_numbers)

    @property
    def position_ids(self) -> torch.Tensor:
        """The position of each input in its piece: int64 [B, T]."""
        return self._once("position_ids", self._pick if self._device is None else self._count_positions)

    @property
    def cu_seqlens(self) -> torch.Tensor:
        """Where each piece starts in the flattened batch, and the batch's size: int32 [S + 1]."""
        return self._once("cu_seqlens", self._pick if self._device is None else self._copy_bounds)

    @property
    def max_seqlen(self) -> int:
        """The tokens of the longest piece."""
        return self._table.max_seqlen[self._number]

    def _once(self, name: str, make: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """Return the same tensor whenever it is asked for."""
        if self._made is None:
            self._made = {}
        if (made := self._made.get(name)) is None:
            made = self._made[name] = make(name)
        return made

    def _pick(self, name: str) -> torch.Tensor:
        table, number = self._table, self._number
        return table.bounds_of(number) if name == "cu_seqlens" else table.part(name, number)

    # On a device the tensors are made from the few numbers of the pieces.

    def _spread_numbers(self, _name: str) -> torch.Tensor:
        return self._spread(self._table.pieces_of(self._number).numbers)

    def _count_positions(self, _name: str) -> torch.Tensor:
        starts_BT = self._spread(self._table.pieces_of(self._number).starts)
        return torch.arange(starts_BT.numel(), device=self._device).view_as(starts_BT) - starts_BT

    def _copy_bounds(self, _name: str) -> torch.Tensor:
        return self._table.bounds_of(self._number).to(self._device, non_blocking=True)

    def _spread(self, values_S: np.ndarray) -> torch.Tensor:
        sizes_S, table = self._table.pieces_of(self._number).sizes, self._table
        values, sizes = (torch.from_numpy(one).to(self._device) for one in (values_S, sizes_S))
        tokens = table.batch_size * table.width
        return values.repeat_interleave(sizes, output_size=tokens).view(-1, table.width)


def _restore(rows: RowBatch, rule: DocumentRule, device: torch.device | str | None) -> Documents:
    return Documents(DocumentTable(rows, rule), 0, device)
