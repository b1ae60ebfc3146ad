"""Benchmarks: `python scripts/bench.py NAME [options]`; without a name it lists them.

Each compares the project with a baseline in the same run and prints ratios: medians over several rounds in which both
run in turn. A machine's speed varies over time, and a ratio within one run varies less. `--help` after a name lists its
options.
"""

from __future__ import annotations

import importlib
import sys

NAMES = ("tokenize", "write", "load", "mixture", "layout", "ranks", "remote", "build", "ray", "files", "start")


def main() -> None:
    """Pass the rest of the command line to `bench_<name>.main`."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f"usage: python scripts/bench.py {'|'.join(NAMES)} [--help]")
    importlib.import_module(f"bench_{sys.argv[1]}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
