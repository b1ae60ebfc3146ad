"""What a chunk counts of its sources: columns that say the same as an object for each source did."""

import dataclasses
import json
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import CorpusConfig, WindowConfig, write_shards
from pipeline.settings import SPLITS
from pipeline.tokens.chunk import DamagedChunk, find_chunk
from pipeline.tokens.source_counts import COUNTS, SOURCE, SourceCounts, count_sources, read_columns, read_rows
from pipeline.tokens.store import open_store

NUMBERS = st.integers(0, 2**62)
REASONS = st.dictionaries(st.sampled_from(["empty", "null", "not_utf8"]), st.integers(1, 9))
BY_SPLIT = st.fixed_dictionaries(dict.fromkeys(SPLITS, NUMBERS))
ROW = st.fixed_dictionaries(
    {"unit": st.text(), **dict.fromkeys(COUNTS, NUMBERS), "tokens": BY_SPLIT, "num_documents": BY_SPLIT}
    | {"bad": REASONS, "skipped": REASONS}
)
ROWS = st.lists(ROW, max_size=6)


def add_rows(rows):
    """Add up an object for each source, the slow and obvious way."""
    total = {name: sum(row[name] for row in rows) for name in COUNTS}
    for name in ("tokens", "num_documents"):
        total[name] = {split: sum(row[name][split] for row in rows) for split in SPLITS}
    for name in ("bad", "skipped"):
        total[name] = dict(sum((Counter(row[name]) for row in rows), Counter()))
    return total


@given(ROWS, st.integers(0, 6), st.integers(0, 6))
def test_columns_say_what_an_object_for_each_source_says(rows, start, stop):
    counts = read_rows(rows)
    assert len(counts) == len(rows)
    assert counts.total() == add_rows(rows)
    assert counts.select(start, stop) == read_rows(rows[start:stop])
    assert read_columns(json.loads(json.dumps(counts.columns()))) == counts
    table = np.zeros(len(rows), SOURCE)
    for at, row in enumerate(rows):
        by_split = ([row[name][split] for split in SPLITS] for name in ("tokens", "num_documents"))
        table[at] = (*(row[name] for name in COUNTS), *by_split)
    bad, skipped = (
        Counter({(at, why): count for at, row in enumerate(rows) for why, count in row[name].items()})
        for name in ("bad", "skipped")
    )
    assert count_sources([row["unit"] for row in rows], table, bad, skipped) == counts


@pytest.fixture
def chunk_file(tmp_path):
    """The chunk of six small files, of which one is empty and one is not UTF-8."""
    (tmp_path / "in").mkdir()
    for number, content in enumerate([b"", b"\xff\xfe\xff", *(b"word " * number for number in range(2, 6))]):
        (tmp_path / "in" / f"{number}.txt").write_bytes(content)
    corpus = CorpusConfig(name="text", path=str(tmp_path / "in"), max_bad_fraction=1)
    window = WindowConfig(max_length=8)
    write_shards(tmp_path / "ds", corpus=corpus, tokenizer="bytes", window=window, cache=tmp_path / "cache")
    (path,) = (tmp_path / "cache" / "chunks").glob("*/chunk.json")
    return path


def rewrite(path, change):
    """Change the fields of a `chunk.json`, with the checksum of the new ones."""
    fields = json.loads(path.read_text())
    del fields["crc32"]
    change(fields)
    fields["crc32"] = zlib.crc32(json.dumps(fields, sort_keys=True).encode())
    path.write_text(json.dumps(fields, indent=1) + "\n")


def use_rows(fields):
    """Write the counts as earlier chunks have them."""
    columns = fields.pop("columns")
    fields["by_source"] = [
        {name: columns[name][at] for name in ("unit", *COUNTS)}
        | {n: {split: columns[n][split][at] for split in SPLITS} for n in ("tokens", "num_documents")}
        | {n: {why: count for source, why, count in columns[n] if source == at} for n in ("bad", "skipped")}
        for at in range(len(columns["unit"]))
    ]


def test_an_earlier_chunk_is_the_same_chunk(chunk_file, tmp_path):
    cache, name = tmp_path / "cache", chunk_file.parent.name
    chunk = find_chunk(cache, name)
    assert (chunk.bad, chunk.skipped, len(chunk.by_source)) == ({"not_utf8": 1}, {"empty": 1}, 6)
    rewrite(chunk_file, use_rows)
    assert find_chunk(cache, name) == chunk
    (store,) = (cache / "stores").iterdir()
    assert open_store(store).chunks == [chunk]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda columns: columns["audited"].pop(), "different lengths"),
        (lambda columns: columns["tokens"]["train"].append(1), "different lengths"),
        (lambda columns: columns["tokens"].pop("validation"), "splits train"),
        (lambda columns: columns.update(more=[]), "more"),
        (lambda columns: columns["bad"].append([1, "x"]), "unpack"),
        (lambda columns: columns.pop("bad"), "bad"),
    ],
)
def test_columns_that_do_not_fit_are_a_damaged_chunk(chunk_file, tmp_path, change, what):
    rewrite(chunk_file, lambda fields: change(fields["columns"]))
    with pytest.raises(DamagedChunk, match=what):
        find_chunk(tmp_path / "cache", chunk_file.parent.name)


def test_the_counts_of_no_source_are_empty():
    assert SourceCounts().total() == add_rows([])
    assert dataclasses.astuple(SourceCounts()) == dataclasses.astuple(read_rows([]))
