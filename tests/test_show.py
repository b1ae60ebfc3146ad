"""What the stage `show` shows is what the loader hands over, and where it comes from."""

import base64
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import ShardLoader, WindowDataset
from pipeline.cli import show, shown
from pipeline.cli.config import Config, ShowConfig
from pipeline.rules import ConfigError
from pipeline.settings import CacheConfig, LoaderConfig, ShardsConfig, TokenizerConfig
from pipeline.shards.manifest import read_manifest
from pipeline.tokenizer.load import load_tokenizer
from pipeline.tokens.store import open_store


@pytest.fixture
def shards(write_books, tmp_path):
    cache = tmp_path / "outputs/cache"
    return lambda **options: write_books(cache_path=cache, **{"max_length": 24, "stride": 16, **options}).path


def opened(path):
    manifest = read_manifest(path)
    (store,) = (path.parent / "outputs/cache/stores").glob("*.json")
    return manifest, WindowDataset(path), open_store(store)


@pytest.mark.parametrize("shuffle", ["none", "full", "lanes"])
def test_a_step_shows_the_windows_that_the_loader_hands_over(shards, shuffle):
    path = shards()
    for rank in (0, 1):
        options = {"batch_size": 3, "shuffle": shuffle, "seed": 5, "lanes": 4, "rank": rank, "world_size": 2}
        loader = ShardLoader(path, **options)
        loader.set_epoch(2)
        for step, batch in enumerate(loader):
            config = Config(
                shards=ShardsConfig(path=str(path)),
                loader=LoaderConfig(batch_size=3, shuffle=shuffle, seed=5, lanes=4),
                show=ShowConfig(step=step, epoch=2, rank=rank, world_size=2),
            )
            assert [window for _, window in show.batch_samples(config)] == batch.window_ids.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("documents", ["join", "separate"])
@pytest.mark.parametrize("tail", ["drop", "pad"])
@pytest.mark.parametrize("stride", [7, 16, 24])
def test_the_overlap_is_what_neighbours_share(shards, documents, tail, stride):
    path = shards(documents=documents, tail=tail, stride=stride, validation=0.0)
    manifest, data_set, store = opened(path)
    windows = [shown.find_window(manifest, data_set.reader, k, store) for k in range(len(data_set))]
    for before, after in pairwise(windows):
        shared = before.start + before.length - after.start
        if after.before:
            assert shared == before.after <= after.before
            if shared > 0:
                assert before.input_ids[: before.length][-shared:] == after.input_ids[:shared]
        else:
            assert before.after == 0
    assert windows[0].before == windows[-1].after == 0


@pytest.mark.parametrize("score", ["all", "new"])
@pytest.mark.parametrize(
    "options", [{"tail": "drop"}, {"tail": "pad", "documents": "separate"}, {"documents": "pack", "stride": 24}]
)
def test_a_window_is_shown_as_a_batch_has_it(shards, score, options):
    data_set = WindowDataset(shards(validation=0.0, **options), score=score)
    for number, item in enumerate(data_set):
        window = shown.read_window(data_set.reader, number)
        assert window.inputs == item["input_ids"].tolist()
        assert window.targets == item["target_ids"].tolist()


@pytest.mark.parametrize("has_table", [True, False])
def test_a_windows_documents_are_named_with_their_places(shards, books, has_table):
    path = shards(documents="join", keep_documents=has_table)
    manifest, data_set, store = opened(path)
    assert (manifest.splits["train"].documents is not None) == has_table
    if has_table:
        store = None

    def find(number):
        window = shown.find_window(manifest, data_set.reader, number, store)
        return window, shown.find_documents(path, manifest, window, store)

    assert find(0)[1] == ["a.txt, tokens 0-23"]
    edge = len((books / "a.txt").read_bytes())  # its end-of-text token is no part of it
    (across, documents), *_ = [
        (window, documents)
        for window, documents in (find(k) for k in range(len(data_set)))
        if len(documents) == 2 and documents[0].startswith("a.txt")
    ]
    inside = across.start + across.length - edge - 1
    assert documents[1] == (f"b.md, tokens 0-{inside - 1}" if inside > 1 else "b.md, token 0")


def one_window(**fields):
    defaults = {"window": 0, "split": "train", "start": 0, "length": 2, "input_ids": [65, 66], "target_ids": [66, 67]}
    return shown.Shown(**{**defaults, "before": 0, "after": 0, "segments": [], "documents": [], **fields})


def test_the_stage_shows_a_window_and_a_page(shards, cli, tmp_path, browse):
    shards()
    here = ("stages=show", "shards.path=shards")
    done = cli(*here, "show.window=1")
    assert done.returncode == 0, done.stderr
    assert "window 1: tokens 16-39 of the train split" in done.stdout
    assert "overlap   8 tokens with the previous window (<), 8 with the next (>); = marks both" in done.stdout
    assert "source    a.txt, tokens 16-39" in done.stdout
    assert "\x1b[" not in done.stdout, "no colours off a terminal"
    page = cli(*here, "show.step=0", "loader.batch_size=2", "show.html=batch.html")
    assert page.returncode == 0, page.stderr
    dom, console = browse(tmp_path / "batch.html", tmp_path / "browser")
    assert console == []
    assert dom.count('class="pair') == 2 * 24


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["shards.path=shards", "show.window=100000"], 1, "show.window: shards: the train split has the windows 0 to"),
        (["shards.path=shards", "show.step=9999"], 1, "show.step: shards: an epoch has the steps 0 to"),
        (["shards.path=shards", "show.rank=1"], 2, "show.rank: must be below show.world_size=1"),
        (["shards.path=nothing"], 1, "nothing does not exist"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(shards, cli, arguments, code, message):
    shards()
    done = cli("stages=show", *arguments)
    assert done.returncode == code
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_the_vocabulary_of_a_file_is_that_of_the_config_and_never_of_a_recorded_path(shards, tmp_path):
    ranks = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))
    (tmp_path / "own.tiktoken").write_bytes(ranks)
    own = str(tmp_path / "own.tiktoken")
    path = shards(tokenizer="tiktoken_file", tokenizer_path=own, tokenizer_pattern="gpt2", tokenizer_eos=256)
    manifest = read_manifest(path)
    found = shown.find_tokenizer(manifest, TokenizerConfig(name="tiktoken_file", path=own, pattern="gpt2", eos=256))
    assert found.hash == manifest.tokenizer["hash"]
    assert shown.find_tokenizer(manifest, TokenizerConfig()) is None
    text = show.describe(one_window(), None, coloured=False)
    assert "  input   65 66" in text.splitlines(), "the IDs are shown where the vocabulary is not known"


def test_padding_and_targets_that_do_not_count_are_shown_at_every_position():
    window = one_window(length=2, input_ids=[65, 66, 256, 256], target_ids=[-100, 67, -100, -100])
    text = show.describe(window, load_tokenizer("bytes"), coloured=False)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith("  ")}
    assert rows["id"] == ["65", "66", "256", "256"]
    assert rows["target"] == ["-100", "C", "-100", "-100"]
    assert set("".join(rows["mark"])) == {"."}
    assert "padding   2 positions (.)" in text
    assert "ignored   3 targets (-100), which do not count in the loss" in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width):
    ids = list(b"The kettle sang. " * 20)
    window = one_window(length=len(ids), input_ids=ids, target_ids=[*ids[1:], 32])
    lines = show.describe(window, load_tokenizer("bytes"), coloured=False, width=width).splitlines()
    assert max(map(len, lines)) <= max(width, 60), "only the overlap in words may be longer than a narrow terminal"
    assert max(len(line) for line in lines if line.startswith("  input")) > width * 0.8


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=5), st.integers(20, 120), st.integers(0, 3))
def test_windows_are_aligned_by_their_place_in_the_text(starts, width, padding):
    text = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    size = 8
    windows = [
        one_window(
            window=number,
            start=start,
            length=size - padding,
            input_ids=[*text[start : start + size - padding].encode()] + [256] * padding,
            target_ids=[*text[start + 1 : start + size - padding + 1].encode()] + [-100] * padding,
        )
        for number, start in enumerate(starts)
    ]
    lines = show.describe_aligned(windows, load_tokenizer("bytes"), width=width).splitlines()
    places = sorted({place for start in starts for place in range(start, start + size - padding)})
    room = max(1, (width - 12) // 2)  # tokens of one column and a space, after the name of the window
    expected = []
    for first in range(0, len(places), room):
        here = places[first : first + room]
        for number, start in enumerate(starts):
            inside = [text[place] if start <= place < start + size - padding else " " for place in here]
            if "".join(inside).strip():
                expected.append(f"  window {number}  {' '.join(inside)}".rstrip())
        expected.append("")
    assert lines[: len(expected)] == expected


def test_several_windows_are_shown_below_each_other(shards, capsys):
    path = shards(max_length=4, stride=2)
    config = Config(shards=ShardsConfig(path=str(path)), show=ShowConfig(window=[3, 1]), cache=CacheConfig(path="none"))
    report = show.show_windows(config)
    assert [one.window for one in report.windows] == [3, 1]
    said = capsys.readouterr().out
    assert said.startswith(f"show windows 3, 1 of {path}\n")
    assert "window 1: tokens 2-5 of the train split\n  overlap   2 tokens with the previous window (<), 2 with" in said
    with pytest.raises(ValueError, match=r"show.window: .* has the windows 0 to \d+; got 9999"):
        show.show_windows(Config(shards=ShardsConfig(path=str(path)), show=ShowConfig(window=[0, 9999])))


@pytest.mark.parametrize("window", [-1, "a", [], [1, -1], [[1]], True, 1.5])
def test_the_number_of_a_window_is_checked(window):
    with pytest.raises(ConfigError, match=r"show\.window"):
        ShowConfig(window=window)


def test_colours_mark_each_token_alike_in_both_rows():
    text = show.describe(one_window(before=1, after=1), load_tokenizer("bytes"), coloured=True)
    assert text.count("\x1b[30;48;5;223m") == 2, "the second input is the first target"


def test_a_part_of_a_character_is_shown_as_its_bytes_and_a_backslash_as_itself():
    ids = [*"é\\x".encode()]
    assert shown.show_pieces(ids, load_tokenizer("bytes")) == ["\\xc3", "\\xa9", "\\\\", "x"]
    gpt2 = load_tokenizer("gpt2")
    pieces = shown.show_pieces(gpt2.encode_batch(["漢\n"])[0].tolist(), gpt2)
    assert pieces == ["\\xe6", "\\xbc", "\\xa2", "\\n"]


@pytest.mark.parametrize(
    ("source", "row", "name"),
    [
        ("a.txt", 0, "a.txt"),
        ("a.txt", 4, "a.txt, document 5"),
        ("b.MD.gz", 4, "b.MD.gz, document 5"),
        ("c.jsonl.zst", 4, "c.jsonl.zst, line 5"),
        ("d.parquet", 4, "d.parquet, row 4"),
    ],
)
def test_a_document_is_named_as_errors_name_it(source, row, name):
    assert shown.name_document(source, row) == name
