"""The sample order: which stored window comes at each index of each epoch, by arithmetic alone.

Stored windows are numbered 0 .. N-1 through all row groups of all shards. An epoch has the indices 0 .. N-1, and
`Order.windows(indices, epoch)` returns the window at each of them. With a `Selection` (`pipeline.loader.selection`), N
is the number of selected windows, and the order is one of these. It is a permutation and a pure function of the row
groups' sizes, `shuffle`, `seed`, `epoch`, `lanes` and `block`. World size, batch size, threads and what was read before
play no part, so the whole state of a reader is one index, and resuming means asking from there.

* `none`: index i is window i.
* `full`: one permutation of all N windows. The reader must buffer them all.
* `lanes`: for data that does not fit into memory. Shuffle the row groups, concatenate them, split the result into C
  equal lanes, and split each lane at block borders (every `block` row groups). Shuffle inside each of these pieces.
  Index i is entry i // C of lane i % C. By eye, 3 row groups, C = 2, block = 1:

      stored row groups     0 1 2 | 3 4 5 | 6 7
      shuffled sequence     3 4 5 | 0 1 2 | 6 7
      lane 0, its pieces    3 4 5 | 0               shuffled    4 3 5 | 0
      lane 1, its pieces    1 2 | 6 7               shuffled    2 1 | 7 6
      global order          4 2 3 1 5 7 0 6         lane 0, lane 1, lane 0, ...

Which rank reads which index of a step, `pipeline.loader.division` says. If the world size divides C, each lane has one
reader, and only a row group that crosses a lane's end is decoded twice. Neighbours in a batch come from C parts of the
text that are far apart, which matters most when windows overlap. `Order.spans` lists what a reader of some lanes must
decode and when.

Memory: under `lanes` a reader buffers one piece of each lane that it reads, block * (windows of a row group) * L tokens
each; under `full` everything, N * L tokens; under `none` one row group.
Cost: starting at any index takes O(1), except for the row group sequence, which takes O(row groups) once an epoch
(0.1 s for a million). An index takes about 0.1 microseconds if thousands are asked for at once: ask for many.

Permutations are keyed bijections (`pipeline.base.permutation`), so none is ever stored.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from pipeline.base.permutation import Int64, make_key, permute
from pipeline.loader.selection import Selection

if TYPE_CHECKING:
    from pipeline.loader.readers import Reader

Shuffle: TypeAlias = Literal["none", "full", "lanes"]

# `auto` is `full` up to this many tokens in all windows together: 128 MiB as uint16, 256 MiB as int32.
FULL_SHUFFLE_TOKENS = 2**26
# Small row groups are combined into shuffle blocks of up to this many tokens: 64 lanes take 32 MiB as uint16.
BLOCK_TOKENS = 2**18


def resolve_shuffle(shuffle: str, *, num_windows: int, max_length: int) -> Shuffle:
    """Resolve `auto` to `full` or `lanes` by the data's size alone, so that every machine gets the same order."""
    if shuffle == "auto":
        return "full" if num_windows * max_length <= FULL_SHUFFLE_TOKENS else "lanes"
    if shuffle not in ("none", "full", "lanes"):
        raise ValueError(f"loader.shuffle={shuffle!r} is not a known order: choose auto, none, full or lanes")
    return cast("Shuffle", shuffle)


def default_block(groups: Sequence[int] | Int64, *, max_length: int) -> int:
    """Return the row groups per shuffle block: as many of the largest as fit `BLOCK_TOKENS`, at least one."""
    return max(1, BLOCK_TOKENS // max(1, int(np.max(np.asarray(groups), initial=0)) * max_length))


def num_batches(consumed: int, stop: int, *, global_batch: int, step_size: int, drop_last: bool) -> int:
    """Return how many batches each rank gets from the index `consumed` to the end of an epoch, which is at `stop`.

    Steps are counted from index 0, each of `step_size` indices, which is a multiple of `global_batch`. The epoch ends
    with the last complete step, or without `drop_last` with the step that contains its last index. So the end does not
    depend on how a step is divided into batches. From an index that no batch of this size ends at, it may be up to one
    batch later or earlier.

    >>> num_batches(0, 100, global_batch=8, step_size=48, drop_last=True)
    12
    """
    left = stop - consumed
    if left <= 0:
        return 0
    if drop_last:
        to_border = stop // step_size * step_size - consumed
        return max(0, min(-(-to_border // global_batch), left // global_batch))
    to_border = -(-stop // step_size) * step_size - consumed
    return max(to_border // global_batch, -(-left // global_batch))


GROUPS, IN_BLOCK = 1, 2  # what a permutation is for: two uses never share a key


class Span(NamedTuple):
    """Rows low .. high-1 of a row group, needed by indices first .. last and by no others."""

    group: int
    low: int
    high: int
    first: int
    last: int


class RowGroupSequence(NamedTuple):
    """The row groups of an epoch in shuffled order, and how lanes and shuffle blocks divide them."""

    groups: Int64  # [G] the row groups in this order
    borders: Int64  # [G + 1] where each starts, in windows; the last is N
    blocks: Int64  # [B + 1] every `block`-th border, and N
    lanes: Int64  # [C + 1] where each lane starts, and N


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Order:
    """The order of one split's windows in any epoch, as the module's docstring defines it."""

    groups: Sequence[int] | Int64  # window counts of all row groups, in stored order
    shuffle: Shuffle
    seed: int = 0
    lanes: int = 64
    block: int = 1  # row groups per shuffle block; only `lanes` uses it
    selection: Selection | None = None  # the windows that are read; None: all of them
    starts: Int64 = field(init=False, repr=False)  # [G + 1] the first stored window of each row group, and their number
    kept_starts: Int64 = field(init=False, repr=False)  # [G + 1] the same, of the selected windows; the last is N
    _sequences: dict[int, RowGroupSequence] = field(init=False, repr=False, default_factory=dict)  # by epoch, at most 2
    _size: int = field(init=False, repr=False)  # N, for which each batch asks

    endless = False  # an epoch ends with its last window

    def __post_init__(self) -> None:
        counts = np.array(self.groups, dtype=np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        assert counts.ndim == 1, "groups is one flat list over all shards"
        assert (counts >= 0).all(), "a row group's window count is never negative"
        assert self.shuffle in ("none", "full", "lanes"), f"shuffle={self.shuffle!r} must be resolved before"
        if self.lanes < 1:
            raise ValueError(f"loader.lanes={self.lanes} must be at least 1")
        if self.block < 1:
            raise ValueError(f"the row groups per shuffle block must be at least 1, not {self.block}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"loader.seed={self.seed} must be from 0 to 2**64 - 1")
        starts.setflags(write=False)
        object.__setattr__(self, "starts", starts)
        object.__setattr__(self, "kept_starts", starts if self.selection is None else self.selection.starts(starts))
        object.__setattr__(self, "_size", int(self.kept_starts[-1]))

    def __len__(self) -> int:
        return self._size

    @property
    def num_groups(self) -> int:
        """The row groups with a window that is read."""
        return int(np.count_nonzero(np.diff(self.kept_starts)))

    def first(self, epoch: int) -> int:  # noqa: ARG002 - a mixture counts on from epoch to epoch
        """Return an epoch's first index."""
        return 0

    def reaches(self, epoch: int) -> bool:  # noqa: ARG002
        """Tell whether an epoch begins in this order; a mixture forgets what came before a change of weights."""
        return True

    def stop(self, epoch: int) -> int:  # noqa: ARG002
        """Return the index after an epoch's last."""
        return len(self)

    def next_epoch(self, epoch: int, consumed: int) -> tuple[int, int]:  # noqa: ARG002
        """Return where a reader is at the end of an epoch: the next epoch, and the samples consumed of it."""
        return epoch + 1, 0

    def next_change(self, index: int) -> int | None:  # noqa: ARG002
        """Return the next index from which on `spans` is to be asked again; only a mixture has one."""
        return None

    def since(self, epoch: int, index: int) -> "Order":  # noqa: ARG002
        """Return the order without what only indices before this one need; only a mixture, and what was one, has it."""
        return self

    @property
    def num_rows(self) -> int:
        """The lanes, or 1 for an order without them: index i belongs to lane i % num_rows."""
        return self.lanes if self.shuffle == "lanes" else 1

    def num_buffered(self, num_lanes: int) -> int:
        """Return how many row groups a reader of this many lanes must buffer at once."""
        count = self.num_groups
        return min(count, {"none": 1, "full": count, "lanes": num_lanes * self.block}[self.shuffle])

    def windows(self, indices: npt.ArrayLike, epoch: int | Int64) -> Int64:
        """Return the stored window at each index [P] of an epoch, in any order and with repeats: int64 [P].

        Under `none` and `full` each index may have an epoch of its own, int64 [P].
        """
        numbers = self._numbers(self._checked(indices, "index", "indices", len(self)), epoch)
        return numbers if self.selection is None else self.selection.stored(numbers)

    def _numbers(self, i: Int64, epoch: int | Int64) -> Int64:
        """Return the windows at indices [P] by their numbers among those that are read: int64 [P]."""
        if self.shuffle == "none":
            return i
        if self.shuffle == "full":
            return permute(i, len(self), make_key(self.seed, epoch, IN_BLOCK))
        assert isinstance(epoch, int), "each epoch has a sequence of its own"
        sequence = self.shuffle_row_groups(epoch)
        lane, entry = i % self.lanes, i // self.lanes
        at = sequence.lanes[lane] + entry
        block = np.searchsorted(sequence.blocks, at, side="right") - 1
        low = np.maximum(sequence.blocks[block], sequence.lanes[lane])
        high = np.minimum(sequence.blocks[block + 1], sequence.lanes[lane + 1])
        at = low + permute(at - low, high - low, make_key(self.seed, epoch, IN_BLOCK, lane, block))
        number = np.searchsorted(sequence.borders, at, side="right") - 1
        return self.kept_starts[sequence.groups[number]] + at - sequence.borders[number]

    def locate(self, windows: npt.ArrayLike) -> tuple[Int64, Int64]:
        """Return the row group of each stored window [P] and its row there: int64 [P] each."""
        window = self._checked(windows, "window", "windows", int(self.starts[-1]))
        group = np.searchsorted(self.starts, window, side="right") - 1
        return group, window - self.starts[group]

    def spans(self, start: int, epoch: int, lanes: Iterable[int] | None = None) -> Iterator[Span]:
        """Yield what a reader of some lanes must decode from index `start` to the end of the epoch; of all without.

        They are sorted by the first use. A reader decodes ahead in this order, and drops a span after its `last` index.
        Each is computed when asked for. The first ones may start before `start`. Under `none` and `full` there is one
        lane.
        """
        lanes = range(self.num_rows) if lanes is None else lanes
        return heapq.merge(*(self.lane_spans(lane, start, epoch) for lane in lanes), key=attrgetter("first"))

    def lane_spans(self, lane: int, start: int, epoch: int) -> Iterator[Span]:
        """Yield the spans of one lane, from index `start` to the end of the epoch."""
        sequence = self.shuffle_row_groups(epoch)
        num_lanes, lane_start, lane_stop = len(sequence.lanes) - 1, *map(int, sequence.lanes[lane : lane + 2])
        at = lane_start + max(0, -(-(start - lane) // num_lanes))
        while at < lane_stop:
            block = int(np.searchsorted(sequence.blocks, at, side="right")) - 1
            low, high = max(int(sequence.blocks[block]), lane_start), min(int(sequence.blocks[block + 1]), lane_stop)
            first, last = ((one - lane_start) * num_lanes + lane for one in (low, high - 1))
            first_number = int(np.searchsorted(sequence.borders, low, side="right")) - 1
            for number in range(first_number, int(np.searchsorted(sequence.borders, high, side="left"))):
                border, next_border = int(sequence.borders[number]), int(sequence.borders[number + 1])
                if border < next_border:
                    rows = max(low, border) - border, min(high, next_border) - border
                    yield Span(int(sequence.groups[number]), *rows, first, last)
            at = high

    def shuffle_row_groups(self, epoch: int) -> RowGroupSequence:
        """Return the row groups of one epoch in their order: shuffled under `lanes`, else as stored, in one lane."""
        if (known := self.known_sequence(epoch)) is not None:
            return known
        groups = np.arange(len(self.starts) - 1)
        if self.shuffle == "lanes":
            groups = permute(groups, len(groups), make_key(self.seed, epoch, GROUPS))
        return self.remember_sequence(epoch, groups)

    def known_sequence(self, epoch: int) -> RowGroupSequence | None:
        """Return the row groups of an epoch in their order, None if they are not known yet."""
        return self._sequences.get(epoch)

    def remember_sequence(self, epoch: int, groups: Int64) -> RowGroupSequence:
        """Return how lanes and blocks divide the row groups of an epoch, which are in this order, and remember it."""
        counts = np.diff(self.kept_starts)
        num_lanes = self.lanes if self.shuffle == "lanes" else 1
        borders = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[groups])])
        block = {"none": 1, "full": max(1, len(counts)), "lanes": self.block}[self.shuffle]
        lane = np.arange(num_lanes + 1)
        lanes = lane * (len(self) // num_lanes) + np.minimum(lane, len(self) % num_lanes)  # the longer ones first
        sequence = RowGroupSequence(groups, borders, np.append(borders[:-1:block], len(self)), lanes)
        if len(self._sequences) > 1:
            self._sequences.clear()
        self._sequences[epoch] = sequence
        return sequence

    def _checked(self, values: npt.ArrayLike, one: str, many: str, count: int) -> Int64:
        checked = np.array(values, dtype=np.int64)
        if checked.size and not (checked.min() >= 0 and checked.max() < count):
            raise ValueError(f"{many} {checked.min()} to {checked.max()}: each {one} must be from 0 to {count - 1}")
        return checked


def make_order(
    reader: "Reader", *, shuffle: Shuffle, seed: int, lanes: int, selection: Selection | None = None
) -> Order:
    """Return the order of one data set's windows, or of the selected ones."""
    block = default_block(reader.groups, max_length=reader.max_length)
    return Order(groups=reader.groups, shuffle=shuffle, seed=seed, lanes=lanes, block=block, selection=selection)
