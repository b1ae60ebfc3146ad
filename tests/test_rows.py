"""Row groups are buffered flat, and give the windows that other readers see in the files."""

import itertools

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import sections, varint
from test_verify import edit, put

from pipeline import ShardLoader, WindowDataset, write_shards
from pipeline.loader.row_group import choose_pitch, count_slot_tokens, view_windows
from pipeline.loader.row_group_cache import count_tokens, slot_bytes

WORDS = " ".join(f"word{number}" for number in range(90))


def write(path, corpus, **options):
    """A data set of text files, in bytes; its cache lies beside it."""
    beside = {"cache_path": path.parent / "cache", "tokenizer": "bytes"}
    return write_shards(path, **sections(corpus="text", corpus_path=str(corpus), **beside, **options)).path


@given(windows=st.integers(1, 30), pitch=st.integers(1, 12), max_length=st.integers(1, 20))
def test_a_view_has_the_windows_that_slices_have(windows, pitch, max_length):
    tokens = np.arange(count_slot_tokens(windows, pitch=pitch, max_length=max_length))
    expected = [tokens[begin : begin + max_length + 1].tolist() for begin in range(0, windows * pitch, pitch)]
    assert view_windows(tokens, pitch=pitch, max_length=max_length).tolist() == expected


def test_by_eye():
    tokens = np.frombuffer(b"abcdefghi", "S1")
    assert [b"".join(row) for row in view_windows(tokens, pitch=2, max_length=4)] == [b"abcde", b"cdefg", b"efghi"]
    assert choose_pitch(max_length=4, stride=2, order="sequential", documents="join") == 2
    for other in ({"order": "shuffled"}, {"documents": "separate"}, {"stride": 7}):
        given = {"max_length": 4, "stride": 2, "order": "sequential", "documents": "join"}
        assert choose_pitch(**{**given, **other}) == 5, "what is not one text is buffered window by window"


@pytest.mark.slow
@given(
    max_length=st.integers(1, 24),
    stride=st.integers(1, 40),
    tail=st.sampled_from(["drop", "pad"]),
    documents=st.sampled_from(["join", "separate"]),
    order=st.sampled_from(["sequential", "shuffled"]),
    group=st.sampled_from([None, 1, 7]),
)
@settings(max_examples=15)
def test_windows_are_those_of_arrow(tmp_path_factory, max_length, stride, tail, documents, order, group):
    folder = tmp_path_factory.mktemp("rows")
    for name, size in (("a", 300), ("b", 40), ("c", 111)):
        (folder / f"{name}.txt").write_text(WORDS[:size])
    options = {"max_length": max_length, "stride": stride, "tail": tail, "documents": documents, "order": order}
    path = write(folder / "shards", folder / "*.txt", allow_gaps=True, windows_per_group=group, **options)
    rows = pyarrow.dataset.dataset(sorted((path / "data").iterdir())).to_table().to_pydict()
    dataset = WindowDataset(path)
    assert len(dataset) == len(rows["input_ids"])
    for window in range(0, len(dataset), 3):
        assert dataset[window]["input_ids"].tolist() == rows["input_ids"][window]
        assert dataset[window]["target_ids"].tolist() == rows["target_ids"][window]
    batches = list(ShardLoader(path, shuffle="lanes", lanes=3, batch_size=4, drop_last=False))
    for batch in batches:
        for row, window in enumerate(batch.window_ids.tolist()):
            if window >= 0:
                assert batch.input_ids[row].tolist() == rows["input_ids"][window]
                assert batch.target_ids[row].tolist() == rows["target_ids"][window]


def test_overlapping_windows_take_the_memory_of_their_text(tmp_path, books):
    sizes = {}
    for stride in (16, 1):
        path = write(tmp_path / f"{stride}", books, max_length=16, stride=stride, windows_per_group=160 // stride)
        reader = ShardLoader(path).reader
        assert count_tokens(reader, 0) == 160 - stride + 16 + 1
        sizes[stride] = slot_bytes(reader)
    assert sizes[1] < 1.1 * sizes[16], "sixteen times as many windows of as much text"


@pytest.mark.parametrize("name", ["input_ids", "start", "next_id"])
@pytest.mark.parametrize("stride", [5, 16])
def test_windows_that_do_not_go_on_from_one_another_are_refused(tmp_path, books, name, stride):
    """Right hashes and checksums, as a faulty writer would leave them."""
    path = write(tmp_path / "shards", books, max_length=16, stride=stride, windows_per_group=20, windows_per_shard=80)
    edit(path, put(name, 25, 0, 66))
    with pytest.raises(OSError, match=r"row group 1 contains windows that are not of one text\. .* stages=\[verify\]"):
        list(ShardLoader(path, shuffle="none", batch_size=5))


@pytest.mark.parametrize("shuffle", ["none", "lanes"])
@pytest.mark.parametrize(("tail", "stride", "score"), [("pad", 16, "all"), ("drop", 8, "new")])
def test_targets_that_do_not_count_are_the_same_in_the_least_memory(
    tmp_path, shuffle, tail, stride, score, monkeypatch
):
    """A gather that needs more row groups than are cached decodes the others for itself."""
    monkeypatch.setattr("pipeline.loader.order.BLOCK_TOKENS", 1)
    (tmp_path / "text.txt").write_text(WORDS[:203])
    path = write(
        tmp_path / "shards", tmp_path / "text.txt", max_length=16, stride=stride, tail=tail, windows_per_group=1
    )

    def targets(**more):
        loader = ShardLoader(path, shuffle=shuffle, lanes=2, batch_size=8, drop_last=False, score=score, **more)
        return [batch.target_ids.tolist() for batch in loader]

    each = slot_bytes(ShardLoader(path, score=score).reader)
    whole = targets()
    assert any(-100 in row for batch in whole for row in batch)
    assert targets(memory_budget=2 * each) == whole


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_a_footer_that_names_another_page_is_refused(tmp_path, compression):
    """Each single byte that turns the place of one page into that of another, whose checksum is right."""
    (tmp_path / "text.txt").write_text(" ".join(str(number**3) for number in range(600)))
    tried = 0
    for windows_per_group in range(4, 9):  # where pages lie one byte apart depends on their size
        path = write(
            tmp_path / f"shards-{windows_per_group}",
            tmp_path / "text.txt",
            max_length=8,
            windows_per_group=windows_per_group,
            order="shuffled",
            compression=compression,
        )
        tried += try_other_places(path, most=10 - tried)
    assert tried, "some page is one byte away from another"


def try_other_places(path, *, most):
    """Let the footer of a data set's first shard name other pages, and count how often that was refused."""
    file = next((path / "data").iterdir())
    content = file.read_bytes()
    footer = pq.read_metadata(file)
    columns = [(group, column) for group in range(footer.num_row_groups) for column in (0, 1)]
    places = {footer.row_group(group).column(column).data_page_offset for group, column in columns}
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    tried = 0
    for place in sorted(places):
        code = varint(2 * place)
        for at, byte in itertools.product(range(len(code)), range(256)):
            changed = code[:at] + bytes([byte]) + code[at + 1 :]
            if changed == code or changed not in {varint(2 * other) for other in places}:
                continue
            where = content.find(code, start)
            if where < 0 or tried >= most:
                continue
            tried += 1
            file.write_bytes(content[:where] + changed + content[where + len(code) :])
            with pytest.raises(OSError, match=r"cannot be read: .*"):
                list(ShardLoader(path, shuffle="none"))
    return tried
