"""What the benchmarks share: programs in their own processes, interleaved rounds, and ratios.

A machine's speed varies by more than the differences to be measured, so nothing is compared across runs: each round
runs all candidates in turn, and a ratio is the median of the rounds' ratios.
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
def peak(): # peak resident bytes of this program alone: a process inherits getrusage's figure through fork and exec
    try:
        lines = open("/proc/self/status").read().splitlines()
    except FileNotFoundError: # macOS has no other, and counts in bytes
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
"""


def run_program(code: str, *arguments: object) -> list[str]:
    """Run Python code in its own process, at the repository's root; return the words that it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout.split()


def run_interleaved(
    runs: dict[str, Callable[[], float]], rounds: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Run all candidates in turn in every round; return each one's times. With `warm_up` one more round comes first."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + warm_up):
        for name, run in runs.items():
            taken = run()
            if number >= warm_up:
                times[name].append(taken)
    return times


def print_ratio(times: dict[str, list[float]], ours: str, other: str, *, target: str = "") -> None:
    """Print the speed of one as a fraction of the other's: the median over the rounds, and the range."""
    ratios = [theirs / mine for mine, theirs in zip(times[ours], times[other], strict=True)]
    text = f"{statistics.median(ratios):.2f} of {other}'s speed ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"  {ours} has {text}{target and '; target '}{target}")
