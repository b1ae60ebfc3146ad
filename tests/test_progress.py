"""A long stage says how far it is where there is no terminal, and a run's log and summary say how it went and ended."""

import csv
import importlib.util
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
import warnings
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import environment, errors_of

from pipeline.base import progress
from pipeline.base.progress import ProgressBar
from pipeline.base.wording import duration, out_of
from pipeline.cli.log import logged_warnings

LINE = re.compile(r"(?:(point \d+)  )?(\w+)  ([\d.,]+) of ([\d.,]+) ([^\s(]+(?: [^\s(]+)?)(?: \((\d+) %\))?")


@pytest.fixture
def said(caplog, monkeypatch):
    """What a bar says in this process, with a line every hundredth of a second."""
    monkeypatch.setattr(progress.lines, "interval", 0.01)
    caplog.set_level(logging.INFO, progress.LOG.name)
    return lambda: [record.getMessage() for record in caplog.records]


def table(folder):
    with (folder / "sweep.csv").open(newline="") as rows:
        return list(csv.DictReader(rows))


def wait_for(found, limit=200):
    deadline = time.monotonic() + limit
    while not found() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert found()


def test_a_stage_says_its_start_each_interval_and_its_end(said):
    def lines_with(part):
        return [line for line in said() if line.startswith(f"write  {part}  ")]

    with ProgressBar("write", 4096, "windows") as bar:
        assert said()[0] == "write  0 of 4,096 windows (0 %)  starts"
        bar.update(1024)
        wait_for(lambda: lines_with("1,024 of 4,096 windows (25 %)"))
        bar.update(1024)
        wait_for(lambda: lines_with("2,048 of 4,096 windows (50 %)"))
        bar.update(2048)
    first = lines_with("1,024 of 4,096 windows (25 %)")[0]
    assert "windows/s" in first
    assert first.endswith(" left")
    assert re.fullmatch(r"write  4,096 of 4,096 windows \(100 %\)  \S+ (k |M )?windows/s  done in \S+ s", said()[-1])


def test_lines_come_while_nothing_is_finished_and_a_stage_that_fails_says_where(said):
    with pytest.raises(ValueError, match="broken"), ProgressBar("tokenize", 66_000_000, "B") as bar:
        wait_for(lambda: len(said()) > 3)
        bar.update(41_000_000)
        raise ValueError("broken")
    assert said()[1] == "tokenize  0 of 66 MB (0 %)  0 B/s"
    assert "  stopped after " in said()[-1]
    assert "tokenize  41 of 66 MB (62 %)  " in said()[-1]


def test_a_bar_that_goes_on_counts_its_own_work_alone_in_the_rate(said):
    with ProgressBar("train", 1000, "steps", done=999) as bar:
        bar.update()
        time.sleep(0.05)
    speed = re.search(r"1,000 of 1,000 steps \(100 %\)  (\S+) (k?) ?steps/s", said()[-1])
    assert not speed[2]
    assert float(speed[1]) <= 20


def test_a_program_that_asks_for_no_log_gets_no_thread_and_no_line(caplog):
    with ProgressBar("write", 10, "windows") as bar:
        assert bar.thread.ident is None
    assert caplog.records == []


@given(st.integers(0, 10**15), st.integers(1, 10**15), st.sampled_from(["B", "tokens", "windows"]))
def test_a_part_and_its_total_are_in_one_unit(done, total, unit):
    shown = out_of(min(done, total), total, unit)
    part, whole, prefix = re.fullmatch(r"([\d.,e+]+) of ([\d.,]+) ([kMGT]?) ?\w+ \(\d+ %\)", shown).groups()
    scale = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[prefix]
    assert float(part.replace(",", "")) * scale == pytest.approx(min(done, total), rel=0.01, abs=0.01 * total)
    assert float(whole.replace(",", "")) * scale == pytest.approx(total, rel=0.01)


def test_durations_come_in_units_people_use():
    assert [duration(length) for length in (1.62, 99, 119, 3600, 7200, 12_345)] == [
        "1.62 s",
        "99 s",
        "2 min",
        "60 min",
        "2 h 0 min",
        "3 h 26 min",
    ]
    assert out_of(1, 1, "windows") == "1 of 1 window (100 %)"


def test_warnings_go_to_the_log_and_still_to_where_they_went(caplog, recwarn):
    with logged_warnings():
        warnings.warn("threads are ignored", UserWarning, stacklevel=1)
    assert [str(one.message) for one in recwarn] == ["threads are ignored"]
    assert any("threads are ignored" in record.getMessage() for record in caplog.records)


# --- the command line ---


def start(*arguments, cwd, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=cwd,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_without_a_terminal_each_stage_has_lines_on_stderr_and_with_times_in_the_log(cli, tmp_path):
    done = cli("stages=[plan,write,verify,load]", "tokenizer=bytes", "hydra.run.dir=R")
    assert (done.returncode, errors_of(done)) == (0, "")
    found = [LINE.match(line) for line in done.stderr.splitlines()]
    assert [line[2] for line in found] == [
        name for name in ("plan", "tokenize", "write", "verify", "load") for _ in "12"
    ]
    assert all(line[6] == "100" for line in found[1::2])
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr
    log = (tmp_path / "R/stridemill.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ ", line) for line in log)
    words = [line.partition(" INFO ")[2] for line in log]
    assert [line for line in words if LINE.match(line)] == done.stderr.splitlines(), "the same lines"
    assert [line for line in words if re.match(r"stage \w+ starts", line)] == [
        f"stage {name} starts" for name in ("plan", "write", "verify", "load")
    ]
    assert sum(bool(re.match(r"stage \w+ is done in ", line)) for line in words) == 4
    assert any(re.search(r"tokens +466,195 tokens|tokens +[\d,]+ tokens", line) for line in words), "key counts"
    assert words[-1].startswith("done in ")
    assert summary_of(tmp_path / "R")["status"] == "done"


def read_to_the_end(terminal):
    parts = []
    with suppress(OSError):  # Linux says so that the other end is closed
        while part := os.read(terminal, 1 << 16):
            parts.append(part)
    os.close(terminal)
    return b"".join(parts).decode()


@pytest.mark.slow
def test_at_a_terminal_the_bars_stay_and_the_log_has_the_lines(tmp_path):
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    command = [sys.executable, "-m", "pipeline", "stages=write", "tokenizer=bytes", "hydra.run.dir=R"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=stderr
    ) as process:
        os.close(stderr)
        shown = read_to_the_end(terminal)  # while it runs: a terminal holds few kilobytes that nobody reads
    assert process.returncode == 0
    assert "tokenize: 100%" in shown
    assert not any(LINE.match(line) for line in re.split(r"[\r\n]+", shown))
    assert "tokenize  466 of 466 kB (100 %)" in (tmp_path / "R/stridemill.log").read_text()


def slow_corpus(folder):
    """A corpus that takes many seconds: long texts, encoded by tiktoken in one thread."""
    line = json.dumps({"text": "The kettle sang. She poured the tea, and counted: 1, 2, 3. " * 20})
    (folder / "big.jsonl").write_text(f"{line}\n" * 40_000)
    return ["corpus=jsonl", "corpus.path=big.jsonl", "tokenizer.engine=tiktoken", "executor.workers=1", "stages=write"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "code", "status", "error"),
    [
        (signal.SIGINT, 130, "interrupted", "interrupted"),
        (signal.SIGTERM, 143, "interrupted", "interrupted"),
        (signal.SIGKILL, -9, "running", None),
    ],
)
def test_a_run_that_is_stopped_has_said_how_far_it_was_and_leaves_its_status(tmp_path, stop, code, status, error):
    process = start(*slow_corpus(tmp_path), "progress.every=0.3", "hydra.run.dir=R", cwd=tmp_path)
    log = tmp_path / "R/stridemill.log"
    wait_for(lambda: log.exists() and log.read_text().count(" INFO tokenize  ") >= 3)
    assert summary_of(tmp_path / "R")["status"] == "running"
    process.send_signal(stop)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    summary = summary_of(tmp_path / "R")
    assert (summary["status"], summary["error"]) == (status, error)
    if stop != signal.SIGKILL:
        assert re.search(r" ERROR interrupted after \S+ s: interrupted\n$", log.read_text())
        assert "stridemill: interrupted. Finished work is kept" in errors


def test_the_points_of_a_sweep_say_which_they_are_and_have_a_log_and_a_summary_each(cli, tmp_path):
    if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        pytest.skip("hydra-joblib-launcher is not installed (pip install 'stridemill[parallel]')")
    (tmp_path / "short.txt").write_text("ten bytes.")
    secret = "corpus.url='https://user:s3cret@localhost:9/v.txt?token=abc'"
    points = [
        "corpus=text",
        "corpus.path=short.txt",
        "tokenizer=bytes",
        "stages=write",
        "window.max_length=4,20",
        secret,
    ]
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    for more, folder in (([], "A"), (parallel, "B")):
        done = cli("-m", *points, *more, f"hydra.sweep.dir={folder}", PYTHONWARNINGS="ignore")
        assert done.returncode == 1
        assert "s3cret" not in done.stdout + done.stderr
        assert [row["status"] for row in table(tmp_path / folder)] == ["done", "failed"]
        labels = {
            found[1] for line in done.stderr.splitlines() if (found := LINE.match(line)) and found[2] == "tokenize"
        }
        assert labels == {"point 0", "point 1"}, done.stderr
        assert [summary_of(tmp_path / folder / name)["status"] for name in "01"] == ["done", "failed"]
        assert "the train split has 10 tokens" in summary_of(tmp_path / folder / "1")["error"]
        log = (tmp_path / folder / "1/stridemill.log").read_text()
        assert re.search(r" ERROR failed after \S+ s: the train split has 10 tokens", log)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [str(path) for path in files if b"s3cret" in path.read_bytes() or b"token=abc" in path.read_bytes()] == []
