"""What the loader hands over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Windows side by side. B windows of T tokens each."""

    input_ids: torch.Tensor  # int64 [B, T]
    target_ids: torch.Tensor  # int64 [B, T]: the same one token later; -100 where there is nothing to predict
    window_ids: torch.Tensor  # int64 [B]: each window's number in its split, -1 for a row that only fills the batch
