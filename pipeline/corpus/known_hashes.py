"""Hashes of an earlier run, used again for files whose names, sizes and times have not changed: `corpus.trust_mtime`.

    <cache>/files/<corpus>.hashes    the sha256 of the rest on a line of its own, then JSON: what is known of each path

A file is known by its size, the times of its last write and its last change (of owner, name or times, too), its inode
and its device. So a file that another one replaced is hashed again, and so is a copy of a tree, even with its times.

A file that was written shortly before the run is not remembered: a second write in the same tick of the clock would
leave all of these as they are. A file that is tokenized is hashed again before (`check_trusted`), so a false hash never
gets tokens of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from typing import TYPE_CHECKING, Any

from pipeline.base.atomic import write_text
from pipeline.base.paths import allow_read_only, make_folder
from pipeline.corpus.compression import read_raw
from pipeline.corpus.documents import hash_parts
from pipeline.corpus.files import mark_as_cache

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.corpus.documents import Partition
    from pipeline.corpus.files import FoundFile
    from pipeline.corpus.opened import Status

TICK_NS = 2_000_000_000  # the coarsest clock of a file system in use, FAT's


class KnownHashes:
    """What an earlier run has hashed of some files. Without a `path` nothing is known, and nothing is kept."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._before = _read(path) if path else {}
        self._now: dict[str, list[Any]] = {}
        self._started = time.time_ns()

    def find(self, file: FoundFile, what: str) -> Any:
        """Return what is known of a part of a file, named by `what`; None if it must be read."""
        known = self._before.get(file.path)
        if not known or known[:-1] != _identity(file.status):
            return None
        self._now[file.path] = known
        return known[-1].get(what)

    def add(self, file: FoundFile, what: str, value: Any) -> None:
        """Keep what was hashed of a part of a file, unless the file may still change within the clock's tick."""
        if self._path is None or max(file.status.st_mtime_ns, file.status.st_ctime_ns) + TICK_NS > self._started:
            return
        self._now.setdefault(file.path, [*_identity(file.status), {}])[-1][what] = value

    def save(self, cache: Path) -> None:
        """Replace what the earlier run kept, if the cache may be written."""
        if self._path is None or self._now == self._before:
            return
        content = json.dumps(self._now)
        with allow_read_only():
            make_folder(self._path.parent)
            mark_as_cache(cache)
            write_text(self._path, f"{_sum(content)}\n{content}\n")


def open_hashes(cache: Path, paths: Sequence[str]) -> KnownHashes:
    """Return what is known of a corpus with these paths."""
    corpus = hash_parts(os.path.abspath(path) for path in paths)  # noqa: PTH100 - keeps links
    return KnownHashes(cache / "files" / f"{corpus}.hashes")


def check_trusted(partition: Partition) -> None:
    """Hash again what was not read because it was known.

    Raises:
        ValueError: a file has other content than when it was hashed, although its size and its times are the same.

    """
    for source, start, stop, digest in partition.trusted:
        path, found = partition.paths[source], hashlib.sha256()
        for block in read_raw(path, start=start, stop=stop):
            found.update(block)
        if found.hexdigest() != digest:
            raise ValueError(
                f"{path}: was changed, but its size and its times are those of the run that hashed it, and "
                "corpus.trust_mtime=true trusts them; `touch` the file, and run again"
            )


def _identity(status: os.stat_result | Status) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def _read(path: Path) -> dict[str, list[Any]]:
    """Return what a run has kept; nothing if it was damaged since."""
    try:
        checksum, _, content = path.read_text(encoding="utf-8").rstrip("\n").partition("\n")
    except (OSError, UnicodeDecodeError):
        return {}
    known: dict[str, list[Any]] = json.loads(content) if checksum == _sum(content) else {}
    return known


def _sum(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
