"""The weights of a mixture's sources, and schedules of them: checked, and as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, isfinite
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from pipeline.rules import LARGEST_WEIGHT, MAX_COUNT, check_range, is_number, reject

if TYPE_CHECKING:
    import numpy.typing as npt

RULE = "must be a number for each source, or a schedule: [(0, [number, ...]), (step, [number, ...]), ...]"
Weights: TypeAlias = Sequence[float] | Sequence[tuple[int, Sequence[float]]]
Weight = TypeVar("Weight")
Entries: TypeAlias = list[tuple[int, tuple[float, ...]]]  # (index, the weights from there on), by rising index


def plan_weights(weights: object, *, sources: int, step_size: int) -> Entries:
    """Return weights, or a schedule of them, by the index from which on they hold.

    Raises:
        ValueError: there is not one weight for each source; one breaks its rule; or the steps do not rise from 0.

    """
    entries = _as_list(weights)
    pairs = [entry for entry in entries if isinstance(entry, list | tuple)]
    if not pairs:
        numbers = _plain(entries)
        find_shares(numbers, num_sources=sources)
        return [(0, numbers)]
    planned: Entries = []
    last = -1
    for entry in entries:
        if not isinstance(entry, list | tuple) or len(entry) != 2:
            reject("weights", RULE, entry)
        step, numbers = check_range("weights: a step", entry[0], 0, MAX_COUNT // step_size), _plain(_as_list(entry[1]))
        if step <= last or (last < 0 and step):
            reject("weights", "the steps of a schedule must start with 0 and rise", [one[0] for one in pairs][:9])
        find_shares(numbers, num_sources=sources)
        planned.append((step * step_size, numbers))
        last = step
    return planned


def merge_weights(given: Sequence[Any]) -> Weights | None:
    """Return the weights of all sources from each one's own: a number, a schedule of numbers, or None for all.

    >>> merge_weights([1, [[0, 2], [100, 3]]])
    [(0, [1, 2]), (100, [1, 3])]
    """
    if all(one is None for one in given):
        return None
    schedules = [one if isinstance(one, list) else [(0, one)] for one in given]
    steps = sorted({step for schedule in schedules for step, _ in schedule})
    entries = [(step, [weights_from(schedule, step)[0][1] for schedule in schedules]) for step in steps]
    return entries if len(entries) > 1 else entries[0][1]


def weights_from(entries: Sequence[tuple[int, Weight]], index: int) -> list[tuple[int, Weight]]:
    """Return the weights that hold at an index, and those of later ones."""
    started = sum(1 for start, _ in entries if start <= index)
    return [(index, entries[started - 1][1]), *entries[started:]]


def _as_list(weights: object) -> list[Any]:
    if isinstance(weights, str) or not hasattr(weights, "__iter__"):
        reject("weights", RULE, weights)
    return list(weights)


def _plain(weights: list[Any]) -> tuple[float, ...]:
    """Return Python's own numbers: those of numpy and torch are not JSON."""
    return tuple(weight.item() if hasattr(weight, "item") else weight for weight in weights)


def find_shares(weights: Sequence[float], *, num_sources: int) -> npt.NDArray[np.float64]:
    """Return weights as shares, 1 in all: float64 [S].

    Raises:
        ValueError: there is not one weight for each source, or one is no number from 0, or none is above 0.

    """
    if len(weights) != num_sources:
        reject("weights", f"must be {num_sources}, one for each source", len(weights))
    for weight in weights:
        if not is_number(weight) or not 0 <= weight < LARGEST_WEIGHT or not isfinite(weight):
            reject("weights", f"must be numbers from 0 to {LARGEST_WEIGHT:g}", weight)
    total = fsum(weights)
    if not total:
        reject("weights", "must not all be 0", list(weights)[:9])
    return np.array([weight / total for weight in weights], np.float64)
