"""What the benchmarks share: programs in processes of their own, rounds by turns, and ratios.

The speed of a machine drifts by more than what is to be seen, so nothing is compared across runs: all candidates take
their turn in each round, and a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[1]

PEAK = """
def peak(): # bytes resident at most in this program alone: getrusage's figure is inherited through fork and exec
    try:
        lines = open("/proc/self/status").read().splitlines()
    except FileNotFoundError: # macOS has no other, and counts in bytes
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
"""


def run_program(code: str, *arguments: object) -> list[str]:
    """Run Python code in a process of its own, at the repository's root; the words that it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout.split()


def by_turns(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each run took in every round; a first round that warms the disk's cache is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            taken = run()
            if number:
                times[name].append(taken)
    return times


def print_ratio(times: dict[str, list[float]], ours: str, other: str, *, target: str = "") -> None:
    """The speed of one as a part of the other's, median over the rounds."""
    ratios = [theirs / mine for mine, theirs in zip(times[ours], times[other], strict=True)]
    text = f"{statistics.median(ratios):.2f} of {other}'s speed ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"  {ours} has {text}{target and '; target '}{target}")
