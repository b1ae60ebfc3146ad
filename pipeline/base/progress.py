"""Progress bars on standard error, drawn only on a terminal.

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


class ProgressBar(Tqdm):
    """A bar that counts `total` units."""

    _instances: ClassVar[WeakSet[ProgressBar]] = WeakSet()
    monitor_interval = 0

    def __init__(self, name: str, total: int, unit: str) -> None:
        # Without the monitor thread a falling rate must not delay the next refresh: `miniters` stays 1.
        super().__init__(desc=name, total=total, unit=unit, unit_scale=True, miniters=1, disable=None, file=sys.stderr)


def _renew_lock() -> None:
    ProgressBar.set_lock(RLock())


_renew_lock()
os.register_at_fork(after_in_child=_renew_lock)
