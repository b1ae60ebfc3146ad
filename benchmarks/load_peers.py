"""Load shuffled batches from a peer's files with the peer's own loader, without worker processes.

    python benchmarks/load_peers.py NAME FOLDER BATCH_SIZE MAX_LENGTH SECONDS

Each yields a batch's inputs and targets, int64 [batch_size, max_length]. A window that includes its next token is
converted to int64 once, and inputs and targets are two views of it: the cheapest way.
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

WARM_UP = 20  # batches that are not counted: files are opened, decompressed and mapped, threads start


def litdata(folder: Path, batch_size: int, max_length: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Use LitData: blocks of memory-mapped chunks, shuffled, with its own resumable loader."""
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    loader = TokensLoader(block_size=max_length + 1)
    dataset = StreamingDataset(str(folder / "chunks"), item_loader=loader, shuffle=True, drop_last=True)
    for windows in epochs(StreamingDataLoader(dataset, batch_size=batch_size, num_workers=0, drop_last=True)):
        yield halves(windows)


def streaming(folder: Path, batch_size: int, _: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Use MosaicML Streaming, with its own resumable loader."""
    forget_vision()
    from streaming import StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=batch_size)
    for batch in epochs(StreamingDataLoader(dataset, batch_size=batch_size, num_workers=0, drop_last=True)):
        yield halves(batch["tokens"])


def datasets(folder: Path, batch_size: int, _: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Use Hugging Face datasets, map-style in torch's format, one look-up per batch: the fastest way that it offers."""
    from datasets import load_dataset

    files = str(folder / "windows.parquet")
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / "cache"))
    sampler = BatchSampler(RandomSampler(rows), batch_size, drop_last=True)
    for batch in epochs(DataLoader(rows.with_format("torch"), sampler=sampler, batch_size=None)):
        yield batch["input_ids"], batch["target_ids"]


def datatrove(folder: Path, batch_size: int, max_length: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Use datatrove's token files with torch's loader; the caller would have to keep its position."""
    from datatrove.utils.dataset import DatatroveFolderDataset

    dataset = DatatroveFolderDataset(str(folder / "tokens"), max_length)
    for batch in epochs(DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True)):
        yield halves(batch["input_ids"])


class MappedTokens(Dataset[torch.Tensor]):
    """Windows of one flat file of uint16 IDs, as Megatron-LM's GPTDataset reads them, without masks and positions."""

    def __init__(self, file: Path, max_length: int) -> None:
        self.tokens = np.memmap(file, np.uint16, mode="r")
        self.max_length = max_length

    def __len__(self) -> int:
        """Return the number of complete windows."""
        return (len(self.tokens) - 1) // self.max_length

    def __getitem__(self, at: int) -> torch.Tensor:
        """Return one window and its next token."""
        start = at * self.max_length
        return torch.from_numpy(self.tokens[start : start + self.max_length + 1].astype(np.int64))


def megatron(folder: Path, batch_size: int, max_length: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Use Megatron's way with torch's loader."""
    dataset = MappedTokens(folder / "tokens.bin", max_length)
    for windows in epochs(DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True)):
        yield halves(windows)


def epochs(loader: Any) -> Iterator[Any]:
    """Yield the batches of epoch after epoch."""
    while True:
        yield from loader


def halves(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split windows of one token more into inputs and targets."""
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
    """Count batches for some seconds."""
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
