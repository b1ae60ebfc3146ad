"""Read row groups of windows by number: from the shards of a data set, or cut from a token store when asked for.

Both readers number a split's row groups through all shards in stored order, by the same arithmetic, so an order of one
is an order of the other. They cache no row group and own no thread, may be used by many threads at once, and can be
pickled. IDs are uint16 if the vocabulary allows it, else int32: the more compact they are, the more of them fit into
memory and the faster they are gathered.

Cost: a shard's footer is parsed once (0.5 ms for 250 row groups) and kept; opening the file again with it takes 20
microseconds. Decoding a row group of 2^18 tokens takes about 1.1 ms of one core.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pipeline.base.hashing import hash_json
from pipeline.base.paths import expand_user
from pipeline.loader.damage import DamagedRowGroup, check_files
from pipeline.loader.fetched_shards import REQUESTS
from pipeline.loader.row_group import (
    DocumentRule,
    RowInfo,
    SampleIds,
    StartAndEnd,
    choose_pitch,
    pack_ends,
    view_windows,
)
from pipeline.loader.shard_files import ShardFiles
from pipeline.loader.target_mask import check_score
from pipeline.packing import choose_group_tokens
from pipeline.rules import check_path, check_uri, reject, shorten
from pipeline.settings import ShardsConfig, WindowConfig
from pipeline.shards.layout import choose_layout
from pipeline.shards.row_groups import JoinedRowGroups, divide_windows
from pipeline.storage.names import is_uri
from pipeline.storage.open import open_storage
from pipeline.tokens.chunk import DamagedChunk
from pipeline.tokens.store import open_store
from pipeline.windows import IGNORED, StoredWindows, cut_windows

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Self

    from pipeline.loader.disk_cache import DiskCache
    from pipeline.loader.fetched_shards import FetchedShard
    from pipeline.loader.shard_files import Fetch

SOURCES = "must be a data set's folder or URI, or a StoreWindows"
END_OF_TEXT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]")


class ShardReader:
    """The row groups of one split of a data set in shards.

    Raises:
        ValueError: the data set has no such split.

    """

    def __init__(
        self,
        folder: Path | str,
        split: str,
        *,
        score: str = "all",
        on_bad: str = "raise",
        cache: DiskCache | None = None,
    ) -> None:
        self._files = ShardFiles(folder, split, cache=cache)
        manifest, entry = self._files.manifest, self._files.entry
        if not isinstance(folder, str):  # in an object store each would take a request: the first read says so
            check_files(folder, entry.shards, on_bad=on_bad)
        self.path = folder
        self.split, self.score, self.on_bad = split, score, on_bad
        self.fingerprint, self.store = manifest.fingerprint, manifest.store
        self.closes_documents: bool = manifest.windows.get("end_of_text_is_target", False)
        self.tokenizer = manifest.tokenizer
        self.max_length, self.stride = entry.max_length, entry.stride
        self.documents, self.layout = manifest.windows["documents"], manifest.windows["order"]
        self.groups = self._files.groups
        self.dtype = compact_dtype(manifest.tokenizer["vocab_size"])
        self._pitch = choose_pitch(
            max_length=self.max_length, stride=self.stride, order=self.layout, documents=self.documents
        )
        self.padded, self.packed = manifest.windows["tail"] == "pad", self.documents == "pack"
        self.end_of_text: int | None = manifest.windows.get("end_of_text")
        self.requests = 0 if self._files.fetched is None else REQUESTS
        self.fetch_bytes, self.is_remote = self._files.fetch_bytes, isinstance(folder, str)

    def fetch(self, group: int) -> FetchedShard | None:
        """Fetch a row group's bytes for `read_group`, if this reader has `requests` to make at once.

        Raises:
            OSError, ValueError: it cannot be read; `read_group` says so in the words of a user.

        """
        return self._files.fetch(group)

    def read_group(self, group: int, tokens: np.ndarray, fetched: Fetch | None = None) -> RowInfo:
        """Decode a row group into `tokens`, flat, with its windows `pitch_of(group)` apart.

        Give it what `fetch` returns, once it is there, or it fetches the row group itself.

        Raises:
            DamagedRowGroup: a shard is missing, a page's checksum does not match its bytes, or its content is not what
                the manifest says; the message names the file and the row group.
            OSError: the folder contains another data set than at the start, or this process may not read it.

        """
        inputs_BT, next_ids, rows = self._files.read(group, with_ids=True, fetched=fetched)
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
            raise DamagedRowGroup(f"{self._files.name(group)} contains windows that are not of one text")
        parts = inputs_BT[0], inputs_BT[1:, old:], next_ids  # each token once, where windows overlap
        if max(int(part.view(np.uint32).max(initial=0)) for part in parts) >= self.tokenizer["vocab_size"]:
            # A negative ID is a huge one as uint32.
            raise DamagedRowGroup(f"{self._files.name(group)} contains IDs outside the vocabulary")
        windows_BT1 = view_windows(tokens, pitch=self._pitch, max_length=self.max_length)
        windows_BT1[0, :-1] = inputs_BT[0]
        windows_BT1[1:, old:-1] = inputs_BT[1:, old:]
        windows_BT1[:, -1] = next_ids
        return rows

    def pitch_of(self, group: int) -> int:  # noqa: ARG002 - those of a mixture differ
        """Return the tokens between the starts of two windows of a row group in memory."""
        return self._pitch

    def read_last(self, group: int) -> tuple[int, int]:
        """Return the start and the length of a row group's last window; no IDs are decoded."""
        rows = self._files.read(group, with_ids=False)[2]
        return int(rows.starts[-1]), int(rows.lengths[-1])

    def source_of(self, group: int) -> tuple[Self, int]:
        """Return the data set of a row group, and its number there."""
        return self, group

    def sample_ids(self, windows: np.ndarray) -> SampleIds:
        """Return the windows' numbers in their data set."""
        return SampleIds(windows)


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
        self,
        path: Path,
        window: WindowConfig,
        shards: ShardsConfig,
        *,
        split: str,
        score: str = "all",
        on_bad: str = "raise",
    ) -> None:
        if shards.order != "sequential":
            reject("shards.order", "windows of a token store are always in the text's order", shards.order)
        store = open_store(path)
        if split not in store.splits():
            raise ValueError(f"{path} has no split {split!r}; it has {', '.join(store.splits())}")
        joined, self.packed = window.documents == "join", window.documents == "pack"
        stream = store.stream(split, closed=not joined)
        documents = None if joined else store.documents(split)
        layout, group_tokens = choose_layout(window, shards), choose_group_tokens(window.max_length)
        self.path, self.store, self.closes_documents = path, store.id, not joined
        self.windows = cut_windows(window, num_tokens=len(stream), documents=documents, group_tokens=group_tokens)
        self.split, self.score, self.on_bad = split, score, on_bad
        self.tokenizer = store.tokenizer
        self.max_length, self.stride, self.documents = window.max_length, window.stride_tokens, window.documents
        self.layout = "sequential"
        self._pitch = choose_pitch(
            max_length=self.max_length, stride=self.stride, order=self.layout, documents=self.documents
        )
        per_group, per_shard = layout.windows_per_group, layout.shard_size(len(self.windows))
        self.groups = divide_windows(len(self.windows), per_group=per_group, per_shard=per_shard)
        self.dtype = compact_dtype(store.tokenizer["vocab_size"])
        shape = [self.max_length, self.stride, window.tail, self.documents]
        rule: list[str | int] = (
            [] if joined else ["end_of_text_is_target"]
        )  # since release 0.1.0, whose states are of other windows
        rule += [group_tokens] if self.packed else []
        self.fingerprint = hash_json([store.id, split, *shape, *rule, per_group, per_shard])
        self.padded = window.tail == "pad"
        self.end_of_text: int | None = store.tokenizer.get("end_of_text")
        self.requests = self.fetch_bytes = 0
        self.is_remote = False
        self._stored = StoredWindows(
            stream=stream, windows=self.windows, order="sequential", seed=0, pad_id=end_of_text_id(self)
        )

    def fetch(self, group: int) -> None:
        """Fetch nothing: a token store is on this machine."""

    def read_group(self, group: int, tokens: np.ndarray, fetched: Fetch | None = None) -> RowInfo:  # noqa: ARG002
        """Read a row group into `tokens`, flat, with its windows `pitch_of(group)` apart."""
        first = self.groups.first_window(group)
        try:
            found_BT1, starts, lengths, *segments = self._stored.read(first, first + self.groups[group])
        except DamagedChunk as error:
            raise DamagedRowGroup(f"{self.path}: row group {group} cannot be read: {error}") from error
        windows_BT1 = view_windows(tokens, pitch=self._pitch, max_length=self.max_length)
        old = self.max_length + 1 - self._pitch
        windows_BT1[0], windows_BT1[1:, old:] = found_BT1[0], found_BT1[1:, old:]  # each token once
        ends = pack_ends(*segments, max_length=self.max_length) if segments else None
        return RowInfo(starts, lengths, ends)

    def pitch_of(self, group: int) -> int:  # noqa: ARG002 - as above
        """Return the tokens between the starts of two windows of a row group in memory."""
        return self._pitch

    def read_last(self, group: int) -> tuple[int, int]:
        """Return the start and the length of a row group's last window."""
        last = self.groups.first_window(group) + self.groups[group] - 1
        starts, lengths = self.windows.locate(np.array([last]))
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
        self.groups = JoinedRowGroups([reader.groups for reader in readers])
        self.padded, self.packed = any(one.padded for one in readers), any(one.packed for one in readers)
        self.score = one.score
        self.end_of_text = one.end_of_text
        self.requests = max(reader.requests for reader in readers)
        self.fetch_bytes = max(reader.fetch_bytes for reader in readers)
        self.is_remote = any(reader.is_remote for reader in readers)

    def fetch(self, group: int) -> FetchedShard | None:
        """Fetch a row group as the reader of its data set does."""
        reader, number = self.source_of(group)
        return reader.fetch(number)

    def read_group(self, group: int, tokens: np.ndarray, fetched: Fetch | None = None) -> RowInfo:
        """Decode a row group as the reader of its data set does."""
        reader, number = self.source_of(group)
        return reader.read_group(number, tokens, fetched)

    def source_of(self, group: int) -> tuple[ShardReader | StoreReader, int]:
        """Return the data set of a row group, and its number there."""
        source, number = self.groups.source_of(group)
        return self.readers[source], number

    def pitch_of(self, group: int) -> int:
        """Return the tokens between the starts of two windows of a row group in memory."""
        reader, number = self.source_of(group)
        return reader.pitch_of(number)

    def sample_ids(self, windows: np.ndarray) -> SampleIds:
        """Return the data sets of windows that are numbered through all, int64 [B], and their numbers there."""
        sources, numbers = self.groups.sources_of(windows)
        return SampleIds(numbers, sources)


Reader: TypeAlias = ShardReader | StoreReader | MixtureReader
Source: TypeAlias = "str | os.PathLike[str] | StoreWindows"


def open_split(
    source: Source,
    split: str,
    *,
    score: str = "all",
    tokenizer: Mapping[str, Any] | None = None,
    on_bad: str = "raise",
    cache: DiskCache | None = None,
) -> ShardReader | StoreReader:
    """Open one split of a data set in a folder or an object store, or of the windows of a token store.

    Raises:
        ValueError: there is no such data set or split; its tokenizer has another hash than `tokenizer`; or it is not
            known which targets are new (`score`).

    """
    path: Path | str
    reader: ShardReader | StoreReader
    if isinstance(source, StoreWindows):
        path = expand_user(check_path("path", source.store, SOURCES)).absolute()
        reader = StoreReader(path, source.window, source.shards, split=split, score=score, on_bad=on_bad)
    else:
        path = place_of(source)
        if str(path).endswith(".json"):
            raise ValueError(
                f"{source} is a token store, which has no windows of its own: pass StoreWindows({str(source)!r}, "
                "WindowConfig(max_length=..., stride=...))"
            )
        reader = ShardReader(path, split, score=score, on_bad=on_bad, cache=cache)
    check_score(reader)
    if tokenizer is not None:
        check_tokenizer(reader.tokenizer, tokenizer, path)
    return reader


def place_of(source: str | os.PathLike[str]) -> Path | str:
    """Return the absolute path of a data set's folder, or its URI as it was given.

    Raises:
        ValueError: it is neither.

    """
    if is_uri(source):
        return open_storage(check_uri("path", str(source))).uri
    return expand_user(check_path("path", source, SOURCES)).absolute()


def describe(reader: Reader) -> str:
    """Describe what is read in a few words: the data set, its split, and its windows."""
    if isinstance(reader, MixtureReader):
        what = f"mixture of {len(reader.readers)} data sets, {reader.split}"
        strides = sorted({one.stride for one in reader.readers})
        stride = f"{strides[0]} to {strides[-1]}" if len(strides) > 1 else str(strides[0])
    else:
        what, stride = f"{shorten(str(reader.path), 60)!r}, {reader.split}", str(reader.stride)
    name = shorten(str(reader.tokenizer["name"]), 60)
    windows = f"{reader.groups.num_windows:,} windows of {reader.max_length} tokens"
    return f"{what}: {windows}, stride {stride}, tokenizer {name}"


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
    if score_starts and not ids:
        return None
    sources = reader.readers if isinstance(reader, MixtureReader) else [reader]
    end_of_text = None if all(source.packed for source in sources) else end_of_text_id(reader)
    return DocumentRule(end_of_text, ids, score_starts)


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
