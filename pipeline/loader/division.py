"""Which indices of each global batch a rank reads, for any world size, and so which lanes it must decode.

A global batch is the next G = B * W indices of the order, for W ranks of B rows. Index i belongs to lane i % C.

* If W divides C, rank r reads the indices with i % W == r. These are the lanes j with j % W == r: each lane has one
  reader, whatever B, and wherever a global batch starts. An order without lanes is divided like this for any W.
* Otherwise the indices of a global batch are sorted by lane and cut into W parts of B, one for each rank. So ranks
  share the lanes at the cuts, and all readers of a lane decode it. If G is a multiple of C, each global batch has as
  many indices of one lane as of any other, so the cuts never move, and a rank reads at most ceil(C / W) + 1 lanes. By
  eye, C = 4, W = 3, B = 4, the global batch from index 0:

      lane 0    0 4 8  | lane 1    1 5 9  | lane 2    2 6 10 | lane 3    3 7 11
      rank 0    0 4 8 1        rank 1    5 9 2 6        rank 2    10 3 7 11

* If G is no multiple of C, the cuts move from one global batch to the next, and a rank may read most lanes. To keep
  that small, the lanes are dealt out first, as cards are: with g = gcd(C, W), the lanes j with j % g == 0 belong to the
  first W / g ranks, those with j % g == 1 to the next ones, and so on. Each of these g classes is then sorted and cut
  for itself.

The first two rules are the third with g = W and g = 1, so there is one formula. In its class a rank reads the slots
low .. high - 1 of the sorted indices. Everything is arithmetic: nothing depends on what was read before.

Cost: O(rows) for the indices of many global batches at once, and O(C) for the lanes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from itertools import pairwise
from math import gcd
from typing import TYPE_CHECKING

import numpy as np

from pipeline.rules import reject

if TYPE_CHECKING:
    from pipeline.base.permutation import Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSlice:
    """The part of each global batch that one rank reads, or one of the worker processes that read for it."""

    global_batch: int  # its number of indices, G
    lanes: int  # C; 1 for an order without lanes
    classes: int  # g, into which the lanes are dealt
    number: int  # of the class: its indices are those with i % g == number
    low: int  # slots of the sorted indices of the class: the rank reads low .. high - 1
    high: int

    @property
    def rows(self) -> int:
        """Rows of a batch."""
        return self.high - self.low

    @property
    def class_batch(self) -> int:
        """Indices of a global batch that belong to the class."""
        return self.global_batch // self.classes

    @property
    def class_lanes(self) -> int:
        """Lanes of the class: its u-th index belongs to the (u % class_lanes)-th of them."""
        return self.lanes // gcd(self.lanes, self.classes)

    def indices(self, start: int, batches: int) -> Int64:
        """Return the indices that the rank reads in its next batches from `start`: int64 [batches, rows], each sorted.

        >>> divide(rank=1, world_size=3, batch_size=4, lanes=4).indices(0, 2).tolist()
        [[2, 5, 6, 9], [14, 17, 18, 21]]
        """
        firsts = self._first(start) + self.class_batch * np.arange(batches, dtype=np.int64)[:, None]
        if self.rows == self.class_batch:  # the rank reads the complete class
            return (firsts + np.arange(self.rows)) * self.classes + self.number
        slots = np.arange(self.low, self.high)
        lane_borders, slot_borders, counts = self._segments(firsts[:, 0] % self.class_lanes)
        segment = (slots >= slot_borders[:, 1:2]).astype(np.int64) + (slots >= slot_borders[:, 2:3])
        row = np.arange(batches)[:, None]
        turn, lane = slots - slot_borders[row, segment], counts[row, segment]
        turn, lane = turn % lane, lane_borders[row, segment] + turn // lane
        found: Int64 = firsts + (lane - firsts) % self.class_lanes + turn * self.class_lanes
        found.sort(axis=1)
        return found * self.classes + self.number

    def lanes_read(self, start: int | None = None) -> Int64:
        """Return the lanes that the rank reads from `start` on, sorted; without it, from any index."""
        count, size = self.class_lanes, self.class_batch
        if self.rows == size:
            mine = np.arange(count)
        else:
            shared = 1 if start is None else gcd(count, size)
            firsts = (np.arange(0, count, shared) + (0 if start is None else self._first(start))) % count
            lane_borders, slot_borders, counts = self._segments(firsts)
            low = np.maximum(slot_borders[:, :-1], self.low) - slot_borders[:, :-1]
            high = np.minimum(slot_borders[:, 1:], self.high) - slot_borders[:, :-1]
            some = low < high
            marks = np.zeros(count + 1, np.int64)
            np.add.at(marks, (lane_borders[:, :-1] + low // counts)[some], 1)
            np.add.at(marks, (lane_borders[:, :-1] + (high - 1) // counts + 1)[some], -1)
            mine = np.flatnonzero(np.cumsum(marks[:-1]))
        return np.sort((self.number + self.classes * mine) % self.lanes)

    def split(self, workers: int) -> list[RankSlice]:
        """Return the parts of worker processes that read for this rank. Their batches may span `workers` of its own.

        Together they read the same indices. If possible, each has lanes of its own.
        """
        if self.rows == self.class_batch and (self.class_lanes == 1 or self.class_lanes % workers == 0):
            global_batch, classes = self.global_batch * workers, self.classes * workers
            return [
                replace(self, global_batch=global_batch, classes=classes, number=number)
                for number in range(self.number, classes, self.classes)
            ]
        cuts = [self.low + self.rows * worker // workers for worker in range(workers + 1)]
        return [replace(self, low=low, high=high) for low, high in pairwise(cuts)]

    def _first(self, start: int) -> int:
        """Return the number in the class of its first index at or after `start`."""
        return -((self.number - start) // self.classes)

    def _segments(self, first_lanes: Int64) -> tuple[Int64, Int64, Int64]:
        """Return how the sorted indices of global batches lie, whose first index in the class is of these lanes [S].

        The lanes of a class fall into three segments (some may be empty) of lanes with equally many indices each:
        the segments' borders in lanes [S, 4] and in slots [S, 4], and the indices of each lane, at least 1 [S, 3].
        """
        count, size = self.class_lanes, self.class_batch
        each, more = divmod(size, count)  # the lanes first .. first + more - 1, around the end, have one more
        end = first_lanes + more
        around = end > count
        lane_borders = np.zeros((len(first_lanes), 4), np.int64)
        lane_borders[:, 1] = np.where(around, end - count, first_lanes)
        lane_borders[:, 2] = np.where(around, first_lanes, end)
        lane_borders[:, 3] = count
        counts = each + np.stack([around, ~around, around], axis=1).astype(np.int64)
        slot_borders = np.zeros_like(lane_borders)
        slot_borders[:, 1:] = np.cumsum(np.diff(lane_borders, axis=1) * counts, axis=1)
        return lane_borders, slot_borders, np.maximum(counts, 1)


def divide(*, rank: int, world_size: int, batch_size: int, lanes: int) -> RankSlice:
    """Return what a rank reads of each global batch: `batch_size` indices. An order without lanes has `lanes=1`."""
    assert 0 <= rank < world_size, f"rank {rank} is not below world_size {world_size}"
    global_batch = batch_size * world_size
    classes = 1 if global_batch % lanes == 0 else gcd(lanes, world_size)
    if lanes == 1 or lanes % world_size == 0:
        classes = world_size
    number, part = divmod(rank, world_size // classes)
    low = part * batch_size
    return RankSlice(
        global_batch=global_batch, lanes=lanes, classes=classes, number=number, low=low, high=low + batch_size
    )


def fair_lanes(*, world_size: int, lanes: int) -> int:
    """Return the most lanes that a rank reads if a global batch is a multiple of the lanes."""
    return lanes // world_size if lanes % world_size == 0 else -(-lanes // world_size) + 1


def check_step_size(step_size: int | None, *, batch_size: int, world_size: int) -> int:
    """Return the windows of an optimizer step; left out, those of one batch of all ranks."""
    global_batch = batch_size * world_size
    if step_size is not None and step_size % global_batch:
        batches = step_size // global_batch
        near = sorted({max(1, batches) * global_batch, (batches + 1) * global_batch})
        rule = f"must be a multiple of batch_size x world_size, {batch_size} x {world_size} = {global_batch}"
        reject("step_size", f"{rule}, such as {' or '.join(map(str, near))}", step_size)
    return step_size or global_batch


def warn_of_shared_lanes(*, world_size: int, batch_size: int, lanes: int) -> None:
    """Warn if ranks must decode far more lanes than they would with another batch size."""
    classes = divide(rank=0, world_size=world_size, batch_size=batch_size, lanes=lanes).classes
    middle = world_size // classes // 2  # the cuts around it move most
    part = divide(rank=middle, world_size=world_size, batch_size=batch_size, lanes=lanes)
    read, fair = len(part.lanes_read()), fair_lanes(world_size=world_size, lanes=lanes)
    if read <= 1.5 * fair and not fair < read == lanes:
        return
    unit = lanes // gcd(lanes, world_size)
    sizes = sorted({max(1, batch_size // unit) * unit, (batch_size // unit + 1) * unit})
    others = sorted({max(1, lanes // world_size) * world_size, (lanes // world_size + 1) * world_size})
    warnings.warn(
        f"batch_size: {world_size} ranks of {batch_size} take {part.global_batch} windows at once, no multiple of the "
        f"{lanes} lanes, so a rank decodes up to {read} lanes, about {read * world_size / lanes:.1f} times what it "
        f"reads; choose batch_size={' or '.join(map(str, sizes))} (at most {fair} lanes) or, for a new run, "
        f"lanes={' or '.join(map(str, others))} (another order)",
        UserWarning,
        stacklevel=4,  # where the loader is made
    )
