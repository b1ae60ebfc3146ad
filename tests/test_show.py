"""What `scripts/show.py` shows is what the loader hands over, and where it comes from."""

import argparse
import base64
import dataclasses
import sys
from itertools import pairwise

import pytest
from support import ROOT, run_python

from pipeline import ShardLoader, WindowDataset
from pipeline.shards.manifest import read_manifest
from pipeline.tokens.store import open_store

sys.path.append(str(ROOT / "scripts"))  # programs import each other as they do when run

import show

from pipeline.loader.readers import open_split
from pipeline.tokenizer.load import load_tokenizer


@pytest.fixture
def shards(write_books, tmp_path):
    cache = tmp_path / "outputs/cache"
    return lambda **options: write_books(cache_path=cache, **{"max_length": 24, "stride": 16, **options}).path


def opened(path):
    manifest = read_manifest(path)
    (store,) = (path.parent / "outputs/cache/stores").glob("*.json")
    return manifest, open_split(path, "train"), open_store(store)


@pytest.mark.parametrize("shuffle", ["none", "full", "lanes"])
def test_a_step_shows_the_windows_that_the_loader_hands_over(shards, shuffle):
    path = shards()
    for rank in (0, 1):
        options = {"batch_size": 3, "shuffle": shuffle, "seed": 5, "lanes": 4, "rank": rank, "world_size": 2}
        loader = ShardLoader(path, **options)
        loader.set_epoch(2)
        for step, batch in enumerate(loader):
            given = argparse.Namespace(path=path, step=step, epoch=2, **options)
            assert show.batch_windows(open_split(path, "train"), given) == batch.window_ids.tolist()


@pytest.mark.parametrize("documents", ["join", "separate"])
@pytest.mark.parametrize("tail", ["drop", "pad"])
@pytest.mark.parametrize("stride", [7, 16, 24])
def test_the_overlap_is_what_neighbours_share(shards, documents, tail, stride):
    path = shards(documents=documents, tail=tail, stride=stride, validation=0.0)
    manifest, reader, store = opened(path)
    windows = [show.find_window(manifest, reader, k, store, "train") for k in range(len(WindowDataset(path)))]
    for before, after in pairwise(windows):
        shared = before.start + before.length - after.start
        if after.before:
            assert shared == before.after <= after.before
            if shared > 0:
                assert before.ids[: before.length][-shared:] == after.ids[:shared]
        else:
            assert before.after == 0
    assert windows[0].before == windows[-1].after == 0


def test_a_windows_documents_are_named_with_their_places(shards, books):
    path = shards(documents="join")
    manifest, reader, store = opened(path)
    first = show.find_window(manifest, reader, 0, store, "train")
    assert first.documents == ["a.txt: tokens 0 to 23 of it"]
    edge = len((books / "a.txt").read_bytes())  # its end-of-text token is no part of it
    (across,) = [
        window
        for window in (show.find_window(manifest, reader, k, store, "train") for k in range(len(WindowDataset(path))))
        if len(window.documents) == 2 and window.documents[0].startswith("a.txt")
    ][:1]
    inside = across.start + across.length - edge - 1
    assert across.documents[1].startswith(f"b.md: tokens 0 to {inside - 1} of it")


def run(*arguments, cwd):
    return run_python(ROOT / "scripts/show.py", *arguments, cwd=cwd)


def test_the_command_shows_a_window_and_a_page(shards, tmp_path, browse):
    shards()
    done = run("shards", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "window 1: 24 tokens from token 16 of the split" in done.stdout
    assert "overlap 8 tokens with the window before (<), 8 with the one after (>)" in done.stdout
    assert "a.txt: tokens 16 to 39 of it" in done.stdout
    assert "\x1b[" not in done.stdout, "no colours off a terminal"
    assert run("shards", "--step", "0", "--batch-size", "2", "--html", "batch.html", cwd=tmp_path).returncode == 0
    dom, console = browse(tmp_path / "batch.html", tmp_path / "browser")
    assert console == []
    assert dom.count('class="pair') == 2 * 24


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shards", "100000"], "the train split has windows 0 to"),
        (["shards", "--step", "9999"], "an epoch has the steps 0 to"),
        (["nothing", "0"], "nothing does not exist"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(shards, tmp_path, arguments, message):
    shards()
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_the_vocabulary_of_a_file_is_found_again(shards, tmp_path):
    ranks = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))
    (tmp_path / "own.tiktoken").write_bytes(ranks)
    own = {"path": str(tmp_path / "own.tiktoken"), "pattern": "gpt2"}
    path = shards(tokenizer="tiktoken_file", tokenizer_path=own["path"], tokenizer_pattern="gpt2")
    manifest = dataclasses.replace(read_manifest(path), config={"tokenizer": {"name": "tiktoken_file", **own}})
    tokenizer = show.own_tokenizer(manifest, None)
    assert (tokenizer.hash, tokenizer.engine) == (manifest.tokenizer["hash"], "tiktoken")


def test_colours_mark_each_token_alike_in_both_rows():
    window = show.Shown(window=0, start=0, length=2, ids=[65, 66, 67], before=1, after=1, documents=["a, row 0"])
    text = show.describe(window, load_tokenizer("bytes"), coloured=True)
    assert text.count("\x1b[30;48;5;223m") == 2, "the second input is the first target"


def test_a_part_of_a_character_is_shown_as_its_bytes_and_a_backslash_as_itself():
    ids = [*"é\\x".encode()]
    assert show.show_pieces(ids, load_tokenizer("bytes")) == ["\\xc3", "\\xa9", "\\\\", "x"]
    gpt2 = load_tokenizer("gpt2")
    pieces = show.show_pieces(gpt2.encode_batch(["漢\n"])[0].tolist(), gpt2)
    assert pieces == ["\\xe6", "\\xbc", "\\xa2", "\\n"]


@pytest.mark.slow
def test_a_look_does_not_wait_for_torch(tmp_path):
    code = "import sys; sys.path.append(sys.argv[1]); import show; sys.exit('torch' in sys.modules)"
    assert run_python("-c", code, ROOT / "scripts", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a.txt", "a.txt"),
        ("b.MD.gz", "b.MD.gz"),
        ("c.jsonl.zst", "c.jsonl.zst, line 5"),
        ("d.parquet", "d.parquet, row 4"),
    ],
)
def test_a_document_is_named_as_errors_name_it(source, name):
    assert show.name_document(source, 4) == name
