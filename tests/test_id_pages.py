"""Pages of IDs that are read without Parquet's reader: the same IDs, and whatever is not such a page is left to it."""

import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import ShardLoader, ShardsConfig, WindowConfig, write_shards
from pipeline.shards import id_pages
from pipeline.shards.format import open_shard, read_columns
from pipeline.shards.id_pages import DELTA, IdPages, decode_steps, make_headers, read_numbers, read_page, read_starts
from pipeline.shards.pages import parse_header

KINDS = [{}, {"tail": "pad"}, {"documents": "pack"}, {"stride": 3}, {"documents": "separate", "order": "shuffled"}]


def shard_of(path):
    return min((path / "data").iterdir())


def column_of(file, group=0):
    return pq.read_metadata(file).row_group(group).column(0)


def reader_of(content):
    return lambda start, size: content[start : start + size]


def pages_of(file):
    """For each row group, what is read without Parquet's reader, and what that says."""
    content, footer = file.read_bytes(), pq.read_metadata(file)
    length = footer.schema.to_arrow_schema().field(0).type.list_size
    with open_shard(file) as opened:
        for group in range(footer.num_row_groups):
            row_group = footer.row_group(group)
            page = read_page(reader_of(content), row_group.column(0), rows=row_group.num_rows, max_length=length)
            yield page, read_columns(opened, group)


@pytest.mark.parametrize("compression", ["zstd", "none", "lz4", "snappy"])
@pytest.mark.parametrize("max_length", [1, 5, 130])
def test_pages_are_what_parquets_reader_says_or_left_to_it(write_books, compression, max_length):
    for number, kind in enumerate(KINDS):
        if max_length < 3 and kind:
            continue
        layout = {"windows_per_group": 7 if max_length > 1 else 500, "compression": compression}
        file = shard_of(write_books(f"shards-{number}", max_length=max_length, **layout, **kind).path)
        pages = list(pages_of(file))
        assert len(pages) > 1
        for page, columns in pages:
            assert (page is not None) == (compression in ("zstd", "none"))
            if page is not None:
                assert np.array_equal(page.inputs, columns.inputs)
                assert page.inputs.dtype == columns.inputs.dtype == np.int32


def test_parquets_reader_decodes_the_first_row_group_of_each_size_alone(write_books, monkeypatch):
    path = write_books(max_length=16, windows_per_group=7).path
    file, asked = shard_of(path), []
    original = id_pages.read_columns

    def note(*given, with_ids=True):
        asked.append(with_ids)
        return original(*given, with_ids=with_ids)

    monkeypatch.setattr(id_pages, "read_columns", note)
    pages, content = IdPages(), file.read_bytes()
    with open_shard(file) as opened:
        sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
        for group in range(len(sizes)):
            found, expected = pages.read_columns(opened, group, reader_of(content)), read_columns(opened, group)
            for one, other in zip(found, expected, strict=True):
                assert one is other is None or np.array_equal(one, other)
    assert len(sizes) > 2
    assert asked == [sizes.index(size) == group for group, size in enumerate(sizes)]


def test_what_is_read_without_parquets_reader_is_what_it_reads(write_books):
    for number, kind in enumerate(KINDS):
        path = write_books(f"known-{number}", max_length=16, windows_per_group=7, **kind).path
        content, footer, pages = shard_of(path).read_bytes(), pq.read_metadata(shard_of(path)), IdPages()
        known = 0
        with open_shard(shard_of(path)) as opened:
            for group in range(footer.num_row_groups):
                expected = pages.read_columns(opened, group, reader_of(content))
                found = pages.read_known(footer, group, reader_of(content), max_length=16)
                known += found is not None
                for one, other in zip(found or (), expected, strict=found is not None):
                    assert one is other is None or (np.array_equal(one, other) and one.dtype == other.dtype)
        in_steps = kind in ({}, {"stride": 3})
        assert known == (footer.num_row_groups if in_steps else 0)


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.lists(st.integers(-(2**40), 2**40), max_size=2),
    st.integers(1, 300),
    st.sampled_from(["zstd", "none"]),
)
def test_numbers_in_even_steps_are_what_parquets_reader_says_or_left_to_it(first, steps, rows, compression):
    with np.errstate(over="ignore"):
        numbers = np.cumsum(np.array([first, *(steps * 200)][:rows], np.int64))
    sink, small = pa.BufferOutputStream(), (numbers & 0xFFFF).astype(np.int32)
    fields = [pa.field("start", pa.int64(), nullable=False), pa.field("next_id", pa.int32(), nullable=False)]
    encodings = {"start": "DELTA_BINARY_PACKED", "next_id": "PLAIN"}
    options = {"use_dictionary": False, "write_page_checksum": True, "write_statistics": ["start"]}
    table = pa.table([numbers, small], schema=pa.schema(fields))
    pq.write_table(table, sink, compression=compression, column_encoding=encodings, **options)
    content = sink.getvalue().to_pybytes()
    group = pq.read_metadata(pa.BufferReader(content)).row_group(0)
    found = read_starts(reader_of(content), group.column(0), len(numbers))
    assert found is None or found.tolist() == numbers.tolist()
    assert found is not None or len(set(steps)) > 1
    assert read_numbers(reader_of(content), group.column(1), len(numbers)).tolist() == small.tolist()
    assert read_starts(reader_of(content), group.column(0), len(numbers) + 1) is None
    assert read_numbers(reader_of(content), group.column(1), len(numbers) + 1) is None


@given(st.binary(max_size=40), st.integers(0, 600))
def test_any_bytes_are_numbers_in_steps_or_nothing(content, rows):
    found = decode_steps(content, rows)
    assert found is None or len(found) == rows


def test_other_levels_of_as_many_values_are_left_to_parquets_reader(tmp_path):
    """Windows of 2 and 4 tokens in lists of any length: as many IDs as 2 windows of 3, and another meaning."""
    kind = pa.list_(pa.field("element", pa.int32(), nullable=False))
    schema = pa.schema([pa.field("input_ids", kind, nullable=False)])
    options = {"use_dictionary": False, "write_page_checksum": True, "compression": "zstd", "write_statistics": False}
    levels = []
    for number, rows in enumerate([[[1, 2, 3], [4, 5, 6]], [[1, 2], [3, 4, 5, 6]]]):
        file = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"input_ids": rows}, schema=schema), file, **options)
        levels.append(read_page(reader_of(file.read_bytes()), column_of(file), rows=2, max_length=3).levels)
    assert levels[0] != levels[1], "so what is known of the first says nothing of the second"


@pytest.fixture(scope="module")
def one_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    path = write_shards(
        folder / "shards",
        corpus=[" ".join(map(str, range(400)))],
        tokenizer="bytes",
        window=WindowConfig(max_length=16),
        shards=ShardsConfig(windows_per_group=30),
        cache=folder / "cache",
    ).path
    file = shard_of(path)
    (_, expected), *_ = pages_of(file)
    return file.read_bytes(), column_of(file), len(expected.inputs), 16, expected.inputs


@given(st.data())
def test_a_page_that_was_changed_anywhere_is_left_to_parquets_reader(one_page, data):
    """Or it is the same page: of bits that only the footer covers, none changes an ID."""
    content, column, rows, length, expected = one_page
    start, size = column.data_page_offset, column.total_compressed_size
    at = data.draw(st.integers(start, start + size - 1) | st.integers(start, start + 40))
    changed = bytearray(content)
    changed[at] ^= data.draw(st.integers(1, 255))
    assert read_page(reader_of(bytes(changed)), column, rows=rows, max_length=length) is None
    cut = content[: start + data.draw(st.integers(0, size - 1))]
    assert read_page(reader_of(cut), column, rows=rows, max_length=length) is None
    assert np.array_equal(read_page(reader_of(content), column, rows=rows, max_length=length).inputs, expected)


class Forged:
    """A column of the footer, as a hostile file may have it."""

    def __init__(self, packed, unpacked, compression):
        self.total_compressed_size, self.total_uncompressed_size = packed, unpacked
        self.compression, self.data_page_offset, self.has_dictionary_page = compression, 0, False


@given(
    body=st.binary(max_size=200)
    | st.binary(max_size=200).map(lambda one: pa.Codec("zstd").compress(one, asbytes=True)),
    unpacked=st.integers(0, 300) | st.just(2**31 - 1),
    values=st.tuples(st.integers(0, 20), st.integers(1, 4)),
    compression=st.sampled_from(["ZSTD", "UNCOMPRESSED", "LZ4"]),
    rest=st.integers(-3, 3),
)
def test_a_forged_page_with_right_checksums_gives_its_own_bytes_or_nothing(body, unpacked, values, compression, rest):
    rows, length = values
    (checksum,) = struct.unpack("<i", struct.pack("<I", zlib.crc32(body)))
    stated = min(unpacked, 4096)  # a footer that states more is refused before
    header = make_headers(stated, len(body), checksum, rows * length)[0]
    column = Forged(len(header) + len(body) + rest, len(header) + stated, compression)
    page = read_page(reader_of(header + body), column, rows=rows, max_length=length)
    if page is None:
        return
    assert rest == 0
    inside = body if compression == "UNCOMPRESSED" else pa.Codec("zstd").decompress(body, stated, asbytes=True)
    assert page.levels + page.inputs.tobytes() == inside
    assert page.inputs.shape == (rows, length)


@given(st.binary(max_size=120))
def test_any_bytes_are_no_page(content):
    column = Forged(len(content), len(content), "UNCOMPRESSED")
    assert read_page(reader_of(content), column, rows=2, max_length=2) is None


@given(*(st.integers(-(2**31), 2**31 - 1) for _ in range(4)))
def test_headers_are_those_that_are_parsed(unpacked, packed, checksum, values):
    for header in make_headers(unpacked, packed, checksum, values) + make_headers(
        unpacked, packed, checksum, values, encoding=DELTA
    ):
        assert parse_header(header) == (len(header), {1: 0, 2: unpacked, 3: packed, 4: checksum})


def test_damage_is_told_in_the_words_of_parquets_reader(write_books):
    path = write_books(max_length=16, windows_per_group=7).path
    loader = ShardLoader(path, batch_size=2, shuffle="none")
    expected = [batch.input_ids.tolist() for batch in loader]
    file = shard_of(path)
    content = bytearray(file.read_bytes())
    column = column_of(file, 2)
    content[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    file.write_bytes(content)
    batches, found = iter(ShardLoader(path, batch_size=2, shuffle="none")), []
    with pytest.raises(OSError, match=r"row group 2 cannot be read: .*CRC checksum verification failed"):
        found.extend(batch.input_ids.tolist() for batch in batches)
    assert found == expected[:7]
