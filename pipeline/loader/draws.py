"""Which source each draw of a mixture takes, and how often each was drawn: the arithmetic under one set of weights.

`pipeline.loader.mixture` has the definition. Nothing is laid out in advance: how many draws of each source come before
a time is a count, so a row's n-th draw is found between two times that are known to enclose it.

Cost: O(S) for each row at a start, for S sources; then a sort of the draws that are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.base.permutation import Int64, UInt64, extend_key, make_key

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy.typing as npt

    Float64: TypeAlias = npt.NDArray[np.float64]

_DRAW = 4  # what a hash is for: no other use of the seed shares it (1 and 2 are those of pipeline.loader.order)
_RUN = 1 << 12  # draws that a row may skip before it is cheaper to find its next draw anew


class Origin(NamedTuple):
    """What a mixture needs of the past: where it starts, what each row had drawn there, and what was due."""

    start: int  # the first index
    drawn: Int64  # [C, S] how often each row had drawn each source
    due: Float64 | None  # [S] the sources' clocks; None: each row has its own, which say what it has drawn


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draws:
    """The draws under the same weights: from an index to the next change, or forever."""

    seed: int
    origin: Origin
    active: Int64  # [A] the sources with a share
    shares: Float64  # [A] the shares, 1 in all
    drawn: Int64 = field(init=False, repr=False)  # [C, S] the origin's
    due: Float64 = field(init=False, repr=False)  # [C, S]
    firsts: Int64 = field(init=False, repr=False)  # [C] each row's first draw at or after `start`
    _keys: UInt64 = field(init=False, repr=False)  # [C, A] of each row and active source: those of a draw go on from it
    # Where the last call ended: the number of each row's next draw, and what it had drawn [C, A].
    _last: list[tuple[Int64, Int64]] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        start, drawn, due = self.origin
        object.__setattr__(self, "drawn", drawn)
        object.__setattr__(self, "due", drawn.astype(np.float64) if due is None else np.broadcast_to(due, drawn.shape))
        object.__setattr__(self, "firsts", -((np.arange(len(drawn)) - start) // len(drawn)))
        object.__setattr__(self, "_keys", make_key(self.seed, _DRAW, np.arange(len(drawn))[:, None], self.active))

    def before(self, index: int) -> Int64:
        """Return how often each row has drawn each source before an index: int64 [C, S]."""
        rows = np.arange(len(self.drawn))
        drawn = self.drawn.copy()
        drawn[:, self.active] += self._before(rows, -((rows - index) // len(rows)))
        return drawn

    def slack(self) -> tuple[Float64, Float64]:
        """Return by how much a row's n-th draw may come after the time n, and before it: float64 [C] each."""
        lag_CA = (self.due - self.drawn)[:, self.active]
        return np.maximum(0, lag_CA + 1).sum(axis=1), lag_CA.shape[1] - lag_CA.sum(axis=1)

    def find(self, row: Int64, draw: Int64) -> tuple[Int64, Int64]:
        """Return the source of each row's [P] draw [P], and how often the row had drawn it: int64 [P] each.

        Draws of a row that are close to one another are found together, by sorting the times of all draws that may be
        among them.
        """
        by_row = sort_by_row(row, draw)
        sorted_row, sorted_draw = row[by_row], draw[by_row]
        is_first = np.ones(len(row), bool)
        is_first[1:] = (np.diff(sorted_row) != 0) | (np.diff(sorted_draw) > _RUN)
        run_of = np.cumsum(is_first) - 1
        rows, lows = sorted_row[is_first], sorted_draw[is_first]  # [Q] of each run
        highs = sorted_draw[np.append(np.flatnonzero(is_first)[1:], len(row)) - 1] + 1
        before_QA = self._before(rows, lows)
        coming = self._coming(rows, before_QA, highs - self.firsts[rows])
        self._remember(rows, highs, before_QA + coming.count_first(highs - lows))
        chosen = coming.starts[run_of] + sorted_draw - lows[run_of]
        sources, counts = np.empty_like(row), np.empty_like(row)
        sources[by_row], counts[by_row] = self.active[coming.which[chosen]], coming.draws[chosen]
        return sources, counts

    def _before(self, rows: Int64, draws: Int64) -> Int64:
        """Return how often rows [Q] have drawn each source before their draws [Q]: int64 [Q, A]."""
        known, numbers = self._last[-1:], draws - self.firsts[rows]
        found = np.zeros((len(rows), len(self.active)), np.int64)
        is_known = numbers == 0
        if known:
            is_last = known[0][0][rows] == draws
            found[is_last] = known[0][1][rows[is_last]]
            is_known |= is_last
        if not is_known.all():
            asked, numbers = rows[~is_known], numbers[~is_known]
            counted = self._count_near(asked, numbers, above=False)
            coming = self._coming(asked, counted, numbers)
            found[~is_known] = counted + coming.count_first(numbers - counted.sum(axis=1))
        return found

    def _remember(self, rows: Int64, draws: Int64, drawn: Int64) -> None:
        """Remember what rows [Q] have drawn before their draws [Q], for the call that goes on from there."""
        known = self._last[-1:]
        if known:
            next_draws, counts = known[0][0].copy(), known[0][1].copy()
        else:
            next_draws, counts = np.full(len(self.drawn), -1), np.empty((len(self.drawn), drawn.shape[1]), np.int64)
        next_draws[rows], counts[rows] = draws, drawn
        self._last[:] = [(next_draws, counts)]

    def _coming(self, rows: Int64, before: Int64, numbers: Int64) -> _Coming:
        """Return the draws of rows [Q] after those `before` [Q, A], up to the `numbers` [Q] under these weights."""
        active = len(self.active)
        sizes_QA = self._count_near(rows, numbers, above=True) - before
        sizes = sizes_QA.ravel()
        run, which = np.divmod(np.repeat(np.arange(len(sizes)), sizes), active)
        ahead = np.arange(len(run)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        draws = self.drawn[rows[run], self.active[which]] + before[run, which] + ahead
        in_run = sizes_QA.sum(axis=1)
        by_time = sort_in_runs(self._times(rows[run], which, draws), run, in_run)
        return _Coming(np.cumsum(in_run) - in_run, run, which[by_time], draws[by_time], active)

    def _count_near(self, rows: Int64, numbers: Int64, *, above: bool) -> Int64:
        """Return how often rows [Q] have drawn each source after `numbers` [Q] draws or a few less (`above`: more).

        Rounding moves a row's draws by about the square root of the number of sources, and seldom by more.
        """
        lag_QA = (self.due - self.drawn)[rows][:, self.active]
        few = 1 + 2 * len(self.active) ** 0.5
        counts = self._count(rows, _solve(lag_QA, self.shares, numbers + (few if above else -few)))
        wrong = counts.sum(axis=1) < numbers if above else counts.sum(axis=1) > numbers
        if wrong.any():
            counts[wrong] = self._count(rows[wrong], _reach(self, rows[wrong], numbers[wrong])[int(above)])
        return counts

    def _count(self, rows: Int64, times: Float64) -> Int64:
        """Return how often rows [Q] draw each source before their times [Q], at least 0: int64 [Q, A]."""
        which = np.arange(len(self.active))
        drawn, due = self.drawn[rows][:, self.active], self.due[rows][:, self.active]
        least = np.maximum(np.floor(due + times[:, None] * self.shares).astype(np.int64) - 1, drawn)
        counts = least - drawn
        for more in range(3):
            counts += self._times(rows[:, None], which, least + more) < times[:, None]
        return counts

    def _times(self, row: Int64, which: Int64, draw: Int64) -> Float64:
        """Return the times, counted from the part's start, at which rows draw active sources for the `draw`-th time."""
        hashed = (extend_key(self._keys[row, which], draw) >> np.uint64(11)).astype(np.float64)
        with np.errstate(over="ignore"):  # of a share near 0: never
            times = (draw - self.due[row, self.active[which]] + hashed * 2.0**-53) / self.shares[which]
            return np.asarray(np.maximum(times, 0), np.float64)


class _Coming(NamedTuple):
    """The next draws of some rows [Q], each row's by their time."""

    starts: Int64  # [Q] where each row's draws start
    run: Int64  # [P] whose each draw is, 0 .. Q-1
    which: Int64  # [P] its source, of the active ones
    draws: Int64  # [P] how often its row had drawn that before
    active: int

    def count_first(self, numbers: Int64) -> Int64:
        """Return how often each source is among the first `numbers` [Q] of each row: int64 [Q, A]."""
        is_among = np.arange(len(self.run)) - self.starts[self.run] < numbers[self.run]
        among = self.run[is_among] * self.active + self.which[is_among]
        counts: Int64 = np.bincount(among, minlength=len(numbers) * self.active).reshape(-1, self.active)
        return counts


def sort_by_row(row: Int64, draw: Int64) -> Int64:
    """Return what sorts draws [P] by row, then by draw. Draws that already rise in each row are only dealt out."""
    by_row = np.argsort(row.astype(np.uint16), kind="stable") if row.max(initial=0) < 1 << 16 else None
    if by_row is None or ((np.diff(draw[by_row]) < 0) & (np.diff(row[by_row]) == 0)).any():
        by_row = np.lexsort((draw, row))
    return by_row


def sort_in_runs(times: Float64, run: Int64, sizes: Int64) -> Int64:
    """Return what sorts times [P] within each run [Q] of them, which lie end to end; equal times stay as they are.

    As rows of a table they take a third of the time of one sort by run and time. That sort is for equal times, which
    are rare but after a change of weights, and for runs of very different sizes.
    """
    starts, width = np.cumsum(sizes) - sizes, int(sizes.max(initial=0))
    if width * len(sizes) > 4 * len(run):
        return np.lexsort((times, run))
    times_QW = np.full((len(sizes), width), np.inf)
    times_QW[run, np.arange(len(run)) - starts[run]] = times
    is_inside = np.arange(times_QW.shape[1]) < sizes[:, None]
    by_time = np.argsort(times_QW, axis=1)
    sorted_QW = np.take_along_axis(times_QW, by_time, axis=1)
    if ((sorted_QW[:, 1:] == sorted_QW[:, :-1]) & is_inside[:, 1:]).any():
        return np.lexsort((times, run))
    return (by_time + starts[:, None])[is_inside]


def _reach(part: Draws, rows: Int64, numbers: Int64) -> tuple[Float64, Float64]:
    """Return times before which rows [Q] make at most `numbers` [Q] draws of a part, and more than them.

    Before a time t a row draws source j at most max(0, lag_j + p_j * t + 1) times, and at least with - 1 in place of
    + 1, where lag_j is by how much it was behind its clock.
    """
    lag_QA = (part.due - part.drawn)[rows][:, part.active]
    slack = 1 + numbers * 1e-15 * (4 + lag_QA.shape[1])  # for the rounding of huge numbers
    return _solve(lag_QA + 1, part.shares, numbers - slack), _solve(lag_QA - 1, part.shares, numbers + 1 + slack)


def _solve(lag_QA: Float64, shares: Float64, wanted: Float64) -> Float64:
    """Return the times t >= 0 [Q] at which the sum of max(0, lag + shares * t) is `wanted` [Q], or 0: Newton's method.

    The sum is convex in t, so each step from above ends above or at the solution.
    """
    times: Float64 = np.maximum(0, wanted - lag_QA.sum(axis=1))
    for _ in range(len(shares) + 2):
        values = lag_QA + shares * times[:, None]
        is_above = values > 0
        total, slope = np.where(is_above, values, 0).sum(axis=1), (is_above * shares).sum(axis=1)
        lower = np.where(total > wanted, np.maximum(0, times - (total - wanted) / np.maximum(slope, 1e-300)), times)
        if (lower >= times).all():
            break
        times = lower
    return times
