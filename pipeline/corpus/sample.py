"""The start of a large compressed file as partitions of their own, so that a plan need not unpack all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipeline.base.cut_points import safe_cuts
from pipeline.corpus.compression import is_packed, read_start
from pipeline.corpus.files import found_file
from pipeline.corpus.partitions import Hashing, partition_delimited, partition_jsonl, partition_text

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.corpus.documents import Partition

START_BYTES = 16 << 20  # of unpacked content
TAIL_BYTES = 1 << 16  # where a text's last safe cut is searched


class FileStart(NamedTuple):
    """What is read of a compressed file."""

    partitions: list[Partition]  # of its start, unpacked
    sizes: list[float]  # bytes that each of them takes in the compressed file
    share: float  # of the compressed file's bytes


def take_start(partition: Partition, folder: Path, *, cut_safe: bool) -> FileStart | None:
    """Unpack the start of a partition that is a compressed file into `folder`; None if all of it should be read.

    Complete documents are taken, and of a text the tokens up to a safe cut. All should be read if the file has no more
    than `START_BYTES`, or no document ends there.

    Raises:
        ValueError: the file cannot be unpacked.

    """
    if len(partition.paths) != 1 or partition.reader not in ENDS or not is_packed(partition.paths[0]):
        return None
    content, packed_bytes, has_more = read_start(partition.paths[0], START_BYTES)
    stop = _last_end(partition, content)
    if not has_more or not stop:
        return None
    file = folder / f"{partition.keys[0]}{ENDS[partition.reader]}"
    file.write_bytes(memoryview(content)[:stop])
    files = [found_file(file, partition.names[0])]
    if partition.reader == "jsonl":
        found = partition_jsonl(files, field=partition.field, hashing=Hashing(1))
    elif partition.reader == "delimited":
        found = partition_delimited(files, delimiter=partition.field, hashing=Hashing(1))
    else:
        found = partition_text(files, cut_safe=cut_safe, hashing=Hashing(1))
    packed = packed_bytes * stop / len(content)
    sizes = [one.num_bytes / stop * packed for one in found]
    return FileStart(found, sizes, packed / partition.num_bytes)


ENDS = {"jsonl": ".jsonl", "delimited": ".txt", "text": ".txt"}


def _last_end(partition: Partition, content: bytes) -> int:
    """Return where the last document of a file's start ends, 0 if none does; of a text, where it may be cut."""
    if partition.reader != "text":
        delimiter = b"\n" if partition.reader == "jsonl" else partition.field.encode()
        found = content.rfind(delimiter)
        return found + len(delimiter) if found >= 0 else 0
    start = max(0, len(content) - TAIL_BYTES)
    cuts = list(safe_cuts(content[start:]))
    return start + cuts[-1] if cuts else 0
