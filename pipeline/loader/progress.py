"""Where a loader is in its epochs: which batches remain, where an iteration starts, and what a batch or a skip moves.

Everything here is arithmetic on one value, `Progress`. It is replaced as a whole, so no exception can leave half of a
change, wherever it comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipeline.base.wording import counted
from pipeline.loader.order import num_batches
from pipeline.rules import check_range
from pipeline.settings import MAX_EPOCH

if TYPE_CHECKING:
    from pipeline.loader.mixture import Mixture
    from pipeline.loader.order import Order


class Progress(NamedTuple):
    """Where a loader is."""

    epoch: int
    consumed: int  # samples of this epoch that all ranks together have received; in a mixture, of all epochs
    order: Order | Mixture
    moves: int = 0  # how often a caller has gone elsewhere
    reader: object = None  # with `restart`: the iteration that is here, if one is
    is_resume: bool = False  # with `restart`: the next iteration starts here, and not at the epoch's start


class Cursor:
    """The one thing about a loader that changes. Assigning to a slot runs no Python code that could be interrupted."""

    __slots__ = ("progress",)

    def __init__(self, progress: Progress) -> None:
        self.progress = progress


class Epochs(NamedTuple):
    """How epochs are divided into batches, and whether each iteration is a complete one."""

    batch_size: int
    world_size: int
    step_size: int
    drop_last: bool
    restart: bool

    @property
    def global_batch(self) -> int:
        """The samples of a batch of all ranks."""
        return self.batch_size * self.world_size

    def check_size(self, order: Order | Mixture, split: str, *, is_selection: bool) -> None:
        """Raise ValueError if there are no batches in an epoch."""
        if self.batches_after(Progress(0, 0, order)):
            return
        name, needed = "batch_size", f"a batch of {self.batch_size} on each of {counted(self.world_size, 'rank')}"
        if self.step_size > self.global_batch:
            name, needed = "step_size", f"a step of {self.step_size}"
        raise ValueError(
            f"{name}: the {split} split has {counted(len(order), 'window')}"
            f"{' after limit and exclude' if is_selection else ''}, fewer than {needed}; lower {name}, or set "
            "drop_last=False"
        )

    def batches_after(self, progress: Progress) -> int:
        """Return how many batches of the epoch remain, equal on all ranks."""
        order = progress.order
        return num_batches(
            progress.consumed,
            order.stop(progress.epoch),
            global_batch=self.global_batch,
            step_size=self.step_size,
            drop_last=self.drop_last and not order.endless,
        )

    def first(self, order: Order | Mixture, epoch: int) -> int:
        """Return an epoch's first index. That of a mixture starts with a step, where the epoch before has ended."""
        first = order.first(epoch)
        start_of_step = -(-first // self.step_size) * self.step_size
        return start_of_step if start_of_step < order.stop(epoch) else first

    def count_batches(self, progress: Progress) -> int:
        """Return the batches of the complete epoch."""
        return self.batches_after(progress._replace(consumed=self.first(progress.order, progress.epoch)))

    def enter(self, now: Progress, reader: object) -> Progress:
        """Return where an iteration starts or, if it is the one that is here, goes on.

        If no batch of the epoch remains, the next epoch starts. With `restart`, an iteration starts with its epoch.
        """
        progress = self._start_of(now, reader)
        if not self.batches_after(progress):
            epoch, consumed = progress.order.next_epoch(progress.epoch, progress.consumed)
            progress = progress._replace(epoch=epoch, consumed=consumed)
        return progress._replace(reader=reader, is_resume=False)

    def leave(self, now: Progress, reader: object, epoch: int) -> Progress:
        """Return where the loader is once an iteration of an epoch has ended."""
        if reader is None or now.reader is not reader:
            return now
        return now._replace(reader=None, is_resume=now.is_resume and now.epoch != epoch)

    def add_batch(self, progress: Progress, *, is_last: bool) -> Progress:
        """Return the progress once a batch was received, which may be the last one of its epoch."""
        epoch, order, consumed = progress.epoch, progress.order, progress.consumed + self.global_batch
        if is_last and self.restart:
            consumed = self.first(order, epoch + 1) if order.endless else order.stop(epoch)
        elif is_last:  # the end of an epoch is the start of the next
            epoch, consumed = order.next_epoch(epoch, consumed)
        elif not order.endless:  # the rest of the last step only fills it
            consumed = min(consumed, order.stop(epoch))
        if not self.restart:
            order = order.since(epoch, consumed)
        # Half the time of `_replace`, and it is done for each batch.
        return Progress(epoch, consumed, order, progress.moves, progress.reader, progress.is_resume)

    def skip(self, now: Progress, batches: int) -> Progress:
        """Return the progress once this many batches more were received, over the ends of epochs."""
        if not batches:
            return now
        progress = self._start_of(now, now.reader)
        epoch, consumed, order = progress[:3]
        if order.endless:
            epoch, consumed = order.next_epoch(epoch, consumed + batches * self.global_batch)
        else:
            left = self.batches_after(progress)
            if batches >= left:
                epoch, consumed = order.next_epoch(epoch, consumed)
                epochs, batches = divmod(batches - left, self.batches_after(progress._replace(consumed=consumed)))
                epoch = check_range("skip: the epoch", epoch + epochs, 0, MAX_EPOCH)
            consumed = min(consumed + batches * self.global_batch, order.stop(epoch))
        return progress._replace(epoch=epoch, consumed=consumed, is_resume=self.restart)

    def saved(self, now: Progress) -> tuple[int, int]:
        """Return the epoch and the samples consumed that a state has: the end of an epoch is the start of the next."""
        if not self.batches_after(now):
            return now.order.next_epoch(now.epoch, now.consumed)
        return now.epoch, now.consumed

    def _start_of(self, progress: Progress, reader: object) -> Progress:
        is_here = progress.reader is not None and progress.reader is reader
        if not self.restart or progress.is_resume or is_here:
            return progress
        return progress._replace(consumed=self.first(progress.order, progress.epoch))
