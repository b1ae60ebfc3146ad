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
Cost: starting at any index of any epoch takes O(1) time and memory if the row groups have one size but the last
(`pipeline.loader.sequence`). In older data sets of other sizes, and with a selection, it takes O(row groups) once an
epoch (0.1 s for a million). An index takes about 0.3 microseconds if thousands are asked for at once: ask for many.

Permutations are keyed bijections (`pipeline.base.permutation`), so none is ever stored.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

from pipeline.base.permutation import Int64, make_key, permute
from pipeline.loader.selection import Selection
from pipeline.loader.sequence import (
    GROUPS,
    Count,
    EvenSequence,
    JoinedSequences,
    ListedSequence,
    RowGroupSequence,
    list_sequence,
    shuffle_even,
)
from pipeline.shards.row_groups import EvenRowGroups, ListedRowGroups, RowGroups, as_row_groups

if TYPE_CHECKING:
    from pipeline.loader.shard_reader import ShardReader
    from pipeline.loader.store_reader import StoreReader

Sequenced = TypeVar("Sequenced", EvenSequence, ListedSequence)
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


def default_block(groups: RowGroups | Sequence[int] | Int64, *, max_length: int) -> int:
    """Return the row groups per shuffle block: as many of the largest as fit `BLOCK_TOKENS`, at least one."""
    return max(1, BLOCK_TOKENS // max(1, as_row_groups(groups).largest * max_length))


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


IN_BLOCK = 2  # what a permutation is for: no other use of the seed shares it (pipeline.loader.sequence has 1)


class Span(NamedTuple):
    """Rows low .. high-1 of a row group, needed by indices first .. last and by no others."""

    group: int
    low: int
    high: int
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Order:
    """The order of one split's windows in any epoch, as the module's docstring defines it."""

    groups: RowGroups | Sequence[int] | Int64  # window counts of all row groups, in stored order
    shuffle: Shuffle
    seed: int = 0
    lanes: int = 64
    block: int = 1  # row groups per shuffle block; only `lanes` uses it
    selection: Selection | None = None  # the windows that are read; None: all of them
    stored: RowGroups = field(init=False, repr=False)  # the window counts
    kept: RowGroups = field(init=False, repr=False)  # the same, of the selected windows
    _sequences: dict[int, RowGroupSequence] = field(init=False, repr=False, default_factory=dict)  # by epoch, at most 2
    _size: int = field(init=False, repr=False)  # N, for which each batch asks

    endless = False  # an epoch ends with its last window

    def __post_init__(self) -> None:
        stored = as_row_groups(self.groups)
        kept = stored if self.selection is None else as_row_groups(np.diff(self.selection.starts(stored.starts())))
        assert self.shuffle in ("none", "full", "lanes"), f"shuffle={self.shuffle!r} must be resolved before"
        if self.lanes < 1:
            raise ValueError(f"loader.lanes={self.lanes} must be at least 1")
        if self.block < 1:
            raise ValueError(f"the row groups per shuffle block must be at least 1, not {self.block}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"loader.seed={self.seed} must be from 0 to 2**64 - 1")
        object.__setattr__(self, "stored", stored)
        object.__setattr__(self, "kept", kept)
        object.__setattr__(self, "_size", kept.num_windows)

    def __len__(self) -> int:
        return self._size

    @property
    def num_groups(self) -> int:
        """The row groups with a window that is read."""
        return self.kept.num_filled

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
        shape = {"sizes": len(self), "blocks": self.row_groups_per_block, "lanes": self.lanes}
        return find_windows(self.sequence(epoch), i, epoch, **shape, seed=self.seed)

    def locate(self, windows: npt.ArrayLike) -> tuple[Int64, Int64]:
        """Return the row group of each stored window [P] and its row there: int64 [P] each."""
        return self.stored.locate(self._checked(windows, "window", "windows", self.stored.num_windows))

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
        sequence, num_lanes, per_block = self.sequence(epoch), self.num_rows, self.row_groups_per_block
        lane_start, lane_stop = (lane_border(one, size=len(self), lanes=num_lanes) for one in (lane, lane + 1))
        at = lane_start + max(0, -(-(start - lane) // num_lanes))
        while at < lane_stop:
            block = int(sequence.number(at)) // per_block
            after = min((block + 1) * per_block, len(self.kept))
            low = max(int(sequence.border(block * per_block)), lane_start)
            high = min(int(sequence.border(after)), lane_stop)
            first, last = ((one - lane_start) * num_lanes + lane for one in (low, high - 1))
            for number in range(int(sequence.number(low)), int(sequence.number(high - 1)) + 1):
                border, next_border = int(sequence.border(number)), int(sequence.border(number + 1))
                if border < next_border:
                    rows = max(low, border) - border, min(high, next_border) - border
                    yield Span(sequence.group(number), *rows, first, last)
            at = high

    @property
    def row_groups_per_block(self) -> int:
        """The row groups of a shuffle block in this order."""
        return {"none": 1, "full": max(1, len(self.kept)), "lanes": self.block}[self.shuffle]

    def sequence(self, epoch: int) -> RowGroupSequence:
        """Return the row groups of one epoch in their order: shuffled under `lanes`, else as stored."""
        if (known := self.known_sequence(epoch)) is not None:
            return known
        is_shuffled = self.shuffle == "lanes"
        if isinstance(self.kept, EvenRowGroups):
            return self._remember(epoch, shuffle_even(self.kept, seed=self.seed, epoch=epoch if is_shuffled else None))
        groups = np.arange(len(self.kept))
        if is_shuffled:
            groups = permute(groups, len(groups), make_key(self.seed, epoch, GROUPS))
        return self.remember_groups(epoch, groups)

    def known_sequence(self, epoch: int) -> RowGroupSequence | None:
        """Return the row groups of an epoch in their order, None if they are not known yet."""
        return self._sequences.get(epoch)

    def remember_groups(self, epoch: int, groups: Int64) -> ListedSequence:
        """Return the row groups of an epoch, which have any sizes and are in this order, and remember it."""
        assert isinstance(self.kept, ListedRowGroups), "otherwise arithmetic says it"
        return self._remember(epoch, list_sequence(self.kept, groups))

    def _remember(self, epoch: int, sequence: Sequenced) -> Sequenced:
        if len(self._sequences) > 1:
            self._sequences.clear()
        self._sequences[epoch] = sequence
        return sequence

    def _checked(self, values: npt.ArrayLike, one: str, many: str, count: int) -> Int64:
        checked = np.array(values, dtype=np.int64)
        if checked.size and not (checked.min() >= 0 and checked.max() < count):
            raise ValueError(f"{many} {checked.min()} to {checked.max()}: each {one} must be from 0 to {count - 1}")
        return checked


def find_windows(
    sequence: RowGroupSequence | JoinedSequences,
    indices: Int64,
    epochs: int | Int64,
    *,
    sizes: int | Int64,
    blocks: int | Int64,
    lanes: int,
    seed: int,
) -> Int64:
    """Return the window at each index [P] of a shuffled order with lanes: int64 [P].

    What is given for an order may be given for each index: its sequence, its windows, its row groups per shuffle block.
    """
    lane = indices % lanes
    lane_start, lane_stop = (lane_border(one, size=sizes, lanes=lanes) for one in (lane, lane + 1))
    at = lane_start + indices // lanes
    block = sequence.number(at) // blocks
    low = np.maximum(sequence.border(block * blocks), lane_start)
    high = np.minimum(sequence.border(np.minimum((block + 1) * blocks, sequence.num_groups)), lane_stop)
    at = low + permute(at - low, high - low, make_key(seed, epochs, IN_BLOCK, lane, block))
    number = sequence.number(at)
    return sequence.first_window(number) + at - sequence.border(number)


def lane_border(lane: Count, *, size: int | Int64, lanes: int) -> Count:
    """Return where a lane starts in the sequence of `size` windows, the longer lanes first; one lane or several."""
    return lane * (size // lanes) + np.minimum(lane, size % lanes)  # type: ignore[return-value]


def make_order(
    reader: "ShardReader | StoreReader", *, shuffle: Shuffle, seed: int, lanes: int, selection: Selection | None = None
) -> Order:
    """Return the order of one data set's windows, or of the selected ones."""
    block = default_block(reader.groups, max_length=reader.max_length)
    return Order(groups=reader.groups, shuffle=shuffle, seed=seed, lanes=lanes, block=block, selection=selection)
