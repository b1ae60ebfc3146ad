"""A data set's folder while it is written: one writer at a time, and every finished shard kept through a crash.

    <folder>/.writing/lock                  held by the writer; names its process and its machine
    <folder>/.writing/plan.json             which data set is under way
    <folder>/.writing/<shard>.json          a finished shard's entry: its size and its sha256
    <folder>/.writing/<shard>.parquet       a shard that is not finished

Guarantee: a process may end at any instant, and what it left is used again if its bytes have the recorded hash, else
written again. The plan is on the disk before the first shard, so shards that lie beside a plan or a manifest are ours,
and nothing else is ever removed. The lock is the operating system's (`flock`): it ends with the process, however that
ends, so no stale lock is left behind. Cost: one small file for each shard.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.base.atomic import sync_folder, write_json
from pipeline.base.locks import try_to_hold
from pipeline.corpus.quarantine import QUARANTINE_NAME
from pipeline.shards.card import CARD_NAME, is_card
from pipeline.shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, read_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

WRITING = ".writing"
SHARD_NAME = re.compile(r"(train|validation)-\d{5,}-of-\d{5,}\.parquet")
_TOP = re.compile(
    rf"data|README\.md|manifest\.json|quarantine\.jsonl|{re.escape(WRITING)}"
    r"|\.(manifest\.json|README\.md|quarantine\.jsonl)-\d+-[0-9a-f]{8}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderLock:
    """A folder that this process alone writes to."""

    folder: Path
    identity: str  # the fingerprint of the data set to be written
    recorded: dict[str, ShardEntry]  # shards that an earlier run finished, by path; their bytes are not yet verified


def find_finished(folder: Path, identity: str) -> Manifest | None:
    """The manifest of the folder if it holds the data set `identity` with every shard in its full size.

    And with its card, and the list of its bad documents if it has any: what is lost comes back.
    """
    if not (folder / MANIFEST_NAME).is_file():
        return None
    try:
        manifest = read_manifest(folder)
    except ValueError:
        return None
    if manifest.fingerprint != identity:
        return None
    entries = [shard for split in manifest.splits.values() for shard in split.shards]
    others = [CARD_NAME, QUARANTINE_NAME] if manifest.corpus["bad"] else [CARD_NAME]
    is_whole = all(_size(folder / entry.path) == entry.bytes for entry in entries)
    return manifest if is_whole and all((folder / name).is_file() for name in others) else None


@contextlib.contextmanager
def lock_folder(folder: Path, identity: str, *, overwrite: bool) -> Iterator[FolderLock]:
    """Make this process the folder's only writer. Nothing that the folder holds is changed before `prepare_folder`.

    Raises:
        ValueError: another process writes there, or the folder holds another data set or somebody else's files.

    """
    is_new = not folder.exists()
    try:
        with _locked(folder):
            recorded = _find_recorded(folder, identity, overwrite=overwrite)
            try:
                yield FolderLock(folder=folder, identity=identity, recorded=recorded)
            finally:
                if find_finished(folder, identity) or not (folder / WRITING / "plan.json").is_file():
                    for left in (folder / WRITING).iterdir():
                        if left.name != "lock":
                            left.unlink()
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # not empty: something was written
                folder.rmdir()


def remove_leftovers(folder: Path, identity: str) -> None:
    """Remove what a run that was killed after its manifest has left beside the finished data set `identity`."""
    if (folder / WRITING).is_dir():
        with contextlib.suppress(OSError, ValueError), lock_folder(folder, identity, overwrite=False):
            pass


def prepare_folder(lock: FolderLock, names: set[str]) -> None:
    """Record the plan, then remove what the new data set will not hold. `names` are its shards' file names.

    The plan comes first and the old manifest goes second: at no instant do our files lie in a folder that has neither,
    or a manifest beside files that it does not describe.
    """
    folder = lock.folder
    plan = folder / WRITING / "plan.json"
    if _read_plan(folder) != _plan(lock.identity):
        for record in (folder / WRITING).glob("*.parquet.json"):
            record.unlink()
        write_json(plan, _plan(lock.identity))
        for entry in lock.recorded.values():  # of a finished data set that has lost a file
            record_shard(folder, entry)
        sync_folder(folder / WRITING)
        sync_folder(folder)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    if not is_card(folder / "README.md", lock.identity):
        (folder / "README.md").unlink(missing_ok=True)
    for leftover in (
        *folder.glob(".*.part"),
        *folder.glob(f"{WRITING}/*.parquet"),
    ):
        leftover.unlink()
    (folder / "data").mkdir(exist_ok=True)
    for file in (folder / "data").iterdir():
        if file.name not in names:
            file.unlink()
    sync_folder(folder)


def record_shard(folder: Path, entry: ShardEntry) -> None:
    """Note a shard's size and hash. No flush: a record that a power cut takes costs one shard, written again."""
    name = Path(entry.path).name
    temporary = folder / WRITING / f"{name}.part"
    temporary.write_text(json.dumps(dataclasses.asdict(entry)), encoding="utf-8")
    temporary.rename(folder / WRITING / f"{name}.json")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path = folder / WRITING / "lock"
    descriptor: int | None = None
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # a run that has just ended removed the folder
            descriptor = try_to_hold(path)
            break
    if descriptor is None:
        owner = path.read_text(encoding="utf-8") if path.exists() else ""
        raise ValueError(
            f"{folder} is being written by another run{f' ({owner})' if owner else ''}; "
            "wait for it, or choose another shards.path"
        )
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: a plan and records for the next run are in it
            path.parent.rmdir()
        os.close(descriptor)


def _find_recorded(folder: Path, identity: str, *, overwrite: bool) -> dict[str, ShardEntry]:
    """What an earlier run has finished of this data set; refuses a folder that holds anything else."""
    plan, has_manifest = _read_plan(folder), (folder / MANIFEST_NAME).is_file()
    others = sorted(entry.name for entry in folder.iterdir() if not _is_ours(entry))
    data = folder / "data"
    found = sorted(entry.name for entry in data.iterdir()) if data.is_dir() else []
    ours = plan is not None or has_manifest
    others += [f"data/{name}" for name in found if not (ours and SHARD_NAME.fullmatch(name))]
    others += ["README.md"] * ((folder / "README.md").exists() and not is_card(folder / "README.md"))
    if others:
        raise ValueError(f"{folder} holds {others[0]!r}, which is no part of a data set; choose another shards.path")
    remedy = "Choose another shards.path, or replace it with shards.overwrite=true"
    if has_manifest:
        try:
            manifest = read_manifest(folder)
        except ValueError as error:
            if overwrite:
                return {}
            raise ValueError(f"{error}. {remedy}") from error
        if manifest.fingerprint == identity:  # a file is gone or cut short
            return {shard.path: shard for split in manifest.splits.values() for shard in split.shards}
        if not overwrite:
            raise ValueError(
                f"{folder} holds another data set: its fingerprint is {manifest.fingerprint[:12]}, this config's is "
                f"{identity[:12]}. {remedy}"
            )
        return {}
    if plan is None:
        return {}
    if plan == _plan(identity):
        return {
            entry.path: entry for entry in map(_read_record, sorted((folder / WRITING).glob("*.parquet.json"))) if entry
        }
    if plan.get("fingerprint") != identity and found and not overwrite:
        raise ValueError(
            f"{folder} holds {len(found)} finished shards of {_name_plan(folder, plan, identity)}. {remedy}"
        )
    return {}


def _is_ours(entry: Path) -> bool:
    return bool(_TOP.fullmatch(entry.name)) and (entry.is_dir() if entry.name == "data" else True)


def _name_plan(folder: Path, plan: dict[str, Any], identity: str) -> str:
    if not plan:
        return f"a data set whose writing has not ended, and {folder / WRITING / 'plan.json'} is damaged"
    return (
        f"another data set whose writing has not ended: its fingerprint is {str(plan.get('fingerprint'))[:12]}, this "
        f"config's is {identity[:12]}"
    )


def _plan(identity: str) -> dict[str, str]:
    """Another release of pyarrow may encode other bytes, so its shards are not mixed with this one's."""
    return {"fingerprint": identity, "pyarrow": pa.__version__}


def _read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan; None if there is none, and an empty one if it is damaged."""
    path = folder / WRITING / "plan.json"
    if not path.is_file():
        return None
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return plan if isinstance(plan, dict) else {}


def _read_record(path: Path) -> ShardEntry | None:
    try:
        entry = ShardEntry(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):  # cut short by a power failure
        return None
    return entry if f"{Path(entry.path).name}.json" == path.name else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
