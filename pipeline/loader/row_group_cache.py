"""Row groups decoded ahead by threads, in a fixed amount of memory, and windows gathered out of them.

A cached row group is flat: windows that overlap share their tokens (`loader/row_group.py`), so at stride 1 it takes the
memory of its text, not `max_length` times as much.

The memory is a number of places, each for one row group. The order says which row groups are needed when
(`Order.spans`), so the next ones are decoded into free places before a batch asks for them, and a place is free
again once the last position that needs it has passed. Under `full`, where every position may need every row group, and
where memory allows, there is a place for each and nothing is ever given up: later epochs decode nothing.

`gather` runs in one thread at a time; decoding in many. Cost of a gather: one copy of each row, narrow.
"""

from __future__ import annotations

import heapq
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.loader.row_group import RowBatch, count_slot_tokens, view_windows
from pipeline.loader.target_mask import count_scored_targets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import ThreadPoolExecutor

    from pipeline.loader.readers import Reader


DECODED: Future[None] = Future()
DECODED.set_result(None)


class Need(NamedTuple):
    """A row group, and the last position that needs it."""

    group: int
    last: int


class RowGroupCache:
    """Row groups in memory.

    Args:
        reader: where they come from.
        places: how many are held at once.
        keep: never give one up; there must be a place for each.

    """

    def __init__(self, reader: Reader, *, places: int, keep: bool) -> None:
        assert places >= (len(reader.groups) if keep else 1), f"{places} places for {len(reader.groups)} row groups"
        self.reader = reader
        self.error: BaseException | None = None  # the first one of a decoding thread
        self._keep = keep
        self._is_bounded = is_bounded(reader)
        self._height = max(reader.groups, default=0)
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(reader.groups, dtype=np.int64)])
        self._width = slot_tokens(reader)
        self._tokens = np.empty(places * self._width, reader.dtype)
        self._bounds = np.zeros((places * self._height if self._is_bounded else 0, 2), np.int32)
        self._place = np.full(len(reader.groups), -1, np.int64)  # of each held row group
        self._free = list(range(places))
        self._users: dict[int, int] = {}  # spans of each held row group that are not yet passed
        self._decoded: dict[int, Future[None]] = {}
        self._passing: list[tuple[int, int]] = []  # heap of (last position, row group)
        self._needs: Iterator[Need] = iter(())
        self._waiting: Need | None = None
        self._threads: ThreadPoolExecutor | None = None

    def start(self, needs: Iterator[Need], threads: ThreadPoolExecutor) -> None:
        """Begin to decode along `needs`, which come by the position that needs them first."""
        assert self._keep or not self._users, "memory that is given up is started once"
        self._needs, self._threads, self.error = needs, threads, None

    def stop(self) -> None:
        """Forget what is not decoded; call it when the threads have ended."""
        for group in [group for group, done in self._decoded.items() if done.cancelled() or done.exception()]:
            self._drop(group)
        self._needs, self._threads = iter(()), None
        # No circle of references (a future knows whom to call): the memory is free as soon as nobody holds this.
        self._decoded = dict.fromkeys(self._decoded, DECODED) if self._keep else {}

    def gather(self, windows: np.ndarray, *, passed: int) -> RowBatch:
        """Windows by number, int64 [B]. No position below `passed` will be asked for again."""
        while self._passing and self._passing[0][0] < passed:
            group = heapq.heappop(self._passing)[1]
            self._users[group] -= 1
            if not self._users[group]:
                self._drop(group)
        groups = np.searchsorted(self._starts, windows, side="right") - 1
        needed = np.unique(groups).tolist()
        if self._keep:  # what is wanted now comes first
            for group in needed:
                self._hold(group)
        self._decode_ahead()
        held = [group for group in needed if group in self._decoded]
        for group in held:
            self._decoded[group].result()
        if len(held) == len(needed):
            rows, places = windows - self._starts[groups], self._place[groups]
            begins = places * self._width + rows * self.reader.steps[groups]
            ids_BT1 = view_windows(self._tokens, step=1, max_length=self.reader.max_length)[begins]
            return self._bounded(ids_BT1, self._bounds[places * self._height + rows] if self._is_bounded else None)
        return self._gather_beside(windows, groups)

    def _gather_beside(self, windows: np.ndarray, groups: np.ndarray) -> RowBatch:
        """What is held, and row groups that have no place, decoded for this gather alone: slow, and rarely needed."""
        max_length = self.reader.max_length
        ids_BT1 = np.empty((len(windows), max_length + 1), self._tokens.dtype)
        bounds_B2 = np.zeros((len(windows) if self._is_bounded else 0, 2), np.int32)
        for group in np.unique(groups).tolist():
            here = np.flatnonzero(groups == group)
            if group in self._decoded:
                tokens, bounds = self._memory(group)
            else:
                tokens, bounds = decode_group(self.reader, group)
            rows = windows[here] - self._starts[group]
            ids_BT1[here] = view_windows(tokens, step=self.reader.steps[group], max_length=max_length)[rows]
            if bounds is not None:
                bounds_B2[here] = bounds[rows]
        return self._bounded(ids_BT1, bounds_B2 if self._is_bounded else None)

    def _bounded(self, ids_BT1: np.ndarray, bounds_B2: np.ndarray | None) -> RowBatch:
        """RowBatch windows, without bounds where all targets of all of them count."""
        if bounds_B2 is not None and (bounds_B2 == (0, self.reader.max_length)).all():
            bounds_B2 = None
        return RowBatch(ids_BT1, bounds_B2)

    def _decode_ahead(self) -> None:
        while True:
            need = self._waiting or next(self._needs, None)
            self._waiting = None
            if need is None:
                return
            if need.group not in self._decoded and not self._free:
                self._waiting = need
                return
            self._hold(need.group)
            if self._keep:
                continue
            self._users[need.group] += 1
            heapq.heappush(self._passing, (need.last, need.group))

    def _hold(self, group: int) -> None:
        if group in self._decoded:
            return
        assert self._threads is not None, "started before"
        self._place[group] = self._free.pop()
        self._users[group] = 0
        done = self._threads.submit(self._read, group, *self._memory(group))
        self._decoded[group] = done
        done.add_done_callback(self._note_error)

    def _drop(self, group: int) -> None:
        self._free.append(int(self._place[group]))
        self._place[group] = -1
        del self._decoded[group], self._users[group]

    def _memory(self, group: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Where a held row group lies: its tokens, and its windows' bounds."""
        token, row = int(self._place[group]) * self._width, int(self._place[group]) * self._height
        tokens = self._tokens[token : token + count_tokens(self.reader, group)]
        return tokens, self._bounds[row : row + self.reader.groups[group]] if self._is_bounded else None

    def _read(self, group: int, tokens: np.ndarray, bounds_B2: np.ndarray | None) -> None:
        decode_group(self.reader, group, into=(tokens, bounds_B2))

    def _note_error(self, done: Future[None]) -> None:
        if not done.cancelled() and done.exception() is not None and self.error is None:
            self.error = done.exception()


def decode_group(
    reader: Reader, group: int, *, into: tuple[np.ndarray, np.ndarray | None] | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """A row group's tokens, held flat, and which targets of its windows count, int32 [B, 2]; `into` memory, if given.

    Where all targets of all windows count, there are no such bounds.

    Raises:
        OSError, ValueError: as `read_group` of the reader.

    """
    if into is None:
        bounds_B2 = np.empty((reader.groups[group], 2), np.int32) if is_bounded(reader) else None
        into = np.empty(count_tokens(reader, group), reader.dtype), bounds_B2
    tokens, bounds_B2 = into
    rows = reader.read_group(group, tokens)
    if bounds_B2 is not None:
        bounds_B2[:, 1] = rows.lengths
        bounds_B2[:, 0] = count_scored_targets(reader, group, rows) if reader.score == "new" else 0
    return into


def is_bounded(reader: Reader) -> bool:
    """Whether some windows may have targets that do not count."""
    return reader.padded or reader.score == "new"


def count_tokens(reader: Reader, group: int) -> int:
    """Tokens that a row group takes when it is held."""
    return count_slot_tokens(reader.groups[group], step=int(reader.steps[group]), max_length=reader.max_length)


def slot_tokens(reader: Reader) -> int:
    """Tokens of the place of one held row group: any fits."""
    groups = np.asarray(reader.groups, np.int64)
    return int(count_slot_tokens(groups, step=reader.steps, max_length=reader.max_length).max(initial=0))


def slot_bytes(reader: Reader) -> int:
    """Bytes of the place of one held row group: its tokens and, where not all count, the bounds of those that do."""
    bounds = 8 * max(reader.groups, default=0) if is_bounded(reader) else 0
    return slot_tokens(reader) * reader.dtype.itemsize + bounds
