"""Small files: each is opened and read once, hashed, and grouped with its neighbours in the order of their names.

A group becomes one chunk of the token store. Its end is chosen by the files' contents: a hash ends it, with a
probability that grows with the file, once it has a useful size. So a file that is added or removed moves few borders.

Files that are in memory are read by one thread, since several would mostly wait for the interpreter's lock. Where
opening a file waits for a disk or a network, many threads read. Contents are held until they are tokenized, up to
`HELD_BYTES` of a corpus; beyond that a file is read a second time.
"""

from __future__ import annotations

import hashlib
import time
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple

from pipeline.corpus.hashed import FileRange, Hashed, HeldFiles, Trusted, listed_stamp, read_complete
from pipeline.executor.local import run_tasks

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

    from pipeline.corpus.files import FoundFile
    from pipeline.corpus.known_hashes import KnownHashes
    from pipeline.corpus.opened import Stamp

READ_FILES = 256  # in one step of a thread
READ_BYTES = 2 << 20  # of them
READ_THREADS = 16
LEAST_AHEAD = 4 * READ_THREADS  # batches that many threads read before it is tried again whether one is enough
MOST_AHEAD = 16 * LEAST_AHEAD
WAITS = 4  # a thread that takes this many times its processor time waits for a disk or a network
HELD_BYTES = 64 << 20
FILE_BYTES = 1 << 10  # what a file of a group costs beside its content
GROUP_BYTES = 4 << 20  # after that much more than `LEAST_BYTES` a group ends, on average
LEAST_BYTES = 2 << 20
MOST_BYTES = 16 << 20

_ReadFile = tuple[str, "Stamp", bytes | None]  # a file's hash, its stamp, and its content if that is held


class Budget:
    """How many bytes of files may still be held."""

    def __init__(self, left: int) -> None:
        self.left = left


class HashedFiles(NamedTuple):
    """Small files that were hashed, one column for each fact: an object for each file takes longer than its hash."""

    files: Sequence[FoundFile]
    digests: list[str]
    stamps: list[Stamp]
    contents: list[bytes | None]  # what is held


def hash_small_files(
    runs: Sequence[Sequence[FoundFile]], budget: Budget, known: KnownHashes
) -> Iterator[Iterator[tuple[FileRange, Hashed]]]:
    """Yield for each run of neighbouring files its groups, hashed. Use up each before the next."""
    found = [known.find_digests(run) for run in runs]
    unknown = [[at for at, digest in enumerate(digests) if digest is None] for digests in found]
    batches = [list(_divide([run[at] for at in missing])) for run, missing in zip(runs, unknown, strict=True)]
    read = _read_batches(chain.from_iterable(batches), budget)
    for run, digests, missing, divided in zip(runs, found, unknown, batches, strict=True):
        stamps = [(status.st_size, status.st_mtime_ns) for _, _, status in run]
        hashed = HashedFiles(run, [digest or "" for digest in digests], stamps, [None] * len(run))
        new = chain.from_iterable(_keep(next(read), budget) for _ in divided)
        for at, one in zip(missing, new, strict=True):
            hashed.digests[at], hashed.stamps[at], hashed.contents[at] = one
            known.add_digest(run[at], one[0])
        yield _group(hashed, set(missing))
    assert next(read, None) is None, "each batch is read once"


def _divide(files: Sequence[FoundFile]) -> Iterator[Sequence[FoundFile]]:
    """Divide files into what a thread reads in one step."""
    start = size = 0
    for at, file in enumerate(files):
        if at > start and (at - start == READ_FILES or size + file.status.st_size > READ_BYTES):
            yield files[start:at]
            start, size = at, 0
        size += file.status.st_size
    if files:
        yield files[start:]


def _read_batches(batches: Iterator[Sequence[FoundFile]], budget: Budget) -> Iterator[list[_ReadFile]]:
    """Yield what is read of each batch: by this thread, or by many after a batch for which it had to wait."""
    ahead = LEAST_AHEAD
    for batch in batches:
        started, worked = time.perf_counter(), time.thread_time()
        read = _read(batch, budget)
        waits = time.perf_counter() - started > WAITS * (time.thread_time() - worked)
        yield read
        if waits:
            yield from run_tasks(partial(_read, budget=budget), islice(batches, ahead), workers=READ_THREADS)
            ahead = min(2 * ahead, MOST_AHEAD)
        else:
            ahead = LEAST_AHEAD


def _read(files: Sequence[FoundFile], budget: Budget) -> list[_ReadFile]:
    read: list[_ReadFile] = []
    for file in files:
        content, stamp = read_complete(file.path, listed_stamp(file))
        read.append((hashlib.sha256(content).hexdigest(), stamp, content if budget.left > 0 else None))
    return read


def _keep(files: list[_ReadFile], budget: Budget) -> Iterable[_ReadFile]:
    """Charge what the files of a batch hold, or let go of it."""
    budget.left -= sum(size for _, (size, _), content in files if content is not None)
    return files if budget.left >= 0 else [(digest, stamp, None) for digest, stamp, _ in files]


def _group(hashed: HashedFiles, was_read: Container[int]) -> Iterator[tuple[FileRange, Hashed]]:
    """Yield groups of neighbouring files; those that were not read are trusted."""
    sizes = [size for size, _ in hashed.stamps]
    start = 0
    for stop in find_ends(hashed.digests, sizes):
        chosen = slice(start, stop)
        digests, stamps, contents = hashed.digests[chosen], hashed.stamps[chosen], hashed.contents[chosen]
        yield (
            FileRange(tuple(hashed.files[chosen]), is_group=True),
            Hashed(
                tuple(digests),
                tuple(stamps),
                sum(sizes[chosen]),
                held=HeldFiles(contents if any(contents) else ()),
                trusted=tuple(
                    Trusted(at, 0, None, one) for at, one in enumerate(digests) if start + at not in was_read
                ),
            ),
        )
        start = stop


def find_ends(digests: Sequence[str], sizes: Sequence[int]) -> Iterator[int]:
    """Yield the end of each group of files, which their hashes and sizes decide."""
    total = 0
    for stop, (digest, size) in enumerate(zip(digests, sizes, strict=True), start=1):
        cost = size + FILE_BYTES
        total += cost
        if total >= LEAST_BYTES and (total >= MOST_BYTES or int(digest[:8], 16) * GROUP_BYTES < cost << 32):
            yield stop
            total = 0
    if total:
        yield len(digests)
