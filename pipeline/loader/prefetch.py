"""Prefetcher: many batches of one rank gathered at once, one block ahead, while threads decode what comes next.

    decoding threads      row groups, narrow, into a fixed amount of memory, as the order will need them
    gathering thread      one block ahead: the next positions -> windows -> rows, side by side, still narrow
    the caller            takes blocks

Threads, not processes: decoding and gathering release the GIL, so threads use all cores, start in under a
millisecond, share memory by nature, and leave no process, shared memory or lock file behind. They live as long as an
iteration: `break`, an exception, Ctrl-C or the end of the program stops them.

The first block is a single batch, and each is twice the one before, so that the first batch comes soon and a call costs
little later on: asking the order for positions costs as much as 1,000 rows.
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import chain, takewhile
from math import gcd
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.loader.order import rank_positions
from pipeline.loader.row_group import RowBatch
from pipeline.loader.row_group_cache import Need, RowGroupCache, slot_bytes

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from pipeline.loader.mixture import Mixture
    from pipeline.loader.order import Order
    from pipeline.loader.readers import Reader

BLOCK_TOKENS, BLOCK_ROWS = 1 << 19, 1 << 13  # a block is gathered at once: 1 MiB as uint16, at most so many windows
THREADS = "stridemill-load"
FORKED = "this iteration was begun before a fork, which took its threads; begin another"


class PrefetchUnit(NamedTuple):
    """Consecutive batches of one rank, still narrow."""

    gathered: RowBatch
    window_ids: np.ndarray  # int64 [B], numbered through all sources of a mix; -1 in a row that only fills
    batches: int
    held: RowGroupCache | None = None  # in this process


class Prefetcher:
    """The blocks of one rank, from any position on.

    Raises:
        ValueError: the order needs more row groups at once than the memory budget allows.

    """

    def __init__(
        self,
        reader: Reader,
        order: Order | Mixture,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        threads: int,
        memory_budget: int,
    ) -> None:
        self.reader, self.order = reader, order
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.threads, self.memory_budget = threads, memory_budget
        self._kept: RowGroupCache | None = None  # from one epoch to the next
        in_all = len(reader.groups) * slot_bytes(reader)
        # `full` needs all row groups at once; under `lanes` they are kept where that takes half of the budget at most.
        self.caches_all = order.shuffle == "full" or (order.shuffle == "lanes" and in_all <= memory_budget // 2)
        self.count_places()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def read(self, epoch: int, start: int, batches: int) -> Generator[PrefetchUnit, None, None]:
        """The next `batches` batches from a global position of an epoch, in blocks that grow from a single batch."""
        held = self._kept or RowGroupCache(self.reader, places=self.count_places(), keep=self.caches_all)
        self._kept = None  # in use: a second iteration has memory of its own
        ends = (
            sys.is_finalizing
        )  # kept here: when the interpreter ends, modules may be empty before this generator closes
        process = os.getpid()
        decoders = ThreadPoolExecutor(self.threads, thread_name_prefix=THREADS)
        gatherer = ThreadPoolExecutor(1, thread_name_prefix=THREADS)
        try:
            held.start(self._needs(epoch, start, batches), decoders)
            blocks = self._gather(held, epoch, start, batches)
            due = gatherer.submit(next, blocks, None)
            while (block := _wait(due, held)) is not None:
                due = gatherer.submit(next, blocks, None)
                yield block
                if os.getpid() != process:
                    raise RuntimeError(FORKED)  # noqa: TRY301 - no pool says this
        except RuntimeError as error:
            if "cannot schedule new futures" not in str(error):
                raise
            return  # the interpreter ends, and with it the iteration of a daemon thread
        finally:
            if not ends() and os.getpid() == process:  # else the pools' exit handlers, or a fork, ended their threads
                self._stop(held, decoders, gatherer)

    def _stop(self, held: RowGroupCache, *pools: ThreadPoolExecutor) -> None:
        # Not from one of the threads themselves: the collector may run anywhere, and no thread can wait for itself.
        wait = not threading.current_thread().name.startswith(THREADS)
        for pool in pools:
            pool.shutdown(wait=wait, cancel_futures=True)
        if wait:
            held.stop()
            self._kept = held if self.caches_all else None

    def count_places(self) -> int:
        """Row groups to hold at once: all; or what the order needs at any position, and as many again to decode ahead.

        Raises:
            ValueError: the order needs more than the memory budget allows.

        """
        order, groups = self.order, len(self.reader.groups)
        needed, each = order.num_buffered(self.world_size), max(1, slot_bytes(self.reader))
        if needed * each > self.memory_budget:
            remedy = {"none": "", "full": ", or choose shuffle=lanes", "lanes": ", or fewer lanes"}[order.shuffle]
            raise ValueError(
                f"shuffle={order.shuffle} holds {needed} row groups of {each:,} bytes at once, more than "
                f"loader.memory_budget={self.memory_budget:,}; raise it to {needed * each:,} or more{remedy}"
            )
        if self.caches_all:
            return max(1, groups)
        rows = max(self.batch_size, min(BLOCK_ROWS, BLOCK_TOKENS // self.reader.max_length))
        in_block = 2 + rows * self.world_size * groups // max(1, len(order))
        wished = needed + max(needed, 2 * self.threads, in_block)
        return max(1, min(groups, wished, self.memory_budget // each))

    def _gather(self, held: RowGroupCache, epoch: int, start: int, batches: int) -> Iterator[PrefetchUnit]:
        """The blocks themselves, each gathered when it is asked for."""
        order, step = self.order, self.batch_size * self.world_size
        rows = min(BLOCK_ROWS, BLOCK_TOKENS // self.reader.max_length)
        full, size = max(1, rows // self.batch_size), 1
        windows, asked = np.empty(0, np.int64), 0  # of the batches done .. asked - 1
        done = 0
        while done < batches:
            take = min(size, batches - done)
            if done + take > asked:
                more = min(max(take, 4 * size, BLOCK_ROWS // self.batch_size if size == full else 0), batches - asked)
                begin = start + asked * step
                positions = rank_positions(
                    begin,
                    more * self.batch_size,
                    rank=self.rank,
                    world_size=self.world_size,
                    stop=begin + more * step if order.endless else order.stop(epoch),
                )
                windows = np.concatenate([windows, order.windows(positions, epoch)])
                asked += more
            count = take * self.batch_size
            here, windows = windows[:count], windows[count:]
            gathered = held.gather(here, passed=start + done * step)
            if len(here) < count:
                gathered = fill(gathered, count - len(here))
                here = np.pad(here, (0, count - len(here)), constant_values=-1)
            yield PrefetchUnit(gathered, here, take, held)
            done, size = done + take, min(2 * size, full)

    def _needs(self, epoch: int, start: int, batches: int) -> Iterator[Need]:
        lanes = self.order.lanes
        shared = gcd(self.world_size, lanes)
        behind = start + batches * self.batch_size * self.world_size
        spans = takewhile(
            lambda stretch: stretch.first < behind,
            self.order.spans(start, epoch, rank=self.rank % shared, world_size=shared),
        )
        begun, coming = [], None
        for stretch in spans:
            if stretch.first >= start:
                coming = stretch
                break
            begun.append(stretch)
        # Those that a resume finds begun are decoded in the order in which its first batches need their lanes.
        begun.sort(key=lambda stretch: (stretch.first - start) % lanes)
        for stretch in chain(begun, [coming] if coming else [], spans):
            yield Need(stretch.group, stretch.last)


def fill(gathered: RowBatch, missing: int) -> RowBatch:
    """RowInfo that only fill the last batch, behind the others: no target of them counts."""
    ids_BT1, bounds_B2 = gathered
    if bounds_B2 is None:
        bounds_B2 = np.zeros((len(ids_BT1), 2), np.int32)
        bounds_B2[:, 1] = ids_BT1.shape[1] - 1
    return RowBatch(np.pad(ids_BT1, ((0, missing), (0, 0))), np.pad(bounds_B2, ((0, missing), (0, 0))))


def _wait(due: Future[PrefetchUnit | None], held: RowGroupCache) -> PrefetchUnit | None:
    try:
        return due.result()
    except (OSError, ValueError, CancelledError) as error:
        if held.error is None or held.error is error:
            raise
        raise held.error from held.error.__cause__  # what a decoding thread met, not what followed from it
