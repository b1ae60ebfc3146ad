"""A data set's folder while the parts of an array job write to it.

    <folder>/.writing/lock     shared by the parts, so that no other run writes there; names the data set
    <folder>/.writing/turn     held for a moment by the part that looks through the folder or prepares it

The lock is the one that a single writer holds alone (`folder.py`), so neither of the two can start while the other
runs. Parts write different shards, each under a temporary name of its own. The part that leaves last removes the lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.locks import hold, is_at, try_to_hold
from pipeline.base.paths import make_folder
from pipeline.shards.complete import WRITING
from pipeline.shards.differences import job_facts
from pipeline.shards.folder import FolderLock, find_recorded, prepare_folder
from pipeline.shards.own_files import refuse_links, remove_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.shards.job import Job

PATIENCE = 10.0  # seconds: another part holds the lock alone only for moments, while it comes or leaves
POLL_SECONDS = 0.05


@contextlib.contextmanager
def share_folder(job: Job) -> Iterator[FolderLock]:
    """Make this process one of the parts that write to the job's folder. It is not changed before `prepare_share`.

    Raises:
        ValueError: another run writes there, also parts of another data set; or the folder holds another data set,
            other files or links.

    """
    folder, identity = Path(job.sections.place), job.fingerprint
    is_new = not folder.exists()
    try:
        refuse_links(folder)
        with _shared(folder, identity):
            lock = FolderLock(folder=folder, identity=identity, recorded={}, facts=dataclasses.asdict(job_facts(job)))
            yield _look_through(lock, job)
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # not empty: something was written
                folder.rmdir()


def prepare_share(lock: FolderLock, job: Job, files: set[str]) -> FolderLock:
    """Prepare the folder like `prepare_folder`, one part after the other. Return what parts have recorded by now."""
    with _turn(lock.folder):
        now = _find(lock, job)
        prepare_folder(now, files, is_shared=True)
        return now


def find_written(lock: FolderLock, job: Job) -> set[str]:
    """Return the paths of the shards that are recorded and have their full size."""
    recorded = _look_through(lock, job).recorded.values()
    sizes = {entry.path: entry.bytes for entry in recorded}
    return {path for path, size in sizes.items() if _has_size(lock.folder / path, size)}


def _look_through(lock: FolderLock, job: Job) -> FolderLock:
    with _turn(lock.folder):
        return _find(lock, job)


def _find(lock: FolderLock, job: Job) -> FolderLock:
    overwrite = job.sections.shards.overwrite
    recorded = find_recorded(lock.folder, lock.identity, overwrite=overwrite, job=job)
    return dataclasses.replace(lock, recorded=recorded)


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    descriptor = hold(folder / WRITING / "turn")
    try:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _shared(folder: Path, identity: str) -> Iterator[None]:
    path = folder / WRITING / "lock"
    descriptor = _join(path, identity)
    try:
        yield
    finally:
        _leave(path, descriptor)


def _join(path: Path, identity: str) -> int:
    """Share the lock file, and return its descriptor."""
    until = time.monotonic() + PATIENCE
    while True:
        make_folder(path.parent)
        descriptor: int | None = None
        with contextlib.suppress(FileNotFoundError):  # the part that left last removed the folder
            descriptor = try_to_hold(path)
            if descriptor is not None:  # nobody else is here: say whose parts may come
                os.ftruncate(descriptor, 0)
                owner = f"process {os.getpid()} on {socket.gethostname()}, a part of an array job\n{identity}"
                os.pwrite(descriptor, owner.encode(), 0)
            else:
                descriptor = os.open(path, os.O_NOFOLLOW | os.O_NONBLOCK | os.O_RDWR)
            if _share(path, descriptor):
                _refuse_other_parts(path, descriptor, identity)
                return descriptor
        if time.monotonic() > until:
            owner = path.read_text(encoding="utf-8").partition("\n")[0] if path.exists() else ""
            raise ValueError(
                f"{path.parent.parent} is being written by another run{f' ({owner})' if owner else ''}; "
                "wait for it, or choose another shards.path"
            )
        time.sleep(POLL_SECONDS)


def _share(path: Path, descriptor: int) -> bool:
    """Share a lock, or close the file where another process holds it alone or has removed it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if is_at(path, descriptor):
            return True
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            os.close(descriptor)
            raise
    os.close(descriptor)
    return False


def _refuse_other_parts(path: Path, descriptor: int, identity: str) -> None:
    owner, _, whose = os.pread(descriptor, 1000, 0).decode(errors="replace").partition("\n")
    if whose != identity:
        os.close(descriptor)
        raise ValueError(
            f"{path.parent.parent} is being written by parts of another data set ({owner}): give all "
            "parts of an array job the same config, or choose another shards.path"
        )


def _leave(path: Path, descriptor: int) -> None:
    """Give up the share of a lock; who is alone removes what only writers need."""
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not (path.parent / "plan.json").is_file():
                remove_all(one for one in path.parent.iterdir() if one.name != "lock")
            for one in (path.with_name("turn"), path):
                one.unlink(missing_ok=True)
            path.parent.rmdir()  # an error: it has a plan and records for the next run
    finally:
        os.close(descriptor)
