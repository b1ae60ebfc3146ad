"""Gather a rank's batches ahead of time, several in one prefetch unit, while threads decode what comes next.

    fetching threads      row groups, as they are stored in an object store
    decoding threads      row groups, compact, into a fixed amount of memory, in the order in which they are needed
    asking thread         which windows come next, in large questions to the order (`pipeline.loader.lookahead`)
    gathering thread      one unit ahead: the next windows -> rows of one array, still compact
    the caller            takes units

Threads, not processes: decoding and gathering release the GIL, so threads use all cores, start in under a millisecond,
share memory by nature, and leave no process, shared memory or lock file. They live as long as an iteration: `break`, an
exception, Ctrl-C or the end of the program stops them.

The first unit is a single batch, and each is twice as large as the one before: the first batch comes soon, and later a
call costs little.

An exception may reach the caller's thread at any instant, as Ctrl-C does. Whatever it finds half done belongs to this
one iteration and is dropped with it; row groups are kept for the next one only where an iteration ended in order.
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from pipeline.base.wording import counted
from pipeline.loader.documents import DocumentTable
from pipeline.loader.lookahead import Lookahead
from pipeline.loader.metrics import Counters
from pipeline.loader.row_group import RowBatch
from pipeline.loader.row_group_cache import Need, RowGroupCache, slot_bytes

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from pipeline.loader.damage import Damage
    from pipeline.loader.division import RankSlice
    from pipeline.loader.mixture import Mixture
    from pipeline.loader.order import Order
    from pipeline.loader.readers import Reader
    from pipeline.loader.row_group import DocumentRule

UNIT_TOKENS, UNIT_ROWS = 1 << 19, 1 << 13  # a unit is gathered at once: 1 MiB as uint16, at most this many windows
THREADS = "stridemill-load"
MOST_REQUESTS = 128  # at once, if a first batch needs so many row groups: each further round trip would delay it
FORKED = "this iteration was started before a fork, which took its threads; start another"


class Move(NamedTuple):
    """Where a reader is sent: this many batches of an order, from an index of an epoch on."""

    order: Order | Mixture
    epoch: int
    start: int
    batches: int


class Pools(NamedTuple):
    """The threads of an iteration."""

    asker: ThreadPoolExecutor
    decoders: ThreadPoolExecutor
    fetchers: ThreadPoolExecutor | None  # of a data set in an object store


class PrefetchUnit(NamedTuple):
    """Consecutive batches of one rank, still compact."""

    rows: RowBatch
    window_ids: np.ndarray  # int64 [B], numbered through all sources of a mixture; -1 in a row that only fills
    batches: int
    damage: Damage | None = None  # rows that could not be read
    documents: DocumentTable | None = None  # if a loader wants to know


class Prefetcher:
    """The prefetch units of one rank, from any index on.

    Raises:
        ValueError: the order needs more row groups at once than the memory budget allows.

    """

    def __init__(
        self,
        reader: Reader,
        *,
        order: Order | Mixture,
        part: RankSlice,
        threads: int,
        memory_budget: int,
        documents: DocumentRule | None = None,
    ) -> None:
        self.reader, self.documents = reader, documents
        self._looked_at: set[str] = set()  # what callers want to know of documents
        self.part, self.batch_size = part, part.rows  # a worker process reads a part of a batch
        self.threads, self.memory_budget = threads, memory_budget
        self.counters = Counters()
        self._kept: RowGroupCache | None = None  # from one epoch to the next
        in_all = order.num_groups * slot_bytes(reader)  # what is fetched of them is gone once they are decoded
        # `full` needs all row groups at once; under `lanes` they are kept if that takes half of the budget at most.
        self.caches_all = order.shuffle == "full" or (order.shuffle == "lanes" and in_all <= memory_budget // 2)
        self.count_slots(order)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def read(self, order: Order | Mixture, epoch: int, start: int, batches: int) -> Units:
        """Yield the next `batches` batches from an index of an epoch, in units that grow from a single batch.

        Send it a `Move` to go on elsewhere: the answer is None, and the next units are those from there. Threads and
        decoded row groups stay.
        """
        cache = self._kept or RowGroupCache(
            self.reader, slots=self.count_slots(order), keep=self.caches_all, counters=self.counters
        )
        self._kept = None  # in use: a second iteration has a cache of its own
        self.counters.watch(cache)
        # Looked up now: when the interpreter ends, modules may be empty before this generator is closed.
        is_finalizing, process, is_orderly = sys.is_finalizing, os.getpid(), False
        decoders = ThreadPoolExecutor(self.threads, thread_name_prefix=THREADS)
        gatherer, asker = (ThreadPoolExecutor(1, thread_name_prefix=THREADS) for _ in range(2))
        requests = self.reader.requests and max(self.reader.requests, min(self.batch_size, MOST_REQUESTS))
        fetchers = ThreadPoolExecutor(requests, thread_name_prefix=THREADS) if requests else None
        pools = Pools(asker, decoders, fetchers)
        try:
            units = self._gather(cache, pools, Move(order, epoch, start, batches))
            coming = gatherer.submit(next, units, None)
            while (unit := coming.result()) is not None:
                coming = gatherer.submit(next, units, None)
                move = yield unit
                if os.getpid() != process:
                    raise RuntimeError(FORKED)  # noqa: TRY301 - no pool says this
                while move is not None:  # the unit that is coming is dropped
                    units = self._gather(cache, pools, move)
                    coming = gatherer.submit(next, units, None)
                    move = yield None
            is_orderly = True
        except GeneratorExit:
            is_orderly = True  # the caller takes no more
            raise
        except RuntimeError as error:
            if "cannot schedule new futures" not in str(error) and "interpreter shutdown" not in str(error):
                raise
            return  # the interpreter ends, and with it the iteration of a daemon thread
        finally:
            if not is_finalizing() and os.getpid() == process:  # otherwise the threads have ended already
                self._stop(*([fetchers] if fetchers else []), asker, decoders, gatherer)
                # Not from one of the threads, which cannot wait for itself: the garbage collector may run anywhere.
                if is_orderly and not threading.current_thread().name.startswith(THREADS):
                    cache.stop()
                    self._kept = cache if self.caches_all else None

    def find_documents(self, rows: RowBatch) -> DocumentTable | None:
        """Return where the documents of a unit are, if a loader wants to know."""
        if self.documents is None:
            return None
        return DocumentTable(rows, self.documents, batch_size=self.batch_size, looked_at=self._looked_at)

    def _stop(self, *pools: ThreadPoolExecutor) -> None:
        wait = not threading.current_thread().name.startswith(THREADS)
        for pool in pools:
            pool.shutdown(wait=wait, cancel_futures=True)

    def count_slots(self, order: Order | Mixture) -> int:
        """Return how many row groups to cache: all, or twice what the order needs at any index, to decode ahead.

        Raises:
            ValueError: the order needs more than the memory budget allows.

        """
        groups = order.num_groups
        needed, each = order.num_buffered(len(self.part.lanes_read())), max(1, slot_bytes(self.reader))
        each += self.reader.fetch_bytes  # while it is decoded
        if needed * each > self.memory_budget:
            remedy = {"none": "", "full": ", or choose shuffle=lanes", "lanes": ", or fewer lanes"}[order.shuffle]
            raise ValueError(
                f"shuffle={order.shuffle} buffers {counted(needed, 'row group')} of {counted(each, 'byte')} at once, "
                f"more than loader.memory_budget={self.memory_budget:,}; raise it to {needed * each:,} or more{remedy}"
            )
        if self.caches_all:
            return max(1, groups)
        rows = max(self.batch_size, min(UNIT_ROWS, UNIT_TOKENS // self.reader.max_length))
        in_unit = 2 + rows * self.part.global_batch // self.batch_size * groups // max(1, len(order))
        wanted = needed + max(needed, 2 * self.threads, 2 * self.reader.requests, in_unit)
        return max(1, min(groups, wanted, self.memory_budget // each))

    def _gather(self, cache: RowGroupCache, pools: Pools, move: Move) -> Iterator[PrefetchUnit]:
        """Yield the units, each gathered when it is asked for."""
        order, epoch, start, batches = move
        cache.start(self._needs(order, epoch, start, batches), pools.decoders, pools.fetchers)
        change = order.next_change(start)
        part = self.part
        rows = min(UNIT_ROWS, UNIT_TOKENS // self.reader.max_length)
        full, size = max(1, rows // self.batch_size), 1
        coming = Lookahead(partial(self._windows, order, epoch, start), batch_size=part.rows, thread=pools.asker)
        done = 0
        while done < batches:
            here = start + done * part.global_batch
            if change is not None and here >= change:  # other row groups are needed from here on
                cache.start(self._needs(order, epoch, here, batches - done), pools.decoders, pools.fetchers)
                change = order.next_change(here)
            stop = batches if change is None else min(batches, done - (here - change) // part.global_batch)
            take = min(size, stop - done)
            mine, count = coming.take(take, stop=stop), take * part.rows
            gathered, damage = cache.gather(mine, passed=here)
            if missing := count - len(mine):
                gathered = fill(gathered, missing)
                mine = np.pad(mine, (0, missing), constant_values=-1)
                damage = damage and damage._replace(groups=np.pad(damage.groups, (0, missing), constant_values=-1))
            documents = self.find_documents(gathered)
            yield PrefetchUnit(gathered, mine, take, damage, documents and documents.prepare())
            done, size = done + take, min(2 * size, full)

    def _windows(self, order: Order | Mixture, epoch: int, start: int, first: int, batches: int) -> np.ndarray:
        """Return the windows of batches, the `first` of them counted from an index."""
        indices = self.part.indices(start + first * self.part.global_batch, batches).ravel()
        if not order.endless:
            indices = indices[indices < order.stop(epoch)]  # the rest of the last step only fills it
        return order.windows(indices, epoch)

    def _needs(self, order: Order | Mixture, epoch: int, start: int, batches: int) -> Iterator[Need]:
        stop = start + batches * self.part.global_batch
        lanes = self.part.lanes_read(start).tolist()
        spans = takewhile(lambda span: span.first < stop, order.spans(start, epoch, lanes))
        started, coming = [], None
        for span in spans:
            if span.first >= start:
                coming = span
                break
            started.append(span)
        # Spans that a resume finds started are decoded in the order in which its first batches need their lanes.
        started.sort(key=lambda span: (span.first - start) % order.num_rows)
        for span in chain(started, [coming] if coming else [], spans):
            yield Need(span.group, span.last)


Units: TypeAlias = "Generator[PrefetchUnit | None, Move | None, None]"


def fill(rows: RowBatch, missing: int) -> RowBatch:
    """Append rows that only fill the last batch: none of their targets counts."""
    ids_BT1, bounds_B2, ends_BE = rows
    if bounds_B2 is None:
        bounds_B2 = np.zeros((len(ids_BT1), 2), np.int32)
        bounds_B2[:, 1] = ids_BT1.shape[1] - 1
    below = ((0, missing), (0, 0))
    ends_BE = None if ends_BE is None else np.pad(ends_BE, below)
    return RowBatch(np.pad(ids_BT1, below), np.pad(bounds_B2, below), ends_BE)
