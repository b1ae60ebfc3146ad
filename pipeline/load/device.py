"""Batches on an accelerator: IDs are copied narrow, a block at a time, and widened there.

A block of many batches goes over as uint16 (int32 for large vocabularies) from pinned memory, so the copy is
asynchronous and a quarter of what int64 inputs would take, an eighth of inputs and targets. Each batch is then cut and
widened on the device, in the order of its stream, so no copy is waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.load.batch import Batch, ignore_targets, number_documents

if TYPE_CHECKING:
    from pipeline.load.rows import Gathered, Names


class DeviceBlock:
    """A gathered block on a device."""

    def __init__(self, gathered: Gathered, device: torch.device) -> None:
        ids = gathered.ids
        self._is_unsigned = ids.dtype == np.uint16  # torch computes with int16, not with uint16
        self._ids = _copy(torch.from_numpy(ids.view(np.int16) if self._is_unsigned else ids), device)
        self._bounds = None if gathered.bounds is None else _copy(torch.from_numpy(gathered.bounds), device)

    def widen(self, rows: slice, *, names: Names, end_of_text: int | None = None) -> Batch:
        """Rows of the block as a batch of int64 on the device; what names samples stays in memory."""
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
