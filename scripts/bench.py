"""Benchmarks: `python scripts/bench.py tokenize|write|load|layout [options]`.

Each compares the project with a yardstick in the same run, takes the median of several rounds in which both run by
turns, and prints ratios: the speed of a machine drifts, a ratio within one run does less. `--help` behind a name
lists its options.
"""

from __future__ import annotations

import importlib
import sys

NAMES = ("tokenize", "write", "load", "layout")


def main() -> None:
    """Hand the rest of the command line to `bench_<name>.main`."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f"usage: python scripts/bench.py {'|'.join(NAMES)} [--help]")
    importlib.import_module(f"bench_{sys.argv[1]}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
