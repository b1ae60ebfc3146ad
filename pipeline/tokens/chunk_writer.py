"""Write one chunk of the token store, batch by batch: it is complete under its name or absent.

IDs are appended to files in a temporary folder, so a chunk needs no more memory than a batch. The finished folder is
flushed to the disk and renamed. The writer locks a file next to the temporary folder. The operating system releases the
lock when the process exits, for whatever reason, so `remove_leftovers` removes the folders of ended runs only.

A chunk that is already there is kept unless it is damaged; then the new one replaces it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pipeline.base.atomic import final_name, remove_part, sync_folder, write_text
from pipeline.base.locks import hold, try_to_hold
from pipeline.base.paths import make_folder
from pipeline.corpus.files import mark_as_cache
from pipeline.corpus.quarantine import QUARANTINE_NAME, as_line
from pipeline.settings import SPLITS
from pipeline.tokens.chunk import (
    DOCUMENT,
    NPY_HEADER_BYTES,
    Chunk,
    DamagedChunk,
    FileSum,
    check_chunk,
    chunk_text,
    find_chunk,
    npy_header,
)
from pipeline.tokens.source_counts import COUNTS, SOURCE, count_sources
from pipeline.tokens.store import forget_files
from pipeline.tokens.summed_file import SummedFile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from pipeline.corpus.documents import RejectedDocument


# A temporary folder, or the lock that its writer or a mender of the chunk holds.
_LEFTOVER = re.compile(r"(?P<folder>\.[0-9a-f]{64}(?:-[0-9a-f]{32})?)(?:\.lock)?")
_FILE = re.compile(r"[0-9a-f]{64}\.jsonl?|CACHEDIR\.TAG")


LONG_TOKENS = 256  # of documents that are this long on average, each is copied by itself


@dataclasses.dataclass(slots=True)
class _OpenDocument:
    """A document whose last segment has not been written yet, and the chunk's state before it."""

    split: int
    row: tuple[int, int]
    first: int
    count: int
    savepoint: FileSum  # of the split's file
    counts: np.void  # of its source
    continued: bool


class ChunkWriter:
    """Write the chunk `chunk_id` of the sources `units`.

    Use it as a context manager: at the end it removes an unfinished chunk.
    """

    def __init__(
        self, cache: Path, chunk_id: str, *, units: Sequence[str], dtype: np.dtype[Any], end_of_text: int
    ) -> None:
        self._cache, self._id, self._units, self._dtype = cache, chunk_id, units, dtype
        self._end_of_text = np.array([end_of_text], dtype)
        make_folder(cache / "chunks")
        mark_as_cache(cache)
        self._folder = _temporary_folder(cache, chunk_id)
        self._lock = hold(_lock_of(self._folder))
        try:
            self._folder.mkdir()
        except BaseException:
            self._remove()
            raise
        self._files: dict[str, SummedFile] = {}
        self._tokens = [0 for _ in SPLITS]
        self._tables: list[np.ndarray] = []
        self._counts = np.zeros(len(units), SOURCE)
        self._bad: Counter[tuple[int, str]] = Counter()  # by source and reason
        self._skipped: Counter[tuple[int, str]] = Counter()
        self._open: _OpenDocument | None = None
        self._continued = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a full disk: the first error says so
                file.close()
        self._remove()

    def add_documents(
        self,
        ids: np.ndarray,
        counts: np.ndarray,
        *,
        held_out: np.ndarray,
        sources: np.ndarray,
        rows: np.ndarray,
        totals: np.ndarray,
    ) -> None:
        """Append complete documents: their IDs concatenated; for each its count, split, source, row and `TOTALS`."""
        assert self._open is None, "the last segment of a long document is missing"
        table = np.zeros(len(counts), DOCUMENT)
        table["split"], table["source"], table["row"], table["count"] = held_out, sources, rows, counts
        for split in range(len(SPLITS)):
            mine = held_out == split
            flat, firsts = join_documents(ids, counts, mine, end_of_text=int(self._end_of_text[0]))
            table["first"][mine] = firsts + self._tokens[split]
            np.add.at(self._counts["num_documents"][:, split], sources[mine], 1)
            np.add.at(self._counts["tokens"][:, split], sources[mine], counts[mine] + 1)
            self._append(split, flat)
        self._tables.append(table)
        for name in COUNTS:
            np.add.at(self._counts[name], sources, totals[name])

    def add_segment(
        self,
        ids: np.ndarray,
        *,
        held_out: int,
        source: int,
        row: int,
        continued: bool,
        is_last: bool,
        totals: np.ndarray,
    ) -> None:
        """Append a segment of a long document; `continued`: the document started in the chunk before."""
        if self._open is None:
            before, savepoint = self._tokens[held_out], self._ids_file(held_out).savepoint()
            row_of = source, row
            self._open = _OpenDocument(held_out, row_of, before, 0, savepoint, self._counts[source].copy(), continued)
        self._open.count += len(ids)
        self._append(held_out, ids)
        if is_last:
            self._append(held_out, self._end_of_text)
        self._counts["tokens"][source, held_out] += len(ids) + is_last
        for name in COUNTS:
            self._counts[name][source] += totals[name].sum()
        if is_last:
            self._close_document()

    def drop_document(self) -> None:
        """Roll back the segments of the open document, if there is one."""
        if self._open is None:
            return
        split, first = self._open.split, self._open.first
        self._ids_file(split).rollback(self._open.savepoint)
        self._counts[self._open.row[0]] = self._open.counts
        self._tokens[split], self._open = first, None

    def add_bad(self, rejected: Sequence[RejectedDocument]) -> None:
        """Append rejected documents to the chunk's quarantine file."""
        for one in rejected:
            self._file(QUARANTINE_NAME).write(as_line(one).encode("utf-8", "backslashreplace"))
            self._bad[one.index, one.reason] += 1

    def add_skipped(self, skipped: Counter[tuple[int, str]]) -> None:
        """Count documents without text, by source and reason."""
        self._skipped.update(skipped)

    def finish(self, *, tokenizer: str, engine: str = "", replace: bool = False) -> Chunk:
        """Give the chunk its name. Return the chunk that is there afterwards, which another run may have written.

        With `replace` it takes the place of an intact chunk too, which was encoded by an engine that is not to be used.

        Its checksums are those of the bytes that were written; nothing is read again.
        """
        if self._open:
            self._close_document()
        for name, count in zip(SPLITS, self._tokens, strict=True):
            if count:
                self._file(f"{name}.npy").write_header(npy_header(self._dtype, count))
            elif empty := self._files.pop(f"{name}.npy", None):
                empty.close()
                (self._folder / f"{name}.npy").unlink()
        np.save(self._file("documents.npy"), np.concatenate([np.zeros(0, DOCUMENT), *self._tables]), allow_pickle=False)
        by_source = count_sources(self._units, self._counts, self._bad, self._skipped)
        chunk = Chunk(
            id=self._id,
            tokenizer=tokenizer,
            engine=engine,
            by_source=by_source,
            continued=self._continued,
            files={name: self._files[name].finish() for name in sorted(self._files)},
            **by_source.total(),
        )
        assert list(chunk.tokens.values()) == self._tokens, "the sources' tokens are all there are"
        write_text(self._folder / "chunk.json", chunk_text(chunk))
        sync_folder(self._folder)
        try:
            self._folder.rename(self._cache / "chunks" / self._id)
        except OSError as error:
            return self._settle(chunk, error, replace=replace)
        sync_folder(self._cache / "chunks")
        return chunk

    def _settle(self, chunk: Chunk, error: OSError, *, replace: bool) -> Chunk:
        """Keep the chunk that already has the name if it is intact, else replace it. One run at a time does this.

        The damaged chunk moves to a temporary name, which `remove_leftovers` clears if this process ends in between.
        """
        folder = self._cache / "chunks" / self._id
        path = _lock_of(folder.with_name(f".{self._id}"))
        lock = hold(path)
        try:
            found = find_chunk(self._cache, self._id)
            if found is None:
                raise error
            check_chunk(self._cache, found)
            if replace and found.engine != chunk.engine:
                raise DamagedChunk(folder, f"was encoded by {found.engine}")  # noqa: TRY301
        except DamagedChunk as damage:
            if folder.is_symlink():
                raise ValueError(f"{damage.folder}: {damage.what}; it is a symbolic link: remove it") from damage
            aside = _temporary_folder(self._cache, self._id)
            folder.rename(aside)
            try:
                self._folder.rename(folder)
            except OSError:
                if find_chunk(self._cache, self._id) is None:
                    raise  # otherwise another run took the free name in this moment, with the same chunk
            sync_folder(folder.parent)
            forget_files()
            shutil.rmtree(aside, ignore_errors=True)
            return chunk
        else:
            return found  # another run was first, with the same chunk
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(lock)

    def _remove(self) -> None:
        """Remove the temporary folder, which a finished chunk no longer has, and give up its lock."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            _lock_of(self._folder).unlink()
        os.close(self._lock)

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
        assert one is not None, "no document is open"
        self._tables.append(np.array([(one.split, *one.row, one.first, one.count)], DOCUMENT))
        self._counts["num_documents"][one.row[0], one.split] += not one.continued
        self._continued = self._continued or one.continued
        self._open = None


def join_documents(
    ids: np.ndarray, counts: np.ndarray, chosen: np.ndarray, *, end_of_text: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the chosen documents' IDs with an end-of-text token after each, and each one's first token.

    `ids` holds the IDs of all documents, concatenated; `counts`, int64 [documents], each one's number of IDs; `chosen`
    is bool [documents]. The first tokens are int64 [chosen].
    """
    sizes = counts[chosen] + 1
    ends = np.cumsum(sizes, dtype=np.int64)
    firsts = ends - sizes
    joined = np.empty(int(ends[-1]) if len(ends) else 0, dtype=ids.dtype)
    if len(joined) < LONG_TOKENS * len(sizes):
        is_text = np.ones(len(joined), dtype=bool)
        is_text[ends - 1] = False
        joined[is_text] = ids if chosen.all() else ids[np.repeat(chosen, counts)]
    else:
        starts = (np.cumsum(counts) - counts)[chosen]
        for start, stop, to in zip(starts.tolist(), (starts + sizes - 1).tolist(), firsts.tolist(), strict=True):
            joined[to : to + stop - start] = ids[start:stop]
    joined[ends - 1] = end_of_text
    return joined, firsts


def remove_leftovers(cache: Path) -> None:
    """Remove the temporary files, folders and locks of runs that have ended. What cannot be removed is left."""
    folder = cache / "chunks"
    if folder.is_symlink() or not folder.is_dir():
        return
    mark_as_cache(cache)
    for parent in (cache, cache / "stores", cache / "quarantine"):
        if parent == cache or (parent.is_dir() and not parent.is_symlink()):
            for path in parent.iterdir():
                if _FILE.fullmatch(final_name(path.name) or ""):
                    with contextlib.suppress(OSError):
                        remove_part(path)
    found = {match["folder"] for path in folder.iterdir() if (match := _LEFTOVER.fullmatch(path.name))}
    for name in sorted(found):
        with contextlib.suppress(OSError):  # another user's
            _remove_leftover(folder / name)


def _remove_leftover(temporary: Path) -> None:
    path = _lock_of(temporary)
    lock = try_to_hold(path)
    if lock is None:
        return  # its run is alive
    try:
        if temporary.is_dir() and not temporary.is_symlink():
            shutil.rmtree(temporary)
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(lock)


def _temporary_folder(cache: Path, chunk_id: str) -> Path:
    return cache / "chunks" / f".{chunk_id}-{uuid.uuid4().hex}"


def _lock_of(temporary: Path) -> Path:
    return temporary.with_name(f"{temporary.name}.lock")
