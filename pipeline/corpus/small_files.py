"""Small files: each is opened and read once, hashed, and grouped with its neighbours in the order of their names.

A group becomes one chunk of the token store. Its end is chosen by the files' contents: a hash ends it, with a
probability that grows with the file, once it has a useful size. So a file that is added or removed moves few borders.

Files are read by many threads, since opening one may wait for a disk or a network. Their contents are held until they
are tokenized, up to `HELD_BYTES` of a corpus; beyond that a file is read a second time.
"""

from __future__ import annotations

import hashlib
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from pipeline.corpus.hashed import FileRange, Hashed, HeldFiles, Trusted, read_complete
from pipeline.executor.local import run_tasks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pipeline.corpus.files import FoundFile
    from pipeline.corpus.known_hashes import KnownHashes
    from pipeline.corpus.opened import Stamp

READ_FILES = 256  # in one step of a thread
READ_BYTES = 2 << 20  # of them
READ_THREADS = 16
HELD_BYTES = 64 << 20
FILE_BYTES = 1 << 10  # what a file of a group costs beside its content
GROUP_BYTES = 4 << 20  # after that much more than `LEAST_BYTES` a group ends, on average
LEAST_BYTES = 2 << 20
MOST_BYTES = 16 << 20


class Budget:
    """How many bytes of files may still be held."""

    def __init__(self, left: int) -> None:
        self.left = left


class HashedFile(NamedTuple):
    """A small file that was read."""

    file: FoundFile
    digest: str
    stamp: Stamp
    content: bytes | None
    is_trusted: bool = False


def hash_small_files(
    runs: Sequence[Sequence[FoundFile]], budget: Budget, known: KnownHashes
) -> Iterator[Iterator[tuple[FileRange, Hashed]]]:
    """Yield for each run of neighbouring files its groups, hashed. Use up each before the next."""
    batches = [list(_divide(run)) for run in runs]
    read = run_tasks(partial(_read, budget=budget, known=known), chain.from_iterable(batches), workers=READ_THREADS)
    for run in batches:
        yield group_files(chain.from_iterable(_keep(next(read), budget, known) for _ in run))
    assert next(read, None) is None, "each batch is read once"


def _divide(files: Sequence[FoundFile]) -> Iterator[list[FoundFile]]:
    """Divide files into what a thread reads in one step."""
    batch: list[FoundFile] = []
    size = 0
    for file in files:
        if batch and (len(batch) == READ_FILES or size + file.status.st_size > READ_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.status.st_size
    yield batch


def _read(files: Sequence[FoundFile], budget: Budget, known: KnownHashes) -> list[HashedFile]:
    hashed = []
    for file in files:
        if digest := known.find(file, ""):
            stamp = file.status.st_size, file.status.st_mtime_ns
            hashed.append(HashedFile(file, digest, stamp, None, is_trusted=True))
            continue
        content, stamp = read_complete(file.path, None)
        digest = hashlib.sha256(content).hexdigest()
        hashed.append(HashedFile(file, digest, stamp, content if budget.left > 0 else None))
    return hashed


def _keep(files: list[HashedFile], budget: Budget, known: KnownHashes) -> list[HashedFile]:
    """Charge what the files of a batch hold, or let go of it; and keep their hashes."""
    for file in files:
        if not file.is_trusted:
            known.add(file.file, "", file.digest)
    size = sum(file.stamp[0] for file in files if file.content is not None)
    budget.left -= size
    return files if budget.left >= 0 else [file._replace(content=None) for file in files]


def group_files(files: Iterable[HashedFile]) -> Iterator[tuple[FileRange, Hashed]]:
    """Yield groups of neighbouring files, ended by their hashes and sizes."""
    group: list[HashedFile] = []
    size = 0
    for file in files:
        group.append(file)
        cost = file.stamp[0] + FILE_BYTES
        size += cost
        if size >= MOST_BYTES or (size >= LEAST_BYTES and int(file.digest[:8], 16) * GROUP_BYTES < cost << 32):
            yield _as_group(group)
            group, size = [], 0
    if group:
        yield _as_group(group)


def _as_group(group: Sequence[HashedFile]) -> tuple[FileRange, Hashed]:
    files, digests, stamps, contents, _ = zip(*group, strict=True)
    trusted = tuple(Trusted(at, 0, None, one.digest) for at, one in enumerate(group) if one.is_trusted)
    size = sum(size for size, _ in stamps)
    return FileRange(files, is_group=True), Hashed(digests, stamps, size, held=HeldFiles(contents), trusted=trusted)
