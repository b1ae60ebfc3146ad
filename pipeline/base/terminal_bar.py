"""The bar of a long stage on a terminal.

tqdm's own lock is shared between forked processes, so a process that is killed while it holds the lock stops all others
for ever. These bars have a lock between threads, which a fork makes anew in the child. Their own set of instances and
no monitor thread keep them apart from the bars of other code in the process.
"""

from __future__ import annotations

import os
import sys
from threading import RLock
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

from tqdm import tqdm

if TYPE_CHECKING:
    Tqdm = tqdm[Any]
else:
    Tqdm = tqdm


class TerminalBar(Tqdm):
    """The bar itself, which is drawn on a terminal alone."""

    _instances: ClassVar[WeakSet[TerminalBar]] = WeakSet()
    monitor_interval = 0

    def __init__(self, name: str, total: int, unit: str, done: int) -> None:
        # Without the monitor thread a falling rate must not delay the next refresh: `miniters` stays 1.
        unit = unit if unit == "B" else f" {unit}"
        super().__init__(
            desc=name, total=total, initial=done, unit=unit, unit_scale=True, miniters=1, disable=None, file=sys.stderr
        )


def _renew_lock() -> None:
    TerminalBar.set_lock(RLock())


_renew_lock()
os.register_at_fork(after_in_child=_renew_lock)
