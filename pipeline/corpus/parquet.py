"""Read Parquet files: row groups are partitions, and one text column holds the documents.

Only the text column is read and hashed, so other columns cost nothing and may change. Row groups are read page by page
in bounded memory; page checksums are verified if the file has them.

Cost: decoding 300 MB/s to 2 GB/s on one core, hashing 1.8 GB/s of the compressed column.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpus.compression import read_raw
from pipeline.corpus.documents import BATCH_BYTES, DocumentBatch, Partition, hash_parts
from pipeline.corpus.fields import as_binary, find_text, pick_column
from pipeline.corpus.hashed import file_stamp
from pipeline.corpus.opened import open_raw
from pipeline.corpus.partitions import PARTITION_BYTES
from pipeline.corpus.signatures import SIGNATURE_BYTES, describe_content
from pipeline.executor.local import run_tasks
from pipeline.storage.names import is_uri

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.corpus.files import FoundFile

LOG = logging.getLogger(__name__)
MAX_BATCH_ROWS = 1 << 16
MAX_DECODED_BYTES = 128 << 20  # that a batch may have if each of its rows were the longest one
MAX_DELTA_ROWS = 64
# Prints a dot for each file of which all that `_row_groups` asks can be read, or is refused by an exception.
READ_FOOTERS = """
import os, sys
import pyarrow.parquet as pq
print("started", flush=True)
for name in sys.stdin.buffer.read().split(b"\\0"):
    try:
        with pq.ParquetFile(os.fsdecode(name)) as file:
            file.schema_arrow
            for group in range(file.metadata.num_row_groups):
                for column in range(file.metadata.num_columns):
                    file.metadata.row_group(group).column(column).encodings
    except Exception:
        pass
    sys.stdout.write(".")
    sys.stdout.flush()
"""


@dataclass(frozen=True, slots=True)
class RowGroups:
    """Consecutive row groups of a file, before they are hashed."""

    path: str
    name: str
    field: str
    kind: str  # the column's type, as Arrow names it
    start: int
    stop: int
    first_row: int
    rows: int
    ranges: tuple[tuple[int, int, str], ...]  # the text column's offset and size in each row group, and its codec


def partition_parquet(files: Sequence[FoundFile], *, field: str, workers: int) -> list[Partition]:
    """Divide Parquet files into partitions: row groups with about `PARTITION_BYTES` of compressed text.

    Raises:
        ValueError: a file is not Parquet, or has no text column `field`; the message names its columns.

    """
    _try_footers([file.path for file in files])
    drafts = [draft for file in files for draft in _row_groups(file.path, file.name, field)]
    return list(run_tasks(_hash_row_groups, drafts, workers=workers))


def _try_footers(paths: Sequence[str]) -> None:
    """Read all footers in another process: a damaged one may end the process that reads it, without an exception.

    Raises:
        ValueError: a footer has done so; the message names the file.

    """
    with tempfile.TemporaryDirectory(prefix="stridemill-") as folder:
        _try_local(paths, [_fetch_footer(path, Path(folder, str(at))) for at, path in enumerate(paths)])


def _fetch_footer(path: str, copy: Path) -> str:
    """Return a file with the footer of one that is in an object store, or the path of one that is not."""
    if not is_uri(path):
        return path
    try:
        with open_raw(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 8))
            length = min(size, int.from_bytes((file.read(8) or b"")[:4], "little") + 8)
            file.seek(size - length)
            with copy.open("wb") as target:
                target.write(b"PAR1")
                while part := file.read(1 << 20):
                    target.write(part)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    return str(copy)


def _try_local(paths: Sequence[str], files: Sequence[str]) -> None:
    names = b"\0".join(os.fsencode(file) for file in files)
    done = subprocess.run(  # noqa: S603 - this interpreter and a program of ours
        [sys.executable, "-c", READ_FOOTERS], input=names, capture_output=True, check=False
    )
    read = done.stdout.count(b".")
    if done.returncode < 0 and done.stdout and read < len(paths):  # a signal, after it started
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        why = f": {lines[-1][:200]}" if lines else ""
        what = f"the process that reads it ended with signal {-done.returncode}{why}"
        raise ValueError(f"{paths[read]}: damaged: its footer cannot be read ({what}); write the file again")


def read_parquet(partition: Partition) -> Iterator[DocumentBatch]:
    """Yield the documents of some row groups, null if the field is null, in batches of about `BATCH_BYTES`.

    The file is named in the run's log before: a damaged page may end the process without an exception.
    """
    (path,) = partition.paths
    assert partition.stop is not None, "a partition of Parquet names its row groups"
    LOG.info("reading %s, row groups %d to %d", path, partition.start, partition.stop - 1)
    row = partition.first_row
    try:
        with _open(path) as file:
            names, _ = find_text(file.schema_arrow, partition.field, path)
            for group in range(partition.start, partition.stop):
                rows = _batch_rows(file, path, group, names)
                columns = [".".join(names)]
                for batch in file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
                    for texts in _slice(pick_column(batch, names)):
                        numbers = np.arange(row, row + len(texts), dtype=np.int64)
                        yield DocumentBatch(texts=texts, sources=np.zeros(len(texts), np.int32), rows=numbers)
                        row += len(texts)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read after row {row}: {error}; write the file again") from error


def _batch_rows(file: Any, path: str, group: int, names: tuple[str, ...]) -> int:
    """Return how many rows to decode at once.

    A file states how many bytes a column has before decompression, but a value that is in a dictionary counts once,
    however often it occurs, and a delta encoding shares prefixes. So the longest value of the dictionary decides, too.
    """
    chunk = file.metadata.row_group(group).column(_leaf(file.metadata, names))
    rows = file.metadata.row_group(group).num_rows * BATCH_BYTES // max(1, chunk.total_uncompressed_size)
    encodings = set(chunk.encodings)
    if encodings & {"RLE_DICTIONARY", "PLAIN_DICTIONARY"}:
        with _open(path, read_dictionary=[".".join(names)]) as other:
            batches = other.iter_batches(1, row_groups=[group], columns=[".".join(names)], use_threads=False)
            first = next(iter(batches), None)
        column = None if first is None else pick_column(first, names)
        if column is not None and pa.types.is_dictionary(column.type) and len(column.dictionary):
            rows = min(rows, MAX_DECODED_BYTES // max(1, pc.max(pc.binary_length(column.dictionary)).as_py() or 1))
    if "DELTA_BYTE_ARRAY" in encodings:
        rows = min(rows, MAX_DELTA_ROWS)
    return int(max(1, min(MAX_BATCH_ROWS, rows)))


def _slice(column: Any) -> Iterator[Any]:
    """Yield a column in parts of about `BATCH_BYTES` of text, or of a single row, as large_binary."""
    if pa.types.is_dictionary(column.type):  # a value may occur often
        sizes = pc.binary_length(as_binary(column.dictionary)).take(column.indices)
    else:
        sizes = pc.binary_length(as_binary(column))
    ends = np.cumsum(np.asarray(sizes.fill_null(0).to_numpy(zero_copy_only=False), np.int64))
    start = 0
    while start < len(column):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + BATCH_BYTES, side="right")))
        yield as_binary(column.slice(start, stop - start))
        start = stop


def _row_groups(path: str, name: str, field: str) -> Iterator[RowGroups]:
    try:
        with _open(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        head = next(read_raw(path, stop=min(file_stamp(path)[0], SIGNATURE_BYTES)), b"")
        what = describe_content(head) if not head.startswith(b"PAR1") else ""
        raise ValueError(f"{path}: is not a complete Parquet file: {what or error}") from error
    names, kind = find_text(schema, field, path)
    column = _leaf(metadata, names)
    start = first_row = rows = size = 0
    ranges: list[tuple[int, int, str]] = []
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group).column(column)
        offsets = [at for at in (chunk.dictionary_page_offset, chunk.data_page_offset) if at is not None]
        ranges.append((min(offsets), chunk.total_compressed_size, chunk.compression))
        rows += metadata.row_group(group).num_rows
        size += chunk.total_compressed_size
        if size >= PARTITION_BYTES or group == metadata.num_row_groups - 1:
            yield RowGroups(path, name, field, str(kind), start, group + 1, first_row, rows, tuple(ranges))
            start, first_row, rows, size, ranges = group + 1, first_row + rows, 0, 0, []


def _hash_row_groups(draft: RowGroups) -> Partition:
    digest = hashlib.sha256()
    stamp = file_stamp(draft.path)
    for offset, size, codec in draft.ranges:
        digest.update(f"{size} {codec} ".encode())
        for block in read_raw(draft.path, start=offset, stop=offset + size):
            digest.update(block)
    what = [draft.field, draft.kind, draft.first_row, draft.rows]
    return Partition(
        reader="parquet",
        paths=(str(draft.path),),
        names=(draft.name,),
        keys=(hash_parts(["parquet", *what, digest.hexdigest()]),),
        num_bytes=sum(size for _, size, _ in draft.ranges),
        start=draft.start,
        stop=draft.stop,
        first_row=draft.first_row,
        field=draft.field,
        stamps=(stamp,),
    )


def _open(path: str, **more: Any) -> Any:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path}: its name is not UTF-8, and Arrow cannot open such a file; rename it") from None
    # buffer_size: reads page by page; without it Arrow reads a row group's complete column at once
    source = pa.PythonFile(open_raw(path), "r") if is_uri(path) else path
    return pq.ParquetFile(source, buffer_size=1 << 20, page_checksum_verification=True, **more)


def _leaf(metadata: Any, names: tuple[str, ...]) -> int:
    """Return the number of the column with these names; below one of the type null it is that one."""
    columns = [metadata.schema.column(at) for at in range(metadata.num_columns)]
    found = [at for at, one in enumerate(columns) if (one.path, one.name) == (".".join(names), names[-1])]
    return found[0]
