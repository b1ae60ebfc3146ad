"""Corpora: every format gives the same documents, wherever a file is cut, and each bad input has its own outcome."""

import bz2
import glob
import gzip
import hashlib
import importlib.util
import io
import json
import logging
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT, divide_small_files, run_program, sections

from pipeline import plan_shards, read_manifest, write_shards
from pipeline.base.cut_points import safe_cuts
from pipeline.corpus import compression, delimited, huggingface, parquet, partitions, reader
from pipeline.corpus import text as text_reader
from pipeline.corpus.compression import read_blocks
from pipeline.corpus.corpora import find_partitions
from pipeline.corpus.download import HttpsOnly, read_slowly
from pipeline.corpus.files import find_files, mark_as_cache
from pipeline.corpus.reader import read_partition
from pipeline.executor.local import LocalExecutor
from pipeline.rules import ConfigError
from pipeline.settings import CorpusConfig, SplitConfig
from pipeline.tokenizer.load import load_tokenizer
from pipeline.tokens import encode
from pipeline.tokens.encode import tokenize
from pipeline.tokens.store import open_store

TEXTS = [f"Document {n}: {'naïve cafés, ' * (n % 7)}and {n * 37} cats.\r\n\tEnd {'x' * n}" for n in range(120)]
TEXTS[17] = "\ufeff starts with a mark, has \u2028 and \x00 and \U0001f642"
PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}


@pytest.fixture
def tiny(monkeypatch):
    """Partitions, batches and blocks of a few hundred bytes, so that small files are cut as large ones are."""

    def shrink(partition_bytes=2000, batch_bytes=300):
        for module in (partitions, parquet, huggingface):
            monkeypatch.setattr(module, "PARTITION_BYTES", partition_bytes)
        for module in (text_reader, delimited, parquet, huggingface):
            monkeypatch.setattr(module, "BATCH_BYTES", batch_bytes)
        for module in (text_reader, partitions, encode):
            monkeypatch.setattr(module, "KEY_BYTES", 64)
        monkeypatch.setattr(partitions, "SMALL_BYTES", partition_bytes // 4)
        divide_small_files(monkeypatch, 8)
        monkeypatch.setattr(compression, "BLOCK_BYTES", 128)
        monkeypatch.setattr(compression, "RAW_BYTES", 128)

    return shrink


def find(corpus, path, cache, *, cut_safe=True, workers=2, **more):
    section = CorpusConfig(name=corpus, path=path, **more)
    return find_partitions(section, cache=cache, cut_safe=cut_safe, workers=workers).partitions


def read_all(corpus, path, *, on_bad="quarantine", max_document_bytes=None, cut_safe=True, **more):
    """Every document's text and location, and every rejected one; segments joined again."""
    texts, bad = [], []
    for partition in find(corpus, path, Path("none"), cut_safe=cut_safe, **more):
        is_open = partition.start > 0 and partition.is_segment
        for batch in read_partition(partition, max_document_bytes=max_document_bytes, on_bad=on_bad, cut_safe=cut_safe):
            bad += batch.rejected
            if batch.rollback and is_open:
                texts.pop()
            for text, source, row in zip(batch.texts.to_pylist(), batch.sources, batch.rows, strict=True):
                if batch.key and is_open:
                    texts[-1] = (texts[-1][0] + text, *texts[-1][1:])
                else:
                    texts.append((text, partition.names[source], int(row)))
            is_open = bool(batch.key) and batch.continues
    return texts, bad


def make_store(
    corpus, path, cache, *, tokenizer="bytes", workers=2, validation=0.0, engine="auto", audit=0.001, **more
):
    """A token store, and for each split its IDs and its documents' first tokens and counts."""
    encoder = load_tokenizer(tokenizer, engine=engine)
    inputs = find(corpus, path, cache, cut_safe=encoder.cut_safe, workers=workers, **more)
    store, origins = tokenize(
        inputs,
        cache=cache,
        tokenizer=encoder,
        corpus=CorpusConfig(max_bad_fraction=1.0),
        split=SplitConfig(validation=validation),
        audit=audit,
        executor=LocalExecutor(workers),
        advance=lambda _: None,
    )
    return store, origins["made"] + origins["mended"]


def hash_ids(store, split="train"):
    stream = store.stream(split)
    firsts, counts = store.documents(split)
    return hashlib.sha256(stream.read(0, len(stream)).tobytes() + firsts.tobytes() + counts.tobytes()).hexdigest()


def write_corpus(folder, kind, packing=""):
    """The documents of TEXTS in one format; returns the corpus's name and path."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "text":
        for number, text in enumerate(TEXTS):
            (folder / f"{number:04}.txt{packing}").write_bytes(PACK[packing](text.encode()))
        return "text", folder
    if kind == "jsonl":
        lines = "".join(json.dumps({"id": n, "text": t}, ensure_ascii=n % 2 == 0) + "\n" for n, t in enumerate(TEXTS))
        path = folder / f"lines.jsonl{packing}"
        path.write_bytes(PACK[packing](lines.encode()))
        return "jsonl", path
    if kind.startswith("parquet"):
        types = {
            "parquet": pa.string(),
            "parquet-dictionary": pa.dictionary(pa.int32(), pa.string()),
            "parquet-binary": pa.binary(),
        }
        values = [t.encode() for t in TEXTS] if kind == "parquet-binary" else TEXTS
        column = pa.array(values, pa.string() if "dictionary" in kind else types[kind])
        table = pa.table({"n": range(len(TEXTS)), "text": column.cast(types[kind])})
        pq.write_table(table, folder / "rows.parquet", row_group_size=17, compression=packing or "none")
        return "parquet", folder
    import datasets

    data = datasets.Dataset.from_dict({"text": TEXTS})
    if kind == "saved":
        data.save_to_disk(str(folder / "saved"))
        return "huggingface", folder / "saved"
    data.to_parquet(str(folder / "train.parquet"))
    return "huggingface", folder


FORMATS = [
    *[("text", packing) for packing in PACK],
    *[("jsonl", packing) for packing in PACK],
    *[("parquet", codec) for codec in ("", "zstd", "snappy", "gzip")],
    ("parquet-dictionary", "zstd"),
    ("parquet-binary", ""),
    ("saved", ""),
    ("folder", ""),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "packing"), FORMATS)
@pytest.mark.filterwarnings("default")  # datasets and what it imports warn of their own affairs
def test_every_format_and_compression_gives_the_same_ids(kind, packing, tmp_path, tiny, monkeypatch):
    if kind in ("saved", "folder"):
        pytest.importorskip("datasets")
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    tiny()
    store, _ = make_store(*write_corpus(tmp_path / "in", kind, packing), tmp_path / "cache")
    ids = b"\0".join(text.encode() for text in TEXTS)
    stream = store.stream("train").read(0, len(store.stream("train")))
    assert np.where(stream == 256, 0, stream).astype(np.uint8).tobytes() == ids
    firsts, counts = store.documents("train")
    assert counts.tolist() == [len(text.encode()) for text in TEXTS]
    assert firsts.tolist() == (np.cumsum(counts + 1) - counts - 1).tolist()
    assert len(store.chunks) > 1 or packing in PACK, "cut, unless it is packed"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_any_number_of_workers_and_a_second_run_give_the_same_bytes(kind, tmp_path, tiny):
    tiny()
    corpus, path = write_corpus(tmp_path / "in", kind)
    first, made = make_store(corpus, path, tmp_path / "one", workers=1, validation=0.3)
    assert made == len(first.chunks) > 2
    for workers in (2, 5):
        again, _ = make_store(corpus, path, tmp_path / str(workers), workers=workers, validation=0.3)
        assert again.chunks == first.chunks
        for file in (tmp_path / "one" / "chunks").rglob("*.*"):
            copy = tmp_path / str(workers) / file.relative_to(tmp_path / "one")
            assert copy.is_dir() if file.is_dir() else copy.read_bytes() == file.read_bytes()
    assert make_store(corpus, path, tmp_path / "one", validation=0.3)[1] == 0


def test_each_document_is_known_by_its_source_and_line(tmp_path, tiny):
    tiny()
    _, path = write_corpus(tmp_path, "jsonl")
    (tmp_path / "more.jsonl").write_text('\n{"text": "one"}\n\n{"text": "two"}')
    found, bad = read_all("jsonl", tmp_path)
    assert not bad
    assert [row for _, name, row in found if name == path.name] == list(range(len(TEXTS)))
    assert [(text, row) for text, name, row in found if name == "more.jsonl"] == [("one", 1), ("two", 3)]


@pytest.mark.slow
@settings(max_examples=30)
@given(
    parts=st.lists(
        st.sampled_from(["word", " ", "  ", "\n", "\u3000", "\xa0", "漢字", "é", ".", "42", "'s", "\x1c "]), max_size=80
    ),
    sizes=st.tuples(st.integers(8, 200), st.integers(1, 60)),
)
def test_a_text_that_is_cut_anywhere_it_may_be_encodes_as_the_whole(parts, sizes, tmp_path_factory):
    text = "".join(parts) * 3
    folder = tmp_path_factory.mktemp("cut")
    (folder / "long.txt").write_text(text, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "PARTITION_BYTES", sizes[0])
        patch.setattr(partitions, "SMALL_BYTES", 1)
        patch.setattr(text_reader, "BATCH_BYTES", sizes[1])
        patch.setattr(compression, "BLOCK_BYTES", 16)
        patch.setattr(compression, "RAW_BYTES", 16)
        for module in (text_reader, partitions, encode):
            patch.setattr(module, "KEY_BYTES", 1)
        found, bad = read_all("text", folder)
        assert [one[0] for one in found] == ([] if not text or text.isspace() else [text])
        assert not bad
        if not found:
            return
        for engine in ("tiktoken", "auto"):
            store, _ = make_store(
                "text", folder, folder / engine, tokenizer="gpt2", engine=engine, validation=0.0, audit=1.0
            )
            encoder = load_tokenizer("gpt2", engine="tiktoken")
            assert (
                store.stream("train").read(0, len(store.stream("train"))).tolist()
                == encoder.encode_batch([text])[0].tolist()
            )
            assert store.documents("train")[0].tolist() == [0]
            assert store.num_documents == 1


def test_a_long_text_is_cut_only_if_the_tokenizer_allows_it(tmp_path, tiny):
    tiny()
    (tmp_path / "long.txt").write_text("many words in a row " * 1000)
    assert len(find("text", tmp_path, tmp_path)) > 5
    assert len(find("text", tmp_path, tmp_path, cut_safe=False)) == 1
    ((text, _, _),), _ = read_all("text", tmp_path, cut_safe=False)
    assert text == "many words in a row " * 1000


def test_where_a_text_may_be_cut_by_eye():
    assert list(safe_cuts(b"a b  c \n d")) == [1, 3, 6]
    assert list(safe_cuts("é x\u3000 y\xa0 z漢 w".encode())) == [2, 16]
    assert list(safe_cuts(b"\xff a \xe6\xbc b")) == [3]


def test_a_cut_document_lies_in_one_split_and_counts_once(tmp_path, tiny):
    tiny()
    for number in range(12):
        (tmp_path / f"{number:02}.txt").write_text(f"{number} says so again and again. " * (300 if number % 2 else 3))
    whole, _ = make_store("text", tmp_path, tmp_path / "cache", validation=0.5)
    tiny(partition_bytes=10**6, batch_bytes=10**6)
    uncut, _ = make_store("text", tmp_path, tmp_path / "other", validation=0.5)
    assert len(whole.chunks) > len(uncut.chunks)
    for split in ("train", "validation"):
        assert hash_ids(whole, split) == hash_ids(uncut, split)
        assert 0 < len(whole.documents(split)[0]) < 12
    assert whole.num_documents == uncut.num_documents == 12


def test_one_long_document_gives_its_last_part_to_validation(tmp_path, tiny):
    tiny()
    (tmp_path / "long.txt").write_text(" ".join(map(str, range(3000))))
    store, _ = make_store("text", tmp_path, tmp_path / "cache", validation=0.25)
    train, validation = (store.stream(split).read(0, len(store.stream(split))) for split in ("train", "validation"))
    assert bytes([*train.astype(np.uint8), *validation.astype(np.uint8)]).decode() == " ".join(map(str, range(3000)))
    assert len(validation) == round((len(train) + len(validation)) * 0.25)


def test_documents_are_held_out_by_their_text_in_any_format(tmp_path, tiny):
    tiny()
    by_format = [
        make_store(*write_corpus(tmp_path / kind, kind), tmp_path / "cache", validation=0.3)[0]
        for kind in ("text", "jsonl", "parquet")
    ]
    for split in ("train", "validation"):
        assert len({hash_ids(store, split) for store in by_format}) == 1
    assert 15 < len(by_format[0].documents("validation")[0]) < 60


def test_a_changed_file_redoes_its_own_chunks_alone(tmp_path, tiny):
    tiny()
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(300):
        (folder / f"{number:03}.txt").write_text(f"document {number} " * (200 if number % 50 == 7 else 3))
    chunks, made = make_store("text", folder, tmp_path / "cache")
    assert made == len(chunks.chunks) > 10
    (folder / "011.txt").write_text("grown and changed " * 10)
    assert make_store("text", folder, tmp_path / "cache")[1] == 1
    (folder / "0115.txt").write_text("new")
    assert make_store("text", folder, tmp_path / "cache")[1] <= 2, "a group, or the two that it parts one into"
    with (folder / "007.txt").open("a") as file:
        file.write("more")
    assert make_store("text", folder, tmp_path / "cache")[1] <= 2, "the last piece of a long file, or its last two"


def test_files_come_once_and_in_the_order_of_their_names(tmp_path):
    for name in ("b/2.txt", "a/10.txt", "a/9.md.gz", "c.rst.zst", "no.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = ["a/10.txt", "a/9.md.gz", "b/2.txt", "c.rst.zst"]
    assert [name for _, name, _ in find_files([str(tmp_path)], (".txt", ".md", ".rst")).files] == names
    doubled = [str(tmp_path / "b" / "2.txt"), str(tmp_path), str(tmp_path / "**" / "*.gz")]
    assert [name for _, name, _ in find_files(doubled, (".txt", ".md", ".rst")).files] == names


def names_in(*paths, suffixes=(".txt", ".md")):
    return [name for _, name, _ in find_files([str(path) for path in paths], suffixes).files]


def test_a_new_file_elsewhere_changes_no_name(tmp_path):
    for name in ("big/a/1.txt", "big/a/2.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    big = tmp_path / "big"
    assert names_in(big) == names_in(big / "**" / "*.txt") == ["a/1.txt", "a/2.txt"]
    assert names_in(big / "a" / "1.txt") == ["1.txt"]
    (big / "b").mkdir()
    (big / "b" / "x.txt").write_text("x")
    assert names_in(big) == names_in(big / "**" / "*.txt") == ["a/1.txt", "a/2.txt", "b/x.txt"]


def test_a_new_file_in_a_new_folder_redoes_no_large_file(tmp_path, tiny):
    tiny()
    (tmp_path / "big" / "a").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "big" / "a" / f"{number}.txt").write_text(f"many words of {number} " * 50)
    assert make_store("text", tmp_path / "big", tmp_path / "cache")[1] == 3
    (tmp_path / "big" / "b").mkdir()
    (tmp_path / "big" / "b" / "x.txt").write_text("new")
    assert make_store("text", tmp_path / "big", tmp_path / "cache")[1] == 1


def test_files_of_one_name_in_two_folders_are_told_apart(tmp_path):
    for name in ("x/data/1.txt", "y/data/1.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    assert names_in(tmp_path / "x" / "data", tmp_path / "y" / "data") == ["x/data/1.txt", "y/data/1.txt"]
    assert names_in(tmp_path / "x" / "data", tmp_path / "y" / "data" / "*.txt") == ["x/data/1.txt", "y/data/1.txt"]


def test_links_are_followed_once_and_capital_letters_read(tmp_path):
    folder, other = tmp_path / "in", tmp_path / "other"
    (folder / "sub").mkdir(parents=True)
    other.mkdir()
    (folder / "UPPER.TXT").write_text("u")
    (folder / "packed.TXT.GZ").write_bytes(gzip.compress(b"p"))
    (other / "far.txt").write_text("f")
    (folder / "linked").symlink_to(other)
    (folder / "linked-again").symlink_to(other)
    (folder / "sub" / "round").symlink_to(folder)
    (folder / "z.txt").symlink_to(folder / "UPPER.TXT")
    (folder / "blob.txt.gz").symlink_to(tmp_path / "blob")
    (tmp_path / "blob").write_bytes(gzip.compress(b"b"))
    names = ["UPPER.TXT", "blob.txt.gz", "linked/far.txt", "packed.TXT.GZ"]
    assert names_in(folder) == names
    assert [text for text, _, _ in read_all("text", folder)[0]] == ["u", "b", "f", "p"]


def test_a_name_of_a_text_that_is_no_file_is_refused(tmp_path):
    for make in (lambda place: place.symlink_to("nowhere"), os.mkfifo, lambda place: place.symlink_to(place.name)):
        place = tmp_path / "odd.txt"
        make(place)
        for path in (tmp_path, tmp_path / "*.txt"):
            with pytest.raises(ValueError, match=r"corpus\.path: .*odd\.txt is (a link to nothing|not a regular)"):
                names_in(path)
        place.unlink()


def test_any_bytes_may_be_a_files_name(tmp_path):
    odd = [os.fsdecode(b"caf\xe9.jsonl"), "two\nlines | `a`.jsonl"]
    (tmp_path / "in").mkdir()
    for name in odd:
        (tmp_path / "in" / name).write_text('{"text": 5}\n' + '{"text": "a line of text"}\n' * 200)
    report = write_shards(
        tmp_path / "shards",
        **sections(
            cache_path=tmp_path / "cache",
            corpus="jsonl",
            corpus_path=[str(tmp_path / "in" / name) for name in odd],
            tokenizer="bytes",
            max_length=8,
        ),
    )
    assert read_manifest(report.path).config["corpus"]["path"] == odd
    lines = (report.path / "quarantine.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["source"] for line in lines) == sorted(odd)
    (store,) = (tmp_path / "cache" / "stores").iterdir()
    assert sorted({name for names in open_store(store).names for name in names}) == sorted(odd)
    (row,) = [line for line in (report.path / "README.md").read_text().splitlines() if line.startswith("| sources")]
    assert row == r"| sources | 2: `caf\udce9.jsonl`, `two\nlines \| 'a'.jsonl` |"


def test_a_path_that_the_system_refuses_is_named_with_its_key(tmp_path):
    with pytest.raises(ValueError, match=r"corpus\.path='.*a\.txt': cannot be read: File name too long"):
        names_in(tmp_path / ("x" * 300) / "a.txt")


@pytest.mark.parametrize("packing", [suffix for suffix in PACK if suffix])
def test_packed_files_of_several_streams_give_all_of_them(packing, tmp_path):
    path = tmp_path / f"two{packing}"
    path.write_bytes(PACK[packing](b"first " * 1000) + PACK[packing](b"second"))
    assert b"".join(read_blocks(path)) == b"first " * 1000 + b"second"
    path.write_bytes(PACK[packing](b""))
    assert b"".join(read_blocks(path)) == b""


@pytest.mark.parametrize("packing", [suffix for suffix in PACK if suffix])
@settings(max_examples=25)
@given(data=st.data())
def test_a_packed_file_that_is_cut_short_anywhere_is_an_error_with_its_byte(packing, data, tmp_path_factory):
    content = PACK[packing](bytes(range(256)) * 300)
    place = data.draw(st.integers(0, len(content) - 1))
    path = tmp_path_factory.getbasetemp() / f"short{packing}"
    path.write_bytes(content[:place])
    with pytest.raises(ValueError, match=rf"short\{packing}: truncated: it ends at byte {place}"):
        list(read_blocks(path))


@pytest.mark.parametrize("packing", [suffix for suffix in PACK if suffix])
def test_what_follows_a_packed_stream_is_read_or_refused(packing, tmp_path):
    """The standard library passes over such a rest for bzip2 and xz: a second part with a broken head would be lost."""
    path = tmp_path / f"rest{packing}"
    path.write_bytes(PACK[packing](b"text") + b"rest that is no stream")
    with pytest.raises(ValueError, match=r"rest.*damaged.* between byte 0 and byte"):
        list(read_blocks(path))
    (tmp_path / f"plain{packing}").write_bytes(b"not packed at all, in spite of its name")
    with pytest.raises(ValueError, match=r"plain.*damaged"):
        list(read_blocks(tmp_path / f"plain{packing}"))


def test_a_file_that_changes_during_the_run_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    (split,) = find("text", path, tmp_path)
    path.write_text("after that")
    with pytest.raises(ValueError, match=r"a\.txt: was changed while this run was reading it; run again"):
        list(read_partition(split, max_document_bytes=None, on_bad="raise", cut_safe=True))


def parquet_of(**columns):
    def write(path):
        pq.write_table(pa.table(columns), path)

    return write


def damaged_parquet(path):
    pq.write_table(
        pa.table({"text": ["a page of text " * 50] * 50}),
        path,
        compression="none",
        write_page_checksum=True,
        use_dictionary=False,
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


LONG = b"long words " * 200
# Each: the corpus, the file's name, its content beside a good document; then the reason under which it is counted and
# its place, or None where the input is an error whatever `on_bad` says; and what the message holds.
BAD = {
    "text: bytes that are no UTF-8": (
        "text",
        "b.txt",
        b"fine until \xff here",
        "not_utf8",
        "",
        r"byte 11 \(0xff\) is not UTF-8",
    ),
    "text: a character that is cut": (
        "text",
        "b.txt",
        "caf\u00e9".encode()[:-1],
        "not_utf8",
        "",
        "unexpected end of data",
    ),
    "text: UTF-16": ("text", "b.txt", "text".encode("utf-16"), "not_utf8", "", r"byte 0 \(0xff\).*: it is UTF-16"),
    "text: an encoded surrogate": ("text", "b.txt", b"a\xed\xa0\x80", "not_utf8", "", "byte 1"),
    "text: too long": (
        "text",
        "b.txt",
        LONG * 3,
        "too_long",
        "",
        "6600 bytes are more than corpus.max_document_bytes=2000",
    ),
    "text: packed and too long": ("text", "b.txt.gz", gzip.compress(LONG * 3), "too_long", "", "are more than"),
    "text: packed and no UTF-8": ("text", "b.txt.gz", gzip.compress(b"a\xff"), "not_utf8", "", r"byte 1 \(0xff\)"),
    "text: truncated gzip": (
        "text",
        "b.txt.gz",
        gzip.compress(LONG[:1500])[:-4],
        None,
        "",
        "truncated: it ends at byte",
    ),
    "text: damaged gzip": (
        "text",
        "b.txt.gz",
        gzip.compress(LONG[:1500])[:-8] + b"\0" * 8,
        None,
        "",
        "damaged.* between byte",
    ),
    "text: empty gzip": ("text", "b.txt.gz", b"", None, "", "truncated: it ends at byte 0"),
    "text: no gzip": ("text", "b.txt.gz", b"plain", None, "", "damaged"),
    "text: truncated bzip2": ("text", "b.txt.bz2", bz2.compress(LONG[:1500])[:-4], None, "", "truncated"),
    "text: truncated xz": ("text", "b.txt.xz", lzma.compress(LONG[:1500])[:-4], None, "", "truncated"),
    "text: truncated zstd": ("text", "b.txt.zst", PACK[".zst"](LONG[:1500])[:-4], None, "", "truncated"),
    "jsonl: no JSON": ("jsonl", "b.jsonl", b'\n{"text": "a"', "not_json", "line 2", "the line is not JSON"),
    "jsonl: two objects on a line": (
        "jsonl",
        "b.jsonl",
        b'{"text": "a"} {"text": "b"}',
        "not_json",
        "line 1",
        "Extra data",
    ),
    "jsonl: an array": ("jsonl", "b.jsonl", b'["text"]', "not_object", "line 1", "is not a JSON object, but an array"),
    "jsonl: a string": ("jsonl", "b.jsonl", b'"text"', "not_object", "line 1", "but a string"),
    "jsonl: null alone": ("jsonl", "b.jsonl", b"null", "not_object", "line 1", "but null"),
    "jsonl: no such field": ("jsonl", "b.jsonl", b'{"body": "a"}', "missing", "line 1", "corpus.text_field.*'body'"),
    "jsonl: a number": ("jsonl", "b.jsonl", b'{"text": 5}', "not_string", "line 1", "is a number, not a string"),
    "jsonl: nested text": ("jsonl", "b.jsonl", b'{"text": {"text": "a"}}', "not_string", "line 1", "is an object"),
    "jsonl: the field twice": (
        "jsonl",
        "b.jsonl",
        b'{"text": "a", "text": "b"}',
        "duplicate",
        "line 1",
        "occurs 2 times",
    ),
    "jsonl: half a surrogate pair": (
        "jsonl",
        "b.jsonl",
        b'{"text": "a\\ud800"}',
        "not_unicode",
        "line 1",
        "at character 1",
    ),
    "jsonl: no UTF-8": ("jsonl", "b.jsonl", b'\r\n{"text": "a\xff"}', "not_utf8", "line 2", r"0xff"),
    "jsonl: a control character": ("jsonl", "b.jsonl", b'{"text": "a\x01"}', "not_json", "line 1", "control character"),
    "jsonl: too long": ("jsonl", "b.jsonl", b'{"text": "' + LONG + b'"}', "too_long", "line 1", "2200 bytes are more"),
    "jsonl: truncated": ("jsonl", "b.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9)[:-9], None, "", "truncated"),
    "parquet: no UTF-8": ("parquet", "b.parquet", parquet_of(text=[b"a", b"a\xff"]), "not_utf8", "row 1", "byte 1"),
    "parquet: too long": ("parquet", "b.parquet", parquet_of(text=["x" * 3000]), "too_long", "row 0", "3000 bytes"),
    "parquet: no such column": (
        "parquet",
        "b.parquet",
        parquet_of(body=["a"]),
        None,
        "",
        r"'text'.* does not exist; the columns are body",
    ),
    "parquet: two columns of that name": (
        "parquet",
        "b.parquet",
        lambda path: pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, ["text", "text"]), path),
        None,
        "",
        r"'text'.* exists 2 times, .*; the columns are text \(string\), text",
    ),
    "parquet: numbers": ("parquet", "b.parquet", parquet_of(text=[1]), None, "", "the type int64, which is not text"),
    "parquet: truncated": ("parquet", "b.parquet", b"PAR1 and no more", None, "", "is not a complete Parquet file"),
    "parquet: a flipped bit": ("parquet", "b.parquet", damaged_parquet, None, "", "cannot be read after row"),
}


@pytest.mark.parametrize("case", BAD)
def test_each_bad_input_has_its_outcome(case, tmp_path):
    corpus, name, content, reason, place, message = BAD[case]
    good = {"text": ("a.txt", b"good"), "jsonl": ("a.jsonl", b'{"text": "good"}\n')}
    if corpus == "parquet":
        pq.write_table(pa.table({"text": ["good"]}), tmp_path / "a.parquet")
    else:
        (tmp_path / good[corpus][0]).write_bytes(good[corpus][1])
    content(tmp_path / name) if callable(content) else (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as refusal:
        read_all(corpus, tmp_path, on_bad="raise", max_document_bytes=2000)
    assert name in str(refusal.value)
    if reason is None:
        with pytest.raises(ValueError, match=message):
            read_all(corpus, tmp_path, max_document_bytes=2000)
        return
    assert f"{name}, {place}: {reason}" in str(refusal.value) or (
        not place and f"{name}: {reason}" in str(refusal.value)
    )
    assert "corpus.on_bad=quarantine" in str(refusal.value)
    texts, bad = read_all(corpus, tmp_path, max_document_bytes=2000)
    assert "good" in [text for text, _, _ in texts]
    assert [(one.source, one.location, one.reason) for one in bad] == [(name, place, reason)]


def test_a_long_text_that_proves_to_be_bad_late_is_left_out_as_a_whole(tmp_path, tiny):
    tiny()
    content = b"many good words " * 500 + b"\xff" + b" more words" * 500
    (tmp_path / "bad.txt").write_bytes(content)
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(content))
    (tmp_path / "good.txt").write_text("good " * 100)
    store, _ = make_store("text", tmp_path, tmp_path / "cache")
    assert store.num_documents == 1
    assert len(store.stream("train")) == 500
    assert [chunk.bad for chunk in store.chunks if chunk.bad] == [{"not_utf8": 1}] * 2
    assert sum(chunk.bytes for chunk in store.chunks) == 500
    _, bad = read_all("text", tmp_path)
    assert {one.detail for one in bad} == {"byte 8000 (0xff) is not UTF-8: invalid start byte"}


def test_a_line_without_end_is_given_up_and_the_next_one_read(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "MAX_BUFFERED_BYTES", 1000)
    monkeypatch.setattr(compression, "BLOCK_BYTES", 256)
    monkeypatch.setattr(compression, "RAW_BYTES", 256)
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "a"}\n{"text": "' + b"x" * 5000 + b'"}\n{"text": "b"}\n' + b"y" * 3000
    )
    texts, bad = read_all("jsonl", tmp_path)
    assert [(text, row) for text, _, row in texts] == [("a", 0), ("b", 2)]
    assert [(one.location, one.reason, one.head[:3]) for one in bad] == [
        ("line 2", "too_long", b'{"t'),
        ("line 4", "too_long", b"yyy"),
    ]


@pytest.mark.parametrize("on_bad", ["quarantine", "raise"])
def test_a_text_that_cannot_be_cut_for_long_somewhere_late_is_left_out_as_a_whole(tmp_path, tiny, monkeypatch, on_bad):
    """A genome, base64: the file is cut where it can be, and a later part of it has no place to cut."""
    tiny()
    for module in (reader, text_reader, partitions):
        monkeypatch.setattr(module, "MAX_BUFFERED_BYTES", 8000)
    monkeypatch.setattr(partitions, "BATCH_BYTES", 300)
    (tmp_path / "genome.txt").write_text("words " * 1000 + "ACGT" * 5000)
    (tmp_path / "good.txt").write_text("words " * 1000 + "ACGT" * 1500)
    if on_bad == "raise":
        with pytest.raises(ValueError, match=r"genome.txt: too_long: .* without an ASCII space to cut at"):
            read_all("text", tmp_path, on_bad="raise")
        return
    texts, bad = read_all("text", tmp_path)
    assert [(text, name) for text, name, _ in texts] == [("words " * 1000 + "ACGT" * 1500, "good.txt")]
    assert [(one.source, one.reason) for one in bad] == [("genome.txt", "too_long")]
    parts = find("text", tmp_path / "good.txt", Path("none"))
    assert len(parts) > 1, "what fits into memory is still cut"


def test_what_is_bad_comes_in_the_order_of_the_files(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"bad \xff")
    (tmp_path / "b.txt").write_text("y" * 3000)
    (tmp_path / "c.txt").write_text("fine text")
    _, bad = read_all("text", tmp_path, max_document_bytes=1000)
    assert [one.source for one in bad] == ["a.txt", "b.txt"]
    with pytest.raises(ValueError, match=r"a.txt: not_utf8"):
        read_all("text", tmp_path, max_document_bytes=1000, on_bad="raise")


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_byte_order_mark_may_lie_across_blocks(tmp_path, cut):
    content = b'\xef\xbb\xbf{"text": "first"}\n{"text": "second"}\n'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content[:cut]) + gzip.compress(content[cut:]))
    texts, bad = read_all("jsonl", tmp_path)
    assert ([text for text, _, _ in texts], bad) == (["first", "second"], [])


def test_a_changed_data_set_is_read_anew_in_the_same_process(tmp_path):
    datasets = pytest.importorskip("datasets")
    for rows in (["first version"] * 3, ["another", "one"]):
        datasets.Dataset.from_dict({"text": rows}).save_to_disk(tmp_path / "set")
        texts, _ = read_all("huggingface", tmp_path / "set")
        assert [text for text, _, _ in texts] == rows


def test_a_place_in_a_later_piece_says_from_where_it_counts(tmp_path, tiny):
    tiny()
    (tmp_path / "long.txt").write_text("plain words " * 400 + "<|endoftext|>" + " and more" * 100)
    encoder = load_tokenizer("bytes", special_text="error")
    with pytest.raises(
        ValueError, match=r"at character \d+, .*Positions count from byte \d+, where a segment starts"
    ) as refusal:
        tokenize(
            find("text", tmp_path, tmp_path / "cache"),
            cache=tmp_path / "cache",
            tokenizer=encoder,
            corpus=CorpusConfig(max_bad_fraction=1.0),
            split=SplitConfig(),
            audit=0.0,
            executor=LocalExecutor(1),
            advance=lambda _: None,
        )
    place, before = map(int, re.search(r"character (\d+).*from byte (\d+)", str(refusal.value)).groups())
    assert place + before == 12 * 400


@pytest.mark.parametrize("name", ["~notes.txt", "~nosuchuser/x.txt"])
def test_a_tilde_that_is_no_users_is_part_of_the_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
    (found,) = find_files([name], (".txt",)).files
    assert (found.path, found.name) == (str(tmp_path / name), Path(name).name)


def test_a_web_sites_manifest_hides_nothing(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "manifest.json").write_text('{"name": "a site", "fingerprint": "abc", "format_version": 1}')
    (tmp_path / "site" / "a.txt").write_text("some text")
    for path in (tmp_path, tmp_path / "**" / "*.txt"):
        assert [name for _, name, _ in find_files([str(path)], (".txt",)).files] == ["site/a.txt"]


GLOBS = ["**/*.txt", "**", "*/**/b.txt", "a/**", "**/c/**/*.txt", "**/.hidden/*.txt", "**/[ab].txt", "a/**/**/b.txt"]


@pytest.mark.parametrize("pattern", GLOBS)
def test_a_glob_of_any_depth_names_what_pythons_glob_names(tmp_path, pattern):
    for name in ("a.txt", "a/b.txt", "a/c/b.txt", "a/c/d/a.txt", "c/x.txt", "c/c/b.txt", ".hidden/h.txt", "a/.b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = glob.glob(str(tmp_path / pattern), recursive=True)
    expected = {Path(name) for name in found if Path(name).is_file()}
    assert {Path(file) for file, _, _ in find_files([str(tmp_path / pattern)], (".txt",)).files} == expected


def test_links_that_lead_up_do_not_hold_a_glob_for_ever(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "t.txt").write_text("x")
    (tmp_path / "d" / "self").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "d" / "up").symlink_to("..", target_is_directory=True)
    assert [name for _, name, _ in find_files([str(tmp_path / "**" / "*.txt")], (".txt",)).files] == ["d/t.txt"]


def test_the_verdict_is_one_file(tmp_path):
    with pytest.raises(ValueError, match="corpus=the_verdict is a single file"):
        find("the_verdict", [tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path)


def test_a_line_with_a_huge_name_has_a_short_message(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"k" * 300_000: "x"}) + "\n")
    _, (bad,) = read_all("jsonl", tmp_path)
    assert bad.reason == "missing"
    assert len(bad.detail) < 200


def test_a_corpus_without_the_field_is_given_up_after_a_thousand_lines(tmp_path, tiny):
    """Few of them in each split, and none good."""
    tiny(partition_bytes=20_000)
    for number in range(40):
        (tmp_path / f"{number:02}.jsonl").write_text('{"body": "no such field"}\n' * 100 + '{"x": 1}\n' * 900)
    inputs = find("jsonl", tmp_path, tmp_path / "cache")
    done = []
    with pytest.raises(ValueError, match=r"of [0-9,]+ documents"):
        tokenize(
            inputs,
            cache=tmp_path / "cache",
            tokenizer=load_tokenizer("bytes"),
            corpus=CorpusConfig(),
            split=SplitConfig(),
            audit=0.0,
            executor=LocalExecutor(1),
            advance=done.append,
        )
    assert len(done) < len(inputs) // 2


@pytest.mark.skipif(importlib.util.find_spec("gigatoken") is None, reason="the extra `fast` is not installed")
def test_the_audit_counts_documents_and_three_begins_behind_bad_ones(tmp_path, tiny):
    tiny()
    (tmp_path / "a.txt").write_text("plain words " * 1000)
    store, _ = make_store("text", tmp_path / "a.txt", tmp_path / "cache", tokenizer="gpt2", engine="gigatoken")
    assert len(store.chunks) > 1
    assert sum(chunk.audited for chunk in store.chunks) == store.num_documents == 1
    lines = ['{"no": 1}'] * 60 + [json.dumps({"text": f"text {number}"}) for number in range(20)]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    store, _ = make_store("jsonl", tmp_path / "b.jsonl", tmp_path / "cache", tokenizer="gpt2", engine="gigatoken")
    assert sum(chunk.audited for chunk in store.chunks) >= 3 * len(store.chunks)


def test_a_zstd_window_that_is_too_large_is_named_as_what_it_is(tmp_path):
    """A frame's head that asks for 2 GiB, as of `zstd --long=31`, and an empty last block."""
    (tmp_path / "a.txt.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + b"\x01\x00\x00")
    with pytest.raises(ValueError, match=r"a.txt.zst: cannot be unpacked: .*window of more than 128 MiB"):
        read_all("text", tmp_path)


def test_an_xz_dictionary_that_is_too_large_is_refused_and_that_of_xz_9_is_read(tmp_path):
    for size, is_read in ((64 << 20, True), (128 << 20, True), (192 << 20, False)):
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": size}]
        (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"some text", filters=filters))
        if is_read:
            assert [text for text, _, _ in read_all("text", tmp_path)[0]] == ["some text"]
        else:
            with pytest.raises(ValueError, match=r"a.txt.xz: cannot be unpacked: .*dictionary .*more than 128 MiB"):
                read_all("text", tmp_path)


BLANKS = ["", " ", "\n", " \t\r\n ", "\u3000", "\x85", "\xa0\u2028", "\x1c", " " * 5000]
MARKED = ["\ufeff", "\u200b", "\x00", " \x00 ", " a ", "\u3000\u3042", " " * 5000 + "."]


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "texts"])
def test_documents_without_text_are_skipped_and_counted_by_reason(kind, tmp_path):
    texts = [*BLANKS, *MARKED]
    (tmp_path / "in").mkdir()
    if kind == "text":
        for number, text in enumerate(texts):
            (tmp_path / "in" / f"{number:02}.txt").write_bytes(text.encode())
    elif kind == "jsonl":
        (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [None, *texts]))
    elif kind == "parquet":
        pq.write_table(pa.table({"text": [None, *texts]}), tmp_path / "in" / "a.parquet")
    options = sections(cache_path=tmp_path / "cache", tokenizer="bytes", max_length=4, on_bad="raise")
    corpus = texts if kind == "texts" else CorpusConfig(name=kind, path=tmp_path / "in", on_bad="raise")
    report = write_shards(tmp_path / "ds", **options | {"corpus": corpus})
    nulls = {"null": 1} if kind in ("jsonl", "parquet") else {}
    expected = {"blank": len(BLANKS) - 1, "empty": 1, **nulls}
    assert report.skipped == report.manifest.corpus["skipped"] == expected
    assert report.manifest.corpus["documents"] == len(MARKED)
    assert report.manifest.corpus["bad"] == {}
    assert not (tmp_path / "ds" / "quarantine.jsonl").exists()
    (store,) = (tmp_path / "cache" / "stores").iterdir()
    stream = open_store(store).stream("train")
    joined = bytes(np.where(stream.read(0, len(stream)) == 256, 0xFF, stream.read(0, len(stream))).astype(np.uint8))
    assert joined == b"\xff".join(text.encode() for text in MARKED), "no separator is left of a skipped document"


@settings(max_examples=200)
@given(texts=st.lists(st.text(alphabet=" \n\t\u2003\x85\x00ab\u3042é", max_size=4), max_size=6))
def test_what_is_skipped_is_what_python_calls_space(texts, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "blank.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    found, bad = read_all("jsonl", path)
    assert {one.reason for one in bad} <= {"binary"}
    kept = [text for text in texts if text.strip() and not (text.count("\0") > 1)]
    assert [text for text, _, _ in found] == kept


def test_a_corpus_of_nothing_but_empty_documents_is_an_error_that_says_so(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": null}\n{"text": " "}\n')
    with pytest.raises(ValueError, match=r"no text: 3 documents skipped \(1 blank, 1 empty, 1 null\)"):
        make_store("jsonl", tmp_path / "a.jsonl", tmp_path / "cache")


def test_skipped_documents_are_not_counted_in_the_fraction_of_rejected_ones(tmp_path):
    lines = ['{"text": ""}'] * 900 + ['{"text": "good"}'] * 9 + ['{"text": 5}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    write = {"tokenizer": "bytes", "max_length": 4, "corpus": "jsonl", "corpus_path": tmp_path / "a.jsonl"}
    with pytest.raises(ValueError, match=r"1 of 10 documents are rejected \(1 not_string\)"):
        write_shards(tmp_path / "ds", **sections(cache_path=tmp_path / "cache", max_bad_fraction=0.05, **write))
    report = write_shards(tmp_path / "ds", **sections(cache_path=tmp_path / "cache", max_bad_fraction=0.1, **write))
    assert report.skipped == {"empty": 900}


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("corpus", ["text", "jsonl"])
def test_a_tar_archive_is_refused_as_one_however_packed(tmp_path, corpus, packing):
    suffix = {"text": ".txt", "jsonl": ".jsonl"}[corpus]
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for number in range(3):
            member = tarfile.TarInfo(f"{number}{suffix}")
            text = b'{"text": "a line"}\n' * 5000
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    (tmp_path / f"a{suffix}{packing}").write_bytes(PACK[packing](content.getvalue()))
    with pytest.raises(ValueError, match=r"is a tar archive; unpack it"):
        read_all(corpus, tmp_path)


BINARY = {
    "UTF-16 without a mark": "Hello plain world\n".encode("utf-16-le"),
    "UTF-16, big end first": "Hello plain world\n".encode("utf-16-be"),
    "zeros": b"\0" * 100,
    "a table of numbers": bytes(range(1, 100)) + b"\0" * 20,
}


@pytest.mark.parametrize("case", BINARY)
@pytest.mark.parametrize("kind", ["text", "packed", "jsonl", "parquet"])
def test_binary_data_is_rejected_with_a_reason_of_its_own(tmp_path, case, kind):
    if kind == "text":
        (tmp_path / "b.txt").write_bytes(BINARY[case])
    elif kind == "packed":
        (tmp_path / "b.txt.gz").write_bytes(gzip.compress(BINARY[case]))
    elif kind == "jsonl":
        (tmp_path / "b.jsonl").write_text(json.dumps({"text": BINARY[case].decode()}) + "\n")
    else:
        pq.write_table(pa.table({"text": [BINARY[case]]}), tmp_path / "b.parquet")
    found, (bad,) = read_all("text" if kind == "packed" else kind, tmp_path)
    assert (found, bad.reason) == ([], "binary")
    assert ("UTF-16" in bad.detail) == ("UTF-16" in case)


def test_a_long_text_that_turns_binary_late_is_left_out_completely(tmp_path, tiny):
    tiny()
    content = b"plain words " * 400 + b"\0 \0 " * 300
    for name, packed in (("a.txt", bytes), ("a.txt.gz", gzip.compress)):
        (tmp_path / name).write_bytes(packed(content))
    texts, bad = read_all("text", tmp_path)
    assert texts == []
    assert [one.reason for one in bad] == ["binary", "binary"]


def test_a_stray_zero_byte_is_still_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a page of text with one \0 in it, and a second \0 far behind it" + b" words" * 9)
    texts, bad = read_all("text", tmp_path)
    assert (len(texts), bad) == (1, [])


# What people have in hand under the name of JSON lines, and what the refusal says of it.
FORMATS_IN_HAND = {
    "gzip": (gzip.compress(b'{"text": "a"}\n'), "data compressed by gzip; rename it to end in .gz"),
    "zstd": (PACK[".zst"](b'{"text": "a"}\n'), "data compressed by zstd; rename it to end in .zst"),
    "xz": (lzma.compress(b'{"text": "a"}\n'), "data compressed by xz"),
    "bzip2": (bz2.compress(b'{"text": "a"}\n'), "data compressed by bzip2"),
    "zip": (b"PK\x03\x04" + b"x" * 60, "a zip archive; unpack it"),
    "Parquet": (b"PAR1" + b"\x15" * 60, "a Parquet file; use corpus=parquet"),
    "an array": (b' [\n {"text": "a"},\n {"text": "b"}]', "a JSON array of objects; .*one object on each line"),
    "printed JSON": (b'{\n  "text": "a"\n}\n', "JSON printed over several lines"),
    "UTF-16": ('{"text": "a"}\n'.encode("utf-16"), "UTF-16 text; convert it to UTF-8"),
    "UTF-16, no mark": ('{"text": "a"}\n'.encode("utf-16-le"), "UTF-16 text; convert it to UTF-8"),
    "HTML": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "an HTML page"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n", "a Git LFS pointer.*git lfs pull"),
}


@pytest.mark.parametrize("case", FORMATS_IN_HAND)
def test_another_format_under_the_name_of_json_lines_is_named(tmp_path, case):
    content, message = FORMATS_IN_HAND[case]
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.jsonl: is {message}"):
        read_all("jsonl", tmp_path / "a.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("case", FORMATS_IN_HAND)
def test_another_format_under_the_name_of_parquet_is_named(tmp_path, case):
    content, message = FORMATS_IN_HAND[case]
    if case == "Parquet":
        content, message = b'{"text": "a"}\n', "JSON lines; use corpus=jsonl"
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.parquet: is not a complete Parquet file: it is {message}"):
        read_all("parquet", tmp_path / "a.parquet")


def touch(folder, *names, content="x"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def test_hidden_files_of_a_folder_are_passed_over_and_those_that_are_named_are_not(tmp_path):
    touch(tmp_path, "a.txt", ".git/description.txt", "sub/.ipynb_checkpoints/b.txt", "sub/._c.txt", "sub/d.txt")
    (tmp_path / ".linked").symlink_to(tmp_path / "sub")
    (tmp_path / "sub" / ".link.txt").symlink_to(tmp_path / "a.txt")
    found = find_files([str(tmp_path)], (".txt",))
    assert [file.name for file in found.files] == ["a.txt", "sub/d.txt"]
    assert found.passed_over == {"hidden": (3, 3, ".git/description.txt")}
    assert names_in(tmp_path / ".git") == ["description.txt"]
    assert names_in(tmp_path / "sub" / "._c.txt") == ["._c.txt"]
    assert names_in(tmp_path / "sub" / ".*.txt") == ["._c.txt", ".link.txt"]


def test_files_that_a_folder_passes_over_are_counted_by_kind(tmp_path):
    touch(tmp_path, "a.txt", "b.CSV", "sub/c.csv", "d.tar.gz", "Makefile", content="four")
    found = find_files([str(tmp_path)], (".txt",))
    assert found.passed_over == {
        ".csv": (2, 8, "b.CSV"),
        ".tar.gz": (1, 4, "d.tar.gz"),
        "no ending": (1, 4, "Makefile"),
    }
    assert not find_files([str(tmp_path / "a.txt"), str(tmp_path / "*.CSV")], (".txt",)).passed_over
    both = find_files([str(tmp_path), str(tmp_path / "b.CSV")], (".txt",))
    assert both.passed_over[".csv"] == (1, 4, "sub/c.csv"), "what another path takes is not passed over"
    with pytest.raises(ValueError, match=r"has no \.md file.*, but 2 \.csv, 1 \.tar\.gz, 1 \.txt, 1 no ending; use a"):
        find_files([str(tmp_path)], (".md",))


@pytest.mark.parametrize("number", [5, 40])
def test_many_kinds_of_files_are_still_all_counted(tmp_path, number):
    touch(tmp_path, "a.txt", *(f"{kind}.x{kind}" for kind in range(number)))
    passed_over = find_files([str(tmp_path)], (".txt",)).passed_over
    assert sum(one.files for one in passed_over.values()) == number
    assert len(passed_over) == min(number, 21)


def test_the_usual_spellings_of_json_lines_and_packings_are_read(tmp_path):
    for number, name in enumerate(("a.jsonl.gz", "b.json.gz", "c.jsonl.gzip", "d.ndjson", "e.json", "f.jsonl.zstd")):
        packing = PACK.get({".gzip": ".gz", ".zstd": ".zst"}.get(Path(name).suffix, Path(name).suffix), bytes)
        (tmp_path / name).write_bytes(packing(b'{"text": "%d"}\n' % number))
    touch(tmp_path, "package.json", content='{"name": "x"}')
    touch(tmp_path, "array.json", content='[{"text": "x"}]')
    touch(tmp_path, "printed.json", content='{\n "text": "x"\n}')
    inputs = find_partitions(CorpusConfig(name="jsonl", path=tmp_path), cache=tmp_path, cut_safe=True, workers=1)
    texts, bad = read_all("jsonl", tmp_path)
    assert ([text for text, _, _ in texts], bad) == (list("012345"), [])
    assert inputs.passed_over == {".json": (3, 44, "array.json")}


def test_what_was_passed_over_is_in_the_report_the_plan_and_the_manifest(tmp_path):
    touch(tmp_path, "in/a.jsonl", content='{"text": "some text"}\n')
    touch(tmp_path, "in/b.csv", content="x,y")
    options = sections(
        cache_path=tmp_path / "cache", corpus="jsonl", corpus_path=tmp_path / "in", tokenizer="bytes", max_length=4
    )
    expected = {".csv": {"files": 1, "bytes": 3, "example": "b.csv"}}
    assert plan_shards(tmp_path / "ds", **options).passed_over == expected
    for _ in range(2):
        report = write_shards(tmp_path / "ds", **options)
        assert report.passed_over == report.manifest.corpus["passed_over"] == expected
    assert read_manifest(tmp_path / "ds").corpus["passed_over"] == expected


@pytest.mark.parametrize("mark", ["manifest", "writing", "cache", "run", "sweep"])
def test_a_folder_that_this_program_wrote_is_not_a_corpus(tmp_path, mark):
    touch(tmp_path, "a.txt", "own/b.txt", "own/data/c.txt")
    own = tmp_path / "own"
    marks = {
        "manifest": lambda: touch(
            own, "manifest.json", content=json.dumps({"fingerprint": "0" * 64, "tokenizer": {}}, indent=1)
        ),
        "writing": (own / ".writing").mkdir,
        "cache": lambda: mark_as_cache(own),
        "run": lambda: touch(own, ".hydra/hydra.yaml", content="hydra:\n  job:\n    name: stridemill\n"),
        "sweep": lambda: touch(own, "multirun.yaml", content="hydra:\n  job:\n    name: stridemill\n"),
    }
    assert names_in(tmp_path) == ["a.txt", "own/b.txt", "own/data/c.txt"]
    marks[mark]()
    assert names_in(tmp_path) == names_in(tmp_path / "**" / "*.txt") == ["a.txt"]
    assert not find_files([str(tmp_path)], (".txt",)).passed_over


def write_many(folder, kind, *, number=30, start=0, bad=True):
    """Small files and a few that are cut; each third has a document that is rejected, and an empty one."""
    folder.mkdir(parents=True, exist_ok=True)
    for at in range(start, start + number):
        lines = [
            {"text": f"file {at}, line {line} " + "word " * (at % 9)} for line in range(200 if at % 10 == 3 else 3)
        ]
        lines += [{"text": 5}, {"text": ""}] * (bad and at % 3 == 0)
        content = "".join(json.dumps(line) + "\n" for line in lines)
        if kind == "text":
            content = " ".join(str(line["text"]) for line in lines)
        packing = ".gz" if at % 7 == 1 else ""
        (folder / f"{at:03}.{ {'text': 'txt', 'jsonl': 'jsonl'}[kind] }{packing}").write_bytes(
            PACK[packing](content.encode())
        )


def describe(store):
    """All that a store says, whatever its chunks: IDs, documents with their names and rows, and what is left out."""
    documents = [
        (names[entry["source"]], *entry[["split", "row", "count"]].item())
        for names, table in zip(store.names, store.tables(), strict=True)
        for entry in table
    ]
    rejected = [json.loads(line) for line in encode.rejected_lines(store)]
    counts = [
        sum(getattr(chunk, name) for chunk in store.chunks) for name in ("characters", "bytes", "special_text_found")
    ]
    skipped = sum((Counter(chunk.skipped) for chunk in store.chunks), Counter())
    return store.id, [hash_ids(store, split) for split in store.splits()], documents, rejected, counts, skipped


def rename(folder):
    files = sorted(folder.rglob("*.*"))
    for number, file in enumerate(files):
        file.rename(file.with_name(f"{(number * 7) % len(files):03}-new{''.join(file.suffixes)}"))


def move_some(folder):
    (folder / "0").mkdir()
    for file in folder.glob("*5.*"):
        file.rename(folder / "0" / f"x{file.name}")


def copy_some(folder):
    for file in sorted(folder.glob("*3.*")):
        shutil.copy(file, folder / f"z{file.name}")


def remove_some(folder):
    for file in folder.glob("00*"):
        file.unlink()


# Each: what happens to the folder, and the corpus's path afterwards. All tokens are known already.
CHANGES = {
    "nothing": lambda folder: folder,
    "all are renamed into another order": lambda folder: (rename(folder), folder)[1],
    "the folder moves": lambda folder: folder.rename(folder.with_name("elsewhere")),
    "some move into a folder": lambda folder: (move_some(folder), folder)[1],
    "some are copied": lambda folder: (copy_some(folder), folder)[1],
    "some are gone": lambda folder: (remove_some(folder), folder)[1],
    "a list": lambda folder: sorted(folder.iterdir(), reverse=True),
    "a glob": lambda folder: folder / "*",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "validation", "change"),
    [
        *(("jsonl", 0.4, change) for change in CHANGES),
        ("text", 0.0, "some move into a folder"),
        ("text", 0.0, "a glob"),
    ],
)
def test_files_are_known_by_their_content_whatever_their_names(tmp_path, tiny, kind, validation, change):
    tiny()
    write_many(tmp_path / "in", kind)
    options = {"tokenizer": "bytes", "validation": validation}
    first, made = make_store(kind, tmp_path / "in", tmp_path / "cache", **options)
    assert made == len(first.chunks) > 5
    before = describe(first)
    path = CHANGES[change](tmp_path / "in")
    again, made = make_store(kind, path, tmp_path / "cache", **options)
    assert made == 0
    fresh, _ = make_store(kind, path, tmp_path / "fresh", **options)
    assert describe(again) == describe(fresh)
    assert (describe(again) == before) == (change in ("nothing", "the folder moves", "a list", "a glob"))
    assert describe(open_store(tmp_path / "cache" / "stores" / f"{again.id}.json")) == describe(again)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"), [("jsonl", "before"), ("text", "in the middle"), ("jsonl", "in the middle"), ("jsonl", "z after")]
)
def test_a_folder_that_is_added_costs_its_own_files_alone(tmp_path, tiny, kind, name):
    tiny()
    write_many(tmp_path / "in" / "c", kind)
    write_many(tmp_path / "in" / "web", kind, start=30)
    first, _ = make_store(kind, tmp_path / "in", tmp_path / "cache")
    write_many(tmp_path / "new", kind, start=60, number=12)
    own, _ = make_store(kind, tmp_path / "new", tmp_path / "other")
    (tmp_path / "new").rename(tmp_path / "in" / name)
    again, _ = make_store(kind, tmp_path / "in", tmp_path / "cache")
    made = {chunk.id: chunk for chunk in again.chunks if chunk.id not in {chunk.id for chunk in first.chunks}}
    assert sum(chunk.bytes for chunk in made.values()) == sum(chunk.bytes for chunk in own.chunks)
    assert describe(again) == describe(make_store(kind, tmp_path / "in", tmp_path / "fresh")[0])


def test_other_packings_fields_and_tokenizers_are_not_mistaken_for_each_other(tmp_path):
    (tmp_path / "a.txt").write_bytes(gzip.compress(b"some text", mtime=0))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"some text", mtime=0))
    store, made = make_store("text", tmp_path, tmp_path / "cache")
    assert (made, store.num_documents) == (1, 1), "one is text in a packing, the other one no text"
    assert len({*store.chunks[0].units}) == 2
    (tmp_path / "c.jsonl").write_text('{"text": "one", "body": "two"}')
    stores = [
        make_store("jsonl", tmp_path / "c.jsonl", tmp_path / "cache", **options)[0]
        for options in ({}, {"text_field": "body"}, {"tokenizer": "gpt2"})
    ]
    assert len({store.id for store in stores}) == len({store.chunks[0].id for store in stores}) == 3


def test_a_damaged_chunk_of_which_some_files_are_used_is_made_again_for_these(tmp_path, tiny):
    tiny()
    write_many(tmp_path / "in", "jsonl")
    make_store("jsonl", tmp_path / "in", tmp_path / "cache")
    remove_some(tmp_path / "in")
    again, made = make_store("jsonl", tmp_path / "in", tmp_path / "cache")
    assert made == 0
    chunk = next(chunk for chunk in again.chunks if chunk.offsets)
    with (tmp_path / "cache" / "chunks" / chunk.id / "train.npy").open("r+b") as file:
        file.seek(200)
        file.write(b"\xff\xff")
    mended, made = make_store("jsonl", tmp_path / "in", tmp_path / "cache")
    assert made == sum(one.id == chunk.id for one in again.chunks) >= 1
    assert describe(mended) == describe(again)


@pytest.mark.parametrize("damage", ["gone", "cut", "garbage"])
def test_an_index_of_files_that_is_damaged_costs_only_work(tmp_path, tiny, damage):
    tiny()
    write_many(tmp_path / "in", "text", number=12)
    make_store("text", tmp_path / "in", tmp_path / "cache")
    (index,) = (tmp_path / "cache" / "files").iterdir()
    content = index.read_bytes()
    index.write_bytes({"gone": b"", "cut": content[:100], "garbage": os.urandom(len(content))}[damage])
    rename(tmp_path / "in")
    again, made = make_store("text", tmp_path / "in", tmp_path / "cache")
    assert made > 0
    assert describe(again) == describe(make_store("text", tmp_path / "in", tmp_path / "fresh")[0])
    rename(tmp_path / "in")
    assert make_store("text", tmp_path / "in", tmp_path / "cache")[1] == 0, "it was written again"


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "text"])
def test_a_renamed_large_file_is_found_and_named_anew(tmp_path, tiny, kind):
    tiny()
    corpus, path = write_corpus(tmp_path / "in", kind)
    make_store(corpus, path, tmp_path / "cache")
    (file, *_) = sorted((tmp_path / "in").iterdir())
    file.rename(tmp_path / "in" / f"new{file.suffix}")
    again, made = make_store(corpus, tmp_path / "in", tmp_path / "cache")
    assert made == 0
    assert f"new{file.suffix}" in {name for names in again.names for name in names}
    assert file.name not in {name for names in again.names for name in names}


def test_the_quarantine_file_has_the_names_of_this_run(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"text": 5}\n' + '{"text": "good text"}\n' * 200)
    options = {"cache_path": tmp_path / "cache", "corpus": "jsonl", "tokenizer": "bytes", "max_length": 8}
    for name in ("a.jsonl", "b.jsonl"):
        path = tmp_path / "in" / name
        if name != "a.jsonl":
            (tmp_path / "in" / "a.jsonl").rename(path)
        report = write_shards(tmp_path / name, **sections(corpus_path=path, **options))
        (line,) = (tmp_path / name / "quarantine.jsonl").read_text().splitlines()
        assert json.loads(line)["source"] == name
        with pytest.raises(ValueError, match=rf"{name}, line 1: not_string: .*on_bad=quarantine"):
            write_shards(tmp_path / "other", **sections(corpus_path=path, on_bad="raise", **options))
    assert (report.chunks, report.chunks_made) == (1, 0)


NESTED = [{"a": {"text": "one"}}, {"a": {"text": None}}, {"a": None}, None, {"a": {"text": "two"}}]


@pytest.mark.parametrize("field", ["m.a.text", "m.n", "plain.dotted", "m.a"])
def test_a_dotted_path_reaches_a_nested_column_of_parquet(tmp_path, field):
    columns = {
        "m": pa.array(NESTED, pa.struct([("a", pa.struct([("text", pa.string())])), ("n", pa.null())])),
        "plain": pa.array([{"dotted": "inner"}] * 5),
        "plain.dotted": [f"outer {n}" for n in range(5)],
    }
    for order in (1, -1):
        pq.write_table(pa.table(dict([*columns.items()][::order])), tmp_path / "a.parquet")
        if field == "m.a":
            with pytest.raises(
                ValueError, match=r"'m\.a' \(corpus\.text_field\) has the type struct<.*m\.a\.text \(str"
            ):
                read_all("parquet", tmp_path, text_field=field)
            continue
        texts, bad = read_all("parquet", tmp_path, text_field=field)
        found = {"m.a.text": ["one", "two"], "m.n": [], "plain.dotted": [f"outer {n}" for n in range(5)]}[field]
        assert ([text for text, _, _ in texts], bad) == (found, [])
        if field == "m.a.text":
            assert [row for _, _, row in texts] == [0, 4]


def test_a_column_of_nulls_alone_is_read_as_nulls(tmp_path):
    pq.write_table(pa.table({"text": ["one two", "three four"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": [None, None]}), tmp_path / "b.parquet")
    write = {"corpus": "parquet", "corpus_path": tmp_path, "tokenizer": "bytes", "max_length": 4}
    report = write_shards(tmp_path / "ds", **sections(cache_path=tmp_path / "cache", **write))
    assert (report.manifest.corpus["documents"], report.skipped) == (2, {"null": 2})
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(ValueError, match=r"no text: 2 documents skipped \(2 null\)"):
        write_shards(tmp_path / "other", **sections(cache_path=tmp_path / "cache", **write))


@pytest.mark.parametrize("field", ["meta.body", "text"])
def test_datasets_reach_nested_fields_and_nulls(tmp_path, field):
    datasets = pytest.importorskip("datasets")
    columns = {"meta": [{"body": "one", "x": 1}, {"body": "two", "x": 2}], "text": [None, None]}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "set")
    texts, bad = read_all("huggingface", tmp_path / "set", text_field=field)
    assert ([text for text, _, _ in texts], bad) == ({"meta.body": ["one", "two"], "text": []}[field], [])


ENCODINGS = {
    "dictionary": {},
    "plain": {"use_dictionary": False},
    "delta": {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
    "a dictionary that ends": {"dictionary_pagesize_limit": 5000},
    "a dictionary column": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_batches_of_parquet_are_bounded_by_the_bytes_that_come_out(tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(parquet, "BATCH_BYTES", 20_000)
    monkeypatch.setattr(parquet, "MAX_DECODED_BYTES", 100_000)
    monkeypatch.setattr(parquet, "MAX_DELTA_ROWS", 8)
    texts = (
        ["word " * 1000] * 300
        + [f"{n} " * (n % 40) for n in range(2000)]
        + [None, "x" * 30_000]
        + ["other " * 900] * 50
    )
    column = pa.array(texts, pa.string())
    if encoding == "a dictionary column":
        column = column.dictionary_encode()
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet", row_group_size=1700, **ENCODINGS[encoding])
    sizes, found, decoded = [], [], []
    pick = parquet.pick_column
    monkeypatch.setattr(
        parquet, "pick_column", lambda batch, names: (decoded.append(pick(batch, names)), decoded[-1])[1]
    )
    for partition in find("parquet", tmp_path, tmp_path):
        for batch in parquet.read_parquet(partition):
            sizes.append((pa.compute.sum(pa.compute.binary_length(batch.texts)).as_py() or 0, len(batch.texts)))
            found += [None if text is None else text.decode() for text in batch.texts.to_pylist()]
    assert found == texts
    assert all(size <= 20_000 or rows == 1 for size, rows in sizes)
    assert max(one.nbytes for one in decoded) < (250_000 if encoding != "plain" else 10**6)


@pytest.mark.slow
def test_a_parquet_file_of_a_few_kilobytes_is_read_in_bounded_memory(tmp_path):
    pq.write_table(pa.table({"text": ["word " * 21_000] * 3_000}), tmp_path / "d.parquet")
    program = f"""
import resource
from pathlib import Path
from pipeline.corpus.corpora import find_partitions
from pipeline.corpus.reader import read_partition
from pipeline.settings import CorpusConfig
corpus = CorpusConfig(name="parquet", path={str(tmp_path)!r})
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for one in find_partitions(corpus, cache=Path("x"), cut_safe=True, workers=1).partitions:
    batches = read_partition(one, max_document_bytes=None, on_bad="raise", cut_safe=True)
    print(sum(len(batch.texts) for batch in batches), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    documents, peak = map(int, done.stdout.split())
    assert documents == 3000
    assert peak * (1 if sys.platform == "darwin" else 1024) < 400 << 20, "of 315 MB of text"


DELIMITERS = ["<|endoftext|>", "\n", "\n\n", "aba", "aa", "\u3042"]


@settings(max_examples=60)
@given(data=st.data(), delimiter=st.sampled_from(DELIMITERS), sizes=st.tuples(st.integers(4, 60), st.integers(1, 40)))
def test_documents_between_delimiters_are_those_of_a_split_wherever_a_file_is_cut(
    data, delimiter, sizes, tmp_path_factory
):
    parts = st.sampled_from([delimiter, delimiter[:-1], delimiter[-1:], "b", "a", "\n", " ", "word"])
    text = "".join(data.draw(st.lists(parts, max_size=40)))
    expected = text.split(delimiter)
    folder = tmp_path_factory.mktemp("cut")
    (folder / "a.txt").write_text(text, encoding="utf-8", newline="")
    (folder / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "PARTITION_BYTES", sizes[0])
        patch.setattr(partitions, "SMALL_BYTES", 1)
        patch.setattr(delimited, "BATCH_BYTES", sizes[1])
        patch.setattr(compression, "BLOCK_BYTES", 1 + sizes[1] % 7)
        patch.setattr(compression, "RAW_BYTES", 1 + sizes[1] % 7)
        for name in ("a.txt", "b.txt.gz"):
            texts, bad = read_all("text", folder / name, delimiter=delimiter)
            assert not bad
            assert [(text, row) for text, _, row in texts] == [
                (text, row) for row, text in enumerate(expected) if text.strip()
            ]


def test_a_file_with_delimiters_is_cut_and_its_documents_are_numbered(tmp_path, tiny):
    tiny()
    stories = [f"Story {n}, " + "word " * (n % 50) for n in range(300)]
    stories[40] = ""
    stories[41] = " \n"
    content = "<|endoftext|>".join([*stories, ""])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "stories.txt").write_bytes(content.encode().replace(b"Story 77,", b"Story \xff,"))
    parts = find("text", tmp_path / "in", tmp_path, delimiter="<|endoftext|>")
    assert len(parts) > 5
    texts, (bad,) = read_all("text", tmp_path / "in", delimiter="<|endoftext|>")
    assert [(text, row) for text, _, row in texts] == [
        (text, n) for n, text in enumerate(stories) if n not in (40, 41, 77)
    ]
    assert (bad.reason, bad.row, bad.location) == ("not_utf8", 77, "document 78")
    stores = []
    for workers in (1, 3):
        cache = tmp_path / str(workers)
        options = {"delimiter": "<|endoftext|>", "validation": 0.3, "workers": workers}
        store, _ = make_store("text", tmp_path / "in", cache, **options)
        assert sum(len(store.documents(split)[0]) for split in store.splits()) == store.num_documents == 297
        assert 40 < len(store.documents("validation")[0]) < 140, "held out one by one"
        stores.append(describe(store))
    assert stores[0] == stores[1]


def test_the_delimiter_of_a_command_line_may_be_a_line_feed(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    section = CorpusConfig(name="text", path=tmp_path / "a.txt", delimiter="\\n")
    options = sections(cache_path=tmp_path / "cache", tokenizer="bytes", max_length=3)
    report = write_shards(tmp_path / "ds", **options | {"corpus": section})
    assert report.manifest.corpus["documents"] == 3
    assert report.skipped == {"empty": 1}
    assert report.manifest.config["corpus"]["delimiter"] == "\n"
    for wrong in ({"name": "jsonl", "path": "x", "delimiter": "a"}, {"name": "text", "path": "x", "delimiter": ""}):
        with pytest.raises(ConfigError, match=r"^corpus\.delimiter: "):
            CorpusConfig(**wrong)


def test_a_document_without_end_is_given_up_and_the_next_one_read(tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "BLOCK_BYTES", 256)
    (tmp_path / "a.txt").write_text("first||" + "x" * 5000 + "||" + "y" * 1500 + "||last||" + "z" * 3000)
    texts, bad = read_all("text", tmp_path, delimiter="||", max_document_bytes=1000)
    assert [(text, row) for text, _, row in texts] == [("first", 0), ("last", 3)]
    assert [(one.location, one.reason, one.head[:1]) for one in bad] == [
        ("document 2", "too_long", b"x"),
        ("document 3", "too_long", b"y"),
        ("document 5", "too_long", b"z"),
    ]


class Drip(io.BytesIO):
    """A response of which a few bytes arrive each second."""

    def __init__(self, content, rate):
        super().__init__(content)
        self.rate, self.seconds = rate, 0

    def read1(self, size):
        self.seconds += 1
        return self.read(min(size, self.rate))


@pytest.mark.parametrize(
    ("size", "rate", "message"),
    [
        (10_000, 1000, None),
        (10_000, 1, "only 61 bytes arrived within 60 seconds"),
        (10_001, 1000, r"more than 10000 bytes \(corpus.max_document_bytes\)"),
        (0, 1, None),
    ],
)
def test_a_download_ends_if_it_is_too_large_or_hardly_moves(size, rate, message):
    response = Drip(b"x" * size, rate)

    def read():
        return read_slowly(response, limit=10_000, now=lambda: response.seconds)

    if message is None:
        assert read() == b"x" * size
    else:
        with pytest.raises(ValueError, match=message):
            read()


def test_a_redirect_to_http_is_refused():
    request = urllib.request.Request("https://example.org/a")
    follow = HttpsOnly().redirect_request
    assert follow(request, None, 302, "Found", {}, "https://example.org/b").full_url == "https://example.org/b"
    with pytest.raises(urllib.error.URLError, match=r"redirects to http://example.org/b, which is not https"):
        follow(request, None, 302, "Found", {}, "http://user:secret@example.org/b?token=abc")


def test_a_failed_download_names_no_secret(tmp_path):
    url = "https://user:s3cret@localhost:9/v .txt?token=abc"
    with pytest.raises(ValueError, match=r"^https://localhost:9/v .txt: the download failed: ") as refusal:
        find("the_verdict", None, tmp_path, url=url, sha256="0" * 64)
    assert "s3cret" not in str(refusal.value)
    assert "token" not in str(refusal.value)


def test_a_download_is_written_through_no_link(tmp_path, monkeypatch):
    text = b"a short story"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine.txt").write_text("mine")

    class Opener:
        def open(self, *_, **__):
            return io.BytesIO(text)

    monkeypatch.setattr(urllib.request, "build_opener", lambda *_: Opener())
    given = {"url": "https://example.org/v.txt", "sha256": hashlib.sha256(text).hexdigest()}
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "downloads").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="downloads is a symbolic link"):
        find("the_verdict", None, tmp_path / "cache", **given)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (tmp_path / "cache" / "downloads").unlink()
    (tmp_path / "cache" / "downloads").mkdir()
    for name, target in ((".the-verdict.txt.part", "mine.txt"), ("the-verdict.txt", "nowhere.txt")):
        (tmp_path / "cache" / "downloads" / name).symlink_to(tmp_path / target)
    assert find("the_verdict", None, tmp_path / "cache", **given)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "nowhere.txt").exists()
    assert [file.name for file in (tmp_path / "cache" / "downloads").iterdir()] == ["the-verdict.txt"]
    assert not (tmp_path / "cache" / "downloads" / "the-verdict.txt").is_symlink()


def test_the_log_names_a_parquet_file_before_a_page_of_it_is_read(tmp_path, monkeypatch, caplog):
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(200)]}), tmp_path / "x.parquet", row_group_size=70)
    (partition,) = find("parquet", str(tmp_path / "x.parquet"), tmp_path)
    said = []
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: said.extend(caplog.messages) or iter(()))
    with caplog.at_level(logging.INFO):
        assert list(read_partition(partition, max_document_bytes=None, on_bad="raise", cut_safe=True)) == []
    assert f"reading {tmp_path / 'x.parquet'}, row groups 0 to 2" in said


FLIP_BITS = """
import sys
import pyarrow as pa, pyarrow.parquet as pq
good = open(sys.argv[1], "rb").read()
size = int.from_bytes(good[-8:-4], "little")
for bit in range(8 * size):
    print(bit, flush=True)
    content = bytearray(good)
    content[len(good) - 8 - size + bit // 8] ^= 1 << bit % 8
    try:
        metadata = pq.ParquetFile(pa.BufferReader(bytes(content))).metadata
        [metadata.row_group(g).column(c) for g in range(metadata.num_row_groups) for c in range(metadata.num_columns)]
    except Exception:
        pass
"""


def test_a_footer_that_ends_the_process_that_reads_it_is_an_error_with_the_files_name(tmp_path):
    path, other = tmp_path / "b.parquet", tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": range(200), "text": [f"text {n}" for n in range(200)]}), path, row_group_size=70)
    shutil.copy(path, other)
    done = run_program("-c", FLIP_BITS, path)
    if done.returncode:  # the releases of pyarrow that check each field first pass this test without a damaged footer
        content, bit = bytearray(path.read_bytes()), int(done.stdout.split()[-1])
        size = int.from_bytes(content[-8:-4], "little")
        content[len(content) - 8 - size + bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"b\.parquet: damaged: its footer cannot be read \(.* ended with signal"):
            find("parquet", tmp_path, tmp_path)
        path.unlink()
    assert [text for text, _, _ in read_all("parquet", tmp_path)[0]][:2] == ["text 0", "text 1"]


def test_csv_under_the_name_of_json_lines_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("id,text\n1,hello\n")
    _, bad = read_all("jsonl", tmp_path)
    assert [one.reason for one in bad] == ["not_json", "not_json"]
    assert "it looks like CSV: convert the file" in bad[0].detail


def test_a_single_file_is_no_data_set_of_datasets(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    with pytest.raises(
        ValueError, match=r"a\.jsonl: is a file, and corpus=huggingface reads a data set; use corpus=jsonl"
    ):
        find("huggingface", tmp_path / "a.jsonl", tmp_path)


def test_a_wide_table_is_described_in_a_few_lines(tmp_path):
    columns = {f"column {n} with a long name " * 5: [n] for n in range(2000)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"'text' .* does not exist; the columns are .* and 1,992 more$") as refusal:
        read_all("parquet", tmp_path / "a.parquet")
    assert len(str(refusal.value)) < 800
