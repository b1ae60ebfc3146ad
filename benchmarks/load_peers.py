"""Shuffled batches from what a peer's script wrote, by the peer's own loader, without worker processes.

    python benchmarks/load_peers.py NAME FOLDER BATCH_SIZE MAX_LENGTH SECONDS

Each gives inputs and targets of a batch, int64 [batch_size, max_length]. A window that holds its next token as well is
widened once and gives two views, which is the least that can be done.
"""

from __future__ import annotations

import sys
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from common import forget_vision, report
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WARM_UP = 20  # batches that are not counted: files are opened, unpacked and mapped, threads started


def litdata(folder: Path, batch_size: int, max_length: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """LitData: blocks of memory-mapped chunks, shuffled, with its own resumable loader."""
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    loader = TokensLoader(block_size=max_length + 1)
    dataset = StreamingDataset(str(folder / "chunks"), item_loader=loader, shuffle=True, drop_last=True)
    for windows in epochs(StreamingDataLoader(dataset, batch_size=batch_size, num_workers=0, drop_last=True)):
        yield halves(windows)


def streaming(folder: Path, batch_size: int, _: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """MosaicML Streaming, with its own resumable loader."""
    forget_vision()
    from streaming import StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=batch_size)
    for batch in epochs(StreamingDataLoader(dataset, batch_size=batch_size, num_workers=0, drop_last=True)):
        yield halves(batch["tokens"])


def datasets(folder: Path, batch_size: int, _: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Hugging Face datasets, map-style in torch's format, a whole batch in one look-up: the fastest that it offers."""
    from datasets import load_dataset

    files = str(folder / "windows.parquet")
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / "cache"))
    sampler = BatchSampler(RandomSampler(rows), batch_size, drop_last=True)
    for batch in epochs(DataLoader(rows.with_format("torch"), sampler=sampler, batch_size=None)):
        yield batch["input_ids"], batch["target_ids"]


def datatrove(folder: Path, batch_size: int, max_length: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The token files of datatrove under torch's loader; where it stands is for the caller to keep."""
    from datatrove.utils.dataset import DatatroveFolderDataset

    dataset = DatatroveFolderDataset(str(folder / "tokens"), max_length)
    for batch in epochs(DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True)):
        yield halves(batch["input_ids"])


class MappedTokens(Dataset[torch.Tensor]):
    """Windows of one flat file of uint16 IDs, as Megatron-LM's GPTDataset reads them; masks and positions left out."""

    def __init__(self, file: Path, max_length: int) -> None:
        self.tokens = np.memmap(file, np.uint16, mode="r")
        self.max_length = max_length

    def __len__(self) -> int:
        """How many whole windows there are."""
        return (len(self.tokens) - 1) // self.max_length

    def __getitem__(self, at: int) -> torch.Tensor:
        """One window and the token behind it."""
        start = at * self.max_length
        return torch.from_numpy(self.tokens[start : start + self.max_length + 1].astype(np.int64))


def megatron(folder: Path, batch_size: int, max_length: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Megatron's way under torch's loader."""
    dataset = MappedTokens(folder / "tokens.bin", max_length)
    for windows in epochs(DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True)):
        yield halves(windows)


def epochs(loader: Any) -> Iterator[Any]:
    """One epoch after the other."""
    while True:
        yield from loader


def halves(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of windows that have one token more."""
    wide = windows.long()
    return wide[:, :-1], wide[:, 1:]


PEERS: dict[str, Callable[[Path, int, int], Iterator[tuple[torch.Tensor, torch.Tensor]]]] = {
    "litdata": litdata,
    "streaming": streaming,
    "datasets": datasets,
    "datatrove": datatrove,
    "megatron": megatron,
}


def main() -> None:
    """Count the batches of some seconds."""
    name, folder, batch_size, max_length, seconds = sys.argv[1:6]
    shape = (int(batch_size), int(max_length))
    batches = PEERS[name](Path(folder), *shape)
    for inputs, targets in islice(batches, WARM_UP):
        assert inputs.shape == targets.shape == shape, f"{name} gives batches of {tuple(inputs.shape)}"
        assert inputs.dtype == targets.dtype == torch.int64, f"{name} gives batches of {inputs.dtype}"
    started, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - started) < float(seconds):
        next(batches)
        count += 1
    report(taken, count * shape[0] * shape[1])


if __name__ == "__main__":
    main()
