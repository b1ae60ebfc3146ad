"""Measure many small files: `python scripts/bench.py files [--number 86000] [--bytes 2000]`.

* first: `write_shards` of all files with an empty cache.
* other windows: the tokens are found in the cache; every file is opened and hashed.
* up to date: the data set is there, too; the files are found and hashed, and nothing is written.
* trusted: the same with `corpus.trust_mtime`: the files are found, and not opened.
* cat: the files are read by `find` and `cat`.

Each run is a process, and its imports count. Figures are medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_corpus import make_small_files
from bench_rounds import run_interleaved, run_program

WRITE = """
import sys, time
started = time.perf_counter()
from pipeline import CorpusConfig, ExecutorConfig, WindowConfig, write_shards
files, folder, cache, length, workers, trust = sys.argv[1:]
report = write_shards(
    folder,
    corpus=CorpusConfig(name="text", path=files, trust_mtime=bool(int(trust))),
    window=WindowConfig(max_length=int(length)),
    executor=ExecutorConfig(workers=int(workers)),
    cache=cache,
)
print(time.perf_counter() - started, report.chunks, report.manifest.corpus["bytes"], report.peak_memory)
"""


def main(arguments: list[str]) -> None:
    """Run all measures in turn."""
    parser = argparse.ArgumentParser(
        prog="bench.py files", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", type=Path, help="a JSONL file with a field `text`; default: one is made")
    parser.add_argument("--number", type=int, default=86_000)
    parser.add_argument("--bytes", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    files = make_small_files(given.number, given.bytes, given.file).resolve()
    said: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def write(label: str, target: str, length: int, *, trust: bool = False) -> float:
            paths = files, folder / target, folder / "cache"
            seconds, *counts = run_program(WRITE, *paths, length, given.workers, int(trust))
            said[label] = list(map(int, counts))
            return float(seconds)

        def first() -> float:
            for path in folder.iterdir():
                shutil.rmtree(path)
            seconds = write("first", "ds", 256)
            write("trusted", "ds", 256, trust=True)  # keeps the hashes; not timed
            return seconds

        def cat() -> float:
            started = time.perf_counter()
            command = ["find", str(files), "-type", "f", "-exec", "cat", "{}", "+"]
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            return time.perf_counter() - started

        runs = {
            "first": first,
            "other windows": lambda: write("other windows", "other", 128),
            "up to date": lambda: write("up to date", "ds", 256),
            "trusted": lambda: write("trusted", "ds", 256, trust=True),
            "cat": cat,
        }
        taken = run_interleaved(runs, given.rounds)
    chunks, size, _ = said["first"]
    print(f"files: {given.number:,} of {given.bytes:,} bytes, {size / 1e6:.0f} MB in {chunks} chunks")
    for label, times in taken.items():
        seconds = statistics.median(times)
        peak = f"   peak {said[label][-1] / 1e6:.0f} MB" if label in said else ""
        print(f"  {label:<16}{seconds:6.2f} s   {size / seconds / 1e6:6.1f} MB/s{peak}")


if __name__ == "__main__":
    main(sys.argv[1:])
