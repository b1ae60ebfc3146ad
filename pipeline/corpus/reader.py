"""Read a partition as batches of documents, in memory that does not grow with the partition.

Each format's reader yields texts as they are. `read_partition` then skips the documents without text (null, empty or
only white space), and rejects what is too long, binary or not UTF-8.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.base.arrow import flags_array, flags_of
from pipeline.corpus.delimited import read_delimited
from pipeline.corpus.documents import (
    BATCH_BYTES,
    HEAD_BYTES,
    MAX_BUFFERED_BYTES,
    DocumentBatch,
    DocumentFault,
    Partition,
    as_utf8,
    binary,
    not_utf8,
    one_batch,
    reject,
    too_long,
)
from pipeline.corpus.hashed import check_unchanged
from pipeline.corpus.huggingface import read_huggingface
from pipeline.corpus.jsonl import read_jsonl
from pipeline.corpus.known_hashes import check_trusted
from pipeline.corpus.parquet import read_parquet
from pipeline.corpus.quarantine import REMEDY
from pipeline.corpus.signatures import is_binary
from pipeline.corpus.text import read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


BLANK_STARTS = np.zeros(256, bool)  # the bytes with which white space starts: ASCII, or a longer character's first
BLANK_STARTS[[*range(0x09, 0x0E), *range(0x1C, 0x21), 0xC2, 0xE1, 0xE2, 0xE3]] = True


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
    """Yield the documents of one partition: valid UTF-8 with some text; rejected ones are listed, skipped ones counted.

    Without `max_document_bytes` the limit is `MAX_BUFFERED_BYTES`; a text that may be read in segments has no limit.

    Raises:
        ValueError: a document is rejected and `on_bad` is `raise`: its file, its location, the rule and what to do. Or
            a file cannot be read, is truncated or damaged, or has changed since it was hashed.

    """
    check_unchanged(partition)
    check_trusted(partition)
    limits = Limits(max_document_bytes, cut_safe)
    for raw in READERS[partition.reader](partition, limits):
        batch = raw if raw.key or raw.rollback else _sort_out(partition, raw, limits.document_bytes)
        if batch.rejected and on_bad == "raise":
            raise ValueError(f"{batch.rejected[0]}. {REMEDY}")
        yield batch
    check_unchanged(partition)


def _sort_out(partition: Partition, raw: DocumentBatch, limit: int) -> DocumentBatch:
    """Move the documents of a batch that cannot be used to its rejected or skipped ones."""
    texts, as_text = raw.texts, as_utf8(raw.texts)
    if not len(texts):
        return dataclasses.replace(raw, texts=as_text)
    offsets = np.frombuffer(texts.buffers()[1], np.int64, len(texts) + 1, texts.offset * 8)
    data = texts.buffers()[2]
    content = np.frombuffer(data if data is not None else b"", np.uint8)
    sizes, nuls = np.diff(offsets), _count_nuls(content, offsets)
    is_suspect = (sizes == 0) | (sizes > limit) | (nuls > 1) | (as_text is None)
    some = np.flatnonzero(sizes)
    is_suspect[some] |= BLANK_STARTS[content[offsets[:-1][some]]]
    is_null = np.zeros(len(texts), bool)
    if texts.null_count:
        is_null = flags_of(texts.is_null())
    rejected, skipped, is_good = list(raw.rejected), Counter(raw.skipped), np.ones(len(texts), bool)
    for at in np.flatnonzero(is_suspect | is_null).tolist():
        source, text = int(raw.sources[at]), content[offsets[at] : offsets[at + 1]].data
        if reason := "null" if is_null[at] else _why_skipped(text):
            skipped[source, reason] += 1
        elif fault := _find_fault(text, int(nuls[at]), limit):
            rejected.append(reject(partition, source, int(raw.rows[at]), fault, bytes(text[:HEAD_BYTES])))
        else:
            continue
        is_good[at] = False
    if is_good.all():
        return dataclasses.replace(raw, texts=as_text)
    rejected.sort(key=lambda one: (one.index, one.row))
    return DocumentBatch(
        texts=texts.filter(flags_array(is_good)).cast(pa.large_string()),
        sources=raw.sources[is_good],
        rows=raw.rows[is_good],
        rejected=rejected,
        skipped=skipped,
    )


def _count_nuls(content: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Count the NUL bytes of each text."""
    if content[offsets[0] : offsets[-1]].min(initial=1):
        return np.zeros(len(offsets) - 1, np.int64)
    return np.diff(np.searchsorted(np.flatnonzero(content[: offsets[-1]] == 0), offsets))


def _why_skipped(text: memoryview) -> str:
    """Return the reason for which a document without text is skipped; nothing if it has some."""
    head = bytes(text[:HEAD_BYTES]).decode(errors="ignore")  # the last character may be cut
    if head and not head.isspace():
        return ""
    return ("blank" if bytes(text).decode(errors="replace").isspace() else "") if len(text) else "empty"


def _find_fault(text: memoryview, num_nuls: int, limit: int) -> DocumentFault | None:
    """Return what is wrong with a document that has some text."""
    if len(text) > limit:
        return too_long(len(text), limit)
    return not_utf8(bytes(text)) or (binary(bytes(text), num_nuls) if is_binary(num_nuls, len(text)) else None)


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
    "delimited": lambda partition, limits: read_delimited(partition, limits.document_bytes),
    "jsonl": lambda partition, limits: read_jsonl(partition, max(limits.document_bytes, MAX_BUFFERED_BYTES)),
    "parquet": lambda partition, _: read_parquet(partition),
    "huggingface": lambda partition, _: read_huggingface(partition),
    "texts": _read_texts,
    "python_docs": _read_python_docs,
}
