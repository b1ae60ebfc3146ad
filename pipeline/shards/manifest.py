"""The manifest: what a data set contains. The write stage writes it last, and the load stage knows nothing else.

A folder without `manifest.json` is not a data set. Reading a manifest checks that its content has the sha256 recorded
in it, so that a changed digit is noticed; that its paths are inside its own folder; and that its counts agree.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.atomic import write_json
from pipeline.base.hashing import hash_json

if TYPE_CHECKING:
    import os

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
REPR_CHARACTERS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One Parquet file."""

    path: str  # relative to the data set's folder
    num_windows: int
    bytes: int
    sha256: str
    row_groups: list[int]  # windows in each


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitEntry:
    """One split: `train` or `validation`."""

    num_documents: int
    num_tokens: int
    num_windows: int
    max_length: int
    stride: int
    shards: list[ShardEntry]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Manifest:
    """A data set."""

    fingerprint: str
    tokenizer: dict[str, Any]  # name, hash, vocab_size, special_tokens
    corpus: dict[str, Any]  # documents, characters, bytes, special_text_found, audited, bad (by reason)
    store: str  # the ID of the token store that the windows were cut from
    # max_length, stride, tail, documents, order, seed (of a shuffle), end_of_text (between documents), pad_id (with
    # tail=pad), left_over (by split, the unused tokens, and the documents that consist of nothing else)
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
    return f"{split.num_windows:,} windows of {split.num_tokens:,} tokens"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, which makes the folder a data set."""
    fields = dataclasses.asdict(manifest)
    write_json(folder / MANIFEST_NAME, {**fields, "sha256": content_hash(fields)})


def content_hash(fields: dict[str, Any]) -> str:
    """Return the sha256 of a manifest's fields without the hash itself, as JSON with sorted keys and no spaces."""
    content = {key: value for key, value in fields.items() if key != "sha256"}
    return hash_json(content, compact=True)


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of a data set's folder.

    Raises:
        ValueError: there is no manifest (the folder is not a data set, or the write stage did not finish), or it is
            malformed; the message names the file and the field.

    """
    path = Path(folder) / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        found = "holds no manifest.json" if Path(folder).is_dir() else "does not exist"
        raise ValueError(
            f"{folder} {found}: it is not a data set, or the write stage did not finish; run the write stage"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: malformed: {error}") from error
    try:
        fields = json.loads(text)
        _check_version(fields["format_version"])
        _check_hash(fields.pop("sha256", None), fields)
        fields["splits"] = {name: _split(name, entry) for name, entry in fields["splits"].items()}
        return Manifest(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: malformed: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"


def _check_version(version: object) -> None:
    if version != FORMAT_VERSION:
        raise ValueError(f"format_version is {version!r}; this release reads {FORMAT_VERSION}")


def _check_hash(sha256: object, fields: dict[str, Any]) -> None:
    if sha256 != content_hash(fields):
        raise ValueError("its content does not have the sha256 recorded in it: it was changed after it was written")


def _split(name: str, entry: dict[str, Any]) -> SplitEntry:
    shards = [ShardEntry(**shard) for shard in entry.pop("shards")]
    split = SplitEntry(shards=shards, **entry)
    for shard in shards:
        if not re.fullmatch(rf"data/{re.escape(name)}-\d{{5,}}-of-\d{{5,}}\.parquet", shard.path):
            raise ValueError(f"splits.{name}.shards: {shard.path!r} is not the name of a shard")
        if sum(shard.row_groups) != shard.num_windows or min(shard.row_groups, default=0) < 0:
            raise ValueError(
                f"{shard.path}: row_groups {shard.row_groups} do not add up to num_windows {shard.num_windows}"
            )
    if sum(shard.num_windows for shard in shards) != split.num_windows:
        raise ValueError(f"splits.{name}: the shards' num_windows do not add up to {split.num_windows}")
    return split
