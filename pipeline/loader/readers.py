"""Read row groups of windows by number: from the shards of a data set, or cut from a token store when asked for.

Both readers number a split's row groups through all shards in stored order, by the same arithmetic, so an order of one
is an order of the other. They cache no row group and own no thread, may be used by many threads at once, and can be
pickled. IDs are uint16 if the vocabulary allows it, else int32: the more compact they are, the more of them fit into
memory and the faster they are gathered.

Cost: a shard's footer is parsed once (0.5 ms for 250 row groups) and kept; opening the file again with it takes 20
microseconds. Decoding a row group of 2^18 tokens takes about 1.1 ms of one core.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from pipeline.base.hashing import hash_json
from pipeline.base.paths import expand_user
from pipeline.loader.documents import DocumentRule
from pipeline.loader.row_group import RowInfo, SampleIds, StartAndEnd, choose_pitch, view_windows
from pipeline.loader.target_mask import check_score
from pipeline.rules import check_path, reject, shorten
from pipeline.settings import ShardsConfig, WindowConfig
from pipeline.shards.format import open_shard, read_columns, read_footer, shard_schema
from pipeline.shards.layout import choose_layout
from pipeline.shards.manifest import MANIFEST_NAME, read_manifest
from pipeline.tokens.store import open_store
from pipeline.windows import IGNORED, cut_windows, read_windows

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Self

    import pyarrow.parquet as pq

FOOTERS_KEPT = 128  # of about 0.4 MB each
Mark: TypeAlias = tuple[int, int, int]  # a file's inode, modification time and size
END_OF_TEXT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]")


class ShardReader:
    """The row groups of one split of a data set in shards.

    Raises:
        ValueError: the data set has no such split.

    """

    def __init__(self, folder: Path, split: str, *, score: str = "all") -> None:
        self._manifest_mark = mark_file(folder / MANIFEST_NAME)
        manifest = read_manifest(folder)
        if split not in manifest.splits:
            raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(manifest.splits)}")
        entry = manifest.splits[split]
        self.path = folder
        self.split, self.score = split, score
        self.fingerprint, self.store = manifest.fingerprint, manifest.store
        self.closes_documents: bool = manifest.windows.get("end_of_text_is_target", False)
        self.tokenizer = manifest.tokenizer
        self.max_length, self.stride = entry.max_length, entry.stride
        self.documents, self.layout = manifest.windows["documents"], manifest.windows["order"]
        self.groups = [count for shard in entry.shards for count in shard.row_groups]
        self.dtype = compact_dtype(manifest.tokenizer["vocab_size"])
        self._pitch = choose_pitch(
            max_length=self.max_length, stride=self.stride, order=self.layout, documents=self.documents
        )
        self.pitches = np.full(len(self.groups), self._pitch)
        self.padded = manifest.windows["tail"] == "pad"
        self.end_of_text: int | None = manifest.windows.get("end_of_text")
        self._entries = {shard.path: shard for shard in entry.shards}
        self._marks: dict[str, Mark] = {}  # of each shard whose footer was read
        self._files = [(shard.path, group) for shard in entry.shards for group in range(len(shard.row_groups))]
        self._footers: OrderedDict[str, pq.FileMetaData] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_footers": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def read_group(self, group: int, tokens: np.ndarray) -> RowInfo:
        """Decode a row group into `tokens`, flat, with its windows `pitches[group]` apart.

        Raises:
            OSError: a shard is missing, or a page's checksum does not match its bytes; the message names the row group.
            ValueError: a shard is not what the manifest says.

        """
        inputs_BT, next_ids, rows = self._decode(group, with_ids=True)
        assert inputs_BT is not None, "asked for with the IDs"
        if not len(inputs_BT):
            return rows
        next_ids = np.where(next_ids == IGNORED, 0, next_ids)  # after a padded tail: never a target that counts
        new = min(self._pitch, self.max_length)  # tokens of a window that the previous one does not have
        old = self.max_length - new
        if self._pitch <= self.max_length and not (
            (inputs_BT[1:, :old] == inputs_BT[:-1, new:]).all()
            and (inputs_BT[1:, old] == next_ids[:-1]).all()
            and (np.diff(rows.starts) == new).all()
        ):
            raise ValueError(f"{self._name(group)} contains windows that are not of one text; run stages=[verify]")
        parts = inputs_BT[0], inputs_BT[1:, old:], next_ids  # each token once, where windows overlap
        if max(int(part.view(np.uint32).max(initial=0)) for part in parts) >= self.tokenizer["vocab_size"]:
            # A negative ID is a huge one as uint32.
            raise ValueError(f"{self._name(group)} contains IDs outside the vocabulary; run stages=[verify]")
        windows_BT1 = view_windows(tokens, pitch=self._pitch, max_length=self.max_length)
        windows_BT1[0, :-1] = inputs_BT[0]
        windows_BT1[1:, old:-1] = inputs_BT[1:, old:]
        windows_BT1[:, -1] = next_ids
        return rows

    def read_last(self, group: int) -> tuple[int, int]:
        """Return the start and the length of a row group's last window; no IDs are decoded."""
        rows = self._decode(group, with_ids=False)[2]
        return int(rows.starts[-1]), int(rows.lengths[-1])

    def source_of(self, group: int) -> tuple[Self, int]:
        """Return the data set of a row group, and its number there."""
        return self, group

    def sample_ids(self, windows: np.ndarray) -> SampleIds:
        """Return the windows' numbers in their data set."""
        return SampleIds(windows)

    def _decode(self, group: int, *, with_ids: bool) -> tuple[np.ndarray | None, np.ndarray, RowInfo]:
        """Read a row group, and make sure that what was read is what the manifest at the start described."""
        path = self._files[group][0]
        try:
            found = self._read_columns(group, with_ids=with_ids)
        except (OSError, ValueError):
            self._check_unchanged(path)  # if the data set was replaced, that is the error
            raise
        return found if self._check_unchanged(path) else self._decode(group, with_ids=with_ids)

    def _check_unchanged(self, path: str) -> bool:
        """Return False if a shard was replaced by the same bytes, which calls for another try.

        A writer removes the manifest before it replaces a shard. So with the manifest of the start still in place, the
        shards are those it describes; a shard that was replaced alone is compared by its hash.

        Raises:
            OSError: the folder contains another data set than at the start.

        """
        mark = mark_file(self.path / MANIFEST_NAME)
        if mark != self._manifest_mark:
            again = "open it again to read what is there now"
            try:
                manifest = read_manifest(self.path)
            except ValueError as error:
                raise OSError(f"{self.path} was replaced or removed while it was read; {again} ({error})") from error
            entry = manifest.splits.get(self.split)
            if entry is None or {shard.path: shard for shard in entry.shards} != self._entries:
                raise OSError(f"{self.path} was replaced by another data set while it was read; {again}")
            self._manifest_mark = mark
        file, known = self.path / path, self._marks.get(path)
        now = mark_file(file)
        if known is None or now is None or now == known:
            return True
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != self._entries[path].sha256:
                raise OSError(f"{file} was replaced by another file while it was read; run stages=[verify]")
        with self._lock:
            self._footers.pop(path, None)
            self._marks[path] = now
        return False

    def _read_columns(self, group: int, *, with_ids: bool) -> tuple[np.ndarray | None, np.ndarray, RowInfo]:
        path, number = self._files[group]
        try:
            footer = self._footer(path)
        except (OSError, ValueError) as error:  # all of the shard: no row group, whichever a thread needed first
            raise OSError(f"{self.path / path} cannot be read: {error}; run stages=[verify]") from error
        try:
            with open_shard(self.path / path, footer=footer) as file:
                inputs_BT, next_ids, starts, lengths = read_columns(file, number, with_ids=with_ids)
        except (OSError, pa.ArrowException) as error:
            said = " ".join(str(error).split())  # the library's may have several lines
            raise OSError(f"{self._name(group)} cannot be read: {said}; run stages=[verify]") from error
        shape = (len(starts), self.max_length if inputs_BT is None else inputs_BT.shape[1])
        if shape != (self.groups[group], self.max_length):
            expected = (self.groups[group], self.max_length)
            raise ValueError(f"{self._name(group)} has [windows, tokens] of {shape}; the manifest says {expected}")
        return inputs_BT, next_ids, RowInfo(starts, lengths)

    def _footer(self, path: str) -> pq.FileMetaData:
        with self._lock:
            footer = self._footers.get(path)
            if footer is not None:
                self._footers.move_to_end(path)
                return footer
        schema, file = shard_schema(self.max_length, padded=self.padded), self.path / path
        mark, footer = mark_file(file), read_footer(file, self._entries[path], schema)
        with self._lock:
            self._footers[path] = footer
            if mark is not None:
                self._marks.setdefault(path, mark)
            if len(self._footers) > FOOTERS_KEPT:
                self._footers.popitem(last=False)
        return footer

    def _name(self, group: int) -> str:
        path, number = self._files[group]
        return f"{self.path / path}: row group {number}"


def mark_file(path: Path) -> Mark | None:
    """Return what changes when a file is replaced or written to; None if there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


@dataclass(frozen=True, slots=True)
class StoreWindows:
    """Windows of a token store that were never written as shards.

    Args:
        store: the token store, `<cache>/stores/<id>.json`.
        window: how windows are cut.
        shards: the layout that shards of these windows would have.

    """

    store: str | os.PathLike[str]
    window: WindowConfig
    shards: ShardsConfig = field(default_factory=ShardsConfig)


class StoreReader:
    """The row groups of windows that were never written: each is cut from a token store when asked for.

    Args:
        path: the token store.
        window: how windows are cut.
        shards: the layout that shards of these windows would have.
        split: `train` or `validation`.
        score: see `loader/target_mask.py`.

    """

    def __init__(
        self, path: Path, window: WindowConfig, shards: ShardsConfig, *, split: str, score: str = "all"
    ) -> None:
        if shards.order != "sequential":
            reject("shards.order", "windows of a token store are always in the text's order", shards.order)
        store = open_store(path)
        if split not in store.splits():
            raise ValueError(f"{path} has no split {split!r}; it has {', '.join(store.splits())}")
        separate = window.documents == "separate"
        stream = store.stream(split, closed=separate)
        documents = store.documents(split) if separate else None
        layout = choose_layout(window, shards)
        self.path, self.store, self.closes_documents = path, store.id, separate
        self.windows = cut_windows(window, num_tokens=len(stream), documents=documents)
        self.split, self.score = split, score
        self.tokenizer = store.tokenizer
        self.max_length, self.stride, self.documents = window.max_length, window.stride_tokens, window.documents
        self.layout = "sequential"
        self._pitch = choose_pitch(
            max_length=self.max_length, stride=self.stride, order=self.layout, documents=self.documents
        )
        per_group, per_shard = layout.windows_per_group, layout.shard_size(len(self.windows))
        self.groups = [
            min(per_group, per_shard - within, len(self.windows) - first - within)
            for first in range(0, len(self.windows), per_shard)
            for within in range(0, min(per_shard, len(self.windows) - first), per_group)
        ]
        self.dtype = compact_dtype(store.tokenizer["vocab_size"])
        shape = [self.max_length, self.stride, window.tail, self.documents]
        rule = ["end_of_text_is_target"] if separate else []  # since release 0.1.0, whose states are of other windows
        self.fingerprint = hash_json([store.id, split, *shape, *rule, per_group, per_shard])
        self.pitches = np.full(len(self.groups), self._pitch)
        self.padded = window.tail == "pad"
        self._stream = stream
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.groups, dtype=np.int64)])
        self.end_of_text: int | None = store.tokenizer.get("end_of_text")
        self._pad_id = end_of_text_id(self)

    def read_group(self, group: int, tokens: np.ndarray) -> RowInfo:
        """Read a row group into `tokens`, flat, with its windows `pitches[group]` apart."""
        first, last = int(self._starts[group]), int(self._starts[group + 1])
        found_BT1, starts, lengths = read_windows(self._stream, self.windows, first, last, pad_id=self._pad_id)
        windows_BT1 = view_windows(tokens, pitch=self._pitch, max_length=self.max_length)
        old = self.max_length + 1 - self._pitch
        windows_BT1[0], windows_BT1[1:, old:] = found_BT1[0], found_BT1[1:, old:]  # each token once
        return RowInfo(starts, lengths)

    def read_last(self, group: int) -> tuple[int, int]:
        """Return the start and the length of a row group's last window."""
        starts, lengths = self.windows.locate(self._starts[group + 1 : group + 2] - 1)
        return int(starts[0]), int(lengths[0])

    def source_of(self, group: int) -> tuple[Self, int]:
        """Return the data set of a row group, and its number there."""
        return self, group

    def sample_ids(self, windows: np.ndarray) -> SampleIds:
        """Return the windows' numbers in their data set."""
        return SampleIds(windows)


class MixtureReader:
    """The row groups of several data sets, numbered from the first data set to the last.

    Raises:
        ValueError: they differ in their tokenizer or `max_length`.

    """

    def __init__(self, readers: Sequence[ShardReader | StoreReader]) -> None:
        if not readers:
            raise ValueError("a mixture needs at least one data set; got an empty list")
        one = readers[0]
        for number, other in enumerate(readers):
            check_tokenizer(other.tokenizer, one.tokenizer, f"source {number} of the mixture")
            if other.max_length != one.max_length:
                raise ValueError(
                    f"source {number} of the mixture has windows of {other.max_length} tokens, source 0 of "
                    f"{one.max_length}: all windows of a batch have the same length"
                )
        self.readers = list(readers)
        self.split, self.tokenizer, self.max_length, self.dtype = one.split, one.tokenizer, one.max_length, one.dtype
        self.fingerprint = [reader.fingerprint for reader in readers]
        self.groups = [count for reader in readers for count in reader.groups]
        self.pitches = np.concatenate([reader.pitches for reader in readers])
        self.padded = any(reader.padded for reader in readers)
        self.score = one.score
        self.end_of_text = one.end_of_text
        self._first_groups = np.cumsum([0, *(len(reader.groups) for reader in readers)])
        self._first_windows = np.cumsum([0, *(sum(reader.groups) for reader in readers)])

    def read_group(self, group: int, tokens: np.ndarray) -> RowInfo:
        """Decode a row group as the reader of its data set does."""
        reader, number = self.source_of(group)
        return reader.read_group(number, tokens)

    def source_of(self, group: int) -> tuple[ShardReader | StoreReader, int]:
        """Return the data set of a row group, and its number there."""
        source = int(np.searchsorted(self._first_groups, group, side="right")) - 1
        return self.readers[source], group - int(self._first_groups[source])

    def sample_ids(self, windows: np.ndarray) -> SampleIds:
        """Return the data sets of windows that are numbered through all, int64 [B], and their numbers there."""
        sources = np.searchsorted(self._first_windows, windows, side="right") - 1
        return SampleIds(windows - self._first_windows[sources], sources)


Reader: TypeAlias = ShardReader | StoreReader | MixtureReader
Source: TypeAlias = "str | os.PathLike[str] | StoreWindows"


def open_split(
    source: Source, split: str, *, score: str = "all", tokenizer: Mapping[str, Any] | None = None
) -> ShardReader | StoreReader:
    """Open one split of a data set's folder, or of the windows of a token store.

    Raises:
        ValueError: there is no such data set or split; its tokenizer has another hash than `tokenizer`; or it is not
            known which targets are new (`score`).

    """
    given = source.store if isinstance(source, StoreWindows) else source
    path = expand_user(check_path("path", given, "must be a data set's folder, or a StoreWindows")).absolute()
    reader: ShardReader | StoreReader
    if isinstance(source, StoreWindows):
        reader = StoreReader(path, source.window, source.shards, split=split, score=score)
    elif path.suffix == ".json":
        raise ValueError(
            f"{source} is a token store, which has no windows of its own: pass StoreWindows({str(source)!r}, "
            "WindowConfig(max_length=..., stride=...))"
        )
    else:
        reader = ShardReader(path, split, score=score)
    check_score(reader)
    if tokenizer is not None:
        check_tokenizer(reader.tokenizer, tokenizer, path)
    return reader


def describe(reader: Reader) -> str:
    """Describe what is read in a few words: the data set, its split, and its windows."""
    if isinstance(reader, MixtureReader):
        what = f"mixture of {len(reader.readers)} data sets, {reader.split}"
        strides = sorted({one.stride for one in reader.readers})
        stride = f"{strides[0]} to {strides[-1]}" if len(strides) > 1 else str(strides[0])
    else:
        what, stride = f"{shorten(str(reader.path), 60)!r}, {reader.split}", str(reader.stride)
    name = shorten(str(reader.tokenizer["name"]), 60)
    return f"{what}: {sum(reader.groups):,} windows of {reader.max_length} tokens, stride {stride}, tokenizer {name}"


def check_tokenizer(found: Mapping[str, Any], expected: Mapping[str, Any], path: object) -> None:
    """Raise ValueError, with both names, if two tokenizers differ by their hash."""
    if not isinstance(expected, Mapping) or not isinstance(expected.get("hash"), str):
        reject("tokenizer", "must be a mapping with `name` and `hash`, as a manifest's `tokenizer` is", expected)
    if found["hash"] != expected["hash"]:
        raise ValueError(
            f"{path} was made by the tokenizer {found['name']!r} (hash {found['hash'][:12]}), but "
            f"{expected.get('name', 'unnamed')!r} (hash {expected['hash'][:12]}) is expected: the IDs mean other tokens"
        )


def compact_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smaller of the two types that numpy and torch handle well, if every ID fits into it."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


def document_rule(reader: Reader, *, ids: bool, score_starts: bool) -> DocumentRule | None:
    """Return how documents are told apart; None if there is no need to.

    Raises:
        ValueError: as `end_of_text_id` does.

    """
    return None if score_starts and not ids else DocumentRule(end_of_text_id(reader), ids, score_starts)


def end_of_text_id(reader: Reader) -> int:
    """Return the ID that separates documents: the recorded one or, in older data sets, that of a token's usual name.

    Raises:
        ValueError: none was recorded, and the tokenizer has no such token.

    """
    if reader.end_of_text is not None:
        bos = reader.tokenizer.get("bos") or {}
        return StartAndEnd(reader.end_of_text) if bos.get("id") == reader.end_of_text else reader.end_of_text
    special: dict[str, int] = reader.tokenizer["special_tokens"]
    for name in END_OF_TEXT_NAMES:
        if name in special:
            return special[name]
    raise ValueError(
        f"the tokenizer {reader.tokenizer['name']!r} has no end-of-text token; it has {', '.join(special)}"
    )
