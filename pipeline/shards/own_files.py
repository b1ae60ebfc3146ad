"""Which files in a data set's folder are ours: all others are kept, and a folder with such files is refused.

A file is ours if the plan of an unfinished data set, the manifest, or a mark in the file says so, whatever its name is.
"""

from __future__ import annotations

import contextlib
import json
import re
import stat
from typing import TYPE_CHECKING

from pipeline.base.atomic import final_name
from pipeline.corpus.quarantine import QUARANTINE_NAME
from pipeline.settings import SPLITS
from pipeline.shards.card import CARD_NAME, is_card, is_damaged_card
from pipeline.shards.complete import WRITING
from pipeline.shards.entries import DOCUMENTS_FOLDER, INDEX_NAME, MANIFEST_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.shards.manifest import Manifest

_SHARD = re.compile(r"(train|validation)-\d{5,}-of-\d{5,}\.parquet")
TABLES = tuple(f"{split}.parquet" for split in SPLITS)
_NAMES = (MANIFEST_NAME, INDEX_NAME, CARD_NAME, QUARANTINE_NAME)


def refuse_links(folder: Path) -> None:
    """Refuse links where our own files or folders belong, before anything is written."""
    below = [folder / name for name in (WRITING, "data", DOCUMENTS_FOLDER)]
    inside = [path for parent in below if parent.is_dir() and not parent.is_symlink() for path in parent.iterdir()]
    for path in (*below, *inside, *(folder / name for name in _NAMES)):
        if path.is_symlink():
            raise ValueError(
                f"{path} is a symbolic link, and a data set is written to files of its own; remove the link, or choose "
                "another shards.path"
            )
    lock = folder / WRITING / "lock"
    if lock.exists() and (lock.lstat().st_nlink > 1 or not _is_kind(lock, stat.S_IFREG)):
        kind = "a hard link to another file" if _is_kind(lock, stat.S_IFREG) else "not a regular file"
        raise ValueError(f"{lock} is {kind}; remove it, or choose another shards.path")


def refuse_others(folder: Path, *, has_plan: bool, manifest: Manifest | None) -> None:
    """Refuse a folder with a file that no plan, manifest or mark says is ours."""
    has_card = is_card(folder / CARD_NAME) or bool(manifest and is_damaged_card(folder / CARD_NAME))
    ours = {"data", WRITING}
    if has_card:
        ours.add(CARD_NAME)
    if has_plan or has_card or manifest or _claims_to_be_manifest(folder / MANIFEST_NAME):
        ours.add(MANIFEST_NAME)
    if has_plan or (manifest.corpus["bad"] if manifest else MANIFEST_NAME in ours and has_card):
        ours.add(QUARANTINE_NAME)
    has_shards = has_plan or (MANIFEST_NAME in ours and (folder / MANIFEST_NAME).exists())
    if has_plan or (has_tables(manifest) if manifest else has_shards):
        ours.add(DOCUMENTS_FOLDER)
    if has_plan or (manifest.index if manifest else has_shards):
        ours.add(INDEX_NAME)
    others = []
    for path in sorted(folder.iterdir()):
        is_folder = path.name in ("data", DOCUMENTS_FOLDER, WRITING)
        is_ours = path.name in ours or final_name(path.name) in _NAMES
        if not is_ours or not _is_kind(path, stat.S_IFDIR if is_folder else stat.S_IFREG):
            others.append(path)
        elif is_folder:
            others += [file for file in sorted(path.iterdir()) if not _is_ours_in(file, has_shards=has_shards)]
    if others:
        name = others[0].relative_to(folder).as_posix()
        raise ValueError(f"{folder} contains {name!r}, which is not part of a data set; choose another shards.path")


def has_tables(manifest: Manifest) -> bool:
    """Tell whether a data set has documents' tables."""
    return any(split.documents for split in manifest.splits.values())


def _is_ours_in(file: Path, *, has_shards: bool) -> bool:
    """Tell whether a file in one of our folders has a name of ours."""
    if file.parent.name == WRITING:
        is_ours = _is_working(file.name)
    elif file.parent.name == "data":
        is_ours = has_shards and is_shard(file.name)
    else:
        is_ours = file.name in TABLES
    return is_ours and _is_kind(file, stat.S_IFREG)


def _claims_to_be_manifest(path: Path) -> bool:
    try:
        fields = json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and {"format_version", "fingerprint"} <= set(fields)


def _is_working(name: str) -> bool:
    """Return whether a file in `.writing` has a name of ours, those of earlier releases included."""
    name = final_name(name) or name.removesuffix(".part")
    return name in ("lock", "turn", "plan.json", *TABLES) or is_shard(name.removesuffix(".json"))


def is_shard(name: str) -> bool:
    """Return whether a file has the name of a shard."""
    return bool(_SHARD.fullmatch(name))


def _is_kind(path: Path, kind: int) -> bool:
    try:
        return stat.S_IFMT(path.lstat().st_mode) == kind
    except FileNotFoundError:  # a part of an array job that runs beside this one has renamed it
        return True


def find_parts(folder: Path) -> Iterator[Path]:
    """Yield the temporary files that runs left in a data set's folder."""
    return (path for path in folder.iterdir() if final_name(path.name) in _NAMES)


def remove_all(paths: Iterator[Path]) -> None:
    """Remove left-over files. What cannot be removed is left."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
