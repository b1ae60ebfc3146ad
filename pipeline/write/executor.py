"""Run independent tasks on the cores of this machine, results in the tasks' order.

Threads, not processes: encoding, Parquet writing, hashing and file access all release the GIL, and threads share one
vocabulary and leave nothing behind.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_tasks(task: Callable[[Item], Result], items: Iterable[Item], *, workers: int) -> Iterator[Result]:
    """`task(item)` for each item, in the items' order.

    At most `2 * workers` tasks are started ahead of the result that is due, which bounds memory. The first error stops
    the rest: tasks that have not begun are cancelled, and the error is raised when those under way have ended.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="stridemill-write")
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(task, item))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
