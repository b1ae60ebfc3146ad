"""Packed windows: laws that hold for all documents, and slow twins with lists."""

import dataclasses
import hashlib
import itertools
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import sections, store_windows

from pipeline import ShardLoader, WindowConfig, WindowDataset, read_manifest, verify_shards, write_shards
from pipeline.cli.config import Config
from pipeline.cli.show import describe
from pipeline.cli.shown import find_window, find_windows
from pipeline.packing import choose_group_tokens, pack_documents, pack_sizes
from pipeline.rules import ConfigError
from pipeline.settings import CacheConfig, ShardsConfig
from pipeline.shards.format import find_footer
from pipeline.shards.manifest import write_manifest
from pipeline.shards.shard_writer import ShardWriter
from pipeline.tokens.store import open_store
from pipeline.windows import count_cut, count_padding

END = 256  # of the tokenizer `bytes`


def slow_best_fit(sizes, max_length):
    """The tokens of each window by best fit decreasing, one piece at a time."""
    room = []
    for size in sorted(sizes, reverse=True):
        fits = [number for number, left in enumerate(room) if left >= size]
        if fits:
            room[min(fits, key=lambda number: room[number])] -= size
        else:
            room.append(max_length - size)
    return sorted(max_length - left for left in room)


def pack(sizes, max_length, group_tokens=1 << 40):
    sizes = np.array(sizes, np.int64)
    return pack_documents(np.cumsum(sizes) - sizes, sizes, max_length=max_length, group_tokens=group_tokens)


def windows_of(packed):
    """Each window as a list of its segments, (first token, tokens), and whether it is continued."""
    pairs = list(zip(packed.firsts.tolist(), packed.sizes.tolist(), strict=True))
    bounds = itertools.pairwise([0, *packed.ends.tolist()])
    return [(pairs[a:b], flag) for (a, b), flag in zip(bounds, packed.continued.tolist(), strict=True)]


lengths = st.integers(1, 24)
documents = st.lists(st.integers(1, 70), max_size=60)


def test_the_example_of_the_docstring():
    packed = pack([4, 10, 3, 2], 6)
    assert windows_of(packed) == [([(0, 4), (17, 2)], False), ([(4, 6)], True), ([(10, 4)], False), ([(14, 3)], False)]
    assert packed.lengths.tolist() == [6, 6, 4, 3]
    assert (count_padding(packed), count_cut(packed)) == (5, 1)


@given(sizes=st.lists(st.integers(1, 40), max_size=80), max_length=st.integers(40, 60))
def test_pieces_are_packed_as_best_fit_decreasing_packs_them(sizes, max_length):
    windows, longest = pack_sizes(np.array(sizes, np.int64), max_length)
    filled = np.bincount(windows, weights=sizes, minlength=len(longest))
    assert sorted(filled.tolist()) == slow_best_fit(sizes, max_length)
    for window, piece in enumerate(longest):
        assert sizes[piece] == max(size for size, at in zip(sizes, windows, strict=True) if at == window)


@given(sizes=documents, max_length=lengths, group_tokens=st.integers(1, 400))
def test_each_token_is_in_one_segment_and_what_fits_is_never_cut(sizes, max_length, group_tokens):
    packed = pack(sizes, max_length, group_tokens)
    pieces, continued = {}, set()
    for segments, flag in windows_of(packed):
        assert 0 < sum(size for _, size in segments) <= max_length
        assert segments == sorted(segments), "in the order of the text"
        pieces |= dict(segments)
        if flag:
            assert segments[0][1] == max_length
            continued.add(segments[0][0])
    expected, rests = {}, set()
    for first, size in zip(itertools.accumulate([0, *sizes[:-1]]), sizes, strict=False):
        for start in range(first, first + size, max_length):
            expected[start] = min(max_length, first + size - start)
            rests |= {start} if start + max_length < first + size else set()
    assert pieces == expected
    assert continued == rests
    assert packed.lengths.tolist() == [sum(size for _, size in segments) for segments, _ in windows_of(packed)]
    assert count_padding(packed) == len(packed) * max_length - sum(sizes)


@given(sizes=documents.filter(len), max_length=lengths, group_tokens=st.integers(1, 400))
def test_a_group_is_packed_by_itself_as_densely_as_best_fit_decreasing(sizes, max_length, group_tokens):
    starts = list(itertools.accumulate([0, *sizes[:-1]]))
    groups = {}
    for start, size in zip(starts, sizes, strict=True):
        groups.setdefault(start // group_tokens, []).append(size)
    found, first = [], 0
    for group in groups.values():
        alone = windows_of(pack(group, max_length))
        rests = [size % max_length for size in group if size % max_length]
        assert len(alone) == sum(size // max_length for size in group) + len(slow_best_fit(rests, max_length))
        found += [([(at + first, size) for at, size in segments], flag) for segments, flag in alone]
        first += sum(group)
    assert windows_of(pack(sizes, max_length, group_tokens)) == found


@given(sizes=documents, max_length=lengths)
def test_windows_are_in_the_texts_order_by_their_longest_segments(sizes, max_length):
    longest = [max(segments, key=lambda one: (one[1], -one[0])) for segments, _ in windows_of(pack(sizes, max_length))]
    found = [first for first, _ in longest]
    assert found == sorted(found)


@pytest.mark.parametrize("max_length", [1, 4, 256, 1024, 8192, 1 << 17, 1 << 24])
def test_a_group_has_between_64_and_131072_windows(max_length):
    assert 64 * max_length <= choose_group_tokens(max_length) <= 131_072 * max_length


@pytest.mark.parametrize("max_length", [1024, 8192])
def test_ordinary_documents_leave_less_than_half_a_percent(max_length):
    """Lengths as technical text has them: a median of 631 tokens, and a long tail."""
    sizes = np.exp(np.random.default_rng(0).normal(np.log(631), 1.3, 20_000)).astype(np.int64) + 1
    packed = pack(sizes, max_length, choose_group_tokens(max_length))
    assert count_padding(packed) < 0.005 * len(packed) * max_length


def test_very_many_equal_documents_take_no_time():
    packed = pack(np.full(1_000_000, 3), 10)
    assert packed.lengths.tolist() == [9] * 333_333 + [3]


def slow_rows(path, split):
    """Rows of a split's files as lists."""
    return [row for file in sorted((path / "data").glob(f"{split}-*")) for row in pq.read_table(file).to_pylist()]


def check_rows(rows, texts, max_length):
    """Compare rows with the texts: each token once as an input, each but a text's first once as a target."""
    inputs, pairs = [], []
    for row in rows:
        sizes = row["segment_lengths"]
        real = sum(sizes)
        assert row["length"] == real <= max_length
        assert len(row["input_ids"]) == len(row["target_ids"]) == max_length
        assert row["next_id"] == row["target_ids"][-1]
        assert row["input_ids"][real:] == [END] * (max_length - real)
        assert row["target_ids"][real:] == [-100] * (max_length - real)
        for stop, size in zip(itertools.accumulate(sizes), sizes, strict=True):
            given, wanted = (row[name][stop - size : stop] for name in ("input_ids", "target_ids"))
            inputs.append(tuple(given))
            assert wanted[:-1] == given[1:]
            assert (wanted[-1] == -100) == (given[-1] == END)
            pairs += zip(given, wanted, strict=True)
    expected, expected_pairs = [], []
    for text in texts:
        ids = (*text.encode(), END)
        expected += [ids[start : start + max_length] for start in range(0, len(ids), max_length)]
        expected_pairs += zip(ids, (*ids[1:], -100), strict=True)
    assert sorted(inputs) == sorted(expected)
    assert sorted(pairs) == sorted(expected_pairs)


def contents(loader):
    """The rows of an epoch by their numbers."""
    return {
        window: (inputs.tolist(), targets.tolist())
        for batch in loader
        for window, inputs, targets in zip(batch.window_ids.tolist(), *batch, strict=True)
        if window >= 0
    }


@pytest.mark.slow
@given(
    data=st.data(),
    sizes=st.lists(st.integers(1, 60), min_size=3, max_size=40),
    max_length=st.integers(1, 24),
    order=st.sampled_from(["sequential", "shuffled"]),
    validation=st.sampled_from([0.0, 0.4]),
    group=st.sampled_from([None, 1, 5]),
    score=st.sampled_from(["all", "new"]),
)
@settings(max_examples=12)
def test_packed_data_sets_hold_the_texts(tmp_path_factory, data, sizes, max_length, order, validation, group, score):
    folder = tmp_path_factory.mktemp("packed")
    texts = [f"{number}:".ljust(size, "abcdefg"[number % 7])[:size] for number, size in enumerate(sizes)]
    options = {"max_length": max_length, "documents": "pack", "windows_per_group": group}
    given = sections(
        tokenizer="bytes", order=order, validation=validation, cache_path=folder / "cache", workers=2, **options
    )
    try:
        report = write_shards(folder / "shards", corpus=texts, **given)
    except ValueError as error:
        assume("split has 0 tokens" not in str(error))
        raise
    assert not verify_shards(report.path, cache_path=folder / "cache").faults
    (path,) = (folder / "cache" / "stores").iterdir()
    store, held = open_store(path), []
    for split in report.manifest.splits:
        table, ids = slow_rows(report.path, split), store.stream(split, closed=True)
        here = [bytes(one).decode() for one in split_at(ids.read(0, len(ids)).tolist(), END)]
        check_rows(table, here, max_length)
        held += here
        assert report.padding[split] == sum(max_length - row["length"] for row in table)
        expected = {number: (row["input_ids"], row["target_ids"]) for number, row in enumerate(table)}
        shuffle = data.draw(st.sampled_from(["none", "full", "lanes"]))
        loading = {"split": split, "shuffle": shuffle, "lanes": 3, "batch_size": 4, "drop_last": False, "score": score}
        assert contents(ShardLoader(report.path, **loading)) == expected
        dataset = WindowDataset(report.path, split=split, score=score)
        assert [(one["input_ids"].tolist(), one["target_ids"].tolist()) for one in dataset[:]] == list(
            expected.values()
        )
        if order == "sequential":
            assert contents(ShardLoader(store_windows(path, **options), **loading)) == expected
    assert sorted(held) == sorted(texts)


def split_at(ids, separator):
    """The lists between the separators; the last ID is one."""
    found = [[]]
    for token in ids:
        if token == separator:
            found.append([])
        else:
            found[-1].append(token)
    return found[:-1]


def test_a_document_that_is_cut_between_the_splits_ends_in_the_second(tmp_path):
    given = sections(tokenizer="bytes", max_length=3, documents="pack", validation=0.5, cache_path=tmp_path / "cache")
    report = write_shards(tmp_path / "shards", corpus=["abcdefgh"], **given)
    names = ("input_ids", "target_ids", "segment_lengths")
    train, validation = (
        [[row[name] for name in names] for row in slow_rows(report.path, split)] for split in ("train", "validation")
    )
    assert train == [[[97, 98, 99], [98, 99, 100], [3]], [[100, END, END], [-100, -100, -100], [1]]]
    assert validation == [[[101, 102, 103], [102, 103, 104], [3]], [[104, END, END], [END, -100, -100], [2]]]
    assert not verify_shards(report.path, cache_path=tmp_path / "cache").faults


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_the_bytes_do_not_depend_on_workers(write_books, order):
    options = {"max_length": 16, "documents": "pack", "order": order, "windows_per_group": 3, "windows_per_shard": 12}
    one, two = (write_books(f"{workers}", workers=workers, **options) for workers in (1, 4))
    assert [file.read_bytes() for file in sorted((one.path / "data").iterdir())] == [
        file.read_bytes() for file in sorted((two.path / "data").iterdir())
    ]
    assert one.manifest.fingerprint == two.manifest.fingerprint
    lost = sorted((two.path / "data").iterdir())[1]
    lost.unlink()
    assert not write_books("4", workers=2, **options).finished_before
    assert lost.read_bytes() == (one.path / "data" / lost.name).read_bytes()


def test_documents_of_a_batch_follow_the_segments(write_books):
    path = write_books(max_length=24, documents="pack").path
    rows = slow_rows(path, "train")
    batch = next(iter(ShardLoader(path, batch_size=len(rows), shuffle="none", document_ids=True)))
    for number, row in enumerate(rows):
        sizes, rest = row["segment_lengths"], 24 - row["length"]
        documents = [document for document, size in enumerate(sizes) for _ in range(size)] + [-1] * rest
        positions = [position for size in [*sizes, rest] for position in range(size)]
        assert batch.document_ids[number].tolist() == documents
        assert batch.position_ids[number].tolist() == positions


def test_a_stride_and_a_dropped_tail_have_no_meaning():
    with pytest.raises(ConfigError, match=r"window\.stride: has no meaning with window\.documents=pack: leave it out"):
        WindowConfig(max_length=8, stride=4, documents="pack")
    assert WindowConfig(max_length=8, stride=8, documents="pack", tail="drop").tail == "pad"


def test_other_tools_read_packed_rows(write_books):
    import duckdb
    import pandas as pd
    import polars as pl

    path = write_books(max_length=16, documents="pack").path
    rows = slow_rows(path, "train")
    sizes = [row["segment_lengths"] for row in rows]
    files = f"{path}/data/train-*.parquet"
    assert duckdb.sql(f"select segment_lengths from '{files}'").fetchall() == [(one,) for one in sizes]
    assert pl.read_parquet(files)["segment_lengths"].to_list() == sizes
    assert [one.tolist() for one in pd.read_parquet(path / "data")["segment_lengths"]] == sizes
    assert pl.scan_parquet(files).select(pl.col("segment_lengths").list.sum().sum()).collect().item() == sum(
        row["length"] for row in rows
    )


def shift_lengths(lists):
    """Move a token from a document to the next one of the same window."""
    at = next(number for number, one in enumerate(lists) if len(one) > 1)
    lists[at] = [lists[at][0] - 1, lists[at][1] + 1, *lists[at][2:]]


def drop_length(lists):
    lists[0] = lists[0][:-1] or [1]


@pytest.mark.parametrize("has_store", [True, False])
@pytest.mark.parametrize(("change", "is_read"), [(shift_lengths, True), (drop_length, False)])
def test_verify_finds_wrong_segment_lengths(write_books, tmp_path, change, is_read, has_store):
    """Right hashes and checksums, as a faulty writer would leave them."""
    path = write_books(max_length=16, documents="pack", special_text="literal").path
    if not has_store:
        shutil.rmtree(tmp_path / "cache")
    manifest = read_manifest(path)
    split = manifest.splits["train"]
    file = path / split.shards[0].path
    table = pq.read_table(file)
    lists = table["segment_lengths"].to_pylist()
    change(lists)
    kind = table.schema.field("segment_lengths").type
    table = table.set_column(table.num_columns - 1, table.schema.field("segment_lengths"), pa.array(lists, kind))
    with file.open("wb") as sink, ShardWriter(sink, table.schema, compression="zstd") as writer:
        writer.write_table(table)
    start, footer = find_footer(file)
    sums = {"sha256": file.read_bytes(), "footer_sha256": footer}
    sums = {name: hashlib.sha256(part).hexdigest() for name, part in sums.items()}
    entry = dataclasses.replace(split.shards[0], bytes=file.stat().st_size, footer_start=start, **sums)
    split = dataclasses.replace(split, shards=[entry])
    write_manifest(path, dataclasses.replace(manifest, splits={"train": split}))
    assert verify_shards(path, cache_path=tmp_path / "cache").faults, change
    if not is_read:
        with pytest.raises(OSError, match="segment_lengths do not add up to the windows' lengths"):
            list(ShardLoader(path, shuffle="none"))


def test_a_window_is_shown_with_its_documents(tmp_path):
    given = sections(tokenizer="bytes", max_length=6, documents="pack", cache_path=tmp_path / "cache")
    path = write_shards(tmp_path / "shards", corpus=["abc", "fghijklmn", "de", "x"], **given).path
    dataset, store = WindowDataset(path), open_store(next((tmp_path / "cache" / "stores").iterdir()))
    shown = [find_window(read_manifest(path), dataset.reader, number, store) for number in range(len(dataset))]
    assert [one.segments for one in shown] == [[4, 2], [6], [4], [3]]
    reading = Config(shards=ShardsConfig(path=str(path)), cache=CacheConfig(path=str(tmp_path / "other")))
    located, missing = find_windows(reading, [path], [(0, number) for number in range(len(dataset))])
    assert missing == [], "the data set itself says where its documents are"
    assert [one.documents for one in located] == [
        ["texts, row 0, tokens 0-2", "texts, row 3, token 0"],
        ["texts, row 1, tokens 0-5"],
        ["texts, row 1, tokens 6-8"],
        ["texts, row 2, tokens 0-1"],
    ]
    assert "packed    2 documents: 4 + 2 tokens" in describe(shown[0], None, coloured=False)
    alone = find_window(read_manifest(path), dataset.reader, 0, None)
    assert (alone.segments, alone.documents) == ([4, 2], [])
