"""What a data set says of its files: of each shard, of the documents' tables, and of the index that lists the shards.

Where a footer begins and its hash stand next to the file's own, so that a reader needs one range of the file for it,
and compares it before anything parses it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.rules import MAX_COUNT, check_range, check_text

MANIFEST_NAME, INDEX_NAME = "manifest.json", "index.parquet"
DOCUMENTS_FOLDER = "documents"
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
class TableEntry:
    """A table next to the shards."""

    path: str  # relative to the data set's folder
    num_rows: int
    bytes: int
    sha256: str
    footer_start: int
    footer_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentsEntry(TableEntry):
    """The documents' table of a split; a row is a document."""

    stop: int  # the end of the last document in the split's token stream


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry(TableEntry):
    """The index of all shards; a row is a shard."""


def shard_path(split: str, number: int, total: int) -> str:
    """Return the path of a shard in the data set's folder.

    >>> shard_path("train", 3, 12)
    'data/train-00003-of-00012.parquet'
    """
    return f"data/{split}-{number:05d}-of-{total:05d}.parquet"


def shard_number(path: str) -> int:
    """Return the number of the shard with a path.

    >>> shard_number("data/train-00003-of-00012.parquet")
    3
    """
    return int(path.rsplit("-of-", 1)[0].rsplit("-", 1)[1])


def check_shard(shard: ShardEntry, max_length: int) -> ShardEntry:
    """Return a shard's entry.

    Raises:
        ValueError: a value has another type or size than the write stage records; the message names it.

    """
    for key in ("num_windows", "bytes"):
        check_range(f"{shard.path}: {key}", getattr(shard, key), 0, MAX_COUNT)
    for count in shard.row_groups:
        check_range(f"{shard.path}: row_groups", count, 0, MAX_COUNT)
    if sum(shard.row_groups) != shard.num_windows:
        raise ValueError(f"{shard.path}: row_groups do not add up to num_windows {shard.num_windows}")
    check_size(shard.path, shard.num_windows, shard.bytes, max_length)
    check_text(f"{shard.path}: sha256", shard.sha256)
    if shard.footer_sha256 is not None or shard.footer_start is not None:
        check_text(f"{shard.path}: footer_sha256", shard.footer_sha256)
        check_range(f"{shard.path}: footer_start", shard.footer_start, 4, shard.bytes)
    return shard


def check_size(name: str, num_windows: int, size: int, max_length: int) -> None:
    """Raise ValueError if windows need more bytes than a file, or all files of a split, have."""
    if 8 * num_windows * max_length > MAX_COMPRESSION * size:
        raise ValueError(f"{name}: {size} bytes are too few for num_windows {num_windows}")


def check_table(table: TableEntry, path: str) -> None:
    """Raise ValueError if a table's entry does not name this path, or has a value of another type or size."""
    if table.path != path:
        raise ValueError(f"{table.path!r:.99} is not {path}")
    check_range(f"{path}: num_rows", table.num_rows, 0, MAX_COUNT)
    check_range(f"{path}: bytes", table.bytes, 0, MAX_COUNT)
    check_range(f"{path}: footer_start", table.footer_start, 4, table.bytes)
    check_text(f"{path}: sha256", table.sha256)
    check_text(f"{path}: footer_sha256", table.footer_sha256)
