"""From text to a data set: the shards, read back with pyarrow alone, hold the slow twin's windows."""

import base64
import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiktoken
from support import ROOT, read_ranks, run_program, sections, write_format_1

from pipeline import read_manifest, write_shards
from pipeline.base.reading import sign
from pipeline.rules import ConfigError
from pipeline.shards import job
from pipeline.shards.job import as_sections, prepare_job
from pipeline.tokenizer.load import load_tokenizer
from pipeline.tokens.store import open_store


@pytest.fixture(scope="module")
def gpt2():
    """GPT-2's encoding, made by tiktoken from the packaged ranks, apart from the project's own loader."""
    return tiktoken.Encoding(
        "gpt2",
        pat_str=r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
        mergeable_ranks=read_ranks(ROOT / "pipeline" / "tokenizer" / "gpt2.tiktoken"),
        special_tokens={"<|endoftext|>": 50256},
    )


@pytest.fixture
def write(tmp_path):
    """Write a data set into a fresh folder, tokens cached beside it."""

    def run(name="shards", **options):
        return write_shards(tmp_path / name, **sections(cache_path=tmp_path / "cache", **options))

    return run


@pytest.mark.skipif(importlib.util.find_spec("gigatoken") is None, reason="the extra `fast` is not installed")
def test_a_little_text_is_encoded_by_tiktoken_and_more_by_gigatoken_to_the_same_data_set(tmp_path, monkeypatch):
    texts = ["The kettle sang. " * 60, "She poured the tea."]

    def write(name):
        given = sections(tokenizer="gpt2", max_length=8, cache_path=tmp_path / f"{name}_cache")
        return write_shards(tmp_path / name, corpus=texts, **given)

    little = write("little")
    monkeypatch.setattr(job, "LITTLE_BYTES", sum(map(len, texts)) - 1)
    more = write("more")
    assert (little.engine, more.engine) == ("tiktoken", "gigatoken")
    assert little.manifest.fingerprint == more.manifest.fingerprint
    assert rows_of(little.path) == rows_of(more.path)


def rows_of(folder, split="train"):
    """All rows of a split, by pyarrow alone."""
    files = sorted(Path(folder, "data").glob(f"{split}-*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def joined_ids(encoding, texts):
    ids = []
    for number, text in enumerate(texts):
        ids += [50256] * (number > 0) + encoding.encode_ordinary(text)
    return ids


def slow_rows(ids, max_length, stride):
    starts = range(0, len(ids) - max_length, stride)
    return [
        {
            "input_ids": ids[i : i + max_length],
            "target_ids": ids[i + 1 : i + max_length + 1],
            "start": i,
            "next_id": ids[i + max_length],
        }
        for i in starts
    ]


def texts_of(folder):
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [(folder / name).read_text(encoding="utf-8") for name in names]


@pytest.mark.parametrize(("max_length", "stride"), [(4, 4), (16, 5), (32, 1), (50, 50)])
def test_shards_hold_the_windows_of_the_slow_twin(write, books, gpt2, max_length, stride):
    report = write(corpus="text", corpus_path=str(books), max_length=max_length, stride=stride)
    ids = joined_ids(gpt2, texts_of(books))
    assert rows_of(report.path) == slow_rows(ids, max_length, stride)
    split = report.manifest.splits["train"]
    assert (split.num_documents, split.num_tokens) == (3, len(ids))
    assert split.num_windows == len(range(0, len(ids) - max_length, stride))


def test_many_small_shards_hold_the_same_rows_as_one(write, books):
    one = write("one", corpus="text", corpus_path=str(books), max_length=8, stride=3)
    many = write(
        "many",
        corpus="text",
        corpus_path=str(books),
        max_length=8,
        stride=3,
        windows_per_group=7,
        windows_per_shard=21,
        workers=3,
    )
    assert len(many.manifest.splits["train"].shards) > 3
    assert rows_of(many.path) == rows_of(one.path)


def test_the_schema_is_the_contracts(write, books):
    report = write(corpus="text", corpus_path=str(books), max_length=8)
    file = next(Path(report.path, "data").iterdir())
    assert str(pq.read_schema(file)) == (
        "input_ids: fixed_size_list<element: int32 not null>[8] not null\n"
        "  child 0, element: int32 not null\n"
        "target_ids: fixed_size_list<element: int32 not null>[8] not null\n"
        "  child 0, element: int32 not null\n"
        "start: int64 not null\n"
        "next_id: int32 not null"
    )


def test_the_manifest_tells_each_file_as_it_is(write, books):
    report = write(corpus="text", corpus_path=str(books), max_length=8, windows_per_group=5, windows_per_shard=10)
    fields = json.loads((report.path / "manifest.json").read_text())
    assert {"format_version", "fingerprint", "config", "tokenizer", "splits"} <= set(fields)
    assert set(fields["tokenizer"]) == {"name", "hash", "vocab_size", "special_tokens", "bos", "eos"}
    shards = [dataclasses.asdict(shard) for shard in read_manifest(report.path).splits["train"].shards]
    assert {file.name for file in (report.path / "data").iterdir()} == {Path(shard["path"]).name for shard in shards}
    for shard in shards:
        content = (report.path / shard["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard["bytes"], shard["sha256"])
        metadata = pq.read_metadata(report.path / shard["path"])
        groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        assert (metadata.num_rows, groups) == (shard["num_windows"], shard["row_groups"])


def test_a_padded_tail_holds_end_of_text_inputs_and_ignored_targets(write, tmp_path, gpt2):
    (tmp_path / "one.txt").write_text("a b c d e f")
    ids = gpt2.encode_ordinary("a b c d e f")
    report = write(corpus="text", corpus_path=str(tmp_path / "one.txt"), max_length=4, tail="pad")
    first, last = rows_of(report.path)
    assert (first["input_ids"], first["target_ids"], first["length"]) == (ids[:4], ids[1:5], 4)
    assert last["input_ids"] == [ids[4], ids[5], 50256, 50256]
    assert (last["target_ids"], last["length"], last["next_id"]) == ([ids[5], -100, -100, -100], 1, -100)


def test_separate_documents_never_share_a_window(write, books, gpt2):
    report = write(corpus="text", corpus_path=str(books), max_length=16, documents="separate")
    expected = []
    for text in texts_of(books):
        ids = [*gpt2.encode_ordinary(text), gpt2.eot_token]  # the last target of the document
        expected += [row["input_ids"] for row in slow_rows(ids, 16, 16)]
    assert [row["input_ids"] for row in rows_of(report.path)] == expected


def test_a_second_run_finds_the_finished_data_set(write, books):
    first = write(corpus="text", corpus_path=str(books), max_length=8)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in first.path.rglob("*")}
    second = write(corpus="text", corpus_path=str(books), max_length=8)
    assert second.finished_before
    assert second.manifest == first.manifest
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in first.path.rglob("*")} == before


def test_tokens_are_made_once_for_all_windows(write, books):
    assert write("a", corpus="text", corpus_path=str(books), max_length=8).chunks_made == 1
    assert write("b", corpus="text", corpus_path=str(books), max_length=8, stride=2).chunks_made == 0
    assert write("c", corpus="text", corpus_path=str(books), max_length=9).chunks_made == 0


def test_another_data_set_in_the_folder_is_refused_with_the_key_that_differs_and_the_ways_out(write, books):
    first = write(corpus="text", corpus_path=str(books), max_length=8)
    with pytest.raises(ValueError, match="holds another data set") as refusal:
        write(corpus="text", corpus_path=str(books), max_length=9)
    message = str(refusal.value)
    assert "holds another data set: window.max_length is 8 there and 9 here. Choose" in message
    assert first.manifest.fingerprint[:12] not in message
    assert "Choose another shards.path" in message
    assert "shards.overwrite=true" in message
    assert read_manifest(first.path) == first.manifest
    other = write(corpus="text", corpus_path=str(books), max_length=9, overwrite=True)
    assert len(rows_of(other.path)[0]["input_ids"]) == 9


OTHER_VALUES = {
    "max_length": ("window.max_length", 8, 9),
    "stride": ("window.stride", 4, 3),
    "tail": ("window.tail", "drop", "pad"),
    "documents": ("window.documents", "join", "separate"),
    "validation": ("split.validation", 0.5, 0.25),
    "split_seed": ("split.seed", 0, 1),
    "order": ("shards.order", "shuffled", "sequential"),
    "order_seed": ("shards.seed", 0, 7),
    "windows_per_group": ("shards.windows_per_group", 16, 32),
    "compression": ("shards.compression", "zstd", "none"),
    "max_document_bytes": ("corpus.max_document_bytes", 1 << 20, 2000),
    "special_text": ("tokenizer.special_text", "literal", "error"),
    "tokenizer": ("tokenizer.name", "bytes", "gpt2"),
}
OFTEN_REFUSED = {"corpus": "text", "on_bad": "quarantine"} | {name: old for name, (_, old, _) in OTHER_VALUES.items()}


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_the_refusal_of_another_data_set_names_the_key_that_differs_and_no_other(write, books, name):
    key, old, new = OTHER_VALUES[name]
    write(corpus_path=str(books), **OFTEN_REFUSED)
    with pytest.raises(ValueError, match="holds another data set") as refusal:
        write(corpus_path=str(books), **{**OFTEN_REFUSED, name: new, "max_bad_fraction": 0.5, "audit": 0.5})
    assert f"holds another data set: {key} is {old} there and {new} here. Choose" in str(refusal.value)


def test_the_refusal_names_no_key_that_is_another_way_to_the_same_text(write, books, tmp_path):
    shutil.copytree(books, tmp_path / "copy")
    write(**{**OFTEN_REFUSED, "corpus_path": str(books)})
    with pytest.raises(ValueError, match=r"another data set: window\.tail is drop there and pad here\. Choose"):
        write(**{**OFTEN_REFUSED, "corpus_path": str(tmp_path / "copy"), "tail": "pad"})


@pytest.mark.parametrize("order", ["reversed", "longer"])
def test_the_refusal_of_another_tokenizer_by_the_same_name_does_not_claim_that_the_text_changed(write, books, order):
    ranks = books.parent / "ranks"

    def save(tokens):
        ranks.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))

    options = {"tokenizer": "tiktoken_file", "tokenizer_path": str(ranks), "tokenizer_pattern": "gpt2"}
    options |= {"corpus": "text", "corpus_path": str(books), "max_length": 8, "tokenizer_eos": 300}
    tokens = [bytes([byte]) for byte in range(256)]
    save(tokens)
    write(**options)
    save([*tokens, b"th"] if order == "longer" else tokens[::-1])
    with pytest.raises(ValueError, match="has the same name and other content") as refusal:
        write(**options)
    assert "text is another" not in str(refusal.value)


def test_of_a_data_set_of_release_0_1_0_the_refusal_does_not_claim_that_the_text_changed(write, books):
    options = {**OFTEN_REFUSED, "corpus_path": str(books)}
    report = write(**options)
    fields = write_format_1(report.path, store="0" * 64, fingerprint="1" * 64)
    for split in fields["splits"].values():
        split["shards"] = [{key: shard[key] for key in shard if "footer" not in key} for shard in split["shards"]]
    (report.path / "manifest.json").write_text(json.dumps(sign(fields)))
    with pytest.raises(ValueError, match=r"another data set: release 0\.1\.0 wrote it and cannot tell .* 3 documents"):
        write(**options)


def test_the_refusal_of_another_text_says_which_files_changed_and_how_much_text_there_is(write, tmp_path):
    for name, sizes in {"a.txt": 50_000, "b.txt": 60_000, "c.txt": 70_000}.items():
        (tmp_path / name).write_text(f"The words of {name}. " * (sizes // 20))
    options = {"corpus": "text", "corpus_path": str(tmp_path / "*.txt"), "tokenizer": "bytes", "max_length": 8}
    write(**options)
    (tmp_path / "b.txt").rename(tmp_path / "d.txt")
    (tmp_path / "d.txt").write_text("Other words. " * 5000)
    with pytest.raises(ValueError, match=r"the keys agree and the text is another: .*added d\.txt") as refusal:
        write(**options)
    assert "removed b.txt" in str(refusal.value)
    size = sum(file.stat().st_size for file in tmp_path.glob("*.txt"))
    assert f"3 files with {size:,} bytes here" in str(refusal.value)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"the text is another: 3 documents with .* bytes there, 3 files with"):
        write(**options)


def test_a_folder_with_other_files_is_left_alone(write, books, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"contains 'thesis.tex', which is not part of a data set"):
        write("home", corpus="text", corpus_path=str(books), max_length=8, overwrite=True)
    assert [file.name for file in (tmp_path / "home").iterdir()] == ["thesis.tex"]


def test_the_same_text_in_another_folder_gives_the_same_bytes(write, books, tmp_path):
    shutil.copytree(books, tmp_path / "copy" / "elsewhere")
    here = write("here", corpus="text", corpus_path=str(books), max_length=8)
    there = write_shards(
        tmp_path / "there",
        **sections(
            cache_path=tmp_path / "other-cache",
            corpus="text",
            corpus_path=str(tmp_path / "copy" / "elsewhere"),
            max_length=8,
            workers=4,
        ),
    )
    assert here.manifest.fingerprint == there.manifest.fingerprint
    assert here.manifest.splits == there.manifest.splits


def test_validation_documents_are_set_apart_before_windows_are_cut(write, tmp_path, gpt2):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}.txt").write_text(f"Document {number} says so. " * 8)
    report = write(corpus="text", corpus_path=str(folder), max_length=4, stride=1, validation=0.25)
    parts = {}
    for name, split in report.manifest.splits.items():
        ids = [row["input_ids"][0] for row in rows_of(report.path, name)]
        parts[name] = gpt2.decode([*ids, *rows_of(report.path, name)[-1]["target_ids"]])
        assert split.num_documents == parts[name].count("<|endoftext|>") + 1
    numbers = {name: {word for word in text.split() if word.isdigit()} for name, text in parts.items()}
    assert not numbers["train"] & numbers["validation"]
    assert len(numbers["train"] | numbers["validation"]) == 40
    assert 2 <= report.manifest.splits["validation"].num_documents <= 20


def test_the_last_part_of_a_single_document_is_the_validation_split(write, tmp_path, gpt2):
    text = " ".join(str(number) for number in range(300))
    (tmp_path / "one.txt").write_text(text)
    report = write(corpus="text", corpus_path=str(tmp_path / "one.txt"), max_length=4, validation=0.2)
    splits = report.manifest.splits
    ids = gpt2.encode_ordinary(text)
    assert splits["train"].num_tokens + splits["validation"].num_tokens == len(ids)
    assert splits["validation"].num_tokens == round(len(ids) * 0.2)
    assert rows_of(report.path, "validation")[0]["input_ids"] == ids[splits["train"].num_tokens :][:4]


def test_the_token_store_knows_where_each_document_is(write, books, tmp_path, gpt2):
    write(corpus="text", corpus_path=str(books), max_length=8)
    (file,) = (tmp_path / "cache" / "stores").iterdir()
    store = open_store(file)
    stream = store.stream("train")
    firsts, counts = store.documents("train")
    texts = [
        gpt2.decode(stream.read(first, first + count).tolist()) for first, count in zip(firsts, counts, strict=True)
    ]
    assert texts == texts_of(books)
    assert stream.read(0, len(stream)).tolist() == joined_ids(gpt2, texts)


def test_with_bytes_as_tokens_ids_are_the_texts_bytes(write, tmp_path):
    (tmp_path / "one.txt").write_text("héllo")
    report = write(corpus="text", corpus_path=str(tmp_path / "one.txt"), tokenizer="bytes", max_length=5)
    assert rows_of(report.path)[0]["input_ids"] == list("héllo".encode())[:5]


def test_bad_documents_are_left_out_and_counted_or_stop_the_run(write, books):
    (books / "bad.txt").write_bytes(b"fine until \xff here")
    (books / "empty.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"bad\.txt.*byte 11 \(0xff\) is not UTF-8.*corpus\.on_bad=quarantine"):
        write("a", corpus="text", corpus_path=str(books), max_length=8, on_bad="raise")
    with pytest.raises(ValueError, match=r"1 of 4 .* are rejected \(1 not_utf8\).*max_bad_fraction=0.01"):
        write("b", corpus="text", corpus_path=str(books), max_length=8)
    report = write("c", corpus="text", corpus_path=str(books), max_length=8, max_bad_fraction=0.5)
    assert report.manifest.corpus["bad"] == {"not_utf8": 1}
    assert report.skipped == {"empty": 1}
    assert report.manifest.corpus["documents"] == 3


BAD_INPUT = {
    "a missing file": (lambda folder: folder / "none.txt", "no such file or folder"),
    "a folder without text": (lambda folder: make(folder / "empty_folder"), "has no .txt, .md, .rst file"),
    "an empty corpus": (lambda folder: make(folder / "e.txt", b""), "no text: 1 document skipped (1 empty)"),
    "a short text": (
        lambda folder: make(folder / "s.txt", b"too short"),
        "has 2 tokens in 1 document, but a window of window.max_length=8 needs 9 tokens;",
    ),
    "a binary file": (lambda folder: make(folder / "b.txt", b"\x7fELF\x02\x80\x81"), "byte 5 (0x80) is not UTF-8"),
}


def make(path, content=None):
    path.mkdir() if content is None else path.write_bytes(content)
    return path


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_has_its_own_error_and_leaves_no_data_set(write, tmp_path, case):
    prepare, message = BAD_INPUT[case]
    path = prepare(tmp_path)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - the message is the table's
        write(corpus="text", corpus_path=str(path), max_length=8)
    assert message in str(refusal.value)
    assert not list(tmp_path.glob("shards/manifest.json"))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become a user without permission")
def test_a_folder_without_permission_is_an_error_of_one_line(books, tmp_path):
    for folder in [tmp_path, *tmp_path.parents]:
        if "pytest" in str(folder):  # pytest's own folders are private to the user who runs it
            folder.chmod(0o755)
    (books / "more").chmod(0o700)
    code = (
        "import os\n"
        "from pipeline.corpus.corpora import find_files\n"
        "os.setuid(65534)\n"
        f"try: find_files([{str(books)!r}], ('.txt',))\n"
        "except (OSError, ValueError) as error: print('refused:', error)"
    )
    done = run_program("-c", code)
    assert done.stdout.startswith("refused: corpus.path: the folder"), done.stderr
    assert f"{books / 'more'} cannot be read: Permission denied" in done.stdout


def test_the_notebooks_numbers(write, verdict, gpt2):
    options = {
        "corpus": "the_verdict",
        "corpus_path": str(verdict),
        "corpus_sha256": hashlib.sha256(verdict.read_bytes()).hexdigest(),
        "max_length": 4,
    }
    ids = gpt2.encode_ordinary(verdict.read_text(encoding="utf-8"))
    for stride, windows in [(4, 1286), (1, 5141)]:
        report = write(f"S{stride}", stride=stride, **options)
        split = report.manifest.splits["train"]
        assert (split.num_tokens, split.num_windows) == (5145, windows)
        assert rows_of(report.path) == slow_rows(ids, 4, stride)


def test_another_text_is_not_the_verdict(write, books):
    with pytest.raises(ValueError, match=r"a\.txt: sha256 is .* but corpus=the_verdict is the text with b41e"):
        write(corpus="the_verdict", corpus_path=str(books / "a.txt"), corpus_sha256="b41e", max_length=4)


def test_ids_of_the_embedded_corpus_decode_to_its_text(write):
    from pydoc_data.topics import topics

    report = write(max_length=64)
    ids = [row["input_ids"] for row in rows_of(report.path)]
    text = "<|endoftext|>".join(topics[name] for name in sorted(topics))
    assert text.startswith(load_tokenizer("gpt2").decode(np.concatenate(ids[:50])))
    assert report.manifest.corpus["documents"] == len(topics)


REFUSED = {
    "tail": ("foo", "window.tail: must be one of drop, pad; got 'foo'"),
    "documents": ("foo", "window.documents: must be one of join, separate, pack; got 'foo'"),
    "order": ("foo", "shards.order: must be one of sequential, shuffled; got 'foo'"),
    "compression": ("foo", "shards.compression: must be one of zstd, lz4, snappy, none; got 'foo'"),
    "on_bad": ("foo", "corpus.on_bad: must be one of quarantine, raise; got 'foo'"),
    "corpus": ("foo", "corpus.name: must be one of python_docs, the_verdict, text,"),
    "tokenizer": ("foo", "tokenizer.name: must be one of gpt2, r50k_base,"),
    "max_length": (0, "window.max_length: must be at least 1; got 0"),
    "stride": (0, "window.stride: must be at least 1; got 0"),
    "windows_per_group": (-1, "shards.windows_per_group: must be at least 1; got -1"),
    "windows_per_shard": (0, "shards.windows_per_shard: must be at least 1; got 0"),
    "validation": (-1, "split.validation: must be a fraction from 0 to below 1; got -1"),
    "audit": (5, "tokenizer.audit: must be a fraction from 0 to 1; got 5"),
    "max_bad_fraction": (5, "corpus.max_bad_fraction: must be a fraction from 0 to 1; got 5"),
    "workers": (0, "executor.workers: must be at least 1; got 0"),
}


@pytest.mark.parametrize("argument", REFUSED)
def test_a_call_is_refused_for_the_values_for_which_a_config_is(books, tmp_path, argument):
    value, message = REFUSED[argument]
    options = {"corpus": "text", "corpus_path": books, "cache_path": tmp_path / "cache", argument: value}
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        write_shards(tmp_path / "shards", **sections(**options))
    assert not (tmp_path / "shards").exists()


PATHS = "must be a file, folder or glob, or a list of them"
WRONG_TYPES = [
    ("engine", None, "tokenizer.engine: must be one of auto, tiktoken, gigatoken; got None"),
    ("special_text", None, "tokenizer.special_text: must be one of literal, control, error; got None"),
    ("tokenizer", None, "tokenizer.name: must be one of gpt2,"),
    ("on_bad", None, "corpus.on_bad: must be one of quarantine, raise; got None"),
    ("corpus", None, "corpus.name: must be one of python_docs,"),
    ("corpus", ["text"], "corpus.name: must be one of python_docs,"),
    ("tail", None, "window.tail: must be one of drop, pad; got None"),
    ("compression", None, "shards.compression: must be one of zstd, lz4, snappy, none; got None"),
    (
        "compression",
        np.zeros((2, 2)),
        "shards.compression: must be one of zstd, lz4, snappy, none; got array([[0., 0.], ",
    ),
    ("max_length", 4.0, "window.max_length: must be a whole number; got 4.0"),
    ("max_length", True, "window.max_length: must be a whole number; got True"),
    ("max_length", "4", "window.max_length: must be a whole number; got '4'"),
    ("max_length", None, "window.max_length: must be a whole number; got None"),
    ("stride", 2.0, "window.stride: must be a whole number; got 2.0"),
    ("stride", np.float64(2), "window.stride: must be a whole number; got "),
    ("windows_per_shard", 2.5, "shards.windows_per_shard: must be a whole number; got 2.5"),
    ("windows_per_group", True, "shards.windows_per_group: must be a whole number; got True"),
    ("split_seed", 1.5, "split.seed: must be a whole number; got 1.5"),
    ("order_seed", 1.5, "shards.seed: must be a whole number; got 1.5"),
    ("workers", 1.5, "executor.workers: must be a whole number; got 1.5"),
    ("workers", True, "executor.workers: must be a whole number; got True"),
    ("workers", np.bool_(True), "executor.workers: must be a whole number; got "),
    ("max_document_bytes", 5.5, "corpus.max_document_bytes: must be a whole number; got 5.5"),
    ("max_document_bytes", True, "corpus.max_document_bytes: must be a whole number; got True"),
    ("validation", False, "split.validation: must be a fraction from 0 to below 1; got False"),
    ("audit", True, "tokenizer.audit: must be a fraction from 0 to 1; got True"),
    ("text_field", 5, "corpus.text_field: must be text; got 5"),
    ("text_field", ["text"], "corpus.text_field: must be text; got ['text']"),
    ("corpus_part", 5, "corpus.part: must be text; got 5"),
    ("corpus_subset", 5, "corpus.subset: must be text; got 5"),
    ("corpus_sha256", b"5", "corpus.sha256: must be text; got b'5'"),
    ("corpus_path", 5, f"corpus.path: {PATHS} (a name that is a number needs quotes); got 5"),
    ("corpus_path", b"v.txt", f"corpus.path: {PATHS}; got b'v.txt'"),
    ("corpus_path", ["v.txt", None], f"corpus.path: {PATHS}; got ['v.txt', None]"),
    ("corpus_path", "v.txt\0", "corpus.path: must not contain the character NUL, which no path has; got 'v.txt\\x00'"),
    ("cache_path", None, "cache.path: must name a folder or a URI; got None"),
    ("cache_path", b"cache", "cache.path: must name a folder or a URI; got b'cache'"),
    ("cache_path", "c\0", "cache.path: must not contain the character NUL, which no path has; got 'c\\x00'"),
    ("tokenizer_path", 5, "tokenizer.path: must be a file, a folder or a hub name; got 5"),
]


@pytest.mark.parametrize(("argument", "value", "message"), WRONG_TYPES)
def test_a_value_of_a_wrong_type_is_refused_before_any_work(books, tmp_path, argument, value, message):
    options = {"corpus": "text", "corpus_path": books, "cache_path": tmp_path / "cache", argument: value}
    with pytest.raises(ConfigError, match="^" + re.escape(message)) as refusal:
        write_shards(tmp_path / "shards", **sections(**options))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "shards").exists()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("tokenizer_path", 5, "tokenizer.path: must be a file, a folder or a hub name; got 5"),
        (
            "tokenizer_path",
            "r\0",
            "tokenizer.path: must not contain the character NUL, which no path has; got 'r\\x00'",
        ),
        ("tokenizer_pattern", 5, "tokenizer.pattern: must be text; got 5"),
    ],
)
def test_a_vocabulary_of_a_wrong_type_is_refused_before_any_work(books, tmp_path, argument, value, message):
    options = {"tokenizer": "tiktoken_file", "tokenizer_path": "r", "tokenizer_pattern": "gpt2", argument: value}
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        write_shards(tmp_path / "shards", **sections(corpus="text", corpus_path=books, **options))


def test_a_pattern_that_tiktoken_alone_does_not_take_is_refused_with_its_key(books, tmp_path):
    ranks = tmp_path / "ranks"
    ranks.write_bytes(b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256)))
    options = {"tokenizer": "tiktoken_file", "tokenizer_path": ranks, "cache_path": tmp_path / "cache"}
    options |= {"corpus": "text", "corpus_path": books, "tokenizer_eos": 256}
    with pytest.raises(ValueError, match=r"^tokenizer\.pattern='\\\\X\|.*tiktoken.*Invalid escape: \\X$"):
        write_shards(tmp_path / "shards", **sections(**options, tokenizer_pattern=r"\X|[\s\S]"))
    assert write_shards(tmp_path / "shards", **sections(**options, tokenizer_pattern=r"[\s\S]")).manifest.splits


WHOLE = {
    "max_length": 8,
    "stride": 4,
    "windows_per_group": 5,
    "windows_per_shard": 10,
    "split_seed": 3,
    "order_seed": 2**40,
    "max_document_bytes": 10**6,
    "workers": 2,
}


def test_numpys_whole_numbers_are_pythons(books, tmp_path):
    rest = {"corpus": "text", "tokenizer": "bytes", "tail": "pad", "validation": 0.25, "order": "shuffled"}

    def job_of(path, numbers):
        given = {"corpus": "python_docs", "tokenizer": "gpt2", "cache": tmp_path / "cache"}
        given |= dict.fromkeys(("window", "split", "shards", "executor"))
        return prepare_job(as_sections("ds", **{**given, **sections(corpus_path=path, **rest, **numbers)}))

    paths = [books / "a.txt", str(books / "b.md")]
    made = job_of(iter(paths), {key: np.int64(value) for key, value in WHOLE.items()})
    same = job_of(paths, WHOLE)
    assert (made.fingerprint, made.stored, made.layout) == (same.fingerprint, same.stored, same.layout)
    given = made.sections
    stored = [*made.stored.values(), given.split.seed, given.corpus.max_document_bytes, given.executor.workers]
    assert {type(value) for value in stored} == {int, str}


@pytest.mark.slow
@pytest.mark.parametrize("argument", sorted(WHOLE))
def test_a_data_set_is_the_same_by_numpys_whole_numbers(write, books, argument):
    options = {**WHOLE, "corpus": "text", "corpus_path": books, "order": "shuffled", "validation": 0.25}
    one = write("one", **options)
    other = write("other", **{**options, argument: np.uint64(options[argument])})
    assert (one.manifest.fingerprint, one.manifest.splits) == (other.manifest.fingerprint, other.manifest.splits)
    assert read_manifest(other.path) == other.manifest


def test_a_stride_that_skips_text_must_be_meant(books, tmp_path):
    options = {
        "corpus": "text",
        "corpus_path": [books / "a.txt", str(books / "b.md")],
        "cache_path": tmp_path / "cache",
    }
    with pytest.raises(ValueError, match=r"window.stride: must be at most window.max_length=8.*allow_gaps=true"):
        write_shards(tmp_path / "shards", **sections(**options, max_length=8, stride=9))
    report = write_shards(tmp_path / "shards", **sections(**options, max_length=8, stride=9, allow_gaps=True))
    assert report.manifest.splits["train"].stride == 9


def test_a_uri_of_another_kind_is_refused_and_no_folder_of_its_name_is_made(books, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"shards.path: must be a path on this machine, or a URI with s3://"):
        write_shards("file://bucket/x", **sections(corpus="text", corpus_path=books))
    assert not (tmp_path / "file:").exists()


@pytest.mark.parametrize("argument", ["allow_gaps", "overwrite"])
def test_a_text_is_no_truth_value(write, argument):
    """The text would count as true, and overwrite what is there."""
    with pytest.raises(ValueError, match=rf"{argument}: must be true or false; got 'false'"):
        write(**{argument: "false"})
