"""An epoch's row groups in shuffled order, laid end to end: which one has the window at an index of this sequence.

All sequences answer the same questions, for one index or for many at once: the number of the row group at an index, the
index at which the row group of a number starts, and what that row group is.

* `EvenSequence`: row groups of one size but the last, shorter one, of `missing` fewer windows. The shuffle is a keyed
  bijection, so the number is a division, and the row group an image. The short one is at the number `short`, which the
  inverse of the bijection says, and shifts what lies behind it by `missing`. Nothing is stored. By eye, row groups 0 to
  3 of 3, 3, 3 and 1 windows, shuffled to 2, 3, 0, 1, so `short` is 1 and `missing` 2:

      index      0 1 2 | 3 | 4 5 6 | 7 8 9
      number     0 0 0 | 1 | 2 2 2 | 3 3 3       (index + 0) // 3 up to index 3, (index + 2) // 3 behind it

* `ListedSequence`: any sizes, from tables of 16 bytes for each row group.
* `JoinedSequences`: of several pairs of a data set and an epoch, each index of a pair of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

import numpy as np

from pipeline.base.permutation import Int64, invert, make_key, permute, permute_one

if TYPE_CHECKING:
    from pipeline.base.permutation import UInt64
    from pipeline.shards.row_groups import EvenRowGroups, ListedRowGroups

GROUPS = 1  # what a permutation is for: no other use of the seed shares it (2 is that of pipeline.loader.order)
Count = TypeVar("Count", int, Int64)


class EvenSequence(NamedTuple):
    """Row groups of one size. Each field is a number, or int64 [P], one for each index that is asked for."""

    per_group: int | Int64
    num_groups: int | Int64
    missing: int | Int64  # windows that the last row group has less than the others
    short: int | Int64  # its number in the sequence
    key: UInt64 | None  # of the shuffle; None: as stored
    # The row groups of all sequences in their order, one sequence after the other, and where that of each index starts
    # there, [P]; None: each is computed when it is asked for.
    images: tuple[Int64, Int64] | None = None

    def number(self, index: Count) -> Count:
        """Return the number in the sequence of the row group with the window at an index."""
        is_behind = index >= (self.short + 1) * self.per_group - self.missing
        return (index + self.missing * is_behind) // self.per_group  # type: ignore[return-value]

    def border(self, number: Count) -> Count:
        """Return the index at which the row group of a number starts, or the end of the sequence."""
        return number * self.per_group - self.missing * (number > self.short)  # type: ignore[return-value]

    def group(self, number: int) -> int:
        """Return which row group has a number."""
        return number if self.key is None else permute_one(number, int(self.num_groups), int(self.key[0]))

    def first_window(self, number: Int64) -> Int64:
        """Return the first window of the row group of each number [P]: int64 [P]."""
        if self.images is not None:
            groups, firsts = self.images
            group: Int64 = groups[firsts + number]
        else:
            group = number if self.key is None else permute(number, self.num_groups, self.key)
        return group * self.per_group


class ListedSequence(NamedTuple):
    """Row groups of any sizes."""

    groups: Int64  # [G] the row groups in this order
    borders: Int64  # [G + 1] where each starts, and the end
    windows: Int64  # [G + 1] the first window of each row group, in stored order, and their number

    @property
    def num_groups(self) -> int:
        """The row groups."""
        return len(self.groups)

    def number(self, index: Count) -> Count:
        """Do as `EvenSequence.number`."""
        return np.searchsorted(self.borders, index, side="right") - 1  # type: ignore[return-value]

    def border(self, number: Count) -> Count:
        """Do as `EvenSequence.border`."""
        return self.borders[number]  # type: ignore[no-any-return]

    def group(self, number: int) -> int:
        """Do as `EvenSequence.group`."""
        return int(self.groups[number])

    def first_window(self, number: Int64) -> Int64:
        """Do as `EvenSequence.first_window`."""
        found: Int64 = self.windows[self.groups[number]]
        return found


class JoinedSequences(NamedTuple):
    """Sequences end to end; each index that is asked for is one of the sequence that its fields name."""

    borders: Int64  # of all sequences, each counted on from the end of the one before
    windows: Int64  # the first window of each row group, in the same places
    base: Int64  # [P] where each index's sequence starts, in windows of all
    first: Int64  # [P] where it starts in the tables
    num_groups: Int64  # [P]

    def number(self, index: Int64) -> Int64:
        """Do as `EvenSequence.number`."""
        return np.searchsorted(self.borders, self.base + index, side="right") - 1 - self.first

    def border(self, number: Int64) -> Int64:
        """Do as `EvenSequence.border`."""
        found: Int64 = self.borders[self.first + number] - self.base
        return found

    def first_window(self, number: Int64) -> Int64:
        """Do as `EvenSequence.first_window`."""
        found: Int64 = self.windows[self.first + number]
        return found


RowGroupSequence: TypeAlias = EvenSequence | ListedSequence


def shuffle_even(groups: EvenRowGroups, *, seed: int, epoch: int | None) -> EvenSequence:
    """Return row groups of one size in the order of an epoch; without one, as stored."""
    count = len(groups)
    key = None if epoch is None else make_key(seed, epoch, GROUPS)
    missing, short = count * groups.per_group - groups.num_windows, max(0, count - 1)
    if key is not None and missing:
        short = int(invert(np.array([short]), count, key)[0])
    return EvenSequence(groups.per_group, count, missing, short, key)


def shuffle_many_even(sizes: Int64, per_group: Int64, *, seed: int, epochs: Int64, of: Int64) -> EvenSequence:
    """Return the row groups of several data sets, each in the order of an epoch, for indices of the pairs `of` [P].

    Of each pair [K]: the windows, those of a row group, and the epoch.
    """
    count, key = -(-sizes // per_group), make_key(seed, epochs, GROUPS)
    missing, short = count * per_group - sizes, invert(count - 1, count, key)
    fields = per_group[of], count[of], missing[of], short[of], key[of]
    total = int(count.sum())
    if total > len(of):
        return EvenSequence(*fields)
    # Fewer row groups than indices: each is permuted once.
    bases, pair = np.cumsum(count) - count, np.repeat(np.arange(len(count)), count)
    images = permute(np.arange(total) - bases[pair], count[pair], key[pair])
    return EvenSequence(*fields, (images, bases[of]))


def list_sequence(groups: ListedRowGroups, order: Int64) -> ListedSequence:
    """Return row groups in an order [G]."""
    borders = np.concatenate([np.zeros(1, np.int64), np.cumsum(groups.counts()[order])])
    return ListedSequence(order, borders, groups.starts())
