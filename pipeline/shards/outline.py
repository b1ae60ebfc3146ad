"""A local outline of a data set in an object store, to which the rules of a local folder apply as they are.

The outline is a temporary folder with all names of a prefix. What describes the data set (the manifest, the card, the
plan and the records of an unfinished write) has its content; each shard, and whatever else is there, is an empty place
holder of the right size. Cost: one request for each thousand objects, and one for each description.
"""

from __future__ import annotations

import contextlib
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.paths import renamed_in_errors
from pipeline.base.scratch import scratch_folder
from pipeline.corpus.quarantine import QUARANTINE_NAME
from pipeline.executor.local import run_tasks
from pipeline.shards.card import CARD_NAME
from pipeline.shards.complete import PLAN, WRITING
from pipeline.shards.entries import INDEX_NAME, MANIFEST_NAME
from pipeline.storage.hashing import PART_BYTES
from pipeline.storage.names import is_uri
from pipeline.storage.open import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.storage.interface import Entry, Storage

PROBE = f"{WRITING}/probe-"  # objects by which the store was tried
REQUESTS = 16  # at once


@contextlib.contextmanager
def working_folder(path: Path | str) -> Iterator[tuple[Path, Storage | None]]:
    """Yield the folder in which a data set is worked on: its own, or a temporary one and the storage of its URI.

    What an error says of the temporary folder, it says of the URI.
    """
    if not is_uri(path):
        yield Path(path), None
        return
    storage = open_storage(path)
    with scratch_folder() as folder, renamed_in_errors(str(folder), storage.uri):
        yield folder, storage


def fetch_outline(storage: Storage, folder: Path) -> dict[str, int]:
    """Fill an empty folder with the outline of a prefix, and return the size of each object.

    A prefix without a manifest and a plan is not listed in full: its first object is enough to refuse it.
    """
    (folder / "data").mkdir()
    is_ours = [_fetch(storage, folder, name) for name in (MANIFEST_NAME, PLAN)]
    found = (entry for entry in storage.list() if not entry.name.startswith(PROBE))
    entries = found if any(is_ours) else islice(found, 1)
    sizes: dict[str, int] = {}
    described = []
    for entry in entries:
        sizes[entry.name] = entry.size
        if _is_description(entry):
            described.append(entry.name)
        elif not (folder / entry.name).exists():
            _hold_place(folder / entry.name, entry.size)
    for _ in run_tasks(partial(_fetch, storage, folder), described, workers=REQUESTS):
        pass
    return sizes


def fetch_object(storage: Storage, name: str, folder: Path) -> None:
    """Fetch an object into a folder, part by part."""
    size = storage.size(name)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("wb") as file:
        for start in range(0, size, PART_BYTES):
            file.write(storage.read_ranges(name, [(start, min(start + PART_BYTES, size))])[0])


def list_outline(folder: Path) -> set[str]:
    """Return the names of the objects that an outline has."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _is_description(entry: Entry) -> bool:
    name = entry.name
    return name in (CARD_NAME, QUARANTINE_NAME, INDEX_NAME) or (
        name.startswith(f"{WRITING}/") and name.endswith(".json")
    )


def _fetch(storage: Storage, folder: Path, name: str) -> bool:
    try:
        content = storage.read(name)
    except FileNotFoundError:
        return False
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return True


def _hold_place(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
