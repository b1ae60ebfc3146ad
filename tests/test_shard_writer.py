"""The writer of shards: pyarrow's own writer is its slow twin, and every reader of Parquet reads what it writes."""

import io

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import run_program

from pipeline import ExecutorConfig, ShardsConfig, WindowConfig, verify_shards, write_shards
from pipeline.packing import Segments
from pipeline.shards import shard, shard_writer, thrift
from pipeline.shards.format import group_table
from pipeline.shards.pages import parse_header
from pipeline.shards.shard_writer import SHARED_FROM, ShardWriter, make_levels
from pipeline.shards.zstd_frame import MAX_BLOCK, extend_frame

CODECS = ("zstd", "lz4", "snappy", "none")


def ids_of(count, *, seed=0, distinct=2000):
    """IDs that compress a little, as text does: the frequent ones are small."""
    return (np.random.default_rng(seed).random(count) ** 3 * distinct).astype(np.int32)


def table_of(rows, max_length, *, stride=None, short=0):
    """A row group of windows; the last one ends `short` tokens early."""
    stride = stride or max_length
    ids = ids_of((rows - 1) * stride + max_length + 1)
    windows = np.lib.stride_tricks.sliding_window_view(ids, max_length + 1)[::stride]
    lengths = np.full(rows, max_length, np.int32)
    lengths[-1] -= short
    return group_table(windows, np.arange(rows, dtype=np.int64) * stride, lengths, padded=short > 0)


def written(tables, compression="zstd"):
    file = io.BytesIO()
    with ShardWriter(file, tables[0].schema, compression=compression) as writer:
        for table in tables:
            writer.write_table(table)
    return file.getvalue()


def slowly_written(tables, compression="zstd"):
    file = io.BytesIO()
    with pq.ParquetWriter(
        file,
        tables[0].schema,
        compression=compression,
        compression_level=1 if compression == "zstd" else None,
        use_dictionary=False,
        column_encoding={"start": "DELTA_BINARY_PACKED"},
        data_page_size=16 << 20,
        write_statistics=["start"],
        write_page_checksum=True,
    ) as writer:
        for table in tables:
            writer.write_table(table)
    return file.getvalue()


def read(content):
    return pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read()


def describe(content):
    """What a footer says of everything but sizes and places."""
    footer = pq.read_metadata(pa.BufferReader(content))
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    columns = [[group.column(number) for number in range(group.num_columns)] for group in groups]
    said = [
        [
            (
                column.path_in_schema,
                column.physical_type,
                column.num_values,
                column.compression,
                sorted(column.encodings),
                column.statistics and (column.statistics.min, column.statistics.max, column.statistics.null_count),
            )
            for column in group
        ]
        for group in columns
    ]
    return footer.schema.to_arrow_schema(), footer.metadata, [group.num_rows for group in groups], said


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    max_length=st.integers(1, 40) | st.sampled_from([SHARED_FROM - 1, SHARED_FROM, 700]),
    overlap=st.integers(1, 3),
    short=st.integers(0, 1),
    compression=st.sampled_from(CODECS),
)
@example(rows=[20] * 3, max_length=1, overlap=1, short=0, compression="zstd")
@example(rows=[300, 1], max_length=SHARED_FROM, overlap=1, short=0, compression="zstd")
def test_a_file_says_the_same_as_pyarrows(rows, max_length, overlap, short, compression):
    short = min(short, max_length - 1)
    stride = max(1, max_length // overlap)
    tables = [table_of(count, max_length, stride=stride, short=short) for count in rows]
    content, twin = written(tables, compression), slowly_written(tables, compression)
    assert read(content).equals(pa.concat_tables(tables))
    assert describe(content) == describe(twin)
    shared = stride == max_length >= SHARED_FROM and compression == "zstd"
    assert len(content) <= len(twin) + (10 * sum(rows) + 100 if shared else 0)


def test_packed_windows_keep_their_segments():
    ids = ids_of(3 * 601).reshape(3, 601)
    segments = Segments(np.array([400, 200, 600, 5], np.int32), np.array([2, 3, 4]), np.array([False, True, False]))
    table = group_table(ids, np.arange(3), np.array([600, 600, 5], np.int32), segments, padded=True)
    assert read(written([table])).equals(table)
    assert describe(written([table])) == describe(slowly_written([table]))


@pytest.mark.parametrize("max_length", [7, SHARED_FROM])
def test_large_row_groups_have_several_pages(max_length, monkeypatch):
    monkeypatch.setattr(shard_writer, "PAGE_BYTES", 12 * max_length)
    table = table_of(11, max_length)
    content = written([table, table])
    assert read(content).equals(pa.concat_tables([table, table]))
    at, pages = 4, 0
    for _ in range(4):  # of 3 windows each; the last one of 2
        length, sizes = parse_header(content[at : at + 200])
        at, pages = at + length + sizes[3], pages + 1
    assert at == pq.read_metadata(pa.BufferReader(content)).row_group(0).column(1).data_page_offset


@pytest.mark.parametrize("max_length", [16, SHARED_FROM])
def test_a_flipped_bit_in_a_page_is_found(max_length):
    table = table_of(6, max_length)
    content = written([table])
    footer = pq.read_metadata(pa.BufferReader(content)).row_group(0)
    for number in range(footer.num_columns):
        column = footer.column(number)
        length, sizes = parse_header(content[column.data_page_offset :][:200])
        start = column.data_page_offset + length
        for at in {start, start + sizes[3] // 2, start + sizes[3] - 1}:
            damaged = bytearray(content)
            damaged[at] ^= 4
            with pytest.raises(OSError, match="CRC"):
                read(bytes(damaged))


@pytest.mark.parametrize(("stride", "times"), [(SHARED_FROM, 2), (1, 0)])
def test_targets_that_are_shifted_inputs_are_compressed_with_them(stride, times, monkeypatch):
    frames = []
    monkeypatch.setattr(
        shard_writer, "extend_frame", lambda frame, **ends: frames.append(frame) or extend_frame(frame, **ends)
    )
    table = table_of(60, SHARED_FROM, stride=stride)
    assert read(written([table])).equals(table)
    assert len(frames) == times
    assert all(frame is frames[0] for frame in frames), "both pages extend one frame"


def test_an_error_leaves_a_file_that_nothing_reads():
    file, table = io.BytesIO(), table_of(3, 8)
    with pytest.raises(KeyError), ShardWriter(file, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        raise KeyError
    with pytest.raises(pa.ArrowInvalid):
        read(file.getvalue())


@given(rows=st.integers(1, 600), max_length=st.integers(1, 70))
def test_levels_say_where_each_window_begins(rows, max_length):
    """A plain reader of the format's runs."""
    content = make_levels(rows, max_length)
    found = []
    for _ in range(2):
        size = int.from_bytes(content[:4], "little")
        runs, content = content[4 : 4 + size], content[4 + size :]
        levels, at = [], 0
        while at < size:
            head = shift = 0
            while True:
                head |= (runs[at] & 127) << shift
                at, shift = at + 1, shift + 7
                if not runs[at - 1] & 128:
                    break
            if head & 1:
                levels += [byte >> bit & 1 for byte in runs[at : at + (head >> 1)] for bit in range(8)]
                at += head >> 1
            else:
                levels += [runs[at]] * (head >> 1)
                at += 1
        assert rows * max_length <= len(levels) < rows * max_length + 8, "bits are packed by eights"
        found.append(levels[: rows * max_length])
    assert found == [([0] + [1] * (max_length - 1)) * rows, [1] * (rows * max_length)]
    assert content == b""


@settings(deadline=None)
@given(
    before=st.binary(max_size=50) | st.just(b"ab" * MAX_BLOCK),
    after=st.binary(max_size=50) | st.just(b"ab" * MAX_BLOCK),
    count=st.sampled_from([1, 30, 70, 1000, 40_000, 300_000]),
    distinct=st.sampled_from([1, 3, 2000, 1 << 31]),
    level=st.sampled_from([-3, 1, 3, 9]),
)
def test_an_extended_frame_unpacks_to_the_extended_content(before, after, count, distinct, level):
    ids = ids_of(count, distinct=distinct).tobytes()
    codec = pa.Codec("zstd", compression_level=level)
    frame = codec.compress(ids, asbytes=True)
    pieces = extend_frame(memoryview(frame), before=before, after=after)
    assert codec.decompress(b"".join(pieces), len(before + ids + after), asbytes=True) == before + ids + after
    with pa.CompressedInputStream(pa.BufferReader(b"".join(pieces)), "zstd") as stream:  # bounded by the frame's window
        assert stream.read() == before + ids + after


@given(st.lists(st.tuples(st.integers(1, 15), st.integers(-(1 << 31), (1 << 31) - 1)), max_size=20))
def test_structs_are_read_back(steps):
    fields, number = [], 0
    for step, value in steps:
        number += step
        fields.append((number, value))
    content = thrift.struct(*(thrift.i32(number, value) for number, value in fields))
    assert parse_header(content) == (len(content), dict(fields))


def test_a_data_set_that_was_begun_with_other_pages_is_finished(tmp_path, monkeypatch):
    """Parameters of the data set do not include who wrote its pages: what is recorded stays, the rest is written."""
    arguments = {
        "corpus": ["A text that counts to a hundred. " * 100, "and another one " * 90],
        "tokenizer": "bytes",
        "window": WindowConfig(max_length=16),
        "shards": ShardsConfig(windows_per_group=20, windows_per_shard=40),
        "executor": ExecutorConfig(workers=1),
        "cache": tmp_path / "cache",
    }
    begun = []

    def begin(file, schema, *, compression):
        if len(begun) == 2:
            raise KeyboardInterrupt
        begun.append(file)
        return pq.ParquetWriter(file, schema, compression=compression, use_dictionary=False, write_page_checksum=True)

    with monkeypatch.context() as earlier, pytest.raises(KeyboardInterrupt):
        earlier.setattr(shard, "ShardWriter", begin)
        write_shards(tmp_path / "ds", **arguments)
    report = write_shards(tmp_path / "ds", **arguments)
    assert verify_shards(report.path, cache_path=tmp_path / "cache").faults == []
    makers = [pq.read_metadata(file).created_by.split()[0] for file in sorted((report.path / "data").iterdir())]
    assert makers[:2] == ["parquet-cpp-arrow"] * 2
    assert set(makers[2:]) == {"stridemill"}
    fresh = write_shards(tmp_path / "fresh", **arguments)
    assert fresh.manifest.fingerprint == report.manifest.fingerprint
    assert ds.dataset(report.path / "data").to_table().equals(ds.dataset(fresh.path / "data").to_table())


def by_arrow(path):
    return ds.dataset(path).to_table().select(["input_ids", "target_ids"])


def by_duckdb(path):
    return duckdb.sql(f"select input_ids, target_ids from '{path}'").to_arrow_table()


def by_polars(path):
    return pl.read_parquet(path, columns=["input_ids", "target_ids"]).to_arrow()


def by_pandas(path):
    return pa.Table.from_pandas(pd.read_parquet(path, columns=["input_ids", "target_ids"]), preserve_index=False)


@pytest.mark.parametrize("read_with", [by_arrow, by_duckdb, by_polars, by_pandas])
@pytest.mark.parametrize("max_length", [1, 8, 100, 1024])
def test_other_readers_read_the_same_ids(read_with, max_length, tmp_path):
    """Blocks of zstd end at 131,072 bytes; the largest of these row groups has more in a page."""
    tables = [table_of(200, max_length), table_of(3, max_length, stride=1)]
    path = tmp_path / "x.parquet"
    path.write_bytes(written(tables))
    found = read_with(str(path))
    expected = pa.concat_tables(tables)
    for name in ("input_ids", "target_ids"):
        values = np.stack(found.column(name).to_pandas().to_list())
        assert (values == np.stack(expected.column(name).to_pandas().to_list())).all()


@pytest.mark.slow
def test_datasets_reads_the_same_ids(tmp_path):
    table = table_of(200, 1024)
    (tmp_path / "x.parquet").write_bytes(written([table]))
    code = (
        "from datasets import load_dataset\n"
        "rows = load_dataset('parquet', data_files='x.parquet', split='train', cache_dir='cache')\n"
        "print(sum(map(sum, rows['input_ids'])), sum(map(sum, rows['target_ids'])))"
    )
    sums = [int(table.column(name).combine_chunks().flatten().to_numpy().sum()) for name in ("input_ids", "target_ids")]
    done = run_program("-c", code, cwd=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 0, done.stderr
    assert [int(word) for word in done.stdout.split()] == sums
