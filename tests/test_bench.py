"""The benchmarks run from their command lines and print what they compare; no test looks at how fast anything is."""

import importlib
import importlib.util
import json
import re

import pytest
from bench_corpus_help import read_page
from bench_rounds import print_ratio, run_interleaved
from support import ROOT, run_program

pytestmark = pytest.mark.slow
needs_gigatoken = pytest.mark.skipif(
    importlib.util.find_spec("gigatoken") is None, reason="the extra `fast` is not installed"
)


@pytest.fixture
def file(tmp_path):
    """A small file of JSON lines."""
    texts = [f"Document {n} counts to {n * n}, and « naïvely » says so. " * (1 + n % 20) for n in range(60)]
    file = tmp_path / "in.jsonl"
    lines = (json.dumps({"text": text, "id": number}) for number, text in enumerate(texts))
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@pytest.fixture
def bench(tmp_path, file):
    """Run `scripts/bench.py` on a small file and return its lines of output."""

    def run(name, *arguments):
        done = run_program(ROOT / "scripts/bench.py", name, *arguments, "--file", file, cwd=tmp_path, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def run_code(code, *arguments):
    """`bench_rounds.run_program` in a process that has imported torch already."""
    done = run_program("-c", code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def bench_here(tmp_path, file, monkeypatch, capsys):
    """The same of a benchmark that starts many processes: it runs in this one, and its processes start warm."""

    def run(name, *arguments):
        module = importlib.import_module(f"bench_{name}")
        monkeypatch.setattr(module, "run_program", run_code)
        monkeypatch.chdir(tmp_path)
        module.main([*arguments, "--file", str(file)])
        return capsys.readouterr().out.splitlines()

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

    assert run_interleaved({"a": run("a"), "b": run("b")}, 2) == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert order == ["a", "b"] * 3


def test_a_ratio_is_the_median_of_the_rounds_ratios_and_not_the_ratio_of_medians(capsys):
    print_ratio({"ours": [1.0, 2.0, 4.0], "other": [2.0, 2.0, 2.0]}, "ours", "other", target="1.50")
    assert capsys.readouterr().out == "  ours has 1.00 of other's speed (0.50 to 2.00); target 1.50\n"
    print_ratio({"ours": [1.0, 10.0, 2.0], "other": [5.0, 20.0, 1.0]}, "ours", "other")
    assert capsys.readouterr().out == "  ours has 2.00 of other's speed (0.50 to 5.00)\n"


def test_an_unknown_benchmark_is_refused():
    done = run_program(ROOT / "scripts/bench.py", "sing")
    assert done.returncode
    assert "tokenize|write|load" in done.stderr


@needs_gigatoken
def test_tokenize_compares_both_engines_with_ours_on_the_same_tokens(bench_here):
    lines = bench_here("tokenize", "speed", "--rounds", "1")
    names = ["stridemill", "encode_files", "stridemill engine=tiktoken", "encode_ordinary_batch", "encode_to_numpy"]
    assert rows(lines, "MB/s") == names
    ratios = [re.match(r"  (.+) has [\d.]+ of (.+)'s speed \(.*\); target ([\d.]+)$", line) for line in lines[-3:]]
    assert [match.groups() for match in ratios] == [
        ("stridemill", "encode_ordinary_batch", "8"),
        ("stridemill", "encode_files", "0.80"),
        ("stridemill engine=tiktoken", "encode_to_numpy", "0.90"),
    ]


@needs_gigatoken
def test_tokenize_reports_memory_of_both_kinds_of_file_and_reads_every_format(bench_here):
    lines = bench_here("tokenize", "memory", "formats", "--rounds", "1")
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
def test_write_compares_with_the_bare_script_and_with_write_table(bench_here):
    lines = bench_here("write", "--rounds", "1", "--max-length", "64")
    assert rows(lines, "MB/s") == ["stridemill", "bare script"]
    assert rows(lines, "kwindows/s") == ["stridemill", "write_table"] * 2
    assert rows(lines, "Mtokens/s")[-2:] == ["pack", "join"]
    assert rows(lines, "Mdocuments/s") == [f"packing {length}" for length in (1024, 2048, 4096, 8192)]
    assert sum("has" in line and "'s speed" in line for line in lines) == 4


def test_remote_compares_an_object_store_with_the_folder(bench):
    brief = ("--rounds", "1", "--seconds", "0.02", "--warm-up", "0.02", "--max-length", "64", "--latency", "0.005")
    lines = bench("remote", *brief)
    measured = [*["folder", "object store", "cached"] * 2, *["folder", "object store"] * 2, "requests alone"]
    assert rows(lines, "Mtok/s") == measured
    assert sum(" round trips, " in line for line in lines) == 2


def test_build_compares_a_bucket_with_folders_and_counts_requests(bench):
    lines = bench("build", "--rounds", "1", "--max-length", "64", "--server", "moto")
    assert rows(lines, "MB/s") == ["folders", "moto"]
    assert re.fullmatch(r"  \d+ requests \(.*\), \d+ MB read, \d+ MB written", lines[-1])


def test_load_compares_the_loader_with_slices_and_an_embedding(bench):
    options = [
        "--orders",
        "full",
        "--rounds",
        "1",
        "--seconds",
        "0.05",
        "--epochs",
        "2",
        "--max-length",
        "64",
        "--workers",
        "1",
    ]
    lines = bench("load", *options)
    yardsticks = ["slices", "integer slices", "copy"]
    ways = ["loader", "documents", "positions", "bounds", "loader, 1 workers", "DataLoader, 1 workers"]
    assert rows(lines, "Mtok/s") == [*yardsticks, *ways, "embedding alone", "embedded batches"]
    assert [line.split(":")[0] for line in lines[-2:]] == [f"memory, full, after {n} epochs" for n in (1, 2)]


def test_layout_compares_encodings_and_sizes_of_row_groups(bench):
    lines = bench("layout", "--rounds", "1")
    tables = [line for line in lines if line.startswith("max_length")]
    assert [re.match(r"max_length \d+, stride \d+", line)[0] for line in tables] == [
        "max_length 1024, stride 1024",
        "max_length 256, stride 1",
    ]
    assert sum("PLAIN, zstd 1 " in line for line in lines) == 2
    assert sum("stridemill (PLAIN, zstd 1)" in line for line in lines) == 2
    assert sum("tokens in a row group" in line for line in lines) == 14


COMPARISONS = {
    "run": ["--workers", "1", "--max-length", "64"],
    "load": ["--seconds", "0.05", "--max-length", "64", "--rounds", "1"],
}


@needs_gigatoken
def test_a_comparison_without_peers_measures_stridemill_alone(file, tmp_path):
    program = ROOT / "benchmarks" / "run.py"
    done = run_program(program, "--file", file, "--megabytes", 1, *COMPARISONS["run"], "--peers", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    ((named, ratio),) = re.findall(r"^  (\w+) .*/s .*stridemill is +([\d.]+) times as fast$", done.stdout, re.MULTILINE)
    assert (named, float(ratio)) == ("stridemill", 1.0)


@needs_gigatoken
@pytest.mark.parametrize("name", COMPARISONS)
def test_peers_run_on_several_texts_from_any_folder_and_one_that_fails_is_left_out(name, file, tmp_path):
    python = tmp_path / "peers" / "python"  # stands for a peer of 0.1 s and 100,000 tokens, and for one that fails
    python.parent.mkdir()
    python.write_text(
        '#!/bin/sh\ncase "$*" in *megatron*) echo no memory >&2; exit 1;; esac\necho RESULT 0.1 100000\n',
        encoding="utf-8",
    )
    python.chmod(0o755)
    (tmp_path / "other.jsonl").write_bytes(file.read_bytes())
    texts = {"run": ["in", "other"], "load": ["in"]}[name]  # each starts two processes in the second
    arguments = ["--file", *(f"{text}.jsonl" for text in texts), "--megabytes", 1, *COMPARISONS[name]]
    if name == "run":
        arguments += ["--peer-megabytes", 1]
    arguments += ["--python", "peers/python", "--peers", "litdata", "megatron"]
    done = run_program(ROOT / "benchmarks" / f"{name}.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"MB of (\w+)\.jsonl", done.stdout) == texts
    megabytes = min(1.0, file.stat().st_size / 1e6)
    rate = {"run": megabytes / 0.1, "load": 1.0}[name]
    found = re.findall(r"^  litdata +([\d.]+) M(?:B|tok)/s", done.stdout, re.MULTILINE)
    assert [float(one) for one in found] == pytest.approx([rate] * len(texts), abs=0.06)
    said = done.stderr.splitlines()
    assert len(said) == len(texts)
    assert all(re.fullmatch(r"  megatron.*: left out: no memory", line) for line in said)
    assert not re.search(r"^  megatron.*/s", done.stdout, re.MULTILINE)


@needs_gigatoken
def test_a_python_that_is_not_there_leaves_its_peers_out(file, tmp_path):
    arguments = ["--file", file, "--megabytes", 1, *COMPARISONS["run"], "--python", tmp_path / "python"]
    done = run_program(ROOT / "benchmarks" / "run.py", *arguments, "--peers", "litdata", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  litdata.*: left out: .*No such file or directory: '.*/python'$", done.stderr, re.MULTILINE)
    assert "times as fast" in done.stdout


@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            ["--file", "in.jsonl", "--peers", "parquet"],
            r"invalid choice: 'parquet' \(choose from .*litdata",
        ),
        (["--file", "gone.jsonl"], r"--file: gone\.jsonl is not a file"),
    ],
)
def test_an_unknown_peer_or_file_is_refused_in_one_line(name, arguments, reason, file, tmp_path):
    done = run_program(ROOT / "benchmarks" / f"{name}.py", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(reason, done.stderr.splitlines()[-1])


@pytest.mark.slow
def test_mixture_compares_many_sources_with_few(tmp_path):
    size = ["--sources", "4", "--windows", "8", "--max-length", "16", "--changes", "6"]
    done = run_program(
        ROOT / "scripts/bench.py", "mixture", *size, "--seconds", "0.05", "--rounds", "1", cwd=tmp_path, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = [re.split(r"\s{2,}", line.strip())[0] for line in done.stdout.splitlines()]
    names = ["first batch", "speed", "change, 3 sources", "change, 4 sources"]
    sizes = "4 sources, batches of 8 x 16"
    assert found == [f"order lanes, {sizes}", *names, f"order full, {sizes}", *names]


def test_a_page_of_help_becomes_its_text_line_by_line():
    page = (
        "<html><head><title>Größe</title><style>p { color: red }</style><script>if (a < b) f('<p>');</script></head>"
        "<body><!-- <p>hidden</p> --><p>a &lt;b&gt; and <em>c</em></p>\n  <div>1<br>2</div><preview>x</preview></body>"
    )
    assert read_page(page) == "Größe\na <b> and c\n1\n2\nx"


def test_small_files_are_measured_in_a_first_run_and_in_later_ones(bench_here, tmp_path):
    title, *lines = bench_here("files", "--number", "40", "--bytes", "500", "--rounds", "1")[-6:]
    assert re.fullmatch(r"files: 40 of 500 bytes, 0 MB in 1 chunks", title)
    names = ["first", "other windows", "up to date", "trusted", "cat"]
    assert [line[2:18].strip() for line in lines] == names
    assert len(list((tmp_path / "outputs/bench/files-40-500").rglob("*.txt"))) == 40
