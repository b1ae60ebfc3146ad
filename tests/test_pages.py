"""Page headers against the footer: what a page unpacks to is known before it is unpacked."""

import contextlib
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import varint

from pipeline import ShardLoader, locate, verify_shards
from pipeline.shards.pages import HEADER_BYTES, check_pages, parse_header


def columns(file):
    metadata = pq.read_metadata(file)
    groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
    return [(group.column(index)) for group in groups for index in range(group.num_columns)]


def lie(file, at):
    """Let the header at `at` say that its page unpacks to all that its bytes can hold."""
    content = bytearray(file.read_bytes())
    assert content[at] == content[at + 2] == 0x15, "the page's kind and its unpacked size"
    start = at + 3
    stop = next(place + 1 for place in range(start, start + 5) if not content[place] & 128)
    content[start:stop] = bytes([255] * (stop - start - 1) + [126])
    file.write_bytes(content)


@pytest.mark.parametrize("compression", ["zstd", "lz4", "snappy", "none"])
@pytest.mark.parametrize("options", [{}, {"tail": "pad"}, {"documents": "pack"}])
def test_pages_of_real_files_add_up_to_what_their_footers_say(write_books, compression, options):
    path = write_books(max_length=16, windows_per_group=20, compression=compression, **options).path
    for file in (*(path / "data").iterdir(), path / "documents" / "train.parquet"):
        footer = pq.read_metadata(file)
        for group in range(footer.num_row_groups):
            check_pages(file, footer, group)
        for column in columns(file):
            with file.open("rb") as opened:
                length, sizes = parse_header(os.pread(opened.fileno(), HEADER_BYTES, column.data_page_offset))
            assert (length + sizes[2], length + sizes[3]) == (
                column.total_uncompressed_size,
                column.total_compressed_size,
            ), "each of these columns has one page"


def test_columns_of_several_pages_are_read_page_by_page(tmp_path):
    file = tmp_path / "x.parquet"
    table = pa.table({"a": list(range(50_000)), "b": [f"text {number}" for number in range(50_000)]})
    pq.write_table(table, file, use_dictionary=False, data_page_size=1000, write_page_checksum=True)
    footer = pq.read_metadata(file)
    check_pages(file, footer, 0)
    with file.open("rb") as opened:
        at = footer.row_group(0).column(0).data_page_offset
        length, sizes = parse_header(os.pread(opened.fileno(), HEADER_BYTES, at))
    lie(file, at + length + sizes[3])
    with pytest.raises(ValueError, match="a page of its column 0 states other sizes than the footer"):
        check_pages(file, footer, 0)


@pytest.mark.parametrize("name", ["input_ids", "target_ids", "start", "next_id"])
def test_a_page_that_says_it_unpacks_to_more_is_never_unpacked(tmp_path, write_books, name, monkeypatch):
    path = write_books(max_length=16, windows_per_group=2000).path
    (file,) = (path / "data").iterdir()
    (column,) = [one for one in columns(file) if one.path_in_schema.startswith(name)]
    lie(file, column.data_page_offset)
    (path / "documents" / "train.parquet").unlink()
    read_row_group = pq.ParquetFile.read_row_group

    def read_others(opened, *arguments, **options):
        assert "input_ids" not in opened.schema_arrow.names, "the page was unpacked"
        return read_row_group(opened, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", read_others)
    with pytest.raises(OSError, match=r"row group 0 cannot be read: a page of its column \d states other sizes"):
        list(ShardLoader(path))
    shutil.rmtree(tmp_path / "cache")
    faults = [fault.problem for fault in verify_shards(path, cache_path=tmp_path / "cache").faults]
    assert any("states other sizes than the footer" in problem for problem in faults)


def test_a_page_of_the_documents_table_neither(write_books):
    path = write_books(max_length=16).path
    table = path / "documents" / "train.parquet"
    lie(table, columns(table)[0].data_page_offset)
    with pytest.raises(OSError, match="states other sizes than the footer"):
        locate(path, [0])


@given(st.binary(max_size=60))
def test_any_bytes_are_a_header_or_a_clear_error(content):
    found = None
    with contextlib.suppress(ValueError):
        found = parse_header(content)
    if found is None:
        with pytest.raises(ValueError, match=r"^a page header is damaged$"):
            parse_header(content)
    else:
        assert found[0] > 0
        assert all(isinstance(size, int) for size in found[1].values())


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
def test_the_sizes_of_a_header_are_those_that_were_written(unpacked, packed):
    content = bytes([0x15, 0, 0x15, *varint(2 * unpacked), 0x15, *varint(2 * packed), 0x2C, 0x15, 2, 0, 0])
    assert parse_header(content + b"rest") == (len(content), {1: 0, 2: unpacked, 3: packed})
