"""What makes a data set complete. The write stage writes again what this module misses, and verify reports it.

The sizes of shards and the bytes of their footers are compared here; only verify reads the complete shards.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.base.reading import open_regular
from pipeline.corpus.quarantine import QUARANTINE_NAME
from pipeline.shards.card import CARD_NAME, is_card, is_damaged_card
from pipeline.shards.entries import DOCUMENTS_FOLDER, INDEX_NAME, MANIFEST_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.shards.entries import ShardEntry, TableEntry
    from pipeline.shards.manifest import Manifest

WRITING = ".writing"  # has the lock, the plan and the records of a data set that is being written
PLAN = f"{WRITING}/plan.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One problem."""

    file: str  # relative to the data set's folder; of the cache, the path of what is damaged
    problem: str


def is_complete(folder: Path, manifest: Manifest) -> bool:
    """Tell whether a data set lacks nothing, as far as can be told without reading its shards."""
    try:
        entries = [file for split in manifest.splits.values() for file in split.files]
    except ValueError:  # the index is missing or damaged
        return False
    entries += [manifest.index] if manifest.index else []
    return not any(find_file_problem(folder, entry) for entry in entries) and not any(list_missing(folder, manifest))


def find_file_problem(folder: Path, entry: ShardEntry | TableEntry) -> str | None:
    """Return what is wrong with a file's size or footer, or None."""
    try:
        with open_regular(folder / entry.path) as file:
            size = file.seek(0, 2)
            if size != entry.bytes:
                return f"has {size} bytes; the manifest says {entry.bytes}"
            if entry.footer_start is None:
                return None
            file.seek(entry.footer_start)
            digest = hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if digest == entry.footer_sha256 else "has another footer than the manifest says"


def list_missing(folder: Path, manifest: Manifest) -> Iterator[Fault]:
    """List what is wrong with the files next to the shards, which the write stage would write again."""
    card = folder / CARD_NAME
    if not card.is_file():
        yield Fault(file=CARD_NAME, problem="the data-set card is missing")
    elif is_damaged_card(card) or (is_card(card) and not is_card(card, manifest.fingerprint)):
        yield Fault(file=CARD_NAME, problem="is the card of another data set, or was cut short")
    bad = Counter(manifest.corpus["bad"])
    if bad and (found := _count_quarantined(folder / QUARANTINE_NAME)) != bad:
        listed = "the list of rejected documents is missing or damaged" if found is None else f"lists {dict(found)}"
        yield Fault(file=QUARANTINE_NAME, problem=f"{listed}; the manifest says {dict(bad)}")


def list_leftovers(folder: Path) -> Iterator[Fault]:
    """Name what the next run of the write stage removes from a finished data set."""
    if (folder / WRITING).exists():
        yield Fault(file=WRITING, problem="was left by a run that was killed, or another run is writing here")


def list_strays(folder: Path, manifest: Manifest) -> list[str]:
    """Return the names in a data set's folder that do not belong to it. They do no harm outside `data/`."""
    own = {MANIFEST_NAME, CARD_NAME, "data", WRITING} | ({INDEX_NAME} if manifest.index else set())
    own |= {QUARANTINE_NAME} if manifest.corpus["bad"] else set()
    if any(split.documents for split in manifest.splits.values()):
        own.add(DOCUMENTS_FOLDER)
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in own)


def _count_quarantined(path: Path) -> Counter[str] | None:
    counts: Counter[str] = Counter()
    try:
        with open_regular(path) as file:
            for line in file:
                counts[json.loads(line)["reason"]] += 1
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return counts
