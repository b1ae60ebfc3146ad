"""order=shuffled: every window once, in an order that the seed picks, each row as it would be in the text's order."""

from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.permutation import make_key, permute
from pipeline.corpus import partitions
from pipeline.tokens.store import TokenStream
from pipeline.windows import Windows, gather_windows, read_windows


@pytest.fixture
def write(write_books, monkeypatch):
    monkeypatch.setattr(partitions, "SMALL_BYTES", 1)  # a chunk for each file: windows lie across their borders
    return partial(write_books, max_length=16, stride=3, windows_per_group=10, windows_per_shard=50)


def rows_of(folder):
    return [row for file in sorted((folder / "data").iterdir()) for row in pq.read_table(file).to_pylist()]


@pytest.mark.parametrize(
    "options", [{}, {"tail": "pad"}, {"documents": "separate", "tail": "pad"}, {"documents": "pack", "stride": 16}]
)
def test_shuffled_rows_are_the_sequential_rows_permuted(write, options):
    sequential = rows_of(write("a", **options).path)
    shuffled = rows_of(write("b", **options, order="shuffled", order_seed=5).path)
    numbers = permute(np.arange(len(sequential)), len(sequential), make_key(5))
    assert shuffled == [sequential[number] for number in numbers]
    assert sorted(row["start"] for row in shuffled) == sorted(row["start"] for row in sequential)
    assert shuffled != sequential


def test_order_and_its_seed_are_part_of_the_fingerprint_where_they_have_an_effect(write):
    prints = {
        (order, seed): write(f"{order}-{seed}", order=order, order_seed=seed).manifest.fingerprint
        for order in ("sequential", "shuffled")
        for seed in (0, 1)
    }
    assert prints["sequential", 0] == prints["sequential", 1]
    assert len(set(prints.values())) == 3


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    max_length=st.integers(1, 6),
    stride=st.integers(1, 7),
    tail=st.sampled_from(["drop", "pad"]),
    separate=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_gather_of_windows_in_any_order_is_the_sequential_read_in_that_order(
    tmp_path_factory, *, sizes, max_length, stride, tail, separate, seed
):
    folder = tmp_path_factory.mktemp("files")
    files, total = [], sum(sizes)
    ids = np.arange(1, total + 1, dtype=np.uint16)
    for number, part in enumerate(np.split(ids, np.cumsum(sizes)[:-1])):
        files.append(folder / f"{number}.npy")
        np.save(files[-1], part)
    stream = TokenStream(files, sizes)
    firsts = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if separate else np.zeros(1, np.int64)
    segments = np.array(sizes if separate else [total], dtype=np.int64)
    windows = Windows(firsts=firsts, sizes=segments, max_length=max_length, stride=stride, tail=tail)
    if not len(windows):
        return
    expected = read_windows(stream, windows, 0, len(windows), pad_id=0)
    numbers = np.random.default_rng(seed).permutation(len(windows))
    for got, want in zip(gather_windows(stream, windows, numbers, pad_id=0), expected, strict=True):
        assert np.array_equal(got, want[numbers])
