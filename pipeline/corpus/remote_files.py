"""Find the objects of a corpus: an object, a prefix, or a glob of names, in the order of their names.

The rules are those of local files (`files.py`): which endings a prefix contributes, what is hidden, how a name is made,
and that what stridemill wrote is no text. A prefix is listed; nothing of it is opened but what looks like such a mark.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pipeline.corpus.files import (
    MARK_BYTES,
    MAX_KINDS,
    OWN_MARKS,
    FoundFile,
    FoundFiles,
    PassedOver,
    fits,
    list_endings,
    name_kind,
    refuse_without_files,
)
from pipeline.corpus.opened import bucket_of, status_of
from pipeline.storage.names import Location, split_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipeline.storage.interface import Entry, Storage

WILD = re.compile(r"[*?\[]")


def find_objects(
    uris: Sequence[str], suffixes: tuple[str, ...], *, packed: bool, is_meant: Callable[[str], bool]
) -> FoundFiles:
    """Return the objects that URIs name, and count those that are passed over, as `find_files` does.

    Raises:
        ValueError: a URI names nothing, or an object below it has a name that leads elsewhere; or a store cannot be
            read.

    """
    endings = list_endings(suffixes, packed=packed)
    taken: dict[str, Entry] = {}
    others: dict[str, list[tuple[str, Entry]]] = defaultdict(list)
    roots = []
    for uri in uris:
        location = split_uri(uri, glob=True)
        try:
            root, found = _find(location)
        except OSError as error:
            raise ValueError(f"corpus.path={uri!r}: {error.strerror or error}") from error
        base = f"{location.scheme}://{location.bucket}/"
        roots.append(base + root)
        if found is None:
            found, kinds = [], defaultdict(list)
            for entry in _without_own(bucket_of(location), root):
                hidden = any(part.startswith(".") for part in entry.name[len(root) :].split("/"))
                name = posixpath.basename(entry.name)
                kind = "hidden" if hidden else name_kind(name, base + entry.name, endings, is_meant)
                kinds[kind].append((base + entry.name, entry))
            found = [entry for _, entry in kinds.pop("", [])]
            if not found:
                refuse_without_files(uri, suffixes, {kind: len(names) for kind, names in kinds.items()}, packed=packed)
            for kind, names in kinds.items():
                others[kind] += names
        taken |= {base + entry.name: entry for entry in found}
    shared = posixpath.commonpath(roots) if len(roots) > 1 else roots[0].rstrip("/")
    start = len(shared) + 1
    files = [FoundFile(uri, uri[start:], status_of(taken[uri])) for uri in sorted(taken)]
    return FoundFiles(files, _count_others(others, taken, start))


def _find(location: Location) -> tuple[str, list[Entry] | None]:
    """Return the prefix to which names are relative, and the objects; None if all below the prefix are meant.

    Raises:
        ValueError: there is nothing.

    """
    storage, key = bucket_of(location), location.key
    if WILD.search(key):
        parts = key.split("/")
        fixed = next(at for at, part in enumerate(parts) if WILD.search(part))
        root, wanted = "".join(f"{part}/" for part in parts[:fixed]), tuple(parts[fixed:])
        found = [one for one in _without_own(storage, root) if fits(tuple(one.name[len(root) :].split("/")), wanted)]
        if found:
            return root, found
    if key:
        try:
            return "".join(key.rpartition("/")[:2]), [storage.stat(key)]
        except FileNotFoundError:
            if WILD.search(key):
                raise ValueError(f"corpus.path={str(location)!r}: no object matches it as a glob") from None
    root = f"{key}/" if key else ""
    if next(storage.list(key), None) is None:
        raise ValueError(f"corpus.path={str(location)!r}: there is no such object, and none below it")
    return root, None


def _without_own(storage: Storage, root: str) -> Iterator[Entry]:
    """Yield the objects below a prefix, without data sets, caches, runs and sweeps that stridemill wrote below it."""
    entries = list(storage.list(root.rstrip("/")))
    own = []
    for entry in entries:
        below = entry.name[len(root) :]
        for mark, pattern in OWN_MARKS.items():
            folder = below.removesuffix(mark) if below.endswith(f"/{mark}") else ""
            if mark == ".writing" and "/.writing/" in below:
                folder = below.partition(".writing/")[0]
            if folder and pattern.search(storage.read_ranges(entry.name, [(0, min(entry.size, MARK_BYTES))])[0]):
                own.append(root + folder)
    skipped = tuple(own)
    return (entry for entry in entries if not (skipped and entry.name.startswith(skipped)))


def _count_others(
    others: dict[str, list[tuple[str, Entry]]], taken: dict[str, Entry], start: int
) -> dict[str, PassedOver]:
    rare = set(sorted(others, key=lambda kind: (-len(others[kind]), kind))[MAX_KINDS:])
    counts: dict[str, PassedOver] = {}
    for kind in sorted(others):
        label = "other" if kind in rare else kind
        for uri, entry in sorted({uri: entry for uri, entry in others[kind] if uri not in taken}.items()):
            files, size, example = counts.get(label, (0, 0, str(PurePosixPath(uri[start:]))))
            counts[label] = PassedOver(files + 1, size + entry.size, example)
    return counts
