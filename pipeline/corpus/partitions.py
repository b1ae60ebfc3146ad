"""Files to input splits: what one task reads, and the hash by which finished work is found again.

Files under `SMALL_BYTES` are grouped; a group ends where the hash of a file's name says so, not where its size does, so
that a file which grows, comes or goes changes its own group and no other. A larger file is a split of its own, and one
over `PARTITION_BYTES` is cut at the first safe place behind each multiple of it (of half of it, where that gives few):
JSON lines behind a line feed; a long text before an ASCII space that follows a character which is not white space, if
the tokenizer allows it, all of the text is UTF-8, and no stretch of it without such a place is too long to hold in
memory. A compressed file is never cut.

Every byte is hashed, by all workers, before anything is tokenized: 1.8 GB/s on each core.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.base.cut_points import safe_cuts
from pipeline.corpus.compression import is_packed, read_raw
from pipeline.corpus.documents import BATCH_BYTES, KEY_BYTES, MAX_BUFFERED_BYTES, Partition, as_utf8, hash_parts
from pipeline.executor.local import run_tasks

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    FindCut = Callable[[Path, int], int | None]

PARTITION_BYTES = 16 << 20  # large enough to amortize a chunk's files, small enough to keep all workers busy to the end
MANY = 16  # a file of fewer splits is cut into pieces of half that size: the last ones leave fewer workers idle
SMALL_BYTES = 1 << 20
GROUP_FILES = 64  # in a group, on average
MAX_GROUP_FILES = 1024

File = tuple[Path, str]


@dataclass(frozen=True, slots=True)
class FileRange:
    """Files of a group, or a byte range of one file, before it is hashed."""

    files: tuple[File, ...]
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True, slots=True)
class Hashed:
    """What reading all bytes of a part says of it."""

    digest: str
    newlines: int
    is_utf8: bool
    longest: int  # bytes of consecutive blocks in none of which a text may be cut
    stamps: tuple[tuple[int, int], ...]
    num_bytes: int


def partition_text(files: Sequence[File], *, cut_safe: bool, workers: int) -> list[Partition]:
    """The splits of plain text files, one document each."""
    splits: list[Partition] = []
    for parts in _plan("text", files, find_text_cut if cut_safe else None, workers):
        # Else its reader, which holds the text from one cut to the next, finds what is wrong and leaves out the whole.
        is_sound = all(hashed.is_utf8 and hashed.longest <= MAX_BUFFERED_BYTES - 2 * BATCH_BYTES for _, hashed in parts)
        if len(parts) > 1 and not is_sound:
            splits.append(_whole("text", parts))
            continue
        head = _head(parts[0][0].files[0][0]) if len(parts) > 1 else b""
        splits += [
            _split("text", part, hashed, head=head, is_piece=len(parts) > 1, goes_on=part.stop is not None)
            for part, hashed in parts
        ]
    return splits


def partition_jsonl(files: Sequence[File], *, field: str, workers: int) -> list[Partition]:
    """The splits of files with a JSON object on each line."""
    splits = []
    for parts in _plan("jsonl", files, find_line, workers):
        row = 0
        for part, hashed in parts:
            splits.append(_split("jsonl", part, hashed, first_row=row, field=field))
            row += hashed.newlines
    return splits


def check_unchanged(split: Partition) -> None:
    """ValueError if a file of the split is not as it was when it was hashed, by its size and time of change."""
    for path, stamp in zip(split.paths, split.stamps, strict=bool(split.stamps)):
        if file_stamp(Path(path)) != stamp:
            raise ValueError(f"{path}: was changed while this run was reading it; run again when it is at rest")


def find_line(path: Path, at: int) -> int | None:
    """The first byte of the first line that begins behind byte `at - 1` of a file; None if there is none."""
    place = at - 1
    for block in read_raw(path, start=place):
        if (found := block.find(b"\n")) >= 0:
            return place + found + 1
        place += len(block)
    return None


def find_text_cut(path: Path, at: int) -> int | None:
    """The first place behind byte `at` of a file before which a text may be cut; None if there is none."""
    held, place = b"", at
    for block in read_raw(path, start=at):
        held += block
        if (found := next(safe_cuts(held), None)) is not None:
            return place + found
        place, held = place + len(held) - 4, held[-4:]  # a character has at most four bytes
    return None


def _plan(
    reader: str, files: Sequence[File], find_cut: FindCut | None, workers: int
) -> Iterator[list[tuple[FileRange, Hashed]]]:
    """For each group of files and for each larger file its parts, hashed."""
    groups = list(_parts(files, find_cut))
    hashed = run_tasks(partial(_hash_part, check=reader == "text"), (p for g in groups for p in g), workers=workers)
    for group in groups:
        yield [(part, next(hashed)) for part in group]
    assert next(hashed, None) is None, "each part is hashed once"


def _parts(files: Sequence[File], find_cut: FindCut | None) -> Iterator[list[FileRange]]:
    group: list[File] = []
    for path, name in files:
        size = _stat(path).st_size
        small = size < SMALL_BYTES
        if group and (not small or len(group) == MAX_GROUP_FILES or _ends_group(name)):
            yield [FileRange(tuple(group))]
            group = []
        if small:
            group.append((path, name))
        else:
            yield _ranges(path, name, size, find_cut)
    if group:
        yield [FileRange(tuple(group))]


def _ends_group(name: str) -> bool:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % GROUP_FILES == 0


def _ranges(path: Path, name: str, size: int, find_cut: FindCut | None) -> list[FileRange]:
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


def _hash_part(part: FileRange, *, check: bool) -> Hashed:
    """Hash a part; if it is a range of a text that may be cut, look whether it is UTF-8 and where it may be cut."""
    digest, newlines, is_utf8, size = hashlib.sha256(), 0, True, 0
    stamps = []
    longest = uncut = 0
    for path, _ in part.files:
        stamps.append(file_stamp(path))
        tail = b""
        for block in read_raw(path, start=part.start, stop=part.stop):
            digest.update(block)
            size += len(block)
            if part.start or part.stop is not None:
                newlines += int(np.count_nonzero(np.frombuffer(block, np.uint8) == ord("\n")))
                if check and is_utf8:
                    is_utf8, tail = _check_utf8(tail + block)
                    uncut = 0 if next(safe_cuts(block), None) is not None else uncut + len(block)
                    longest = max(longest, uncut)
        digest.update(size.to_bytes(8, "little"))  # where a file ends
        is_utf8 = is_utf8 and not tail
        if file_stamp(path) != stamps[-1]:
            raise ValueError(f"{path}: was changed while this run was reading it; run again when it is at rest")
    return Hashed(digest.hexdigest(), newlines, is_utf8, longest, tuple(stamps), size)


def _check_utf8(text: bytes) -> tuple[bool, bytes]:
    """Whether a text is UTF-8 but for a character that its end cuts, and that character's bytes."""
    whole = len(text)
    for back in range(1, min(4, len(text)) + 1):
        lead = text[-back]
        if lead & 0xC0 != 0x80:
            if lead >= 0xC0 and back < (2 if lead < 0xE0 else 3 if lead < 0xF0 else 4):
                whole -= back
            break
    offsets = pa.py_buffer(np.array([0, whole], np.int64))
    array = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(text)])
    return as_utf8(array) is not None, text[whole:]


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(KEY_BYTES)


def _split(
    reader: str,
    part: FileRange,
    hashed: Hashed,
    *,
    first_row: int = 0,
    field: str = "",
    head: bytes = b"",
    is_piece: bool = False,
    goes_on: bool = False,
) -> Partition:
    names = tuple(name for _, name in part.files)
    place = [first_row, field, is_piece, part.start > 0, goes_on, head]
    return Partition(
        reader=reader,
        paths=tuple(str(path) for path, _ in part.files),
        names=names,
        identity=hash_parts([reader, len(names), *names, *place, hashed.digest]),
        num_bytes=hashed.num_bytes,
        start=part.start,
        stop=part.stop,
        first_row=first_row,
        field=field,
        is_piece=is_piece,
        goes_on=goes_on,
        stamps=hashed.stamps,
    )


def _whole(reader: str, parts: list[tuple[FileRange, Hashed]]) -> Partition:
    digest = hash_parts(hashed.digest for _, hashed in parts)
    size = sum(hashed.num_bytes for _, hashed in parts)
    first = parts[0][1]
    return _split(reader, FileRange(parts[0][0].files), Hashed(digest, 0, False, 0, first.stamps, size))


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


def file_stamp(path: Path) -> tuple[int, int]:
    """A file's size and time of change: by this alone a change during the run is seen."""
    status = _stat(path)
    return status.st_size, status.st_mtime_ns
