"""What flows from a corpus to the tokenizer: input splits, the documents in them, and those that cannot be used."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BATCH_BYTES = 8 << 20  # of text in one batch: enough to amortize a call, little enough for memory
# The longest document that is held in memory whole, where no limit is given: encoding takes up to 9 times its bytes.
MAX_BUFFERED_BYTES = 64 << 20
HEAD_BYTES = 200  # how much of a bad document its quarantine entry shows
KEY_BYTES = 1 << 20  # a document is held out by its first so many bytes: known with the first piece of a long text


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A part of a corpus that is read, tokenized and cached on its own."""

    reader: str  # a key of readers.READERS
    paths: tuple[str, ...]  # files to read; empty for a corpus that is embedded
    names: tuple[str, ...]  # the same relative to the corpus: equal on every machine
    identity: str  # sha256 over all that decides its documents: reader, names, place and content
    num_bytes: int  # of input, as it lies in its files
    start: int = 0  # first byte, row group or row of a single file; 0: from its begin
    stop: int | None = None  # the one behind the last; None: to its end
    first_row: int = 0  # the line or row of its source with which it begins
    field: str = ""  # where the text is in a line or row
    is_piece: bool = False  # of a long text that is cut
    goes_on: bool = False  # that text goes on in the next split
    stamps: tuple[tuple[int, int], ...] = ()  # each file's size and time of change when it was hashed
    texts: tuple[bytes, ...] = dataclasses.field(default=(), repr=False)  # of a corpus in memory


class DocumentFault(NamedTuple):
    """What is wrong with a document."""

    reason: str  # not_utf8, not_json, ...: one word that is counted
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedDocument:
    """A document that cannot be used."""

    source: str
    place: str  # where in the source, as people count: `line 3`, `row 2`; empty for the whole
    row: int  # the same from 0
    reason: str
    detail: str
    head: bytes  # its first bytes

    def __str__(self) -> str:
        """Where it is and what is wrong with it."""
        return f"{self.source}{self.place and ', '}{self.place}: {self.reason}: {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentBatch:
    """Some documents of one split, or one piece of a long one."""

    texts: pa.Array  # from a reader large_binary with nulls; after `read_partition` large_string, none empty or null
    sources: np.ndarray  # int32 [documents], index into the split's names
    rows: np.ndarray  # int64 [documents], the document's row or line in its source, from 0
    bad: list[RejectedDocument] = field(default_factory=list)
    document: bytes | None = None  # set: `texts` is one piece of a long text, and these are its first `KEY_BYTES`
    before: int = 0  # bytes of that text before this piece
    goes_on: bool = False  # that text goes on in the next batch or split
    abandoned: bool = False  # the open text is bad after all: its pieces so far are to be taken back


def one_batch(
    texts: Sequence[bytes | None], sources: Iterable[int], rows: Iterable[int], **more: object
) -> DocumentBatch:
    """A batch of documents that are Python objects."""
    return DocumentBatch(
        texts=pa.array(texts, pa.large_binary()),
        sources=np.fromiter(sources, np.int32),
        rows=np.fromiter(rows, np.int64),
        **more,  # type: ignore[arg-type]
    )


def as_utf8(texts: pa.Array) -> pa.Array | None:
    """A large_binary array as large_string, if all of it is UTF-8. Arrow checks 16 GB/s."""
    try:
        return texts.cast(pa.large_string())
    except pa.ArrowInvalid:
        return None


def hash_parts(parts: Iterable[object]) -> str:
    """One sha256 over parts, each with its length before it, so that no two lists of parts look the same."""
    digest = hashlib.sha256()
    for part in parts:
        # a file's name may be any bytes: Python holds those that are no UTF-8 as surrogates
        content = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()
