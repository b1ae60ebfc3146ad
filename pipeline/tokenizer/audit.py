"""Choose the documents to re-encode with the second engine: a random fraction in full, and the start of a few others.

The choice depends only on a seed, so every run over the same text checks the same documents. Each document is chosen
in full with the given probability, so the cost stays at that fraction. So that no part of a corpus goes unchecked, a
few others are compared over their first `START_BYTES`: `AT_LEAST` in the first batch of a chunk, one in each later one.
"""

from __future__ import annotations

import numpy as np

AT_LEAST = 3
START_BYTES = 4096


def choose_documents(count: int, *, fraction: float, seed: int, at_least: int) -> tuple[list[int], list[int]]:
    """Choose of `count` documents those to compare in full, and `at_least` more to compare at their start.

    >>> choose_documents(4, fraction=1.0, seed=0, at_least=3)
    ([0, 1, 2, 3], [])
    >>> choose_documents(4, fraction=0.0, seed=0, at_least=3)
    ([], [])
    """
    if fraction <= 0 or not count:
        return [], []
    draws = _draw(count, seed)
    in_full = draws < fraction
    others = np.flatnonzero(~in_full)
    starts = others[np.argsort(draws[others], kind="stable")[:at_least]]
    return np.flatnonzero(in_full).tolist(), sorted(starts.tolist())


def _draw(count: int, seed: int) -> np.ndarray:
    """Draw numbers from 0 to below 1, float64 [count], by SplitMix64 (Steele, Lea, Flood 2014): it never changes."""
    state = np.uint64(seed % 2**64) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
