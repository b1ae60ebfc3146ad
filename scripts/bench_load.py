"""`python scripts/bench.py load`: batches a second from shards, compared with what a training program could do instead.

Baselines, interleaved with the loader in every round:

* slices: random slices of a uint16 memory map, converted to int64 tensors one by one, as nanoGPT's `get_batch` does.
* integer slices: the same, asked for by plain integers; nanoGPT asks by tensors, which takes as long as the slices.
* copy: one contiguous slice of the map for a complete batch, an upper limit: nothing is shuffled.
* embedding: `nn.Embedding` alone on ready batches, compared with embedded batches from the loader.

"documents" is a loader with `document_ids=True` of which each batch's `document_ids`, `cu_seqlens` and `max_seqlen` are
looked at, "positions" one of which `position_ids` is looked at instead of the first, and "bounds" one of which only the
last two are; compare them with "loader".

Under `lanes` a loader keeps row groups that fit into half of its memory budget: those of 287 MB of text, not those of
1 GB. "always decoding" is then the rate of the first epoch, and of every epoch of larger data. It is measured over
complete epochs, from their start, so each row group counts that was decoded ahead, and none is decoded in vain.

The map has the same tokens as the shards. Figures are medians over the rounds. Compare the ratios, since a machine's
speed varies. Memory is measured in separate processes.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from bench_corpus import make_jsonl
from bench_rounds import PEAK, run_program
from torch.utils.data import DataLoader

from pipeline import CorpusConfig, ShardLoader, TokenEmbedding, WindowConfig, embed_batches, write_shards
from pipeline.loader.row_group_cache import slot_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Item = TypeVar("Item")
MEMORY = (
    PEAK
    + """
import sys
import torch, pyarrow.parquet
from pipeline import ShardLoader
base = peak()
loader = ShardLoader(sys.argv[1], batch_size=8, shuffle=sys.argv[2])
for epoch in range(int(sys.argv[3])):
    for batch in loader: pass
print((peak() - base) / 2**20)
"""
)


def main(arguments: list[str]) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="bench.py load", description=__doc__)
    parser.add_argument(
        "--megabytes", type=int, default=60, help="of text; the loader's target is stated for 1 GB of shards"
    )
    parser.add_argument("--file", type=Path, help="a JSONL file with a field `text`; default: one is made")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dim", type=int, default=256, help="of the embedding: floats for each token")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=50, help="of the second memory measurement")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--orders", nargs="+", choices=["lanes", "full", "none"], default=["lanes", "full"])
    options = parser.parse_args(arguments)
    shards = make_shards(options.file or make_jsonl(options.megabytes), options.max_length)
    for shuffle in options.orders:
        compare(shards, shuffle, options)
    for shuffle in options.orders:
        memory(shards, shuffle, options.epochs)


def make_shards(corpus: Path, max_length: int) -> Path:
    """Write the corpus as a data set, unless it exists; return its path."""
    path = Path(f"outputs/bench/load-{corpus.stem}-{max_length}")
    report = write_shards(
        path,
        corpus=CorpusConfig(name="jsonl", path=corpus),
        window=WindowConfig(max_length=max_length),
        cache="outputs/bench/cache",
    )
    split = report.manifest.splits["train"]
    size = sum(shard.bytes for shard in split.shards)
    print(f"{path}: {split.num_windows:,} windows of {max_length}, {size / 1e6:.0f} MB\n")
    return path


def compare(shards: Path, shuffle: str, options: argparse.Namespace) -> None:
    """Print a table of all rates, each also as a ratio to the slices of the memory map."""
    batch, length = options.batch_size, options.max_length
    loader = ShardLoader(shards, batch_size=batch, shuffle=shuffle)
    # Less than twice the memory of all row groups: they are evicted, as those of data too large to keep would be.
    budget = 2 * len(loader.reader.groups) * slot_bytes(loader.reader) - 1
    decoding = ShardLoader(shards, batch_size=batch, shuffle=shuffle, memory_budget=budget)
    decoding_documents = ShardLoader(shards, batch_size=batch, shuffle=shuffle, memory_budget=budget, document_ids=True)
    embedding = TokenEmbedding(loader.reader.tokenizer["vocab_size"], options.dim, length)
    plain = ShardLoader(shards, batch_size=batch, shuffle=shuffle)
    workers = ShardLoader(shards, batch_size=batch, shuffle=shuffle, workers=options.workers)
    with_documents = [ShardLoader(shards, batch_size=batch, shuffle=shuffle, document_ids=True) for _ in range(3)]
    # Many batches: a single one would find its few vectors in the processor's cache, unlike in training.
    ready = [one.input_ids for one in islice(ShardLoader(shards, batch_size=batch, shuffle=shuffle), 64)]

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        tokens = write_map(shards, Path(folder) / "tokens.bin")
        ways: dict[str, Callable[[], float]] = {
            "slices": lambda: rate(slices(tokens, batch, length), batch * length, options.seconds),
            "integer slices": lambda: rate(slices(tokens, batch, length, plain=True), batch * length, options.seconds),
            "copy": lambda: rate(copies(tokens, batch, length), batch * length, options.seconds),
            "loader": lambda: rate(forever(loader), batch * length, options.seconds),
            "documents": lambda: rate(
                forever(with_documents[0]), batch * length, options.seconds, look="document_ids cu_seqlens max_seqlen"
            ),
            "positions": lambda: rate(
                forever(with_documents[1]), batch * length, options.seconds, look="position_ids cu_seqlens max_seqlen"
            ),
            "bounds": lambda: rate(
                forever(with_documents[2]), batch * length, options.seconds, look="cu_seqlens max_seqlen"
            ),
            "loader, always decoding": lambda: rate(complete_epochs(decoding, options.seconds), batch * length),
            "documents, always decoding": lambda: rate(
                complete_epochs(decoding_documents, options.seconds),
                batch * length,
                look="document_ids cu_seqlens max_seqlen",
            ),
            f"loader, {options.workers} workers": lambda: rate(
                forever(workers), batch * length, options.seconds, skip=100
            ),
            f"DataLoader, {options.workers} workers": lambda: rate(
                DataLoader(plain, batch_size=None, num_workers=options.workers),
                batch * length,
                options.seconds,
                skip=100,
            ),
            "embedding alone": lambda: rate(
                (embedding(ids) for ids in forever(ready)), batch * length, options.seconds, skip=5
            ),
            "embedded batches": lambda: rate(
                embed_batches(forever(loader), embedding), batch * length, options.seconds, skip=800
            ),
        }
        if shuffle != "lanes":
            del ways["loader, always decoding"], ways["documents, always decoding"]
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                rates[name].append(way())
    middle = {name: statistics.median(values) for name, values in rates.items()}
    print(f"order {shuffle}, batches of {batch} x {length}")
    for name, value in middle.items():
        spread = f"{min(rates[name]) / 1e6:.0f} to {max(rates[name]) / 1e6:.0f}"
        print(f"  {name:<28}{value / 1e6:8.1f} Mtok/s  ({spread})   {value / middle['slices']:.2f} x slices")
    always, pairs = "loader, always decoding", [("embedded batches", "embedding alone")]
    pairs += [(name, "loader") for name in ("documents", "positions", "bounds")]
    if always in ways:
        pairs += [(always, other) for other in ("slices", "integer slices", "copy")]
        pairs.append(("documents, always decoding", always))
    for name, other in pairs:
        ratio = statistics.median(one / two for one, two in zip(rates[name], rates[other], strict=True))
        print(f"  {name}: {ratio:.2f} of {other} (median of the rounds' ratios)")
    for place, name in ((0.0, "start"), (0.5, "resume at 50 %")):
        print(f"  first batch, {name}: {statistics.median(first(shards, shuffle, place) for _ in range(5)):.3f} s")
    print()


def first(shards: Path, shuffle: str, place: float) -> float:
    """Seconds from opening a data set to the first batch behind a place of the epoch."""
    started = time.perf_counter()
    loader = ShardLoader(shards, shuffle=shuffle)
    loader.load_state_dict({**loader.state_dict(), "consumed": int(place * len(loader.order))})
    batches = iter(loader)
    next(batches)
    seconds = time.perf_counter() - started
    batches.close()
    return seconds


def rate(
    batches: Iterable[object], tokens: int, seconds: float = math.inf, *, skip: int = 0, look: str = "embeddings"
) -> float:
    """Return the tokens a second of an iterable after its first `skip` batches.

    Skipping leaves out the start of processes. Where batches are read ahead, skipping would do work before the clock
    starts, so nothing is skipped.
    """
    running, names = iter(batches), look.split()
    for _ in islice(running, skip):
        pass
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        if (one := next(running, None)) is None:
            break
        for name in names:
            getattr(one, name, None)  # computed when they are looked at
        count += 1
    result = count * tokens / (time.perf_counter() - started)
    close = getattr(running, "close", None)
    if close:
        close()
    return result


def forever(batches: Iterable[Item]) -> Iterable[Item]:
    """Yield the batches of epoch after epoch."""
    while True:
        yield from batches


def complete_epochs(loader: ShardLoader, seconds: float) -> Iterable[object]:
    """Yield the batches of complete epochs until the time is over."""
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        yield from loader


def slices(tokens: np.memmap, batch: int, length: int, *, plain: bool = False) -> Iterable[object]:
    """Yield random windows as in https://github.com/karpathy/nanoGPT, `get_batch` of train.py."""
    while True:
        drawn = torch.randint(len(tokens) - length - 1, (batch,))
        starts = drawn.tolist() if plain else drawn
        inputs = torch.stack([torch.from_numpy(tokens[i : i + length].astype(np.int64)) for i in starts])
        targets = torch.stack([torch.from_numpy(tokens[i + 1 : i + 1 + length].astype(np.int64)) for i in starts])
        yield inputs, targets


def copies(tokens: np.memmap, batch: int, length: int) -> Iterable[object]:
    """Yield batches whose inputs and targets are one copy each."""
    while True:
        for start in range(0, len(tokens) - batch * length - 1, batch * length):
            inputs = torch.from_numpy(tokens[start : start + batch * length].astype(np.int64))
            targets = torch.from_numpy(tokens[start + 1 : start + 1 + batch * length].astype(np.int64))
            yield inputs.view(batch, length), targets.view(batch, length)


def write_map(shards: Path, path: Path) -> np.memmap:
    """Write the data set's inputs, one after the other, to a file of uint16; return its memory map."""
    with path.open("wb") as file:
        for batch in ShardLoader(shards, shuffle="none", batch_size=64):
            file.write(batch.input_ids.numpy().astype(np.uint16).tobytes())
    return np.memmap(path, dtype=np.uint16, mode="r")


def memory(shards: Path, shuffle: str, epochs: int) -> None:
    """Print the peak memory beyond the imports, measured in separate processes."""
    for count in (1, epochs):
        (more,) = run_program(MEMORY, shards.resolve(), shuffle, count)
        print(f"memory, {shuffle}, after {count} epochs: +{float(more):.0f} MiB")
