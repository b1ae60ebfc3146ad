"""Daemon threads that iterate stop before the program ends.

Up to Python 3.13, the interpreter ends a daemon thread where it next waits for the interpreter's lock. If that is
within torch, the program aborts ("terminate called without an active exception"). So a daemon thread that asks for
another batch while the program ends waits where this is harmless, and the end waits a moment until it does.
"""

from __future__ import annotations

import atexit
import time
from threading import Thread, current_thread
from weakref import ref

LONGEST_WAIT = 0.5  # seconds: a thread may be busy with something else and never ask for another batch

# Not `WeakSet`: a copy of one fails if another thread adds to it meanwhile.
_iterating, _waiting = set[ref[Thread]](), set[ref[Thread]]()
_program_ends = False


def note_daemon_thread() -> None:
    """Have the end of the program wait until the current thread, if it is a daemon, asks for another batch."""
    if (thread := current_thread()).daemon:
        _iterating.add(ref(thread, _iterating.discard))


def wait_if_program_ends() -> None:
    """Do not return to a daemon thread once the program ends."""
    if _program_ends and (thread := current_thread()).daemon:
        _waiting.add(ref(thread))
        while True:
            time.sleep(3600)


@atexit.register
def _wait_for_daemon_threads() -> None:
    global _program_ends
    _program_ends, until = True, time.monotonic() + LONGEST_WAIT
    while time.monotonic() < until and any(_may_use_torch(thread()) for thread in tuple(_iterating - _waiting)):
        time.sleep(0.001)


def _may_use_torch(thread: Thread | None) -> bool:
    return thread is not None and thread.is_alive()
