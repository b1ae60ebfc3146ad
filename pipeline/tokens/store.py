"""The token store: every token ID once, where each document starts, and where it came from.

A store is a JSON file that names chunks in their order; a chunk is a folder made from one input split:

    <cache>/stores/<id>.json
    <cache>/chunks/<id>/    the IDs and the table of documents: `pipeline.tokens.chunk` says how

A long text may be cut: its pieces stand in chunks that follow each other, and end-of-text comes after the last one.

Chunks are built under a temporary name and renamed (`write/chunks.py`), so a chunk that is there is whole, and two runs
that build the same one do not harm each other. A reader maps the IDs into memory: a store of any size
costs no memory of its own. Of a store that `open_store` opens, a process reads each file through when it first needs
it, and refuses one that does not hold what was written.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.base.atomic import write_json
from pipeline.settings import SPLITS
from pipeline.tokens.chunk import Chunk, check_file, find_chunk

if TYPE_CHECKING:
    import os

FORMAT = 3


class TokenStream:
    """The token IDs of one split, end to end: `read(start, stop)` copies any range of them out of the mapped files."""

    def __init__(
        self,
        files: list[Path],
        sizes: list[int],
        *,
        begin: int = 0,
        end: int | None = None,
        checksums: list[int] | None = None,
    ) -> None:
        self._files = files
        self._checksums = checksums  # None: the files are known to be whole
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._begin = begin
        self._end = (int(self._ends[-1]) if files else 0) if end is None else end

    def __len__(self) -> int:
        return self._end - self._begin

    def read(self, start: int, stop: int) -> np.ndarray:
        """Token IDs [start, stop) of the stream, 1-D, in the store's own integer type."""
        assert 0 <= start <= stop <= len(self), f"tokens {start} to {stop} of a stream of {len(self)}"
        start, stop = start + self._begin, stop + self._begin
        parts = []
        at = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            before = int(self._ends[at - 1]) if at else 0
            upto = min(stop, int(self._ends[at]))
            parts.append(self._map(at)[start - before : upto - before])
            start, at = upto, at + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, np.uint16)

    def gather(self, starts: np.ndarray, width: int, *, out: np.ndarray, rows: np.ndarray) -> None:
        """Copy the `width` tokens from each of `starts`, int64 [B], into `out[rows]`, [B, width], file by file."""
        begins = starts + self._begin
        files = np.searchsorted(self._ends, begins, side="right")
        whole = begins + width <= self._ends[files]
        for at in np.unique(files[whole]):
            chosen = np.flatnonzero(whole & (files == at))
            before = int(self._ends[at - 1]) if at else 0
            views = np.lib.stride_tricks.sliding_window_view(self._map(int(at)), width)
            out[rows[chosen]] = views[begins[chosen] - before]
        for one in np.flatnonzero(~whole):  # across the border of two files
            start = int(starts[one])
            out[rows[one]] = self.read(start, start + width)

    def _map(self, at: int) -> np.ndarray:
        if self._checksums:
            _prove(self._files[at], self._checksums[at])
        return _map(self._files[at])


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStore:
    """Chunks in their order, and how they make up the splits."""

    cache: Path
    chunks: list[Chunk]
    tokenizer: dict[str, Any]  # as in the manifest: name, hash, vocab_size, special_tokens
    validation: float
    proves: bool = False  # reading a file for the first time proves that it holds what was written

    @property
    def id(self) -> str:
        """The store's identity."""
        return store_id([chunk.id for chunk in self.chunks], validation=self.validation)

    @property
    def num_documents(self) -> int:
        """Documents in all splits."""
        return sum(sum(chunk.num_documents.values()) for chunk in self.chunks)

    def splits(self) -> list[str]:
        """The splits that this store was asked to have."""
        return list(SPLITS if self.validation > 0 else SPLITS[:1])

    def stream(self, split: str) -> TokenStream:
        """One split's token IDs: D documents with D - 1 end-of-text tokens between them.

        A corpus of one document has no other to hold out: its last part is the validation split.
        """
        if self.num_documents == 1 and self.validation > 0:
            cut = self._cut()
            begin, end = (0, cut) if split == "train" else (cut, self._total(SPLITS) - 1)
            return self._stream(SPLITS, begin, end)
        return self._stream((split,), 0, max(0, self._total((split,)) - 1))

    def documents(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Each document's first token in the split's stream and its number of tokens, both int64 [documents]."""
        if self.num_documents == 1 and self.validation > 0:
            return np.zeros(1, np.int64), np.array([len(self.stream(split))], np.int64)
        firsts: list[np.ndarray] = []
        counts: list[np.ndarray] = []
        base = 0
        for chunk in self.chunks:
            path = self.cache / "chunks" / chunk.id / "documents.npy"
            if self.proves:
                _prove(path, chunk.files[path.name][1])
            table = np.load(path, mmap_mode="r")
            mine = table["split"] == SPLITS.index(split)
            continued = chunk.continued and bool(mine[0])  # else it is of the other split
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

    def _cut(self) -> int:
        total = self._total(SPLITS) - 1
        return total - round(total * self.validation)

    def _total(self, splits: tuple[str, ...]) -> int:
        return sum(chunk.tokens[split] for chunk in self.chunks for split in splits)

    def _stream(self, splits: tuple[str, ...], begin: int, end: int) -> TokenStream:
        parts = [(chunk, split) for chunk in self.chunks for split in splits if chunk.tokens[split]]
        return TokenStream(
            [self.cache / "chunks" / chunk.id / f"{split}.npy" for chunk, split in parts],
            [chunk.tokens[split] for chunk, split in parts],
            begin=begin,
            end=end,
            checksums=[chunk.files[f"{split}.npy"][1] for chunk, split in parts] if self.proves else None,
        )


def store_id(chunk_ids: list[str], *, validation: float) -> str:
    """A store's identity: a sha256 over its chunks in their order. A chunk's ID covers its text and its tokenizer."""
    return hashlib.sha256(json.dumps([FORMAT, validation, chunk_ids]).encode()).hexdigest()


def save_store(store: TokenStore) -> Path:
    """Write the file that names the store's chunks, and return its path: `<cache>/stores/<id>.json`."""
    path = store.cache / "stores" / f"{store.id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {"format": FORMAT, "tokenizer": store.tokenizer, "validation": store.validation}
    write_json(path, {**fields, "chunks": [chunk.id for chunk in store.chunks]})
    return path


def open_store(path: str | os.PathLike[str]) -> TokenStore:
    """The token store that a file written by `save_store` names.

    Raises:
        ValueError: the file is not a token store, or a chunk that it names is not there or damaged.

    """
    path = Path(path)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields["format"] != FORMAT:
            raise ValueError(f"format {fields['format']!r}, and this release reads {FORMAT}")  # noqa: TRY301
        is_whole = store_id(fields["chunks"], validation=fields["validation"]) == path.stem
        tokenizer_hash = fields["tokenizer"]["hash"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: is no token store ({type(error).__name__}: {error}); run the write stage") from error
    if not is_whole:
        raise ValueError(f"{path}: was changed after it was written; remove it and run the write stage again")
    cache = path.parent.parent
    chunks = []
    for chunk_id in fields["chunks"]:
        chunk = find_chunk(cache, chunk_id)
        if chunk is None:
            raise ValueError(f"{path}: its chunk {chunk_id} is not under {cache / 'chunks'}; run the write stage again")
        if chunk.tokenizer != tokenizer_hash:
            raise ValueError(
                f"{path}: its chunk {chunk_id} was made with the tokenizer {chunk.tokenizer}, but the store with "
                f"{fields['tokenizer']['name']} ({tokenizer_hash})"
            )
        chunks.append(chunk)
    return TokenStore(
        cache=cache, chunks=chunks, tokenizer=fields["tokenizer"], validation=fields["validation"], proves=True
    )


def forget_files() -> None:
    """Let go of all mapped files: one of them was replaced."""
    _map.cache_clear()
    _prove.cache_clear()


@cache
def _prove(path: Path, checksum: int) -> None:
    check_file(path, checksum)


@lru_cache(maxsize=4096)
def _map(path: Path) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
