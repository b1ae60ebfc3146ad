"""Read plain text files, one document each: small files in batches, a larger one in segments.

A file that may be cut is read in segments that encode to the IDs of the complete text. If a later segment is invalid,
the document is rejected and its earlier segments are rolled back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.base.arrow import binary_array
from pipeline.base.cut_points import safe_cuts
from pipeline.corpus.compression import is_packed, read_blocks
from pipeline.corpus.documents import (
    BATCH_BYTES,
    HEAD_BYTES,
    KEY_BYTES,
    MAX_BUFFERED_BYTES,
    DocumentBatch,
    DocumentFault,
    Partition,
    as_utf8,
    binary,
    not_utf8,
    one_batch,
    only_rejected,
    reject,
    too_long,
)
from pipeline.corpus.hashed import read_range, read_small
from pipeline.corpus.signatures import check_format, check_text, is_binary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SEARCHED_BYTES = 64 << 10  # at the end of the buffered text, where a cut is looked for first


def read_text(partition: Partition, *, max_document_bytes: int | None, cut_safe: bool) -> Iterator[DocumentBatch]:
    """Yield small files together, and a larger one in segments if `cut_safe`."""
    texts: list[bytes] = []
    sources: list[int] = []
    size = 0
    for source, path in enumerate(partition.paths):
        if partition.is_group and not is_packed(path) and _fits(partition, source, max_document_bytes):
            content = read_small(partition, source)
            check_text(path, content)
            file: Iterable[bytes | DocumentBatch] = (content,)
        else:
            file = _read_file(partition, source, max_document_bytes=max_document_bytes, cut_safe=cut_safe)
        for found in file:
            if isinstance(found, bytes):
                texts.append(found)
                sources.append(source)
                size += len(found)
            if texts and (size >= BATCH_BYTES or isinstance(found, DocumentBatch)):
                yield one_batch(texts, sources, [0] * len(texts))
                texts, sources, size = [], [], 0
            if isinstance(found, DocumentBatch):
                yield found
    if texts:
        yield one_batch(texts, sources, [0] * len(texts))


def _fits(partition: Partition, source: int, max_document_bytes: int | None) -> bool:
    """Tell whether a small file is a document that is read in one step."""
    return partition.stamps[source][0] <= min(BATCH_BYTES, max_document_bytes or MAX_BUFFERED_BYTES)


def _read_file(
    partition: Partition, source: int, *, max_document_bytes: int | None, cut_safe: bool
) -> Iterator[bytes | DocumentBatch]:
    """Yield one file: all of it as bytes, or segments of about `BATCH_BYTES`."""
    path, file_size = partition.paths[source], partition.stamps[source][0]
    if max_document_bytes and file_size > max_document_bytes and not is_packed(path):
        if partition.start == 0:  # of a file that is cut, the first partition reports for all
            head = next(read_blocks(path, stop=min(file_size, HEAD_BYTES)), b"")
            yield only_rejected(reject(partition, source, 0, too_long(file_size, max_document_bytes), head))
        return
    limit = max_document_bytes or MAX_BUFFERED_BYTES
    limits_all = max_document_bytes is not None or not cut_safe  # else only what is between two cuts
    offset = partition.start
    key = b"".join(read_blocks(path, stop=KEY_BYTES, spooled=partition.spooled)) if partition.is_segment else None
    buffered, searched, num_read = bytearray(), 0, 0
    head = b""
    blocks = read_blocks(path) if partition.is_group else read_range(partition)
    for block in blocks if partition.start else check_format(path, blocks, text=True):
        buffered += block
        head = head or bytes(buffered[:HEAD_BYTES])
        num_read += len(block)
        size = num_read if limits_all else len(buffered)
        if size > limit:
            what = "" if limits_all else " without an ASCII space to cut at"
            yield _drop(partition, source, too_long(size, limit, what), head)
            return
        if not cut_safe or len(buffered) <= BATCH_BYTES:
            continue
        cut = _last_cut(buffered, searched)
        searched = len(buffered) - 4
        if cut:
            key = key or bytes(buffered[:KEY_BYTES])
            segment = _segment(partition, source, bytes(buffered[:cut]), offset=offset, key=key, head=head)
            yield segment
            if segment.rollback:
                return
            offset, buffered, searched = offset + cut, buffered[cut:], 0
    if key:
        last = bytes(buffered)
        yield _segment(partition, source, last, offset=offset, key=key, head=head, continues=partition.continues)
    else:
        yield bytes(buffered)


def _segment(
    partition: Partition, source: int, text: bytes, *, offset: int, key: bytes, head: bytes, continues: bool = True
) -> DocumentBatch:
    texts = as_utf8(binary_array([text]))
    if texts is None:
        fault = not_utf8(text, offset)
        assert fault, "Arrow refuses what Python reads as UTF-8"
        return _drop(partition, source, fault, head)
    if not partition.is_segment and is_binary(num_nuls := text.count(b"\0"), len(text)):  # else the hashing looked
        return _drop(partition, source, binary(text, num_nuls), head)
    return DocumentBatch(
        texts=texts,
        sources=np.array([source], np.int32),
        rows=np.zeros(1, np.int64),
        key=key,
        offset=offset,
        continues=continues,
    )


def _drop(partition: Partition, source: int, fault: DocumentFault, head: bytes) -> DocumentBatch:
    assert not partition.is_segment, f"{partition.paths[source]} was cut as valid UTF-8, but is not: {fault.detail}"
    return only_rejected(reject(partition, source, 0, fault, head), rollback=True)


def _last_cut(text: bytearray, searched: int) -> int | None:
    """Return a position near the end at which the text may be cut, or else the last one after `searched`."""
    for start in (max(searched, len(text) - SEARCHED_BYTES), searched):
        if cut := max(safe_cuts(text, max(0, start - 4)), default=None):
            return cut
    return None
