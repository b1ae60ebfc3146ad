"""The Parquet format of a shard: the only place that reads and writes it.

A row is a window: `input_ids` and `target_ids`, `fixed_size_list<int32 not null>[max_length]`; `start`, the window's
first token in the split's token stream; `next_id`, the target of the last input, so that a reader can decode
`input_ids` alone and derive the targets by a shift; with a padded tail also `length`, the number of real tokens. After
the real tokens, `input_ids` has the end-of-text ID and `target_ids` -100, which losses ignore. Packed windows also have
`segment_lengths`, `list<int32>`: the tokens of each document in the window, in order, which add up to `length`.

Tokens are stored PLAIN under the codec: a dictionary, pyarrow's default, makes them larger and slower. A column of a
row group is one page, so that zstd finds each window in the one before; starts are stored as differences. Every page
has a checksum, which `open_shard` verifies on each read. `pipeline.shards.shard_writer` writes the pages.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.arrow import numbers_array, numbers_of
from pipeline.base.reading import open_regular
from pipeline.base.wording import counted
from pipeline.packing import Segments
from pipeline.windows import IGNORED

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.shards.entries import ShardEntry, TableEntry
    from pipeline.storage.interface import Buffer

PAGE_BYTES = 16 << 20  # fits a column of a row group; two pages would take 6 % more space at stride 1
PAGE_SLACK = 1 << 16  # bytes of page headers and levels of a column without windows, generously
ZSTD_LEVEL = 1  # level 3 saves less than 2 % and takes 1.5 times as long


class Columns(NamedTuple):
    """A decoded row group."""

    inputs: np.ndarray | None  # int32 [B, L]; None if the IDs were not asked for
    next_ids: np.ndarray  # int32 [B]
    starts: np.ndarray  # int64 [B]
    lengths: np.ndarray  # int32 [B]
    segments: Segments | None  # of packed windows


def shard_schema(max_length: int, *, padded: bool, packed: bool = False) -> pa.Schema:
    """Return the columns of a shard."""
    ids = pa.list_(pa.field("element", pa.int32(), nullable=False), max_length)
    fields = [("input_ids", ids), ("target_ids", ids), ("start", pa.int64()), ("next_id", pa.int32())]
    if padded:
        fields.append(("length", pa.int32()))
    if packed:
        fields.append(("segment_lengths", pa.list_(pa.field("element", pa.int32(), nullable=False))))
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


def group_table(
    ids_BT1: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    segments: Segments | None = None,
    *,
    padded: bool,
    scratch_2BT: np.ndarray | None = None,
) -> pa.Table:
    """Return the rows of one row group: ids_BT1 int32 [B, L + 1], starts int64 [B], lengths int32 [B].

    Disjoint windows that are contiguous in memory are not copied. For all others each column is copied once, into
    `scratch_2BT`, int32 [2, B or more, L], if it is given: the table is then valid until that is used again. A copy
    into reused memory takes a third of the time.
    """
    max_length = ids_BT1.shape[1] - 1
    short = np.flatnonzero(lengths < max_length)
    inputs_BT, targets_BT = ids_BT1[:, :-1], ids_BT1[:, 1:]
    if len(short) or segments is not None or not inputs_BT.flags.c_contiguous:
        if scratch_2BT is None:
            scratch_2BT = np.empty((2, len(starts), max_length), np.int32)
        rows = len(starts)
        if ids_BT1.strides[0] == ids_BT1.strides[1] and not len(short):
            # Stride 1: a window's targets are the next window's inputs, so both columns share one copy.
            rows_BT = scratch_2BT.reshape(-1, max_length)
            rows_BT[:rows], rows_BT[rows] = inputs_BT, targets_BT[-1]
            inputs_BT, targets_BT = rows_BT[:rows], rows_BT[1 : rows + 1]
        else:
            scratch_2BT[0, :rows], scratch_2BT[1, :rows] = inputs_BT, targets_BT
            inputs_BT, targets_BT = scratch_2BT[:, :rows]
    if len(short):
        after_BT = np.arange(max_length) >= lengths[short, None]
        targets_BT[short] = np.where(after_BT, IGNORED, targets_BT[short])
    if segments is not None:
        targets_BT.reshape(-1)[segments.last_positions(max_length)] = IGNORED
    schema = shard_schema(max_length, padded=padded, packed=segments is not None)
    columns = [
        pa.FixedSizeListArray.from_arrays(numbers_array(inputs_BT.reshape(-1)), type=schema.field("input_ids").type),
        pa.FixedSizeListArray.from_arrays(numbers_array(targets_BT.reshape(-1)), type=schema.field("target_ids").type),
        numbers_array(starts),
        numbers_array(targets_BT[:, -1]),
    ]
    if padded:
        columns.append(numbers_array(lengths))
    if segments is not None:
        offsets = numbers_array(np.concatenate([np.zeros(1, np.int32), segments.ends.astype(np.int32)]))
        kind = schema.field("segment_lengths").type
        columns.append(pa.ListArray.from_arrays(offsets, numbers_array(segments.sizes), type=kind))
    return pa.Table.from_arrays(columns, schema=schema)


def find_footer(path: Path) -> tuple[int, bytes]:
    """Return where a Parquet file's footer starts and the bytes from there to its end; nothing is parsed.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        ValueError: it is not a Parquet file.

    """
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        tail = file.read(8)
        start = size - 8 - int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or start < 4:
            raise ValueError("it is not a Parquet file")
        file.seek(start)
        return start, file.read(size - start)


def read_footer_bytes(path: Path, entry: ShardEntry | TableEntry) -> bytes:
    """Read a file's footer and compare it with the manifest, before anything parses it.

    Parquet has no checksum for a footer, and a flipped bit in it can end the process inside the library. The manifest
    has the footer's hash. Of a shard of release 0.1.0 it has only the hash of the complete file, which is then read
    once (0.1 s for 64 MiB).

    Raises:
        OSError: the file cannot be read, or is not a regular file.
        ValueError: it is not the file of the manifest; the message does not name it.

    """
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        if size != entry.bytes:
            raise ValueError(f"it has {size:,} bytes; the manifest says {entry.bytes:,}")
        file.seek(entry.footer_start or 0)
        content = file.read() if entry.footer_sha256 else b""
        digest = hashlib.sha256(content) if entry.footer_sha256 else hashlib.file_digest(file, "sha256")
    compare_hash(digest.hexdigest(), entry)
    return content or find_footer(path)[1]


def check_footer_bytes(content: Buffer, entry: ShardEntry | TableEntry) -> memoryview:
    """Compare the bytes of a file from `entry.footer_start` on with the manifest, and return its footer.

    Raises:
        ValueError: they are not those of the manifest.

    """
    compare_hash(hashlib.sha256(content).hexdigest(), entry)
    view = memoryview(content)
    return view if entry.footer_sha256 else view[-8 - int.from_bytes(view[-8:-4], "little") :]


def compare_hash(digest: str, entry: ShardEntry | TableEntry) -> None:
    """Raise ValueError if the hash of a file's footer, or of the complete file, is not that of the manifest."""
    if digest != (entry.footer_sha256 or entry.sha256):
        part = "its footer does" if entry.footer_sha256 else "it does"
        raise ValueError(f"{part} not have the sha256 of the manifest: it was changed, or is another file")


def read_footer(path: Path, entry: ShardEntry, schema: pa.Schema) -> pq.FileMetaData:
    """Read a shard's footer as `read_footer_bytes` does, and compare what it says with the manifest."""
    footer = pq.read_metadata(pa.BufferReader(read_footer_bytes(path, entry)))
    check_footer(footer, entry, schema)
    return footer


def check_footer(footer: pq.FileMetaData, entry: ShardEntry, schema: pa.Schema) -> None:
    """Compare what a footer says with the manifest, so that no number in it becomes an allocation unchecked.

    Raises:
        ValueError: it has other columns, row groups or sizes.

    """
    max_length = schema.field("input_ids").type.list_size
    if not footer.schema.to_arrow_schema().equals(schema):
        raise ValueError(f"it has other columns than a shard of max_length {max_length}")
    found = footer.num_row_groups
    if found != len(entry.row_groups):
        raise ValueError(f"it has {counted(found, 'row group')}, but {len(entry.row_groups):,} by the manifest")
    offset = 4
    for number, count in enumerate(entry.row_groups):
        group = footer.row_group(number)
        if group.num_rows != count:
            raise ValueError(
                f"its row group {number} has {counted(group.num_rows, 'window')}, but {count:,} by the manifest"
            )
        for index in range(group.num_columns):
            column = group.column(index)
            if column.data_page_offset != offset or column.has_dictionary_page:
                raise ValueError("its columns do not follow one another")
            offset += column.total_compressed_size
            if column.total_uncompressed_size > 8 * count * max_length + PAGE_SLACK:
                raise ValueError(f"its row group {number} has more bytes than its windows need")


def open_shard(path: Path | pa.PythonFile, *, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open a shard so that reading a page verifies its checksum. A footer that was read before is not read again."""
    return pq.ParquetFile(path, metadata=footer, page_checksum_verification=True)


def read_columns(file: pq.ParquetFile, group: int, *, with_ids: bool = True) -> Columns:
    """Decode a row group; nothing is copied.

    Decoding uses one thread: readers that want more decode several row groups at once. `with_ids=False` does not decode
    the inputs.

    Raises:
        OSError: a page's checksum does not match its bytes.
        ValueError: the segments of a packed window do not add up to its length.

    """
    schema = file.schema_arrow
    padded, packed = "length" in schema.names, "segment_lengths" in schema.names
    names = [name for name in schema.names if name != "target_ids" and (with_ids or name != "input_ids")]
    table = file.read_row_group(group, columns=names, use_threads=False)
    max_length = schema.field("input_ids").type.list_size
    inputs_BT = None
    if with_ids:
        inputs_BT = numbers_of(_one_chunk(table.column("input_ids")).flatten()).reshape(-1, max_length)
    lengths = (
        numbers_of(_one_chunk(table.column("length"))) if padded else np.full(table.num_rows, max_length, np.int32)
    )
    starts, next_ids = (numbers_of(_one_chunk(table.column(name))) for name in ("start", "next_id"))
    segments = read_segments(table, lengths, (next_ids != IGNORED) & (lengths == max_length)) if packed else None
    return Columns(inputs_BT, next_ids, starts, lengths, segments)


def read_segments(table: pa.Table, lengths: np.ndarray, continued: np.ndarray) -> Segments:
    """Return the segments of packed windows.

    Raises:
        ValueError: they do not add up to the windows' lengths.

    """
    column = _one_chunk(table.column("segment_lengths"))
    sizes = numbers_of(column.flatten())
    segments = Segments(sizes, np.cumsum(numbers_of(column.value_lengths()), dtype=np.int64), continued)
    if (sizes < 1).any() or (segments.lengths != lengths).any():
        raise ValueError("segment_lengths do not add up to the windows' lengths")
    return segments


def _one_chunk(column: pa.ChunkedArray) -> Any:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which always copies
