"""The order of a mix: several data sets interleaved in exact proportions, as arithmetic.

A mix has no last window: its positions 0, 1, 2, ... go on, and a source that runs out begins its next epoch. Which
source a position draws from, and how often it was drawn before, are pure functions of the position, the weights and
the seed; the window is then what the source's own `Order` has there. So the state of a mix is one position too.

Weights become whole shares m_1 .. m_S of a cycle of M = m_1 + .. + m_S draws: 0.5, 0.3, 0.2 are 5, 3, 2 of 10. In each
cycle source j comes m_j times, once in each m_j-th part of it, at a place that a key picks. By eye, shares 2 and 1:

    cycle                 0       1       2
    source                1 0 0 | 0 1 0 | 1 0 0
    draw of its source    0 0 1 | 2 1 3 | 2 4 5

Under `none` and `full` the positions are one such row, and each source's windows come in the order in which a loader
of its own would give them, epoch after epoch. Under `lanes` each of the C lanes is a row of its own: position i is draw
i // C of row i % C, and takes the next window of that lane of its source. So every lane still has one reader, and no
rank decodes what another one reads. The price: the lanes of a source end its epoch some draws apart, so where two
epochs meet, a few windows of the later one come before the last of the earlier one; each comes once in its own.

Weights may change at any position. Each row then begins a new cycle there; what it drew before is a closed sum.

Guarantee: after n draws of a row, source j has been drawn n * m_j / M times, to within S; after a cycle, exactly.
Cost: a cycle of every row is laid out at once and kept, 20 ms for 64 rows of 4,096 draws; then as `Order`.
"""

from __future__ import annotations

import heapq
import warnings
from collections import OrderedDict
from dataclasses import dataclass, field
from fractions import Fraction
from math import gcd, isfinite, lcm
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.base.permutation import Int64, make_key
from pipeline.loader.order import Span

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from pipeline.loader.order import Order, Shuffle

MAX_CYCLE = 1 << 12  # shares are 4,096ths at the finest: each to within 0.025 % of all draws
OFF = 0.05  # a share so far from its weight is worth a warning
_CYCLES_KEPT = 4
_IN_CYCLE = 3  # what a key is for: no other use of the seed shares it (pipeline.loader.order has 1 and 2)


class _Cycle(NamedTuple):
    sources: Int64  # [C, M] the source of each draw
    before: Int64  # [C, M] how often it was drawn before in this cycle
    places: Int64  # [C, M] where in the cycle each source's draws are: those of source j behind those of j - 1


class _Part(NamedTuple):
    """A stretch of positions with the same weights, to the next change or for ever."""

    start: int
    shares: Int64  # [S] draws of each source in a cycle
    firsts: Int64  # [C] each row's first draw number, i // C, at or behind `start`
    drawn: Int64  # [S, C] how often each row had drawn each source before


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixture:
    """The order of several sources together. See the module's opening for its definition."""

    orders: Sequence[Order]  # one for each source, all with the same shuffle, seed and lanes
    weights: Sequence[tuple[int, Sequence[float]]]  # (position, from there on these weights), the first from 0
    offsets: Int64 = field(init=False, repr=False)  # [S + 1] windows are numbered through all sources
    group_offsets: Int64 = field(init=False, repr=False)  # [S + 1] row groups too
    _parts: list[_Part] = field(init=False, repr=False, default_factory=list)
    _cycles: OrderedDict[tuple[int, int], _Cycle] = field(init=False, repr=False, default_factory=OrderedDict)

    endless = True

    def __post_init__(self) -> None:
        for name, sizes in (
            ("offsets", [len(order) for order in self.orders]),
            ("group_offsets", [len(order.starts) - 1 for order in self.orders]),
        ):
            object.__setattr__(self, name, np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)]))
        for source, order in enumerate(self.orders):
            if len(order) < self.num_rows:
                remedy = f"choose loader.lanes={len(order)} or fewer" if len(order) else "leave it out"
                raise ValueError(f"source {source} has {len(order)} windows for {self.num_rows} lanes; {remedy}")
        for start, weights in self.weights:
            self._parts.append(self._begin_part(start, make_shares(weights, num_sources=len(self.orders))))
        assert self._parts[0].start == 0, "a mix has weights from its first position on"

    def __len__(self) -> int:
        """The windows of all sources: what is called an epoch of the mix, in which some may come twice."""
        return int(self.offsets[-1])

    @property
    def shuffle(self) -> Shuffle:
        """That of all sources."""
        return self.orders[0].shuffle

    @property
    def seed(self) -> int:
        """That of all sources."""
        return self.orders[0].seed

    @property
    def lanes(self) -> int:
        """That of all sources."""
        return self.orders[0].lanes

    @property
    def num_rows(self) -> int:
        """RowInfo of draws: the lanes, or one where there are none."""
        return self.lanes if self.shuffle == "lanes" else 1

    def first(self, epoch: int) -> int:
        """The position at which an epoch begins."""
        return epoch * len(self)

    def stop(self, epoch: int) -> int:
        """The position behind an epoch's last."""
        return self.first(epoch + 1)

    def next_epoch(self, _epoch: int, consumed: int) -> tuple[int, int]:
        """Where a reader stands that has come to the end of an epoch: its epoch and position go on."""
        return consumed // len(self), consumed

    def check_world_size(self, world_size: int) -> None:
        """As `Order.check_world_size`."""
        self.orders[0].check_world_size(world_size)

    def num_buffered(self, world_size: int) -> int:
        """Row groups that a rank must hold at once."""
        return sum(order.num_buffered(world_size) for order in self.orders)

    def change(self, position: int, weights: Sequence[float]) -> Mixture:
        """The mix with other weights from a position on. What comes before it stays as it is."""
        kept = [part for part in self.weights if part[0] < position]
        return Mixture(orders=self.orders, weights=[*kept, (position, tuple(weights))])

    def draws(self, position: int) -> Int64:
        """How often each source was drawn before a position, int64 [S]."""
        part = next(part for part in reversed(self._parts) if part.start <= position)
        drawn: Int64 = self._drawn(part, position).sum(axis=1)
        return drawn

    def windows(self, positions: npt.ArrayLike, _epoch: int = 0) -> Int64:
        """The window at each position [P], numbered through all sources: int64 [P]."""
        i = np.asarray(positions, dtype=np.int64)
        found = np.empty(i.shape, np.int64)
        row, number = i % self.num_rows, i // self.num_rows
        for at, part in enumerate(self._parts):
            here = i >= part.start
            if at + 1 < len(self._parts):
                here &= i < self._parts[at + 1].start
            mine = np.flatnonzero(here)
            turn, slot = np.divmod(number[mine] - part.firsts[row[mine]], part.shares.sum())
            for cycle_number in np.unique(turn).tolist():
                chosen = turn == cycle_number
                rows, slots, which = row[mine][chosen], slot[chosen], mine[chosen]
                cycle = self._cycle(at, cycle_number)
                source = cycle.sources[rows, slots]
                draw = part.drawn[source, rows] + cycle_number * part.shares[source] + cycle.before[rows, slots]
                found[which] = self._windows_of(source, rows, draw)
        return found

    def spans(self, start: int, _epoch: int = 0, *, rank: int = 0, world_size: int = 1) -> Iterator[Span]:
        """As `Order.spans`, with row groups numbered through all sources; it goes on for ever.

        A change of weights that is still to come does not enter: there is none behind a reader's position.
        """
        rows = range(rank, self.num_rows, world_size) if self.shuffle == "lanes" else range(1)
        sources = np.flatnonzero(self._parts[-1].shares).tolist()
        every = (self._source_spans(source, row, start) for source in sources for row in rows)
        return heapq.merge(*every, key=attrgetter("first"))

    def _source_spans(self, source: int, row: int, start: int) -> Iterator[Span]:
        """What one row needs of one source, from a position on."""
        order, rows = self.orders[source], self.num_rows
        drawn = int(self._drawn(self._parts[-1], start)[source, row])
        size = int(self._row_size(source, row))
        epoch, entry = divmod(drawn, size)
        before = start - 1 - (start - 1 - row) % rows  # where the row stood last: what is begun was begun before
        while True:
            for stretch in order.lane_spans(row, entry * rows + row, epoch):
                first, last = (epoch * size + (place - row) // rows for place in (stretch.first, stretch.last))
                begun = before if first < drawn else self._position(source, row, first)
                group = int(self.group_offsets[source]) + stretch.group
                yield Span(group, stretch.low, stretch.high, begun, self._position(source, row, last))
            epoch, entry = epoch + 1, 0

    def _position(self, source: int, row: int, draw: int) -> int:
        """The position at which a row draws a source for the `draw`-th time, under the last weights."""
        part = self._parts[-1]
        turn, nth = divmod(draw - int(part.drawn[source, row]), int(part.shares[source]))
        slot = self._cycle(len(self._parts) - 1, turn).places[row, int(part.shares[:source].sum()) + nth]
        number = int(part.firsts[row]) + turn * int(part.shares.sum()) + int(slot)
        return number * self.num_rows + row

    def _windows_of(self, source: Int64, row: Int64, draw: Int64) -> Int64:
        """The windows that rows [P] take at their `draw`-th [P] time from their sources [P]."""
        found = np.empty(len(source), np.int64)
        for one in np.unique(source).tolist():
            mine = np.flatnonzero(source == one)
            epoch, entry = np.divmod(draw[mine], self._row_size(one, row[mine]))
            for number in np.unique(epoch).tolist():
                chosen = epoch == number
                place = entry[chosen] * self.num_rows + row[mine][chosen]
                found[mine[chosen]] = self.orders[one].windows(place, number) + self.offsets[one]
        return found

    def _row_size(self, source: int, row: Int64 | int) -> Int64 | int:
        """How many of a source's windows are a row's, in each epoch."""
        whole, rest = divmod(len(self.orders[source]), self.num_rows)
        return whole + (row < rest)

    def _begin_part(self, start: int, shares: Int64) -> _Part:
        rows = np.arange(self.num_rows)
        firsts = -((rows - start) // self.num_rows)
        if not self._parts:
            return _Part(start, shares, firsts, np.zeros((len(shares), self.num_rows), np.int64))
        assert start > self._parts[-1].start, "changes of weights come in the order of their positions"
        return _Part(start, shares, firsts, self._drawn(self._parts[-1], start))

    def _drawn(self, part: _Part, position: int) -> Int64:
        """How often each row has drawn each source before a position of a part, or where it ends: int64 [S, C]."""
        rows = np.arange(self.num_rows)
        turn, slot = np.divmod(-((rows - position) // self.num_rows) - part.firsts, part.shares.sum())
        drawn: Int64 = part.drawn + turn.astype(np.int64) * part.shares[:, None]
        at = next(number for number, one in enumerate(self._parts) if one is part)
        for number in np.unique(turn).tolist():
            sources = self._cycle(at, number).sources
            inside = (np.arange(sources.shape[1]) < slot[:, None]) & (turn == number)[:, None]
            for source in range(len(part.shares)):
                drawn[source] += ((sources == source) & inside).sum(axis=1)
        return drawn

    def _cycle(self, part: int, turn: int) -> _Cycle:
        """The draws of cycle `turn` of a part, for every row."""
        known = self._cycles.get((part, turn))
        if known is None:
            rows, shares = np.arange(self.num_rows), self._parts[part].shares
            known = lay_out(shares, make_key(self.seed, _IN_CYCLE, self._parts[part].start, turn, rows[:, None]))
            self._cycles[part, turn] = known
            while len(self._cycles) > _CYCLES_KEPT:
                self._cycles.popitem(last=False)
        return known


def lay_out(shares: Int64, keys_C1: npt.NDArray[np.uint64]) -> _Cycle:
    """The draws of one cycle, for each of C keys: source j comes once in each `shares[j]`-th part of it."""
    sources = np.repeat(np.arange(len(shares)), shares)
    nth = np.concatenate([np.arange(share) for share in shares])
    keys_CM = make_key(keys_C1.view(np.int64), np.arange(len(sources)))
    inside_CM = (keys_CM >> np.uint64(11)).astype(np.float64) * 2.0**-53  # 0 to below 1, as many bits as a float holds
    order_CM = np.argsort((nth + inside_CM) / shares[sources], axis=1, kind="stable")  # a source's draws stay in order
    places_CM = np.empty_like(order_CM)
    np.put_along_axis(places_CM, order_CM, np.arange(len(sources))[None], axis=1)
    return _Cycle(sources[order_CM], nth[order_CM], places_CM)


def make_shares(weights: Sequence[float], *, num_sources: int) -> Int64:
    """Weights as whole shares of the smallest cycle that has them exactly, or of `MAX_CYCLE` draws: int64 [S].

    >>> make_shares([0.5, 0.3, 0.2], num_sources=3)
    array([5, 3, 2])

    Raises:
        ValueError: there is not one weight for each source, or one is negative, or none is above 0.

    """
    if len(weights) != num_sources:
        raise ValueError(f"weights must be {num_sources}, one for each source; got {len(weights)}: {list(weights)}")
    if not all(isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise ValueError(f"weights must be numbers from 0, at least one of them above 0; got {list(weights)}")
    exact = [Fraction(str(weight)) for weight in weights]  # 0.1 means a tenth, not the nearest float
    scale = lcm(*(one.denominator for one in exact))
    whole = [int(one * scale) for one in exact]
    shares = [one // gcd(*whole) for one in whole]
    if sum(shares) > MAX_CYCLE:
        total = sum(exact)
        wanted = [one / total * MAX_CYCLE for one in exact]
        shares = [max(1, int(one)) if one else 0 for one in wanted]
        by_rest = sorted(range(len(wanted)), key=lambda source: (shares[source] - wanted[source], source))
        for source in by_rest[: max(0, MAX_CYCLE - sum(shares))]:
            shares[source] += 1
        for source, (share, due) in enumerate(zip(shares, wanted, strict=True)):
            if due and abs(share / due - 1) > OFF:
                warnings.warn(
                    f"source {source} of the mix gives {share} of {sum(shares)} samples, and its weight asks for "
                    f"{float(due):.4g}: shares are {MAX_CYCLE}ths at the finest",
                    stacklevel=2,
                )
    return np.array(shares, dtype=np.int64)
