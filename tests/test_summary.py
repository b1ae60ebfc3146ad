"""What a run ends with can be read."""

import re

import pytest

from pipeline import CorpusConfig, write_shards
from pipeline.base.wording import counted, rate, seconds, size
from pipeline.cli.epoch import LoadReport
from pipeline.cli.summary import describe_chunks, describe_window
from pipeline.tokenizer.load import load_tokenizer


def report(input_ids, target_ids):
    return LoadReport(
        batches=1,
        windows=1,
        tokens=len(input_ids),
        seconds=1.0,
        first_batch_seconds=0.5,
        load_seconds=0.2,
        shapes={},
        weight=[],
        shuffle="none",
        window_id=3,
        input_ids=input_ids,
        target_ids=target_ids,
    )


def test_a_window_is_shown_with_each_input_beside_its_target():
    text = describe_window(report([40, 367, 2885], [367, 2885, 1464]), load_tokenizer("gpt2"))
    lines = [line.split() for line in text.splitlines()]
    assert lines[2:5] == [
        ["0", "'I'", "40", "'", "H'", "367"],
        ["1", "'", "H'", "367", "'AD'", "2885"],
        ["2", "'AD'", "2885", "'", "always'", "1464"],
    ]
    assert "target  ' HAD always'" in text


def test_a_part_of_a_character_is_shown_as_its_bytes_and_an_ignored_target_as_such():
    text = describe_window(report([104, 195], [195, -100]), load_tokenizer("bytes"))
    assert r"'\xc3' 195" in text
    assert "-100 (ignored)" in text


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "batch", "0 batches"),
        (1, "batch", "1 batch"),
        (2, "chunk", "2 chunks"),
        (1024, "document", "1,024 documents"),
    ],
)
def test_a_count_agrees_with_its_noun(number, noun, text):
    assert counted(number, noun) == text


def test_figures_come_in_units_people_use():
    assert size(999_700) == "1 MB", "three digits never become 1e+03"
    assert size(20_479) == "20.5 kB"
    assert size(3) == "3 B"
    assert rate(1286, 0.5, "windows") == "2.57 k windows/s"
    assert rate(2e9, 1, "B") == "2 GB/s"
    assert seconds(0.01234) == "0.0123 s"
    assert seconds(1234) == "1,234 s"


@pytest.mark.slow
def test_nothing_that_is_printed_or_written_says_one_things(cli, tmp_path):
    """A corpus of one document with one token of text, in one window of one token, in one batch of one chunk."""
    (tmp_path / "one.jsonl").write_text('{"text": "ab"}\n')
    small = ["corpus=jsonl", "corpus.path=one.jsonl", "tokenizer=bytes", "window.max_length=1", "shards.path=ds"]
    more = ["loader.batch_size=1", "embedding.dim=1", "prove.stops=1", "prove.world_sizes=[1]"]
    run = cli("stages=[plan,write,verify,load,show,prove]", *small, *more)
    assert run.returncode == 0, run.stderr
    sweep = cli("-m", "stages=write", *small, "loader.seed=1", "hydra.sweep.dir=D")
    again = cli("stages=report", "sweep.path=D")
    refused = cli("stages=load", *small, "loader.batch_size=2")
    (tmp_path / "one.jsonl").write_text('{"text": "a"}\n')
    short = cli("stages=write", *small[:-1], "shards.path=other")
    card = (tmp_path / "ds/README.md").read_text()
    printed = [run.stdout, sweep.stdout.partition("\nsweep\n")[2], again.stdout, refused.stdout, short.stdout]
    said = [*printed, *(done.stderr for done in (run, sweep, again, refused, short)), card.partition("## Load it")[0]]
    plural = r"(?<![\d,.=])1 (?!bytes of text|bytes on disk|windows/s|tokens/s)(?!is\b|this\b|s\b)\w*s\b"
    assert [re.findall(plural, text) for text in said] == [[] for _ in said]
    assert "1 window " in run.stdout
    assert "1 document " in run.stdout
    assert "1 shard," in run.stdout


def test_the_rate_of_tokenizing_is_that_of_new_text_alone(tmp_path):
    for name, letter in (("a.txt", "a"), ("b.txt", "b")):
        (tmp_path / name).write_text(letter * 1000)

    def write(to, *names):
        corpus = CorpusConfig(name="text", path=[str(tmp_path / name) for name in names])
        return write_shards(tmp_path / to, corpus=corpus, tokenizer="bytes", cache=tmp_path / "cache")

    first = write("first", "a.txt")
    assert first.new_text_seconds == first.tokenize_seconds, "all of the text is new"
    both = write("both", "a.txt", "b.txt")
    assert (both.chunks, both.chunks_made, both.bytes_tokenized) == (2, 1, 1000)
    assert 0 < both.new_text_seconds < both.tokenize_seconds
    speed, made = describe_chunks(both)
    assert speed == f"{rate(1000, both.new_text_seconds, 'B')} for 1 kB of new text"
    assert made == "1 chunk of 2 made, the others found in the cache"
    found = write("found", "b.txt", "a.txt")
    assert (found.chunks_made, found.new_text_seconds) == (0, 0)
    assert describe_chunks(found) == ["2 chunks found in the cache"]
