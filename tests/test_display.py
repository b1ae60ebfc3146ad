"""What notebooks and terminals show of tokens, windows and batches: the right tokens, a few of them, all escaped."""

from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import ConfigError, ShardLoader, WindowConfig, WindowDataset, load_tokenizer, write_shards
from pipeline.base.display import MOST_NUMBERS, MOST_ROWS, MOST_TOKENS

TEXTS = st.one_of(
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60),
    st.sampled_from(["<script>alert(1)</script>", "&lt;", "\x1b[31m", "\u202eabc", "<|endoftext|>", "a\nb\tc", "'\"<"]),
)


class Reader(HTMLParser):
    """The tags, attributes and texts of a piece of HTML."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.texts = set(), set(), []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    text = "The kettle sang. <b>She</b> poured the tea. " * 20
    window = WindowConfig(max_length=12, stride=4)
    folder = tmp_path_factory.mktemp("display")
    return write_shards(folder / "ds", corpus=[text], tokenizer="gpt2", window=window, cache=folder / "cache").path


@given(TEXTS)
def test_a_text_is_shown_token_by_token_and_nothing_in_it_becomes_a_tag(text):
    tokenizer = load_tokenizer("gpt2")
    view = tokenizer.show(text)
    ids = tokenizer.encode(text)
    read = Reader(view._repr_html_())
    assert read.tags <= {"div", "span"}
    assert read.attributes <= {"style"}
    assert [int(one) for one in read.texts[1::2]] == ids
    assert all(one.isprintable() for one in read.texts)
    assert all(one.isprintable() for one in repr(view).split("\n"))


def test_tokens_by_eye(monkeypatch):
    tokenizer = load_tokenizer("gpt2")
    monkeypatch.setenv("COLUMNS", "30")
    assert repr(tokenizer.show("The kettle sang.\n")) == (
        "input   The  kettle  sang .\n"
        "id      464 40231   25889 13\n"
        "input   \\n\n"
        "id      198"
    )  # fmt: skip
    window = {"input_ids": [464, 40231], "target_ids": [40231, -100]}
    assert repr(tokenizer.show(window)) == "input   The      kettle\nid      464     40231\ntarget   kettle -100"
    assert Reader(tokenizer.show(window)._repr_html_()).texts == ["The", "464", " kettle", " kettle", "40231", "-100"]


def test_all_that_has_ids_is_shown_alike(path):
    tokenizer = load_tokenizer("gpt2")
    batch = next(iter(ShardLoader(path, batch_size=3, shuffle="none")))
    x, y = batch
    expected = tokenizer.show(batch)._repr_html_()
    for same in ((x, y), (x.numpy(), y.tolist()), {"target_ids": y, "input_ids": x}):
        assert tokenizer.show(same)._repr_html_() == expected
    windows = WindowDataset(path)
    pairs = WindowDataset(path, pairs=True)
    assert repr(tokenizer.show(windows[1])) == repr(tokenizer.show(pairs[1])) == repr(tokenizer.show((x[1], y[1])))
    ids = x[0].tolist()
    for same in (ids, tuple(ids), x[0], x[:1], {"input_ids": ids}):
        assert repr(tokenizer.show(same)) == repr(tokenizer.show(tokenizer.decode(ids)))


def test_the_view_says_what_it_leaves_out():
    tokenizer = load_tokenizer("bytes")
    assert repr(tokenizer.show("a" * (MOST_TOKENS + 2))).endswith("\n... and 2 more tokens in a row")
    rows = torch.zeros(MOST_ROWS + 1, 3, dtype=torch.int64)
    assert repr(tokenizer.show(rows)).endswith("\n... and 1 more row")
    assert "<p>... and 1 more row</p>" in tokenizer.show(rows)._repr_html_()
    assert "more" not in repr(tokenizer.show(rows[:MOST_ROWS]))
    assert repr(tokenizer.show("")) == repr(tokenizer.show([])) == ""


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([-1], "tokens: must be at least 0; got -1"),
        ([257], "tokens: must be at most 256; got 257"),
        (([1], [257]), "tokens: must be at most 256; got 257"),
        (["a"], "tokens: must be a whole number; got 'a'"),
        (3, "tokens: must be a text, IDs, or a window or batch with input_ids; got 3"),
        ({"labels": [1]}, "tokens: must be a text, IDs, or a window or batch"),
        (([1, 2], [3]), "tokens: must have a target for each input"),
        (([[1], [2]], [[3]]), "tokens: must have a target for each input"),
    ],
)
def test_what_has_no_tokens_of_this_vocabulary_is_refused(tokens, message):
    with pytest.raises(ConfigError) as refused:
        load_tokenizer("bytes").show(tokens)
    assert str(refused.value).startswith(message)


def test_a_batch_shows_its_first_numbers(path):
    batch = next(iter(ShardLoader(path, batch_size=MOST_ROWS + 2, shuffle="none")))
    texts = Reader(batch._repr_html_()).texts
    for row in batch.input_ids[:MOST_ROWS].tolist():
        assert " ".join(map(str, row[:MOST_NUMBERS])) + " ..." in texts
    assert "... and 2 more rows" in texts
    html = WindowDataset(path)._repr_html_()
    assert "12 tokens, stride 4" in html


def test_a_path_or_a_name_becomes_no_tag(tmp_path):
    folder = tmp_path / "<b>ds"
    window = WindowConfig(max_length=4)
    report = write_shards(folder, corpus=["abc" * 20], tokenizer="bytes", window=window, cache=tmp_path)
    shown = [report, report.manifest, ShardLoader(folder), WindowDataset(folder), next(iter(ShardLoader(folder)))]
    for one in shown:
        read = Reader(one._repr_html_())
        assert read.tags <= {"table", "tr", "th", "td", "p", "code"}
        assert read.attributes == set()
