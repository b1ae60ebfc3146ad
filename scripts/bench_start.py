"""Measure how soon the default corpus gives something: `python scripts/bench.py start [--rounds 3]`.

* run: the write stage's summary, and the end, of `python -m pipeline` in an empty folder.
* again: the same where everything is finished.
* show, help: the end of `stages=show` and `--help`.
* torch: `import torch` alone, which the load stage needs.

Times are from the start of the command. Figures are medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_rounds import ROOT


def measure(*arguments: str) -> tuple[float, float]:
    """Run Python. Return the seconds to the line that ends the first summary, or to the end, and those to the end."""
    started = time.perf_counter()
    first = 0.0
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None, "it is a pipe"
        for line in process.stdout:
            if line.startswith("  in  ") and not first:
                first = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} failed with code {process.returncode}")
    ended = time.perf_counter() - started
    return first or ended, ended


def main(arguments: list[str]) -> None:
    """Run all measures in turn."""
    parser = argparse.ArgumentParser(
        prog="bench.py start", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    taken: dict[str, list[tuple[float, float]]] = {}
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as name:
            keys = {"hydra.run.dir": "run", "shards.path": "shards", "cache.path": "cache"}
            paths = [f"{key}={Path(name, folder)}" for key, folder in keys.items()]
            runs = {
                "run": ["-m", "pipeline", *paths],
                "again": ["-m", "pipeline", *paths],
                "show": ["-m", "pipeline", "stages=show", *paths],
                "help": ["-m", "pipeline", "--help"],
                "torch": ["-c", "import torch"],
            }
            for label, command in runs.items():
                taken.setdefault(label, []).append(measure(*command))
    for label, times in taken.items():
        first, end = (statistics.median(one) for one in zip(*times, strict=True))
        print(f"  {label:<8}{end:6.2f} s{f'   first summary after {first:.2f} s' if first < end else ''}")


if __name__ == "__main__":
    main(sys.argv[1:])
