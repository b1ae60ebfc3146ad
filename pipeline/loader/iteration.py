"""One iteration over a loader: what is read ahead becomes batches, and each batch counts when it is handed over."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.utils.data import get_worker_info

from pipeline.loader.batch import Int64Block
from pipeline.loader.daemon_threads import note_daemon_thread, wait_if_program_ends
from pipeline.loader.prefetch import Move
from pipeline.loader.workers import make_parcel, read_in_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import TypeVar

    import torch

    from pipeline.loader.batch import Batch
    from pipeline.loader.damage import DamageLog
    from pipeline.loader.prefetch import Prefetcher, PrefetchUnit, Units
    from pipeline.loader.progress import Cursor, Epochs, Progress

    Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """What an iteration needs of its loader.

    Args:
        prefetcher: reads ahead.
        cursor: where the loader is; each batch moves it.
        epochs: where epochs start and end.
        damage: counts what could not be read.
        device: where batches are made; None: in main memory.
        workers: processes that decode; 0: threads of this one.
        worker_context: how they are started.

    """

    prefetcher: Prefetcher
    cursor: Cursor
    epochs: Epochs
    damage: DamageLog
    device: torch.device | None
    workers: int
    worker_context: str | None

    def run(self, convert: Callable[[Batch], Item]) -> Generator[Item, None, None]:
        """Yield `convert(batch)` for the remaining batches of this epoch. A batch counts once it is converted."""
        note_daemon_thread()
        wait_if_program_ends()
        before, reader = self.cursor.progress, object() if self.epochs.restart else None
        start, left = self._enter(reader)
        units: Units | None = None
        try:
            while left:
                units = self._read_units(start, left, units)
                if not (yield from self._yield_batches(units, start, left, convert)):
                    break
                now = self.cursor.progress
                if now.moves == start.moves and now.epoch != start.epoch:
                    break  # another iteration of this loader, or `skip`, has passed the end of the epoch
                start, left = self._enter(reader)
        finally:
            if units is not None:
                units.close()
            if get_worker_info() is not None:  # workers read different numbers of batches ahead: go back to where
                self.cursor.progress = before  # they agree
            elif (after := self.epochs.leave(now := self.cursor.progress, reader, start.epoch)) is not now:
                self.cursor.progress = after

    def _enter(self, reader: object) -> tuple[Progress, int]:
        """Return where an iteration starts or goes on, and how many batches of that epoch remain."""
        now = self.cursor.progress
        progress = self.epochs.enter(now, reader)
        if progress != now:
            self.cursor.progress = progress
        return self.cursor.progress, self.epochs.batches_after(progress)

    def _yield_batches(
        self, units: Units, progress: Progress, left: int, convert: Callable[[Batch], Item]
    ) -> Generator[Item, None, bool]:
        """Yield the next `left` batches. End early, with True, if the loader was moved: by a caller, or a reader.

        With `restart`, each iteration has a progress of its own; the loader's is that of the last batch handed over,
        unless a caller has gone elsewhere since.
        """
        worker = get_worker_info()
        turn, turns = (worker.id, worker.num_workers) if worker else (0, 1)  # in a plain DataLoader's workers
        cursor, reader, first = self.cursor, progress.reader, left
        counters, asked = self.prefetcher.counters, time.perf_counter()
        for unit in units:
            assert unit is not None, "None answers a move alone"
            make = self._batch_maker(unit)
            for number in range(unit.batches):
                wait_if_program_ends()
                if is_mine := (first - left) % turns == turn:
                    which = slice(number * self.prefetcher.batch_size, (number + 1) * self.prefetcher.batch_size)
                    if unit.damage is not None:
                        self.damage.note(unit.damage, which)
                    item = convert(make(which))
                left -= 1
                progress = self.epochs.add_batch(progress, is_last=not left)
                counters.seconds_waited += time.perf_counter() - asked
                # The batch is made, then it counts, then it is handed over, and Ctrl-C comes before or after all of
                # that: Python looks for signals at calls and backward jumps, and there is none before the `yield`.
                if cursor.progress.moves == progress.moves:
                    cursor.progress = progress
                if is_mine:
                    yield item
                asked, now = time.perf_counter(), cursor.progress
                if now is not progress and now.reader is reader:  # other weights do not move the end of an epoch
                    return bool(left) or now[:2] != progress[:2]
        return False

    def _batch_maker(self, unit: PrefetchUnit) -> Callable[[slice], Batch]:
        """Return what makes a batch of some rows of a unit."""
        rows, samples, documents = unit.rows, self.prefetcher.reader.sample_ids(unit.window_ids), unit.documents
        samples = unit.damage.hide(samples) if unit.damage else samples
        if get_worker_info() is not None:
            rule = self.prefetcher.documents
            return lambda which: make_parcel(rows, which, samples=samples, rule=rule)
        size = self.prefetcher.batch_size
        return Int64Block(rows, samples=samples, batch_size=size, documents=documents, device=self.device).batch

    def _read_units(self, progress: Progress, batches: int, before: Units | None) -> Units:
        """Return the units of the next batches: those of `before`, if it can go there with its threads and cache."""
        epoch, start, order = progress[:3]
        has_workers = self.workers and get_worker_info() is None  # a worker may not start processes of its own
        if before is not None and not has_workers:
            before.send(Move(order, epoch, start, batches))
            return before
        if before is not None:
            before.close()
        if has_workers:
            return read_in_workers(
                self.prefetcher,
                order,
                epoch=epoch,
                start=start,
                batches=batches,
                workers=self.workers,
                context=self.worker_context,
            )
        return self.prefetcher.read(order, epoch, start, batches)
