"""Compare executors: `python scripts/bench.py ray [--file help.jsonl] [--workers 2] [--rounds 3]`.

A JSONL file to finished shards, by threads of one process and by a Ray cluster on this machine with as many cores, both
with all guarantees on and an empty cache. The cluster is started first, and its workers have loaded the vocabulary.
Runs are interleaved; figures are medians, and the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from bench_corpus import make_jsonl
from bench_rounds import print_ratio, run_interleaved

from pipeline import CorpusConfig, ExecutorConfig, WindowConfig, write_shards
from pipeline.executor.choose import open_executor


def main(arguments: list[str]) -> None:
    """Measure both executors."""
    parser = argparse.ArgumentParser(prog="bench.py ray", description=__doc__)
    parser.add_argument("--file", type=Path, help="a JSONL file with a field `text`; default: one is made")
    parser.add_argument("--megabytes", type=int, default=190, help="size of the file that is made")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-warm-up", action="store_true", help="count the first round, too: for large files")
    given = parser.parse_args(arguments)
    file = given.file or make_jsonl(given.megabytes)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # the cluster is this program's
    started = time.perf_counter()
    with open_executor(ExecutorConfig(name="ray", workers=given.workers)) as cluster:
        warm = write(["a text that is long enough for a window"], "ray", given.workers, max_length=4)
        list(cluster.run_tasks(time.sleep, [0.2] * 2 * given.workers))  # starts the other workers
        print(f"Ray: {time.perf_counter() - started:.1f} s to start, {warm:.2f} s for a first text")
        corpus = CorpusConfig(name="jsonl", path=str(file))
        names = {"local": "threads", "ray": "Ray"}
        times = run_interleaved(
            {
                shown: lambda name=name: write(corpus, name, given.workers, max_length=given.max_length)  # type: ignore[misc]
                for name, shown in names.items()
            },
            given.rounds,
            warm_up=not given.no_warm_up,
        )
    megabytes = file.stat().st_size / 1e6
    print(f"{file.name}, {megabytes:.0f} MB, {given.workers} workers, {given.rounds} rounds")
    for shown, taken in times.items():
        print(
            f"  {shown:<14}{megabytes / statistics.median(taken):8.1f} MB/s   median {statistics.median(taken):.2f} s"
        )
    print_ratio(times, "Ray", "threads")


def write(corpus: CorpusConfig | list[str], name: str, workers: int, *, max_length: int) -> float:
    """Write a data set in a new folder. Return the seconds without the hashing of the input, which is the driver's."""
    with tempfile.TemporaryDirectory() as folder:
        report = write_shards(
            Path(folder, "shards"),
            corpus=corpus,
            window=WindowConfig(max_length=max_length),
            executor=ExecutorConfig(name=name, workers=workers),
            cache=Path(folder, "cache"),
        )
    return report.tokenize_seconds + report.write_seconds
