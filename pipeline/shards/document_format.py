"""The documents' table of a split, which says where its tokens come from: `documents/<split>.parquet`.

One row for each document in the order of the token stream: `file`, its path under the corpus path; `row`, its line or
row there, from 0; `first`, its first token in the split's stream. Its end needs no column: between two documents there
is one end-of-text token, so the next `first` says it, and after the last document the manifest (`stop`). `first` grows
from row to row, and what a range of tokens needs is found by the row groups' statistics. A corpus of one document,
whose last part is the validation split, has it in both tables with all of its tokens; in the second `first` is below 0.

Differences and prefixes are stored, so a document takes 1 to 2 bytes and what is new in
its file's name. Like a shard the table has page checksums, and its footer's hash is in the manifest.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.arrow import numbers_of
from pipeline.shards.format import read_footer_bytes
from pipeline.shards.pages import check_pages

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.shards.entries import DocumentsEntry
    from pipeline.storage.interface import Buffer

GROUP_ROWS = 1 << 16
MAX_GROUP_BYTES = 1 << 29  # 65,536 names of 4,096 bytes take half of it
SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("first", pa.int64(), nullable=False),
    ]
)
_SURROGATE, _ESCAPED = re.compile("[\udc80-\udcff]"), re.compile(r"\\u(dc[89a-f][0-9a-f])")


class Documents(NamedTuple):
    """Consecutive documents."""

    files: pa.Array  # string
    rows: np.ndarray  # int64 [D], as are the others
    firsts: np.ndarray
    counts: np.ndarray


def escape_name(name: str) -> str:
    r"""Return a file's name as Parquet's text may hold it: a byte that is not UTF-8 becomes \udcNN."""
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):x}", name)


def unescape_name(text: str) -> str:
    """Return the name that `escape_name` was given."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


def open_documents(folder: Path, entry: DocumentsEntry) -> pq.ParquetFile:
    """Open a table whose footer is that of the manifest; each page that is read is checked.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not the table of the manifest; the message does not name it.

    """
    path = folder / entry.path
    footer = parse_footer(read_footer_bytes(path, entry), entry)
    return pq.ParquetFile(path, metadata=footer, page_checksum_verification=True)


def parse_footer(content: Buffer, entry: DocumentsEntry) -> pq.FileMetaData:
    """Return a table's footer, whose hash was compared with the manifest.

    Raises:
        ValueError: it is not that of such a table.

    """
    footer = pq.read_metadata(pa.BufferReader(pa.py_buffer(content)))
    if footer.num_rows != entry.num_rows or not footer.schema.to_arrow_schema().equals(SCHEMA):
        raise ValueError("it has other columns or rows than the documents' table of the manifest")
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        sizes = [group.column(index).total_uncompressed_size for index in range(group.num_columns)]
        if group.num_rows > GROUP_ROWS or max(sizes) > MAX_GROUP_BYTES:
            raise ValueError(f"its row group {number} is larger than those of a documents' table")
    return footer


def group_firsts(footer: pq.FileMetaData) -> np.ndarray:
    """Return the `first` of each row group's first document, int64 [row groups]."""
    groups = range(footer.num_row_groups)
    column = SCHEMA.get_field_index("first")
    return np.array([footer.row_group(group).column(column).statistics.min for group in groups], np.int64)


def read_documents(path: Path, file: pq.ParquetFile, group: int, *, stop: int) -> Documents:
    """Read one row group of a table; the next one's first document, or the end of the last one, is at `stop`."""
    check_pages(path, file.metadata, group)
    return decode_documents(file, group, stop=stop)


def decode_documents(file: pq.ParquetFile, group: int, *, stop: int) -> Documents:
    """Decode one row group, whose pages were checked, as `read_documents` does."""
    table = file.read_row_group(group, use_threads=False)
    files, rows, firsts = (table.column(name).combine_chunks() for name in SCHEMA.names)
    starts = numbers_of(firsts)
    return Documents(files, numbers_of(rows), starts, np.diff(starts, append=stop + 1) - 1)
