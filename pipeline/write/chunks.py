"""Writing one chunk of the token store: piece by piece, whole under its name or not there at all.

IDs are appended to files under a temporary name as they come, so that a chunk needs no more memory than a batch. The
finished folder is flushed to the disk and renamed. A lock file beside a temporary folder is held by the process that
writes it, and given up by the system when that process ends, however it ends: so leftovers of a killed run can be told
from the work of a run that is alive, and `remove_leftovers` takes away the former alone.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import uuid
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np

from pipeline.token_store import DOCUMENT, NPY_HEADER_BYTES, SPLITS, Chunk, find_chunk, npy_header, write_json
from pipeline.write.quarantine import FILE, as_line

if TYPE_CHECKING:
    import io
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from pipeline.write.documents import BadDocument


@dataclasses.dataclass(slots=True)
class Totals:
    """What is counted while a chunk is written."""

    characters: int = 0
    bytes: int = 0
    special_text_found: int = 0
    audited: int = 0

    def add(self, other: Totals) -> None:
        """Count what a batch holds."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclasses.dataclass(slots=True)
class _Open:
    """A document whose last piece has not come yet, and what the chunk was before it."""

    split: int
    row: tuple[int, int]
    first: int
    count: int
    totals: Totals
    continued: bool


class ChunkWriter:
    """Write the chunk `chunk_id`; use it as a context, which removes what was not finished."""

    def __init__(self, cache: Path, chunk_id: str, *, dtype: np.dtype[Any], end_of_text: int) -> None:
        self._cache, self._id, self._dtype = cache, chunk_id, dtype
        self._end_of_text = np.array([end_of_text], dtype)
        folder = cache / "chunks"
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder / f".{chunk_id}-{uuid.uuid4().hex}"
        self._lock = _hold(self._folder.with_suffix(".lock"))
        self._folder.mkdir()
        self._files: list[BinaryIO | None] = [None for _ in SPLITS]
        self._tokens = [0 for _ in SPLITS]
        self._num_documents = [0 for _ in SPLITS]
        self._tables: list[np.ndarray] = []
        self._bad: dict[str, int] = {}
        self._quarantine: io.TextIOWrapper | None = None
        self._totals = Totals()
        self._open: _Open | None = None
        self._continued = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (*self._files, self._quarantine):
            if file:
                file.close()
        shutil.rmtree(self._folder, ignore_errors=True)  # it has its own name by now if it was finished
        self._folder.with_suffix(".lock").unlink(missing_ok=True)
        os.close(self._lock)

    def add_documents(
        self,
        ids: np.ndarray,
        counts: np.ndarray,
        *,
        held_out: np.ndarray,
        sources: np.ndarray,
        rows: np.ndarray,
        totals: Totals,
    ) -> None:
        """Append whole documents: their IDs end to end, and of each the count, split, source and row."""
        assert self._open is None, "a long text has not come to its end"
        table = np.zeros(len(counts), DOCUMENT)
        table["split"], table["source"], table["row"], table["count"] = held_out, sources, rows, counts
        for split in range(len(SPLITS)):
            mine = held_out == split
            flat, firsts = join_documents(ids, counts, mine, end_of_text=int(self._end_of_text[0]))
            table["first"][mine] = firsts + self._tokens[split]
            self._num_documents[split] += len(firsts)
            self._append(split, flat)
        self._tables.append(table)
        self._totals.add(totals)

    def add_piece(
        self,
        ids: np.ndarray,
        *,
        held_out: int,
        source: int,
        row: int,
        continued: bool,
        goes_on: bool,
        totals: Totals,
    ) -> None:
        """Append a piece of a long text; `continued`: it began in the chunk before; `goes_on`: this is not its end."""
        if self._open is None:
            self._open = _Open(
                held_out, (source, row), self._tokens[held_out], 0, dataclasses.replace(self._totals), continued
            )
        self._open.count += len(ids)
        self._totals.add(totals)
        self._append(held_out, ids)
        if not goes_on:
            self._append(held_out, self._end_of_text)
            self._close_document()

    def abandon(self) -> None:
        """Take back the pieces of the text that has not come to its end, if there are any."""
        if self._open is None:
            return
        split, first = self._open.split, self._open.first
        file = self._files[split]
        if file is not None:
            file.flush()
            file.truncate(NPY_HEADER_BYTES + first * self._dtype.itemsize)
            file.seek(0, os.SEEK_END)
        self._tokens[split], self._totals, self._open = first, self._open.totals, None

    def add_bad(self, bad: Sequence[BadDocument]) -> None:
        """Put bad documents into the chunk's quarantine."""
        if bad and self._quarantine is None:
            self._quarantine = (self._folder / FILE).open("w", encoding="utf-8")
        for one in bad:
            assert self._quarantine is not None, "it was opened above"
            self._quarantine.write(as_line(one))
            self._bad[one.reason] = self._bad.get(one.reason, 0) + 1

    def finish(self, *, sources: Sequence[str], tokenizer: str) -> Chunk:
        """Give the chunk its name. Returns the chunk that is there afterwards, which another run may have written."""
        if self._open:
            self._close_document()
        for split, file in enumerate(self._files):
            if file is not None:
                file.seek(0)
                file.write(npy_header(self._dtype, self._tokens[split]))
                _flush(file)
        with (self._folder / "documents.npy").open("wb") as file:
            np.save(file, np.concatenate([np.zeros(0, DOCUMENT), *self._tables]), allow_pickle=False)
            _flush(file)
        if self._quarantine:
            _flush(self._quarantine)
        chunk = Chunk(
            id=self._id,
            tokenizer=tokenizer,
            tokens=dict(zip(SPLITS, self._tokens, strict=True)),
            num_documents=dict(zip(SPLITS, self._num_documents, strict=True)),
            bad=dict(sorted(self._bad.items())),
            sources=list(sources),
            continued=self._continued,
            **dataclasses.asdict(self._totals),
        )
        write_json(self._folder / "chunk.json", dataclasses.asdict(chunk))
        _flush_folder(self._folder)
        try:
            self._folder.rename(self._cache / "chunks" / self._id)
        except OSError:
            there = find_chunk(self._cache, self._id)
            if there is None:
                raise
            return there  # another run was first, and its chunk is the same
        _flush_folder(self._cache / "chunks")
        return chunk

    def _append(self, split: int, ids: np.ndarray) -> None:
        if not len(ids):
            return
        file = self._files[split]
        if file is None:
            file = self._files[split] = (self._folder / f"{SPLITS[split]}.npy").open("w+b")
            file.write(bytes(NPY_HEADER_BYTES))
        file.write(np.ascontiguousarray(ids, self._dtype).data.cast("B"))
        self._tokens[split] += len(ids)

    def _close_document(self) -> None:
        one = self._open
        assert one is not None, "a document is closed that was never open"
        self._tables.append(np.array([(one.split, *one.row, one.first, one.count)], DOCUMENT))
        self._num_documents[one.split] += not one.continued
        self._continued = self._continued or one.continued
        self._open = None


def join_documents(
    ids: np.ndarray, counts: np.ndarray, chosen: np.ndarray, *, end_of_text: int
) -> tuple[np.ndarray, np.ndarray]:
    """The chosen documents' IDs with an end-of-text token behind each, and each one's first token, int64 [chosen].

    `ids` holds all documents' IDs end to end, `counts` int64 [documents] how many each has, `chosen` bool [documents].
    """
    sizes = counts[chosen] + 1
    ends = np.cumsum(sizes, dtype=np.int64)
    joined = np.full(int(ends[-1]) if len(ends) else 0, end_of_text, dtype=ids.dtype)
    is_text = np.ones(len(joined), dtype=bool)
    is_text[ends - 1] = False
    joined[is_text] = ids if chosen.all() else ids[np.repeat(chosen, counts)]
    return joined, ends - sizes


def remove_leftovers(cache: Path) -> None:
    """Remove the temporary folders of runs that have ended without finishing them."""
    for path in (cache / "chunks").glob(".*.lock"):
        try:
            lock = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue  # finished in this moment
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # its run is alive
        else:
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)
        finally:
            os.close(lock)


def _hold(path: Path) -> int:
    """Make a lock file and hold it. Should `remove_leftovers` of another run come between the two, do it again."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if path.stat().st_ino == os.fstat(lock).st_ino:
                return lock
        except FileNotFoundError:
            pass
        os.close(lock)


def _flush(file: BinaryIO | io.TextIOWrapper) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
