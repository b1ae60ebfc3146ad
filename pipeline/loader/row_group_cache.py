"""Row groups that threads decode ahead, in a fixed amount of memory, and windows gathered from them.

A cached row group is flat: overlapping windows share their tokens (`loader/row_group.py`), so at stride 1 it takes the
memory of its text, not `max_length` times as much.

The cache has a fixed number of slots, one row group each. The order says which row groups are needed when
(`Order.spans`), so the next ones are decoded into free slots before a batch asks for them, and a slot is freed after
the last sample that needs it. Under `full`, where any sample may need any row group, and where memory allows, each row
group has its own slot and is never dropped: later epochs decode nothing.

`gather` runs in one thread at a time, decoding in many. Cost of a gather: one copy of each row, in the compact type.
"""

from __future__ import annotations

import heapq
from concurrent.futures import Future
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.loader.damage import Damage, DamagedRowGroup, clear_rows
from pipeline.loader.metrics import Counters
from pipeline.loader.mixture_reader import MixtureReader
from pipeline.loader.row_group import GroupMemory, RowBatch, count_slot_tokens, view_windows
from pipeline.loader.target_mask import count_scored_targets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import ThreadPoolExecutor

    from pipeline.loader.readers import Reader
    from pipeline.loader.shard_files import Fetch


AHEAD = 64  # row groups to decode ahead that are asked for at once, if all are kept: more would delay a first batch
DECODED: Future[Any] = Future()
DECODED.set_result(None)


class Need(NamedTuple):
    """A row group, and the last index that needs it."""

    group: int
    last: int


class Slots(NamedTuple):
    """Where cached row groups are."""

    groups: np.ndarray | None  # int64 [G], ascending; None: 0 to G - 1
    slots: np.ndarray  # int64 [G]
    pitches: np.ndarray  # int64 [G], the tokens between the starts of two windows


class RowGroupCache:
    """Decoded row groups in memory.

    Args:
        reader: where they come from.
        slots: how many are cached at once.
        keep: never drop one; there must be a slot for each that is read.
        counters: count what is decoded here.

    """

    def __init__(self, reader: Reader, *, slots: int, keep: bool, counters: Counters | None = None) -> None:
        assert slots >= 1, "no slot to decode into"
        self.reader, self._slots = reader, slots
        self._keep = keep
        self._has_bounds = has_bounds(reader)
        self._height = reader.groups.largest
        self._width = slot_tokens(reader)
        self._tokens = np.empty(slots * self._width, reader.dtype)
        self._views = view_windows(self._tokens, pitch=1, max_length=reader.max_length)  # what starts at each token
        self._bounds = np.zeros((slots * self._height if self._has_bounds else 0, 2), np.int32)
        self._marks = np.zeros((slots * self._height, ends_bytes(reader)), np.uint8) if has_ends(reader) else None
        self._slot: dict[int, int] = {}  # of each cached row group
        self._pitch: dict[int, int] = {}
        self._all: Slots | None = None  # once all row groups are kept and intact: nothing is left to wait for
        self._free = list(range(slots))
        self._users: dict[int, int] = {}  # spans of each cached row group that are not over
        self._decoded: dict[int, Future[Any]] = {}
        self._ends: list[tuple[int, int]] = []  # heap of (last index, row group)
        self._needs: Iterator[Need] = iter(())
        self._waiting: Need | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._fetchers: ThreadPoolExecutor | None = None
        self._idle: dict[int, None] = {}  # decoded for what was needed before `start`, until their slots are wanted
        self.counters = counters or Counters()

    @property
    def num_cached(self) -> int:
        """Row groups in memory, or on their way there."""
        return len(self._decoded)

    def start(
        self, needs: Iterator[Need], threads: ThreadPoolExecutor, fetchers: ThreadPoolExecutor | None = None
    ) -> None:
        """Start to decode along `needs`, sorted by the first index that needs them, in place of those before.

        `fetchers` ask an object store for row groups before `threads` decode them.
        """
        if not self._keep and self._decoded:
            ahead = list(islice(needs, len(self._decoded) + len(self._free)))
            needs = chain(ahead, needs)
            wanted = dict.fromkeys(need.group for need in ahead if need.group in self._decoded)
            # What is wanted last is given up first.
            self._idle = dict.fromkeys([*(group for group in self._decoded if group not in wanted), *reversed(wanted)])
            self._users = dict.fromkeys(self._decoded, 0)
            self._ends.clear()
        self._needs, self._threads, self._fetchers, self._waiting = needs, threads, fetchers, None

    def stop(self) -> None:
        """Forget what is not decoded; call it when the threads have ended."""
        for group in [group for group, done in self._decoded.items() if done.cancelled() or done.exception()]:
            self._drop(group)
        self._needs, self._waiting, self._threads, self._fetchers = iter(()), None, None, None
        # No cycle of references (a future knows its callbacks): the memory is free as soon as no one uses the cache.
        self._decoded = dict.fromkeys(self._decoded, DECODED) if self._keep else {}

    def gather(self, windows: np.ndarray, *, passed: int) -> tuple[RowBatch, Damage | None]:
        """Return windows by number, int64 [B], and which of them could not be read, if any.

        No index below `passed` will be asked for again.

        Raises:
            OSError, ValueError: what reading met besides damage.

        """
        while self._ends and self._ends[0][0] < passed:
            group = heapq.heappop(self._ends)[1]
            self._users[group] -= 1
            if not self._users[group]:
                self._drop(group)
        groups, rows = self.reader.groups.locate(windows)
        if self._all is not None:
            return self._gather_from_slots(self._all, groups, rows), None
        needed_groups = np.unique(groups)
        needed = needed_groups.tolist()
        if self._keep:  # what is wanted now comes first
            for group in needed:
                self._add(group)
        self._decode_ahead()
        cached = [group for group in needed if group in self._decoded]
        damaged = {group: error for group in cached if (error := wait_for(self._decoded[group]))}
        if len(cached) == len(needed):
            rows_B = self._gather_from_slots(self._find_slots(needed_groups), groups, rows)
        else:
            rows_B = self._gather_without_slots(groups, rows, damaged)
        if self._keep and len(self._decoded) == self._slots and all(map(is_intact, self._decoded.values())):
            self._all = self._find_slots(np.array(sorted(self._decoded), np.int64))
        if not damaged:
            return rows_B, None
        damage = Damage(np.where(np.isin(groups, list(damaged)), groups, -1), damaged)
        return clear_rows(rows_B, damage), damage

    def _find_slots(self, groups: np.ndarray) -> Slots:
        """Return where cached row groups are, int64 [G] ascending."""
        slots = np.array([self._slot[group] for group in groups.tolist()], np.int64)
        pitches = np.array([self._pitch[group] for group in groups.tolist()], np.int64)
        return Slots(None if np.array_equal(groups, np.arange(len(groups))) else groups, slots, pitches)

    def _gather_from_slots(self, known: Slots, groups: np.ndarray, rows: np.ndarray) -> RowBatch:
        """Gather rows [B] of row groups [B] that are among the known ones."""
        which = groups if known.groups is None else np.searchsorted(known.groups, groups)
        slots = known.slots[which]
        offsets = slots * self._width + rows * known.pitches[which]
        ids_BT1 = self._views[offsets]
        at = slots * self._height + rows
        bounds_B2 = self._bounds[at] if self._has_bounds else None
        return self._row_batch(ids_BT1, bounds_B2, None if self._marks is None else self._marks[at])

    def _gather_without_slots(
        self, groups: np.ndarray, rows: np.ndarray, damaged: dict[int, DamagedRowGroup]
    ) -> RowBatch:
        """Gather from cached row groups, and from others that are decoded for this call alone: slow and rare."""
        max_length = self.reader.max_length
        ids_BT1 = np.empty((len(rows), max_length + 1), self._tokens.dtype)
        bounds_B2 = np.zeros((len(rows) if self._has_bounds else 0, 2), np.int32)
        ends_BE = None if self._marks is None else np.zeros((len(rows), self._marks.shape[1]), np.uint8)
        for group in np.unique(groups).tolist():
            here = np.flatnonzero(groups == group)
            if group in self._decoded:
                memory = self._memory(group, self._slot[group])
            else:
                try:
                    memory = decode_group(self.reader, group)
                except DamagedRowGroup as error:
                    damaged[group] = error
                    continue
                self._count(group)
            pitch = self.reader.pitch_of(group)
            ids_BT1[here] = view_windows(memory.tokens, pitch=pitch, max_length=max_length)[rows[here]]
            if memory.bounds is not None:
                bounds_B2[here] = memory.bounds[rows[here]]
            if ends_BE is not None and memory.ends is not None:
                ends_BE[here] = memory.ends[rows[here]]
        return self._row_batch(ids_BT1, bounds_B2 if self._has_bounds else None, ends_BE)

    def _row_batch(self, ids_BT1: np.ndarray, bounds_B2: np.ndarray | None, ends_BE: np.ndarray | None) -> RowBatch:
        """Return windows as a RowBatch, without bounds if all targets count."""
        if bounds_B2 is not None and (bounds_B2 == (0, self.reader.max_length)).all():
            bounds_B2 = None
        return RowBatch(ids_BT1, bounds_B2, ends_BE)

    def _decode_ahead(self) -> None:
        if self._keep and len(self._decoded) == self._slots:
            self._needs = iter(())  # nothing is left to decode, ever
        for _ in range(AHEAD) if self._keep else count():
            if (need := self._waiting or next(self._needs, None)) is None:
                return
            self._waiting = need
            if need.group not in self._decoded and not self._free and not self._drop_idle():
                return
            self._add(need.group)
            self._waiting = None
            if not self._keep:
                self._users[need.group] += 1
                heapq.heappush(self._ends, (need.last, need.group))

    def _add(self, group: int) -> None:
        """Give a row group a slot and start to decode it. If no thread can be asked, nothing has changed."""
        if group in self._decoded:
            self._idle.pop(group, None)
            return
        assert self._threads is not None, "started before"
        slot = self._free[-1]
        fetched = None if self._fetchers is None else self._fetchers.submit(self.reader.fetch, group)
        done = self._threads.submit(decode_group, self.reader, group, into=self._memory(group, slot), fetched=fetched)
        self._free.pop()
        self._slot[group], self._users[group], self._decoded[group] = slot, 0, done
        self._pitch[group] = int(self.reader.pitch_of(group))
        self._count(group)

    def _drop_idle(self) -> bool:
        """Free the slot of a row group that nothing needs, if there is one and no thread decodes into it."""
        group = next((group for group in self._idle if self._decoded[group].done()), None)
        if group is None:
            return False
        self._drop(group)
        return True

    def _count(self, group: int) -> None:
        self.counters.add(1, count_tokens(self.reader, group) * self.reader.dtype.itemsize)

    def _drop(self, group: int) -> None:
        self._free.append(self._slot.pop(group))
        self._idle.pop(group, None)
        del self._decoded[group], self._users[group], self._pitch[group]

    def _memory(self, group: int, slot: int) -> GroupMemory:
        """Return the memory of a row group in a slot."""
        token, row = slot * self._width, slot * self._height
        rows = slice(row, row + self.reader.groups[group])
        return GroupMemory(
            self._tokens[token : token + count_tokens(self.reader, group)],
            self._bounds[rows] if self._has_bounds else None,
            None if self._marks is None else self._marks[rows],
        )


def wait_for(decoded: Future[Any]) -> DamagedRowGroup | None:
    """Wait for a row group. Return its damage; raise what else its decoding met."""
    try:
        decoded.result()
    except DamagedRowGroup as error:
        return error
    return None


def is_intact(decoded: Future[Any]) -> bool:
    """Tell whether a row group was decoded."""
    return decoded.done() and decoded.exception() is None


def decode_group(
    reader: Reader, group: int, *, into: GroupMemory | None = None, fetched: Fetch | None = None
) -> GroupMemory:
    """Return a row group's tokens, and which targets of its windows count; fill `into` if given.

    `fetched` is what `reader.fetch` returns, once it is there.

    If all targets of all windows of the split count, there are no bounds; if no window is packed, there are no ends.

    Raises:
        OSError, ValueError: as the reader's `read_group` does.

    """
    if into is None:
        rows_here = reader.groups[group]
        into = GroupMemory(
            np.empty(count_tokens(reader, group), reader.dtype),
            np.empty((rows_here, 2), np.int32) if has_bounds(reader) else None,
            np.empty((rows_here, ends_bytes(reader)), np.uint8) if has_ends(reader) else None,
        )
    tokens, bounds_B2, ends_BE = into
    rows = reader.read_group(group, tokens, fetched)
    if ends_BE is not None:
        ends_BE[:] = 0 if rows.ends is None else rows.ends  # in a mixture, not every source is packed
    if bounds_B2 is not None:
        bounds_B2[:, 1] = rows.lengths
        bounds_B2[:, 0] = count_scored_targets(reader, group, rows) if reader.score == "new" else 0
    return into


def has_bounds(reader: Reader) -> bool:
    """Tell whether some windows may have targets that do not count."""
    return reader.padded or reader.score == "new"


def has_ends(reader: Reader) -> bool:
    """Tell whether some windows have marks where documents end (`RowBatch.ends`)."""
    return reader.packed


def ends_bytes(reader: Reader) -> int:
    """Return the bytes of a window's marks."""
    return reader.max_length // 8 + 1


def count_tokens(reader: Reader, group: int) -> int:
    """Return the tokens that a row group takes in memory."""
    return count_slot_tokens(reader.groups[group], pitch=reader.pitch_of(group), max_length=reader.max_length)


def slot_tokens(reader: Reader) -> int:
    """Return the tokens of a slot, which any row group fits into."""
    sources = reader.readers if isinstance(reader, MixtureReader) else [reader]
    return max(
        count_slot_tokens(one.groups.largest, pitch=one.pitch_of(0), max_length=reader.max_length) for one in sources
    )


def slot_bytes(reader: Reader) -> int:
    """Return the bytes of a slot: its tokens and, if some targets may not count, what says which do."""
    per_row = 8 * has_bounds(reader) + ends_bytes(reader) * has_ends(reader)
    return slot_tokens(reader) * reader.dtype.itemsize + per_row * reader.groups.largest
