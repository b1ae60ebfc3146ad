"""The index of a data set's shards: `index.parquet` beside the manifest, of which a reader reads what it needs.

One row for each shard, the splits one after the other: `path`, `num_windows`, `bytes`, `sha256`, and where its footer
begins (`footer_start`) with that footer's hash (`footer_sha256`). A row group has 1,024 of them, and each split starts
a new one, so the row group of a shard is a division. The manifest has the index's own size and hash, and where its
footer begins with that footer's hash; pages have checksums. So an index of any length is opened by one read of its
footer, and a shard is found by one read of its row group.

It is data: a row must have the path and the windows that the manifest's counts give, and is refused otherwise. Nothing
in it is used as a path.

Cost: about 80 bytes a shard on disk, 25 MB for 300,000 shards. In memory the last `GROUPS_KEPT` row groups, 18 MB.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.atomic import replace_file
from pipeline.base.retry import retry
from pipeline.shards.entries import INDEX_NAME, IndexEntry, ShardEntry, check_shard, shard_path
from pipeline.shards.pages import HEADER_BYTES, check_column
from pipeline.shards.row_groups import EvenRowGroups
from pipeline.storage.open import open_storage

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from pipeline.storage.interface import Buffer

REMEDY = "write the data set again, which gives the same shards"
GROUP_ROWS = 1 << 10
GROUPS_KEPT = 256
SMALL_BYTES = 1 << 20  # an index of 13,000 shards
MAX_ROW_BYTES = 128  # of a row in one column: three times what a path takes
MAX_SHARDS = 1 << 27  # of 4 MB: half an exabyte
MAX_FOOTER_START = 1 << 16  # bytes of a footer besides what says of each row group
DIGEST = pa.binary(32)
SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in (
            ("path", pa.string()),
            ("num_windows", pa.int64()),
            ("bytes", pa.int64()),
            ("sha256", DIGEST),
            ("footer_start", pa.int64()),
            ("footer_sha256", DIGEST),
        )
    ]
)
ENCODINGS = {
    "path": "DELTA_BYTE_ARRAY",
    **dict.fromkeys(("num_windows", "bytes", "footer_start"), "DELTA_BINARY_PACKED"),
    **dict.fromkeys(("sha256", "footer_sha256"), "PLAIN"),
}


def write_index(folder: Path, splits: Iterable[Sequence[ShardEntry]]) -> IndexEntry:
    """Write the index of the shards of all splits, flushed to the disk, and return its entry for the manifest."""
    sink, rows = pa.BufferOutputStream(), 0
    with pq.ParquetWriter(
        sink,
        SCHEMA,
        compression="none",  # hashes stay as they are, and of the rest differences are stored
        use_dictionary=False,
        column_encoding=ENCODINGS,
        write_statistics=False,
        write_page_checksum=True,
    ) as writer:
        for shards in splits:
            for first in range(0, len(shards), GROUP_ROWS):
                writer.write_table(_as_table(shards[first : first + GROUP_ROWS]))
            rows += len(shards)
    content = sink.getvalue().to_pybytes()
    with replace_file(folder / INDEX_NAME) as file:
        file.write(content)
    footer_start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    return IndexEntry(
        path=INDEX_NAME,
        num_rows=rows,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        footer_start=footer_start,
        footer_sha256=hashlib.sha256(content[footer_start:]).hexdigest(),
    )


def _as_table(shards: Sequence[ShardEntry]) -> pa.Table:
    """Return rows of the index. Arrays are made by their buffers: from lists pyarrow would import pandas first."""
    columns = []
    for field in SCHEMA:
        values, buffers = [getattr(one, field.name) for one in shards], [None]
        if field.name == "path":
            texts = [value.encode() for value in values]
            buffers.append(pa.py_buffer(np.cumsum([0, *map(len, texts)], dtype=np.int32)))
            content = b"".join(texts)
        elif field.type == DIGEST:
            content = b"".join(map(bytes.fromhex, values))
        else:
            content = np.array(values, np.int64).tobytes()
        columns.append(pa.Array.from_buffers(field.type, len(values), [*buffers, pa.py_buffer(content)]))
    return pa.Table.from_arrays(columns, schema=SCHEMA)


class SplitShape(NamedTuple):
    """What the manifest says of a split, from which its shards' names and sizes follow."""

    name: str
    num_windows: int
    max_length: int
    windows_per_group: int
    windows_per_shard: int

    @property
    def num_shards(self) -> int:
        """The split's shards."""
        return -(-self.num_windows // self.windows_per_shard)

    @property
    def num_index_groups(self) -> int:
        """The row groups of the index that list them."""
        return -(-self.num_shards // GROUP_ROWS)

    def path(self, number: int) -> str:
        """Return the path of a shard."""
        return shard_path(self.name, number, self.num_shards)

    def row_groups(self, number: int) -> list[int]:
        """Return the windows of each row group of a shard."""
        left = self.num_windows - number * self.windows_per_shard
        return list(EvenRowGroups(min(left, self.windows_per_shard), self.windows_per_group))


class ShardIndex:
    """The index of a data set, opened when a shard is asked for. Many threads may use it, and it can be pickled."""

    def __init__(self, folder: str | os.PathLike[str], entry: IndexEntry, splits: Sequence[SplitShape]) -> None:
        self.folder, self.entry, self.splits = folder, entry, list(splits)
        self._firsts = np.cumsum([0, *(one.num_index_groups for one in self.splits)]).tolist()
        self._footer: pq.FileMetaData | None = None
        self._content: Buffer | None = None  # of a small index
        self.groups: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock, self._reading = threading.Lock(), threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_footer": None,
            "_content": None,
            "groups": OrderedDict(),
            "_lock": None,
            "_reading": None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._reading = threading.Lock(), threading.Lock()

    @property
    def num_groups(self) -> int:
        """The row groups of the index."""
        return int(self._firsts[-1])

    def shard(self, split: int, number: int) -> ShardEntry:
        """Return a shard of the split with this number.

        Raises:
            ValueError: the index is missing or damaged there, or says something else than the manifest.

        """
        shape = self.splits[split]
        table = self.read_group(self._firsts[split] + number // GROUP_ROWS)
        row = {name: table.column(name)[number % GROUP_ROWS].as_py() for name in table.column_names}
        entry = ShardEntry(
            path=shape.path(number),
            num_windows=row["num_windows"],
            bytes=row["bytes"],
            sha256=row["sha256"].hex(),
            row_groups=shape.row_groups(number),
            footer_start=row["footer_start"],
            footer_sha256=row["footer_sha256"].hex(),
        )
        try:
            return check_shard(entry, shape.max_length)
        except ValueError as error:
            raise self._refusal(error) from error

    def shards_of(self, group: int) -> tuple[int, range]:
        """Return which split a row group of the index belongs to, and the numbers of its shards there."""
        split = next(at for at, first in enumerate(self._firsts[1:]) if group < first)
        first = (group - self._firsts[split]) * GROUP_ROWS
        return split, range(first, min(first + GROUP_ROWS, self.splits[split].num_shards))

    def read_group(self, group: int) -> pa.Table:
        """Return a row group of the index without the paths, which are the expected ones.

        Raises:
            ValueError: as `shard` does.

        """
        with self._lock:
            if (known := self.groups.get(group)) is not None:
                self.groups.move_to_end(group)
                return known
        place = f"{self.folder}/{INDEX_NAME}"
        try:
            table = retry(lambda: self._read_group_anew(group), place, unclear=(ValueError, pa.ArrowException))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._refusal(error) from error
        with self._lock:
            self.groups[group] = table
            if len(self.groups) > GROUPS_KEPT:
                self.groups.popitem(last=False)
        return table

    def explain(self, error: Exception) -> str:
        """Return what an error of this index says, without the index's name and without what to do."""
        said = getattr(error, "strerror", None) or " ".join(str(error).split())
        return str(said).removeprefix(f"{self.folder}/{INDEX_NAME}: ").removesuffix(f"; {REMEDY}")

    def _refusal(self, error: Exception) -> ValueError:
        return ValueError(f"{self.folder}/{INDEX_NAME}: {self.explain(error)}; {REMEDY}")

    def _read_group_anew(self, group: int) -> pa.Table:
        try:
            return self._read_group(group)
        except (OSError, ValueError, pa.ArrowException):
            self._content = None  # the next try asks the storage again
            raise

    def _read_group(self, group: int) -> pa.Table:
        footer = self._footer or self._read_footer()
        columns = footer.row_group(group)
        start, stop = check_group(columns, len(self.shards_of(group)[1]))
        if stop > self.entry.footer_start:
            raise ValueError(f"its row group {group} does not end where its footer starts")
        memory = np.zeros(stop, np.uint8)  # what is not written to takes no memory
        memory[start:] = np.frombuffer(self._read(start, stop), np.uint8)
        for index in range(len(SCHEMA)):
            check_column(lambda at: memory[at : at + HEADER_BYTES].tobytes(), columns, index)
        source = pa.BufferReader(pa.py_buffer(memory))
        with pq.ParquetFile(source, metadata=footer, page_checksum_verification=True) as file:
            table = file.read_row_group(group, use_threads=False)
        return self._checked(table, group)

    def _checked(self, table: pa.Table, group: int) -> pa.Table:
        split, numbers = self.shards_of(group)
        shape = self.splits[split]
        windows = np.full(len(numbers), shape.windows_per_shard)
        if numbers.stop == shape.num_shards:
            windows[-1] = shape.num_windows - (shape.num_shards - 1) * shape.windows_per_shard
        expected = {"path": [shape.path(number) for number in numbers], "num_windows": windows.tolist()}
        for name, values in expected.items():
            found = table.column(name).to_pylist()
            if found != values:
                row = next(at for at, pair in enumerate(zip(found, values, strict=True)) if pair[0] != pair[1])
                what = f"{name} {str(found[row])!r:.99}; by the manifest it is {values[row]}"
                raise ValueError(f"row {row} of its row group {group} has {what}")
        return table.drop_columns(["path"]).combine_chunks()

    def _read(self, start: int, stop: int) -> Buffer:
        """Return a range of the index; a small one is read as a whole, which saves an object store's round trip."""
        if self.entry.bytes > SMALL_BYTES:
            return read_range(self.folder, start, stop)
        with self._reading:  # many threads may need it: one asks
            content = self._content = self._content or read_range(self.folder, 0, self.entry.bytes)
        return memoryview(content)[start:stop]

    def _read_footer(self) -> pq.FileMetaData:
        content = self._read(self.entry.footer_start, self.entry.bytes)
        if hashlib.sha256(content).hexdigest() != self.entry.footer_sha256:
            raise ValueError("its footer does not have the sha256 of the manifest: it was changed, or is another file")
        footer = pq.read_metadata(pa.BufferReader(pa.py_buffer(content)))
        if not footer.schema.to_arrow_schema().equals(SCHEMA) or footer.num_row_groups != self.num_groups:
            raise ValueError("it has other columns or row groups than the index of the manifest's shards")
        self._footer = footer
        return footer


def read_range(folder: str | os.PathLike[str], start: int, stop: int) -> Buffer:
    """Return a range of a data set's index."""
    return open_storage(folder).read_ranges(INDEX_NAME, [(start, stop)])[0]


def check_group(columns: pq.RowGroupMetaData, rows: int) -> tuple[int, int]:
    """Return the range of a row group in the file, after no number of it can become a large allocation.

    Raises:
        ValueError: it has other rows or sizes than an index has, or its columns do not follow one another.

    """
    start = offset = columns.column(0).data_page_offset
    for at in range(columns.num_columns):
        column = columns.column(at)
        is_next = column.data_page_offset == offset >= 4 and not column.has_dictionary_page
        size = max(column.total_compressed_size, column.total_uncompressed_size)
        if columns.num_rows != rows or not is_next or not 0 < size <= MAX_ROW_BYTES * rows + HEADER_BYTES:
            raise ValueError(f"it has other sizes than {rows} shards need")
        offset += column.total_compressed_size
    return start, offset


class IndexedShards(Sequence[ShardEntry]):
    """The shards of one split, each looked up in the index when it is asked for."""

    def __init__(self, source: ShardIndex, split: int, num_bytes: int) -> None:
        self.source, self.split, self.num_bytes = source, split, num_bytes

    def __len__(self) -> int:
        return self.source.splits[self.split].num_shards

    @overload
    def __getitem__(self, number: int) -> ShardEntry: ...

    @overload
    def __getitem__(self, number: slice) -> list[ShardEntry]: ...

    def __getitem__(self, number: int | slice) -> ShardEntry | list[ShardEntry]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        return self.source.shard(self.split, range(len(self))[number])

    def __deepcopy__(self, _: object) -> IndexedShards:
        return self  # it cannot change

    def path(self, number: int) -> str:
        """Return the path of a shard; nothing is read."""
        return self.source.splits[self.split].path(number)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, IndexedShards) and (self.source.entry, self.split) == (other.source.entry, other.split):
            return self.source.splits == other.source.splits
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(_is_equal, self, other))

    def __hash__(self) -> int:
        return hash((self.source.entry, self.split))

    def __repr__(self) -> str:
        return f"IndexedShards({len(self)} shards in {self.source.folder}/{INDEX_NAME})"


def _is_equal(one: ShardEntry, other: object) -> bool:
    return one == other


def check_index_size(entry: IndexEntry, splits: Sequence[SplitShape]) -> None:
    """Raise ValueError if an index has other rows than the splits have shards, or more bytes than these can need."""
    rows, groups = sum(one.num_shards for one in splits), sum(one.num_index_groups for one in splits)
    if entry.num_rows != rows:
        raise ValueError(f"index.num_rows: {entry.num_rows}, but the splits have {rows} shards")
    if not 2 * DIGEST.byte_width * rows <= entry.bytes or rows > MAX_SHARDS:
        raise ValueError(f"index.num_rows: {rows} shards are more than its {entry.bytes} bytes can list")
    if entry.bytes > len(SCHEMA) * (MAX_ROW_BYTES * rows + 2 * HEADER_BYTES * groups) + MAX_FOOTER_START:
        raise ValueError(f"index.bytes: {entry.bytes} are more than {rows} shards need")


def index_shards(
    folder: str | os.PathLike[str], entry: IndexEntry, splits: Sequence[SplitShape], sizes: Mapping[str, int]
) -> dict[str, IndexedShards]:
    """Return the shards of each split by an index that lists those of all; `sizes` has the bytes of each."""
    index = ShardIndex(folder, entry, splits)
    return {one.name: IndexedShards(index, at, sizes[one.name]) for at, one in enumerate(splits)}
