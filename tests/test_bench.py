"""The benchmarks run from their command lines and print what they compare; no test looks at how fast anything is."""

import importlib.util
import json
import re

import pytest
from bench_rounds import by_turns, print_ratio
from support import ROOT, run_python

pytestmark = pytest.mark.slow
needs_gigatoken = pytest.mark.skipif(
    importlib.util.find_spec("gigatoken") is None, reason="the extra `fast` is not installed"
)


@pytest.fixture
def bench(tmp_path):
    """Run `scripts/bench.py` on a small file of JSON lines; its lines of output."""
    texts = [f"Document {n} counts to {n * n}, and « naïvely » says so. " * (1 + n % 40) for n in range(300)]
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")

    def run(name, *arguments):
        done = run_python(ROOT / "scripts/bench.py", name, *arguments, "--file", file, cwd=tmp_path, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def rows(lines, unit):
    """The names of the rows that end in a figure of this unit."""
    found = (re.match(rf"  (\S.*?)\s+[\d.]+ {re.escape(unit)}", line) for line in lines)
    return [match[1] for match in found if match]


def test_runs_take_turns_and_the_first_round_is_not_counted():
    order = []

    def run(name):
        def one():
            order.append(name)
            return float(len(order))

        return one

    assert by_turns({"a": run("a"), "b": run("b")}, 2) == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert order == ["a", "b"] * 3


def test_a_ratio_is_the_median_of_the_rounds_ratios_and_not_the_ratio_of_medians(capsys):
    print_ratio({"ours": [1.0, 2.0, 4.0], "other": [2.0, 2.0, 2.0]}, "ours", "other", target="1.50")
    assert capsys.readouterr().out == "  ours has 1.00 of other's speed (0.50 to 2.00); target 1.50\n"
    print_ratio({"ours": [1.0, 10.0, 2.0], "other": [5.0, 20.0, 1.0]}, "ours", "other")
    assert capsys.readouterr().out == "  ours has 2.00 of other's speed (0.50 to 5.00)\n"


def test_an_unknown_benchmark_is_refused():
    done = run_python(ROOT / "scripts/bench.py", "sing")
    assert done.returncode
    assert "tokenize|write|load" in done.stderr


@needs_gigatoken
def test_tokenize_compares_both_engines_with_ours_on_the_same_tokens(bench):
    lines = bench("tokenize", "speed", "--rounds", "1")
    names = ["stridemill", "encode_files", "stridemill engine=tiktoken", "encode_ordinary_batch", "encode_to_numpy"]
    assert rows(lines, "MB/s") == names
    ratios = [re.match(r"  (.+) has [\d.]+ of (.+)'s speed \(.*\); target ([\d.]+)$", line) for line in lines[-3:]]
    assert [match.groups() for match in ratios] == [
        ("stridemill", "encode_ordinary_batch", "8"),
        ("stridemill", "encode_files", "0.80"),
        ("stridemill engine=tiktoken", "encode_to_numpy", "0.90"),
    ]


@needs_gigatoken
def test_tokenize_reports_memory_of_both_kinds_of_file_and_reads_every_format(bench):
    lines = bench("tokenize", "memory", "formats", "--rounds", "1")
    assert [line.split()[0] for line in lines[1:3]] == ["jsonl", "text"]
    assert all(re.search(r"peak 0\.\d\d GB .* windowing starts [\d.]+ s", line) for line in lines[1:3])
    endings = ["", ".bz2", ".gz", ".xz", ".zst"]
    assert [name.split()[1] for name in rows(lines, "MB/s of one core")] == [
        *(f"corpus.jsonl{ending}" for ending in endings),
        "corpus.parquet",
        *(f"corpus.txt{ending}" for ending in endings),
        "files",
    ]


@needs_gigatoken
def test_write_compares_with_the_bare_script_and_with_write_table(bench):
    lines = bench("write", "--rounds", "1", "--max-length", "64")
    assert rows(lines, "MB/s") == ["stridemill", "bare script"]
    assert rows(lines, "kwindows/s") == ["stridemill", "write_table"] * 2
    assert sum("has" in line and "'s speed" in line for line in lines) == 3


def test_load_compares_the_loader_with_slices_and_an_embedding(bench):
    options = ["--orders", "full", "--rounds", "1", "--seconds", "0.05", "--epochs", "2", "--max-length", "64"]
    lines = bench("load", *options)
    ways = ["slices", "copy", "loader", "loader, 2 workers", "DataLoader, 2 workers"]
    assert rows(lines, "Mtok/s") == [*ways, "embedding alone", "embedded batches"]
    assert [line.split(":")[0] for line in lines[-2:]] == [f"memory, full, after {n} epochs" for n in (1, 2)]
