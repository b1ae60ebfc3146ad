"""`python scripts/bench.py mixture`: what many sources cost, compared with few, and a change of weights.

* start: from the folders to the first batch of a mixture, compared with opening each data set for itself.
* speed: batches of a mixture of many sources, compared with one of three that have as many windows in all. All are
  decoded before, so this is what the order and the gathering cost.
* changes: the last changes of weights, compared with the first. Each is `set_weights` and the batch after it,
  `state_dict`, `load_state_dict` and `source_samples`.

Ratios are medians over rounds in which both run in turn.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from itertools import islice
from pathlib import Path

from bench_load import forever, rate

from pipeline import ShardLoader, ShardsConfig, WindowConfig, write_shards

WORDS = ["the", "a", "of", "to", "in", "and", "that", "window", "token", "shard", "batch", "loads", "reads", "mixes"]
FEW = 3


def main(arguments: list[str]) -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(prog="bench.py mixture", description=__doc__)
    parser.add_argument("--sources", type=int, default=200)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=100, help="of each source")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement of speed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--changes", type=int, default=150)
    parser.add_argument("--orders", nargs="+", choices=["lanes", "full", "none"], default=["lanes", "full"])
    options = parser.parse_args(arguments)
    paths = make_sources(options, options.sources, options.windows)
    few = make_sources(options, FEW, options.windows * options.sources // FEW)  # as many windows in all
    for shuffle in options.orders:
        print(f"order {shuffle}, {len(paths)} sources, batches of {options.batch_size} x {options.max_length}")
        compare_start(paths, shuffle, options)
        compare_speed(paths, few, shuffle, options)
        compare_changes(few, shuffle, options)
        compare_changes(paths, shuffle, options)


def make_sources(options: argparse.Namespace, count: int, windows: int) -> list[Path]:
    """Write the sources, unless they exist; return their folders."""
    folder, draw = Path(f"outputs/bench/mixture-{options.max_length}-{windows}"), random.Random(0)
    paths = []
    for number in range(count):
        paths.append(path := folder / str(number))
        if not (path / "manifest.json").exists():
            text = " ".join(draw.choices(WORDS, k=windows * options.max_length // 4))
            write_shards(
                path,
                corpus=[text[: windows * options.max_length + 1]],
                tokenizer="bytes",
                window=WindowConfig(max_length=options.max_length),
                shards=ShardsConfig(windows_per_group=32),
                cache="outputs/bench/cache",
            )
    return paths


def compare_start(paths: list[Path], shuffle: str, options: argparse.Namespace) -> None:
    """Print the time to a mixture's first batch, and its ratio to that of opening all its data sets."""
    opened, first = [], []
    for _ in range(options.rounds):
        started = time.perf_counter()
        for path in paths:
            ShardLoader(path, batch_size=1, shuffle=shuffle)
        opened.append(time.perf_counter() - started)
        started = time.perf_counter()
        batches = iter(ShardLoader(paths, batch_size=options.batch_size, shuffle=shuffle))
        next(batches)
        first.append(time.perf_counter() - started)
        batches.close()
    ratio = statistics.median(one / other for one, other in zip(first, opened, strict=True))
    print(f"  first batch          {statistics.median(first):.3f} s, {ratio:.2f} of opening them; target: at most 2")


def compare_speed(paths: list[Path], few: list[Path], shuffle: str, options: argparse.Namespace) -> None:
    """Print the speed of a mixture of all sources, and its ratio to that of a mixture of few."""
    budget = 1 << 31
    mixtures = [
        ShardLoader(some, batch_size=options.batch_size, shuffle=shuffle, memory_budget=budget) for some in (paths, few)
    ]
    rates: list[list[float]] = [[], []]
    tokens = options.batch_size * options.max_length
    for _ in range(options.rounds):
        for mixture, found in zip(mixtures, rates, strict=True):
            warm = max(200, len(mixture))
            found.append(rate(forever(mixture), tokens, options.seconds, skip=warm))
    ratio = statistics.median(one / other for one, other in zip(*rates, strict=True))
    speed = statistics.median(rates[0]) / 1e6
    print(f"  speed                {speed:.0f} Mtok/s, {ratio:.2f} of that of {FEW} sources; target: at least 0.9")


def compare_changes(paths: list[Path], shuffle: str, options: argparse.Namespace) -> None:
    """Print what a change of weights costs, and the ratio of the last ones to the first."""
    draw = random.Random(1)
    mixture = ShardLoader(paths, batch_size=options.batch_size, shuffle=shuffle)
    other = ShardLoader(paths, batch_size=options.batch_size, shuffle=shuffle)
    batches, spent = forever(mixture), []
    for _ in range(options.changes):
        started = time.process_time()
        mixture.set_weights([draw.random() for _ in paths])
        next(iter(batches))
        other.load_state_dict(mixture.state_dict())
        _ = other.source_samples
        spent.append(time.process_time() - started)
    count = max(1, min(20, options.changes // 3))
    first, last = (statistics.median(islice(spent, at, at + count)) for at in (count // 2, len(spent) - count))
    name = f"change, {len(paths)} sources"
    print(f"  {name:<21}{1000 * last:.1f} ms of CPU, {last / first:.2f} of the first {count}; target: about 1")
