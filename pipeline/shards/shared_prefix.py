"""A data set in an object store while the parts of an array job write to it.

Parts create the same plan and upload different shards, each with its record, as a single writer does (`prefix.py`).
Nothing is locked there, so a part removes nothing: it refuses a prefix that holds anything but its own data set, or a
finished one that has lost an object. Both are the business of the call without `executor.part`. If that call finishes
the data set while a part still runs, the part notices before its next upload and writes nothing more.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pipeline.shards.complete import PLAN, WRITING
from pipeline.shards.entries import MANIFEST_NAME
from pipeline.shards.folder import find_fingerprint, prepare_folder, record_name
from pipeline.shards.outline import list_outline
from pipeline.shards.prefix import claim_prefix

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.shards.folder import FolderLock
    from pipeline.shards.job import Job
    from pipeline.storage.interface import Storage


@contextlib.contextmanager
def share_prefix(storage: Storage, folder: Path, job: Job, honours: bool | None = None) -> Iterator[FolderLock]:
    """Make this process one of the parts that write to a URI. `folder` is the prefix's outline.

    `honours` is what `check_reach` has found.

    Raises:
        ValueError: the prefix holds another data set, a damaged one or other objects; or the store ignores conditions.

    """
    with claim_prefix(storage, folder, job, honours=honours) as lock:
        if (folder / MANIFEST_NAME).is_file():
            raise ValueError(
                f"{storage.uri} holds a data set that is another one, or has lost an object, and a part of an array "
                "job replaces nothing at a URI; run the same command without executor.part, or choose another "
                "shards.path"
            )
        yield lock


def prepare_shared_prefix(lock: FolderLock, files: set[str]) -> bool:
    """Create the plan, unless a part has done so. Return False if another run has finished the data set by now.

    Raises:
        ValueError: another data set is written there.

    """
    storage, folder = lock.storage, lock.folder
    assert storage is not None, "a prefix has a storage"
    before = list_outline(folder)
    prepare_folder(lock, files)
    try:
        if before - list_outline(folder):
            raise FileExistsError  # noqa: TRY301 - as if the store had said so
        storage.put(PLAN, (folder / PLAN).read_bytes())
    except FileExistsError:
        raise ValueError(
            f"{storage.uri} holds what another run has begun to write, and a part of an array job replaces nothing at "
            "a URI; choose another shards.path"
        ) from None
    if (found := find_fingerprint(storage)) is None:
        return True
    if found != lock.identity:
        raise ValueError(f"{storage.uri} is by now another data set; this run is over")
    return False


def find_written_at(storage: Storage) -> set[str]:
    """Return the paths of the shards that are there with their records, which come second."""
    recorded = {entry.name for entry in storage.list(WRITING)}
    shards = (entry.name for entry in storage.list("data"))
    return {name for name in shards if record_name(name.removeprefix("data/")) in recorded}
