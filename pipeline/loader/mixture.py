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
comes as often as any other, whatever N and C. Within an epoch of the source each of its lanes belongs to one row.

Weights may change at any index. Each source keeps a clock: how many draws of a row are due to it. The clock advances by
the source's share per draw of the row, so it is the sum of all shares so far, and it goes on through a change. At a
change at index i, a draw that is not made yet has the time max(0, (k + u - due_j) / p_j) from there on, with the new
share p_j; a row that is ahead of its clock waits, and one that is behind catches up at once. So nothing drifts, however
often weights change. All that a mixture needs of the past is how often each row has drawn each source at the last
change (`Origin`).

Guarantee: after n draws of a row under the same weights, source j has been drawn n * p_j times to within 1 + p_j * S,
for S sources.
Cost: O(S) for a start and for a change of weights, however many came before; then as `Order`, plus a sort of the draws
that are asked for.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from pipeline.loader.draws import Draws, Origin
from pipeline.loader.many_orders import windows_of_many
from pipeline.loader.order import Span
from pipeline.loader.weights import find_shares

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

    from pipeline.base.permutation import Int64
    from pipeline.loader.order import Order, Shuffle

_PARTS_KEPT = 8  # a reader is at most a few changes of weights ahead of its caller
FOREVER = 2**62


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixture:
    """The order of several sources together, as the module's docstring defines it.

    It answers for the indices from its first weights on. What comes before them is not kept.
    """

    orders: Sequence[Order]  # one for each source, all with the same shuffle, seed and lanes
    weights: Sequence[tuple[int, Sequence[float]]]  # (index, the weights from there on), by rising index
    origin: Origin | None = None  # at the first of these indices; None at index 0, where nothing was drawn
    epoch_start: tuple[int, int] = (0, 0)  # an epoch, and its first index: another one after a change of sources
    offsets: Int64 = field(init=False, repr=False)  # [S + 1] windows are numbered through all sources
    group_offsets: Int64 = field(init=False, repr=False)  # [S + 1] row groups too
    _sizes: Int64 = field(init=False, repr=False)  # [S] the windows of each source that are read
    _size: int = field(init=False, repr=False)  # all of them
    _starts: Int64 = field(init=False, repr=False)  # the indices of `weights`
    _parts: dict[int, Draws] = field(init=False, repr=False, default_factory=dict)  # by number, as they are needed

    endless = True

    def __post_init__(self) -> None:
        for name, sizes in (
            ("offsets", [order.stored.num_windows for order in self.orders]),
            ("group_offsets", [len(order.stored) for order in self.orders]),
        ):
            object.__setattr__(self, name, np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)]))
        object.__setattr__(self, "_sizes", np.array([len(order) for order in self.orders], np.int64))
        object.__setattr__(self, "_size", sum(self._sizes.tolist()))
        empty = [source for source, order in enumerate(self.orders) if not len(order)]
        if empty:
            raise ValueError(f"source {empty[0]} of the mixture has no windows; leave it out")
        starts = np.array([start for start, _ in self.weights], np.int64)
        assert (np.diff(starts) > 0).all(), "changes of weights are sorted by their index"
        object.__setattr__(self, "_starts", starts)
        origin = self.origin
        if origin is None:
            shape = self.num_rows, len(self.orders)
            origin = Origin(0, np.zeros(shape, np.int64), np.zeros(len(self.orders)))
        assert origin.start == starts[0], "a mixture has weights from its first index on"
        self._parts[0] = self._make_part(0, origin)

    def __len__(self) -> int:
        """Return the windows of all sources: an epoch of the mixture has as many samples; some may come twice."""
        return self._size

    @property
    def num_groups(self) -> int:
        """The row groups with a window that is read, of all sources."""
        return sum(order.num_groups for order in self.orders)

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
        return self.orders[0].num_rows

    def first(self, epoch: int) -> int:
        """Return an epoch's first index, or the first one that the mixture answers for."""
        return max(self.planned_first(epoch), int(self._starts[0]))

    def planned_first(self, epoch: int) -> int:
        """Return an epoch's first index, which may be one that is not kept."""
        return self.epoch_start[1] + (epoch - self.epoch_start[0]) * len(self)

    def reaches(self, epoch: int) -> bool:
        """Tell whether an epoch's first index is one that the mixture answers for."""
        return self.planned_first(epoch) >= int(self._starts[0])

    def stop(self, epoch: int) -> int:
        """Return the index after an epoch's last."""
        return self.planned_first(epoch + 1)

    def next_epoch(self, _epoch: int, consumed: int) -> tuple[int, int]:
        """Return where a reader is at the end of an epoch: the epoch and the samples consumed, both of the mixture."""
        return self.epoch_start[0] + (consumed - self.epoch_start[1]) // len(self), consumed

    def num_buffered(self, num_rows: int) -> int:
        """Return how many row groups a reader of this many rows of draws must buffer at once."""
        return sum(
            order.num_groups if self._is_small(order, num_rows) else order.num_buffered(num_rows)
            for order in self.orders
        )

    def _is_small(self, order: Order, num_rows: int) -> bool:
        """Tell whether a reader of so many rows always needs all of a source.

        So it is if a row has so few of its windows that its epochs end all the time, or if there are no more row groups
        than the rows read at once.
        """
        groups = order.num_groups
        at_once = num_rows * min(order.block, groups // self.num_rows + 2)
        return len(order) < 4 * self.num_rows or (order.shuffle == "lanes" and at_once >= groups)

    def next_change(self, index: int) -> int | None:
        """Return where weights change next after an index, None if they do not."""
        after = int(np.searchsorted(self._starts, index, side="right"))
        return int(self._starts[after]) if after < len(self._starts) else None

    def origin_at(self, index: int) -> Origin:
        """Return what a change at an index needs of what came before it."""
        return self._advance(self._part(self._number(index)), index)

    def _advance(self, part: Draws, index: int) -> Origin:
        due = part.due.mean(axis=0) if part.origin.due is None else part.origin.due.copy()
        due[part.active] += part.shares * ((index - part.origin.start) / self.num_rows)
        return Origin(index, part.before(index), due)

    def change(self, weights: Sequence[tuple[int, Sequence[float]]], *, keep_past: bool = False) -> Mixture:
        """Return the mixture from an index on, with other weights there, and maybe at some indices after it."""
        if keep_past:
            return replace(self, weights=[*(one for one in self.weights if one[0] < weights[0][0]), *weights])
        return replace(self, weights=weights, origin=self.origin_at(weights[0][0]))

    def since(self, _epoch: int, index: int) -> Mixture:
        """Return the same mixture without the weights that an index has passed."""
        if len(self._starts) == 1 or index < self._starts[1]:  # asked for each batch: a search takes 7 us
            return self
        number = self._number(index)
        return replace(self, weights=self.weights[number:], origin=self._part(number).origin)

    def draws(self, index: int) -> Int64:
        """Return how often each source was drawn before an index, int64 [S]."""
        drawn: Int64 = self._part(self._number(index)).before(index).sum(axis=0)
        return drawn

    def windows(self, indices: npt.ArrayLike, _epoch: int = 0) -> Int64:
        """Return the window at each index [P], numbered through all sources: int64 [P]."""
        i = np.asarray(indices, dtype=np.int64)
        found = np.empty(i.shape, np.int64)
        assert not i.size or i.min() >= self._starts[0], "what came before the first weights is not kept"
        part_of = np.searchsorted(self._starts, i, side="right") - 1
        for number in np.unique(part_of).tolist():
            mine = np.flatnonzero(part_of == number)
            nth, row = np.divmod(i[mine], self.num_rows)
            source, draw = self._part(number).find(row, nth)
            sizes = self._sizes[source]
            epochs, indices = np.divmod(draw * self.num_rows + row, sizes)
            found[mine] = windows_of_many(self.orders, source, sizes, indices, epochs) + self.offsets[source]
        return found

    def spans(self, start: int, _epoch: int = 0, rows: Iterable[int] | None = None) -> Iterator[Span]:
        """Yield spans as `Order.spans` does, without end, with row groups numbered through all sources.

        Their first and last indices are estimates that leave no use out up to the next change of weights
        (`next_change`); a reader that comes there asks again.
        """
        rows = list(range(self.num_rows) if rows is None else rows)
        part = self._part(self._number(start))
        drawn, (before, after) = part.before(start), part.slack()
        streams: list[Iterator[Span]] = []
        for which, source in enumerate(part.active.tolist()):
            order, first_group = self.orders[source], int(self.group_offsets[source])
            if self._is_small(order, len(rows)):
                groups = order.kept.counts().tolist()
                streams.append(
                    iter([Span(first_group + n, 0, size, start, FOREVER) for n, size in enumerate(groups) if size])
                )
            else:
                for row in rows:
                    slack = float(before[row]), float(after[row])
                    known = int(drawn[row, source])
                    streams.append(self._row_spans(part, which, row, start=start, drawn=known, slack=slack))
        return heapq.merge(*streams, key=attrgetter("first"))

    def _row_spans(
        self, part: Draws, which: int, row: int, *, start: int, drawn: int, slack: tuple[float, float]
    ) -> Iterator[Span]:
        """Yield what one row needs of one source, from the mixture's index `start`, before which it drew `drawn`."""
        source, share = int(part.active[which]), float(part.shares[which])
        order, rows, size = self.orders[source], self.num_rows, len(self.orders[source])
        first_draw, due = int(part.firsts[row]), float(part.due[row, source])
        here = start + (row - start) % rows  # the row's first index

        def index_of(draw: int, more: float) -> int:
            time = max(0.0, (draw - due) / share)
            return min(FOREVER, (first_draw + int(min(time + more, FOREVER))) * rows + row)

        epoch, entry = divmod(drawn * rows + row, size)
        while True:
            for span in order.lane_spans(entry % rows, entry, epoch):
                first, last = ((epoch * size + index - row) // rows for index in (span.first, span.last))
                index = here - rows if first < drawn else max(here, index_of(first, -slack[1] - 1))  # else it is in use
                group = int(self.group_offsets[source]) + span.group
                yield Span(group, span.low, span.high, index, index_of(last + 1, slack[0] + 2))
            epoch += 1
            entry = (row - epoch * size) % rows  # the row's first entry in this epoch: (k * rows + row) - epoch * size

    def _number(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def _make_part(self, number: int, origin: Origin) -> Draws:
        shares = find_shares(self.weights[number][1], num_sources=len(self.orders))
        active = np.flatnonzero(shares)
        return Draws(seed=self.seed, origin=origin, active=active, shares=shares[active])

    def _part(self, number: int) -> Draws:
        """Return a part, made from the one before it. The first and the latest are kept."""
        if (known := self._parts.get(number)) is not None:
            return known
        known_parts = dict(self._parts)  # other threads add and remove some
        part = known_parts[before := max(one for one in known_parts if one < number)]
        for one in range(before + 1, number + 1):
            self._parts[one] = part = self._make_part(one, self._advance(part, int(self._starts[one])))
        for one in sorted(self._parts)[1:-_PARTS_KEPT]:
            self._parts.pop(one, None)
        return part
