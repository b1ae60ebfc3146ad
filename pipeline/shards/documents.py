"""Write the documents' table of a split, chunk by chunk, and check one (`document_format.py` says what it holds)."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.arrow import numbers_array, text_array
from pipeline.base.paths import make_folder
from pipeline.base.reading import open_regular
from pipeline.base.wording import counted
from pipeline.settings import SPLITS
from pipeline.shards.complete import WRITING
from pipeline.shards.document_format import GROUP_ROWS, SCHEMA, Documents, escape_name, open_documents
from pipeline.shards.entries import DOCUMENTS_FOLDER, DocumentsEntry
from pipeline.shards.format import find_footer
from pipeline.shards.shard import HashingFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.shards.manifest import SplitEntry
    from pipeline.tokens.store import TokenStore


def list_documents(store: TokenStore, split: str) -> Iterator[Documents]:
    """Yield a split's documents, those of a chunk together; one that goes on in the next chunk comes with its end."""
    if store.num_documents == 1 and store.validation > 0:
        yield _only_document(store, split)
        return
    base, held = 0, None
    for chunk, names, table in zip(store.chunks, store.names, store.tables(), strict=True):
        here = table[table["split"] == SPLITS.index(split)]
        files = text_array(escape_name(name) for name in names)
        found = Documents(
            files.take(numbers_array(here["source"])),
            here["row"].astype(np.int64),
            here["first"] + base,
            here["count"].astype(np.int64),
        )
        base += chunk.tokens[split]
        if chunk.continued and len(here) and here[0] == table[0]:  # otherwise that document is in the other split
            assert held is not None, "a chunk before this one has the document's start"
            held.counts[-1] += found.counts[0]
            found = Documents(*(column[1:] for column in found))
        if not len(found.rows):
            continue
        if held is not None:
            yield held
        if len(found.rows) > 1:
            yield Documents(*(column[:-1] for column in found))
        held = Documents(*(column[-1:] for column in found))
    if held is not None:
        yield held


def _only_document(store: TokenStore, split: str) -> Documents:
    parts = [(names, table) for names, table in zip(store.names, store.tables(), strict=True) if len(table)]
    names, table = parts[0]
    before = 0 if split == "train" else len(store.stream("train"))
    count = sum(int(table["count"].sum()) for _, table in parts)
    return Documents(
        text_array([escape_name(names[int(table["source"][0])])]),
        np.array([table["row"][0]], np.int64),
        np.array([-before], np.int64),
        np.array([count], np.int64),
    )


def write_documents(folder: Path, split: str, store: TokenStore) -> DocumentsEntry:
    """Write the table of a split, and return its entry for the manifest."""
    name = f"{split}.parquet"
    temporary, path = folder / WRITING / name, folder / DOCUMENTS_FOLDER / name
    rows = stop = 0
    with temporary.open("xb") as file:
        sink = HashingFile(file)
        with pq.ParquetWriter(
            sink,
            SCHEMA,
            compression="zstd",
            compression_level=3,
            use_dictionary=False,
            column_encoding={
                "file": "DELTA_BYTE_ARRAY",
                "row": "DELTA_BINARY_PACKED",
                "first": "DELTA_BINARY_PACKED",
            },
            write_statistics=["first"],
            write_page_checksum=True,
        ) as writer:
            for table, stop in _row_groups(list_documents(store, split)):  # noqa: B007 - the last one counts
                writer.write_table(table, row_group_size=GROUP_ROWS)
                rows += len(table)
        file.flush()
        os.fsync(file.fileno())
    footer_start, footer = find_footer(temporary)
    make_folder(path.parent)
    temporary.rename(path)
    return DocumentsEntry(
        path=f"{DOCUMENTS_FOLDER}/{name}",
        num_rows=rows,
        stop=stop,
        bytes=sink.size,
        sha256=sink.hexdigest(),
        footer_start=footer_start,
        footer_sha256=hashlib.sha256(footer).hexdigest(),
    )


def _row_groups(documents: Iterator[Documents]) -> Iterator[tuple[pa.Table, int]]:
    """Yield tables of whole row groups, and the rest; each with the end of the last document so far."""
    waiting: list[pa.Table] = []
    rows = stop = 0
    for found in documents:
        columns = [found.files, numbers_array(found.rows), numbers_array(found.firsts)]
        waiting.append(pa.Table.from_arrays(columns, schema=SCHEMA))
        rows, stop = rows + len(found.rows), int(found.firsts[-1] + found.counts[-1])
        if rows >= GROUP_ROWS:
            table = pa.concat_tables(waiting).combine_chunks()
            full = rows - rows % GROUP_ROWS
            yield table.slice(0, full), stop
            waiting, rows = [table.slice(full)], rows - full
    if rows:
        yield pa.concat_tables(waiting).combine_chunks(), stop


def list_problems(folder: Path, split: str, entry: SplitEntry, store: TokenStore | None) -> Iterator[str]:
    """List what is wrong with a split's table: its bytes, its sums, and its rows against the token store, if known.

    Files' names are not compared, since the store has those of the last run.
    """
    table = entry.documents
    assert table is not None, "the split has a table"
    try:
        with open_regular(folder / table.path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        if (size, digest) != (table.bytes, table.sha256):
            yield f"has {size} bytes and sha256 {digest}; the manifest says {table.bytes} and {table.sha256}"
            return
        if table.num_rows != entry.num_documents:
            yield f"has {table.num_rows} rows; splits.{split}.num_documents is {entry.num_documents}"
        yield from _row_problems(open_documents(folder, table), split, entry, store)
    except (OSError, ValueError) as error:
        yield f"cannot be read: {' '.join(str(error).split())}"


def _row_problems(file: pq.ParquetFile, split: str, entry: SplitEntry, store: TokenStore | None) -> Iterator[str]:
    assert entry.documents is not None, "the split has a table"
    stop, is_alone = entry.documents.stop, entry.documents.num_rows == 1
    known = (
        table.slice(at, GROUP_ROWS).drop_columns(["file"])
        for table, _ in (_row_groups(list_documents(store, split)) if store else ())
        for at in range(0, len(table), GROUP_ROWS)
    )
    before = -1  # the first token of the document before
    for group in range(file.metadata.num_row_groups):
        table = file.read_row_group(group, use_threads=False)
        firsts = table.column("first").to_numpy()
        if (np.diff(firsts, prepend=before) < 1).any() and not is_alone:
            yield f"row group {group}: its documents do not follow one another"
            return
        if not group and (firsts[0] > 0 or (firsts[0] and not is_alone)):
            yield f"its first document starts at token {firsts[0]}"
        if store and not table.drop_columns(["file"]).equals(next(known, table.slice(0, 0))):
            yield f"row group {group}: its documents are not those of the token store"
        before = int(firsts[-1])
    # A document that is alone may go on in the other split.
    if stop <= before or not (stop in (entry.num_tokens - 1, entry.num_tokens) or (is_alone and stop > 0)):
        yield f"its documents end at token {stop}, but the split has {counted(entry.num_tokens, 'token')}"
