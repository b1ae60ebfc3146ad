"""Estimates from a sample: a value and its margin, about half a 95 % interval.

Totals follow from ratios to the size of the input (the ratio estimator; Cochran, Sampling Techniques, 1977, chapter 6).
Their margins follow from how much the sampled parts differ, by Student's t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

STUDENT_T = (12.71, 4.30, 3.18, 2.78, 2.57)  # 97.5 % quantiles for 1 to 5 degrees of freedom


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A quantity and its margin, about half a 95 % interval, in the same unit."""

    value: float
    margin: float

    def __str__(self) -> str:
        """Show both, to three digits below 100."""
        shown = [f"{number:,.0f}" if number >= 100 else f"{number:.3g}" for number in (self.value, self.margin)]
        return " ± ".join(shown if self.margin else shown[:1])


NONE = Estimate(value=0.0, margin=0.0)


def estimate_total(found: Sequence[float], *, sizes: Sequence[float], total: float, population: int) -> Estimate:
    """Estimate the total of a quantity over all partitions from its values in some of them and their sizes.

    Args:
        found: the quantity in each sampled partition.
        sizes: the size of each sampled partition.
        total: the size of all partitions.
        population: how many partitions there are.

    """
    values, weights = np.asarray(found, float), np.asarray(sizes, float)
    ratio = values.sum() / max(1.0, weights.sum())
    value, n = ratio * total, len(values)
    assert n <= population, f"{n} of {population} were sampled"
    if n == population:
        return Estimate(value=float(values.sum()), margin=0.0)
    if n == 1:
        return Estimate(value=value, margin=value)
    spread = math.sqrt(n / (n - 1) * float(np.square(values - ratio * weights).sum()))
    unseen = 1 - n / population
    return Estimate(value=value, margin=STUDENT_T[min(n - 2, 4)] * total / weights.sum() * spread * math.sqrt(unseen))


def add_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """Add estimates from one sample: their errors are correlated, so the margins add up."""
    return Estimate(value=sum(one.value for one in estimates), margin=sum(one.margin for one in estimates))
