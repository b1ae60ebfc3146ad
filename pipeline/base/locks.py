"""File locks that the operating system releases when their process exits, for whatever reason.

The owner of a lock file may rename or remove it after another process has opened it and before that one locks it. Such
a lock protects nothing, so it is dropped and the file is opened again. No link is followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe without a reader blocks no run


def hold(path: Path, *, create: bool = True) -> int:
    """Lock a file and return its descriptor; close it to release the lock. Waits for other holders.

    Raises:
        FileNotFoundError: the file is missing and `create` is false.
        OSError: the path is a link or a folder, access is denied, or the file system has no locks.

    """
    return _hold(path, fcntl.LOCK_EX, create=create)


def try_to_hold(path: Path, *, create: bool = True) -> int | None:
    """Lock a file like `hold`, or return None at once if another process holds it."""
    try:
        return _hold(path, fcntl.LOCK_EX | fcntl.LOCK_NB, create=create)
    except BlockingIOError:
        return None


def create(path: Path) -> int:
    """Create a file, lock it, and return its descriptor. On a file system without locks it stays unlocked.

    Raises:
        FileExistsError: something has that name already.

    """
    while True:
        descriptor = os.open(path, _FLAGS | os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if is_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def is_at(path: Path, descriptor: int) -> bool:
    """Return whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _hold(path: Path, how: int, *, create: bool) -> int:
    while True:
        descriptor = _open(path, create=create)
        try:
            fcntl.flock(descriptor, how)
            if is_at(path, descriptor):
                return descriptor
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):
                error.filename = str(path)
            raise
        os.close(descriptor)


def _open(path: Path, *, create: bool) -> int:
    if create:
        return os.open(path, _FLAGS | os.O_RDWR | os.O_CREAT, 0o666)
    try:
        return os.open(path, _FLAGS | os.O_RDWR)
    except PermissionError:  # another user's: most file systems lock what one may only read
        return os.open(path, _FLAGS | os.O_RDONLY)
