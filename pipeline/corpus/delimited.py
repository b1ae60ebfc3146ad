"""Read text files of several documents, with a delimiter between two of them.

A document is what is between two delimiters, found from left to right, without them. The delimiter may cross blocks. A
large file is cut after a delimiter that no other occurrence overlaps, so every cut gives the same documents.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from pipeline.corpus.compression import read_raw
from pipeline.corpus.documents import (
    BATCH_BYTES,
    HEAD_BYTES,
    DocumentBatch,
    Partition,
    one_batch,
    only_rejected,
    reject,
    too_long,
)
from pipeline.corpus.hashed import read_file
from pipeline.corpus.signatures import check_format

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from pipeline.corpus.opened import Stamp
    from pipeline.corpus.spool import SpooledRange


def read_delimited(partition: Partition, limit: int) -> Iterator[DocumentBatch]:
    """Yield the documents of some files, or of a byte range of one; one over `limit` bytes is rejected."""
    for source, path in enumerate(partition.paths):
        texts: list[bytes] = []
        row, first, size = partition.first_row, partition.first_row, 0
        blocks = read_file(partition, source)
        if partition.start == 0:
            blocks = check_format(path, blocks, text=True)
        for text, length in _documents(blocks, partition.field.encode(), limit, is_start=partition.start == 0):
            if texts and (length or size >= BATCH_BYTES):
                yield one_batch(texts, [source] * len(texts), range(first, row))
                texts, first, size = [], row, 0
            row += 1
            if length:
                yield only_rejected(reject(partition, source, row - 1, too_long(length, limit), text))
                first = row
            else:
                texts.append(text)
                size += len(text)
        if texts:
            yield one_batch(texts, [source] * len(texts), range(first, row))


def _documents(blocks: Iterable[bytes], delimiter: bytes, limit: int, *, is_start: bool) -> Iterator[tuple[bytes, int]]:
    """Yield each document and 0; of one over `limit` bytes its first bytes and its size so far.

    The last one is left out if it has no byte, unless it is all there is.
    """
    buffered, dropped = b"", 0
    for block in blocks:
        *complete, buffered = (buffered + block).split(delimiter)
        for text in complete:
            if not dropped:
                yield (text[:HEAD_BYTES], len(text)) if len(text) > limit else (text, 0)
            dropped, is_start = 0, False
        if len(buffered) > limit:
            if not dropped:
                yield buffered[:HEAD_BYTES], len(buffered)
            dropped, is_start = 1, False
            buffered = buffered[-len(delimiter) + 1 :] if len(delimiter) > 1 else b""
    if not dropped and (buffered or is_start):
        yield buffered, 0


def find_delimiter(
    path: str | Path,
    at: int,
    *,
    delimiter: bytes,
    stamp: Stamp | None = None,
    spooled: SpooledRange | None = None,
    blocks: int | None = None,
) -> int | None:
    """Return the offset after the first delimiter from byte `at` of a file that no other one overlaps; None if none.

    With `blocks`, no more than this many blocks are read for it.
    """
    reach = len(delimiter) - 1
    offset = max(0, at - reach)
    buffered, searched = b"", at - offset
    for block in islice(read_raw(path, start=offset, stamp=stamp, spooled=spooled), blocks):
        buffered += block
        while (found := buffered.find(delimiter, searched)) >= 0:
            if buffered.find(delimiter, max(0, found - reach), found + reach) < 0:
                return offset + found + len(delimiter)
            searched = found + 1
        drop = max(0, len(buffered) - 2 * reach - 1)
        searched = max(searched, len(buffered) - reach) - drop
        buffered, offset = buffered[drop:], offset + drop
    return None


class DelimiterCount:
    """Count delimiters in consecutive blocks, from left to right."""

    def __init__(self, delimiter: bytes) -> None:
        self._delimiter, self._rest, self.count = delimiter, b"", 0

    def add(self, block: bytes) -> None:
        """Count those that end in the next block."""
        if len(self._delimiter) == 1:
            self.count += int(np.count_nonzero(np.frombuffer(block, np.uint8) == self._delimiter[0]))
            return
        *complete, rest = (self._rest + block).split(self._delimiter)
        self.count += len(complete)
        self._rest = rest[max(0, len(rest) - len(self._delimiter) + 1) :]
