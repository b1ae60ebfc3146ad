"""Where the documents of a batch are, for attention that stays within documents.

Each row is cut into pieces: its documents, or what the window has of them, and at its end its padding, which is one
piece. A document ends with its end-of-text token. Padding starts after the last input that has a target; a row that
only fills a batch is padding from end to end. By eye, a row of 9 inputs, of which 7 have targets, end-of-text 0:

    input_ids       5  6  0  7  0  8  9  0  0
    document_ids    0  0  0  1  1  2  2 -1 -1
    position_ids    0  1  2  0  1  0  1  0  1
    cu_seqlens      0        3     5     7     9    (and so on in the next row)

Cost: the thread that gathers a prefetch unit finds its documents in the compact IDs (0.3 ns a token), and makes the
tensors that were looked at before, each for all batches of the unit at once. So the caller's thread only picks its
batch's. Few operations for many tokens, since each that lets go of the interpreter's lock waits to get it back.
"""

from __future__ import annotations

from functools import cached_property
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
        found = found[column < padding_starts(rows.bounds)[row]]
    return found


def padding_starts(bounds_B2: np.ndarray) -> np.ndarray:
    """Return where the padding of each row starts: int32 [B], the row's length if it has none, 0 if it only fills."""
    from_B, to_B = bounds_B2.T
    return np.where(from_B < to_B, to_B, np.int32(0))


def find_pieces(rows: RowBatch, first_targets: np.ndarray) -> Pieces:
    """Return the pieces of rows, of which `find_first_targets` has told the documents' first tokens."""
    height, width = len(rows.ids), rows.ids.shape[1] - 1
    firsts, row_starts_B1 = first_targets + 1, np.arange(height + 1) * width
    if rows.bounds is None:
        inner = firsts[firsts % width > 0]  # the last target is no input of its row
    else:
        stops_B = padding_starts(rows.bounds).astype(np.int64)
        padding = (row_starts_B1[:-1] + stops_B)[(stops_B > 0) & (stops_B < width)]
        inner = np.concatenate([firsts[first_targets % width + 1 < stops_B[first_targets // width]], padding])
    starts = np.sort(np.concatenate([row_starts_B1, inner]))  # and the end
    first_pieces = np.searchsorted(starts, row_starts_B1)
    numbers = np.arange(len(starts) - 1) - np.repeat(first_pieces[:-1], np.diff(first_pieces))
    if rows.bounds is not None:
        rows_of = starts[:-1] // width
        numbers[starts[:-1] - row_starts_B1[rows_of] >= stops_B[rows_of]] = -1
    return Pieces(starts[:-1], np.diff(starts), numbers, first_pieces)


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
        self._rows, self._on_device = rows, dict[tuple[str, torch.device | str], torch.Tensor]()

    def prepare(self) -> Self:
        """Make what readers look at before they do: in the thread that gathers the rows."""
        _ = (self.cu_seqlens, self.max_seqlen) if self.rule.ids else self._first_targets
        for name in tuple(self.looked_at):
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

    def slice_of(self, number: int) -> slice:
        """Return where the rows of one of the batches are."""
        return slice(number * self.batch_size, (number + 1) * self.batch_size)

    def rows_of(self, number: int) -> RowBatch:
        """Return the compact rows of one of the batches."""
        here = self.slice_of(number)
        ids, *others = self._rows
        return RowBatch(ids[here], *(None if one is None else one[here] for one in others))

    @cached_property
    def pieces(self) -> Pieces:
        """The pieces of all rows."""
        return find_pieces(self._rows, self._first_targets)

    @cached_property
    def document_ids(self) -> np.ndarray:
        """The document of each input, counted within its row, -1 for padding: int64 [B, T] for all rows.

        Repeated as int16 (or int8) and then converted: `np.repeat` keeps the interpreter's lock, for which the caller's
        thread waits, and takes a fifth of the time for it; `astype` does not keep it.
        """
        numbers_BT = np.repeat(self.pieces.numbers.astype(self._compact), self.pieces.sizes)
        return numbers_BT.astype(np.int64).reshape(-1, self.width)

    @cached_property
    def position_ids(self) -> np.ndarray:
        """The position of each input in its piece: int64 [B, T] for all rows."""
        firsts = (self.pieces.starts % self.width).astype(self._compact)
        firsts_BT = np.repeat(firsts, self.pieces.sizes).reshape(-1, self.width)
        np.subtract(np.arange(self.width, dtype=self._compact), firsts_BT, out=firsts_BT)
        return firsts_BT.astype(np.int64)

    def on_device(self, name: str, device: torch.device | str) -> torch.Tensor:
        """Return `document_ids` or `position_ids`, int64 [B, T] for all rows, made on a device from the pieces."""
        if (name, device) not in self._on_device:
            pieces = self.pieces
            values = pieces.numbers if name == "document_ids" else pieces.starts
            values_S, sizes_S = (torch.from_numpy(one).to(device) for one in (values, pieces.sizes))
            found = values_S.repeat_interleave(sizes_S, output_size=len(self._rows.ids) * self.width)
            if name == "position_ids":
                found = torch.arange(len(found), device=device) - found
            self._on_device[name, device] = found.view(-1, self.width)
        return self._on_device[name, device]

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

    @property
    def _compact(self) -> np.dtype[Any]:
        """The type of numbers from -1 to less than a row's length."""
        return np.min_scalar_type(-self.width)


class Documents:
    """Where the documents of a batch are; computed when it is first looked at.

    Args:
        table: the documents of a unit.
        number: which of its batches.
        device: where tensors are made, for all batches of the unit at once; None: in main memory.

    """

    def __init__(self, table: DocumentTable, number: int, device: torch.device | str | None = None) -> None:
        self._table, self._number, self._device = table, number, device

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle this batch's rows alone, not those that were read with it."""
        return _restore, (self._table.rows_of(self._number), self._table.rule, self._device)

    def to(self, device: torch.device | str) -> Documents:
        """Return the same with tensors that are made on a device."""
        return Documents(self._table, self._number, device)

    @cached_property
    def document_ids(self) -> torch.Tensor:
        """The document of each input, counted within its row, -1 for padding: int64 [B, T]."""
        return self._pick("document_ids")

    @cached_property
    def position_ids(self) -> torch.Tensor:
        """The position of each input in its piece: int64 [B, T]."""
        return self._pick("position_ids")

    @cached_property
    def cu_seqlens(self) -> torch.Tensor:
        """Where each piece starts in the flattened batch, and the batch's size: int32 [S + 1]."""
        bounds, firsts = self._table.cu_seqlens
        found = torch.from_numpy(bounds[firsts[self._number] : firsts[self._number + 1]])
        return found if self._device is None else found.to(self._device, non_blocking=True)

    @property
    def max_seqlen(self) -> int:
        """The tokens of the longest piece."""
        return self._table.max_seqlen[self._number]

    def _pick(self, name: str) -> torch.Tensor:
        """Return the batch's rows of a tensor of all batches; in main memory, it is made ahead of time from now on."""
        here = self._table.slice_of(self._number)
        if self._device is not None:
            return self._table.on_device(name, self._device)[here]
        self._table.looked_at.add(name)
        numbers_BT: np.ndarray = getattr(self._table, name)
        return torch.from_numpy(numbers_BT[here])


def _restore(rows: RowBatch, rule: DocumentRule, device: torch.device | str | None) -> Documents:
    return Documents(DocumentTable(rows, rule), 0, device)
