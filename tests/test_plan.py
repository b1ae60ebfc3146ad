"""The plan: exact if the sample is the complete input, else with margins that hold."""

import bz2
import gzip
import json
import lzma
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import divide_small_files, sections

from pipeline import CorpusConfig, WindowConfig, plan_shards, verify_shards, write_shards
from pipeline.base.wording import percent
from pipeline.cli.summary import describe_comparison, describe_plan, describe_write
from pipeline.corpus import compression, sample
from pipeline.shards.estimate import estimate_total
from pipeline.shards.planned import compare_with_plan

REST = {"tokenizer": "bytes", "windows_per_shard": 64, "windows_per_group": 32, "audit": 0.0, "workers": 2}


@pytest.fixture
def folder(tmp_path):
    """60 texts of different lengths."""
    folder = tmp_path / "texts"
    folder.mkdir()
    sizes = np.random.default_rng(5).integers(200, 2000, 60)
    for number, size in enumerate(sizes):
        (folder / f"{number:02}.txt").write_text(f"text {number} " * (int(size) // 8), encoding="utf-8")
    return folder


@pytest.fixture
def plan(tmp_path, folder):
    def run(**window):
        given = {"max_length": 16, **window}
        options = {**REST, **given, "corpus": "text", "corpus_path": folder, "cache_path": tmp_path / "cache"}
        return plan_shards(tmp_path / "shards", **sections(**options)), options

    return run


WINDOWS = [
    {},
    {"stride": 3},
    {"stride": 5, "tail": "pad"},
    {"documents": "separate", "tail": "pad"},
    {"documents": "pack", "validation": 0.3},
    {"validation": 0.3},
    {"order": "shuffled"},
]


@pytest.mark.parametrize("window", WINDOWS)
def test_a_corpus_that_is_sampled_completely_is_planned_exactly(plan, tmp_path, window):
    planned, options = plan(**window)
    assert not (tmp_path / "shards").exists(), "nothing is written"
    report = write_shards(tmp_path / "shards", **sections(**options))
    entries = report.manifest.splits.values()
    assert planned.documents.value == 60
    assert planned.tokens.value == sum(split.num_tokens for split in entries)
    assert planned.windows.value == sum(split.num_windows for split in entries)
    assert planned.shards.value == sum(len(split.shards) for split in entries)
    assert {name: found.value for name, found in planned.splits.items()} == {
        name: split.num_windows for name, split in report.manifest.splits.items()
    }
    assert {name: found.value for name, found in planned.padding.items()} == report.padding
    assert (planned.stops, planned.rejected) == ([], {})
    assert planned.tokens.margin == planned.windows.margin == planned.shards.margin == 0
    assert report.chunks_made == 0, "what the sample tokenized is not done again"
    for shown in (repr(planned), repr(report)):
        assert len(shown) < 300
        assert "\n" not in shown
    assert f"windows={planned.windows.value:,.0f}" in repr(planned)
    assert f"train={report.manifest.splits['train'].num_windows:,}" in repr(report)
    assert planned._repr_html_().startswith("<table>")


@pytest.mark.slow
@pytest.mark.parametrize("window", WINDOWS)
def test_an_estimate_from_a_sample_holds_within_its_margins(plan, tmp_path, monkeypatch, window):
    divide_small_files(monkeypatch)  # about 30 partitions
    planned, options = plan(**window)
    assert 0 < planned.sampled_bytes < planned.input_bytes / 2
    report = write_shards(tmp_path / "shards", **sections(**options))
    entries = report.manifest.splits.values()
    came = {
        "documents": sum(split.num_documents for split in entries),
        "tokens": sum(split.num_tokens for split in entries),
        "windows": sum(split.num_windows for split in entries),
        "shards": sum(len(split.shards) for split in entries),
    }
    for name, value in came.items():
        estimate = getattr(planned, name)
        assert abs(value - estimate.value) <= estimate.margin + 1, name
        assert estimate.margin < estimate.value, name
    assert report.chunks_made < report.chunks


@pytest.mark.parametrize("validation", [0.0, 0.3])
def test_the_plan_of_a_single_document_is_exact(plan, folder, tmp_path, validation):
    for file in list(folder.iterdir())[1:]:
        file.unlink()
    planned, options = plan(validation=validation, stride=5, max_length=12)
    report = write_shards(tmp_path / "shards", **sections(**options))
    stored = sum(shard.bytes for split in report.manifest.splits.values() for shard in split.shards)
    assert (planned.documents.value, planned.documents.margin) == (1, 0)
    assert abs(stored - planned.bytes.value) <= planned.bytes.margin
    names = [line.split()[0] for line in describe_write(report).splitlines() if "windows   max_length" in line]
    assert names == list(report.manifest.splits)


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("window", [*WINDOWS, {"stride": 3, "validation": 0.5, "tail": "pad"}])
def test_any_number_of_row_groups_is_estimated(plan, folder, tmp_path, groups, window):
    texts = sorted(folder.iterdir())
    for file in texts[8:]:
        file.unlink()
    for file in texts[:8]:
        file.write_text(f"{file.stem} " * 10 * groups)
    planned, options = plan(**window, windows_per_group=16, windows_per_shard=64)
    report = write_shards(tmp_path / "shards", **sections(**options))
    stored = sum(shard.bytes for split in report.manifest.splits.values() for shard in split.shards)
    assert 0 < planned.bytes.margin < planned.bytes.value
    assert abs(stored - planned.bytes.value) <= planned.bytes.margin


def test_the_ratio_estimator_by_eye():
    exact = estimate_total([10, 20], sizes=[1, 2], total=3, population=2)
    assert (exact.value, exact.margin) == (30, 0)
    even = estimate_total([10, 20], sizes=[1, 2], total=30, population=20)
    assert (even.value, even.margin) == (300, 0), "ten for each unit of size, everywhere"
    uneven = estimate_total([10, 20, 60], sizes=[1, 2, 3], total=60, population=30)
    assert uneven.value == 900
    assert uneven.margin == pytest.approx(4.30 * 60 / 6 * np.sqrt(3 / 2 * (5**2 + 10**2 + 15**2)) * np.sqrt(0.9))


def test_plan_is_a_stage(cli, tmp_path):
    done = cli("stages=[plan]", "tokenizer=bytes")
    assert done.returncode == 0, done.stderr
    for line in ("documents 79", "tokens    ", "windows   ", "shards    1", "bytes     ", "memory    ", "seconds   "):
        assert f"  {line}" in done.stdout
    assert not list(tmp_path.rglob("*.parquet"))


def count_padding_slowly(report):
    """By split, the positions of all windows that are after their `length`."""
    counts = {}
    for name, split in report.manifest.splits.items():
        tables = [pq.read_table(report.path / shard.path) for shard in split.shards]
        counts[name] = sum(split.max_length - length for table in tables for length in table["length"].to_pylist())
    return counts


@pytest.mark.parametrize("documents", ["join", "separate", "pack"])
def test_padding_is_counted_in_plan_report_manifest_card_and_summary(plan, tmp_path, documents):
    planned, options = plan(documents=documents, tail="pad", validation=0.3, max_length=100)
    report = write_shards(tmp_path / "shards", **sections(**options))
    padding = count_padding_slowly(report)
    assert report.padding == report.manifest.windows["padding"] == padding
    assert {name: found.value for name, found in planned.padding.items()} == padding
    train = report.manifest.splits["train"].num_windows * 100
    assert f"{padding['train']:,} positions of train windows" in (report.path / "README.md").read_text()
    share = percent(padding["train"], train)
    assert f"{padding['train']:,} of {train:,} positions in train windows ({share})" in describe_write(report)
    assert f"{padding['train']:,} of {train:,} positions in train windows ({share})" in describe_plan(planned)
    cut = {name: found.value for name, found in planned.cut.items()}
    assert report.manifest.windows.get("cut", {}) == cut
    if documents == "pack":
        said = f"{cut['train']:,.0f} documents of train longer than a window"
        assert said in describe_write(report)
        assert said in describe_plan(planned)
        assert (
            f"| longer than a window, and cut | {cut['train']:,.0f} documents of train"
            in (report.path / "README.md").read_text()
        )
    assert not verify_shards(report.path, cache_path=tmp_path / "cache").faults


def test_a_plan_says_that_too_many_documents_are_rejected(tmp_path):
    lines = [json.dumps({"text": f"document {n}"}) if n % 50 else '{"text": cut' for n in range(600)]
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    options = sections(
        corpus="jsonl", corpus_path=tmp_path / "bad.jsonl", tokenizer="bytes", cache_path=tmp_path / "cache"
    )
    planned = plan_shards(tmp_path / "shards", **options)
    assert planned.rejected == {"not_json": 12}
    (stop,) = planned.stops
    assert "12 of 600 documents in the sample are rejected (2.00%), more than corpus.max_bad_fraction=0.01" in stop
    assert f"would stop with exit code 1: {stop}" in describe_plan(planned)
    with pytest.raises(ValueError, match=r"12 of 600 documents are rejected"):
        write_shards(tmp_path / "shards", **options)


def test_a_plan_says_that_a_split_is_too_short_for_a_window(plan, tmp_path):
    planned, options = plan(max_length=5000, documents="separate")
    (stop,) = planned.stops
    with pytest.raises(ValueError, match="the train split has") as refused:
        write_shards(tmp_path / "shards", **sections(**options))
    assert stop == str(refused.value)


def test_a_plan_says_that_the_disk_is_too_small(plan, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    planned, _ = plan()
    assert [stop.split(":")[0] for stop in planned.stops] == ["shards.path"]


@pytest.mark.parametrize("window", WINDOWS)
def test_a_plan_is_exact_where_the_cache_has_all_tokens(plan, tmp_path, monkeypatch, window):
    divide_small_files(monkeypatch)  # about 30 partitions
    estimated, options = plan(**window)
    report = write_shards(tmp_path / "shards", **sections(**options))
    assert estimated.windows.margin > 0
    compared = compare_with_plan(plan(**window)[0], report)
    for name, one in compared.items():
        if name != "bytes":
            assert (one["planned"], one["margin"]) == (one["found"], 0), name
    said = describe_comparison(compared).splitlines()
    assert said[0].startswith("  planned   exactly: documents, tokens, windows, shards")
    assert [line.split()[1] for line in said[1:]] == ["bytes"]
    wrong = {
        "windows": {"planned": 7.0, "margin": 0.0, "found": 8.0},
        "shards": {"planned": 9, "margin": 1, "found": 3},
    }
    assert describe_comparison(wrong).splitlines() == [
        "  planned   windows 7   found 8   the corpus was changed since the plan",
        "  planned   shards 9 ± 1   found 3   outside the margin",
    ]


PACK = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lambda content: lzma.compress(content, preset=0),
    "zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


@pytest.mark.parametrize(
    ("packing", "kind"), [*((packing, "jsonl") for packing in PACK), ("gz", "delimited"), ("gz", "text")]
)
def test_of_a_large_compressed_file_a_plan_reads_the_start(tmp_path, monkeypatch, packing, kind):
    monkeypatch.setattr(compression, "BLOCK_BYTES", 20_000)
    monkeypatch.setattr(compression, "INPUT_BYTES", 10_000)
    monkeypatch.setattr(sample, "START_BYTES", 1_000_000)
    draw = np.random.default_rng(3)
    texts = [" ".join(map(str, draw.integers(0, 10**9, draw.integers(5, 60)))) for _ in range(12_000)]
    content = {"jsonl": "\n".join(json.dumps({"text": text}) for text in texts), "delimited": "<>".join(texts)}
    file = tmp_path / f"texts.{'jsonl' if kind == 'jsonl' else 'txt'}.{packing}"
    file.write_bytes(PACK[packing](content.get(kind, " ".join(texts)).encode()))
    corpus = CorpusConfig(
        name="jsonl" if kind == "jsonl" else "text", path=str(file), delimiter="<>" if kind == "delimited" else None
    )
    given = {"corpus": corpus, "tokenizer": "bytes", "window": WindowConfig(max_length=64), "cache": tmp_path / "cache"}
    planned = plan_shards(tmp_path / "shards", **given)
    assert planned.sampled_starts == 1
    assert planned.sampled_bytes < planned.input_bytes / 2
    assert "of 1 compressed file only the start; the rest is assumed to be like it" in describe_plan(planned)
    found = compare_with_plan(planned, write_shards(tmp_path / "shards", **given))
    near = {"bz2": 0.5, "zst": 0.25}.get(packing, 0.15)  # these two read far ahead, compared with so small a file
    for name in ("documents", "tokens", "windows"):
        assert found[name]["margin"] > 0, "it is no exact count"
        assert found[name]["planned"] == pytest.approx(found[name]["found"], rel=near), name
    again = compare_with_plan(plan_shards(tmp_path / "shards", **given), write_shards(tmp_path / "shards", **given))
    assert again["tokens"] == {"planned": found["tokens"]["found"], "margin": 0, "found": found["tokens"]["found"]}


@pytest.mark.parametrize(
    ("window", "needs"),
    [
        ({}, "needs 9 tokens; lower window.max_length or set window.tail=pad"),
        ({"documents": "separate"}, "needs 9 tokens of one document with its end-of-text; lower window.max_length or"),
        ({"tail": "pad"}, "needs 2 tokens; check the corpus"),
        ({"tail": "pad", "stride": 2}, "needs 2 tokens; check the corpus"),
    ],
)
def test_a_text_that_is_too_short_is_told_what_a_window_needs(tmp_path, window, needs):
    given = {"tokenizer": "bytes", "cache": tmp_path / "cache"}
    enough = {"tail": "pad", "documents": "separate"} if needs.startswith("needs 2") else {**window, "tail": "pad"}
    text = "a" if needs.startswith("needs 2") else "abcdefg"
    with pytest.raises(ValueError, match=needs):
        write_shards(tmp_path / "no", corpus=[text], window=WindowConfig(max_length=8, **window), **given)
    write_shards(tmp_path / "yes", corpus=[text], window=WindowConfig(max_length=8, **enough), **given)
