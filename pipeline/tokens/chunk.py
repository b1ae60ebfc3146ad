"""A chunk of the token store: what its files hold, and the checks that they are intact.

    <cache>/chunks/<id>/train.npy, validation.npy   the IDs, uint16 or uint32, an end-of-text token after each document;
                                                    a split without tokens has no file
    <cache>/chunks/<id>/documents.npy               one row for each document (DOCUMENT)
    <cache>/chunks/<id>/quarantine.jsonl            its rejected documents, if it has any
    <cache>/chunks/<id>/chunk.json                  counts by source, each file's size and checksum, and its own

A chunk contains no file names: it is known by its content, and a store says which names its sources have. Of a chunk
with several sources, which are small files, a store may use only some: a file is found again next to any others.

Guarantee: `find_chunk` notices a missing file, a file of another size and a changed `chunk.json`; `check_chunk` and
`check_file` notice a changed byte in any file. The checksum is CRC-32, as on Parquet's pages: it finds every run of up
to 32 changed bits, and misses other damage once in 2^32; it does not protect against a forger. Cost: 1.6 GB/s and core,
compared with sha256's 0.7 (both on a busy machine).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.base.reading import open_regular, read_fields
from pipeline.base.retry import read_twice, retry
from pipeline.tokens.mirror import fetch_chunk
from pipeline.tokens.source_counts import SourceCounts, read_columns, read_rows

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

NPY_HEADER_BYTES = 128
FILES = {"train.npy", "validation.npy", "documents.npy", "quarantine.jsonl"}
BLOCK_BYTES = 1 << 20
DOCUMENT = np.dtype(
    [
        ("split", "u1"),  # index into settings.SPLITS
        ("source", "<i4"),  # index into the chunk's sources
        ("row", "<i8"),  # the document's row or line in its source, from 0; 0 for a text file
        ("first", "<i8"),  # its first token in its split's part of the chunk
        ("count", "<i8"),  # its tokens, without the end-of-text token
    ]
)


class DamagedChunk(ValueError):  # noqa: N818 - what it is, and the message is for the user
    """A chunk that is not as it was written. Nothing is lost: its text is still there."""

    def __init__(self, folder: Path, what: str) -> None:
        super().__init__(f"{folder}: {what}; remove this folder: the next write stage that needs it makes it again")
        self.folder, self.what = folder, what


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What one chunk holds, as its `chunk.json` says."""

    id: str
    tokenizer: str  # its hash
    engine: str = ""  # that encoded its text; unknown in chunks of release 0.1.0
    tokens: dict[str, int]  # by split, end-of-text tokens included
    num_documents: dict[str, int]  # by split; a document continued from the chunk before is not counted again
    characters: int
    bytes: int
    special_text_found: int  # names of special tokens in the text
    audited: int  # documents that a second engine encoded to the same IDs, in full or their start
    bad: dict[str, int]  # reason -> rejected documents
    skipped: dict[str, int] = field(default_factory=dict)  # reason -> documents without text
    by_source: SourceCounts = field(default_factory=SourceCounts)  # these counts of each source
    sources: list[str] = field(default_factory=list)  # their names, in chunks of release 0.1.0 alone
    continued: bool  # its first document started in the chunk before
    files: dict[str, list[int]]  # name -> its bytes and its checksum (`FileSum`)
    # Of a chunk of which only some sources are used (`select`); `chunk.json` has neither.
    first: int = 0  # the first of these sources
    offsets: dict[str, int] = field(default_factory=dict)  # by split, their first token

    @property
    def units(self) -> list[str]:
        """What identifies its sources; of release 0.1.0 the chunk itself."""
        return self.by_source.unit or [self.id]

    def select(self, start: int, stop: int) -> Chunk:
        """Return the chunk with only some of its sources: the counts are theirs."""
        if (start, stop) == (0, len(self.by_source)):
            return self
        before, chosen = self.by_source.select(0, start), self.by_source.select(start, stop)
        offsets = before.total()["tokens"]
        return dataclasses.replace(
            self, **chosen.total(), by_source=chosen, first=start, offsets=offsets, continued=False
        )


@dataclass(slots=True)
class FileSum:
    """The size and CRC-32 of a file. The first `NPY_HEADER_BYTES` count last: an array's header is written last."""

    size: int = 0
    head: bytes = b""
    rest: int = 0

    def add(self, content: memoryview) -> None:
        """Count the file's next bytes."""
        self.size += len(content)
        if (missing := NPY_HEADER_BYTES - len(self.head)) > 0:
            self.head += content[:missing]
            content = content[missing:]
        self.rest = zlib.crc32(content, self.rest)

    @property
    def checksum(self) -> int:
        """The checksum of all bytes so far."""
        return zlib.crc32(self.head, self.rest)


def count_bad(chunks: Iterable[Chunk]) -> Counter[str]:
    """Count the rejected documents of some chunks by reason."""
    bad: Counter[str] = Counter()
    for chunk in chunks:
        bad.update(chunk.bad)
    return bad


def count_skipped(chunks: Iterable[Chunk]) -> Counter[str]:
    """Count the documents without text of some chunks by reason."""
    skipped: Counter[str] = Counter()
    for chunk in chunks:
        skipped.update(chunk.skipped)
    return skipped


def find_chunk(cache: Path, chunk_id: str) -> Chunk | None:
    """Return the finished chunk of that ID, or None.

    Raises:
        DamagedChunk: its `chunk.json` was changed, or one of its files is missing or has another size.

    """
    if not re.fullmatch(r"[0-9a-f]{64}", chunk_id):
        raise ValueError(f"a chunk's ID is a sha256 in hex, not {chunk_id!r}")
    folder = cache / "chunks" / chunk_id
    if not (folder / "chunk.json").is_file() and not fetch_chunk(cache, chunk_id) and not folder.is_dir():
        return None
    chunk = read_twice(lambda: _read_chunk(folder), folder / "chunk.json")
    for name, (size, _) in chunk.files.items():
        try:
            with retry(lambda: open_regular(folder / name), folder / name) as file:  # noqa: B023 - called at once
                found = file.seek(0, os.SEEK_END)
        except FileNotFoundError:
            raise DamagedChunk(folder, f"its {name} is missing") from None
        except OSError as error:
            raise DamagedChunk(folder, f"its {name} cannot be read ({error.strerror})") from error
        if found != size:
            raise DamagedChunk(folder, f"its {name} has {found} bytes, but {size} were written")
    return chunk


def check_chunk(cache: Path, chunk: Chunk) -> None:
    """Read all files of a chunk.

    Raises:
        DamagedChunk: one of them does not hold what was written.

    """
    for name, (_, checksum) in chunk.files.items():
        check_file(cache / "chunks" / chunk.id / name, checksum)


def check_file(path: Path, checksum: int) -> None:
    """Read one file of a chunk; raises like `check_chunk`."""
    folder, name = path.parent, path.name

    def read() -> None:
        found, block = FileSum(), memoryview(bytearray(BLOCK_BYTES))
        with open_regular(path) as file:
            while count := file.readinto(block):
                found.add(block[:count])
        if found.checksum != checksum:
            problem = f"its {name} has the checksum {found.checksum:08x}, not {checksum:08x}: it was changed"
            raise DamagedChunk(folder, problem)

    try:
        retry(read, path, unclear=(DamagedChunk,))
    except FileNotFoundError:
        raise DamagedChunk(folder, f"its {name} is missing") from None
    except OSError as error:
        raise DamagedChunk(folder, f"its {name} cannot be read ({error.strerror})") from error


def chunk_text(chunk: Chunk) -> str:
    """Return what `chunk.json` holds: the chunk's fields and a checksum of them, in JSON."""
    names = (one.name for one in dataclasses.fields(chunk) if one.name not in ("by_source", "first", "offsets"))
    fields = {name: getattr(chunk, name) for name in names} | {"columns": chunk.by_source.columns()}
    text = _as_text(fields)  # may have many sources
    return f'{text[:-1]}, "crc32": {_sum_text(text)}}}\n'


def npy_header(dtype: np.dtype[Any], count: int) -> bytes:
    """Return the header of a .npy file with a 1-D array. It always has `NPY_HEADER_BYTES`, so it can be written last.

    Format 1.0: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    text = f"{{'descr': {dtype.newbyteorder('<').str!r}, 'fortran_order': False, 'shape': ({count},), }}"
    return b"\x93NUMPY\x01\x00" + (NPY_HEADER_BYTES - 10).to_bytes(2, "little") + text.encode().ljust(117) + b"\n"


def _read_chunk(folder: Path) -> Chunk:
    try:
        fields = read_fields(folder / "chunk.json")
        is_intact = fields.pop("crc32") == _sum_text(_as_text(fields)) and fields["id"] == folder.name
        columns, rows = fields.pop("columns", None), fields.pop("by_source", [])
        chunk = Chunk(**fields, by_source=read_rows(rows) if columns is None else read_columns(columns))
        if chunk.files.keys() - FILES:
            raise ValueError(f"it names other files than {', '.join(sorted(FILES))}")  # noqa: TRY301
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedChunk(folder, f"its chunk.json cannot be read ({error})") from error
    if not is_intact:
        raise DamagedChunk(folder, "its chunk.json was changed")
    return chunk


def _as_text(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True)


def _sum_text(text: str) -> int:
    return zlib.crc32(text.encode())
