"""The manifest: what a data set contains. The write stage writes it last, and the load stage knows nothing else.

A folder without `manifest.json` is not a data set. Reading a manifest checks that its content has the sha256 recorded
in it, so that a changed digit is noticed; that its paths are inside its own folder; and that its counts agree.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.atomic import write_json
from pipeline.base.reading import check_signature, parse_fields, read_fields, sign
from pipeline.base.retry import read_twice
from pipeline.base.wording import counted
from pipeline.rules import MAX_COUNT, check_bool, check_choice, check_range, check_text, names_arguments
from pipeline.settings import DOCUMENTS, MAX_LENGTH, MAX_SEED, ORDERS, TAILS
from pipeline.storage.names import is_uri
from pipeline.storage.open import open_storage

if TYPE_CHECKING:
    import os

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
DOCUMENTS_FOLDER = "documents"
REPR_CHARACTERS = 300
MAX_MANIFEST_BYTES = 1 << 29  # 100,000 shards of 128 row groups take 82 MB
MAX_VOCAB_SIZE = 2**31  # IDs are int32
MAX_COMPRESSION = 1 << 16  # zstd stores 128 KiB of equal bytes in 4: no shard has more windows for its size


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One Parquet file."""

    path: str  # relative to the data set's folder
    num_windows: int
    bytes: int
    sha256: str
    row_groups: list[int]  # windows in each
    footer_start: int | None = None  # the footer is the bytes from here to the end; None in release 0.1.0
    footer_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentsEntry:
    """The documents' table of a split."""

    path: str  # relative to the data set's folder
    num_rows: int  # documents
    stop: int  # the end of the last document in the split's token stream
    bytes: int
    sha256: str
    footer_start: int
    footer_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitEntry:
    """One split: `train` or `validation`."""

    num_documents: int
    num_tokens: int
    num_windows: int
    max_length: int
    stride: int
    shards: list[ShardEntry]
    documents: DocumentsEntry | None = None  # with shards.documents=true; not in release 0.1.0

    @property
    def files(self) -> list[ShardEntry | DocumentsEntry]:
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


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, which makes the folder a data set."""
    write_json(folder / MANIFEST_NAME, sign(manifest_fields(manifest)))


def manifest_fields(manifest: Manifest) -> dict[str, Any]:
    """Return what `manifest.json` has; a shard of release 0.1.0 has no hash of its footer."""
    fields = dataclasses.asdict(manifest)
    for split in fields["splits"].values():
        split["shards"] = [{key: value for key, value in one.items() if value is not None} for one in split["shards"]]
        if split["documents"] is None:
            del split["documents"]
    return fields


@names_arguments
def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of a data set's folder.

    Raises:
        ValueError: there is no manifest (the folder is not a data set, or the write stage did not finish), or it is
            malformed; the message names the file and the field.

    """
    path = f"{folder}/{MANIFEST_NAME}" if is_uri(folder) else Path(folder) / MANIFEST_NAME
    try:
        fields = read_twice(partial(_read_signed, folder), path)
        fields["splits"] = {name: _split(name, entry) for name, entry in fields["splits"].items()}
        manifest = Manifest(**fields)
        _check_fields(manifest)
    except FileNotFoundError:
        found = "holds no manifest.json" if is_uri(folder) or Path(folder).is_dir() else "does not exist"
        raise ValueError(
            f"{folder} {found}: it is not a data set, or the write stage did not finish; run the write stage"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: malformed: {_cause(error)}") from error
    return manifest


def _read_signed(folder: str | os.PathLike[str]) -> dict[str, Any]:
    if is_uri(folder):
        fields = parse_fields(open_storage(folder).read(MANIFEST_NAME), limit=MAX_MANIFEST_BYTES)
    else:
        fields = read_fields(Path(folder) / MANIFEST_NAME, limit=MAX_MANIFEST_BYTES)
    _check_version(fields.get("format_version"))
    return check_signature(fields)


def _cause(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _check_version(version: object) -> None:
    if version != FORMAT_VERSION:
        raise ValueError(f"format_version is {version!r}; this release reads {FORMAT_VERSION}")


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


def _split(name: str, entry: dict[str, Any]) -> SplitEntry:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"splits: {name!r:.99} is not the name of a split")
    shards = [ShardEntry(**shard) for shard in entry.pop("shards")]
    documents = entry.pop("documents", None)
    if documents is not None:
        documents = _check_documents(DocumentsEntry(**documents), name)
    split = SplitEntry(shards=shards, documents=documents, **entry)
    for key in ("num_documents", "num_tokens", "num_windows"):
        check_range(f"splits.{name}.{key}", getattr(split, key), 0, MAX_COUNT)
    check_range(f"splits.{name}.max_length", split.max_length, 1, MAX_LENGTH)
    check_range(f"splits.{name}.stride", split.stride, 1, MAX_COUNT)
    for shard in shards:
        if not re.fullmatch(rf"data/{name}-\d{{5,}}-of-\d{{5,}}\.parquet", check_text("path", shard.path)):
            raise ValueError(f"splits.{name}.shards: {shard.path!r:.99} is not the name of a shard")
        _check_shard(shard, split.max_length)
    if sum(shard.num_windows for shard in shards) != split.num_windows:
        raise ValueError(f"splits.{name}: the shards' num_windows do not add up to {split.num_windows}")
    return split


def _check_documents(table: DocumentsEntry, split: str) -> DocumentsEntry:
    if table.path != (path := f"{DOCUMENTS_FOLDER}/{split}.parquet"):
        raise ValueError(f"splits.{split}.documents: {table.path!r:.99} is not {path}")
    check_range(f"{path}: num_rows", table.num_rows, 0, MAX_COUNT)
    check_range(f"{path}: stop", table.stop, 0, MAX_COUNT)
    check_range(f"{path}: bytes", table.bytes, 0, MAX_COUNT)
    check_range(f"{path}: footer_start", table.footer_start, 4, table.bytes)
    check_text(f"{path}: sha256", table.sha256)
    check_text(f"{path}: footer_sha256", table.footer_sha256)
    return table


def _check_shard(shard: ShardEntry, max_length: int) -> None:
    for key in ("num_windows", "bytes"):
        check_range(f"{shard.path}: {key}", getattr(shard, key), 0, MAX_COUNT)
    for count in shard.row_groups:
        check_range(f"{shard.path}: row_groups", count, 0, MAX_COUNT)
    if sum(shard.row_groups) != shard.num_windows:
        raise ValueError(f"{shard.path}: row_groups do not add up to num_windows {shard.num_windows}")
    if 8 * shard.num_windows * max_length > MAX_COMPRESSION * shard.bytes:
        raise ValueError(f"{shard.path}: {shard.bytes} bytes are too few for num_windows {shard.num_windows}")
    check_text(f"{shard.path}: sha256", shard.sha256)
    if shard.footer_sha256 is not None or shard.footer_start is not None:
        check_text(f"{shard.path}: footer_sha256", shard.footer_sha256)
        check_range(f"{shard.path}: footer_start", shard.footer_start, 4, shard.bytes)
