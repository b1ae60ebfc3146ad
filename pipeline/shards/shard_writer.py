"""Write shards: the pages of token IDs here, those of the small columns by pyarrow.

pyarrow spends more time on the levels of a list column than on its content: it computes two for every token. Those of
windows are known, since all have `max_length` tokens. So a page of IDs is its levels and its IDs, compressed, and
`write_table` of 512 windows of 1,024 takes a third of the time. Any Parquet reader reads the result; tests compare it
with pyarrow's own.

Where the targets are the inputs shifted by one in memory (windows that are disjoint and in text order), their shared
part is compressed once for both columns: each page is one zstd frame whose first block stores what is its own
(`zstd_frame`). That costs about 5 bytes for each window and column, so short windows are compressed as usual.

The format: https://github.com/apache/parquet-format
"""

from __future__ import annotations

import base64
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.arrow import numbers_of
from pipeline.shards import thrift
from pipeline.shards.format import PAGE_BYTES, ZSTD_LEVEL
from pipeline.shards.zstd_frame import extend_frame

if TYPE_CHECKING:
    from typing import Self

SHARED_FROM = 512  # tokens of a window; below, the stored levels would take more than 3 % of a page
PARQUET = b"PAR1"
CREATED_BY = "stridemill version 1"  # of this writer: two releases with the same one write the same bytes

# Numbers of the format.
KINDS = {"INT32": 1, "INT64": 2}
ENCODINGS = {"PLAIN": 0, "RLE": 3, "BIT_PACKED": 4, "DELTA_BINARY_PACKED": 5}
CODECS = {"none": 0, "snappy": 1, "zstd": 6, "lz4": 7}
REQUIRED, REPEATED, LIST = 0, 2, 3


class _Page(NamedTuple):
    """A page: its header, then its content as the file has it."""

    pieces: list[bytes | memoryview]
    unpacked: int  # bytes, header included


class _Column(NamedTuple):
    """What the footer says of a column in a row group."""

    path: list[str]
    kind: int
    encodings: list[int]
    values: int
    unpacked: int  # bytes, headers included
    packed: int
    offset: int  # of its first page
    bounds: tuple[int, int] | None  # the least and the greatest value


class ShardWriter:
    """Write tables of windows as the row groups of a Parquet file. Without an error, leaving the block ends the file.

    Args:
        file: has `write`, and `tell` returns the bytes so far.
        schema: of the tables; the first two columns are the inputs and the targets.
        compression: a codec of `ShardsConfig`.

    """

    def __init__(self, file: Any, schema: pa.Schema, *, compression: str) -> None:
        self._file, self._schema, self._compression = file, schema, compression
        self._level = ZSTD_LEVEL if compression == "zstd" else None
        self._codec = None
        if compression != "none":
            self._codec = pa.Codec("lz4_raw" if compression == "lz4" else compression, compression_level=self._level)
        self._groups: list[bytes] = []
        self._rows = 0
        file.write(PARQUET)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()

    def write_table(self, table: pa.Table) -> None:
        """Write a row group."""
        names, max_length = self._schema.names, self._schema.field(0).type.list_size
        inputs, targets = (_flatten(table.column(name)) for name in names[:2])
        step = max(1, PAGE_BYTES // (4 * max_length)) * max_length
        pages = [
            self._pack(inputs[at : at + step], targets[at : at + step], max_length)
            for at in range(0, len(inputs), step)
        ]
        columns = [
            self._write_pages(name, column, len(inputs))
            for name, column in zip(names[:2], zip(*pages, strict=True), strict=True)
        ]
        columns += self._write_small(table.select(names[2:]))
        self._groups.append(
            thrift.struct(
                thrift.structs(1, [_describe_column(column, CODECS[self._compression]) for column in columns]),
                thrift.i64(2, sum(column.unpacked for column in columns)),
                thrift.i64(3, len(table)),
                thrift.i64(5, columns[0].offset),
                thrift.i64(6, sum(column.packed for column in columns)),
            )
        )
        self._rows += len(table)

    def close(self) -> None:
        """Write the footer."""
        arrow = base64.b64encode(self._schema.serialize().to_pybytes())  # so that Arrow knows the lists' length
        footer = thrift.struct(
            thrift.i32(1, 2),
            thrift.structs(2, _describe_schema(self._schema)),
            thrift.i64(3, self._rows),
            thrift.structs(4, self._groups),
            thrift.structs(5, [thrift.struct(thrift.text(1, "ARROW:schema"), thrift.binary(2, arrow))]),
            thrift.text(6, CREATED_BY),
            thrift.structs(7, [thrift.struct(thrift.nested(1))] * len(self._schema)),  # values order as numbers do
        )
        self._file.write(footer + len(footer).to_bytes(4, "little") + PARQUET)

    def _pack(self, inputs: np.ndarray, targets: np.ndarray, max_length: int) -> tuple[_Page, _Page]:
        """Return a page of inputs and one of targets."""
        levels = make_levels(len(inputs) // max_length, max_length)
        is_shifted = targets.ctypes.data == inputs.ctypes.data + 4
        if is_shifted and self._compression == "zstd" and max_length >= SHARED_FROM:
            shared = self._compress_bytes(inputs[1:])
            return (
                _make_page(extend_frame(shared, before=levels + inputs[:1].tobytes()), levels, inputs),
                _make_page(extend_frame(shared, before=levels, after=targets[-1:].tobytes()), levels, targets),
            )
        return (
            _make_page(self._compress(levels, inputs), levels, inputs),
            _make_page(self._compress(levels, targets), levels, targets),
        )

    def _compress(self, levels: bytes, ids: np.ndarray) -> list[bytes | memoryview]:
        if self._codec is None:
            return [levels, ids.tobytes()]
        content = np.concatenate([np.frombuffer(levels, np.uint8), ids.view(np.uint8)])
        return [self._compress_bytes(content)]

    def _compress_bytes(self, content: np.ndarray) -> memoryview:
        assert self._codec, "there is a codec"
        packed = self._codec.compress(pa.py_buffer(content))
        return memoryview(packed).cast("B")  # without the cast, its length is that of the memory around it

    def _write_pages(self, name: str, pages: tuple[_Page, ...], values: int) -> _Column:
        offset = self._file.tell()
        for page in pages:
            for piece in page.pieces:
                self._file.write(piece)
        return _Column(
            path=[name, "list", "element"],
            kind=KINDS["INT32"],
            encodings=[ENCODINGS["PLAIN"], ENCODINGS["RLE"]],
            values=values,
            unpacked=sum(page.unpacked for page in pages),
            packed=self._file.tell() - offset,
            offset=offset,
            bounds=None,
        )

    def _write_small(self, table: pa.Table) -> list[_Column]:
        """Let pyarrow make a file of the other columns, and copy its pages: they do not depend on where they are."""
        sink, found = pa.BufferOutputStream(), list[pq.FileMetaData]()
        with pq.ParquetWriter(
            sink,
            table.schema,
            compression=self._compression,
            compression_level=self._level,
            use_dictionary=False,
            column_encoding={"start": "DELTA_BINARY_PACKED"},  # 8 bytes become 0.05 in text order; 1.1 as PLAIN
            data_page_size=PAGE_BYTES,
            write_statistics=["start"],
            write_page_checksum=True,
            metadata_collector=found,
        ) as writer:
            writer.write_table(table, row_group_size=len(table))
        group, moved = found[0].row_group(0), self._file.tell() - len(PARQUET)
        chunks = [group.column(number) for number in range(group.num_columns)]
        size = sum(chunk.total_compressed_size for chunk in chunks)
        content = memoryview(sink.getvalue()).cast("B")
        self._file.write(content[len(PARQUET) : len(PARQUET) + size])
        return [
            _Column(
                path=chunk.path_in_schema.split("."),
                kind=KINDS[chunk.physical_type],
                encodings=[ENCODINGS[encoding] for encoding in chunk.encodings],
                values=chunk.num_values,
                unpacked=chunk.total_uncompressed_size,
                packed=chunk.total_compressed_size,
                offset=chunk.data_page_offset + moved,
                bounds=(chunk.statistics.min, chunk.statistics.max) if chunk.is_stats_set else None,
            )
            for chunk in chunks
        ]


def make_levels(rows: int, max_length: int) -> bytes:
    """Return the levels of a page of windows: where each begins (the first token has level 0), and that none is empty.

    Both are runs of one level: a run's length, doubled, then the level. Of short windows the first are packed as bits,
    63 times 8 of them together.
    """
    total = rows * max_length
    whole = thrift.varint(total << 1)
    if max_length == 1:
        begins = whole + b"\0"
    elif max_length >= 16:
        begins = (b"\2\0" + thrift.varint(max_length - 1 << 1) + b"\1") * rows
    else:
        packed = np.packbits(np.arange(total) % max_length > 0, bitorder="little")
        parts = [packed[at : at + 63].tobytes() for at in range(0, len(packed), 63)]
        begins = b"".join(bytes([len(part) << 1 | 1]) + part for part in parts)
    exist = whole + b"\1"
    return len(begins).to_bytes(4, "little") + begins + len(exist).to_bytes(4, "little") + exist


def _flatten(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column's IDs where they are; only several chunks are copied."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return numbers_of(array.flatten())


def _make_page(content: list[bytes | memoryview], levels: bytes, ids: np.ndarray) -> _Page:
    checksum = 0
    for piece in content:
        checksum = zlib.crc32(piece, checksum)
    unpacked = len(levels) + ids.nbytes
    header = thrift.struct(
        thrift.i32(1, 0),  # a data page
        thrift.i32(2, unpacked),
        thrift.i32(3, sum(map(len, content))),
        thrift.i32(4, checksum - (checksum >> 31 << 32)),
        thrift.nested(
            5,
            thrift.i32(1, len(ids)),
            thrift.i32(2, ENCODINGS["PLAIN"]),
            thrift.i32(3, ENCODINGS["RLE"]),
            thrift.i32(4, ENCODINGS["RLE"]),
        ),
    )
    return _Page([header, *content], len(header) + unpacked)


def _describe_column(column: _Column, codec: int) -> bytes:
    bounds = []
    if column.bounds:
        least, greatest = (bound.to_bytes(8, "little", signed=True) for bound in column.bounds)
        bounds = [thrift.nested(12, thrift.i64(3, 0), thrift.binary(5, greatest), thrift.binary(6, least))]
    described = thrift.nested(
        3,
        thrift.i32(1, column.kind),
        thrift.numbers(2, column.encodings),
        thrift.texts(3, column.path),
        thrift.i32(4, codec),
        thrift.i64(5, column.values),
        thrift.i64(6, column.unpacked),
        thrift.i64(7, column.packed),
        thrift.i64(9, column.offset),
        *bounds,
    )
    return thrift.struct(thrift.i64(2, 0), described)


def _describe_schema(schema: pa.Schema) -> list[bytes]:
    """Return the schema's elements, depth first. No column is optional."""
    elements = [thrift.struct(thrift.text(4, "schema"), thrift.i32(5, len(schema)))]
    for field in schema:
        kind, is_list = field.type, not pa.types.is_integer(field.type)
        if is_list:
            required, repeated = thrift.i32(3, REQUIRED), thrift.i32(3, REPEATED)
            is_a_list = thrift.i32(6, LIST), thrift.nested(10, thrift.nested(3))
            elements += [
                thrift.struct(required, thrift.text(4, field.name), thrift.i32(5, 1), *is_a_list),
                thrift.struct(repeated, thrift.text(4, "list"), thrift.i32(5, 1)),
            ]
            kind = kind.value_type
        name = "element" if is_list else field.name
        elements.append(
            thrift.struct(thrift.i32(1, KINDS[str(kind).upper()]), thrift.i32(3, REQUIRED), thrift.text(4, name))
        )
    return elements
