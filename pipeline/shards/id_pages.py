"""Read the IDs of a row group in a third of the time of Parquet's reader, which decodes two levels for each ID.

All windows of a split have as many tokens, so the levels of its pages say nothing. Which bytes these levels are is not
computed but learnt: Parquet's reader decodes the first row group of each size, and where the next page has the same
levels and sizes, its IDs are the bytes after them. Levels are decoded from nothing but these bytes and the number of
values, so what the reader would return is known.

Where windows are neither padded nor packed, and follow one another in the text, both small columns are read here, too:
`next_id` has no levels, and the steps of `start` are equal, so its page has one number for each block of them. Then
Parquet's reader is not even opened, in which a decoding thread would wait for the interpreter's lock again and again.

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

from pipeline.shards.format import Columns, read_columns
from pipeline.shards.pages import HEADER_BYTES, PACKED, UNPACKED, parse_header, parse_signed, parse_varint

if TYPE_CHECKING:
    import pyarrow.parquet as pq

CHECKSUM = 4  # number of a header's field
PLAIN, DELTA = 0, 5  # encodings
PLAIN_COLUMNS = ("input_ids", "target_ids", "start", "next_id")  # of a shard without padded and packed windows
CODECS = {"ZSTD": "zstd", "UNCOMPRESSED": None}
SIZES_KEPT = 16  # row groups of so many sizes; of usual data sets there are two
ENDS = (b"\x00\x00", b"\x1c\x00\x00\x00")  # of a header; the second has a struct of no statistics

Buffer: TypeAlias = "bytes | memoryview"
Read: TypeAlias = Callable[[int, int], Buffer]


class IdPage(NamedTuple):
    """The page of a row group's input IDs."""

    levels: bytes
    inputs: np.ndarray  # int32 [B, L]


class IdPages:
    """Read row groups of one split; remember which levels their pages have. Many threads may use it at once."""

    def __init__(self) -> None:
        self._levels: dict[int, bytes] = {}  # by the windows of a row group

    def read_known(self, footer: pq.FileMetaData, group: int, read: Read, *, max_length: int) -> Columns | None:
        """Return a row group all of whose pages are ours, with levels that are known; otherwise None.

        Raises:
            OSError: it cannot be read.

        """
        row_group = footer.row_group(group)
        rows = row_group.num_rows
        if row_group.num_columns != len(PLAIN_COLUMNS) or (levels := self._levels.get(rows)) is None:
            return None
        starts = read_starts(read, row_group.column(2), rows)
        next_ids = None if starts is None else read_numbers(read, row_group.column(3), rows)
        page = None if next_ids is None else read_page(read, row_group.column(0), rows=rows, max_length=max_length)
        if starts is None or next_ids is None or page is None or page.levels != levels:
            return None
        return Columns(page.inputs, next_ids, starts, np.full(rows, max_length, np.int32), None)

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
    values = rows * max_length
    body = read_body(read, column, values) if rows else None
    if body is None or len(body) < 4 * values:
        return None
    start = len(body) - 4 * values
    inputs = np.frombuffer(body, "<i4", offset=start)
    return IdPage(bytes(body[:start]), (inputs if inputs.flags.aligned else inputs.copy()).reshape(rows, max_length))


def read_numbers(read: Read, column: pq.ColumnChunkMetaData, rows: int) -> np.ndarray | None:
    """Return a column of int32 [B] without levels, if it is one page of ours and intact; otherwise None."""
    body = read_body(read, column, rows)
    return None if body is None or len(body) != 4 * rows else np.frombuffer(body, "<i4")


def read_starts(read: Read, column: pq.ColumnChunkMetaData, rows: int) -> np.ndarray | None:
    """Return a column of int64 [B] in even steps, if it is one page of ours and intact; otherwise None."""
    body = read_body(read, column, rows, encoding=DELTA)
    return None if body is None else decode_steps(body, rows)


def decode_steps(body: Buffer, rows: int) -> np.ndarray | None:
    """Return numbers in the encoding DELTA_BINARY_PACKED, int64 [B], if the steps in each of its blocks are equal.

    https://github.com/apache/parquet-format/blob/master/Encodings.md has the encoding. By eye, 3 numbers from 5 on, in
    steps of 2, in a block of 128 steps in 4 parts of width 0:

    >>> decode_steps(bytes([128, 1, 4, 3, 10, 4, 0, 0, 0, 0]), 3)
    array([5, 7, 9])
    """
    content, steps = bytes(body), np.zeros(rows, np.int64)
    try:
        (block, at), done = parse_varint(content, 0), 1
        parts, at = parse_varint(content, at)
        count, at = parse_varint(content, at)
        first, at = parse_signed(content, at)
        if count != rows or block < 1 or parts > len(content):
            return None
        steps[:1] = first
        while done < rows:
            step, at = parse_signed(content, at)
            if content[at : at + parts] != bytes(parts):
                return None
            steps[done : done + block] = step
            at, done = at + parts, done + block
    except (IndexError, OverflowError):
        return None
    return np.cumsum(steps) if at == len(content) else None


def read_body(read: Read, column: pq.ColumnChunkMetaData, values: int, *, encoding: int = PLAIN) -> memoryview | None:
    """Return what the page of a column contains, if `unpack_page` does."""
    if column.compression not in CODECS or column.has_dictionary_page:
        return None
    content = read(column.data_page_offset, column.total_compressed_size)
    return unpack_page(memoryview(content), column, values, encoding=encoding)


def unpack_page(
    content: memoryview, column: pq.ColumnChunkMetaData, values: int, *, encoding: int = PLAIN
) -> memoryview | None:
    """Return what a page contains, its levels and values, if it is all of a column and intact; otherwise None."""
    try:
        length, fields = parse_header(bytes(content[:HEADER_BYTES]))
    except ValueError:
        return None
    unpacked, packed, checksum = (fields.get(number, -1) for number in (UNPACKED, PACKED, CHECKSUM))
    body, codec = content[length:], CODECS[column.compression]
    header, headers = bytes(content[:length]), make_headers(unpacked, packed, checksum, values, encoding=encoding)
    if encoding == DELTA:  # after that come statistics, which nothing depends on
        header, headers = header[: len(headers[0]) - len(ENDS[0])], [headers[0][: -len(ENDS[0])]]
    if (
        header not in headers
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


def make_headers(unpacked: int, packed: int, checksum: int, values: int, *, encoding: int = PLAIN) -> list[bytes]:
    """Return the headers that a page of values may have: with these sizes, its levels as runs, no statistics."""
    sizes = b"".join(b"\x15" + _varint(number) for number in (0, unpacked, packed, checksum))
    start = sizes + b"\x1c\x15" + _varint(values) + b"\x15" + _varint(encoding) + b"\x15\x06\x15\x06"
    return [start + end for end in ENDS]


def _varint(number: int) -> bytes:
    """Return a signed number in Thrift's compact protocol."""
    left, found = number << 1 if number >= 0 else -number * 2 - 1, bytearray()
    while left > 127:
        found.append(left & 127 | 128)
        left >>= 7
    return bytes([*found, left])
