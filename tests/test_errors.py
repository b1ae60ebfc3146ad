"""An error is one clear line, a summary for programs and an exit code; a defect of ours keeps its traceback."""

import errno
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from hydra.core.override_parser.types import escape_special_characters
from hypothesis import given
from hypothesis import strategies as st
from support import environment, errors_of, run_program

from pipeline import ConfigError, LoaderConfig
from pipeline.base.wording import visible
from pipeline.cli.errors import LIMIT, describe_error, is_expected, report_error
from pipeline.cli.html import page
from pipeline.cli.points import Point
from pipeline.cli.sources import open_loader
from pipeline.rules import hide_secrets, reject, strip_secrets


def raised(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:  # noqa: BLE001 - any is looked at
        return error
    raise AssertionError("nothing was raised")


def refuse(error):
    raise error


def nested(depth):
    return depth and nested(depth - 1)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOENT, "No such file or directory", "a.txt"), "a.txt: No such file or directory"),
        (http.client.IncompleteRead(b"", 7), "IncompleteRead: IncompleteRead(0 bytes read, 7 more expected)"),
        (http.client.BadStatusLine(""), "BadStatusLine: "),
        (OverflowError("out of range"), "OverflowError: out of range"),
        (
            MemoryError(),
            "there is not enough memory. Lower executor.workers, loader.memory_budget or loader.batch_size",
        ),
        (RecursionError("too deep"), "the input is nested too deeply to be read (too deep)"),
        (ConfigError("window.stride: must be at least 1; got 0"), "window.stride: must be at least 1; got 0"),
    ],
)
def test_what_the_outside_world_does_wrong_is_one_line(error, line, capsys):
    assert is_expected(error)
    assert report_error(error, program="stridemill") == (2 if isinstance(error, ConfigError) else 1)
    said = capsys.readouterr().err
    assert said.startswith(f"stridemill: {line}")
    assert said.count("\n") == 1


def test_an_error_that_this_package_did_not_raise_keeps_its_traceback(capsys):
    foreign = [raised(int, "x"), raised({}.__getitem__, "key"), raised(json.loads, "{"), raised([].pop)]
    for error in foreign:
        assert not is_expected(error)
        assert report_error(error, program="stridemill") == 1
        said = capsys.readouterr().err
        assert "Traceback" in said
        assert said.endswith("stridemill: this is a defect of the program. Please report it with the lines above\n")
    assert is_expected(raised(reject, "window.stride", "must be at least 1", 0))
    assert is_expected(raised(nested, 10**6)), "any depth"


def test_the_loaders_arguments_are_named_as_the_keys_that_they_are(write_text):
    path = write_text("The kettle sang.", tokenizer="bytes", max_length=4)
    for name, value in {"batch_size": 9, "lanes": 0, "limit": 2.5, "exclude": [99], "shuffle": "f"}.items():
        section = LoaderConfig()
        object.__setattr__(section, name, value)  # past the section's own check
        with pytest.raises(ValueError, match=rf"^loader\.{name}: "):
            open_loader(path, section)
    with pytest.raises(ValueError, match=r"^(?!loader)"):
        open_loader(path / "nothing", LoaderConfig())


@given(st.text(), st.integers(0, 3000))
def test_a_line_is_short_and_has_no_control_character(text, size):
    line = describe_error(ValueError(text + "x" * size + "\x1b]0;title\x07\u202e"))
    assert len(line) <= LIMIT + 40
    assert all(letter.isprintable() for letter in line)
    assert line.endswith(r"\x1b]0;title\x07\u202e"), "the end, where the remedy is, is kept"


def test_control_characters_and_marks_of_direction_become_visible():
    hidden = "\x00\x07\x1b\x7f\x85\x9b\u2028\u202e\u2066\r\t"
    assert visible(f"a{hidden}b\nc") == r"a\x00\x07\x1b\x7f\x85\x9b\u2028\u202e\u2066\r\tb" + "\nc"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:s3cret@localhost:9/v.txt?token=abc", "https://localhost:9/v.txt"),
        ("s3://key:sec/ret@bucket/x", "s3://bucket/x"),
        ("s3://key:a?b#c@bucket/x?sig=1", "s3://bucket/x"),
        ("https://user@host/a@b/c#part", "https://host/a@b/c"),
        ("https://host:80/a", "https://host:80/a"),
        ("file:///tmp/x", "file:///tmp/x"),
    ],
)
def test_a_url_keeps_what_names_the_thing_alone(url, shown):
    assert strip_secrets(url) == shown
    assert hide_secrets(f"got '{url}' and <{url}>") == f"got '{shown}' and <{shown}>"
    assert shown in str(raised(reject, "corpus.path", "must be a path", [url]))
    assert "s3cret" not in str(raised(reject, "corpus.path", "must be a path", [url]))


@given(
    st.text(st.sampled_from("aB7 '\"<>,;[]{}()=&!$:+-/?#%*\\"), min_size=4, max_size=20).map("k{}".format),
    st.sampled_from(["{}", "key={}", "'{}', x", "['{}', '{}']", "[{},{}]", '{{"storage": "{}"}}', "Storage: {} (new)"]),
    st.sampled_from(["postgresql://user:{}@host/db", "redis+tls://:{}@host:1/0", "https://user:{}@host/?x=1"]),
)
def test_no_password_of_a_url_is_left_in_a_text(password, around, url):
    text = around.replace("{}", url.format(password)).replace("{{", "{").replace("}}", "}")
    for shown in (hide_secrets(text), hide_secrets(escape_special_characters(text))):
        assert password not in shown
        assert escape_special_characters(password) not in shown
        assert "host" in shown


def test_other_texts_than_logins_stay_as_they_are_and_take_no_time():
    for text in ("http://localhost:9, u@h", "see <https://h/x> or 'me@h'", "C://a", "a: b@c", "x://", "s3://b/a@b/c"):
        assert hide_secrets(text) == text
    for text in ("a" * 10**6, "a://" * 10**5, "u://a:" * 10**5):
        started = time.process_time()
        hide_secrets(text)
        assert time.process_time() - started < 10


def test_no_value_of_a_points_record_gets_into_the_markup_of_the_page(tmp_path):
    bad = '"><script>alert(1)</script>\x1b'
    figures = {"max_length": 8, "stride": 8, "windows": 3, "bytes_per_token": 1.0, "naive_bytes_per_token": 2.0}
    texts = {"given": {bad: bad}, "sweep": bad, "folder": bad, "shards_path": bad}
    html = page(
        [Point(point=0, overrides=bad, status=bad, error=bad, **figures, **texts)], folder=tmp_path / '"><script>'
    )
    assert "<script>" not in html
    assert "\x1b" not in html


SECRET = "https://user:s3cret@localhost:9/v.txt?token=abc"


def found_in(folder, *texts):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path) for path in files for text in texts if text.encode() in path.read_bytes()}


def test_secrets_of_urls_reach_no_file_and_no_terminal(cli, tmp_path):
    run = ["corpus=the_verdict", f'corpus.url="{SECRET}"', "stages=write", "cache.path=cache"]
    failed = cli(*run, "hydra.run.dir=R")
    assert failed.returncode == 1
    assert "https://localhost:9/v.txt" in failed.stderr
    sweep = cli("-m", *run, "window.stride=8,16", "hydra.sweep.dir=S")
    assert sweep.returncode == 1
    assert (tmp_path / "R/.hydra/config.yaml").is_file()
    assert (tmp_path / "S/multirun.yaml").is_file()
    assert (tmp_path / "S/1/traceback.txt").is_file()
    assert found_in(tmp_path, "s3cret", "token=abc") == set()
    for done in (failed, sweep, cli(f'shards.path="{SECRET}"'), cli(f'cache.path="{SECRET}"')):
        assert "s3cret" not in done.stdout + done.stderr
        assert "token=abc" not in done.stdout + done.stderr


def test_a_secret_that_is_swept_is_hidden_too_though_hydra_escapes_it(cli, tmp_path):
    urls = "corpus.url=https://user:s3cret@localhost:9/a,https://user:s3cret@localhost:9/b"
    done = cli("-m", "corpus=the_verdict", "stages=write", urls, "hydra.sweep.dir=S", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "2 points: 2 failed" in done.stdout
    assert "localhost:9/b" in (tmp_path / "S/sweep.csv").read_text()
    assert found_in(tmp_path, "s3cret") == set()
    assert "s3cret" not in done.stdout + done.stderr


def test_secrets_reach_no_file_that_a_sweeper_of_others_writes(cli, tmp_path):
    run = ["corpus=the_verdict", f'corpus.url="{SECRET}"', "stages=write", "cache.path=cache", "hydra/sweeper=basic"]
    assert cli("-m", *run, "window.stride=8,16", "hydra.sweep.dir=S").returncode == 1
    assert "https://localhost:9/v.txt" in (tmp_path / "S/multirun.yaml").read_text()
    assert found_in(tmp_path, "s3cret", "token=abc") == set()


LOGS_A_SECRET = """
import logging, sys
from pipeline.cli.program import run_program
from pipeline.cli.stages import register_sweeper

def task(config):
    try:
        raise OSError(f"cannot fetch {sys.argv[1]}")
    except OSError:
        logging.getLogger("another package").exception("no answer from %s", sys.argv[1])

sys.argv[2:] = ["-m", "loader.seed=1,2", "hydra.sweep.dir=S", *sys.argv[2:]]
secret, sys.argv[1:] = sys.argv[1], sys.argv[2:]
def job(config, secret=secret):
    sys.argv[1:] = [secret]
    task(config)
register_sweeper()
run_program(job, program="test")
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_no_process_of_a_sweep_logs_a_secret(tmp_path, launcher):
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="hydra-joblib-launcher is not installed")
    (tmp_path / "program.py").write_text(LOGS_A_SECRET)
    done = run_program("program.py", SECRET, f"hydra/launcher={launcher}", cwd=tmp_path, PYTHONWARNINGS="ignore")
    logs = [path.read_text() for path in sorted(tmp_path.rglob("stridemill.log"))]
    assert [log.count("https://localhost:9/v.txt") for log in logs] == [2, 2], done.stderr
    assert all("s3cret" not in text and "token=abc" not in text for text in [*logs, done.stdout, done.stderr])


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_a_summary_says_how_a_run_ended(cli, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"nope": 1}\n')
    done = cli("stages=write", "corpus=jsonl", "corpus.path=bad.jsonl", "hydra.run.dir=R")
    assert done.returncode == 1
    summary = summary_of(tmp_path / "R")
    assert summary["status"] == "failed"
    assert errors_of(done) == f"stridemill: {summary['error']}\n"
    assert cli("stages=[write,load]", "tokenizer=bytes", "shards.path=ds", "hydra.run.dir=R").returncode == 0
    summary = summary_of(tmp_path / "R")
    assert (summary["status"], summary["error"]) == ("done", None)
    shard = next((tmp_path / "ds/data").iterdir())
    shard.write_bytes(shard.read_bytes()[:-9])
    assert cli("stages=[verify]", "tokenizer=bytes", "shards.path=ds", "hydra.run.dir=V").returncode == 1
    summary = summary_of(tmp_path / "V")
    assert summary["status"] == "failed"
    assert summary["error"].endswith("found, listed above")
    assert summary["verify"]["faults"], "the report of the stage is there too"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code", "after"),  # the second, in seconds, while torch is imported
    [(signal.SIGINT, 130, 0.5), (signal.SIGINT, 130, 1.5), (signal.SIGTERM, 143, 0.5)],
)
def test_a_run_that_is_stopped_says_so_in_one_line_and_in_its_summary(tmp_path, sent, code, after):
    command = ["-m", "pipeline", "stages=[write,load]", "tokenizer=bytes", "window.stride=1", "hydra.run.dir=R"]
    with subprocess.Popen(
        [sys.executable, *command], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + 200
        while not (tmp_path / "R/summary.json").exists() and time.monotonic() < until:
            time.sleep(0.01)
        assert summary_of(tmp_path / "R")["status"] == "running"
        time.sleep(after)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=200)
    assert process.returncode == code
    *progress, last = errors.splitlines()
    assert last == "stridemill: interrupted. Finished work is kept; run the same command again to resume"
    assert all(line.startswith(("tokenize  ", "write  ", "load  ")) for line in progress), errors
    assert summary_of(tmp_path / "R")["status"] == "interrupted"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting wants root")
@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_needed_by_no_stage_that_reads(cli, tmp_path):
    assert cli("stages=write", "tokenizer=bytes", "shards.path=ds").returncode == 0
    still = tmp_path / "still"
    still.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", still], capture_output=True).returncode:
        pytest.skip("this machine does not let tests mount")
    try:
        verified = cli("stages=verify", "shards.path=../ds", "cache.path=../outputs/cache", cwd=still)
        written = cli("stages=write", "shards.path=../new", "cache.path=../outputs/cache", cwd=still)
    finally:
        subprocess.run(["umount", still], check=True)
    assert (verified.returncode, errors_of(verified)) == (0, "")
    assert written.returncode == 1
    assert re.match(
        r"stridemill: hydra.run.dir: \S+ cannot be created: Read-only file system. Choose another folder, for example "
        r"hydra.run.dir=\S+\n$",
        written.stderr,
    )
