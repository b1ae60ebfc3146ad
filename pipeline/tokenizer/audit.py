"""Which documents of a batch a second engine encodes again: a fraction of them all, and a few begins in any case.

The choice depends on a seed alone, so every run over the same text audits the same documents. Whole documents are
chosen with the given probability each, so that the cost stays at that fraction. So that no part of a corpus goes
unaudited, more documents are compared over the IDs of their first `BEGIN_BYTES`: `AT_LEAST` in the first batch of a
chunk, and one in each of the others.
"""

from __future__ import annotations

import numpy as np

AT_LEAST = 3
BEGIN_BYTES = 4096


def choose_documents(count: int, *, fraction: float, seed: int, at_least: int) -> tuple[list[int], list[int]]:
    """Of `count` documents those to be compared whole, and `at_least` of which the begin is; both in order.

    >>> choose_documents(4, fraction=1.0, seed=0, at_least=3)
    ([0, 1, 2, 3], [])
    >>> choose_documents(4, fraction=0.0, seed=0, at_least=3)
    ([], [])
    """
    if fraction <= 0 or not count:
        return [], []
    draws = _draw(count, seed)
    whole = draws < fraction
    others = np.flatnonzero(~whole)
    begins = others[np.argsort(draws[others], kind="stable")[:at_least]]
    return np.flatnonzero(whole).tolist(), sorted(begins.tolist())


def _draw(count: int, seed: int) -> np.ndarray:
    """Numbers from 0 to below 1, float64 [count]: SplitMix64 (Steele, Lea and Flood 2014), for it never changes."""
    state = np.uint64(seed % 2**64) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
