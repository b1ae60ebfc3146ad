"""Verify one shard: its size and hash, then the pages and rows of each row group, alone and against the token store."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.base.reading import open_regular
from pipeline.base.wording import counted
from pipeline.shards.complete import Fault
from pipeline.shards.format import open_shard, read_footer, read_segments, shard_schema
from pipeline.shards.outline import fetch_object
from pipeline.shards.pages import check_pages
from pipeline.shards.verify_store import one_line
from pipeline.windows import IGNORED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.packing import Segments
    from pipeline.shards.entries import ShardEntry
    from pipeline.shards.manifest import SplitEntry
    from pipeline.storage.interface import Storage
    from pipeline.windows import StoredWindows


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedRows:
    """What the rows of a split must be, as far as that is known."""

    entry: SplitEntry
    first_rows: Sequence[int]  # of each shard
    stored: StoredWindows | None  # None: only the missing token store knows where documents start
    has_stream: bool  # the rows are compared with the token store
    padded: bool
    packed: bool
    vocab_size: int
    pad_id: int


def check_shard(folder: Path, storage: Storage | None, task: tuple[ExpectedRows, int]) -> list[Fault]:
    """List what is wrong with a shard of a split, given by its number; from a store it is fetched first."""
    rows, index = task
    entry = rows.entry.shards[index]
    if storage is not None and (folder / entry.path).is_file():
        with tempfile.TemporaryDirectory(prefix="stridemill-") as name:
            fetch_object(storage, entry.path, Path(name))
            return check_shard(Path(name), None, task)
    return [Fault(file=entry.path, problem=problem) for problem in _shard_problems(folder, rows, entry, index)]


def _shard_problems(folder: Path, rows: ExpectedRows, entry: ShardEntry, index: int) -> Iterator[str]:
    path = folder / entry.path
    schema = shard_schema(rows.entry.max_length, padded=rows.padded, packed=rows.packed)
    try:
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as error:
        yield f"cannot be read: {error.strerror}"
        return
    if size != entry.bytes:
        yield f"has {size} bytes; the manifest says {entry.bytes}"
    if digest != entry.sha256:
        yield f"has sha256 {digest}; the manifest says {entry.sha256}"
        if size != entry.bytes or entry.footer_sha256 is None:
            return  # a footer that may be damaged is never parsed
    try:
        footer = read_footer(path, entry, schema)
        with open_shard(path, footer=footer) as shard:
            first = rows.first_rows[index]
            for group, count in enumerate(entry.row_groups):
                yield from (
                    f"row group {group}: {problem}" for problem in _group_problems(path, shard, group, rows, first)
                )
                first += count
    except Exception as error:  # noqa: BLE001 - a damaged file may raise anything, and must not stop the list
        yield f"cannot be read as Parquet: {one_line(error)}"


def _group_problems(path: Path, file: pq.ParquetFile, group: int, rows: ExpectedRows, first: int) -> Iterator[str]:
    """List what is wrong with a row group, whose first window has index `first` in the stored order of its split."""
    try:
        check_pages(path, file.metadata, group)
        table = file.read_row_group(group)
    except Exception as error:  # noqa: BLE001 - as above
        yield one_line(error)
        return
    inputs_BT, targets_BT = (_matrix(table, name) for name in ("input_ids", "target_ids"))
    starts, next_ids = (table.column(name).to_numpy() for name in ("start", "next_id"))
    max_length = inputs_BT.shape[1]
    lengths = table.column("length").to_numpy() if rows.padded else np.full(len(starts), max_length, np.int32)
    segments = None
    if rows.packed:
        try:
            segments = read_segments(table, lengths, (next_ids != IGNORED) & (lengths == max_length))
        except ValueError as error:
            yield str(error)
            return
    after_BT = np.arange(max_length) >= lengths[:, None]
    counts_BT = ~after_BT & ~_mark_ends(segments, after_BT.shape)
    shifted_BT = np.concatenate([inputs_BT[:, 1:], next_ids[:, None]], axis=1)
    # A short window's last target is still among its inputs, at the position after its real tokens; not so if packed.
    padding_BT = after_BT if rows.packed else np.arange(max_length) > lengths[:, None]
    checks = {
        "input_ids outside the vocabulary": (inputs_BT < 0) | (inputs_BT >= rows.vocab_size),
        "target_ids outside the vocabulary": counts_BT & ((targets_BT < 0) | (targets_BT >= rows.vocab_size)),
        "target_ids that are not the input_ids shifted by one": counts_BT & (targets_BT != shifted_BT),
        "target_ids after the window's length that are not -100": after_BT & (targets_BT != IGNORED),
        "target_ids at a document's end that are not -100": ~counts_BT & ~after_BT & (targets_BT != IGNORED),
        "input_ids after the window's length that are not end-of-text": padding_BT & (inputs_BT != rows.pad_id),
        "a next_id that is not the last of target_ids": (next_ids != targets_BT[:, -1])[:, None],
    }
    for text, wrong in checks.items():
        if wrong.any():
            at = np.flatnonzero(wrong.any(axis=1))
            yield f"{counted(len(at), 'window')} with {text}, the first in row {at[0]}"
    if rows.stored is not None:
        given = (inputs_BT, targets_BT), (starts, lengths), segments
        yield from _compare_rows(rows, first, *given)


def _compare_rows(
    rows: ExpectedRows,
    first: int,
    ids_2BT: tuple[np.ndarray, np.ndarray],
    located: tuple[np.ndarray, np.ndarray],
    segments: Segments | None,
) -> Iterator[str]:
    """List where the rows of a row group differ from the windows' arithmetic, and from the token store."""
    assert rows.stored is not None, "there is something to compare with"
    last = first + len(ids_2BT[0])
    expected = rows.stored.windows.locate(rows.stored.numbers(first, last))
    for text, found, right in zip(("start", "length"), located, expected, strict=True):
        if (found != right).any():
            row = int(np.flatnonzero(found != right)[0])
            yield f"row {row} has {text} {found[row]}, but {right[row]} by arithmetic"
    if not rows.has_stream:
        return
    inputs_BT, targets_BT = ids_2BT
    ids_BT1, _, _, *packed = rows.stored.read(first, last)
    ends_BT = _mark_ends(packed[0] if packed else None, inputs_BT.shape)
    if (ends_BT != _mark_ends(segments, inputs_BT.shape)).any():
        yield "segment_lengths are not those of the packed documents"
    after_BT = np.arange(inputs_BT.shape[1]) >= located[1][:, None]
    expected_BT = np.where(after_BT | ends_BT, IGNORED, ids_BT1[:, 1:])
    differ_BT = (inputs_BT != ids_BT1[:, :-1]) | (targets_BT != expected_BT)
    if differ_BT.any():
        at = np.flatnonzero(differ_BT.any(axis=1))
        yield f"{counted(len(at), 'window')} unlike the token store, the first in row {at[0]}"


def _mark_ends(segments: Segments | None, shape: tuple[int, ...]) -> np.ndarray:
    """Return where documents of packed windows end, so that the target does not count: bool [B, T]."""
    ends_BT = np.zeros(shape, bool)
    if segments is not None:
        ends_BT.reshape(-1)[segments.last_positions(shape[1])] = True
    return ends_BT


def _matrix(table: pa.Table, name: str) -> np.ndarray:
    column = table.column(name).combine_chunks()
    ids_BT: np.ndarray = column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)
    return ids_BT
