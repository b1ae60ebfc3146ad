"""Locks on files that end with their process, however it ends, because the operating system releases them.

A lock file may be renamed or removed by its owner between another process's opening it and locking it. Such a lock
guards nothing, so it is dropped and the file opened again.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def hold(path: Path) -> int:
    """Lock a file, creating it if it is missing; waits for other holders. Close the descriptor to release the lock."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_still_at(path, lock):
            return lock
        os.close(lock)


def try_to_hold(path: Path, *, create: bool = True) -> int | None:
    """Lock a file like `hold`, or return None at once if another process holds it.

    Raises:
        FileNotFoundError: the file is missing and `create` is false.

    """
    while True:
        lock = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        if _is_still_at(path, lock):
            return lock
        os.close(lock)


def _is_still_at(path: Path, lock: int) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False
