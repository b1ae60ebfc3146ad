"""Readers: an input split to batches of documents, in memory that does not grow with the split.

A reader yields texts as they are; `read_partition` then rejects what is null, empty, too long or not UTF-8. A text
file that may be cut is read in segments that encode to the IDs of the complete text. If a later segment is invalid, the
document is dropped and its earlier segments are rolled back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
    RejectedDocument,
    as_utf8,
    one_batch,
)
from pipeline.corpus.huggingface import read_huggingface
from pipeline.corpus.jsonl import parse_lines
from pipeline.corpus.parquet import read_parquet
from pipeline.corpus.partitions import check_unchanged
from pipeline.corpus.quarantine import REMEDY

if TYPE_CHECKING:
    from collections.abc import Iterator

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_partition(
    split: Partition, *, max_document_bytes: int | None, on_bad: str, cut_safe: bool
) -> Iterator[DocumentBatch]:
    """The documents of one split: valid UTF-8, none empty; bad ones apart.

    Without `max_document_bytes` a document may have `MAX_BUFFERED_BYTES`, and a text that may be cut any size.

    Raises:
        ValueError: a document is bad and `on_bad` is `raise`: its file, its place, the rule and what to do. Or a file
            cannot be read, is truncated or damaged, or was changed since it was hashed.

    """
    check_unchanged(split)
    limit = max_document_bytes or MAX_BUFFERED_BYTES
    if split.reader == "text":
        batches = _read_text(split, max_document_bytes=max_document_bytes, cut_safe=cut_safe)
    elif split.reader == "jsonl":
        batches = _read_jsonl(split, max(limit, MAX_BUFFERED_BYTES))
    elif split.reader == "parquet":
        batches = read_parquet(split)
    elif split.reader == "huggingface":
        batches = read_huggingface(split)
    elif split.reader == "texts":
        batches = _read_texts(split)
    else:
        assert split.reader == "python_docs", split.reader
        batches = _read_python_docs()
    for raw in batches:
        batch = raw if raw.document or raw.abandoned else _sort_out(split, raw, limit)
        if batch.bad and on_bad == "raise":
            raise ValueError(f"{batch.bad[0]}. {REMEDY}")
        yield batch
    check_unchanged(split)


def describe_location(reader: str, row: int) -> str:
    """Where in its source a document is, as people count."""
    if reader == "text":
        return ""
    return f"line {row + 1}" if reader == "jsonl" else f"row {row}"


def _bad(split: Partition, source: int, row: int, fault: DocumentFault, head: bytes) -> RejectedDocument:
    return RejectedDocument(
        source=split.names[source],
        place=describe_location(split.reader, row),
        row=row,
        reason=fault.reason,
        detail=fault.detail,
        head=head[:HEAD_BYTES],
    )


def _sort_out(split: Partition, raw: DocumentBatch, limit: int) -> DocumentBatch:
    """A reader's batch without its bad documents, which are listed apart."""
    texts, whole = raw.texts, as_utf8(raw.texts)
    lengths = pc.binary_length(texts)
    sizes = (lengths.fill_null(0) if texts.null_count else lengths).to_numpy(zero_copy_only=False)
    if whole is None:
        suspects = np.arange(len(texts))
    else:
        suspects = np.flatnonzero((sizes == 0) | (sizes > limit))
        if not len(suspects):
            return DocumentBatch(texts=whole, sources=raw.sources, rows=raw.rows, bad=raw.bad)
    bad, is_bad = list(raw.bad), np.zeros(len(texts), bool)
    for at in suspects.tolist():
        head, fault = _fault(texts[at], limit)
        if fault:
            is_bad[at] = True
            bad.append(_bad(split, int(raw.sources[at]), int(raw.rows[at]), fault, head))
    bad.sort(key=lambda one: (split.names.index(one.source), one.row))
    good = ~is_bad
    texts = texts.filter(pa.array(good)).cast(pa.large_string())
    return DocumentBatch(texts=texts, sources=raw.sources[good], rows=raw.rows[good], bad=bad)


def _fault(document: pa.LargeBinaryScalar, limit: int) -> tuple[bytes, DocumentFault | None]:
    """A document's first bytes, and what is wrong with it."""
    if not document.is_valid:
        return b"", DocumentFault("null", "the field is null")
    buffer = document.as_buffer()
    if not buffer.size:
        return b"", DocumentFault("empty", "the document has no text")
    head = buffer.slice(0, min(buffer.size, HEAD_BYTES)).to_pybytes()
    return head, _too_long(buffer.size, limit) if buffer.size > limit else _not_utf8(buffer.to_pybytes(), 0)


def _not_utf8(text: bytes, before: int) -> DocumentFault | None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        value = text[error.start]
        return DocumentFault("not_utf8", f"byte {before + error.start} (0x{value:02x}) is not UTF-8: {error.reason}")
    return None


def _too_long(size: int, limit: int, what: str = "") -> DocumentFault:
    return DocumentFault("too_long", f"{size} bytes{what} are more than corpus.max_document_bytes={limit}")


def _read_python_docs() -> Iterator[DocumentBatch]:
    from pydoc_data.topics import topics

    yield one_batch([topics[name].encode() for name in sorted(topics)], [0] * len(topics), range(len(topics)))


def _read_texts(partition: Partition) -> Iterator[DocumentBatch]:
    """The texts of a corpus in memory, in batches of about `BATCH_BYTES`."""
    start = size = 0
    for at, text in enumerate(partition.texts, 1):
        size += len(text)
        if size >= BATCH_BYTES or at == len(partition.texts):
            rows = range(partition.first_row + start, partition.first_row + at)
            yield one_batch(partition.texts[start:at], [0] * (at - start), rows)
            start, size = at, 0


def _read_text(split: Partition, *, max_document_bytes: int | None, cut_safe: bool) -> Iterator[DocumentBatch]:
    """Whole small files together, and a larger file in pieces where it may be cut."""
    texts: list[bytes | None] = []
    sources: list[int] = []
    size = 0
    for source, path in enumerate(split.paths):
        file_size = split.stamps[source][0]
        if max_document_bytes and file_size > max_document_bytes and not is_packed(path):
            if split.start == 0:  # of a file that is cut, the first piece speaks for all
                if texts:  # what comes first is said first
                    yield one_batch(texts, sources, [0] * len(texts))
                    texts, sources, size = [], [], 0
                head = next(read_blocks(path, stop=min(file_size, HEAD_BYTES)), b"")
                bad = [_bad(split, source, 0, _too_long(file_size, max_document_bytes), head)]
                yield one_batch([], [], [], bad=bad)
            continue
        for found in _pieces(split, source, max_document_bytes=max_document_bytes, cut_safe=cut_safe):
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


def _pieces(
    split: Partition, source: int, *, max_document_bytes: int | None, cut_safe: bool
) -> Iterator[bytes | DocumentBatch]:
    """One file: whole as bytes, or in pieces of about `BATCH_BYTES`."""
    limit = max_document_bytes or MAX_BUFFERED_BYTES
    counts_whole = max_document_bytes is not None or not cut_safe
    before = split.start
    document = b"".join(read_blocks(split.paths[source], stop=KEY_BYTES)) if split.is_piece else None
    held, searched, taken = bytearray(), 0, 0
    head = b""
    for block in read_blocks(split.paths[source], start=split.start, stop=split.stop):
        held += block
        head = head or bytes(held[:HEAD_BYTES])
        taken += len(block)
        size = taken if counts_whole else len(held)
        if size > limit:
            what = "" if counts_whole else " without an ASCII space to cut at"
            yield _abandon(split, source, _too_long(size, limit, what), head)
            return
        if not cut_safe or len(held) <= BATCH_BYTES:
            continue
        place = _last_cut(held, searched)
        searched = len(held) - 4
        if place:
            document = document or bytes(held[:KEY_BYTES])
            piece = _piece(
                split, source, bytes(held[:place]), before=before, document=document, head=head, goes_on=True
            )
            yield piece
            if piece.abandoned:
                return
            before, held, searched = before + place, held[place:], 0
    if document:
        yield _piece(split, source, bytes(held), before=before, document=document, head=head, goes_on=split.goes_on)
    else:
        yield bytes(held)


def _piece(
    split: Partition, source: int, text: bytes, *, before: int, document: bytes, head: bytes, goes_on: bool
) -> DocumentBatch:
    texts = as_utf8(pa.array([text], pa.large_binary()))
    if texts is None:
        fault = _not_utf8(text, before)
        assert fault, "Arrow refuses what Python reads as UTF-8"
        return _abandon(split, source, fault, head)
    return DocumentBatch(
        texts=texts,
        sources=np.array([source], np.int32),
        rows=np.zeros(1, np.int64),
        document=document,
        before=before,
        goes_on=goes_on,
    )


def _abandon(split: Partition, source: int, fault: DocumentFault, head: bytes) -> DocumentBatch:
    assert not split.is_piece, f"{split.paths[source]} was cut as whole UTF-8, but is not: {fault.detail}"
    return one_batch([], [], [], bad=[_bad(split, source, 0, fault, head)], abandoned=True)


def _last_cut(text: bytearray, searched: int) -> int | None:
    """A place near the end where a text may be cut, or else the last one behind `searched`."""
    for start in (max(searched, len(text) - (64 << 10)), searched):
        if place := max(safe_cuts(text, max(0, start - 4)), default=None):
            return place
    return None


def _read_jsonl(split: Partition, limit: int) -> Iterator[DocumentBatch]:
    for source, path in enumerate(split.paths):
        row = split.first_row
        blocks = read_blocks(path, start=split.start, stop=split.stop)
        for block, too_long in _whole_lines(blocks, limit, is_start=split.start == 0):
            if too_long:
                fault = _too_long(too_long, limit, " of one line")
                yield one_batch([], [], [], bad=[_bad(split, source, row, fault, block)])
                row += 1
                continue
            lines = parse_lines(block, split.field)
            yield DocumentBatch(
                texts=lines.texts,
                sources=np.full(len(lines.texts), source, np.int32),
                rows=lines.rows + row,
                bad=[_bad(split, source, row + at, fault, line) for at, fault, line in lines.faults],
            )
            row += lines.num_lines


def _without_mark(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The blocks without a byte order mark at their begin, which may lie across the first ones."""
    begin = b""
    while len(begin) < len(BYTE_ORDER_MARK) and (block := next(blocks, None)) is not None:
        begin += block
    yield begin.removeprefix(BYTE_ORDER_MARK)
    yield from blocks


def _whole_lines(blocks: Iterator[bytes], limit: int, *, is_start: bool) -> Iterator[tuple[bytes, int]]:
    """Blocks of whole lines. A line over `limit` bytes comes alone: its first bytes, and how many there were so far."""
    held: list[bytes] = []  # the begin of a line that has not ended yet
    size = 0
    skipping = False
    for block in _without_mark(blocks) if is_start else blocks:
        end = block.rfind(b"\n") + 1
        if end and skipping:
            skipping = False
            first = block.find(b"\n") + 1
            block, end = block[first:], end - first  # noqa: PLW2901 - what is left of it
        elif skipping:
            continue
        if end:
            yield b"".join([*held, memoryview(block)[:end]]), 0  # one copy, not two
            held, size = [], 0
            block = block[end:]  # noqa: PLW2901
        if block:
            held.append(block)
            size += len(block)
        if size > limit:
            yield held[0][:HEAD_BYTES], size
            held, size, skipping = [], 0, True
    if held:
        yield b"".join(held), 0
