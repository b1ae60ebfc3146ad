"""Writing one chunk of the token store: piece by piece, whole under its name or not there at all.

IDs are appended to files under a temporary name as they come, so that a chunk needs no more memory than a batch. The
finished folder is flushed to the disk and renamed. A lock file beside a temporary folder is held by the process that
writes it, and given up by the system when that process ends, however it ends: so leftovers of a killed run can be told
from the work of a run that is alive, and `remove_leftovers` takes away the former alone.

A chunk that is there already stays, unless it is damaged: then the new one takes its place.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import uuid
import zlib
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pipeline.base.atomic import sync_folder, write_json
from pipeline.base.locks import hold, try_to_hold
from pipeline.corpus.files import mark_as_cache
from pipeline.corpus.quarantine import QUARANTINE_NAME, as_line
from pipeline.settings import SPLITS
from pipeline.tokens.chunk import (
    DOCUMENT,
    NPY_HEADER_BYTES,
    Chunk,
    DamagedChunk,
    check_chunk,
    chunk_fields,
    find_chunk,
    npy_header,
)
from pipeline.tokens.store import forget_files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from pipeline.corpus.documents import RejectedDocument


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
    savepoint: tuple[int, int]  # in the split's file
    totals: Totals
    continued: bool


class ChunkWriter:
    """Write the chunk `chunk_id`; use it as a context, which removes what was not finished."""

    def __init__(self, cache: Path, chunk_id: str, *, dtype: np.dtype[Any], end_of_text: int) -> None:
        self._cache, self._id, self._dtype = cache, chunk_id, dtype
        self._end_of_text = np.array([end_of_text], dtype)
        folder = cache / "chunks"
        folder.mkdir(parents=True, exist_ok=True)
        mark_as_cache(cache)
        self._folder = folder / f".{chunk_id}-{uuid.uuid4().hex}"
        self._lock = hold(self._folder.with_suffix(".lock"))
        self._folder.mkdir()
        self._files: dict[str, SummedFile] = {}
        self._tokens = [0 for _ in SPLITS]
        self._num_documents = [0 for _ in SPLITS]
        self._tables: list[np.ndarray] = []
        self._bad: dict[str, int] = {}
        self._totals = Totals()
        self._open: _Open | None = None
        self._continued = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
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
            before, savepoint = self._tokens[held_out], self._ids_file(held_out).savepoint()
            self._open = _Open(
                held_out, (source, row), before, 0, savepoint, dataclasses.replace(self._totals), continued
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
        self._ids_file(split).rollback(self._open.savepoint)
        self._tokens[split], self._totals, self._open = first, self._open.totals, None

    def add_bad(self, bad: Sequence[RejectedDocument]) -> None:
        """Put bad documents into the chunk's quarantine."""
        for one in bad:
            self._file(QUARANTINE_NAME).write(as_line(one).encode("utf-8", "backslashreplace"))
            self._bad[one.reason] = self._bad.get(one.reason, 0) + 1

    def finish(self, *, sources: Sequence[str], tokenizer: str) -> Chunk:
        """Give the chunk its name. Returns the chunk that is there afterwards, which another run may have written."""
        # Its checksums are those of the bytes that went to the disk: nothing is read again.
        if self._open:
            self._close_document()
        for name, count in zip(SPLITS, self._tokens, strict=True):
            if count:
                self._file(f"{name}.npy").write_head(npy_header(self._dtype, count))
            elif abandoned := self._files.pop(f"{name}.npy", None):
                abandoned.close()
                (self._folder / f"{name}.npy").unlink()
        np.save(self._file("documents.npy"), np.concatenate([np.zeros(0, DOCUMENT), *self._tables]), allow_pickle=False)
        chunk = Chunk(
            id=self._id,
            tokenizer=tokenizer,
            tokens=dict(zip(SPLITS, self._tokens, strict=True)),
            num_documents=dict(zip(SPLITS, self._num_documents, strict=True)),
            bad=dict(sorted(self._bad.items())),
            sources=list(sources),
            continued=self._continued,
            files={name: self._files[name].finish() for name in sorted(self._files)},
            **dataclasses.asdict(self._totals),
        )
        write_json(self._folder / "chunk.json", chunk_fields(chunk))
        sync_folder(self._folder)
        try:
            self._folder.rename(self._cache / "chunks" / self._id)
        except OSError as error:
            return self._meet(chunk, error)
        sync_folder(self._cache / "chunks")
        return chunk

    def _meet(self, chunk: Chunk, error: OSError) -> Chunk:
        """Keep the chunk that has the name already if it is whole, else replace it: one run at a time looks and acts.

        It moves to the name that `remove_leftovers` clears should this process end in between.
        """
        folder = self._cache / "chunks" / self._id
        aside = folder.with_name(f".{self._id}")
        path = aside.with_suffix(".lock")
        lock = hold(path)
        try:
            there = find_chunk(self._cache, self._id)
            if there is None:
                raise error
            check_chunk(self._cache, there)
        except DamagedChunk:
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            try:
                self._folder.rename(folder)
            except OSError:
                if find_chunk(self._cache, self._id) is None:
                    raise  # else a run that found the name free in this moment took it, for the same chunk
            sync_folder(folder.parent)
            forget_files()
            shutil.rmtree(aside, ignore_errors=True)
            return chunk
        else:
            return there  # another run was first, and its chunk is the same
        finally:
            path.unlink(missing_ok=True)
            os.close(lock)

    def _append(self, split: int, ids: np.ndarray) -> None:
        if not len(ids):
            return
        self._ids_file(split).write(np.ascontiguousarray(ids, self._dtype).data.cast("B"))
        self._tokens[split] += len(ids)

    def _ids_file(self, split: int) -> SummedFile:
        file = self._file(f"{SPLITS[split]}.npy")
        if not file.size:
            file.write(bytes(NPY_HEADER_BYTES))
        return file

    def _file(self, name: str) -> SummedFile:
        if name not in self._files:
            self._files[name] = SummedFile(self._folder / name)
        return self._files[name]

    def _close_document(self) -> None:
        one = self._open
        assert one is not None, "a document is closed that was never open"
        self._tables.append(np.array([(one.split, *one.row, one.first, one.count)], DOCUMENT))
        self._num_documents[one.split] += not one.continued
        self._continued = self._continued or one.continued
        self._open = None


class SummedFile:
    """A new file, its size and its checksum (`chunk.sum_file`): of all but the head, then of the head."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._head = b""
        self._sum = 0
        self.size = 0

    def write(self, content: bytes | memoryview) -> None:
        """Append bytes."""
        content = memoryview(content)
        self._file.write(content)
        self.size += len(content)
        if (left := NPY_HEADER_BYTES - len(self._head)) > 0:
            self._head += content[:left]
            content = content[left:]
        self._sum = zlib.crc32(content, self._sum)

    def write_head(self, head: bytes) -> None:
        """Write the head over the one that kept its place."""
        assert len(head) == len(self._head) == NPY_HEADER_BYTES, "a head replaces a head"
        self._file.seek(0)
        self._file.write(head)
        self._head = head

    def savepoint(self) -> tuple[int, int]:
        """A place behind the head to which `rollback` returns."""
        return self.size, self._sum

    def rollback(self, savepoint: tuple[int, int]) -> None:
        """Take back all that was written since `savepoint`."""
        self.size, self._sum = savepoint
        self._file.flush()
        self._file.truncate(self.size)
        self._file.seek(0, os.SEEK_END)

    def finish(self) -> list[int]:
        """Flush to the disk, and close. Returns the size and the checksum."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return [self.size, zlib.crc32(self._head, self._sum)]

    def close(self) -> None:
        """Close without a flush: what was written is given up."""
        self._file.close()


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
    """Remove the temporary folders of runs that have ended without finishing them, and what is left of a savepoint."""
    if (cache / "chunks").is_dir():
        mark_as_cache(cache)
    for path in (cache / "chunks").glob(".*.lock"):
        try:
            lock = try_to_hold(path, create=False)
        except FileNotFoundError:
            continue  # finished in this moment
        if lock is None:
            continue  # its run is alive
        try:
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)
        finally:
            os.close(lock)
