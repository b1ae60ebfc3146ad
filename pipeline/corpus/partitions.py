"""Divide files into partitions: what one task reads, and the hash by which finished work is found again.

Files under `SMALL_BYTES` are grouped. Each is known by its own hash, so the groups only decide how many tasks there
are; the hash of a file's content ends a group. A larger file is a partition of its own. One over `PARTITION_BYTES` is
cut at the first cut point after each multiple of it (of half of it, if that gives few): lines and delimited documents,
and a long text before an ASCII space that follows a character other than white space. A text is cut only if the
tokenizer allows it, all of it is UTF-8, and every span between cut points fits into memory. A compressed file is never
cut.

All workers together hash every byte before anything is tokenized: 1.8 GB/s on each core.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.base.cut_points import safe_cuts
from pipeline.corpus.compression import is_packed, packing_of, read_raw
from pipeline.corpus.delimited import DelimiterCount, find_delimiter
from pipeline.corpus.documents import BATCH_BYTES, KEY_BYTES, MAX_BUFFERED_BYTES, Partition, as_utf8, hash_parts
from pipeline.corpus.signatures import is_binary
from pipeline.executor.local import run_tasks

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    FindCut = Callable[[Path, int], int | None]

PARTITION_BYTES = 16 << 20  # large enough to amortize a chunk's files, small enough to keep all workers busy to the end
MANY = 16  # a file of fewer partitions is cut into ones of half that size: fewer workers are idle at the end
SMALL_BYTES = 1 << 20
GROUP_FILES = 64  # files in a group, on average
MAX_GROUP_FILES = 256

File = tuple[Path, str]


@dataclass(frozen=True, slots=True)
class FileRange:
    """Files of a group, or a byte range of one file, before it is hashed."""

    files: tuple[File, ...]
    start: int = 0
    stop: int | None = None
    is_group: bool = False  # complete small files


@dataclass(frozen=True, slots=True)
class Hashed:
    """What reading all bytes of a file range shows."""

    digests: tuple[str, ...]  # of each file
    num_rows: int  # that end in a range of a file: lines, or documents with a delimiter after them
    is_text: bool  # UTF-8, and no block is binary
    longest: int  # most bytes of consecutive blocks without a cut point
    stamps: tuple[tuple[int, int], ...]
    num_bytes: int


def partition_text(files: Sequence[File], *, cut_safe: bool, workers: int) -> list[Partition]:
    """Divide plain text files, one document each."""
    partitions: list[Partition] = []
    for ranges in _hash_ranges(files, find_text_cut if cut_safe else None, workers):
        # Otherwise one reader, which buffers the text between two cuts, finds the problem and rejects the document.
        longest = MAX_BUFFERED_BYTES - 2 * BATCH_BYTES
        if len(ranges) > 1 and not all(hashed.is_text and hashed.longest <= longest for _, hashed in ranges):
            partitions.append(_join("text", ranges))
            continue
        head = _read_key(ranges[0][0].files[0][0]) if len(ranges) > 1 else b""
        partitions += [
            _partition("text", one, hashed, head=head, is_segment=len(ranges) > 1, continues=one.stop is not None)
            for one, hashed in ranges
        ]
    return partitions


def partition_jsonl(files: Sequence[File], *, field: str, workers: int) -> list[Partition]:
    """Divide files with a JSON object on each line."""
    return _partition_rows("jsonl", files, field=field, delimiter=b"\n", workers=workers)


def partition_delimited(files: Sequence[File], *, delimiter: str, workers: int) -> list[Partition]:
    """Divide plain text files with several documents, and a delimiter between two of them."""
    return _partition_rows("delimited", files, field=delimiter, delimiter=delimiter.encode(), workers=workers)


def _partition_rows(
    reader: str, files: Sequence[File], *, field: str, delimiter: bytes, workers: int
) -> list[Partition]:
    partitions = []
    for ranges in _hash_ranges(files, partial(find_delimiter, delimiter=delimiter), workers, delimiter=delimiter):
        row = 0
        for one, hashed in ranges:
            partitions.append(_partition(reader, one, hashed, first_row=row, field=field))
            row += hashed.num_rows
    return partitions


def check_unchanged(partition: Partition) -> None:
    """Raise a ValueError if a file's size or modification time is not what it was when the file was hashed."""
    for path, stamp in zip(partition.paths, partition.stamps, strict=bool(partition.stamps)):
        if file_stamp(Path(path)) != stamp:
            raise _changed(path)


def find_text_cut(path: Path, at: int) -> int | None:
    """Return the first offset after byte `at` of a file at which a text may be cut; None if there is none."""
    buffered, offset = b"", at
    for block in read_raw(path, start=at):
        buffered += block
        if (found := next(safe_cuts(buffered), None)) is not None:
            return offset + found
        offset, buffered = offset + len(buffered) - 4, buffered[-4:]  # a character has at most four bytes
    return None


def _hash_ranges(
    files: Sequence[File], find_cut: FindCut | None, workers: int, *, delimiter: bytes | None = None
) -> Iterator[list[tuple[FileRange, Hashed]]]:
    """Yield the hashed ranges of each group of small files and of each larger file; see `_hash_range`."""
    groups = list(_group_files(files, find_cut))
    ranges = (one for group in groups for one in group)
    hashed = run_tasks(partial(_hash_range, delimiter=delimiter), ranges, workers=workers)
    for group in groups:
        found = [(one, next(hashed)) for one in group]
        if found[0][0].is_group:
            yield from ([one] for one in _divide_group(*found[0]))
        else:
            yield found
    assert next(hashed, None) is None, "each range is hashed once"


def _group_files(files: Sequence[File], find_cut: FindCut | None) -> Iterator[list[FileRange]]:
    """Yield consecutive small files together, and the ranges of each larger one."""
    group: list[File] = []
    for path, name in files:
        size = _stat(path).st_size
        small = size < SMALL_BYTES
        if group and (not small or len(group) == MAX_GROUP_FILES):
            yield [FileRange(tuple(group), is_group=True)]
            group = []
        if small:
            group.append((path, name))
        else:
            yield _cut_file(path, name, size, find_cut)
    if group:
        yield [FileRange(tuple(group), is_group=True)]


def _divide_group(files: FileRange, hashed: Hashed) -> Iterator[tuple[FileRange, Hashed]]:
    """Divide small files after each whose content's hash says so: a file that is added or removed moves few borders."""
    start = 0
    for stop, digest in enumerate(hashed.digests, 1):
        if int(digest[:8], 16) % GROUP_FILES == 0 or stop == len(hashed.digests):
            chosen = slice(start, stop)
            stamps = hashed.stamps[chosen]
            yield (
                FileRange(files.files[chosen], is_group=True),
                replace(hashed, digests=hashed.digests[chosen], stamps=stamps, num_bytes=sum(n for n, _ in stamps)),
            )
            start = stop


def _cut_file(path: Path, name: str, size: int, find_cut: FindCut | None) -> list[FileRange]:
    cuts = [0]
    if find_cut and not is_packed(path):
        step = at = PARTITION_BYTES if size >= MANY * PARTITION_BYTES else PARTITION_BYTES // 2
        while at + step // 2 < size:
            cut = find_cut(path, at)
            if cut is None or cut >= size:
                break
            cuts.append(cut)
            at = (cut // step + 1) * step
    stops: list[int | None] = [*cuts[1:], None]
    return [FileRange(((path, name),), start, stop) for start, stop in zip(cuts, stops, strict=True)]


def _hash_range(files: FileRange, *, delimiter: bytes | None) -> Hashed:
    """Hash a range of a file, or a group of files.

    In a range count the delimiters; without one, find out whether it is text and how far apart its cut points are.
    """
    rows, is_text, size = DelimiterCount(delimiter or b"\n"), True, 0
    stamps, digests = [], []
    longest = uncut = 0
    for path, _ in files.files:
        stamps.append(file_stamp(path))
        digest, tail = hashlib.sha256(), b""
        for block in read_raw(path, start=files.start, stop=files.stop):
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
        digests.append(digest.hexdigest())
        is_text = is_text and not tail
        if file_stamp(path) != stamps[-1]:
            raise _changed(path)
    return Hashed(tuple(digests), rows.count, is_text, longest, tuple(stamps), size)


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


def _read_key(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(KEY_BYTES)


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
    return Partition(
        reader=reader,
        paths=tuple(str(path) for path, _ in files.files),
        names=tuple(name for _, name in files.files),
        keys=tuple(
            hash_parts([reader, packing_of(path), *what, digest])
            for (path, _), digest in zip(files.files, hashed.digests, strict=True)
        ),
        is_group=files.is_group,
        num_bytes=hashed.num_bytes,
        start=files.start,
        stop=files.stop,
        first_row=first_row,
        field=field,
        is_segment=is_segment,
        continues=continues,
        stamps=hashed.stamps,
    )


def _join(reader: str, ranges: list[tuple[FileRange, Hashed]]) -> Partition:
    """Make one partition of all ranges of a file."""
    digest = hash_parts(digest for _, hashed in ranges for digest in hashed.digests)
    size = sum(hashed.num_bytes for _, hashed in ranges)
    files, first = ranges[0]
    return _partition(reader, FileRange(files.files), Hashed((digest,), 0, False, 0, first.stamps, size))


def _changed(path: str | Path) -> ValueError:
    return ValueError(f"{path}: was changed while this run was reading it; run again once it no longer changes")


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


def file_stamp(path: Path) -> tuple[int, int]:
    """Return a file's size and modification time: they alone show a change during the run."""
    status = _stat(path)
    return status.st_size, status.st_mtime_ns
