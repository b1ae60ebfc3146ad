"""What flows from a corpus to the tokenizer: partitions, the documents in them, and rejected documents."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.base.arrow import binary_array
from pipeline.corpus.signatures import SIGNATURE_BYTES, describe_content

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.corpus.hashed import HeldFiles, Trusted
    from pipeline.corpus.spool import SpooledRange

BATCH_BYTES = 8 << 20  # of text in a batch: large enough to amortize a call, small enough for memory
# The longest document that is buffered in full if no limit is given: encoding takes up to 9 times its bytes.
MAX_BUFFERED_BYTES = 64 << 20
HEAD_BYTES = 200  # how much of a rejected document its quarantine entry shows
KEY_BYTES = 1 << 20  # a document's first bytes assign its split: they are known with a long text's first segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """The piece of a corpus that one task reads, tokenizes and caches."""

    reader: str  # a key of `reader.READERS`
    paths: tuple[str, ...]  # the files to read; empty for a built-in corpus
    names: tuple[str, ...]  # the same relative to the corpus: equal on every machine. They decide no document
    keys: tuple[str, ...]  # for each name a sha256 over what decides its documents: reader, range and content
    num_bytes: int  # size of the input as it is on disk
    start: int = 0  # first byte, row group or row of a single file
    stop: int | None = None  # the one after the last; None: to the end
    first_row: int = 0  # the line or row of its source at which it starts
    field: str = ""  # which field of a line or row holds the text
    is_segment: bool = False  # it is a segment of a long text
    continues: bool = False  # that text continues in the next partition
    is_group: bool = False  # of small files, each of which is complete
    stamps: tuple[tuple[int, int], ...] = ()  # each file's size and modification time when it was hashed
    texts: tuple[bytes, ...] = dataclasses.field(default=(), repr=False)  # of a corpus in memory
    trusted: tuple[Trusted, ...] = dataclasses.field(default=(), compare=False)  # what was not read to be hashed
    held: HeldFiles | None = dataclasses.field(default=None, repr=False, compare=False)  # contents of a group's files
    spooled: SpooledRange | None = dataclasses.field(default=None, repr=False, compare=False)  # content of an object

    def select(self, start: int, stop: int) -> Partition:
        """Return a group of only some of its files."""
        assert self.is_group, "only a group can be divided"
        chosen = slice(start, stop)
        return dataclasses.replace(
            self,
            paths=self.paths[chosen],
            names=self.names[chosen],
            keys=self.keys[chosen],
            stamps=self.stamps[chosen],
            num_bytes=sum(size for size, _ in self.stamps[chosen]),
            trusted=tuple(
                one._replace(source=one.source - start) for one in self.trusted if start <= one.source < stop
            ),
            held=self.held and self.held.select(start, stop),
        )

    def forget(self) -> None:
        """Forget what is kept of its files since they were hashed."""
        for kept in (self.held, self.spooled):
            if kept is not None:
                kept.forget()


class DocumentFault(NamedTuple):
    """What is wrong with a document."""

    reason: str  # not_utf8, not_json, ...: one word, which is counted
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedDocument:
    """A document that cannot be used."""

    source: str
    index: int  # of the source in its partition
    location: str  # in the source, as people count: `line 3`, `row 2`; empty for all of it
    row: int  # the same from 0
    reason: str
    detail: str
    head: bytes  # its first bytes

    def __str__(self) -> str:
        """Where it is and what is wrong with it."""
        return f"{self.source}{self.location and ', '}{self.location}: {self.reason}: {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentBatch:
    """Some documents of one partition, or one segment of a long document."""

    # From a reader large_binary, or large_string if they are UTF-8; after `read_partition` large_string, none empty or
    # null.
    texts: pa.Array
    sources: np.ndarray  # int32 [documents], index into the partition's names
    rows: np.ndarray  # int64 [documents], the document's row or line in its source, from 0
    rejected: list[RejectedDocument] = field(default_factory=list)
    skipped: Counter[tuple[int, str]] = field(default_factory=Counter)  # documents without text: (source, reason)
    key: bytes | None = None  # not None: `texts` is one segment of a long text that starts with these `KEY_BYTES`
    offset: int = 0  # bytes of that text before this segment
    continues: bool = False  # that text continues in the next batch or partition
    rollback: bool = False  # the long text turned out to be invalid: drop its earlier segments


def one_batch(texts: Sequence[bytes], sources: Iterable[int], rows: Iterable[int], **more: object) -> DocumentBatch:
    """Make a batch from documents that are Python objects."""
    return DocumentBatch(
        texts=binary_array(texts),
        sources=np.fromiter(sources, np.int32),
        rows=np.fromiter(rows, np.int64),
        **more,  # type: ignore[arg-type]
    )


def describe_location(reader: str, row: int) -> str:
    """Say where in its source a document is, as people count."""
    if reader == "text":
        return ""
    return {"jsonl": f"line {row + 1}", "delimited": f"document {row + 1}"}.get(reader, f"row {row}")


def reject(partition: Partition, source: int, row: int, fault: DocumentFault, head: bytes) -> RejectedDocument:
    """Describe a document of a partition that cannot be used."""
    return RejectedDocument(
        source=partition.names[source],
        index=source,
        location=describe_location(partition.reader, row),
        row=row,
        reason=fault.reason,
        detail=fault.detail,
        head=head[:HEAD_BYTES],
    )


def only_rejected(one: RejectedDocument, *, rollback: bool = False) -> DocumentBatch:
    """Make a batch without documents that reports a rejected one."""
    return one_batch([], [], [], rejected=[one], rollback=rollback)


def too_long(size: int, limit: int, what: str = "") -> DocumentFault:
    """Describe a document above the limit."""
    return DocumentFault("too_long", f"{size} bytes{what} are more than corpus.max_document_bytes={limit}")


def not_utf8(text: bytes, offset: int = 0) -> DocumentFault | None:
    """Describe the first byte of a text that is not UTF-8, if there is one; `offset` bytes come before the text."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        value, what = text[error.start], "" if offset else describe_content(text[:SIGNATURE_BYTES])
        where = f"byte {offset + error.start} (0x{value:02x}) is not UTF-8"
        return DocumentFault("not_utf8", f"{where}: {what or error.reason}")
    return None


def binary(head: bytes, num_nuls: int) -> DocumentFault:
    """Describe data that is not text although its bytes are UTF-8."""
    what = describe_content(head[:SIGNATURE_BYTES]) or "it is binary data"
    return DocumentFault("binary", f"{what} ({num_nuls} NUL bytes)")


def as_utf8(texts: pa.Array) -> pa.Array | None:
    """Return texts as large_string if all of them are UTF-8; what has that type is. Arrow checks 1 to 16 GB/s."""
    if pa.types.is_large_string(texts.type):
        return texts
    try:
        return texts.cast(pa.large_string())
    except pa.ArrowInvalid:
        return None


def hash_parts(parts: Iterable[object]) -> str:
    """Hash a list with sha256, each item preceded by its length, so that no two lists hash the same bytes."""
    return hashlib.sha256(b"".join(map(_with_length, parts))).hexdigest()


def hash_each(parts: Iterable[object], lasts: Iterable[object]) -> tuple[str, ...]:
    """Return `hash_parts([*parts, last])` for each last item, in a fraction of the time."""
    start = hashlib.sha256(b"".join(map(_with_length, parts)))
    hashes = []
    for last in lasts:
        digest = start.copy()
        digest.update(_with_length(last))
        hashes.append(digest.hexdigest())
    return tuple(hashes)


def _with_length(part: object) -> bytes:
    # a file's name may be any bytes: Python represents those that are not UTF-8 as surrogates
    content = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
    return len(content).to_bytes(8, "little") + content
