"""Which documents are in a window, from the data set's folder alone; and the table that says so."""

import bz2
import gzip
import hashlib
import json
import lzma
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import sections

from pipeline import (
    CorpusConfig,
    ShardLoader,
    ShardsConfig,
    SplitConfig,
    TokenizerConfig,
    WindowConfig,
    WindowDataset,
    load_tokenizer,
    locate,
    read_manifest,
    verify_shards,
    write_shards,
)
from pipeline.shards import documents as tables
from pipeline.shards.document_format import SCHEMA, escape_name, unescape_name
from pipeline.shards.format import find_footer
from pipeline.shards.manifest import write_manifest
from pipeline.tokens.store import open_store

TEXTS = [f"Document {number} says {number * number}. " * (1 + number * 7 % 11) for number in range(40)]


def write_jsonl(folder):
    (folder / "in" / "deep").mkdir(parents=True)
    lines = [json.dumps({"text": text}) + "\n" for text in TEXTS]
    (folder / "in" / "a.jsonl").write_text("".join(lines[:15]))
    with gzip.open(folder / "in" / "b.jsonl.gz", "wt") as file:
        file.writelines(["\n", *lines[15:20], '{"text": ""}\n', *lines[20:30]])
    with lzma.open(folder / "in" / "deep" / "c.jsonl.xz", "wt") as file:
        file.writelines(lines[30:])
    lines_of = {"a.jsonl": {n: n + 1 for n in range(15)}, "deep/c.jsonl.xz": {n: n - 29 for n in range(30, 40)}}
    lines_of["b.jsonl.gz"] = {n: n - 13 + (n >= 20) for n in range(15, 30)}
    return "jsonl", {name: {line: TEXTS[n] for n, line in found.items()} for name, found in lines_of.items()}


def write_texts(folder):
    known = {}
    for number, text in enumerate(TEXTS):
        name = f"{number % 3}/{number:02}.txt" + (".bz2" if number % 5 == 0 else "")
        (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        content = text.encode()
        (folder / "in" / name).write_bytes(bz2.compress(content) if name.endswith("bz2") else content)
        known[name] = {None: text}
    return "text", known


def write_parquet(folder):
    (folder / "in").mkdir()
    pq.write_table(pa.table({"text": TEXTS[:25]}), folder / "in" / "x.parquet", row_group_size=4)
    pq.write_table(pa.table({"text": TEXTS[25:]}), folder / "in" / "y.parquet", row_group_size=100)
    return "parquet", {"x.parquet": dict(enumerate(TEXTS[:25])), "y.parquet": dict(enumerate(TEXTS[25:]))}


CORPORA = {"jsonl": write_jsonl, "text": write_texts, "parquet": write_parquet}
WINDOWS = {
    "join": {"max_length": 16},
    "overlap": {"max_length": 16, "stride": 3},
    "gaps": {"max_length": 8, "stride": 20, "allow_gaps": True},
    "pad": {"max_length": 100, "tail": "pad"},
    "shuffled": {"max_length": 16, "order": "shuffled", "stride": 5},
    "separate": {"max_length": 16, "documents": "separate", "tail": "pad"},
    "separate, shuffled": {"max_length": 16, "stride": 4, "documents": "separate", "order": "shuffled"},
    "pack": {"max_length": 200, "documents": "pack"},
    "pack, shuffled": {"max_length": 60, "documents": "pack", "order": "shuffled"},
}


def written(folder, **options):
    corpus = {"corpus_path": str(folder / "in"), "cache_path": folder / "cache", "tokenizer": "bytes"}
    layout = {"windows_per_group": 7, "windows_per_shard": 14}
    return write_shards(folder / "ds", **sections(**{**corpus, **layout, **options})).path


def contained(row, part):
    """Whether a list of tokens is in another, in one piece."""
    return any(row[at : at + len(part)] == part for at in range(len(row) - len(part) + 1))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("corpus", CORPORA)
def test_the_named_tokens_of_the_named_documents_are_the_window(tmp_path, corpus, window):
    name, known = CORPORA[corpus](tmp_path)
    path = written(tmp_path, corpus=name, validation=0.3, **WINDOWS[window])
    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(tmp_path / "in")
    tokenizer, seen = load_tokenizer("bytes"), set()
    for split in ("train", "validation"):
        dataset = WindowDataset(path, split=split)
        numbers = np.random.default_rng(3).permutation(len(dataset))[:150].tolist()
        for number, documents in zip(numbers, locate(path, numbers, split=split), strict=True):
            item = dataset[number]
            row, tokens = item["input_ids"].tolist(), []
            for document in documents:
                place = document.line if name == "jsonl" else document.row
                text = known[document.file][place]
                part = tokenizer.encode(text)[document.first : document.stop]
                assert part, "a document of a window has a token in it"
                assert contained(row, part)
                tokens += part
                seen.add((document.file, place))
                assert (document.line is None) == (name != "jsonl")
                assert (document.row is None) == (name != "parquet")
            # The last target of a padded tail is among its inputs, too, and does not count as one.
            real = [token for token in row if token != tokenizer.eos]
            assert tokens == real[: len(real) - (window == "pad" and -100 in item["target_ids"])]
    assert len(seen) > 15


@pytest.mark.parametrize("group", [1, 300])
def test_packed_windows_name_their_documents_whatever_the_groups(tmp_path, monkeypatch, group):
    monkeypatch.setattr("pipeline.packing.GROUP_TOKENS", group)
    monkeypatch.setattr("pipeline.packing.GROUP_WINDOWS", (1, 8))
    monkeypatch.setattr(tables, "GROUP_ROWS", 3)
    window = WindowConfig(max_length=40, documents="pack")
    path = write_shards(tmp_path / "ds", corpus=TEXTS, tokenizer="bytes", window=window, cache=tmp_path / "cache").path
    assert read_manifest(path).windows["pack_group_tokens"] < 1000
    dataset, parts = WindowDataset(path), {number: [] for number in range(len(TEXTS))}
    for number, documents in enumerate(locate(path, range(len(dataset)))):
        row = [token for one in documents for token in TEXTS[one.row].encode()[one.first : one.stop]]
        assert row == [token for token in dataset[number]["input_ids"].tolist() if token != 256]
        for one in documents:
            parts[one.row].append((one.first, one.stop))
    for number, found in parts.items():
        assert sorted(found) == [(at, min(at + 40, len(TEXTS[number]))) for at in range(0, len(TEXTS[number]), 40)]


def test_every_window_of_a_document_in_several_segments_and_chunks_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.corpus.text.SEGMENT_BYTES", 1000, raising=False)
    text = "".join(f"{number:05} " for number in range(4000))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "one.txt").write_text(text)
    path = written(tmp_path, corpus="text", max_length=16, validation=0.25)
    for split in ("train", "validation"):
        dataset = WindowDataset(path, split=split)
        for number in range(0, len(dataset), 97):
            ((document,),) = locate(path, [number], split=split)
            row = bytes(dataset[number]["input_ids"].tolist()).decode()
            assert text[document.first : document.stop] == row
            assert (document.file, document.line, document.row) == ("one.txt", None, None)


def test_a_token_that_starts_documents_is_their_token_0(tmp_path):
    path = write_shards(
        tmp_path / "ds",
        corpus=["first", "second"],
        tokenizer=TokenizerConfig(name="bytes", bos=256),
        window=WindowConfig(max_length=4, stride=4),
        cache=tmp_path / "cache",
    ).path
    found = locate(path, range(3))
    rows = [row["input_ids"].tolist() for row in WindowDataset(path)]
    assert rows[0] == [256, *b"fir"]
    assert [(one.row, one.first, one.stop) for one in found[0]] == [(0, 0, 4)]
    assert rows[1] == [*b"st", 256, 256]
    assert [(one.row, one.first, one.stop) for one in found[1]] == [(0, 4, 6), (1, 0, 1)]


def test_texts_in_memory_and_delimited_texts_have_rows(tmp_path):
    path = write_shards(
        tmp_path / "a", corpus=["one", "two", "three"], tokenizer="bytes", window=WindowConfig(max_length=4)
    ).path
    assert [[one.row for one in documents] for documents in locate(path, [0, 1, 2])] == [[0], [1], [2]]
    (tmp_path / "t.txt").write_text("one%%two%%three")
    corpus = CorpusConfig(name="text", path=str(tmp_path / "t.txt"), delimiter="%%")
    path = write_shards(tmp_path / "b", corpus=corpus, tokenizer="bytes", window=WindowConfig(max_length=4)).path
    assert [one[0][:3] for one in locate(path, [2, 0])] == [("t.txt", None, 2), ("t.txt", None, 0)]


def test_batches_of_a_loader_and_of_a_mixture_are_located_source_by_source(tmp_path, write_books):
    paths = [write_books(name, max_length=12, stride=stride).path for name, stride in (("a", 12), ("b", 5))]
    loader = ShardLoader(paths[0], batch_size=9, drop_last=False)
    for batch in loader:
        for window, documents in zip(batch.window_ids.tolist(), locate(paths[0], batch.window_ids), strict=True):
            assert bool(documents) == (window >= 0), "a row that only fills has none"
    batch = next(iter(ShardLoader(paths, batch_size=20)))
    for source, path in enumerate(paths):
        mine = batch.window_ids[batch.source_ids == source]
        assert all(locate(path, mine))


def test_order_and_repeats_are_those_that_were_asked_for(write_books):
    path = write_books(max_length=12).path
    single = [locate(path, [number])[0] for number in range(9)]
    asked = [8, 0, 3, 3, 5]
    assert locate(path, asked) == [single[number] for number in asked]
    assert locate(path, np.array(asked)) == locate(path, tuple(asked)) == locate(path, iter(asked))
    assert locate(path, []) == []


def test_windows_and_arguments_that_make_no_sense_are_refused(write_books):
    path = write_books(max_length=12).path
    windows = len(WindowDataset(path))
    for wrong in (windows, 10**12, -2):
        with pytest.raises(IndexError, match=rf"window {wrong}: this is a split of {windows:,} windows, 0 to "):
            locate(path, [0, wrong])
    for wrong in (7, "7", [0.5], ["a"], None, [2**70]):
        with pytest.raises(ValueError, match="windows: must be window numbers"):
            locate(path, wrong)
    with pytest.raises(ValueError, match="split: must be one of train, validation"):
        locate(path, [0], split="test")
    with pytest.raises(ValueError, match="has no split 'validation'"):
        locate(path, [0], split="validation")
    with pytest.raises(ValueError, match="is not a data set"):
        locate(path / "data", [0])


# The table.


def test_a_data_set_without_the_table_names_the_key_and_gets_it_with_its_shards_kept(tmp_path, write_books):
    def write(**shards):
        return write_books(max_length=12, **shards)

    (tmp_path / "x").mkdir()
    options = sections(corpus="text", corpus_path=str(tmp_path / "books"), tokenizer="bytes", max_length=12)
    options["cache"] = str(tmp_path / "cache")

    def again(**keys):
        return write_shards(tmp_path / "ds", **{**options, "shards": ShardsConfig(**keys)})

    with_table = write().path
    bare = again(documents=False).path
    assert not (bare / "documents").exists()
    assert "documents" not in json.loads((bare / "manifest.json").read_text())["splits"]["train"]
    assert verify_shards(bare, cache_path=tmp_path / "cache").faults == []
    with pytest.raises(ValueError, match=r"shards\.documents=false.*shards\.documents=true and shards\.overwrite=true"):
        locate(bare, [0])
    assert len(list(ShardLoader(bare))) == len(list(ShardLoader(with_table)))
    assert again().finished_before, "the data set is the same with and without its table"
    shards = {file.name: file.stat().st_ino for file in (bare / "data").iterdir()}
    assert not again(overwrite=True).finished_before
    assert {file.name: file.stat().st_ino for file in (bare / "data").iterdir()} == shards
    assert locate(bare, [0]) == locate(with_table, [0])
    assert again(overwrite=True).finished_before
    assert read_manifest(bare).fingerprint == read_manifest(with_table).fingerprint
    assert again(documents=False, overwrite=True).finished_before, "a table more does no harm"


def test_the_table_changes_neither_the_fingerprint_nor_a_shard_and_stays_out_of_data(tmp_path, write_books):
    path = write_books(max_length=12, validation=0.4).path
    assert {file.name for file in (path / "documents").iterdir()} == {"train.parquet", "validation.parquet"}
    assert {file.suffix for file in (path / "data").iterdir()} == {".parquet"}
    rows = pyarrow.dataset.dataset(path / "data").count_rows()
    assert rows == sum(split.num_windows for split in read_manifest(path).splits.values())
    for name, split in read_manifest(path).splits.items():
        table = pq.read_table(path / split.documents.path)
        assert table.schema.names == ["file", "row", "first"]
        assert len(table) == split.documents.num_rows == split.num_documents, name
        content = (path / split.documents.path).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (split.documents.sha256, split.documents.bytes)


@pytest.mark.slow
def test_datasets_loads_the_folder_with_its_table(tmp_path, write_books, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    datasets = pytest.importorskip("datasets")
    path = write_books(max_length=12, validation=0.4).path
    splits = datasets.load_dataset(str(path), cache_dir=str(tmp_path / "hf"))
    assert {name: split.num_rows for name, split in splits.items()} == {
        name: split.num_windows for name, split in read_manifest(path).splits.items()
    }
    assert "file" not in splits["train"].column_names


def slow_table(store, split):
    """The table of a split as plain lists, from the token store's own documents."""
    firsts, counts = store.documents(split)
    return [list(pair) for pair in zip(firsts.tolist(), counts.tolist(), strict=True)]


@settings(max_examples=25)
@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=60),
    group=st.integers(1, 9),
    validation=st.sampled_from([0.0, 0.4]),
)
def test_any_documents_make_the_table_that_the_token_store_has(tmp_path_factory, counts, group, validation):
    folder = tmp_path_factory.mktemp("any")
    options = {"tokenizer": "bytes", "window": WindowConfig(max_length=2, tail="pad"), "cache": folder / "cache"}
    texts = ["abcdefgh"[: 1 + n % 8] * n for n in counts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "GROUP_ROWS", group)
        try:
            path = write_shards(folder / "ds", corpus=texts, split=SplitConfig(validation=validation), **options).path
        except ValueError:  # a split without text
            return
        assert verify_shards(path, cache_path=folder / "cache").faults == []
        (store,) = (folder / "cache" / "stores").iterdir()
        for name, split in read_manifest(path).splits.items():
            file = pq.ParquetFile(path / split.documents.path)
            firsts = file.read()["first"].to_pylist()
            stops = [*(first - 1 for first in firsts[1:]), split.documents.stop]
            found = [[first, stop - first] for first, stop in zip(firsts, stops, strict=True)]
            assert found == slow_table(open_store(store), name)
            sizes = [file.metadata.row_group(at).num_rows for at in range(file.metadata.num_row_groups)]
            assert sizes[:-1] == [group] * (len(sizes) - 1)
            rows = [row for one in sorted((path / "data").glob(f"{name}-*")) for row in pq.read_table(one).to_pylist()]
            for row, documents in zip(rows, locate(path, range(split.num_windows), split=name), strict=True):
                start, end = row["start"], row["start"] + row["length"]
                parts = [
                    (max(start, first) - first, min(end, stop) - first)
                    for first, stop in zip(firsts, stops, strict=True)
                    if max(start, first) < min(end, stop)
                ]
                assert [(one.first, one.stop) for one in documents] == parts


def test_only_the_row_groups_that_are_needed_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "GROUP_ROWS", 4)
    texts = [f"{number:03}" for number in range(40)]
    path = write_shards(tmp_path / "ds", corpus=texts, tokenizer="bytes", window=WindowConfig(max_length=8)).path
    read, real = [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda file, group, **more: read.append(group) or real(file, group, **more)
    )
    assert [one.row for one in locate(path, [10])[0]] == [20, 21]
    assert read == [0, 0, 5], "one of the index, one of the shards, one of the table"


def damage_table(path, change):
    file = path / "documents" / "train.parquet"
    change(file)
    return file


def flip(file, at):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "a bit of a page": lambda file: flip(file, 60),
    "a bit of the footer": lambda file: flip(file, -60),
    "cut short": lambda file: os.truncate(file, 100),
    "gone": lambda file: file.unlink(),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_refused_found_and_written_again(tmp_path, write_books, damage):
    path = write_books(max_length=12, validation=0.4).path
    intact = {file.name: file.read_bytes() for file in (path / "documents").iterdir()}
    file = damage_table(path, DAMAGES[damage])
    with pytest.raises(OSError, match=rf"{file} cannot be read: .*; write the data set again"):
        locate(path, [0])
    assert list(ShardLoader(path)), "the windows are not concerned"
    assert {fault.file for fault in verify_shards(path, cache_path=tmp_path / "cache").faults} == {
        "documents/train.parquet"
    }
    if damage == "a pipe":
        file.unlink()
    write_books(max_length=12, validation=0.4)
    if damage != "a bit of a page":  # nothing but verify reads the pages
        assert {one.name: one.read_bytes() for one in (path / "documents").iterdir()} == intact


def replace_table(path, change):
    """Put another table in place, with its right hashes in the manifest: what a faulty writer would leave."""
    manifest = read_manifest(path)
    entry = manifest.splits["train"].documents
    file = path / entry.path
    table = change(pq.read_table(file))
    pq.write_table(table.cast(SCHEMA), file, write_statistics=["first"], use_dictionary=False)
    start, footer = find_footer(file)
    new = type(entry)(
        path=entry.path,
        num_rows=len(table),
        stop=entry.stop,
        bytes=file.stat().st_size,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        footer_start=start,
        footer_sha256=hashlib.sha256(footer).hexdigest(),
    )
    object.__setattr__(manifest.splits["train"], "documents", new)
    write_manifest(path, manifest)


@pytest.mark.parametrize("has_store", [True, False])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda table: table.slice(0, len(table) - 1), "num_documents is 3"),
        (lambda table: table.slice(1), "its first document starts at token"),
        (lambda table: table.set_column(2, "first", pa.array([0, 7, 7])), "do not follow one another"),
        (lambda table: table.set_column(2, "first", pa.array([0, 6, 10**6])), "its documents end at token"),
        (lambda table: table.set_column(1, "row", pa.array([5, 6, 7])), "are not those of the token store"),
    ],
)
def test_verify_finds_tables_that_do_not_add_up(tmp_path, write_books, change, problem, has_store):
    path = write_books(max_length=12).path
    replace_table(path, change)
    if not has_store:
        shutil.rmtree(tmp_path / "cache")
    found = [fault.problem for fault in verify_shards(path, cache_path=tmp_path / "cache").faults]
    if has_store or "store" not in problem:
        assert any(problem in text for text in found), found
    else:
        assert found == []


def test_a_strange_file_beside_the_tables_is_named_and_never_removed(tmp_path, write_books):
    path = write_books(max_length=12).path
    (path / "documents" / "mine.txt").write_text("mine")
    faults = verify_shards(path, cache_path=tmp_path / "cache").faults
    assert [fault.file for fault in faults] == ["documents/mine.txt"]
    with pytest.raises(ValueError, match=r"contains 'documents/mine.txt', which is not part of a data set"):
        write_books(max_length=16, overwrite=True)
    assert (path / "documents" / "mine.txt").read_text() == "mine"


def test_a_folder_of_documents_that_is_not_ours_is_left_alone(tmp_path, write_books):
    mine = tmp_path / "shards" / "documents"
    mine.mkdir(parents=True)
    (mine / "train.parquet").write_text("mine")
    with pytest.raises(ValueError, match="contains 'documents', which is not part of a data set"):
        write_books(max_length=12)
    assert (mine / "train.parquet").read_text() == "mine"


def test_links_in_place_of_tables_are_not_written_through(tmp_path, write_books):
    path = write_books(max_length=12).path
    shutil.rmtree(path / "documents")
    (tmp_path / "elsewhere").mkdir()
    (path / "documents").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a symbolic link"):
        write_books(max_length=12)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_another_data_set_replaces_the_tables_or_removes_them(tmp_path, write_books):
    path = write_books(max_length=12, validation=0.4).path
    write_books(max_length=16, overwrite=True)
    assert [file.name for file in (path / "documents").iterdir()] == ["train.parquet"]
    assert locate(path, [0])
    assert verify_shards(path, cache_path=tmp_path / "cache").faults == []
    options = sections(corpus="text", corpus_path=str(tmp_path / "books"), tokenizer="bytes", max_length=20)
    options |= {"cache": str(tmp_path / "cache"), "shards": ShardsConfig(documents=False, overwrite=True)}
    write_shards(path, **options)
    assert not (path / "documents").exists()
    assert verify_shards(path, cache_path=tmp_path / "cache").faults == []


@settings(max_examples=30)
@given(st.text(max_size=20))
def test_any_file_name_comes_back_as_it_was(text):
    name = text.encode("utf-8", "replace").decode() + os.fsdecode(b"\xff\xe4")
    stored = escape_name(name)
    assert stored.encode("utf-8")
    assert unescape_name(stored) == name


def test_a_corpus_file_whose_name_is_not_utf_8_is_named_as_the_system_names_it(tmp_path):
    (tmp_path / "in").mkdir()
    name = os.fsdecode(b"caf\xe9.txt")
    try:
        (tmp_path / "in" / name).write_text("some text " * 9)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    path = written(tmp_path, corpus="text", max_length=16)
    ((document,),) = locate(path, [0])
    assert document.file == name
