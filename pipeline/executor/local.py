"""Run independent tasks on the cores of this machine, and yield the results in the tasks' order.

Threads, not processes: encoding, Parquet writing, hashing and file access all release the GIL, and threads share one
vocabulary and leave nothing behind.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class LocalExecutor:
    """Runs tasks on this many threads of this process; see `pipeline.executor.choose.Executor`."""

    workers: int
    flushers: int = 1  # threads for the last steps of tasks, which wait for a disk or a store

    def run_tasks(self, task: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield `task(item)` for each item, in the items' order."""
        return run_tasks(task, items, workers=self.workers)

    def run_and_flush(self, task: Callable[[Item], Callable[[], Result]], items: Iterable[Item]) -> Iterator[Result]:
        """Yield `task(item)()` for each item, in the items' order."""
        return run_and_flush(task, items, workers=self.workers, flushers=self.flushers)


def run_tasks(task: Callable[[Item], Result], items: Iterable[Item], *, workers: int) -> Iterator[Result]:
    """Yield `task(item)` for each item, in the items' order.

    At most `2 * workers` tasks are started ahead of the next result, which bounds memory. The first error stops the
    rest: tasks that have not started are cancelled, and the error is raised once the running ones have ended.
    """
    with _pool("write", workers) as pool:
        yield from _in_order(lambda item: pool.submit(task, item), items, ahead=2 * workers)


def run_and_flush(
    task: Callable[[Item], Callable[[], Result]], items: Iterable[Item], *, workers: int, flushers: int = 1
) -> Iterator[Result]:
    """Yield `task(item)()` for each item, in the items' order: `task` on the workers, its result on more threads.

    So the workers start the next tasks while those threads wait for the disk or the store. What a task returned is
    always called, even after an error.
    """
    prefix = "stridemill-flush"
    with ThreadPoolExecutor(flushers, thread_name_prefix=prefix) as flusher, _pool("write", workers) as pool:

        def submit(item: Item) -> Future[Result]:
            running = pool.submit(task, item)

            def finish() -> Result:
                return running.result()()

            return flusher.submit(finish)

        yield from _in_order(submit, items, ahead=2 * workers + flushers - 1)


def _in_order(submit: Callable[[Item], Future[Result]], items: Iterable[Item], *, ahead: int) -> Iterator[Result]:
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(submit(item))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


@contextmanager
def _pool(name: str, workers: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix=f"stridemill-{name}")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
