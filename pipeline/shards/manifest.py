"""The manifest: what a data set contains. The write stage writes it last, and the load stage knows nothing else.

A folder without `manifest.json` is not a data set. Reading a manifest checks that its content has the sha256 recorded
in it, so that a changed digit is noticed; that its paths are inside its own folder; and that its counts agree. The
shards are listed in an index beside it (`pipeline.shards.index`), so a manifest has one size for any number of shards.
"""

from __future__ import annotations

import dataclasses
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.atomic import sync_folder, write_json
from pipeline.base.reading import check_signature, parse_fields, read_fields, sign
from pipeline.base.retry import read_twice
from pipeline.base.wording import counted
from pipeline.rules import MAX_COUNT, check_bool, check_choice, check_range, check_text, names_arguments
from pipeline.settings import DOCUMENTS, MAX_LENGTH, MAX_SEED, ORDERS, TAILS
from pipeline.shards.entries import (
    DOCUMENTS_FOLDER,
    INDEX_NAME,
    MANIFEST_NAME,
    DocumentsEntry,
    IndexEntry,
    ShardEntry,
    TableEntry,
    check_shard,
    check_size,
    check_table,
)
from pipeline.shards.index import IndexedShards, SplitShape, check_index_size, index_shards, write_index
from pipeline.shards.row_groups import EvenRowGroups, RowGroups, as_row_groups
from pipeline.storage.names import is_uri
from pipeline.storage.open import open_storage

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

FORMAT_VERSION = 2  # 1 lists the shards in the manifest itself
REPR_CHARACTERS = 300
MAX_MANIFEST_BYTES = 1 << 29  # of format 1: 100,000 shards of 128 row groups take 82 MB
MAX_VOCAB_SIZE = 2**31  # IDs are int32


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitEntry:
    """One split: `train` or `validation`."""

    num_documents: int
    num_tokens: int
    num_windows: int
    max_length: int
    stride: int
    shards: Sequence[ShardEntry]  # each looked up in the index when it is asked for
    windows_per_group: int | None = None  # of each row group but the last; None in format 1, where shards list theirs
    windows_per_shard: int | None = None  # of each shard but the last
    documents: DocumentsEntry | None = None  # with shards.documents=true; not in release 0.1.0

    @property
    def num_bytes(self) -> int:
        """The bytes of all shards."""
        if isinstance(self.shards, IndexedShards):
            return self.shards.num_bytes
        return sum(shard.bytes for shard in self.shards)

    @property
    def row_groups(self) -> RowGroups:
        """The windows of each row group, numbered through all shards."""
        if self.windows_per_group is not None:
            return EvenRowGroups(self.num_windows, self.windows_per_group)
        return as_row_groups([count for shard in self.shards for count in shard.row_groups])

    def shard_path(self, number: int) -> str:
        """Return the path of a shard, relative to the data set's folder. In format 2 nothing is read for it."""
        return self.shards.path(number) if isinstance(self.shards, IndexedShards) else self.shards[number].path

    @property
    def files(self) -> list[ShardEntry | TableEntry]:
        """All files of the split: its shards, and the documents' table if it has one."""
        return [*self.shards, *([self.documents] if self.documents else [])]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Manifest:
    """A data set."""

    fingerprint: str
    tokenizer: dict[str, Any]  # name, hash, vocab_size, special_tokens
    corpus: dict[str, Any]  # documents, characters, bytes, special_text_found, audited, bad (by reason)
    store: str  # the ID of the token store that the windows were cut from
    # max_length, stride, tail, documents, order, seed (of a shuffle), end_of_text (between documents), pad_id (with
    # tail=pad), left_over (by split, the unused tokens, and the documents that consist of nothing else), padding (by
    # split, tokens), end_of_text_is_target (of separate and packed documents; not in release 0.1.0),
    # pack_group_tokens (of packed windows: `pipeline.packing`), cut (by split, the documents longer than a window)
    windows: dict[str, Any]
    splits: dict[str, SplitEntry]
    written_by: dict[str, str]  # pyarrow's release: another one may encode other bytes
    config: dict[str, Any]  # resolved
    index: IndexEntry | None = None  # of the shards of all splits; None in format 1
    format_version: int = field(default=FORMAT_VERSION)

    def __repr__(self) -> str:
        """Show the splits' counts in one line."""
        splits = ", ".join(f"{name}: {_count_windows(split)}" for name, split in self.splits.items())
        shape = f"max_length={self.windows['max_length']}, stride={self.windows['stride']}"
        text = f"Manifest({splits}, {shape}, tokenizer={self.tokenizer['name']!r}, {self.fingerprint[:12]})"
        return text if len(text) < REPR_CHARACTERS else f"{text[: REPR_CHARACTERS - 5]}...)"

    def _repr_html_(self) -> str:
        """Show the splits as a small table in a notebook."""
        names = ("num_documents", "num_tokens", "num_windows", "max_length", "stride")
        head = "".join(f"<th>{name}</th>" for name in ("split", *names, "shards"))
        rows = (
            "".join(f"<td>{cell:,}</td>" for cell in (*(getattr(split, name) for name in names), len(split.shards)))
            for split in self.splits.values()
        )
        body = "".join(f"<tr><td>{escape(name)}</td>{row}</tr>" for name, row in zip(self.splits, rows, strict=True))
        return f"<table><tr>{head}</tr>{body}</table>"


def _count_windows(split: SplitEntry) -> str:
    return f"{counted(split.num_windows, 'window')} of {counted(split.num_tokens, 'token')}"


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write the index of the shards and then `manifest.json`, which makes the folder a data set; return it as written.

    The index is on the disk, under its name, before the manifest is.
    """
    index = write_index(folder, [split.shards for split in manifest.splits.values()])
    sync_folder(folder)
    written = dataclasses.replace(manifest, index=index, format_version=FORMAT_VERSION)
    write_json(folder / MANIFEST_NAME, sign(_describe(written)))
    return written


def _describe(manifest: Manifest) -> dict[str, Any]:
    """Return what `manifest.json` has: of each split the number of its shards and their bytes, not the shards."""
    splits = {}
    for name, split in manifest.splits.items():
        fields = {one.name: getattr(split, one.name) for one in dataclasses.fields(split) if one.name != "shards"}
        fields |= {"num_shards": len(split.shards), "bytes": split.num_bytes}
        documents = fields.pop("documents")
        splits[name] = fields | ({"documents": dataclasses.asdict(documents)} if documents else {})
    fields = {one.name: getattr(manifest, one.name) for one in dataclasses.fields(manifest)}
    assert manifest.index is not None, "written before the manifest"
    return fields | {"splits": splits, "index": dataclasses.asdict(manifest.index)}


@names_arguments
def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of a data set's folder.

    Raises:
        ValueError: there is no manifest (the folder is not a data set, or the write stage did not finish), or it is
            malformed; the message names the file and the field.

    """
    path = f"{folder}/{MANIFEST_NAME}" if is_uri(folder) else Path(folder) / MANIFEST_NAME
    try:
        fields = read_twice(partial(_read_signed, folder, path), path)
        with _name_malformed(path):
            return _parse(folder, fields)
    except FileNotFoundError:
        found = "holds no manifest.json" if is_uri(folder) or Path(folder).is_dir() else "does not exist"
        raise ValueError(
            f"{folder} {found}: it is not a data set, or the write stage did not finish; run the write stage"
        ) from None


def _read_signed(folder: str | os.PathLike[str], path: str | Path) -> dict[str, Any]:
    content = open_storage(folder).read(MANIFEST_NAME) if is_uri(folder) else None
    with _name_malformed(path):
        fields = (
            read_fields(Path(path), limit=MAX_MANIFEST_BYTES)
            if content is None
            else parse_fields(content, limit=MAX_MANIFEST_BYTES)
        )
        _check_version(fields.get("format_version"))
        return check_signature(fields)


def _parse(folder: str | os.PathLike[str], fields: dict[str, Any]) -> Manifest:
    if fields["format_version"] == 1:
        fields["splits"] = {name: _listed_split(name, entry) for name, entry in fields["splits"].items()}
    else:
        fields["splits"], fields["index"] = _indexed_splits(folder, fields["splits"], IndexEntry(**fields["index"]))
    manifest = Manifest(**fields)
    _check_fields(manifest)
    return manifest


@contextmanager
def _name_malformed(path: str | Path) -> Iterator[None]:
    """Name the manifest in errors of what it says; those of a store's settings are raised before."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: malformed: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _check_version(version: object) -> None:
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(f"format_version is {version!r:.99}; this release reads 1 to {FORMAT_VERSION}")


def _check_fields(manifest: Manifest) -> None:
    """Refuse values of another type or size than the write stage records: readers rely on them."""
    tokenizer = manifest.tokenizer
    texts = {"fingerprint": manifest.fingerprint, "store": manifest.store, "tokenizer.hash": tokenizer["hash"]}
    texts |= {"tokenizer.name": tokenizer["name"], "written_by.pyarrow": manifest.written_by["pyarrow"]}
    for key, text in texts.items():
        check_text(key, text)
    if not re.fullmatch(r"[0-9a-f]{64}", manifest.store):
        raise ValueError(f"store: {manifest.store!r:.99} is not the ID of a token store, 64 hex digits")
    check_range("tokenizer.vocab_size", tokenizer["vocab_size"], 1, MAX_VOCAB_SIZE)
    _check_counts("tokenizer.special_tokens", tokenizer["special_tokens"], most=MAX_VOCAB_SIZE)
    _check_counts("corpus", {key: manifest.corpus[key] for key in ("documents", "characters", "bytes")})
    _check_counts("corpus.bad", manifest.corpus["bad"])
    _check_windows(manifest.windows)
    if not isinstance(manifest.config, dict) or not manifest.splits:
        raise ValueError("config must be a map, and splits must not be empty")


def _check_windows(windows: dict[str, Any]) -> None:
    check_range("windows.max_length", windows["max_length"], 1, MAX_LENGTH)
    check_range("windows.stride", windows["stride"], 1, MAX_COUNT)
    for key, valid in (("tail", TAILS), ("documents", DOCUMENTS), ("order", ORDERS)):
        check_choice(f"windows.{key}", windows[key], valid)
    given = {key: windows[key] for key in ("seed", "end_of_text", "pad_id") if windows.get(key) is not None}
    _check_counts("windows", given, most=MAX_SEED)
    for name, unused in windows.get("left_over", {}).items():
        _check_counts(f"windows.left_over.{name}", {key: unused[key] for key in ("tokens", "documents")})
    _check_counts("windows.padding", windows.get("padding", {}))
    check_bool("windows.end_of_text_is_target", windows.get("end_of_text_is_target", False))
    _check_counts("windows.cut", windows.get("cut", {}))
    if windows["documents"] == "pack":
        check_range("windows.pack_group_tokens", windows["pack_group_tokens"], 1, MAX_COUNT)
        if windows["tail"] != "pad" or windows["stride"] != windows["max_length"]:
            raise ValueError("windows: packed ones are padded, and their stride is max_length")


def _check_counts(key: str, counts: dict[str, Any], *, most: int = MAX_COUNT) -> None:
    for name, count in counts.items():
        check_range(f"{key}.{name}", count, 0, most)


def _listed_split(name: str, entry: dict[str, Any]) -> SplitEntry:
    """Return a split of format 1, whose shards the manifest lists."""
    shards = [ShardEntry(**shard) for shard in entry.pop("shards")]
    split = _split(name, entry, shards=shards)
    for shard in shards:
        if not re.fullmatch(rf"data/{name}-\d{{5,}}-of-\d{{5,}}\.parquet", check_text("path", shard.path)):
            raise ValueError(f"splits.{name}.shards: {shard.path!r:.99} is not the name of a shard")
        check_shard(shard, split.max_length)
    if sum(shard.num_windows for shard in shards) != split.num_windows:
        raise ValueError(f"splits.{name}: the shards' num_windows do not add up to {split.num_windows}")
    return split


def _indexed_splits(
    folder: str | os.PathLike[str], entries: dict[str, dict[str, Any]], index: IndexEntry
) -> tuple[dict[str, SplitEntry], IndexEntry]:
    """Return the splits of format 2, whose shards are in the index, which is not read."""
    check_table(index, INDEX_NAME)
    counts = {name: {key: entry.pop(key) for key in ("num_shards", "bytes")} for name, entry in entries.items()}
    splits = {name: _split(name, entry) for name, entry in entries.items()}
    shapes = [_shape(name, split, counts[name]) for name, split in splits.items()]
    check_index_size(index, shapes)
    shards = index_shards(folder, index, shapes, {name: count["bytes"] for name, count in counts.items()})
    return {name: dataclasses.replace(split, shards=shards[name]) for name, split in splits.items()}, index


def _shape(name: str, split: SplitEntry, counts: dict[str, Any]) -> SplitShape:
    for key in ("windows_per_group", "windows_per_shard"):
        check_range(f"splits.{name}.{key}", getattr(split, key), 1, MAX_COUNT)
    for key, value in counts.items():
        check_range(f"splits.{name}.{key}", value, 0, MAX_COUNT)
    assert split.windows_per_group is not None, "checked"
    assert split.windows_per_shard is not None, "checked"
    if split.windows_per_shard % split.windows_per_group:
        rule = f"is no multiple of windows_per_group {split.windows_per_group}"
        raise ValueError(f"splits.{name}.windows_per_shard: {split.windows_per_shard} {rule}")
    check_size(f"splits.{name}", split.num_windows, counts["bytes"], split.max_length)
    shape = SplitShape(name, split.num_windows, split.max_length, split.windows_per_group, split.windows_per_shard)
    if shape.num_shards != counts["num_shards"]:
        rule = f"{split.num_windows} windows in shards of {split.windows_per_shard} are {shape.num_shards}"
        raise ValueError(f"splits.{name}.num_shards: {counts['num_shards']}, but {rule}")
    return shape


def _split(name: str, entry: dict[str, Any], *, shards: Sequence[ShardEntry] = ()) -> SplitEntry:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"splits: {name!r:.99} is not the name of a split")
    documents = entry.pop("documents", None)
    if documents is not None:
        documents = DocumentsEntry(**documents)
        check_table(documents, f"{DOCUMENTS_FOLDER}/{name}.parquet")
        check_range(f"{documents.path}: stop", documents.stop, 0, MAX_COUNT)
    split = SplitEntry(shards=shards, documents=documents, **entry)
    for key in ("num_documents", "num_tokens", "num_windows"):
        check_range(f"splits.{name}.{key}", getattr(split, key), 0, MAX_COUNT)
    check_range(f"splits.{name}.max_length", split.max_length, 1, MAX_LENGTH)
    check_range(f"splits.{name}.stride", split.stride, 1, MAX_COUNT)
    return split
