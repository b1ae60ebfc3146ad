"""Hashes of an earlier run, used again for files whose names, sizes and times have not changed: `corpus.trust_mtime`.

    <cache>/files/<corpus>.hashes    the sha256 of the rest on a line of its own, then JSON: what is known of each path,
                                     one list for each fact

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
from typing import TYPE_CHECKING, Any, NamedTuple

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

FORMAT = 2  # in format 1 each file had a list of its own, which took five times as long to read
TICK_NS = 2_000_000_000  # the coarsest clock of a file system in use, FAT's


class Known(NamedTuple):
    """What is known of files, by their paths."""

    files: dict[str, tuple[Any, ...]]  # `_identity`, and the sha256 if it was hashed in one piece
    facts: dict[str, dict[str, Any]]  # of parts of larger files, by the part


class KnownHashes:
    """What an earlier run has hashed of some files. Without a `path` nothing is known, and nothing is kept."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._before = _read(path) if path else Known({}, {})
        self._now = Known({}, {})
        self._started = time.time_ns()

    def find_digests(self, files: Sequence[FoundFile]) -> list[str | None]:
        """Return the sha256 of each file; None for those that must be read."""
        before, now = self._before.files, self._now.files
        if not before:
            return [None] * len(files)
        digests: list[str | None] = []
        for path, _, status in files:
            known = before.get(path)
            if known is not None and known[:-1] == _identity(status):
                now[path] = known
                digests.append(known[-1])
            else:
                digests.append(None)
        return digests

    def add_digest(self, file: FoundFile, digest: str) -> None:
        """Keep the sha256 of a file, unless it may still change within the clock's tick."""
        if self._keeps(file):
            self._now.files[file.path] = (*_identity(file.status), digest)

    def find(self, file: FoundFile, what: str) -> Any:
        """Return what is known of a part of a file, named by `what`; None if it must be read."""
        known = self._before.files.get(file.path)
        if known is None or known[:-1] != _identity(file.status):
            return None
        self._now.files[file.path] = known
        facts = self._before.facts.get(file.path, {}).get(what)
        if facts is not None:
            self._now.facts.setdefault(file.path, {})[what] = facts
        return facts

    def add(self, file: FoundFile, what: str, value: Any) -> None:
        """Keep what was hashed of a part of a file, as `add_digest`."""
        if self._keeps(file):
            self._now.files[file.path] = (*_identity(file.status), None)
            self._now.facts.setdefault(file.path, {})[what] = value

    def save(self, cache: Path) -> None:
        """Replace what the earlier run kept, if the cache may be written."""
        if self._path is None or self._now == self._before:
            return
        columns = [list(self._now.files), *map(list, zip(*self._now.files.values(), strict=True))]
        content = json.dumps({"format": FORMAT, "files": columns, "facts": self._now.facts}) + "\n"
        with allow_read_only():
            make_folder(self._path.parent)
            mark_as_cache(cache)
            write_text(self._path, f"{_sum(content.encode()).decode()}\n{content}")

    def _keeps(self, file: FoundFile) -> bool:
        written = max(file.status.st_mtime_ns, file.status.st_ctime_ns)
        return self._path is not None and written + TICK_NS <= self._started


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


def _identity(status: os.stat_result | Status) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev


def _read(path: Path) -> Known:
    """Return what a run has kept; nothing if it was damaged since, or an earlier release wrote it."""
    try:
        checksum, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return Known({}, {})
    kept = json.loads(content) if checksum == _sum(content) else {}
    if kept.get("format") != FORMAT:
        return Known({}, {})
    paths, *columns = kept["files"]
    return Known(dict(zip(paths, zip(*columns, strict=True), strict=True)), kept["facts"])


def _sum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
