"""The order of a mixture: several data sets interleaved by weights, as arithmetic.

A mixture has no last sample: its indices 0, 1, 2, ... go on, and a source that is used up starts its next epoch. Which
source an index draws from, and how often that source was drawn before, are pure functions of the index, the weights
and the seed. So the state of a mixture is one index, as a data set's is.

Source j has the share p_j of the weights. Its k-th draw happens at the time (k + u) / p_j, where u, from 0 to below 1,
is a hash of the seed, the row, the source and k; the mixture is all draws in the order of their times. Any weights are
exact: after t draws each source has been drawn p_j * t times, give or take a few. By eye, weights 2 and 1:

    times of source 0        0.6  2.1  4.0       5.4  6.2       9.0  ...
    times of source 1   0.0                 4.9            7.4       ...
    the mixture draws   1    0    0    0    1    0    0    1    0    ...

How many draws of each source happen before a time is a count (floor(p_j * t), or one more), so the time of any draw is
found by bisection, and the draws after it by sorting their times.

Under `none` and `full` there is one such row of draws. Under `lanes` each of the C lanes is a row: index i is draw
i // C of row i % C. A source's draws are numbered through all rows: draw k of row r is draw k * C + r of the source,
which is index (k * C + r) % N in its epoch (k * C + r) // N, for a source of N windows. So each window of a source
comes as often as any other, whatever N and C. Within an epoch of the source each of its lanes has one reader.

Weights may change at any index. Each row then starts a new time there, and its draws are counted on.

Guarantee: after n draws of a row, source j has been drawn n * p_j times to within 1 + p_j * S, for S sources.
Cost: O(S) for a start and for a change of weights; then as `Order`, plus a sort of the draws that are asked for.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from math import fsum, isfinite
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.base.permutation import Int64, make_key
from pipeline.loader.order import Span
from pipeline.rules import is_number, reject

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeAlias

    import numpy.typing as npt

    from pipeline.loader.order import Order, Shuffle

    Float64: TypeAlias = npt.NDArray[np.float64]

_DRAW = 4  # what a hash is for: no other use of the seed shares it (1 and 2 are those of pipeline.loader.order)
_RUN = 1 << 12  # draws that a row may skip before it is cheaper to find its next draw by bisection
FOREVER = 2**62
LARGEST = 1e300  # of the weights


class _Part(NamedTuple):
    """The draws under the same weights: from an index to the next change, or forever."""

    start: int  # the first index
    active: Int64  # [A] the sources with a share
    shares: Float64  # [A] the shares, 1 in all
    firsts: Int64  # [C] each row's first draw at or after `start`
    drawn: Int64  # [C, S] how often each row had drawn each source before


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixture:
    """The order of several sources together, as the module's docstring defines it."""

    orders: Sequence[Order]  # one for each source, all with the same shuffle, seed and lanes
    weights: Sequence[tuple[int, Sequence[float]]]  # (index, the weights from there on), the first from 0
    offsets: Int64 = field(init=False, repr=False)  # [S + 1] windows are numbered through all sources
    group_offsets: Int64 = field(init=False, repr=False)  # [S + 1] row groups too
    _parts: list[_Part] = field(init=False, repr=False, default_factory=list)
    # Where the last call ended: part, the number of each row's next draw, and what it had drawn [C, A].
    _last: list[tuple[int, Int64, Int64]] = field(init=False, repr=False, default_factory=list)

    endless = True

    def __post_init__(self) -> None:
        for name, sizes in (
            ("offsets", [len(order) for order in self.orders]),
            ("group_offsets", [len(order.starts) - 1 for order in self.orders]),
        ):
            object.__setattr__(self, name, np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)]))
        empty = [source for source, order in enumerate(self.orders) if not len(order)]
        if empty:
            raise ValueError(f"source {empty[0]} of the mixture has no windows; leave it out")
        for start, weights in self.weights:
            self._append_part(start, find_shares(weights, num_sources=len(self.orders)))
        assert self._parts[0].start == 0, "a mixture has weights from its first index on"

    def __len__(self) -> int:
        """Return the windows of all sources: an epoch of the mixture has as many samples; some may come twice."""
        return int(self.offsets[-1])

    @property
    def shuffle(self) -> Shuffle:
        """The shuffle of all sources."""
        return self.orders[0].shuffle

    @property
    def seed(self) -> int:
        """The seed of all sources."""
        return self.orders[0].seed

    @property
    def lanes(self) -> int:
        """The lanes of all sources."""
        return self.orders[0].lanes

    @property
    def num_rows(self) -> int:
        """Rows of draws: the lanes, or one if there are none."""
        return self.lanes if self.shuffle == "lanes" else 1

    def first(self, epoch: int) -> int:
        """Return an epoch's first index."""
        return epoch * len(self)

    def stop(self, epoch: int) -> int:
        """Return the index after an epoch's last."""
        return self.first(epoch + 1)

    def next_epoch(self, _epoch: int, consumed: int) -> tuple[int, int]:
        """Return where a reader is at the end of an epoch: the epoch and the samples consumed, both of the mixture."""
        return consumed // len(self), consumed

    def check_world_size(self, world_size: int) -> None:
        """Do as `Order.check_world_size`."""
        self.orders[0].check_world_size(world_size)

    def num_buffered(self, world_size: int) -> int:
        """Return how many row groups a rank must buffer at once."""
        return sum(
            len(order.starts) - 1 if self._is_tiny(order) else order.num_buffered(world_size) for order in self.orders
        )

    def _is_tiny(self, order: Order) -> bool:
        """Tell whether a source has so few windows in a row that its epochs end all the time."""
        return len(order) < 4 * self.num_rows

    def change(self, index: int, weights: Sequence[float]) -> Mixture:
        """Return the mixture with other weights from an index on. What comes before it stays the same."""
        kept = [part for part in self.weights if part[0] < index]
        return Mixture(orders=self.orders, weights=[*kept, (index, tuple(weights))])

    def draws(self, index: int) -> Int64:
        """Return how often each source was drawn before an index, int64 [S]."""
        number = max(at for at, part in enumerate(self._parts) if part.start <= index)
        drawn: Int64 = self._drawn(number, index).sum(axis=0)
        return drawn

    def windows(self, indices: npt.ArrayLike, _epoch: int = 0) -> Int64:
        """Return the window at each index [P], numbered through all sources: int64 [P]."""
        i = np.asarray(indices, dtype=np.int64)
        found = np.empty(i.shape, np.int64)
        part_of = np.searchsorted([part.start for part in self._parts], i, side="right") - 1
        for number in np.unique(part_of).tolist():
            mine = np.flatnonzero(part_of == number)
            row = i[mine] % self.num_rows
            source, draw = self._draw(number, row, i[mine] // self.num_rows)
            for one in np.unique(source).tolist():
                chosen = np.flatnonzero(source == one)
                windows = self._windows_of(one, draw[chosen] * self.num_rows + row[chosen])
                found[mine[chosen]] = windows + self.offsets[one]
        return found

    def spans(self, start: int, _epoch: int = 0, *, rank: int = 0, world_size: int = 1) -> Iterator[Span]:
        """Yield spans as `Order.spans` does, without end, with row groups numbered through all sources.

        Their first and last indices are estimates that leave no use out. A change of weights that is still to come is
        ignored: there is none after a reader's index.
        """
        rows = range(rank, self.num_rows, world_size) if self.shuffle == "lanes" else range(1)
        drawn = self._drawn(len(self._parts) - 1, start)
        streams: list[Iterator[Span]] = []
        for source in self._parts[-1].active.tolist():
            order, groups = self.orders[source], np.diff(self.orders[source].starts).tolist()
            first_group = int(self.group_offsets[source])
            if self._is_tiny(order):  # all of it is always needed
                streams.append(iter([Span(first_group + n, 0, size, start, FOREVER) for n, size in enumerate(groups)]))
            else:
                streams += [self._row_spans(source, row, start, int(drawn[row, source])) for row in rows]
        return heapq.merge(*streams, key=attrgetter("first"))

    def _row_spans(self, source: int, row: int, start: int, drawn: int) -> Iterator[Span]:
        """Yield what one row needs of one source, from the mixture's index `start`, before which it drew `drawn`."""
        order, rows, size, part = self.orders[source], self.num_rows, len(self.orders[source]), self._parts[-1]
        share = float(part.shares[np.searchsorted(part.active, source)])
        first_draw, drawn_before = int(part.firsts[row]), int(part.drawn[row, source])
        here = start + (row - start) % rows  # the row's first index
        slack = len(part.active) + 1  # before a time t there are t draws of a row, give or take one for each source

        def index_of(draw: int, more: int) -> int:
            return (first_draw + int((draw - drawn_before) / share) + more) * rows + row

        epoch, entry = divmod(drawn * rows + row, size)
        while True:
            for span in order.lane_spans(entry % rows, entry, epoch):
                first, last = ((epoch * size + index - row) // rows for index in (span.first, span.last))
                index = here - rows if first < drawn else max(here, index_of(first, -slack))  # else it is in use
                group = int(self.group_offsets[source]) + span.group
                yield Span(group, span.low, span.high, index, index_of(last + 1, slack + 1))
            epoch += 1
            entry = (row - epoch * size) % rows  # the row's first entry in this epoch: (k * rows + row) - epoch * size

    def _windows_of(self, source: int, draws: Int64) -> Int64:
        """Return the windows that a source yields at its draws [P], which are numbered through all rows."""
        order = self.orders[source]
        epochs, indices = np.divmod(draws, len(order))
        if order.shuffle != "lanes":
            return order.windows(indices, epochs)
        found = np.empty(len(draws), np.int64)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            found[chosen] = order.windows(indices[chosen], epoch)
        return found

    def _append_part(self, start: int, shares: Float64) -> None:
        rows = np.arange(self.num_rows)
        drawn = np.zeros((self.num_rows, len(shares)), np.int64)
        if self._parts:
            assert start > self._parts[-1].start, "changes of weights are sorted by their index"
            drawn = self._drawn(len(self._parts) - 1, start)
        active = np.flatnonzero(shares)
        firsts = -((rows - start) // self.num_rows)
        self._parts.append(_Part(start, active, shares[active], firsts, drawn))

    def _drawn(self, number: int, index: int) -> Int64:
        """Return how often each row has drawn each source before an index of a part, or its end: int64 [C, S]."""
        part, rows = self._parts[number], np.arange(self.num_rows)
        drawn = part.drawn.copy()
        drawn[:, part.active] += self._before(number, rows, -((rows - index) // self.num_rows))
        return drawn

    def _draw(self, number: int, row: Int64, draw: Int64) -> tuple[Int64, Int64]:
        """Return the source of each row's [P] draw [P] in a part, and how often the row had drawn it: int64 [P] each.

        Draws of a row that are close to one another are found together: the first by bisection, unless the last call
        ended there, the others by sorting the times of all draws that may be among them.
        """
        part = self._parts[number]
        by_row = np.lexsort((draw, row))
        sorted_row, sorted_draw = row[by_row], draw[by_row]
        is_first = np.ones(len(row), bool)
        is_first[1:] = (np.diff(sorted_row) != 0) | (np.diff(sorted_draw) > _RUN)
        run_of = np.cumsum(is_first) - 1
        rows, lows = sorted_row[is_first], sorted_draw[is_first]  # [Q] of each run
        highs = sorted_draw[np.append(np.flatnonzero(is_first)[1:], len(row)) - 1] + 1
        before_QA = self._before(number, rows, lows)
        sizes_QA = self._count(part, rows, _latest(highs - part.firsts[rows], len(part.active))) - before_QA
        sizes = sizes_QA.ravel()
        run, which = np.divmod(np.repeat(np.arange(len(sizes)), sizes), len(part.active))
        ahead = np.arange(len(run)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        draws = part.drawn[rows[run], part.active[which]] + before_QA[run, which] + ahead
        by_time = np.lexsort((self._times(part, rows[run], which, draws), run))  # stable: then by source and draw
        starts = np.cumsum(sizes_QA.sum(axis=1)) - sizes_QA.sum(axis=1)
        is_past = np.arange(len(run)) - starts[run] < (highs - lows)[run]  # by_time keeps the runs in their order
        past = by_time[is_past]
        after = np.bincount(run[past] * len(part.active) + which[past], minlength=len(sizes)).reshape(sizes_QA.shape)
        self._remember(number, rows, highs, before_QA + after)
        chosen = by_time[starts[run_of] + sorted_draw - lows[run_of]]
        sources, counts = np.empty_like(row), np.empty_like(row)
        sources[by_row], counts[by_row] = part.active[which[chosen]], draws[chosen]
        return sources, counts

    def _before(self, number: int, rows: Int64, draws: Int64) -> Int64:
        """Return how often rows [Q] have drawn each source in a part before their draws [Q]: int64 [Q, A]."""
        part, known = self._parts[number], self._last[-1:]
        found = np.empty((len(rows), len(part.active)), np.int64)
        is_known = np.zeros(len(rows), bool)
        if known and known[0][0] == number:
            is_known = known[0][1][rows] == draws
            found[is_known] = known[0][2][rows[is_known]]
        if not is_known.all():
            asked = rows[~is_known]
            found[~is_known] = self._bisect(part, asked, draws[~is_known] - part.firsts[asked])
        return found

    def _remember(self, number: int, rows: Int64, draws: Int64, drawn: Int64) -> None:
        """Remember what rows [Q] have drawn before their draws [Q], for the call that goes on from there."""
        known = self._last[-1:]
        if known and known[0][0] == number:
            next_draws, counts = known[0][1].copy(), known[0][2].copy()
        else:
            next_draws, counts = np.full(self.num_rows, -1), np.empty((self.num_rows, drawn.shape[1]), np.int64)
        next_draws[rows], counts[rows] = draws, drawn
        self._last[:] = [(number, next_draws, counts)]

    def _bisect(self, part: _Part, rows: Int64, numbers: Int64) -> Int64:
        """Return how often rows [Q] have drawn each source after this many draws [Q] of a part: int64 [Q, A]."""
        sources = len(part.active)
        # The latest time before which there are at most this many draws. Floats above 0 are ordered as their bits are.
        low = (np.maximum(numbers - sources - 1, 0) * (1 - 1e-9)).view(np.int64)
        high = _latest(numbers, sources).view(np.int64)
        while (high - low > 1).any():
            middle = low + (high - low) // 2
            is_low = self._count(part, rows, middle.view(np.float64)).sum(axis=1) <= numbers
            low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
        time = low.view(np.float64)
        before = self._count(part, rows, time)
        at_once = self._count(part, rows, np.nextafter(time, np.inf)) - before  # ordered by their source
        missing = (numbers - before.sum(axis=1))[:, None] - (np.cumsum(at_once, axis=1) - at_once)
        drawn: Int64 = before + np.clip(missing, 0, at_once)
        return drawn

    def _count(self, part: _Part, rows: Int64, times: Float64) -> Int64:
        """Return how often rows [Q] draw each source before their times [Q]: int64 [Q, A]."""
        which = np.arange(len(part.active))
        least = np.maximum(np.floor(times[:, None] * part.shares).astype(np.int64) - 1, 0)
        counts = least.copy()
        for more in range(3):
            draws = part.drawn[rows][:, part.active] + least + more
            counts += self._times(part, rows[:, None], which, draws) < times[:, None]
        return counts

    def _times(self, part: _Part, row: Int64, which: Int64, draw: Int64) -> Float64:
        """Return the times, counted from the part's start, at which rows draw active sources for the `draw`-th time."""
        source = part.active[which]
        hashed = (make_key(self.seed, _DRAW, row, source, draw) >> np.uint64(11)).astype(np.float64)
        with np.errstate(over="ignore"):  # of a share near 0: never
            return np.asarray((draw - part.drawn[row, source] + hashed * 2.0**-53) / part.shares[which], np.float64)


def _latest(numbers: Int64, sources: int) -> Float64:
    """Return times before which there are more than this many draws of a part."""
    return np.asarray((numbers + sources + 2) * (1 + 1e-9), np.float64)


def find_shares(weights: Sequence[float], *, num_sources: int) -> Float64:
    """Return weights as shares, 1 in all: float64 [S].

    Raises:
        ValueError: there is not one weight for each source, or one is no number from 0, or none is above 0.

    """
    if len(weights) != num_sources:
        reject("weights", f"must be {num_sources}, one for each source", len(weights))
    for weight in weights:
        if not is_number(weight) or not 0 <= weight < LARGEST or not isfinite(weight):
            reject("weights", f"must be numbers from 0 to {LARGEST:g}", weight)
    total = fsum(weights)
    if not total:
        reject("weights", "must not all be 0", list(weights)[:9])
    return np.array([weight / total for weight in weights], np.float64)
