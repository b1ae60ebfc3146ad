"""Windows are arithmetic: the twin here is the loop that teaching texts use."""

from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import verify_shards, write_shards
from pipeline.settings import SplitConfig, WindowConfig
from pipeline.windows import Windows, count_padding, count_unused, count_windows, cut_windows, read_windows

PAD = 99_999


class ListStream:
    """A token stream over a plain array."""

    def __init__(self, ids):
        self.ids = np.asarray(ids, dtype=np.uint16)

    def __len__(self):
        return len(self.ids)

    def read(self, start, stop):
        assert 0 <= start <= stop <= len(self.ids)
        return self.ids[start:stop]

    def gather(self, starts, width, *, out, rows):
        for row, start in zip(rows, starts, strict=True):
            out[row] = self.read(start, start + width)


def slow_windows(ids, max_length, stride):
    """The notebook's loop."""
    inputs, targets = [], []
    for i in range(0, len(ids) - max_length, stride):
        inputs.append(ids[i : i + max_length])
        targets.append(ids[i + 1 : i + max_length + 1])
    return inputs, targets


def one_segment(ids, **window):
    return Windows(firsts=np.zeros(1, np.int64), sizes=np.array([len(ids)]), **window)


token_lists = st.lists(st.integers(0, 60_000), max_size=80)
lengths = st.integers(1, 20)
strides = st.integers(1, 25)


def test_ten_tokens_in_windows_of_four_can_be_checked_by_eye():
    ids = list(range(10, 20))
    windows = one_segment(ids, max_length=4, stride=3)
    ids_BT1, starts, real = read_windows(ListStream(ids), windows, 0, len(windows), pad_id=PAD)
    assert ids_BT1.tolist() == [[10, 11, 12, 13, 14], [13, 14, 15, 16, 17]]
    assert starts.tolist() == [0, 3]
    assert real.tolist() == [4, 4]


def test_the_padded_tail_of_ten_tokens_can_be_checked_by_eye():
    ids = list(range(10, 20))
    windows = one_segment(ids, max_length=4, stride=4, tail="pad")
    ids_BT1, starts, real = read_windows(ListStream(ids), windows, 0, len(windows), pad_id=PAD)
    assert ids_BT1.tolist() == [[10, 11, 12, 13, 14], [14, 15, 16, 17, 18], [18, 19, PAD, PAD, PAD]]
    assert starts.tolist() == [0, 4, 8]
    assert real.tolist() == [4, 4, 1]


@given(token_lists, lengths, strides)
def test_windows_equal_those_of_the_slow_twin(ids, max_length, stride):
    windows = one_segment(ids, max_length=max_length, stride=stride)
    inputs, targets = slow_windows(ids, max_length, stride)
    assert len(windows) == len(inputs)
    if inputs:
        ids_BT1, starts, real = read_windows(ListStream(ids), windows, 0, len(windows), pad_id=PAD)
        assert ids_BT1[:, :-1].tolist() == inputs
        assert ids_BT1[:, 1:].tolist() == targets
        assert starts.tolist() == list(range(0, len(ids) - max_length, stride))
        assert set(real.tolist()) == {max_length}


@given(st.integers(0, 10_000), st.integers(1, 300), st.integers(1, 400))
def test_the_count_is_the_formula(size, max_length, stride):
    count = int(count_windows(np.array([size]), max_length=max_length, stride=stride)[0])
    assert count == len(range(0, size - max_length, stride))


@given(token_lists, lengths, strides, st.data())
def test_any_range_of_windows_is_a_slice_of_all_of_them(ids, max_length, stride, data):
    windows = one_segment(ids, max_length=max_length, stride=stride, tail="pad")
    if len(windows) == 0:
        return
    first = data.draw(st.integers(0, len(windows) - 1))
    last = data.draw(st.integers(first + 1, len(windows)))
    whole = read_windows(ListStream(ids), windows, 0, len(windows), pad_id=PAD)
    part = read_windows(ListStream(ids), windows, first, last, pad_id=PAD)
    for all_rows, some_rows in zip(whole, part, strict=True):
        assert all_rows[first:last].tolist() == some_rows.tolist()


@given(token_lists.filter(lambda ids: len(ids) > 1), lengths, st.data())
def test_with_a_padded_tail_every_token_but_the_first_is_a_target(ids, max_length, data):
    stride = data.draw(st.integers(1, max_length))
    windows = one_segment(ids, max_length=max_length, stride=stride, tail="pad")
    _, starts, real = read_windows(ListStream(ids), windows, 0, len(windows), pad_id=PAD)
    targets = {start + place + 1 for start, length in zip(starts, real, strict=True) for place in range(length)}
    assert targets == set(range(1, len(ids)))
    assert (real >= 1).all()
    assert (real[:-1] == max_length).all(), "only the last window is padded"


@given(token_lists, lengths, st.data())
def test_without_gaps_every_token_up_to_the_last_window_appears(ids, max_length, data):
    stride = data.draw(st.integers(1, max_length))
    windows = one_segment(ids, max_length=max_length, stride=stride)
    starts = windows.locate(np.arange(len(windows)))[0].tolist()
    seen = {place for start in starts for place in range(start, start + max_length + 1)}
    assert seen == set(range((starts[-1] + max_length + 1) if starts else 0))


@given(st.lists(token_lists, min_size=1, max_size=6), lengths, strides, st.sampled_from(["drop", "pad"]))
def test_windows_of_separate_documents_are_those_of_each_document_alone(documents, max_length, stride, tail):
    joined = [token for document in documents for token in [*document, 7]]
    sizes = np.array([len(document) for document in documents])
    firsts = np.concatenate([[0], np.cumsum(sizes + 1)[:-1]])
    windows = Windows(firsts=firsts, sizes=sizes, max_length=max_length, stride=stride, tail=tail)
    expected = []
    for document in documents:
        alone = one_segment(document, max_length=max_length, stride=stride, tail=tail)
        if len(alone):
            expected += read_windows(ListStream(document), alone, 0, len(alone), pad_id=PAD)[0].tolist()
    found = []
    if len(windows):
        found = read_windows(ListStream(joined), windows, 0, len(windows), pad_id=PAD)[0].tolist()
    assert found == expected


def test_no_window_fits_into_fewer_tokens_than_length_and_one():
    assert count_windows(np.array([0, 1, 4, 5]), max_length=4, stride=4).tolist() == [0, 0, 0, 1]
    assert count_windows(np.array([0, 1, 2, 5]), max_length=4, stride=4, tail="pad").tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(("stride", "windows"), [(4, 1286), (1, 5141)])
def test_the_notebooks_text_of_5145_tokens_has_its_windows(stride, windows):
    assert count_windows(np.array([5145]), max_length=4, stride=stride).tolist() == [windows]


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    max_length=st.integers(1, 12),
    stride=st.integers(1, 20),
    tail=st.sampled_from(["drop", "pad"]),
    documents=st.sampled_from(["join", "separate"]),
    end_is_target=st.booleans(),
)
def test_unused_tokens_are_those_of_no_window(counts, max_length, stride, tail, documents, end_is_target):
    counts = np.array(counts, np.int64)
    firsts = np.cumsum(counts + 1) - counts - 1
    stream = int(counts.sum()) + len(counts) - 1
    window = WindowConfig(max_length=max_length, stride=stride, tail=tail, documents=documents, allow_gaps=True)
    length = stream + end_is_target if documents == "separate" else stream
    cut = partial(cut_windows, window, num_tokens=length, documents=(firsts, counts))
    windows = cut(end_is_target=end_is_target)
    starts, lengths = windows.locate(np.arange(len(windows)))
    used = {
        position for start, length in zip(starts, lengths, strict=True) for position in range(start, start + length + 1)
    }
    text = [set(range(first, first + count)) for first, count in zip(firsts, counts, strict=True)]
    every = set().union(*text) if documents == "separate" else set(range(stream))
    unused = count_unused(windows, firsts, counts)
    assert unused["tokens"] == len(every - used)
    if counts.all():  # no document is empty
        assert unused["documents"] == sum(not (one & used) for one in text)


def slow_separate(documents, max_length, stride, tail):
    """Inputs and targets of each window of separate documents, with lists: each document ends with END as a target."""
    rows = []
    for document in documents:
        ids = [*document, END]
        covered = 1  # the first token is no target
        for start in range(0, max(0, len(ids) - 1), stride):
            inputs, targets = ids[:-1][start : start + max_length], ids[1:][start : start + max_length]
            if len(inputs) < max_length and (tail == "drop" or start + len(inputs) < covered):
                break
            rows.append((inputs, targets))
            covered = start + len(inputs) + 1
    return rows


END = 50_256


@given(
    documents=st.lists(st.lists(st.integers(0, 60_000), max_size=30), min_size=1, max_size=6),
    max_length=lengths,
    stride=st.integers(1, 25),
    tail=st.sampled_from(["drop", "pad"]),
)
def test_each_separate_document_ends_with_end_of_text_as_its_last_target(documents, max_length, stride, tail):
    window = WindowConfig(max_length=max_length, stride=stride, tail=tail, documents="separate", allow_gaps=True)
    counts = np.array([len(document) for document in documents], np.int64)
    stream = [token for document in documents for token in (*document, END)]
    firsts = np.cumsum(counts + 1) - counts - 1
    windows = cut_windows(window, num_tokens=len(stream), documents=(firsts, counts))
    expected = slow_separate(documents, max_length, stride, tail)
    assert len(windows) == len(expected)
    if not expected:
        return
    ids_BT1, _, real = read_windows(ListStream(stream), windows, 0, len(windows), pad_id=END)
    rows = [(row[:size], row[1 : size + 1]) for row, size in zip(ids_BT1.tolist(), real.tolist(), strict=True)]
    assert rows == expected
    assert count_padding(windows) == sum(max_length - len(inputs) for inputs, _ in expected)
    if tail == "pad" and stride <= max_length:
        ends = sum(targets[-1:] == [END] for _, targets in rows)
        assert ends == sum(len(document) > 0 for document in documents), "once for each document"


@pytest.mark.parametrize(("size", "windows"), [(1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_documents_around_max_length_can_be_checked_by_eye(size, windows):
    window = WindowConfig(max_length=4, tail="pad", documents="separate")
    documents = np.zeros(1, np.int64), np.array([size])
    cut = cut_windows(window, num_tokens=size + 1, documents=documents)
    ids_BT1, _, real = read_windows(ListStream([*range(size), END]), cut, 0, len(cut), pad_id=END)
    assert len(cut) == windows
    assert ids_BT1[-1, real[-1]] == END
    assert real.sum() == size, "each token is an input once"


def real_rows(report, split):
    """Inputs and targets of each window of a split that is on disk, without padding."""
    files = sorted((report.path / "data").glob(f"{split}-*"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    return [(row["input_ids"][: row["length"]], row["target_ids"][: row["length"]]) for row in rows]


def test_a_document_of_one_token_is_a_window_of_one_pair(tmp_path):
    window = WindowConfig(max_length=8, tail="pad", documents="separate")
    report = write_shards(
        tmp_path / "shards", corpus=["a", "bcd"], tokenizer="bytes", window=window, cache=tmp_path / "cache"
    )
    assert real_rows(report, "train") == [([97], [256]), ([98, 99, 100], [99, 100, 256])]


def test_a_document_that_is_cut_between_the_splits_ends_in_the_second(tmp_path):
    report = write_shards(
        tmp_path / "shards",
        corpus=["abcdefgh"],
        tokenizer="bytes",
        window=WindowConfig(max_length=8, tail="pad", documents="separate"),
        split=SplitConfig(validation=0.5),
        cache=tmp_path / "cache",
    )
    assert real_rows(report, "train") == [([97, 98, 99], [98, 99, 100])]
    assert real_rows(report, "validation") == [([101, 102, 103, 104], [102, 103, 104, 256])]
    assert not verify_shards(report.path, cache_path=tmp_path / "cache").faults
