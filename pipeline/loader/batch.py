"""What the loader yields: batches of int64, made from the compact rows that were gathered."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.loader.row_group import SampleIds, StartAndEnd
from pipeline.windows import IGNORED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from pipeline.loader.row_group import RowBatch


# Convert this many tokens to int64 at once (512 KiB) and slice batches from them: allocating each batch separately
# costs a third of the throughput, and moves an embedding's output around in memory, out of the processor's cache.
INT64_TOKENS = 1 << 16
NAMES = ("window_ids", "source_ids")  # they name samples, and stay in main memory


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Batch:
    """A batch: B windows of T tokens.

        x, y = batch                  # inputs and targets
        batch["input_ids"]            # every field that is set; `dict(batch)` and `model(**batch)` work too

    Batches are views of memory that some of them share, at most half a megabyte for each tensor if a batch is smaller:
    clone the tensors of a batch that you keep, save or send elsewhere.
    """

    input_ids: torch.Tensor  # int64 [B, T]
    target_ids: torch.Tensor  # int64 [B, T]: the same one token later; -100 where nothing is to be predicted
    window_ids: torch.Tensor  # int64 [B]: each window's number in its split, -1 for a row that only fills the batch
    source_ids: torch.Tensor | None = None  # int64 [B]: in a mixture, the number of each window's data set
    document_ids: torch.Tensor | None = None  # int64 [B, T]: the document of each input, counted within the window
    position_ids: torch.Tensor | None = None  # int64 [B, T]: the position of each input since its document's start

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter((self.input_ids, self.target_ids))

    def keys(self) -> list[str]:
        """Return the names of the fields that are set."""
        return [field.name for field in fields(Batch) if getattr(self, field.name) is not None]

    @property
    def num_targets(self) -> int:
        """How many targets count: those that are not -100. Counted when it is looked at."""
        return int((self.target_ids != IGNORED).sum())

    def __getitem__(self, name: str) -> torch.Tensor:
        names = self.keys()
        if name not in names:
            raise KeyError(f"a batch has no {name!r}; this one has {', '.join(names)}")
        tensor: torch.Tensor = getattr(self, name)
        return tensor

    def __repr__(self) -> str:
        rows, length = self.input_ids.shape
        real = int((self.window_ids >= 0).sum())
        extra = f"; also {', '.join(names)}" if (names := self.keys()[3:]) else ""
        return (
            f"{type(self).__name__}({real} windows + {rows - real} filling rows x {length} tokens, "
            f"{self.num_targets} of {rows * length} targets count, int64 on {self.input_ids.device}{extra})"
        )

    def _repr_html_(self) -> str:
        shapes = {name: f"{str(self[name].dtype)[6:]} {list(self[name].shape)}" for name in Batch.keys(self)}
        return html_table(repr(self), shapes)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Return the batch with every tensor on `device` except `window_ids` and `source_ids`, which name samples.

        Trainers (Lightning, Accelerate) look for this method to move objects that they do not know.
        """
        tensors = {field.name: getattr(self, field.name) for field in fields(Batch) if field.name not in NAMES}
        moved = {
            name: tensor.to(device, non_blocking=non_blocking) for name, tensor in tensors.items() if tensor is not None
        }
        return replace(self, **moved)


class Int64Block:
    """A prefetch unit in main memory, converted `INT64_TOKENS` at a time."""

    def __init__(self, rows: RowBatch, *, samples: SampleIds, end_of_text: int | None, batch_size: int) -> None:
        self._rows, self._samples, self._end_of_text = rows, samples, end_of_text
        self._height = batch_size * max(1, INT64_TOKENS // (batch_size * (rows.ids.shape[1] - 1)))
        self._start, self._tensors = -1, dict[str, torch.Tensor]()  # what is converted: its first row, and its fields

    def batch(self, rows: slice) -> Batch:
        """Return the batch in these rows of the unit."""
        start = rows.start // self._height * self._height
        if start != self._start:
            several = slice(start, start + self._height)
            batches = to_int64(self._rows, several, samples=self._samples, end_of_text=self._end_of_text)
            self._start, self._tensors = start, dict(batches)
        here = slice(rows.start - start, rows.stop - start)
        return Batch(**{name: tensor[here] for name, tensor in self._tensors.items()})


class DeviceBlock:
    """A prefetch unit on a device."""

    def __init__(self, rows: RowBatch, device: torch.device) -> None:
        ids = rows.ids
        self._is_unsigned = ids.dtype == np.uint16  # torch computes with int16, not with uint16
        self._ids = _copy(torch.from_numpy(ids.view(np.int16) if self._is_unsigned else ids), device)
        self._bounds = None if rows.bounds is None else _copy(torch.from_numpy(rows.bounds), device)

    def to_int64(self, rows: slice, *, samples: SampleIds, end_of_text: int | None = None) -> Batch:
        """Return rows of the unit as a batch of int64 on the device; what names samples stays in main memory."""
        bounds_B2 = None if self._bounds is None else self._bounds[rows]
        inputs_BT, targets_BT = self._converted(self._ids[rows, :-1]), self._converted(self._ids[rows, 1:])
        return build_batch(inputs_BT, targets_BT, bounds_B2, _slice(samples, rows), end_of_text=end_of_text)

    def _converted(self, ids_BT: torch.Tensor) -> torch.Tensor:
        int64_BT = ids_BT.to(torch.int64, memory_format=torch.contiguous_format)
        return int64_BT.bitwise_and_(0xFFFF) if self._is_unsigned else int64_BT


def to_int64(rows: RowBatch, which: slice, *, samples: SampleIds, end_of_text: int | None = None) -> Batch:
    """Return some of the gathered rows as a batch of int64."""
    ids_BT1 = rows.ids[which]
    inputs_BT = torch.from_numpy(ids_BT1[:, :-1].astype(np.int64))  # copies, since targets are overwritten
    targets_BT = torch.from_numpy(ids_BT1[:, 1:].astype(np.int64))
    bounds_B2 = None if rows.bounds is None else torch.from_numpy(rows.bounds[which])
    return build_batch(inputs_BT, targets_BT, bounds_B2, _slice(samples, which), end_of_text=end_of_text)


def build_batch(
    inputs_BT: torch.Tensor,
    targets_BT: torch.Tensor,
    bounds_B2: torch.Tensor | None,
    samples: SampleIds,
    *,
    end_of_text: int | None,
) -> Batch:
    """Build a batch. Targets outside `bounds_B2` become -100, in place; `end_of_text` numbers the documents."""
    if bounds_B2 is not None:
        positions_T = torch.arange(targets_BT.shape[1], device=targets_BT.device)
        outside_BT = (positions_T < bounds_B2[:, :1]) | (positions_T >= bounds_B2[:, 1:])
        targets_BT.masked_fill_(outside_BT, IGNORED)
    documents_BT, positions_BT = (None, None) if end_of_text is None else number_documents(inputs_BT, end_of_text)
    return Batch(
        input_ids=inputs_BT,
        target_ids=targets_BT,
        window_ids=torch.from_numpy(samples.windows),
        source_ids=None if samples.sources is None else torch.from_numpy(samples.sources),
        document_ids=documents_BT,
        position_ids=positions_BT,
    )


def html_table(title: str, rows: Mapping[str, str]) -> str:
    """Return names and values as an HTML table, for notebooks."""
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return f"<table><caption>{escape(title)}</caption>{cells}</table>"


def number_documents(ids_BT: torch.Tensor, end_of_text: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each token's document within its window, and its position in the document: both int64 [B, T].

    An end-of-text token is the last token of its document; the token after it is the first of the next one. In a window
    that starts inside a document, positions count from the window's start. If the same token starts documents too
    (`StartAndEnd`), the second of two is the first token of a document.

    >>> number_documents(torch.tensor([[5, 6, 0, 7, 0, 0, 8]]), 0)
    (tensor([[0, 0, 0, 1, 1, 2, 3]]), tensor([[0, 1, 2, 0, 1, 0, 0]]))
    """
    is_first_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    is_first_BT[:, 1:] = ids_BT[:, :-1] == end_of_text
    if isinstance(end_of_text, StartAndEnd):
        is_first_BT[:, 1:] &= ids_BT[:, 1:] == end_of_text
    positions_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    starts_BT = torch.where(is_first_BT, positions_T, torch.zeros_like(positions_T)).cummax(dim=1).values
    return is_first_BT.to(torch.int64).cumsum(dim=1), positions_T - starts_BT


def _slice(samples: SampleIds, rows: slice) -> SampleIds:
    return SampleIds(samples.windows[rows], None if samples.sources is None else samples.sources[rows])


def _copy(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # torch keeps it until the copy is done
    return tensor.to(device, non_blocking=True)
