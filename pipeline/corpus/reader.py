"""Read a partition as batches of documents, in memory that does not grow with the partition.

Each format's reader yields texts as they are. `read_partition` then rejects what is null, empty, too long or not UTF-8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.documents import (
    BATCH_BYTES,
    HEAD_BYTES,
    MAX_BUFFERED_BYTES,
    DocumentBatch,
    DocumentFault,
    Partition,
    as_utf8,
    not_utf8,
    one_batch,
    reject,
    too_long,
)
from pipeline.corpus.huggingface import read_huggingface
from pipeline.corpus.jsonl import read_jsonl
from pipeline.corpus.parquet import read_parquet
from pipeline.corpus.partitions import check_unchanged
from pipeline.corpus.quarantine import REMEDY
from pipeline.corpus.text import read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Limits(NamedTuple):
    """What a reader needs to know besides its partition."""

    max_document_bytes: int | None
    cut_safe: bool  # the tokenizer allows reading a long text in segments

    @property
    def document_bytes(self) -> int:
        """The limit of a document that is buffered in full."""
        return self.max_document_bytes or MAX_BUFFERED_BYTES


def read_partition(
    partition: Partition, *, max_document_bytes: int | None, on_bad: str, cut_safe: bool
) -> Iterator[DocumentBatch]:
    """Yield the documents of one partition: valid UTF-8, none of them empty; rejected ones are listed apart.

    Without `max_document_bytes` the limit is `MAX_BUFFERED_BYTES`; a text that may be read in segments has no limit.

    Raises:
        ValueError: a document is rejected and `on_bad` is `raise`: its file, its location, the rule and what to do. Or
            a file cannot be read, is truncated or damaged, or has changed since it was hashed.

    """
    check_unchanged(partition)
    limits = Limits(max_document_bytes, cut_safe)
    for raw in READERS[partition.reader](partition, limits):
        batch = raw if raw.key or raw.rollback else _sort_out(partition, raw, limits.document_bytes)
        if batch.rejected and on_bad == "raise":
            raise ValueError(f"{batch.rejected[0]}. {REMEDY}")
        yield batch
    check_unchanged(partition)


def _sort_out(partition: Partition, raw: DocumentBatch, limit: int) -> DocumentBatch:
    """Move the documents of a batch that cannot be used to its rejected ones."""
    texts, as_text = raw.texts, as_utf8(raw.texts)
    lengths = pc.binary_length(texts)
    sizes = (lengths.fill_null(0) if texts.null_count else lengths).to_numpy(zero_copy_only=False)
    if as_text is None:
        suspects = np.arange(len(texts))
    else:
        suspects = np.flatnonzero((sizes == 0) | (sizes > limit))
        if not len(suspects):
            return DocumentBatch(texts=as_text, sources=raw.sources, rows=raw.rows, rejected=raw.rejected)
    rejected, is_good = list(raw.rejected), np.ones(len(texts), bool)
    for at in suspects.tolist():
        head, fault = _find_fault(texts[at], limit)
        if fault:
            is_good[at] = False
            rejected.append(reject(partition, int(raw.sources[at]), int(raw.rows[at]), fault, head))
    rejected.sort(key=lambda one: (partition.names.index(one.source), one.row))
    texts = texts.filter(pa.array(is_good)).cast(pa.large_string())
    return DocumentBatch(texts=texts, sources=raw.sources[is_good], rows=raw.rows[is_good], rejected=rejected)


def _find_fault(document: pa.LargeBinaryScalar, limit: int) -> tuple[bytes, DocumentFault | None]:
    """Return a document's first bytes, and what is wrong with it."""
    if not document.is_valid:
        return b"", DocumentFault("null", "the field is null")
    buffer = document.as_buffer()
    if not buffer.size:
        return b"", DocumentFault("empty", "the document has no text")
    head = buffer.slice(0, min(buffer.size, HEAD_BYTES)).to_pybytes()
    return head, too_long(buffer.size, limit) if buffer.size > limit else not_utf8(buffer.to_pybytes())


def _read_python_docs(_: Partition, __: Limits) -> Iterator[DocumentBatch]:
    from pydoc_data.topics import topics

    yield one_batch([topics[name].encode() for name in sorted(topics)], [0] * len(topics), range(len(topics)))


def _read_texts(partition: Partition, _: Limits) -> Iterator[DocumentBatch]:
    """Yield the texts of a corpus in memory, in batches of about `BATCH_BYTES`."""
    start = size = 0
    for at, text in enumerate(partition.texts, 1):
        size += len(text)
        if size >= BATCH_BYTES or at == len(partition.texts):
            rows = range(partition.first_row + start, partition.first_row + at)
            yield one_batch(partition.texts[start:at], [0] * (at - start), rows)
            start, size = at, 0


READERS: dict[str, Callable[[Partition, Limits], Iterator[DocumentBatch]]] = {
    "text": lambda partition, limits: read_text(
        partition, max_document_bytes=limits.max_document_bytes, cut_safe=limits.cut_safe
    ),
    "jsonl": lambda partition, limits: read_jsonl(partition, max(limits.document_bytes, MAX_BUFFERED_BYTES)),
    "parquet": lambda partition, _: read_parquet(partition),
    "huggingface": lambda partition, _: read_huggingface(partition),
    "texts": _read_texts,
    "python_docs": _read_python_docs,
}
