"""Find the documents that are in a window, from the data set alone: its shards and its documents' tables.

A window's row says where its tokens start in the split's stream, and the documents' table (`pipeline.shards.documents`)
is sorted by that. So only the row groups of the windows that are asked for, and those of the table that they fall into,
are read: about 3 milliseconds for each. Tokens are not decoded, and neither the corpus nor the cache is opened.
"""

from __future__ import annotations

from functools import lru_cache
from operator import index
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.base.paths import expand_user
from pipeline.base.retry import retry
from pipeline.loader.shard_files import ShardFiles
from pipeline.rules import check_choice, check_path, reject
from pipeline.settings import SPLITS
from pipeline.shards.documents import Documents, group_firsts, open_documents, read_documents, unescape_name

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import pyarrow.parquet as pq

    from pipeline.shards.manifest import DocumentsEntry, Manifest

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

    def __init__(self, folder: Path, entry: DocumentsEntry) -> None:
        self._path = folder / entry.path
        self._file = self._checked(lambda: open_documents(folder, entry))
        self._firsts = group_firsts(self._file)
        stops = [*(self._firsts[1:] - 1).tolist(), entry.stop]
        self._read = lru_cache(GROUPS_KEPT)(
            lambda group: self._checked(lambda: read_documents(self._file, group, stop=stops[group]))
        )

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

    def _checked(self, read: Callable[[], Documents | pq.ParquetFile]) -> Documents | pq.ParquetFile:
        try:
            return retry(read, self._path, unclear=(ValueError,))
        except (OSError, ValueError) as error:
            said = " ".join(str(error).split())
            raise OSError(f"{self._path} cannot be read: {said}; write the data set again") from error


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
        path: the data set's folder.
        windows: window numbers of the split, such as a batch's `window_ids`.
        split: `train` or `validation`.

    Raises:
        IndexError: the split has no such window.
        ValueError: there is no such data set or split, or it has no documents' table.
        OSError: a file is missing or damaged.

    """
    folder = expand_user(check_path("path", path, "must be a data set's folder")).absolute()
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
    found: list[list[DocumentSpan]] = [[] for _ in numbers]
    for at in np.argsort(starts, kind="stable"):  # front to back, so that each part of the table is read once
        if numbers[at] >= 0:
            start = int(starts[at])
            found[at] = [describe(*document) for document in table.find(start, start + int(lengths[at]))]
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
    ends = np.cumsum([count for shard in files.entry.shards for count in shard.row_groups], dtype=np.int64)
    groups = np.searchsorted(ends, numbers, side="right")
    starts, lengths = np.zeros(len(numbers), np.int64), np.zeros(len(numbers), np.int64)
    for group in np.unique(groups[numbers >= 0]).tolist():
        here = np.flatnonzero((groups == group) & (numbers >= 0))
        rows = files.read(group, with_ids=False)[2]
        at = numbers[here] - (ends[group - 1] if group else 0)
        starts[here], lengths[here] = rows.starts[at], rows.lengths[at]
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
