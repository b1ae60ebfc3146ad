"""Find the documents that are in a window, from the data set alone: its shards and its documents' tables.

A window's row says where its tokens start in the split's stream, and the documents' table (`shards/document_format.py`)
is sorted by that. So only the row groups of the windows that are asked for, and those of the table that they fall into,
are read: about 3 milliseconds for each. Tokens are not decoded, and neither the corpus nor the cache is opened.

A packed window has documents from several places of the stream. Packing is arithmetic (`pipeline.packing`), so the
group of documents that the window belongs to is packed again: some 10 milliseconds for each group.
"""

from __future__ import annotations

from functools import lru_cache
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from pipeline.base.retry import retry
from pipeline.loader.fetched_shards import Part, RangeFile, column_spans, open_parts
from pipeline.loader.readers import place_of
from pipeline.loader.shard_files import ShardFiles
from pipeline.packing import pack_documents
from pipeline.rules import check_choice, reject
from pipeline.settings import SPLITS
from pipeline.shards.document_format import (
    Documents,
    decode_documents,
    group_firsts,
    open_documents,
    parse_footer,
    read_documents,
    unescape_name,
)
from pipeline.shards.format import check_footer_bytes
from pipeline.storage.open import open_storage

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    from pipeline.packing import PackedWindows
    from pipeline.shards.entries import DocumentsEntry
    from pipeline.shards.manifest import Manifest

GROUPS_KEPT = 16  # row groups of the table


class DocumentSpan(NamedTuple):
    """A document, and which of its tokens are in a window."""

    file: str  # its path under the corpus path
    line: int | None  # in JSONL, from 1
    row: int | None  # in Parquet, a hub's data set, a text with a delimiter or a list of texts, from 0
    first: int  # the first of its tokens that is in the window; token 0 is the document's first
    stop: int  # after the last of them


class DocumentTable:
    """The documents of one split by their place in its token stream.

    Raises:
        OSError: the table cannot be read, or is not what the manifest says.

    """

    def __init__(self, folder: Path | str, entry: DocumentsEntry) -> None:
        self._path = f"{folder}/{entry.path}"
        self._entry, self._storage = entry, open_storage(folder) if isinstance(folder, str) else None
        self._footer: pq.FileMetaData = self._checked(
            self._fetch_footer if isinstance(folder, str) else lambda: open_documents(folder, entry).metadata
        )
        self._firsts = group_firsts(self._footer)
        self._stops = [*(self._firsts[1:] - 1).tolist(), entry.stop]
        self._read = lru_cache(GROUPS_KEPT)(lambda group: self._checked(lambda: self._read_group(group)))

    def find(self, start: int, stop: int) -> list[tuple[str, int, int, int]]:
        """Return the documents with tokens in [start, stop) of the stream: file, row, and their tokens from .. to."""
        first_group = max(0, int(np.searchsorted(self._firsts, start, side="right")) - 1)
        last_group = int(np.searchsorted(self._firsts, stop, side="left"))
        found = []
        for group in range(first_group, last_group):
            documents: Documents = self._read(group)
            low = max(0, int(np.searchsorted(documents.firsts, start, side="right")) - 1)
            high = int(np.searchsorted(documents.firsts, stop, side="left"))
            for at in range(low, high):
                first, count = int(documents.firsts[at]), int(documents.counts[at])
                here = max(start - first, 0), min(stop - first, count)
                if here[0] < here[1]:
                    found.append((unescape_name(documents.files[at].as_py()), int(documents.rows[at]), *here))
        return found

    def firsts(self, start: int, stop: int) -> tuple[np.ndarray, int | None]:
        """Return the first tokens, int64, of the documents that begin in [start, stop) of the stream, and the next."""
        low = max(0, int(np.searchsorted(self._firsts, start, side="right")) - 1)
        high = int(np.searchsorted(self._firsts, stop, side="left"))
        firsts = np.maximum(np.concatenate([self._read(group).firsts for group in range(low, high)]), 0)
        behind = [*firsts[firsts >= stop].tolist(), *self._firsts[high:].tolist(), None]
        return firsts[(firsts >= start) & (firsts < stop)], behind[0]

    def document_at(self, token: int) -> int:
        """Return the first token of the document that a token of the stream, or the end-of-text after it, is in."""
        group = max(0, int(np.searchsorted(self._firsts, token, side="right")) - 1)
        firsts = self._read(group).firsts
        return max(0, int(firsts[np.searchsorted(firsts, token, side="right") - 1]))

    def _fetch_footer(self) -> pq.FileMetaData:
        assert self._storage is not None, "of an object store"
        content, self._version = self._storage.read_range(self._entry.path, self._entry.footer_start, self._entry.bytes)
        return parse_footer(check_footer_bytes(content, self._entry), self._entry)

    def _read_group(self, group: int) -> Documents:
        stop = self._stops[group]
        if self._storage is None:
            with pq.ParquetFile(self._path, metadata=self._footer, page_checksum_verification=True) as file:
                return read_documents(Path(self._path), file, group, stop=stop)
        row_group = self._footer.row_group(group)
        spans = column_spans(row_group)
        first, last = min(start for start, _ in spans.values()), max(end for _, end in spans.values())
        content, version = self._storage.read_range(self._entry.path, first, last)
        if version != self._version:
            raise ValueError("it was replaced while it was read")
        parts = RangeFile([Part(first, memoryview(content))])
        with open_parts(parts, self._footer, row_group, list(spans)) as file:
            return decode_documents(file, group, stop=stop)

    def _checked(self, read: Callable[[], Any]) -> Any:
        try:
            return retry(read, self._path, unclear=(ValueError,))
        except (OSError, ValueError) as error:
            said = " ".join(str(error).split())
            raise OSError(f"{self._path} cannot be read: {said}; write the data set again") from error


class Packing:
    """The spans of the stream that packed windows consist of."""

    def __init__(self, table: DocumentTable, *, max_length: int, group_tokens: int, num_tokens: int) -> None:
        self._table = table
        self._max_length, self._group_tokens, self._num_tokens = max_length, group_tokens, num_tokens
        self._pack = lru_cache(2)(self._pack_group)

    def spans(self, start: int) -> list[tuple[int, int]]:
        """Return the spans of the window whose first token is `start`, end-of-text tokens included."""
        windows, starts, by_start = self._pack(self._table.document_at(start) // self._group_tokens)
        window = by_start[np.searchsorted(starts, start, sorter=by_start)]
        segments, firsts = windows.segments(np.array([window]))
        return [(first, first + size) for first, size in zip(firsts.tolist(), segments.sizes.tolist(), strict=True)]

    def _pack_group(self, group: int) -> tuple[PackedWindows, np.ndarray, np.ndarray]:
        start = group * self._group_tokens
        firsts, behind = self._table.firsts(start, start + self._group_tokens)
        sizes = np.diff(firsts, append=self._num_tokens if behind is None else behind)
        windows = pack_documents(firsts, sizes, max_length=self._max_length, group_tokens=self._group_tokens)
        starts = windows.locate(np.arange(len(windows)))[0]
        return windows, starts, np.argsort(starts)


def locate(
    path: str | os.PathLike[str], windows: Iterable[int] | np.ndarray, split: str = "train"
) -> list[list[DocumentSpan]]:
    """Return the documents of each window, in the order of its tokens.

        for document in locate("outputs/shards/...", batch.window_ids)[0]:
            print(document.file, document.line, document.first, document.stop)

    A document is in a window with its tokens that are among the window's inputs; the end-of-text token after it does
    not count as one, and with `tokenizer.bos` its token 0 is the token that starts it. A row that only fills a batch,
    window -1, has no document.

    Args:
        path: the data set's folder or URI.
        windows: window numbers of the split, such as a batch's `window_ids`.
        split: `train` or `validation`.

    Raises:
        IndexError: the split has no such window.
        ValueError: there is no such data set or split, or it has no documents' table.
        OSError: a file is missing or damaged.

    """
    folder = place_of(path)
    files = ShardFiles(folder, check_choice("split", split, SPLITS))
    entry = files.entry
    if entry.documents is None:
        raise ValueError(
            f"{folder} has no documents' table: it was written with shards.documents=false, or by a release that had "
            "none; write it again with shards.documents=true and shards.overwrite=true, which keeps its shards"
        )
    numbers = check_numbers(windows, entry.num_windows)
    starts, lengths = read_places(files, numbers)
    table, describe = DocumentTable(folder, entry.documents), describer(files.manifest)
    group_tokens = files.manifest.windows.get("pack_group_tokens")
    packing = group_tokens and Packing(
        table, max_length=entry.max_length, group_tokens=group_tokens, num_tokens=entry.num_tokens
    )
    found: list[list[DocumentSpan]] = [[] for _ in numbers]
    for at in np.argsort(starts, kind="stable"):  # front to back, so that each part of the table is read once
        if numbers[at] >= 0:
            start = int(starts[at])
            spans = packing.spans(start) if packing else [(start, start + int(lengths[at]))]
            found[at] = [describe(*document) for span in spans for document in table.find(*span)]
    return found


def check_numbers(windows: Iterable[int] | np.ndarray, num_windows: int) -> np.ndarray:
    """Return window numbers as int64 [B]."""
    try:
        numbers = np.array([index(window) for window in windows], np.int64)
    except (TypeError, OverflowError):
        reject("windows", "must be window numbers, such as batch.window_ids", windows)
    wrong = numbers[(numbers < -1) | (numbers >= num_windows)]
    if len(wrong):
        raise IndexError(
            f"window {wrong[0]}: this is a split of {num_windows:,} windows, 0 to {num_windows - 1:,} (-1 is a row "
            "that only fills a batch)"
        )
    return numbers


def read_places(files: ShardFiles, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each window's first token in its split's stream and its number of real tokens, both int64 [B]."""
    groups, at = files.groups.locate(np.maximum(numbers, 0))
    starts, lengths = np.zeros(len(numbers), np.int64), np.zeros(len(numbers), np.int64)
    for group in np.unique(groups[numbers >= 0]).tolist():
        here = np.flatnonzero((groups == group) & (numbers >= 0))
        rows = files.read(group, with_ids=False)[2]
        starts[here], lengths[here] = rows.starts[at[here]], rows.lengths[at[here]]
    return starts, lengths


def describer(manifest: Manifest) -> Callable[[str, int, int, int], DocumentSpan]:
    """Return what makes a span of a file, a row and tokens: the corpus's format says whether lines or rows count."""
    corpus = manifest.config["corpus"]
    name, is_whole = corpus["name"], not corpus.get("delimiter")

    def describe(file: str, row: int, first: int, stop: int) -> DocumentSpan:
        if name in ("text", "the_verdict") and is_whole:
            return DocumentSpan(file, None, None, first, stop)
        if name == "jsonl":
            return DocumentSpan(file, row + 1, None, first, stop)
        return DocumentSpan(file, None, row, first, stop)

    return describe
