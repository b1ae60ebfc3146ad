"""The main job as a user runs it: in an empty folder, by its command line."""

import json
from pathlib import Path

import pytest
from support import errors_of, run_python


@pytest.fixture
def python(tmp_path):
    """Run `python -m pipeline` in an empty folder, where `cli` forks a process that has imported it already."""

    def run(*arguments):
        return run_python("-m", "pipeline", *arguments, cwd=tmp_path)

    return run


def summaries(folder):
    return sorted(Path(folder).rglob("summary.json"))


@pytest.mark.slow
def test_the_default_runs_end_to_end_and_says_what_it_did(python, tmp_path):
    done = python()
    assert done.returncode == 0, done.stderr
    assert errors_of(done) == "", "bars are hidden off a terminal"
    manifest = json.loads((tmp_path / "outputs/shards/python_docs-gpt2-L256-S256/manifest.json").read_text())
    split = manifest["splits"]["train"]
    for count in (manifest["corpus"]["documents"], manifest["corpus"]["characters"], split["num_tokens"]):
        assert f"{count:,}" in done.stdout
    assert f"{split['num_windows']:,} windows" in done.stdout
    for shape in (
        "input_ids   [8, 256]",
        "target_ids  [8, 256]",
        "embeddings  [8, 256, 256]",
        "weight      [50257, 256]",
    ):
        assert shape in done.stdout
    assert "each input predicts the token that follows it" in done.stdout
    (summary,) = summaries(tmp_path)
    assert json.loads(summary.read_text())["write"]["manifest"]["fingerprint"] == manifest["fingerprint"]


def test_a_second_run_does_nothing_but_say_so(cli, tmp_path):
    assert cli("stages=[write]", "tokenizer=bytes").returncode == 0
    file = next(tmp_path.rglob("train-*.parquet"))
    before = file.stat().st_mtime_ns
    again = cli("stages=[write]", "tokenizer=bytes")
    assert again.returncode == 0
    assert "up to date: " in again.stdout
    assert file.stat().st_mtime_ns == before


def test_the_notebooks_experiment_gives_its_numbers(cli, verdict):
    done = cli("experiment=notebook", f"corpus.path={verdict}")
    assert done.returncode == 0, done.stderr
    for figure in ("5,145 tokens", "1,286 windows", "[1286, 4, 256]", "[50257, 256]"):
        assert figure in done.stdout
    assert "5,141 windows" in cli("experiment=notebook", f"corpus.path={verdict}", "window.stride=1").stdout


@pytest.mark.slow
def test_a_wrong_key_ends_with_one_line_and_code_2(python, tmp_path):
    done = python("window.strid=3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "stridemill: window.strid: no such key; did you mean 'window.stride'?\n"
    assert list(tmp_path.iterdir()) == [], "nothing is made before the config is known to be right"


def test_bad_data_ends_with_one_line_and_code_1(cli, tmp_path):
    (tmp_path / "short.txt").write_text("too short")
    done = cli("corpus=text", "corpus.path=short.txt")
    assert done.returncode == 1
    assert errors_of(done).count("\n") == 1
    assert "the train split has 2 tokens" in done.stderr


def test_a_traceback_is_shown_to_those_who_ask(cli):
    done = cli("corpus=text", "corpus.path=none.txt", HYDRA_FULL_ERROR="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


@pytest.mark.slow
def test_a_sweep_over_any_keys_has_a_folder_for_each_point_and_one_token_store(python, tmp_path):
    done = python("-m", "window.stride=64,256", "shards.compression=zstd,none", "stages=[write]", "tokenizer=bytes")
    assert done.returncode == 0, done.stderr
    points = summaries(tmp_path / "outputs" / "sweeps")
    assert len(points) == 4
    written = [json.loads(point.read_text())["write"] for point in points]
    assert len({report["path"] for report in written}) == 4
    assert len({report["manifest"]["fingerprint"] for report in written}) == 4
    assert sum(report["chunks_made"] for report in written) == 1
    (sweep,) = {point.parents[1] for point in points}
    assert {Path(report["path"]).parent for report in written} == {sweep / "shards"}


def test_shuffled_shards_are_asked_for_by_one_key(cli, tmp_path):
    done = cli("stages=[write]", "tokenizer=bytes", "shards.order=shuffled", "shards.seed=3")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(next(tmp_path.rglob("manifest.json")).read_text())
    assert (manifest["windows"]["order"], manifest["windows"]["seed"]) == ("shuffled", 3)


def test_the_stages_run_apart(cli):
    early = cli("stages=[load]", "tokenizer=bytes")
    assert early.returncode == 1
    assert "run the write stage" in early.stderr
    assert cli("stages=[write]", "tokenizer=bytes").returncode == 0
    assert "embeddings  [8, 256, 256]" in cli("stages=[load]", "tokenizer=bytes").stdout
