"""What one rank of a large job costs before it reads a token: start, order, resume and memory, at any number of shards.

    python scripts/simulate.py                       # 15 trillion tokens, and smaller data sets for comparison
    python scripts/simulate.py --shards 1000 --ranks 64

A synthetic data set of that size is made in a temporary folder: a manifest and the index of its shards, with made-up
sizes and hashes. The shards do not exist, except those that a loader looks at when it starts (the first and the last,
or all of up to 1,024), which are holes of their size. A process of its own then does what a rank does before its first
batch, and says what that took:

* start: open the data set as `ShardLoader` does, and place the loader in the middle of an epoch by a state;
* order: ask for the windows at 8,192 indices of an epoch, the median over epochs and places;
* find: look up the shards of the first row groups that the rank would read, each in the index;
* memory: the peak of the process above what it had after its imports, without the buffers for tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this checkout, installed or not

MAX_LENGTH, WINDOWS_PER_GROUP, WINDOWS_PER_SHARD = 1024, 512, 1 << 15
TOKENS = 15 * 10**12
SHARD_BYTES = 1_010_000 * WINDOWS_PER_SHARD * MAX_LENGTH // 10**6  # 1.01 bytes a token, as technical English takes
INDICES, FOUND = 8192, 16
COLUMNS = ("tokens", "shards", "index_bytes", "start_ms", "order_ms", "find_ms", "resume_ms", "memory_mb")


def main(arguments: list[str] | None = None) -> None:
    """Make each data set, measure it in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shards = -(-TOKENS // (WINDOWS_PER_SHARD * MAX_LENGTH))
    parser.add_argument("--shards", type=int, nargs="+", default=[10**3, 10**4, 10**5, shards])
    parser.add_argument("--ranks", type=int, default=1000)
    parser.add_argument("--lanes", type=int, default=4000)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # what the process of its own is given
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(options.measure, ranks=options.ranks, lanes=options.lanes)))
        return
    print("  ".join(f"{name:>17}" for name in COLUMNS))
    for count in options.shards:
        with tempfile.TemporaryDirectory(prefix="stridemill-simulate-") as folder:
            made = make_data_set(Path(folder), num_shards=count)
            command = [sys.executable, __file__, "--measure", folder]
            command += ["--ranks", str(options.ranks), "--lanes", str(options.lanes)]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print("  ".join(f"{(made | found)[name]:>17,}" for name in COLUMNS), flush=True)


def make_data_set(folder: Path, *, num_shards: int) -> dict[str, int]:
    """Write the manifest and the index of a data set whose shards do not exist, and return its size."""
    from pipeline.loader.damage import MANY_SHARDS
    from pipeline.settings import ShardsConfig
    from pipeline.shards.manifest import Manifest, SplitEntry, write_manifest

    shards = MadeUpShards(num_shards)
    windows = num_shards * WINDOWS_PER_SHARD - 100  # the last row group is smaller
    split = SplitEntry(
        num_documents=1,
        num_tokens=windows * MAX_LENGTH + 1,
        num_windows=windows,
        max_length=MAX_LENGTH,
        stride=MAX_LENGTH,
        shards=shards,
        windows_per_group=WINDOWS_PER_GROUP,
        windows_per_shard=WINDOWS_PER_SHARD,
    )
    manifest = Manifest(
        fingerprint=hashlib.sha256(f"{num_shards}".encode()).hexdigest(),
        tokenizer={
            "name": "made up",
            "hash": "0" * 64,
            "vocab_size": 50_257,
            "special_tokens": {"<|endoftext|>": 50_256},
        },
        corpus={"documents": 1, "characters": 1, "bytes": 1, "bad": {}},
        store="0" * 64,
        windows={
            "max_length": MAX_LENGTH,
            "stride": MAX_LENGTH,
            "tail": "drop",
            "documents": "join",
            "order": "sequential",
            "seed": None,
            "end_of_text": 50_256,
            "pad_id": None,
        },
        splits={"train": split},
        written_by={"pyarrow": "none"},
        config={"shards": {"windows_per_shard": ShardsConfig().windows_per_shard}},
    )
    write_manifest(folder, manifest)
    for number in range(num_shards) if num_shards <= MANY_SHARDS else (0, num_shards - 1):  # what a loader looks at
        path = folder / shards[number].path
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.truncate(path, shards[number].bytes)
    return {
        "tokens": windows * MAX_LENGTH,
        "shards": num_shards,
        "index_bytes": (folder / "index.parquet").stat().st_size,
    }


class MadeUpShards(Sequence[Any]):
    """The entries of shards that do not exist, each made when it is asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> Any: ...

    @overload
    def __getitem__(self, number: slice) -> list[Any]: ...

    def __getitem__(self, number: int | slice) -> Any:
        from pipeline.shards.entries import ShardEntry, shard_path

        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(self._count))]
        number = range(self._count)[number]
        digest, rest = hashlib.sha256(f"shard {number}".encode()).hexdigest(), 100 * (number == self._count - 1)
        return ShardEntry(
            path=shard_path("train", number, self._count),
            num_windows=WINDOWS_PER_SHARD - rest,
            bytes=SHARD_BYTES + number % 1000,
            sha256=digest,
            row_groups=[],  # the index has none
            footer_start=SHARD_BYTES - 40_000,
            footer_sha256=digest[::-1],
        )


def measure(folder: Path, *, ranks: int, lanes: int) -> dict[str, int | float]:
    """Do what a rank does before its first batch, and return what it took."""
    import numpy as np

    from pipeline import ShardLoader, read_manifest

    rng, imported = np.random.default_rng(0), peak_memory()

    def open_rank() -> ShardLoader:
        return ShardLoader(folder, shuffle="lanes", lanes=lanes, batch_size=8, rank=ranks // 2, world_size=ranks)

    started = time.perf_counter()
    loader = open_rank()
    half = loader.state_dict() | {"consumed": len(loader.order) // 2}
    loader.load_state_dict(half)
    opened = time.perf_counter()
    order_seconds = []
    for epoch in range(10):
        first = int(rng.integers(0, len(loader.order) - INDICES))
        before = time.perf_counter()
        loader.order.windows(np.arange(first, first + INDICES), epoch)
        order_seconds.append(time.perf_counter() - before)
    before = time.perf_counter()
    split = read_manifest(folder).splits["train"]
    of_shard = WINDOWS_PER_SHARD // WINDOWS_PER_GROUP
    spans = loader.order.spans(loader.consumed, 0, range(ranks // 2 % lanes, lanes, ranks))
    found = [split.shards[span.group // of_shard] for span in islice(spans, FOUND)]
    after = time.perf_counter()
    assert len(found) == FOUND, "the rank has more row groups than these"
    again = open_rank()
    again.load_state_dict(loader.state_dict())
    resumed = time.perf_counter()
    return {
        "start_ms": round(1000 * (opened - started), 1),
        "order_ms": round(1000 * statistics.median(order_seconds), 1),
        "find_ms": round(1000 * (after - before), 1),
        "resume_ms": round(1000 * (resumed - after), 1),
        "memory_mb": round((peak_memory() - imported) / 1e6, 1),
    }


def peak_memory() -> int:
    """Return the most bytes that this process had in memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
