"""What the loader yields: batches of int64, made from the compact rows that were gathered."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

import numpy as np
import torch

from pipeline.base.display import html_table, numbers_table
from pipeline.loader.documents import Documents, DocumentTable
from pipeline.loader.row_group import SampleIds, batches_together, find_ends
from pipeline.rules import reject
from pipeline.windows import IGNORED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from pipeline.loader.row_group import DocumentRule, RowBatch


NAMES = ("window_ids", "source_ids")  # they name samples, and stay in main memory
TENSORS = ("input_ids", "target_ids", *NAMES)
OF_DOCUMENTS = ("document_ids", "position_ids", "cu_seqlens", "max_seqlen")


class NotCollated:
    """What the collators of the Hugging Face Trainer cannot take apart: they ask each sample for its `__dict__`."""

    __slots__ = ()

    @property
    def __dict__(self) -> NoReturn:  # type: ignore[override]
        if "collat" in sys._getframe(1).f_globals.get("__name__", ""):  # noqa: SLF001
            refuse_to_collate()
        raise AttributeError(f"a {type(self).__name__} has no __dict__")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Batch(NotCollated):
    """A batch: B windows of T tokens.

        x, y = batch                  # inputs and targets
        batch["input_ids"]            # every field that is set; `dict(batch)` and `model(**batch)` work too

    Batches are views of memory that some of them share, at most half a megabyte for each tensor if a batch is smaller,
    and four for `document_ids` and `position_ids`: clone the tensors of a batch that you keep, save or send elsewhere.
    """

    input_ids: torch.Tensor  # int64 [B, T]
    target_ids: torch.Tensor  # int64 [B, T]: the same one token later; -100 where nothing is to be predicted
    window_ids: torch.Tensor  # int64 [B]: each window's number in its split, -1 for a row that only fills the batch
    source_ids: torch.Tensor | None = None  # int64 [B]: in a mixture, the number of each window's data set
    documents: Documents | None = None  # with `document_ids=True`: what the properties below are computed from

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter((self.input_ids, self.target_ids))

    def keys(self) -> list[str]:
        """Return the names of the fields that are set."""
        names = [name for name in TENSORS if getattr(self, name) is not None]
        return [*names, *OF_DOCUMENTS] if self.documents is not None else names

    @property
    def document_ids(self) -> torch.Tensor | None:
        """The document of each input, counted within its window; -1 for padding and filling rows: int64 [B, T]."""
        return None if self.documents is None else self.documents.document_ids

    @property
    def position_ids(self) -> torch.Tensor | None:
        """The position of each input since the start of its document, or of the window: int64 [B, T]."""
        return None if self.documents is None else self.documents.position_ids

    @property
    def cu_seqlens(self) -> torch.Tensor | None:
        """Where each document starts in the flattened batch, each row and its padding too, and B * T: int32 [S + 1]."""
        return None if self.documents is None else self.documents.cu_seqlens

    @property
    def max_seqlen(self) -> int | None:
        """The most tokens between two of `cu_seqlens`."""
        return None if self.documents is None else self.documents.max_seqlen

    def huggingface_arguments(self) -> dict[str, Any]:
        """Return what tells a Hugging Face model where documents are.

            model(batch.input_ids, **batch.huggingface_arguments(), use_cache=False)

        These are `position_ids`, and `cu_seq_lens_q`, `cu_seq_lens_k` (int32), `max_length_q`, `max_length_k` (int),
        which FlashAttention takes. Do not pass an `attention_mask` too: models then attend across documents.

        Raises:
            ValueError: the batches have no documents.

        """
        if self.documents is None:
            raise ValueError("this batch does not know its documents; make the loader with document_ids=True")
        bounds, longest = self.documents.cu_seqlens, self.documents.max_seqlen
        return {
            "position_ids": self.documents.position_ids,
            "cu_seq_lens_q": bounds,
            "cu_seq_lens_k": bounds,
            "max_length_q": longest,
            "max_length_k": longest,
        }

    @property
    def num_targets(self) -> int:
        """How many targets count: those that are not -100. Counted when it is looked at."""
        return int((self.target_ids != IGNORED).sum())

    @overload
    def __getitem__(self, name: Literal["max_seqlen", "num_targets"]) -> int: ...  # type: ignore[overload-overlap]

    @overload
    def __getitem__(self, name: str) -> torch.Tensor: ...

    def __getitem__(self, name: str) -> torch.Tensor | int:
        names = self.keys()
        if name not in {*names, "num_targets"}:
            raise KeyError(f"a batch has no {name!r}; this one has {', '.join(names)}")
        value: torch.Tensor | int = getattr(self, name)
        return value

    def __repr__(self) -> str:
        rows, length = self.input_ids.shape
        real = int((self.window_ids >= 0).sum())
        extra = f"; also {', '.join(names)}" if (names := self.keys()[3:]) else ""
        return (
            f"{type(self).__name__}({real} windows + {rows - real} filling rows x {length} tokens, "
            f"{self.num_targets} of {rows * length} targets count, int64 on {self.input_ids.device}{extra})"
        )

    def _repr_html_(self) -> str:
        values = {name: self[name] for name in Batch.keys(self)}
        shapes = {
            name: f"{str(value.dtype)[6:]} {list(value.shape)}" if isinstance(value, torch.Tensor) else str(value)
            for name, value in values.items()
        }
        names = ("window_ids", "input_ids", "target_ids")
        return html_table(repr(self), shapes) + numbers_table({name: values[name].tolist() for name in names})

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Return the batch with every tensor on `device` except `window_ids` and `source_ids`, which name samples.

        Trainers (Lightning, Accelerate) look for this method to move objects that they do not know.
        """
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=non_blocking),
            target_ids=self.target_ids.to(device, non_blocking=non_blocking),
            documents=None if self.documents is None else self.documents.to(device),
        )


def refuse_to_collate(*_: object, **__: object) -> NoReturn:
    """Say what to do instead of collating batches, which a DataLoader with a `batch_size` or a Trainer would do."""
    raise ValueError(
        "a ShardLoader yields batches already: give the DataLoader batch_size=None, or use the loader without it; for "
        "the Hugging Face Trainer, return it from get_train_dataloader (docs/loading.md, Where you train)"
    )


class Int64Block:
    """A prefetch unit, in main memory or on a device, converted `INT64_TOKENS` at a time.

    Few operations for many tokens: each has a price of its own, above all on a device.
    """

    def __init__(
        self,
        rows: RowBatch,
        *,
        samples: SampleIds,
        batch_size: int,
        documents: DocumentTable | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._rows, self._samples, self._documents, self._batch_size = rows, samples, documents, batch_size
        self._device, self._on_device = device, None if device is None else DeviceRows(rows, device)
        self._batches = batches_together(batch_size, rows.ids.shape[1] - 1)
        self._first, self._tensors = -1, dict[str, torch.Tensor]()  # the first of those, and their fields

    def batch(self, rows: slice) -> Batch:
        """Return the batch in these rows of the unit."""
        number = rows.start // self._batch_size
        if (first := number // self._batches * self._batches) != self._first:
            self._convert(first)
        here = number - first
        documents = None if self._documents is None else self._documents.documents(number, self._device)
        within = slice(here * self._batch_size, (here + 1) * self._batch_size)
        return Batch(**{name: tensor[within] for name, tensor in self._tensors.items()}, documents=documents)

    def _convert(self, first: int) -> None:
        size, table = self._batch_size, self._documents
        count = min(self._batches, len(self._rows.ids) // size - first)
        rows = slice(first * size, (first + count) * size)
        unscored = None if table is None else table.unscored(rows)
        if self._on_device is None:
            several = to_int64(self._rows, rows, samples=self._samples, unscored=unscored)
        else:
            several = self._on_device.to_int64(rows, samples=self._samples, unscored=unscored)
        self._tensors = {name: tensor for name in TENSORS if (tensor := getattr(several, name)) is not None}
        self._first = first


class DeviceRows:
    """The compact rows of a prefetch unit, copied to a device."""

    def __init__(self, rows: RowBatch, device: torch.device) -> None:
        ids = rows.ids
        self._is_unsigned = ids.dtype == np.uint16  # torch computes with int16, not with uint16
        self._ids = _copy(torch.from_numpy(ids.view(np.int16) if self._is_unsigned else ids), device)
        self._bounds = None if rows.bounds is None else _copy(torch.from_numpy(rows.bounds), device)
        self._ends = None if rows.ends is None else _copy(torch.from_numpy(rows.ends), device)

    def to_int64(self, which: slice, *, samples: SampleIds, unscored: np.ndarray | None = None) -> Batch:
        """Return some of the rows as a batch of int64 on the device; what names samples stays in main memory."""
        bounds_B2 = None if self._bounds is None else self._bounds[which]
        ends_BE = None if self._ends is None else self._ends[which]
        inputs_BT, targets_BT = self._converted(self._ids[which, :-1]), self._converted(self._ids[which, 1:])
        return build_batch(inputs_BT, targets_BT, bounds_B2, _slice(samples, which), ends_BE=ends_BE, unscored=unscored)

    def _converted(self, ids_BT: torch.Tensor) -> torch.Tensor:
        int64_BT = ids_BT.to(torch.int64, memory_format=torch.contiguous_format)
        return int64_BT.bitwise_and_(0xFFFF) if self._is_unsigned else int64_BT


def to_int64(
    rows: RowBatch,
    which: slice,
    *,
    samples: SampleIds,
    unscored: np.ndarray | None = None,
    documents: Documents | None = None,
) -> Batch:
    """Return some of the gathered rows as a batch of int64; the rest as in `build_batch`.

    In main memory numpy marks the targets that do not count. torch would divide this small work among threads, and wait
    for them where the processor has other work.
    """
    ids_BT1 = rows.ids[which]
    inputs_BT = ids_BT1[:, :-1].astype(np.int64, order="C")  # copies, since targets are overwritten
    targets_BT = ids_BT1[:, 1:].astype(np.int64, order="C")
    if rows.bounds is not None:
        _ignore_outside(targets_BT, rows.bounds[which])
    if rows.ends is not None:
        targets_BT.reshape(-1)[find_ends(rows.ends[which], max_length=targets_BT.shape[1])] = IGNORED
    if unscored is not None:
        targets_BT.reshape(-1)[unscored] = IGNORED
    inputs, targets = torch.from_numpy(inputs_BT), torch.from_numpy(targets_BT)
    return build_batch(inputs, targets, None, _slice(samples, which), documents=documents)


def _ignore_outside(targets_BT: np.ndarray, bounds_B2: np.ndarray) -> None:
    """Ignore the targets outside the bounds of their row: a slice at its start, and one at its end."""
    width = targets_BT.shape[1]
    for row in np.flatnonzero((bounds_B2 != (0, width)).any(axis=1)).tolist():
        first, stop = bounds_B2[row].tolist()
        targets_BT[row, :first] = IGNORED
        targets_BT[row, stop:] = IGNORED


def convert_all(rows: RowBatch, samples: SampleIds, rule: DocumentRule | None) -> Batch:
    """Return all of the gathered rows as one batch of int64."""
    every = slice(0, len(rows.ids))
    if rule is None:
        return to_int64(rows, every, samples=samples)
    table = DocumentTable(rows, rule)
    return to_int64(rows, every, samples=samples, unscored=table.unscored(every), documents=table.documents(0))


def build_batch(
    inputs_BT: torch.Tensor,
    targets_BT: torch.Tensor,
    bounds_B2: torch.Tensor | None,
    samples: SampleIds,
    *,
    ends_BE: torch.Tensor | None = None,
    unscored: np.ndarray | None = None,
    documents: Documents | None = None,
) -> Batch:
    """Build a batch. In place, targets become -100 that do not count.

    These are targets outside `bounds_B2`, those where `ends_BE` says that a document ends, and those at the positions
    `unscored`, int64 [N].
    """
    if bounds_B2 is not None:
        positions_T = torch.arange(targets_BT.shape[1], device=targets_BT.device)
        outside_BT = (positions_T < bounds_B2[:, :1]) | (positions_T >= bounds_B2[:, 1:])
        targets_BT.masked_fill_(outside_BT, IGNORED)
    if ends_BE is not None:
        targets_BT.masked_fill_(unpack_ends(ends_BE, targets_BT.shape[1]), IGNORED)
    if unscored is not None:
        targets_BT.view(-1).index_fill_(0, _copy(torch.from_numpy(unscored), targets_BT.device), IGNORED)
    return Batch(
        input_ids=inputs_BT,
        target_ids=targets_BT,
        window_ids=torch.from_numpy(samples.windows),
        source_ids=None if samples.sources is None else torch.from_numpy(samples.sources),
        documents=documents,
    )


def unpack_ends(ends_BE: torch.Tensor, max_length: int) -> torch.Tensor:
    """Return the bits of `RowBatch.ends` as bool [B, T]: whether a document ends with this input.

    >>> unpack_ends(torch.tensor([[0b00000101, 0b1]], dtype=torch.uint8), 9).to(torch.int64)
    tensor([[1, 0, 1, 0, 0, 0, 0, 0, 1]])
    """
    bits_8 = torch.arange(8, device=ends_BE.device, dtype=torch.uint8)
    return ((ends_BE[:, :, None] >> bits_8) & 1).bool().flatten(1)[:, :max_length]


def _slice(samples: SampleIds, rows: slice) -> SampleIds:
    return SampleIds(samples.windows[rows], None if samples.sources is None else samples.sources[rows])


def _copy(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # torch keeps it until the copy is done
    return tensor.to(device, non_blocking=True)


def find_device(device: torch.device | str | None) -> torch.device | None:
    """Return a device that torch knows."""
    try:
        return None if device is None else torch.device(device)
    except (RuntimeError, TypeError):
        reject("device", "must name a device of torch, such as 'cuda' or 'cpu'", device)
