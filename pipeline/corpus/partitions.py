"""Divide files into partitions: what one task reads, and the hash by which finished work is found again.

Files under `SMALL_BYTES` are grouped (`small_files.py`). Each is known by its own hash, so the groups only decide how
many tasks there are. A larger file is a partition of its own. One over `PARTITION_BYTES` is
cut at the first cut point after each multiple of it (of half of it, if that gives few): lines and delimited documents,
and a long text before an ASCII space that follows a character other than white space. A text is cut only if the
tokenizer allows it, all of it is UTF-8, and every span between cut points fits into memory. A compressed file is never
cut.

All workers together hash every byte before anything is tokenized: 1.8 GB/s on each core.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from functools import partial
from itertools import groupby, islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.base.cut_points import safe_cuts
from pipeline.base.progress import ProgressBar
from pipeline.corpus.compression import SUFFIXES, is_packed, packing_of, read_raw
from pipeline.corpus.delimited import DelimiterCount, find_delimiter
from pipeline.corpus.documents import (
    BATCH_BYTES,
    KEY_BYTES,
    MAX_BUFFERED_BYTES,
    Partition,
    as_utf8,
    hash_each,
    hash_parts,
)
from pipeline.corpus.fetch import fetch_objects
from pipeline.corpus.hashed import FileRange, Hashed, Trusted, changed, file_stamp, listed_stamp
from pipeline.corpus.known_hashes import KnownHashes
from pipeline.corpus.signatures import is_binary
from pipeline.corpus.small_files import Budget, hash_small_files
from pipeline.executor.local import run_tasks
from pipeline.storage.names import is_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipeline.corpus.fetch import Spooled
    from pipeline.corpus.files import FoundFile
    from pipeline.corpus.opened import Stamp
    from pipeline.corpus.spool import Spool, SpooledRange

    FindCut = Callable[..., int | None]  # of a path, a byte of it, and what was fetched of it


PARTITION_BYTES = 16 << 20  # large enough to amortize a chunk's files, small enough to keep all workers busy to the end
MANY = 16  # a file of fewer partitions is cut into ones of half that size: fewer workers are idle at the end
SMALL_BYTES = 1 << 20
REQUESTS = 16  # for the cuts of objects, at once
NEAR_BLOCKS = 4  # of 256 KiB: how far from its place a cut is looked for by one of many requests


class Hashing(NamedTuple):
    """How files are hashed."""

    workers: int  # threads
    hold: int = 0  # most bytes of small files that are held until they are tokenized
    known: KnownHashes = KnownHashes()  # of an earlier run
    spool: Spool | None = None  # where what is fetched of objects is kept until it is tokenized

    def fetch(self, files: Sequence[FoundFile], advance: Callable[[int], object]) -> dict[str, Spooled]:
        """Fetch objects into the spool, if there is one; count the bytes. Return what it has of them."""
        objects = [file for file in files if is_uri(file.path)]
        return fetch_objects(objects, self.spool, advance) if self.spool and objects else {}


def partition_text(files: Sequence[FoundFile], *, cut_safe: bool, hashing: Hashing) -> list[Partition]:
    """Divide plain text files, one document each."""
    partitions: list[Partition] = []
    for ranges in _hash_ranges(files, find_text_cut if cut_safe else None, hashing):
        # Otherwise one reader, which buffers the text between two cuts, finds the problem and rejects the document.
        longest = MAX_BUFFERED_BYTES - 2 * BATCH_BYTES
        if len(ranges) > 1 and not all(hashed.is_text and hashed.longest <= longest for _, hashed in ranges):
            partitions.append(_join("text", ranges))
            continue
        head = _read_key(ranges[0][0].files[0].path) if len(ranges) > 1 else b""
        partitions += [
            _partition("text", one, hashed, head=head, is_segment=len(ranges) > 1, continues=one.stop is not None)
            for one, hashed in ranges
        ]
    return partitions


def partition_jsonl(files: Sequence[FoundFile], *, field: str, hashing: Hashing) -> list[Partition]:
    """Divide files with a JSON object on each line."""
    return _partition_rows("jsonl", files, field=field, delimiter=b"\n", hashing=hashing)


def partition_delimited(files: Sequence[FoundFile], *, delimiter: str, hashing: Hashing) -> list[Partition]:
    """Divide plain text files with several documents, and a delimiter between two of them."""
    return _partition_rows("delimited", files, field=delimiter, delimiter=delimiter.encode(), hashing=hashing)


def _partition_rows(
    reader: str,
    files: Sequence[FoundFile],
    *,
    field: str,
    delimiter: bytes,
    hashing: Hashing,
) -> list[Partition]:
    partitions = []
    find_cut = partial(find_delimiter, delimiter=delimiter)
    for ranges in _hash_ranges(files, find_cut, hashing, delimiter=delimiter):
        row = 0
        for one, hashed in ranges:
            partitions.append(_partition(reader, one, hashed, first_row=row, field=field))
            row += hashed.num_rows
    return partitions


def find_text_cut(
    path: str,
    at: int,
    *,
    stamp: Stamp | None = None,
    spooled: SpooledRange | None = None,
    blocks: int | None = None,
) -> int | None:
    """Return the first offset after byte `at` of a file at which a text may be cut; None if there is none.

    With `blocks`, no more than this many blocks are read for it.
    """
    buffered, offset = b"", at
    for block in islice(read_raw(path, start=at, stamp=stamp, spooled=spooled), blocks):
        buffered += block
        if (found := next(safe_cuts(buffered), None)) is not None:
            return offset + found
        offset, buffered = offset + len(buffered) - 4, buffered[-4:]  # a character has at most four bytes
    return None


def _hash_ranges(
    files: Sequence[FoundFile], find_cut: FindCut | None, hashing: Hashing, *, delimiter: bytes | None = None
) -> Iterator[list[tuple[FileRange, Hashed]]]:
    """Yield the hashed ranges of each group of small files and of each larger file, in the files' order."""
    runs = [(small, list(run)) for small, run in groupby(files, lambda file: file.status.st_size < SMALL_BYTES)]
    groups = hash_small_files([run for is_small, run in runs if is_small], Budget(hashing.hold), hashing.known)
    large = [file for is_small, run in runs if not is_small for file in run]
    with _show_reading(large) as advance:
        fetched = hashing.fetch(large, advance)
        cut = _cut_files(large, find_cut, fetched)
        ranges = (one for parts in cut.values() for one in parts)
        hash_range = partial(_hash_range, delimiter=delimiter, known=hashing.known, fetched=fetched)
        hashed = run_tasks(hash_range, ranges, workers=hashing.workers)
        for is_small, run in runs:
            if is_small:
                yield from ([group] for group in next(groups))
                continue
            for file in run:
                found = []
                for one in cut[file.path]:
                    found.append((one, next(hashed)))
                    advance(0 if _is_spooled(one, fetched) else found[-1][1].num_bytes)
                yield _of_one_version(found)
    assert next(hashed, None) is None, "each range is hashed once"
    assert next(groups, None) is None, "each run of small files is read once"


@contextmanager
def _show_reading(files: Sequence[FoundFile]) -> Iterator[Callable[[int], object]]:
    """Show how much of the large objects is read, which takes long; yield the function that counts bytes."""
    total = sum(file.status.st_size for file in files if is_uri(file.path))
    if not total:
        yield lambda _: None
        return
    with ProgressBar("read", total, "B") as bar:
        yield bar.update


def _of_one_version(ranges: list[tuple[FileRange, Hashed]]) -> list[tuple[FileRange, Hashed]]:
    """Return the ranges of a file; refuse a file that was replaced between the hashing of two of them."""
    if len({hashed.stamps for _, hashed in ranges}) > 1:
        raise changed(ranges[0][0].files[0].path)
    return ranges


def _cut_files(
    files: Sequence[FoundFile], find_cut: FindCut | None, fetched: dict[str, Spooled]
) -> dict[str, list[FileRange]]:
    """Return the ranges of each file. The cuts of objects are looked for by many requests at once."""
    places = {file.path: _find_places(file) if find_cut and not is_packed(file.path) else [] for file in files}
    apart = [file for file in files if is_uri(file.path) and not _is_spooled(FileRange((file,)), fetched)]
    asked = [(file, at) for file in apart for at in places[file.path]]

    def look(place: tuple[FoundFile, int]) -> int | None:
        assert find_cut, "otherwise there is no place"
        file, at = place
        return find_cut(file.path, at, stamp=listed_stamp(file), blocks=NEAR_BLOCKS)

    near = dict(zip(((file.path, at) for file, at in asked), run_tasks(look, asked, workers=REQUESTS), strict=True))
    return {file.path: _cut_file(file, find_cut, places[file.path], near, fetched.get(file.path)) for file in files}


def _find_places(file: FoundFile) -> range:
    """Return after which bytes a file is to be cut."""
    size = file.status.st_size
    step = PARTITION_BYTES if size >= MANY * PARTITION_BYTES else PARTITION_BYTES // 2
    return range(step, size - step // 2, step)


def _cut_file(
    file: FoundFile,
    find_cut: FindCut | None,
    places: Sequence[int],
    near: dict[tuple[str, int], int | None],
    fetched: Spooled | None,
) -> list[FileRange]:
    """Return a file's ranges; `near` has cuts that were looked for before, those within some blocks of their places."""
    cuts, spooled = [0], fetched.range if fetched else None
    for at in places:
        if at <= cuts[-1]:
            continue
        assert find_cut, "otherwise there is no place"
        cut = near.get((file.path, at)) or find_cut(file.path, at, stamp=listed_stamp(file), spooled=spooled)
        if cut is None or cut >= file.status.st_size:
            break
        cuts.append(cut)
    stops: list[int | None] = [*cuts[1:], None]
    return [FileRange((file,), start, stop) for start, stop in zip(cuts, stops, strict=True)]


def _is_spooled(files: FileRange, fetched: dict[str, Spooled]) -> bool:
    (file,) = files.files
    stop = file.status.st_size if files.stop is None else files.stop
    return file.path in fetched and fetched[file.path].range.covers(stop)


def _hash_range(
    files: FileRange, *, delimiter: bytes | None, known: KnownHashes, fetched: dict[str, Spooled]
) -> Hashed:
    """Hash a range of a file, or all of it, unless that is known."""
    file = files.files[0]
    what = f"{files.start} {files.stop} {delimiter and delimiter.hex()}"
    if facts := known.find(file, what):
        trusted = Trusted(0, files.start, files.stop, facts[0])
        digest, size, rows, is_text, longest = facts
        stamp = file.status.st_size, file.status.st_mtime_ns
        return Hashed((digest,), (stamp,), size, rows, is_text, longest, trusted=(trusted,))
    hashed = _read_range(files, delimiter, fetched.get(file.path))
    known.add(file, what, [*hashed.digests, hashed.num_bytes, hashed.num_rows, hashed.is_text, hashed.longest])
    return hashed


def _read_range(files: FileRange, delimiter: bytes | None, fetched: Spooled | None) -> Hashed:
    """Hash a range of a file.

    In a range count the delimiters; without one, find out whether it is text and how far apart its cut points are.
    """
    rows, is_text, size = DelimiterCount(delimiter or b"\n"), True, 0
    longest = uncut = 0
    path = files.files[0].path
    stamp = listed_stamp(files.files[0]) or file_stamp(path)
    spooled = fetched.range if fetched else None
    stop = stamp[0] if files.stop is None and is_uri(path) else files.stop
    digest, tail = hashlib.sha256(), b""
    for block in read_raw(path, start=files.start, stop=stop, stamp=stamp, spooled=spooled):
        digest.update(block)
        size += len(block)
        if files.start or files.stop is not None:
            if delimiter:
                rows.add(block)
            elif is_text:
                is_text, tail = _check_utf8(tail + block)
                is_text = is_text and not is_binary(block.count(b"\0"), len(block))
                uncut = 0 if next(safe_cuts(block), None) is not None else uncut + len(block)
                longest = max(longest, uncut)
    if not is_uri(path) and file_stamp(path) != stamp:  # each answer of a store says of which version it is
        raise changed(path)
    return Hashed((digest.hexdigest(),), (stamp,), size, rows.count, is_text and not tail, longest, spooled=spooled)


def _check_utf8(text: bytes) -> tuple[bool, bytes]:
    """Tell whether a text is UTF-8 apart from a character that its end cuts, and return that character's bytes."""
    stop = len(text)
    for back in range(1, min(4, len(text)) + 1):
        lead = text[-back]
        if lead & 0xC0 != 0x80:
            if lead >= 0xC0 and back < (2 if lead < 0xE0 else 3 if lead < 0xF0 else 4):
                stop -= back
            break
    offsets = pa.py_buffer(np.array([0, stop], np.int64))
    array = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(text)])
    return as_utf8(array) is not None, text[stop:]


def _read_key(path: str) -> bytes:
    return b"".join(read_raw(path, stop=KEY_BYTES))


def _partition(
    reader: str,
    files: FileRange,
    hashed: Hashed,
    *,
    first_row: int = 0,
    field: str = "",
    head: bytes = b"",
    is_segment: bool = False,
    continues: bool = False,
) -> Partition:
    what = [first_row, field, is_segment, files.start > 0, continues, head]
    paths, names, _ = zip(*files.files, strict=True)
    return Partition(
        reader=reader,
        paths=paths,
        names=names,
        keys=_keys(reader, what, paths, hashed.digests),
        is_group=files.is_group,
        num_bytes=hashed.num_bytes,
        start=files.start,
        stop=files.stop,
        first_row=first_row,
        field=field,
        is_segment=is_segment,
        continues=continues,
        stamps=hashed.stamps,
        trusted=hashed.trusted,
        held=hashed.held,
        spooled=hashed.spooled,
    )


def _keys(reader: str, what: list[object], paths: Sequence[str], digests: Sequence[str]) -> tuple[str, ...]:
    """Hash what decides each file's documents."""
    joined = "\0".join(paths).lower()
    if not any(suffix in joined for suffix in SUFFIXES):  # of many files most groups have none
        return hash_each([reader, None, *what], digests)
    packings = [packing_of(path) for path in paths]
    return tuple(hash_parts([reader, packing, *what, one]) for packing, one in zip(packings, digests, strict=True))


def _join(reader: str, ranges: list[tuple[FileRange, Hashed]]) -> Partition:
    """Make one partition of all ranges of a file."""
    digest = hash_parts(digest for _, hashed in ranges for digest in hashed.digests)
    size = sum(hashed.num_bytes for _, hashed in ranges)
    trusted = tuple(one for _, hashed in ranges for one in hashed.trusted)
    files, first = ranges[0]
    return _partition(reader, FileRange(files.files), Hashed((digest,), first.stamps, size, trusted=trusted))
