"""How many windows each row group of a split has, and which row group has a window.

Row groups are numbered through all shards, and so are windows. In a data set of format 2 all row groups of a split have
the same size but the last, which may be smaller: then everything is a division, and nothing is stored. In older data
sets, and where only some windows are read, the sizes are a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias, overload

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

Int64: TypeAlias = "npt.NDArray[np.int64]"


class EvenRowGroups(Sequence[int]):
    """The sizes of row groups that have `per_group` windows each, and the last one the rest.

    >>> groups = EvenRowGroups(8, 3)
    >>> list(groups), groups.locate(np.array([0, 7]))
    ([3, 3, 2], (array([0, 2]), array([0, 1])))
    """

    def __init__(self, num_windows: int, per_group: int) -> None:
        assert num_windows >= 0, "a number of windows is never negative"
        assert per_group >= 1, "a row group of this size would have no window"
        self.num_windows, self.per_group = num_windows, per_group
        self._size = -(-num_windows // per_group)

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, group: int) -> int: ...

    @overload
    def __getitem__(self, group: slice) -> list[int]: ...

    def __getitem__(self, group: int | slice) -> int | list[int]:
        if isinstance(group, slice):
            return [self[one] for one in range(*group.indices(self._size))]
        if not -self._size <= group < self._size:
            raise IndexError(group)
        return min(self.per_group, self.num_windows - group % self._size * self.per_group)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EvenRowGroups) and (
            (self.num_windows, min(self.per_group, self.num_windows))
            == (other.num_windows, min(other.per_group, other.num_windows))
        )

    def __hash__(self) -> int:
        return hash(self.num_windows)

    def __repr__(self) -> str:
        return f"EvenRowGroups({self.num_windows}, {self.per_group})"

    @property
    def num_filled(self) -> int:
        """The row groups with a window: all."""
        return self._size

    @property
    def largest(self) -> int:
        """The most windows that a row group has."""
        return min(self.per_group, self.num_windows)

    def counts(self) -> Int64:
        """Return all sizes, int64 [G]."""
        counts = np.full(self._size, self.per_group, np.int64)
        counts[-1:] = self.num_windows - (self._size - 1) * self.per_group
        return counts

    def starts(self) -> Int64:
        """Return the first window of each row group, and the number of windows: int64 [G + 1]."""
        return np.minimum(np.arange(self._size + 1, dtype=np.int64) * self.per_group, self.num_windows)

    def first_window(self, group: int) -> int:
        """Return a row group's first window."""
        return group * self.per_group

    def locate(self, windows: Int64) -> tuple[Int64, Int64]:
        """Return the row group of each window [P], and its row there: int64 [P] each."""
        group = windows // self.per_group
        return group, windows - group * self.per_group


class ListedRowGroups(Sequence[int]):
    """The sizes of row groups as a list: any sizes, also 0."""

    def __init__(self, counts: npt.ArrayLike) -> None:
        self._counts = np.array(counts, dtype=np.int64)
        assert self._counts.ndim == 1, "a flat list over all shards"
        assert (self._counts >= 0).all(), "a row group's number of windows is never negative"
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._counts)])
        for array in (self._counts, self._starts):
            array.setflags(write=False)
        self.num_windows = int(self._starts[-1])

    def __len__(self) -> int:
        return len(self._counts)

    @overload
    def __getitem__(self, group: int) -> int: ...

    @overload
    def __getitem__(self, group: slice) -> list[int]: ...

    def __getitem__(self, group: int | slice) -> int | list[int]:
        found: int | list[int] = self._counts[group].tolist()
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ListedRowGroups) and np.array_equal(self._counts, other._counts)

    def __hash__(self) -> int:
        return hash(self.num_windows)

    def __repr__(self) -> str:
        return f"ListedRowGroups({self._counts!r})"

    @property
    def num_filled(self) -> int:
        """The row groups with a window."""
        return int(np.count_nonzero(self._counts))

    @property
    def largest(self) -> int:
        """The most windows that a row group has."""
        return int(self._counts.max(initial=0))

    def counts(self) -> Int64:
        """Return all sizes, int64 [G]."""
        return self._counts

    def starts(self) -> Int64:
        """Return the first window of each row group, and the number of windows: int64 [G + 1]."""
        return self._starts

    def first_window(self, group: int) -> int:
        """Return a row group's first window."""
        return int(self._starts[group])

    def locate(self, windows: Int64) -> tuple[Int64, Int64]:
        """Return the row group of each window [P], and its row there: int64 [P] each."""
        group = np.searchsorted(self._starts, windows, side="right") - 1
        return group, windows - self._starts[group]


RowGroups: TypeAlias = EvenRowGroups | ListedRowGroups


def divide_windows(num_windows: int, *, per_group: int, per_shard: int) -> RowGroups:
    """Return the row groups of a split whose shards have `per_shard` windows each, and the last one the rest.

    >>> divide_windows(8, per_group=2, per_shard=4), divide_windows(8, per_group=2, per_shard=3)
    (EvenRowGroups(8, 2), ListedRowGroups(array([2, 1, 2, 1, 2])))
    """
    if per_shard % per_group == 0:
        return EvenRowGroups(num_windows, per_group)
    return as_row_groups(
        [
            min(per_group, per_shard - within, num_windows - first - within)
            for first in range(0, num_windows, per_shard)
            for within in range(0, min(per_shard, num_windows - first), per_group)
        ]
    )


def as_row_groups(groups: RowGroups | Sequence[int] | Int64) -> RowGroups:
    """Return the sizes of row groups, as arithmetic if all but the last are equal and none is empty.

    >>> as_row_groups([3, 3, 2]), as_row_groups([2, 3])
    (EvenRowGroups(8, 3), ListedRowGroups(array([2, 3])))
    """
    if isinstance(groups, EvenRowGroups | ListedRowGroups):
        return groups
    counts = np.array(groups, dtype=np.int64)
    if counts.ndim == 1 and len(counts) and (counts[:-1] == counts[0]).all() and 0 < counts[-1] <= counts[0]:
        return EvenRowGroups(int(counts.sum()), int(counts[0]))
    return ListedRowGroups(counts)


class JoinedRowGroups:
    """The row groups of several data sets, numbered from the first data set to the last, as their windows are."""

    def __init__(self, parts: Sequence[RowGroups]) -> None:
        self.parts = list(parts)
        self.first_groups = np.cumsum([0, *(len(one) for one in self.parts)])  # [S + 1]
        self.first_windows = np.cumsum([0, *(one.num_windows for one in self.parts)])  # [S + 1]
        self.num_windows, self.largest = int(self.first_windows[-1]), max(one.largest for one in self.parts)
        # [S] the size of a row group, 0 where that is not one
        self._per_group = np.array([one.per_group if isinstance(one, EvenRowGroups) else 0 for one in self.parts])
        self._has_listed = not self._per_group.all()

    def __len__(self) -> int:
        return int(self.first_groups[-1])

    def __getitem__(self, group: int) -> int:
        source, number = self.source_of(group)
        return self.parts[source][number]

    def source_of(self, group: int) -> tuple[int, int]:
        """Return the number of a row group's data set, and its number there."""
        source = int(np.searchsorted(self.first_groups, group, side="right")) - 1
        return source, group - int(self.first_groups[source])

    def sources_of(self, windows: Int64) -> tuple[Int64, Int64]:
        """Return the number of each window's data set [P], and the window's number there: int64 [P] each."""
        sources = np.searchsorted(self.first_windows, windows, side="right") - 1
        return sources, windows - self.first_windows[sources]

    def locate(self, windows: Int64) -> tuple[Int64, Int64]:
        """Return the row group of each window [P], and its row there: int64 [P] each."""
        sources, within = self.sources_of(windows)
        per_group = self._per_group[sources]
        group = within // np.maximum(per_group, 1)
        row = within - group * per_group
        if self._has_listed:
            for source in np.unique(sources[per_group == 0]).tolist():
                here = sources == source
                group[here], row[here] = self.parts[source].locate(within[here])
        return self.first_groups[sources] + group, row
