"""A data set in an object store while it is written. No lock is held there: conditions keep writers apart.

    <uri>/.writing/plan.json        which data set is being written; created by one writer
    <uri>/.writing/<shard>.json     a finished shard's entry: its size and its sha256

Each shard is finished in a temporary folder and uploaded whole, then its record; the manifest comes last, created only
if there is none. So a process may end at any instant: what is there is no data set, or the complete one. The next run
keeps the shards that have the recorded bytes.

Two runs that write the same data set help each other: their objects have the same names and bytes. Of two different
ones, the second is refused by the plan of the first; with `shards.overwrite` it replaces that plan, if nobody else has
done so since it looked, and the first one stops at its next shard. The rules of a local folder (`folder.py`,
`own_files.py`) apply to an outline of the prefix (`outline.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from typing import TYPE_CHECKING

from pipeline.base.paths import translate_os_errors
from pipeline.corpus.files import CACHE_TAG
from pipeline.shards.complete import PLAN, WRITING, list_missing
from pipeline.shards.differences import job_facts
from pipeline.shards.entries import MANIFEST_NAME
from pipeline.shards.folder import FolderLock, find_recorded, is_finished_by_now, prepare_folder
from pipeline.shards.manifest import read_manifest, write_manifest
from pipeline.shards.outline import fetch_outline, list_outline
from pipeline.storage.interface import exists
from pipeline.storage.names import is_uri
from pipeline.storage.open import open_storage
from pipeline.storage.probe import honours_conditions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pipeline.shards.job import Job, Sections
    from pipeline.shards.manifest import Manifest
    from pipeline.storage.interface import Storage

LOG = logging.getLogger(__name__)


def check_reach(sections: Sections) -> bool | None:
    """Ask the stores of the data set and of the cache once, before hours of reading: they are there, and may be used.

    Returns:
        Whether the store of the data set honours conditions; None if that was not tried, since something is finished
        there or nothing is in a store.

    Raises:
        ValueError: a store cannot be reached, or its bucket is missing, or may not be read or written.

    """
    honours = None
    if is_uri(sections.cache.path):
        with translate_os_errors(sections.cache.path, "cache.path"), contextlib.suppress(FileNotFoundError):
            open_storage(sections.cache.path).read(CACHE_TAG)
    if is_uri(sections.shards.path):
        with translate_os_errors(sections.place, "shards.path"):
            storage = open_storage(sections.place)
            if not exists(storage, MANIFEST_NAME):
                honours = honours_conditions(storage, WRITING)
    return honours


def find_finished_at(storage: Storage, folder: Path, identities: Sequence[str]) -> Manifest | None:
    """Return the manifest at a URI if it has a data set of `identities` with every object in its full size.

    `folder` is empty, and becomes the prefix's outline.
    """
    sizes = fetch_outline(storage, folder)
    if not (folder / MANIFEST_NAME).is_file():
        return None
    try:
        manifest = read_manifest(folder)
        files = [file for split in manifest.splits.values() for file in split.files]
    except ValueError:
        return None
    if manifest.fingerprint not in identities:
        return None
    files += [manifest.index] if manifest.index else []
    is_complete = all(sizes.get(file.path) == file.bytes for file in files) and not any(list_missing(folder, manifest))
    return read_manifest(storage.uri) if is_complete else None  # whose index is not that of the outline


@contextlib.contextmanager
def claim_prefix(storage: Storage, folder: Path, job: Job, *, honours: bool | None = None) -> Iterator[FolderLock]:
    """Try the store, and find what an earlier run has finished. `folder` is the prefix's outline.

    `honours` is what `check_reach` has found.

    Raises:
        ValueError: the prefix holds another data set or other objects, or the store ignores conditions and the
            executor would have several writers.

    """
    executor = job.sections.executor
    if not (honours_conditions(storage, WRITING) if honours is None else honours):
        what = "does not honour conditions (If-None-Match, If-Match), so two runs that write there would not notice"
        if executor.name != "local" or executor.part is not None:
            one = "one process without executor.part" if executor.part is not None else "executor=local"
            raise ValueError(f"shards.path: {storage.uri}: the store {what}; use {one}, or another store")
        LOG.warning("%s: the store %s: write there with one run at a time", storage.uri, what)
    (folder / WRITING).mkdir(exist_ok=True)
    overwrite = job.sections.shards.overwrite
    recorded = find_recorded(folder, job.fingerprint, overwrite=overwrite, job=job)
    seen = storage.stat(PLAN).etag if (folder / PLAN).is_file() else None
    yield FolderLock(
        folder=folder,
        identity=job.fingerprint,
        facts=dataclasses.asdict(job_facts(job)),
        recorded=recorded,
        storage=storage,
        seen=seen,
    )


def prepare_prefix(lock: FolderLock, files: set[str]) -> None:
    """Do in the store what `prepare_folder` does in the outline: the plan first, the manifest second.

    Raises:
        ValueError: another run has begun to write there since this one looked.

    """
    storage, folder = lock.storage, lock.folder
    assert storage is not None, "a prefix has a storage"
    before, plan = list_outline(folder), _read_if_there(folder / PLAN)
    prepare_folder(lock, files)
    after = list_outline(folder)
    gone = before - after
    storage.delete(name for name in gone if name.startswith(f"{WRITING}/") and name != PLAN)
    content = (folder / PLAN).read_bytes()
    try:
        if lock.seen is None:
            storage.put(PLAN, content)
        elif content != plan:
            storage.put_if_match(PLAN, content, lock.seen)
    except (FileExistsError, FileNotFoundError):
        raise ValueError(
            f"{storage.uri} is being written by another run; wait for it, or choose another shards.path"
        ) from None
    for name in sorted(after - before):
        if name.startswith(f"{WRITING}/") and name.endswith(".parquet.json"):  # of a data set that has lost an object
            storage.put(name, (folder / name).read_bytes(), if_absent=False)
    storage.delete({MANIFEST_NAME} & gone)
    storage.delete(name for name in gone if not name.startswith(f"{WRITING}/"))
    for name in after:
        if name.startswith("data/"):
            (folder / name).unlink()


def publish(lock: FolderLock, manifest: Manifest) -> Manifest:
    """Upload what is next to the shards, then the manifest, which makes the prefix a data set; then tidy up.

    Returns:
        The manifest as written.

    Raises:
        ValueError: another run has made it another data set, or has changed a shard.

    """
    storage, folder = lock.storage, lock.folder
    assert storage is not None, "a prefix has a storage"
    written = write_manifest(folder, manifest)
    for name in sorted(list_outline(folder)):
        if name != MANIFEST_NAME and not name.startswith((f"{WRITING}/", "data/")):
            storage.put(name, folder / name, if_absent=False)
    is_finished_by_now(storage, lock.identity)
    _check_shards(storage, manifest)
    try:
        storage.put(MANIFEST_NAME, (folder / MANIFEST_NAME).read_bytes())
    except FileExistsError:
        if read_manifest(storage.uri).fingerprint != lock.identity:
            raise ValueError(f"{storage.uri} was made another data set while this run wrote there") from None
    remove_working(storage)
    return written


def _check_shards(storage: Storage, manifest: Manifest) -> None:
    """Compare the sizes of all shards with the manifest: a late upload of another run may have replaced one.

    Raises:
        ValueError: it has, or has added one.

    """
    expected = {shard.path: shard.bytes for split in manifest.splits.values() for shard in split.shards}
    found = {entry.name: entry.size for entry in storage.list("data")}
    if differing := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
        raise ValueError(
            f"{storage.uri}/{differing[0]} was changed by another run while this one wrote there; run the same command "
            "again when no other run writes there"
        )


def remove_working(storage: Storage) -> None:
    """Remove the records and then the plan of a finished data set."""
    storage.delete(entry.name for entry in storage.list(WRITING) if entry.name != PLAN)
    storage.delete([PLAN])


def _read_if_there(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""
