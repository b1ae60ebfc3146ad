"""The card and the open format: its snippets run as printed, and other tools read the same windows and IDs."""

import re
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest
from support import run_program, sections

from pipeline import verify_shards, write_shards
from pipeline.cli.summary import describe_write
from pipeline.tokens.store import open_store


@pytest.fixture
def report(write_books, books):
    for number in range(12):
        (books / f"{number}.txt").write_text(f"Number {number} goes by. " * 9)
    sizes = {"max_length": 16, "stride": 4, "windows_per_group": 20, "windows_per_shard": 60}
    return write_books(tokenizer="gpt2", validation=0.3, **sizes)


def run_apart(code, folder):
    """Run code in the data set's folder, with no network and no cache of the user's."""
    done = run_program("-c", code, cwd=folder, HF_HUB_OFFLINE="1", HF_HOME=str(folder.parent / "hf"))
    assert done.returncode == 0, done.stderr
    return done.stdout


def slow_sums(report):
    """By split: windows, and the sums of all inputs and all targets, from the token store alone, window by window."""
    (file,) = (report.path.parent / "cache" / "stores").iterdir()
    store = open_store(file)
    sums = {}
    for split in ("train", "validation"):
        ids = store.stream(split).read(0, len(store.stream(split))).astype(np.int64)
        starts = range(0, len(ids) - 16, 4)
        inputs = sum(int(ids[start : start + 16].sum()) for start in starts)
        targets = sum(int(ids[start + 1 : start + 17].sum()) for start in starts)
        sums[split] = (len(starts), inputs, targets)
    return sums


@pytest.mark.slow
def test_the_cards_snippets_run_as_they_are_printed(report):
    card = (report.path / "README.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(snippets) == 4
    said = run_apart("\n".join(snippets), report.path)
    sums = slow_sums(report)
    assert "torch.Size([8, 16])" in said
    assert f"({sums['train'][0]}, {sums['train'][1]})" in said, "DuckDB counts and adds"
    assert f"{sums['train'][0]} [" in said, "datasets counts"


@pytest.mark.slow
def test_datasets_finds_the_splits_by_the_card_and_reads_the_same_ids(report):
    code = (
        "import os\n"
        "from datasets import load_dataset\n"
        "for name, split in load_dataset(os.getcwd()).items():\n"
        "    print(name, split.num_rows, sum(map(sum, split['input_ids'])), sum(map(sum, split['target_ids'])))"
    )
    said = {line.split()[0]: tuple(map(int, line.split()[1:])) for line in run_apart(code, report.path).splitlines()}
    assert said == slow_sums(report)


def by_duckdb(files):
    query = f"select count(*), sum(list_sum(input_ids)), sum(list_sum(target_ids)) from '{files}'"
    return tuple(map(int, duckdb.sql(query).fetchall()[0]))


def by_polars(files):
    frame = pl.scan_parquet(files).select(
        pl.len(),
        pl.col("input_ids").arr.to_list().list.eval(pl.element().cast(pl.Int64)).list.sum().sum(),
        pl.col("target_ids").arr.to_list().list.eval(pl.element().cast(pl.Int64)).list.sum().sum(),
    )
    return tuple(map(int, frame.collect().row(0)))


def by_pandas(files):
    folder, pattern = files.rsplit("/", 1)
    frame = pd.concat([pd.read_parquet(file) for file in sorted(Path(folder).glob(pattern))])
    sums = (int(np.stack(frame[name].to_list()).astype(np.int64).sum()) for name in ("input_ids", "target_ids"))
    return (len(frame), *sums)


@pytest.mark.parametrize("read", [by_duckdb, by_polars, by_pandas])
def test_other_tools_agree_with_the_manifest_and_the_slow_twin(report, read):
    for split, sums in slow_sums(report).items():
        assert read(f"{report.path}/data/{split}-*.parquet") == sums
        assert report.manifest.splits[split].num_windows == sums[0]


def test_a_reader_of_the_whole_folder_is_not_disturbed(report):
    assert pl.scan_parquet(report.path / "data").select(pl.len()).collect().item() == sum(
        split.num_windows for split in report.manifest.splits.values()
    )


def test_the_card_has_the_counts_and_the_overlap_factor(report):
    card = (report.path / "README.md").read_text(encoding="utf-8")
    train = report.manifest.splits["train"]
    assert f"| train | {train.num_documents:,} | {train.num_tokens:,} | {train.num_windows:,} |" in card
    assert "| overlap factor | 4 (max_length / stride)" in card
    assert report.manifest.tokenizer["hash"] in card
    assert "`more/c.txt`" in card


def test_each_row_of_the_cards_table_has_two_cells(report):
    """A special token's name has bars in it."""
    lines = (report.path / "README.md").read_text().splitlines()
    (tokens,) = [line for line in lines if line.startswith("| special tokens")]
    assert len(re.findall(r"(?<!\\)\|", tokens)) == 3
    assert r"`<\|endoftext\|>`" in tokens


def test_notes_that_somebody_added_to_the_card_survive_a_repair(report, books):
    card = report.path / "README.md"
    card.write_text(card.read_text(encoding="utf-8") + "\nMy notes.\n", encoding="utf-8")
    next((report.path / "data").iterdir()).unlink()
    write_shards(
        report.path,
        **sections(
            cache_path=report.path.parent / "cache",
            corpus="text",
            corpus_path=str(books),
            max_length=16,
            stride=4,
            validation=0.3,
            windows_per_group=20,
            windows_per_shard=60,
        ),
    )
    assert card.read_text(encoding="utf-8").endswith("My notes.\n")


def test_unused_text_is_counted_in_the_manifest_the_card_and_the_summary(tmp_path):
    (tmp_path / "in").mkdir()
    for number, size in enumerate((3, 40, 16, 17, 1)):
        (tmp_path / "in" / f"{number}.txt").write_text("x" * size)
    given = {"corpus": "text", "corpus_path": str(tmp_path / "in"), "tokenizer": "bytes", "max_length": 16}
    report = write_shards(tmp_path / "out", **sections(cache_path=tmp_path / "cache", documents="separate", **given))
    # of 40: 33 in two windows; of 16: all and its end-of-text; of 17: all but its end-of-text, which does not count
    assert report.manifest.windows["left_over"] == {"train": {"tokens": 3 + 7 + 1, "documents": 2}}
    said = "11 tokens of train, with 2 complete documents"
    assert said in (report.path / "README.md").read_text()
    assert "unused    11 of 82 train tokens (13.41 %) are in no window; 2 documents are lost" in describe_write(report)
    assert not verify_shards(report.path, cache_path=tmp_path / "cache").faults
    report = write_shards(tmp_path / "pad", **sections(cache_path=tmp_path / "cache", tail="pad", **given))
    assert report.manifest.windows["left_over"] == {"train": {"tokens": 0, "documents": 0}}
    assert "  unused" not in describe_write(report)
