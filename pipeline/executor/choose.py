"""Where the write stage's tasks run: threads of this process, or the workers of a Ray cluster.

A task is a plain function of one picklable item. It gives the same bytes wherever and however often it runs, also at
the same time as another run of itself, and says in a small record what it did.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

from pipeline.executor.local import LocalExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pipeline.settings import ExecutorConfig

UPLOADS = 4  # at once, by one process

Item = TypeVar("Item")
Result = TypeVar("Result")


class Executor(Protocol):
    """Runs a list of independent tasks."""

    def run_tasks(self, task: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield `task(item)` for each item, in the items' order. The first error stops the rest, and is raised."""

    def run_and_flush(self, task: Callable[[Item], Callable[[], Result]], items: Iterable[Item]) -> Iterator[Result]:
        """Yield `task(item)()` likewise: the second call is a task's last step, which waits for the disk."""


def check_executor(section: ExecutorConfig) -> None:
    """Refuse an executor whose package is not installed, before any work is done.

    Raises:
        ConfigError: the message says which extra to install.

    """
    if section.name == "ray":
        from pipeline.executor.ray import check_installed

        check_installed()


@contextmanager
def open_executor(section: ExecutorConfig, *, uploads: bool = False) -> Iterator[Executor]:
    """Yield the executor that a section describes; at the end of the block what it started has ended.

    With `uploads` the last steps of tasks wait for an object store, so that several run at once.

    Raises:
        ConfigError: its package is not installed.
        ValueError: the cluster cannot be reached.

    """
    if section.name == "ray":
        from pipeline.executor.ray import connect

        with connect(section.address, section.workers) as executor:
            yield executor
        return
    yield LocalExecutor(section.num_workers, UPLOADS if uploads else 1)
