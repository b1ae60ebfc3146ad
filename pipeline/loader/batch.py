"""What the loader hands over: batches, widened from the narrow rows that were gathered."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.windows import IGNORED

if TYPE_CHECKING:
    from typing import Self

    from pipeline.loader.row_group import RowBatch, SampleIds


# Batches are views of so many tokens that are widened together, 512 KiB as int64: with memory for each alone the loader
# reaches two thirds of its speed, and the allocator moves an embedding's output about, out of the processor's cache.
INT64_TOKENS = 1 << 16
NAMES = ("window_ids", "source_ids")  # of samples: they stay in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Windows side by side. B windows of T tokens each.

    The loader's batches are views of memory that some of them share, half a megabyte for each tensor at most where a
    batch is smaller: clone the tensors of one that is to be kept, saved or sent for long.
    """

    input_ids: torch.Tensor  # int64 [B, T]
    target_ids: torch.Tensor  # int64 [B, T]: the same one token later; -100 where there is nothing to predict
    window_ids: torch.Tensor  # int64 [B]: each window's number in its split, -1 for a row that only fills the batch
    source_ids: torch.Tensor | None = None  # int64 [B]: of a mix, the number of each window's data set
    document_ids: torch.Tensor | None = None  # int64 [B, T]: the document of each input, counted within the window
    position_ids: torch.Tensor | None = None  # int64 [B, T]: the place of each input since its document began

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The batch with every tensor on `device` but `window_ids` and `source_ids`, which name samples.

        Trainers (Lightning, Accelerate) look for this method to move what they do not know.
        """
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in NAMES}
        moved = {
            name: tensor.to(device, non_blocking=non_blocking) for name, tensor in tensors.items() if tensor is not None
        }
        return replace(self, **moved)


class Int64Block:
    """A gathered block in memory, widened `INT64_TOKENS` at a time."""

    def __init__(self, gathered: RowBatch, *, names: SampleIds, end_of_text: int | None, batch_size: int) -> None:
        self._gathered, self._names, self._end_of_text = gathered, names, end_of_text
        self._height = batch_size * max(1, INT64_TOKENS // (batch_size * (gathered.ids.shape[1] - 1)))
        self._start = 0
        self._wide: Batch | None = None

    def batch(self, rows: slice) -> Batch:
        """The batch in these rows of the block."""
        start = rows.start // self._height * self._height
        if self._wide is None or start != self._start:
            together = slice(start, start + self._height)
            self._wide = to_int64(self._gathered, together, names=self._names, end_of_text=self._end_of_text)
            self._start = start
        wide, here = self._wide, slice(rows.start - start, rows.stop - start)
        return Batch(
            input_ids=wide.input_ids[here],
            target_ids=wide.target_ids[here],
            window_ids=wide.window_ids[here],
            source_ids=None if wide.source_ids is None else wide.source_ids[here],
            document_ids=None if wide.document_ids is None else wide.document_ids[here],
            position_ids=None if wide.position_ids is None else wide.position_ids[here],
        )


def to_int64(gathered: RowBatch, rows: slice, *, names: SampleIds, end_of_text: int | None = None) -> Batch:
    """RowInfo of a block as a batch of int64. With `end_of_text` documents are numbered, see `number_documents`."""
    ids_BT1 = gathered.ids[rows]
    inputs_BT = torch.from_numpy(ids_BT1[:, :-1].astype(np.int64))
    targets_BT = torch.from_numpy(ids_BT1[:, 1:].astype(np.int64))
    if gathered.bounds is not None:
        ignore_targets(targets_BT, torch.from_numpy(gathered.bounds[rows]))
    documents_BT, places_BT = (None, None) if end_of_text is None else number_documents(inputs_BT, end_of_text)
    return Batch(
        input_ids=inputs_BT,
        target_ids=targets_BT,
        window_ids=torch.from_numpy(names.windows[rows]),
        source_ids=None if names.sources is None else torch.from_numpy(names.sources[rows]),
        document_ids=documents_BT,
        position_ids=places_BT,
    )


def ignore_targets(targets_BT: torch.Tensor, bounds_B2: torch.Tensor) -> None:
    """Overwrite with -100, in place, the targets outside each row's bounds, from .. to."""
    places_T = torch.arange(targets_BT.shape[1], device=targets_BT.device)
    outside_BT = (places_T < bounds_B2[:, :1]) | (places_T >= bounds_B2[:, 1:])
    targets_BT.masked_fill_(outside_BT, IGNORED)


def number_documents(ids_BT: torch.Tensor, end_of_text: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The document of each token within its window, and its place since the document began: both int64 [B, T].

    An end-of-text token is the last token of its document; the token behind it is the first of the next one. A window
    that begins in the middle of a document counts its places from the window's beginning.

    >>> number_documents(torch.tensor([[5, 6, 0, 7, 0, 0, 8]]), 0)
    (tensor([[0, 0, 0, 1, 1, 2, 3]]), tensor([[0, 1, 2, 0, 1, 0, 0]]))
    """
    is_first_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    is_first_BT[:, 1:] = ids_BT[:, :-1] == end_of_text
    places_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    begins_BT = torch.where(is_first_BT, places_T, torch.zeros_like(places_T)).cummax(dim=1).values
    return is_first_BT.to(torch.int64).cumsum(dim=1), places_T - begins_BT


class DeviceBlock:
    """A gathered block on a device."""

    def __init__(self, gathered: RowBatch, device: torch.device) -> None:
        ids = gathered.ids
        self._is_unsigned = ids.dtype == np.uint16  # torch computes with int16, not with uint16
        self._ids = _copy(torch.from_numpy(ids.view(np.int16) if self._is_unsigned else ids), device)
        self._bounds = None if gathered.bounds is None else _copy(torch.from_numpy(gathered.bounds), device)

    def to_int64(self, rows: slice, *, names: SampleIds, end_of_text: int | None = None) -> Batch:
        """RowInfo of the block as a batch of int64 on the device; what names samples stays in memory."""
        inputs_BT, targets_BT = self._widened(self._ids[rows, :-1]), self._widened(self._ids[rows, 1:])
        if self._bounds is not None:
            ignore_targets(targets_BT, self._bounds[rows])
        documents_BT, places_BT = (None, None) if end_of_text is None else number_documents(inputs_BT, end_of_text)
        return Batch(
            input_ids=inputs_BT,
            target_ids=targets_BT,
            window_ids=torch.from_numpy(names.windows[rows]),
            source_ids=None if names.sources is None else torch.from_numpy(names.sources[rows]),
            document_ids=documents_BT,
            position_ids=places_BT,
        )

    def _widened(self, ids_BT: torch.Tensor) -> torch.Tensor:
        wide_BT = ids_BT.to(torch.int64, memory_format=torch.contiguous_format)
        return wide_BT.bitwise_and_(0xFFFF) if self._is_unsigned else wide_BT


def _copy(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # torch keeps it until the copy is done
    return tensor.to(device, non_blocking=True)
