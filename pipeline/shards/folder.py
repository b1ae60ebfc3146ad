"""A data set's folder while it is written: one writer at a time, and every finished shard survives a crash.

    <folder>/.writing/lock                  held by the writer; names its process and machine. The parts of an array
                                            job share it (`shared_folder.py`)
    <folder>/.writing/plan.json             which data set is being written
    <folder>/.writing/<shard>.json          a finished shard's entry: its size and its sha256
    <folder>/.writing/.<shard>.<tag>.part   an unfinished shard

Guarantee: a process may end at any instant. What it left is used again if its bytes have the recorded hash, else it is
written again. The plan is on the disk before the first shard, so shards next to a plan or a manifest are ours. Nothing
else is ever removed, and nothing is written through a link. The operating system releases the lock (`flock`) when the
process ends, however it ends, so no stale lock is left. Cost: one small file for each shard.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.base.atomic import sync_folder, write_json
from pipeline.base.locks import try_to_hold
from pipeline.base.paths import make_folder
from pipeline.base.reading import check_signature, parse_fields, read_fields, sign
from pipeline.shards.card import CARD_NAME, is_card
from pipeline.shards.complete import PLAN, WRITING, is_complete
from pipeline.shards.differences import explain, explain_plan, job_facts
from pipeline.shards.entries import DOCUMENTS_FOLDER, INDEX_NAME, MANIFEST_NAME, ShardEntry
from pipeline.shards.manifest import Manifest, read_manifest
from pipeline.shards.own_files import find_parts, refuse_links, refuse_others, remove_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.shards.job import Job
    from pipeline.storage.interface import Storage

_REMEDY = "Choose another shards.path, or replace it with shards.overwrite=true"


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderLock:
    """A folder that only this process writes to."""

    folder: Path
    identity: str  # the fingerprint of the data set to be written
    recorded: dict[str, ShardEntry]  # shards that an earlier run finished, by path; their bytes are not yet verified
    facts: dict[str, Any] = field(default_factory=dict)  # what defines the data set: the plan records these
    storage: Storage | None = None  # of a data set at a URI: `folder` is then its outline
    seen: str | None = None  # at a URI, the etag of the plan that this run has seen


def find_finished(folder: Path, identity: str) -> Manifest | None:
    """Return the folder's manifest if it holds the data set `identity` with every shard in its full size.

    Its card must be there, and the list of its rejected documents if it has any: the write stage restores what is lost.
    """
    if not (folder / MANIFEST_NAME).is_file():
        return None
    try:
        manifest = read_manifest(folder)
    except ValueError:
        return None
    if manifest.fingerprint != identity:
        return None
    return manifest if is_complete(folder, manifest) else None


@contextlib.contextmanager
def lock_folder(folder: Path, identity: str, *, overwrite: bool, job: Job | None = None) -> Iterator[FolderLock]:
    """Make this process the folder's only writer. Nothing in the folder is changed before `prepare_folder`.

    With the `job`, the refusal of another data set says how the two differ.

    Raises:
        ValueError: another process writes there, or the folder holds another data set, other files or links.

    """
    is_new = not folder.exists()
    try:
        refuse_links(folder)
        with _locked(folder):
            recorded = find_recorded(folder, identity, overwrite=overwrite, job=job)
            facts = dataclasses.asdict(job_facts(job)) if job else {}
            try:
                yield FolderLock(folder=folder, identity=identity, facts=facts, recorded=recorded)
            finally:
                is_finished = find_finished(folder, identity) is not None
                if is_finished or not (folder / WRITING / "plan.json").is_file():
                    remove_all(path for path in (folder / WRITING).iterdir() if path.name != "lock")
                if is_finished:
                    remove_all(find_parts(folder))
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # not empty: something was written
                folder.rmdir()


def remove_leftovers(folder: Path, identity: str) -> None:
    """Remove what a run that was killed after its manifest has left next to the finished data set `identity`."""
    with contextlib.suppress(OSError, ValueError):
        if (folder / WRITING).is_dir() or any(find_parts(folder)):
            with lock_folder(folder, identity, overwrite=False):
                pass


def prepare_folder(lock: FolderLock, files: set[str], *, is_shared: bool = False) -> None:
    """Record the plan, then remove what the new data set will not contain: `files` are its shards and tables, by path.

    In a shared folder the temporary files of shards are left: other parts of the job may be writing them.

    The plan comes first and the old manifest goes second. So at no instant are our files in a folder that has neither,
    or a manifest next to files that it does not describe.
    """
    folder = lock.folder
    working = folder / WRITING
    if not _is_plan(_read_plan(folder), lock.identity):
        for record in working.glob("*.parquet.json"):
            record.unlink()
        plan = {"fingerprint": lock.identity, "pyarrow": pa.__version__, "facts": lock.facts}
        write_json(working / "plan.json", sign(plan))
        for entry in lock.recorded.values():  # of a finished data set that has lost a file
            record_shard(folder, entry, lock.identity)
        sync_folder(working)
        sync_folder(folder)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    (folder / INDEX_NAME).unlink(missing_ok=True)
    if not is_card(folder / CARD_NAME, lock.identity):
        (folder / CARD_NAME).unlink(missing_ok=True)
    remove_all(find_parts(folder))
    if not is_shared:
        remove_all(path for path in working.iterdir() if path.suffix in (".parquet", ".part"))
    make_folder(folder / "data")
    for name in ("data", DOCUMENTS_FOLDER):
        for file in (folder / name).iterdir() if (folder / name).is_dir() else ():
            if f"{name}/{file.name}" not in files:
                file.unlink()
    with contextlib.suppress(OSError):  # not there, or not empty
        (folder / DOCUMENTS_FOLDER).rmdir()
    sync_folder(folder)


def record_shard(folder: Path, entry: ShardEntry, identity: str) -> None:
    """Record a shard's size and hash, and of which data set it is.

    Not flushed: if a power cut takes the record, that shard is written again.
    """
    path = folder / record_name(Path(entry.path).name)
    write_json(path, sign({"shard": dataclasses.asdict(entry), "fingerprint": identity}), sync=False)


def refuse_other_plan(folder: Path, identity: str) -> None:
    """Refuse to publish a shard in a folder whose plan is another data set's, as a late worker of an ended run may.

    Raises:
        ValueError: it is.

    """
    plan = _read_plan(folder)
    if plan and plan.get("fingerprint") != identity:
        raise ValueError(f"{folder} is by now written as another data set; this run is over")


def is_finished_by_now(storage: Storage, identity: str) -> bool:
    """Tell whether another run has finished the data set `identity` under a prefix that this one writes to.

    Then nothing is to be written there any more.

    Raises:
        ValueError: the prefix is by now another data set's, or its plan was removed.

    """
    try:
        plan, found = storage.read(PLAN), None
    except FileNotFoundError:  # whoever finishes a data set removes it last
        plan, found = None, find_fingerprint(storage)
        if found is None:
            what = "its plan was removed while this run wrote there; run the same command again"
            raise ValueError(f"{storage.uri}: {what}") from None
    if plan is not None:
        try:
            found = parse_fields(plan).get("fingerprint")
        except ValueError:
            return False
    if found != identity:
        raise ValueError(f"{storage.uri} is by now written as another data set; this run is over")
    return plan is None


def find_fingerprint(storage: Storage) -> str | None:
    """Return the identity of the data set under a prefix; None if there is none."""
    try:
        return read_manifest(storage.uri).fingerprint
    except ValueError:
        return None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path = folder / WRITING / "lock"
    descriptor: int | None = None
    while True:
        make_folder(path.parent)
        with contextlib.suppress(FileNotFoundError):  # a run that has just ended removed the folder
            descriptor = try_to_hold(path)
            break
    if descriptor is None:
        owner = path.read_text(encoding="utf-8").partition("\n")[0] if path.exists() else ""
        raise ValueError(
            f"{folder} is being written by another run{f' ({owner})' if owner else ''}; "
            "wait for it, or choose another shards.path"
        )
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        with contextlib.suppress(OSError):  # not empty: it has a plan and records for the next run
            path.parent.rmdir()
        os.close(descriptor)


def find_recorded(folder: Path, identity: str, *, overwrite: bool, job: Job | None) -> dict[str, ShardEntry]:
    """Return what an earlier run has finished of this data set; refuse a folder that holds anything else."""
    plan, manifest, damage = _read_plan(folder), None, None
    try:
        manifest = read_manifest(folder) if (folder / MANIFEST_NAME).is_file() else None
    except ValueError as error:
        damage = error
    refuse_others(folder, has_plan=plan is not None, manifest=manifest)
    if damage and not overwrite:
        raise ValueError(f"{damage}. {_REMEDY}") from damage
    if manifest:
        if manifest.fingerprint == identity:  # a file is missing or truncated
            return _list_shards(manifest)
        if not overwrite:
            why = explain(manifest, job) if job else "its fingerprint differs"
            raise ValueError(f"{folder} holds another data set: {why}. {_REMEDY}")
    elif _is_plan(plan, identity):
        records = (read_record(path, identity) for path in sorted((folder / WRITING).glob("*.parquet.json")))
        return {entry.path: entry for entry in records if entry}
    elif plan is not None and plan.get("fingerprint") != identity and not overwrite:
        found = len(list(folder.glob("data/*")))
        if found:
            shards = f"{found} finished {'shard' if found == 1 else 'shards'}"
            if not plan:
                why = f"a data set whose writing has not ended, and {folder / WRITING / 'plan.json'} is damaged"
            else:
                why = "another data set whose writing has not ended"
                why += f": {explain_plan(plan, job)}" if job else ""
            raise ValueError(f"{folder} holds {shards} of {why}. {_REMEDY}")
    return {}


def _list_shards(manifest: Manifest) -> dict[str, ShardEntry]:
    """Return the shards of a data set by path, without those that a damaged index does not say."""
    found = {}
    for split in manifest.splits.values():
        for number in range(len(split.shards)):
            with contextlib.suppress(ValueError):
                shard = split.shards[number]
                found[shard.path] = shard
    return found


def _is_plan(plan: dict[str, Any] | None, identity: str) -> bool:
    """Return whether a plan is this run's; another release of pyarrow may encode other bytes, so it is part of it."""
    return plan is not None and (plan.get("fingerprint"), plan.get("pyarrow")) == (identity, pa.__version__)


def _read_plan(folder: Path) -> dict[str, Any] | None:
    """Return the plan; None if there is none, and an empty one if it is damaged."""
    path = folder / WRITING / "plan.json"
    if not path.is_file():
        return None
    try:
        plan = read_fields(path)
        return check_signature(plan) if "sha256" in plan or len(plan) > 2 else plan  # release 0.1.0 signed none
    except (OSError, ValueError):
        return {}


def record_name(shard: str) -> str:
    """Return the name of a shard's record, below the folder or the prefix."""
    return f"{WRITING}/{shard}.json"


def read_record(path: Path, identity: str) -> ShardEntry | None:
    """Return what is recorded of a shard; None if nothing is, or it is damaged or another data set's."""
    try:
        return _parse_record(path.read_bytes(), path.name, identity)
    except OSError:
        return None


def read_record_at(storage: Storage, name: str, identity: str) -> ShardEntry | None:
    """Return what is recorded of a shard at a URI; None if nothing is, or it is damaged or another data set's."""
    try:
        return _parse_record(storage.read(name), Path(name).name, identity)
    except FileNotFoundError:
        return None


def _parse_record(content: bytes, name: str, identity: str) -> ShardEntry | None:
    try:
        fields = check_signature(parse_fields(content))
        entry = ShardEntry(**fields["shard"])
    except (ValueError, TypeError, KeyError):  # truncated by a power cut, or of release 0.1.0, which has no hash
        return None
    is_ours = fields.get("fingerprint", identity) == identity  # earlier releases rely on the plan alone
    return entry if is_ours and f"{Path(entry.path).name}.json" == name else None
