"""Temporary folders that do not outlive their process for long, however it ends.

    <TMPDIR>/stridemill-<user ID>-work/<name>         a folder in use
    <TMPDIR>/stridemill-<user ID>-work/<name>.lock    held by the process that uses it

The operating system releases the lock when the process ends. The next process that asks for a folder removes those
whose lock nobody holds.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.locks import hold, try_to_hold

if TYPE_CHECKING:
    from collections.abc import Iterator


def own_folder(what: str) -> Path:
    """Return a folder of this user below the system's folder for temporary files, made if it is missing.

    Raises:
        ValueError: another user has made it.

    """
    home = Path(tempfile.gettempdir(), f"stridemill-{os.getuid()}-{what}")
    home.mkdir(mode=0o700, exist_ok=True)
    if home.is_symlink() or home.stat().st_uid != os.getuid():
        raise ValueError(f"{home} belongs to another user; remove it, or let TMPDIR name another folder")
    return home


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder, which is removed at the end of the block."""
    home = own_folder("work")
    remove_abandoned(home)
    folder = home / uuid.uuid4().hex
    lock = hold(_lock_of(folder))
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        _remove(folder, lock)


@cache  # once in a process
def remove_abandoned(home: Path) -> None:
    """Remove the folders of processes that have ended. What cannot be removed is left."""
    for name in sorted({path.name.removesuffix(".lock") for path in home.iterdir()}):
        with suppress(OSError):
            lock = try_to_hold(_lock_of(home / name))
            if lock is not None:
                _remove(home / name, lock)


def _remove(folder: Path, lock: int) -> None:
    """Remove a folder, then its lock: so no folder is without one."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        _lock_of(folder).unlink()
    os.close(lock)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
