"""The token store: every token ID once, where each document starts, and where it came from.

A store is a JSON file that lists chunks in order, with the names of their sources; a chunk is a folder made from one
partition of the input:

    <cache>/stores/<id>.json
    <cache>/chunks/<id>/    the IDs and the table of documents: `pipeline.tokens.chunk` says how

A store is known by its content: files of other names have the same store, and it has the names of the last run.

A long document may be cut into segments. They are in consecutive chunks, and end-of-text follows the last one.

Chunks are built under a temporary name and renamed (`chunk_writer.py`), so an existing chunk is complete, and two runs
that build the same one do not harm each other. A reader maps the IDs, so a store of any size takes no memory. After
`open_store`, a process reads each file through when it first needs it and refuses one that was changed.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.base.atomic import write_text
from pipeline.base.hashing import hash_list
from pipeline.base.paths import make_folder
from pipeline.base.reading import check_signature, read_fields, sign
from pipeline.base.retry import read_twice, retry
from pipeline.corpus.files import CACHE_TAG
from pipeline.executor.local import run_tasks
from pipeline.rules import check_range
from pipeline.settings import SPLITS
from pipeline.tokens.chunk import NPY_HEADER_BYTES, Chunk, DamagedChunk, check_file, find_chunk
from pipeline.tokens.mirror import fetch_file, fetch_missing, find_store_file, publish_file, storage_of

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from pathlib import Path

# A data set that is complete is not written again, and its store neither.
REMEDY = "run the write stage with a new shards.path, which makes the token store again"
FORMAT = 4
OPENED = 16  # chunks that are fetched at once
LONG_SPAN = 64  # tokens: a slice takes as long as this many of numpy's indices
OLD_FORMAT = 3  # of release 0.1.0: a chunk is known by its names too, and has them


class MissingChunk(ValueError):  # noqa: N818 - what it is, and the message is for the user
    """A token store whose chunks are not all there: a cache may be cleared."""


class TokenStream:
    """The token IDs of one split, concatenated; a range that lies in one mapped file is read without a copy."""

    def __init__(
        self,
        files: list[Path],
        sizes: list[int],
        *,
        start: int = 0,
        stop: int | None = None,
        offsets: list[int] | None = None,
        checksums: list[int] | None = None,
    ) -> None:
        self._files = files
        self._offsets = offsets or [0] * len(files)  # each one's first token that belongs to the stream
        self._checksums = checksums  # None: the files are known to be intact
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._start = start
        self._stop = (int(self._ends[-1]) if files else 0) if stop is None else stop

    def __len__(self) -> int:
        return self._stop - self._start

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return token IDs [start, stop) of the stream, 1-D, in the store's own integer type."""
        assert 0 <= start <= stop <= len(self), f"tokens {start} to {stop} of a stream of {len(self)}"
        start, stop = start + self._start, stop + self._start
        parts = []
        file = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            shift = self._shift(file)
            upto = min(stop, int(self._ends[file]))
            parts.append(self._map(file)[start + shift : upto + shift])
            start, file = upto, file + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, np.uint16)

    def gather(self, starts: np.ndarray, width: int, *, out: np.ndarray, rows: np.ndarray) -> None:
        """Copy the `width` tokens from each of `starts`, int64 [B], into `out[rows]`, [B, width], file by file."""
        firsts = starts + self._start
        files = np.searchsorted(self._ends, firsts, side="right")
        in_one_file = firsts + width <= self._ends[files]
        for file in np.unique(files[in_one_file]):
            chosen = np.flatnonzero(in_one_file & (files == file))
            views = np.lib.stride_tricks.sliding_window_view(self._map(int(file)), width)
            out[rows[chosen]] = views[firsts[chosen] + self._shift(int(file))]
        for one in np.flatnonzero(~in_one_file):
            start = int(starts[one])
            out[rows[one]] = self.read(start, start + width)

    def copy_spans(self, starts: np.ndarray, sizes: np.ndarray, *, out: np.ndarray, at: np.ndarray) -> None:
        """Copy the tokens [start, start + size) of each span to `out[at : at + size]`, file by file; `out` is flat."""
        firsts = starts + self._start
        files = np.searchsorted(self._ends, firsts, side="right")
        in_one_file = firsts + sizes <= self._ends[files]
        for file in np.unique(files[in_one_file]):
            chosen = np.flatnonzero(in_one_file & (files == file))
            _copy_spans(self._map(int(file)), firsts[chosen] + self._shift(int(file)), sizes[chosen], out, at[chosen])
        for one in np.flatnonzero(~in_one_file):
            start, size, to = int(starts[one]), int(sizes[one]), int(at[one])
            out[to : to + size] = self.read(start, start + size)

    def _shift(self, file: int) -> int:
        """Return what a token's position in a file is beyond its position in all files."""
        return self._offsets[file] - (int(self._ends[file - 1]) if file else 0)

    def _map(self, file: int) -> np.ndarray:
        if self._checksums:
            _check_once(self._files[file], self._checksums[file])
        return _map_complete(self._files[file])


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStore:
    """Chunks in order, and how they make up the splits."""

    cache: Path
    chunks: list[Chunk]
    tokenizer: dict[str, Any]  # as in the manifest: name, hash, vocab_size, special_tokens
    validation: float
    names: list[list[str]] = field(default_factory=list)  # of each chunk's sources
    checks: bool = False  # each file is checked when it is first read

    @property
    def id(self) -> str:
        """The store's ID."""
        is_old = any(not len(chunk.by_source) for chunk in self.chunks)
        units = [unit for chunk in self.chunks for unit in chunk.units]
        return store_id(units, validation=self.validation, version=OLD_FORMAT if is_old else FORMAT)

    @property
    def num_documents(self) -> int:
        """Documents in all splits."""
        return sum(sum(chunk.num_documents.values()) for chunk in self.chunks)

    @property
    def is_checked(self) -> bool:
        """Whether files are checked when they are first read: `checks`, or they may have to be fetched first."""
        return self.checks or storage_of(self.cache) is not None

    def splits(self) -> list[str]:
        """Return the names of the splits."""
        return list(SPLITS if self.validation > 0 else SPLITS[:1])

    def stream(self, split: str, *, closed: bool = False) -> TokenStream:
        """Return one split's token IDs: D documents with D - 1 end-of-text tokens between them.

        A corpus of one document has no other to hold out, so its last part is the validation split. A `closed` stream
        also has the end-of-text token after the last document, unless that document continues in the other split.
        """
        if self.num_documents == 1 and self.validation > 0:
            cut = self._cut()
            start, stop = (0, cut) if split == "train" else (cut, self._total(SPLITS) - (not closed))
            return self._stream(SPLITS, start, stop)
        return self._stream((split,), 0, max(0, self._total((split,)) - (not closed)))

    def documents(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return each document's first token in the split's stream and its token count, both int64 [documents]."""
        if self.num_documents == 1 and self.validation > 0:
            return np.zeros(1, np.int64), np.array([len(self.stream(split))], np.int64)
        firsts: list[np.ndarray] = []
        counts: list[np.ndarray] = []
        base = 0
        for chunk, table in zip(self.chunks, self.tables(), strict=True):
            mine = table["split"] == SPLITS.index(split)
            continued = chunk.continued and bool(mine[0])  # otherwise that document is in the other split
            first, count = table["first"][mine] + base, table["count"][mine]
            if continued:
                counts[-1][-1] += count[0]
                first, count = first[1:], count[1:]
            if len(count):
                firsts.append(first)
                counts.append(count)
            base += chunk.tokens[split]
        empty = np.empty(0, np.int64)
        return np.concatenate([empty, *firsts]), np.concatenate([empty, *counts])

    def tables(self) -> Iterator[np.ndarray]:
        """Yield each chunk's documents, as `DOCUMENT` says, counted from the first source that the store uses."""
        for chunk in self.chunks:
            path = self.cache / "chunks" / chunk.id / "documents.npy"
            if self.is_checked:
                _check_once(path, chunk.files[path.name][1])
            table = np.load(path, mmap_mode="r", allow_pickle=False).view(
                np.ndarray
            )  # copies of a memmap may be read-only
            if chunk.offsets:
                source = table["source"] - chunk.first
                table = table[(source >= 0) & (source < len(chunk.by_source))]
                table["source"] -= chunk.first
                table["first"] -= np.array([chunk.offsets[split] for split in SPLITS])[table["split"]]
            yield table

    def _cut(self) -> int:
        total = self._total(SPLITS) - 1
        return total - round(total * self.validation)

    def _total(self, splits: tuple[str, ...]) -> int:
        return sum(chunk.tokens[split] for chunk in self.chunks for split in splits)

    def _stream(self, splits: tuple[str, ...], start: int, stop: int) -> TokenStream:
        parts = [(chunk, split) for chunk in self.chunks for split in splits if chunk.tokens[split]]
        return TokenStream(
            [self.cache / "chunks" / chunk.id / f"{split}.npy" for chunk, split in parts],
            [chunk.tokens[split] for chunk, split in parts],
            start=start,
            stop=stop,
            offsets=[chunk.offsets.get(split, 0) for chunk, split in parts],
            checksums=[chunk.files[f"{split}.npy"][1] for chunk, split in parts] if self.is_checked else None,
        )


def store_id(units: list[str], *, validation: float, version: int = FORMAT) -> str:
    """Return a store's ID: a hash of its sources' units in order. A unit covers the text and the tokenizer."""
    return hash_list(units, [version, validation])


def save_store(store: TokenStore) -> Path:
    """Write the file that lists the store's chunks, and return its path: `<cache>/stores/<id>.json`."""
    path = store.cache / "stores" / f"{store.id}.json"
    if not path.exists():
        make_folder(path.parent)
    fields = {"format": FORMAT, "tokenizer": store.tokenizer, "validation": store.validation}
    chunks = [
        {"id": chunk.id, "first": chunk.first, "names": names}
        for chunk, names in zip(store.chunks, store.names, strict=True)
    ]
    write_text(path, json.dumps(sign({**fields, "chunks": chunks})) + "\n")  # an indent takes long for many names
    for name in (CACHE_TAG, f"stores/{path.name}"):
        publish_file(store.cache, name)
    return path


def find_store(cache: Path, store: str) -> Path | None:
    """Return the file of the store with that ID, or None if the cache does not have it."""
    path = cache / "stores" / f"{store}.json"
    fetch_file(cache, f"stores/{path.name}")
    return path if path.is_file() else None


def open_store(path: str | os.PathLike[str]) -> TokenStore:
    """Open the token store that a file of `save_store` lists.

    Raises:
        ValueError: the file is not a token store, or one of its chunks is missing or damaged.

    """
    path = find_store_file(path)
    cache = path.parent.parent
    fetch_file(cache, f"stores/{path.name}")
    try:
        fields = read_twice(lambda: _check_fields(read_fields(path)), path)
        is_old, tokenizer_hash = fields["format"] == OLD_FORMAT, fields["tokenizer"]["hash"]
        parts = [(one, 0, []) if is_old else (one["id"], one["first"], one["names"]) for one in fields["chunks"]]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: is not a token store ({type(error).__name__}: {error}); {REMEDY}") from error
    found = run_tasks(
        partial(find_chunk, cache), [chunk_id for chunk_id, _, _ in parts], workers=OPENED if storage_of(cache) else 1
    )
    chunks, names = [], []
    for (chunk_id, first, names_of_chunk), chunk in zip(parts, found, strict=True):
        if chunk is None:
            raise MissingChunk(f"{path}: its chunk {chunk_id} is not under {cache / 'chunks'}; {REMEDY}")
        if chunk.tokenizer != tokenizer_hash:
            raise ValueError(
                f"{path}: its chunk {chunk_id} was made with the tokenizer {chunk.tokenizer}, but the store with "
                f"{fields['tokenizer']['name']} ({tokenizer_hash})"
            )
        itemsize = 2 if fields["tokenizer"]["vocab_size"] <= 1 << 16 else 4
        for split, count in chunk.tokens.items():
            if count and chunk.files[f"{split}.npy"][0] != NPY_HEADER_BYTES + itemsize * count:
                raise ValueError(f"{path}: its chunk {chunk_id} has other integers than its vocab_size needs")
        chunks.append(chunk if is_old else chunk.select(first, first + len(names_of_chunk)))
        names.append(chunk.sources if is_old else names_of_chunk)
    validation, tokenizer = fields["validation"], fields["tokenizer"]
    store = TokenStore(cache=cache, chunks=chunks, tokenizer=tokenizer, validation=validation, names=names, checks=True)
    if store.id != path.stem:
        raise ValueError(f"{path}: was changed after it was written; {REMEDY}")
    return store


def _check_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Refuse changed fields. A store of release 0.1.0 carries no hash, so what can be compared is compared."""
    names = {"format", "tokenizer", "validation", "chunks"}
    is_old = fields.get("format") == OLD_FORMAT
    if not is_old and fields.get("format") != FORMAT:
        raise ValueError(f"format {fields.get('format')!r}, and this release reads {FORMAT}")
    if not is_old:
        fields = check_signature(fields)
    if fields.keys() != names:
        raise ValueError(f"it has other fields than {', '.join(sorted(names))}")
    tokenizer = fields["tokenizer"]
    check_range("vocab_size", tokenizer["vocab_size"], 1, 2**31)
    end_of_text = check_range("end_of_text", tokenizer["end_of_text"], 0, tokenizer["vocab_size"] - 1)
    if is_old and end_of_text not in tokenizer["special_tokens"].values():
        raise ValueError(f"end_of_text is {end_of_text}, which is no special token")
    return fields


def forget_files() -> None:
    """Drop all mapped files, because one of them was replaced."""
    _map.cache_clear()
    _check_once.cache_clear()


@cache
def _check_once(path: Path, checksum: int) -> None:
    fetch_missing(path)
    check_file(path, checksum)


def _copy_spans(tokens: np.ndarray, firsts: np.ndarray, sizes: np.ndarray, out: np.ndarray, at: np.ndarray) -> None:
    """Copy spans: long ones one by one, which is the fastest for each token, and all short ones at once."""
    is_long = sizes >= LONG_SPAN
    tokens = tokens.view(np.ndarray)  # a memmap takes several times as long to slice
    for first, size, to in zip(firsts[is_long].tolist(), sizes[is_long].tolist(), at[is_long].tolist(), strict=True):
        out[to : to + size] = tokens[first : first + size]
    firsts, sizes, at = (values[~is_long] for values in (firsts, sizes, at))
    stops = np.cumsum(sizes)
    within = np.arange(stops[-1] if len(stops) else 0) - np.repeat(stops - sizes, sizes)
    out[np.repeat(at, sizes) + within] = tokens[np.repeat(firsts, sizes) + within]


def _map_complete(path: Path) -> np.ndarray:
    """Map a file; refuse one that has become shorter, because reading beyond its end would end the process."""
    array = _map(path)
    with contextlib.suppress(FileNotFoundError):  # a removed file is still mapped
        if path.stat().st_size < NPY_HEADER_BYTES + array.nbytes:
            raise DamagedChunk(path.parent, f"its {path.name} became shorter while it was read")
    return array


@lru_cache(maxsize=4096)
def _map(path: Path) -> np.ndarray:
    array: np.ndarray = retry(lambda: np.load(path, mmap_mode="r", allow_pickle=False), path)
    return array
