"""Read the input IDs of a row group in a third of the time of Parquet's reader, which decodes two levels for each ID.

All windows of a split have as many tokens, so the levels of its pages say nothing. Which bytes these levels are is not
computed but learnt: Parquet's reader decodes the first row group of each size, and where the next page has the same
levels and sizes, its IDs are the bytes after them. Levels are decoded from nothing but these bytes and the number of
values, so what the reader would return is known.

Whatever is not exactly such a page is left to Parquet's reader, which decodes it or says what is wrong: several pages,
another codec or header, a checksum that does not match. Nothing is allocated or read beyond what the footer states,
whose numbers are compared with the manifest (`check_footer`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from pipeline.shards.format import read_columns
from pipeline.shards.pages import HEADER_BYTES, PACKED, UNPACKED, parse_header

if TYPE_CHECKING:
    import pyarrow.parquet as pq

    from pipeline.shards.format import Columns

CHECKSUM = 4  # number of a header's field
CODECS = {"ZSTD": "zstd", "UNCOMPRESSED": None}
SIZES_KEPT = 16  # row groups of so many sizes; of usual data sets there are two
ENDS = (b"\x00\x00", b"\x1c\x00\x00\x00")  # of a header; the second has a struct of no statistics

Read: TypeAlias = Callable[[int, int], "bytes | memoryview"]


class IdPage(NamedTuple):
    """The page of a row group's input IDs."""

    levels: bytes
    inputs: np.ndarray  # int32 [B, L]


class IdPages:
    """Read row groups of one split; remember which levels their pages have. Many threads may use it at once."""

    def __init__(self) -> None:
        self._levels: dict[int, bytes] = {}  # by the windows of a row group

    def read_columns(self, file: pq.ParquetFile, group: int, read: Read) -> Columns:
        """Decode a row group as `format.read_columns` does.

        Args:
            file: the shard.
            group: the number of its row group.
            read: returns bytes of the shard's file: (from where on, how many); fewer at its end.

        Raises:
            OSError, ValueError: as `format.read_columns` does.

        """
        row_group, max_length = file.metadata.row_group(group), file.schema_arrow.field("input_ids").type.list_size
        rows = row_group.num_rows
        page = read_page(read, row_group.column(0), rows=rows, max_length=max_length)
        if page is not None and self._levels.get(rows) == page.levels:
            return read_columns(file, group, with_ids=False)._replace(inputs=page.inputs)
        columns = read_columns(file, group)
        assert columns.inputs is not None, "asked for"
        if page is not None and len(self._levels) < SIZES_KEPT and np.array_equal(page.inputs, columns.inputs):
            self._levels[rows] = page.levels
        return columns


def read_page(read: Read, column: pq.ColumnChunkMetaData, *, rows: int, max_length: int) -> IdPage | None:
    """Return a column's page of `rows * max_length` IDs, if it is one page of ours and intact; otherwise None.

    Raises:
        OSError: it cannot be read.

    """
    body, values = None, rows * max_length
    if rows and column.compression in CODECS and not column.has_dictionary_page:
        content = read(column.data_page_offset, column.total_compressed_size)
        body = unpack_page(memoryview(content), column, values)
    if body is None or len(body) < 4 * values:
        return None
    start = len(body) - 4 * values
    inputs = np.frombuffer(body, "<i4", offset=start)
    return IdPage(bytes(body[:start]), (inputs if inputs.flags.aligned else inputs.copy()).reshape(rows, max_length))


def unpack_page(content: memoryview, column: pq.ColumnChunkMetaData, values: int) -> memoryview | None:
    """Return what a page contains, its levels and PLAIN values, if it is all of a column and intact; otherwise None."""
    try:
        length, fields = parse_header(bytes(content[:HEADER_BYTES]))
    except ValueError:
        return None
    unpacked, packed, checksum = (fields.get(number, -1) for number in (UNPACKED, PACKED, CHECKSUM))
    body, codec = content[length:], CODECS[column.compression]
    if (
        bytes(content[:length]) not in make_headers(unpacked, packed, checksum, values)
        or (length + packed, length + unpacked) != (column.total_compressed_size, column.total_uncompressed_size)
        or packed != len(body)
        or zlib.crc32(body) != checksum & 0xFFFFFFFF
    ):
        return None
    if codec is None:
        return body if packed == unpacked else None
    try:
        return memoryview(pa.Codec(codec).decompress(pa.py_buffer(body), unpacked)).cast("B")
    except OSError:
        return None


def make_headers(unpacked: int, packed: int, checksum: int, values: int) -> list[bytes]:
    """Return the headers that a page of PLAIN values may have: with these sizes, its levels as runs, no statistics."""
    sizes = b"".join(b"\x15" + _varint(number) for number in (0, unpacked, packed, checksum))
    start = sizes + b"\x1c\x15" + _varint(values) + b"\x15\x00\x15\x06\x15\x06"
    return [start + end for end in ENDS]


def _varint(number: int) -> bytes:
    """Return a signed number in Thrift's compact protocol."""
    left, found = number << 1 if number >= 0 else -number * 2 - 1, bytearray()
    while left > 127:
        found.append(left & 127 | 128)
        left >>= 7
    return bytes([*found, left])
