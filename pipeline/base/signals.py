"""Signals that wait: Ctrl-C in the middle of starting a process can leave a lock taken for ever.

Python runs a signal's handler between any two steps of the main thread, also in what it does around a fork, where an
exception is printed and dropped.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_waiting: dict[int, Any] = {}  # while signals wait: their handlers


@contextmanager
def signals_wait() -> Iterator[None]:
    """Let each signal that has a handler in Python wait until the end of the block. In other threads none comes."""
    if threading.current_thread() is not threading.main_thread() or _waiting:
        yield
        return
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    _waiting.update({number: handler for number, handler in handlers.items() if callable(handler)})
    try:
        for number in list(_waiting):
            signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        restore_signals()
        for number in came:
            signal.raise_signal(number)


def restore_signals() -> None:
    """Give signals their handlers back; also for a process that was forked while they were waiting."""
    for number, handler in list(_waiting.items()):
        signal.signal(number, handler)
    _waiting.clear()
