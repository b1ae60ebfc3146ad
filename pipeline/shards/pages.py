"""Compare the headers of a shard's pages with its footer, before a library allocates what they ask for.

A page header states how many bytes its page unpacks to, and no checksum covers it. A library allocates that much: up to
2 GiB, which a few kilobytes of repeated data can fill. The footer, whose hash is in the manifest, states the bytes of
a column in a row group, and these are compared with the manifest (`format.check_footer`). So here the pages of a column
must add up to no more.

A header is a struct of Thrift's compact protocol; its first three fields are the page's kind, its unpacked and its
packed bytes: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
Cost: about 10 microseconds for a page; each row group is checked once.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pipeline.base.reading import open_regular

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pyarrow.parquet as pq

HEADER_BYTES = 1 << 10  # more than any header of ours
MAX_DEPTH = 4  # of structs in a header
UNPACKED, PACKED = 2, 3  # numbers of the fields
STRUCT, BINARY, BYTE, DOUBLE = 12, 8, 3, 7  # kinds of fields
BOOLS, INTEGERS = (1, 2), (4, 5, 6)


def check_pages(path: Path, footer: pq.FileMetaData, group: int) -> None:
    """Compare the pages of a row group with the footer.

    Raises:
        OSError: the file cannot be read.
        ValueError: a header is damaged, or the pages of a column have more bytes than the footer says.

    """
    row_group = footer.row_group(group)
    with open_regular(path) as file:
        for index in range(row_group.num_columns):
            check_column(lambda at: os.pread(file.fileno(), HEADER_BYTES, at), row_group, index)


def check_column(read: Callable[[int], bytes], row_group: pq.RowGroupMetaData, index: int) -> None:
    """Compare the pages of one column with the footer; `read` returns the `HEADER_BYTES` from an offset on, or less."""
    column = row_group.column(index)
    at, stop = column.data_page_offset, column.data_page_offset + column.total_compressed_size
    left = column.total_uncompressed_size
    while at < stop:
        length, sizes = parse_header(read(at))
        unpacked, packed = sizes.get(UNPACKED, -1), sizes.get(PACKED, -1)
        at, left = at + length + packed, left - length - unpacked
        if unpacked < 0 or packed < 0 or left < 0 or at > stop:
            raise ValueError(f"a page of its column {index} states other sizes than the footer")


def parse_header(content: bytes) -> tuple[int, dict[int, int]]:
    """Return the length of the header at the start of `content`, and its integers by the number of their field.

    >>> parse_header(bytes([0x15, 0, 0x15, 20, 0x15, 12, 0]))
    (7, {1: 0, 2: 10, 3: 6})

    """
    found: dict[int, int] = {}
    try:
        return _skip_struct(content, 0, found, MAX_DEPTH), found
    except IndexError:
        raise ValueError("a page header is damaged") from None


def _skip_struct(content: bytes, at: int, found: dict[int, int], depth: int) -> int:
    """Return where a struct ends; note its integers."""
    number = 0
    while field := content[at]:
        at, kind = at + 1, field & 15
        if field >> 4:
            number += field >> 4
        else:
            number, at = parse_signed(content, at)
        if kind in INTEGERS:
            found[number], at = parse_signed(content, at)
        elif kind == BINARY:
            value, at = parse_varint(content, at)
            at += value
        elif kind == STRUCT and depth:
            at = _skip_struct(content, at, {}, depth - 1)
        elif kind in (BYTE, DOUBLE):
            at += 1 if kind == BYTE else 8
        elif kind not in BOOLS:
            raise ValueError("a page header is damaged")
    return at + 1


def parse_varint(content: bytes, at: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, and where it ends."""
    value = shift = 0
    while (byte := content[at]) & 128:
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
    return value | byte << shift, at + 1


def parse_signed(content: bytes, at: int) -> tuple[int, int]:
    """Return a number whose lowest bit is its sign, and where it ends."""
    value, at = parse_varint(content, at)
    return value >> 1 ^ -(value & 1), at
