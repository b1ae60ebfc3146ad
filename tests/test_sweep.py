"""A sweep as a user runs it: what it leaves behind when its points finish, fail, or are interrupted."""

import csv
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from support import ROOT, environment

from pipeline.cli.compare import draw_pictures, find_swept_keys, name_columns, shared_overrides
from pipeline.cli.points import Point
from pipeline.cli.report import align, points_csv, table_of, write_report
from pipeline.cli.svg import Series, chart, label_ticks, number, place_labels, scatter, ticks


def table(folder):
    (file,) = Path(folder).rglob("sweep.csv")
    with file.open(newline="") as rows:
        return list(csv.DictReader(rows))


def test_a_sweep_tokenizes_once_and_leaves_a_table_and_a_page(cli, tmp_path, browse):
    strides = ["window.max_length=64,128", "window.stride=32,64,128", "tokenizer=bytes", "sweep.bad_points=skip"]
    done = cli("-m", *strides)
    assert done.returncode == 0, done.stderr
    assert "6 points: 5 done, 1 skipped" in done.stdout
    assert "tokenized: 1 point made 1 chunk of tokens; 4 points reused the cache" in done.stdout
    rows = table(tmp_path)
    assert [row["point"] for row in rows] == list("012345")
    assert [row["status"] for row in rows] == ["done", "done", "skipped", "done", "done", "done"]
    assert "must be at most window.max_length=64" in rows[2]["error"]
    for row in rows:
        if row["status"] == "done":
            tokens, length, stride = int(row["tokens"]), int(row["max_length"]), int(row["stride"])
            assert int(row["windows"]) == len(range(0, tokens - length, stride))
            assert int(row["delivered"]) == int(row["windows"]) * length
            assert float(row["naive_bytes_per_token"]) == pytest.approx(4 * length / stride, rel=0.01)
            assert float(row["loader_tokens_per_second"]) > 0
    (page,) = tmp_path.rglob("sweep.html")
    dom, console = browse(page, tmp_path / "browser")
    assert console == []
    pictures = re.findall(r"<svg.*?</svg>", dom, flags=re.DOTALL)
    assert [picture.count('class="point"') for picture in pictures] == [5, 5]
    links = set(re.findall(r"""(?:src|href)=["']?([^"'>]*)""", dom))
    assert links == {"data:,", *(f"{number}/" for number in range(6))}, "the page refers to nothing outside"
    assert all((page.parent / f"{number}/summary.json").is_file() for number in (0, 1, 3, 4, 5))
    assert "<h1>Sweep over window.max_length, window.stride</h1>" in dom
    assert f"stridemill -m {' '.join(strides)}" in dom
    assert "<script" not in dom


def test_failing_points_stand_in_the_table_and_the_sweep_ends_with_code_1(cli, tmp_path):
    (tmp_path / "short.txt").write_text("0123456789")
    corpus = ["corpus=text", "corpus.path=short.txt", "tokenizer=bytes", "stages=[write]"]
    done = cli("-m", "window.max_length=4,8,20", "window.stride=4,6", *corpus)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("stridemill: 3 points of the sweep did not finish; the first is point 1 (")
    assert "Traceback" not in done.stderr
    rows = table(tmp_path)
    assert [row["status"] for row in rows] == ["done", "failed", "done", "done", "failed", "failed"]
    assert "must be at most window.max_length=4" in rows[1]["error"]
    assert "the train split has 10 tokens" in rows[4]["error"]
    assert rows[4]["max_length"] == "20"
    tracebacks = [path.parent.name for path in tmp_path.rglob("traceback.txt")]
    assert sorted(tracebacks) == ["4", "5"], "a refused config needs no traceback"


def test_points_that_make_sense_are_not_refused_for_the_value_that_a_sweep_replaces(cli, tmp_path):
    done = cli("-m", "window.max_length=300,512", "window.stride=300", "stages=[write]", "tokenizer=bytes")
    assert done.returncode == 0, done.stderr
    assert [row["status"] for row in table(tmp_path)] == ["done", "done"]


@pytest.mark.slow
def test_ctrl_c_leaves_a_report_with_every_point(tmp_path):
    points = ["-m", "loader.seed=range(12)", "window.stride=64", "tokenizer=bytes", "stages=[write,load]"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *points],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        texts = [path.read_text() for path in tmp_path.rglob("point.json")]
        if any('"status": "done"' in text for text in texts) and any('"status": "running"' in text for text in texts):
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "interrupted. Finished work is kept; run the same command again with hydra.sweep.dir=" in errors
    statuses = [row["status"] for row in table(tmp_path)]
    assert len(statuses) == 12
    assert statuses[0] == "done"
    assert statuses[-1] == "not started"
    assert set(statuses) <= {"done", "interrupted", "not started"}


def test_a_report_is_made_again_from_what_the_points_left(cli, tmp_path):
    assert cli("-m", "window.stride=64,128", "tokenizer=bytes", "stages=[write]").returncode == 0
    (sweep,) = (tmp_path / "outputs/sweeps").glob("*/*")
    before = (sweep / "sweep.csv").read_bytes()
    record = sweep / "1" / "point.json"
    (sweep / "1" / "summary.json").unlink()
    record.write_text(json.dumps({**json.loads(record.read_text()), "status": "running"}))  # as a killed process does
    again = cli("stages=[report]", f"sweep.path={sweep}")
    assert again.returncode == 0, again.stderr
    assert "2 points: 1 done, 1 unfinished" in again.stdout
    assert (sweep / "sweep.csv").read_bytes() != before
    assert cli("stages=[report]").stderr.startswith("stridemill: sweep.path: the stage report needs")


def test_a_folder_of_an_older_sweep_reports_the_points_of_its_plan_alone(tmp_path):
    def leave(number, *overrides):
        folder = tmp_path / str(number)
        folder.mkdir()
        record = {"point": number, "overrides": overrides, "status": "done", "window": {}}
        (folder / "point.json").write_text(json.dumps(record))

    leave(0, "window.stride=8")
    leave(1, "window.stride=16")
    leave(2, "window.stride=32")
    plan = [["window.stride=8"], ["window.max_length=64", "window.stride=32"]]
    (tmp_path / "plan.json").write_text(json.dumps({"points": plan}))
    report = write_report(tmp_path)
    points = report.points
    assert report.leftovers == [str(tmp_path / "1"), str(tmp_path / "2")], "what no point of the plan has left"
    assert [(point.point, point.status) for point in points] == [(0, "done"), (1, "not started")]
    assert (points[1].max_length, points[1].stride, points[1].overlap) == (64, 32, 2)


def test_a_folder_without_points_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not the folder of one sweep; such a folder has a plan"):
        write_report(tmp_path)


TINY = ["stages=write", "tokenizer=bytes", "window.max_length=64"]


def test_a_report_is_about_one_sweep_or_about_those_that_are_named(cli, tmp_path):
    assert cli("-m", *TINY, "window.stride=16,32", "hydra.sweep.dir=S/A").returncode == 0
    assert cli("-m", *TINY, "window.stride=64", "hydra.sweep.dir=S/B").returncode == 0
    refused = cli("stages=report", "sweep.path=S")
    assert refused.returncode == 1
    assert refused.stderr == "stridemill: sweep.path: S is not the folder of one sweep; choose one of S/A, S/B\n"
    assert sorted(path.name for path in (tmp_path / "S").iterdir()) == ["A", "B"], "nothing is written there"
    both = cli("stages=report", "sweep.path=[S/A,S/B]", "hydra.run.dir=R")
    assert both.returncode == 0, both.stderr
    assert [(row["sweep"], row["point"], row["stride"]) for row in table(tmp_path / "R")] == [
        ("S/A", "0", "16"),
        ("S/A", "1", "32"),
        ("S/B", "0", "64"),
    ]
    (tmp_path / "S/B").rename(tmp_path / "S/A/backup")
    assert len(write_report(tmp_path / "S/A").points) == 2, "a sweep inside a sweep does not count"


@pytest.mark.parametrize(
    "overrides",
    [
        ["window.stride=16,32", "shards.path='ds-${window.stride}'"],
        ["window.stride=16,32", "shards.path='ds-${hydra:job.num}'"],
        ["window.stride=shuffle(16,32)", "shards.path=${oc.env:HOME}/ds-${window.stride}"],
        ["window.stride='${oc.decode:${oc.env:STRIDE}}'", "loader.seed=range(2)"],
        ["split.seed=choice(1,2)", "hydra.sweep.subdir='p-${split.seed}'"],
    ],
)
def test_points_are_known_whatever_their_overrides_hold(cli, tmp_path, overrides):
    done = cli("-m", *TINY, *overrides, HOME=str(tmp_path), STRIDE="32")
    assert done.returncode == 0, done.stderr
    assert [row["status"] for row in table(tmp_path)] == ["done", "done"]


def test_a_value_of_the_wrong_type_fails_its_point_alone(cli, tmp_path):
    done = cli("-m", *TINY, "window.stride=abc,32,0", "hydra.sweep.dir=D")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    rows = table(tmp_path)
    assert [row["status"] for row in rows] == ["failed", "done", "failed"]
    assert rows[0]["error"] == "window.stride: Value 'abc' of type 'str' could not be converted to Integer"
    assert rows[2]["error"] == "window.stride: must be at least 1; got 0"


def test_only_a_stride_above_the_length_can_be_skipped(cli, tmp_path):
    done = cli("-m", "stages=write", "tokenizer=bytes", "corpus=python_docs,text", "sweep.bad_points=skip")
    assert done.returncode == 1
    assert [row["status"] for row in table(tmp_path)] == ["done", "failed"]
    assert "sweep.bad_points=skip leaves" not in done.stderr
    (tmp_path / "short.txt").write_text("ten bytes.")
    gaps = ["window.max_length=20", "window.stride=30,40", "window.allow_gaps=true"]
    short = cli("-m", "stages=write", "tokenizer=bytes", "corpus=text", "corpus.path=short.txt", *gaps)
    assert short.returncode == 1
    assert "sweep.bad_points=skip leaves" not in short.stderr, "the advice would not help"


def test_an_edited_sweep_keeps_what_is_finished_unless_its_text_or_its_data_set_has_changed(cli, tmp_path):
    def run(*keys, code=0):
        done = cli("-m", *keys, "hydra.sweep.dir=D")
        assert done.returncode == code, done.stderr
        rows = {row["stride"]: {name: row[name] for name in row if name != "point"} for row in table(tmp_path / "D")}
        return rows, len(re.findall(r"point \d was finished before", done.stderr)), done.stdout

    text = tmp_path / "text.txt"
    text.write_text("The kettle sang. She poured the tea. " * 90)
    keys = ["tokenizer=bytes", "window.max_length=64", "embedding.dim=2", "corpus=text", "corpus.path=text.txt"]
    first, kept, _ = run(*keys, "window.stride=16,32")
    assert kept == 0
    more, kept, shown = run(*keys, "window.stride=8,32,16")
    assert kept == 2
    assert "kept from an earlier start: 2 points, with the figures of then" in shown
    assert {stride: more[stride] for stride in first} == first, "their times, rates and folders too"
    assert [row["folder"] for row in more.values()] == ["2", "1", "0"]
    shutil.rmtree(more["8"]["shards_path"])
    fewer, kept, shown = run("window.stride=16,8", *reversed(keys))
    assert kept == 1, "the order of the keys does not matter"
    assert fewer["16"] == {**first["16"], "overrides": fewer["16"]["overrides"]}
    assert (Path(more["8"]["shards_path"]) / "manifest.json").is_file()
    assert f"not in this sweep, from an earlier one: {tmp_path / 'D/1'}" in shown
    text.write_text("She poured the tea. The kettle sang. " * 99)
    other, _, _ = run(*keys, "window.stride=8,16", code=1)
    assert {row["status"] for row in other.values()} == {"failed"}, "results of another text do not count"


def point(number, **more):
    known = {"status": "done", "windows": 10, "bytes_per_token": 1.5, "seconds": 2.0, "start_seconds": 2.0}
    return Point(**{"point": number, "overrides": "", **known, **more})


VALUES = st.sampled_from(["1", "2", "gpt2", "a" * 50])
KEYS = st.sampled_from(["window.stride", "loader.seed", "shards.seed", "tokenizer", "corpus.path", "embedding.dim"])


@given(
    st.lists(st.dictionaries(KEYS, st.sampled_from(["1", "2", "gpt2", "a" * 50])), min_size=1, max_size=6), st.data()
)
def test_a_table_has_a_column_for_each_swept_key_and_fits_a_terminal(given_values, data):
    figures = st.sampled_from([None, 1, 123_456_789_012])
    points = [
        point(number, given=values, windows=data.draw(figures), delivered=data.draw(figures), bytes=data.draw(figures))
        for number, values in enumerate(given_values)
    ]
    swept = find_swept_keys(points)
    for key in KEYS.elements:
        assert (key in swept) == (len({values.get(key) for values in given_values}) > 1)
        is_shared = key not in swept and key in given_values[0]
        assert (f"{key}=" in shared_overrides(points)) == is_shared
    rows = list(csv.DictReader(points_csv(points).splitlines()))
    assert [{key: row[key] for key in swept} for row in rows] == [
        {key: values.get(key, "") for key in swept} for values in given_values
    ]
    head, *body = table_of(points)
    assert len(set(head)) == len(head)
    assert head[: 1 + len(swept)] == ["point", *name_columns(swept)]
    assert [cells[-1] for cells in body] == ["done"] * len(points)
    if len(swept) < 3:
        assert max(map(len, align([head, *body]))) <= 120


def test_pictures_have_the_swept_number_on_the_axis_and_a_series_for_each_name():
    def draw(*values):
        return draw_pictures([point(at, given=one, windows=at + 1) for at, one in enumerate(values)])

    (seeds,) = draw({"split.seed": "1"}, {"split.seed": "2"})
    assert "Windows by split.seed" in seeds
    assert "<rect" not in seeds, "one series needs no legend"
    assert labels_of(seeds) == ["1", "2"]
    (named,) = draw({"window.stride": "8", "tokenizer": "gpt2"}, {"window.stride": "16", "tokenizer": "bytes"})
    assert "Windows by window.stride" in named
    assert "tokenizer=gpt2" in named
    assert "tokenizer=bytes" in named
    assert draw({"tokenizer": "gpt2"}, {"tokenizer": "bytes"}) == [], "without a number there is no axis"
    assert draw({"window.stride": "8"}) == []


def test_a_points_stages_add_up_to_its_time(cli, tmp_path):
    done = cli("-m", "window.max_length=64", "window.stride=16,64", "stages=[write,verify,load]", "tokenizer=bytes")
    assert done.returncode == 0, done.stderr
    for row in table(tmp_path):
        stages = [float(row[f"{name}_seconds"]) for name in ("start", "tokenize", "write", "verify", "load")]
        assert all(stages)
        assert sum(stages) == pytest.approx(float(row["seconds"]))
    head = next(line for line in done.stdout.splitlines() if line.lstrip().startswith("point"))
    assert head.split()[-7:] == ["start", "tokenize", "write", "verify", "load", "all", "status"]


def test_points_that_differ_in_what_is_loaded_share_one_data_set(cli, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="hydra-joblib-launcher is not installed")
    keys = ["loader.seed=1,2", "window.score=all,new", "tokenizer.audit=0", "window.stride=32"]
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = cli("-m", *TINY, *keys, *parallel, "hydra.sweep.dir=D", PYTHONWARNINGS="ignore")
    assert done.returncode == 0, done.stderr
    (data_set,) = (tmp_path / "D/shards").iterdir()
    rows = table(tmp_path)
    assert [(row["status"], row["shards_path"]) for row in rows] == [("done", str(data_set))] * 4
    assert sum(bool(row["write_seconds"]) for row in rows) == 1, "written once"
    assert {(row["loader.seed"], row["window.score"]) for row in rows} == {(s, w) for s in "12" for w in ("all", "new")}
    other = cli("-m", *TINY, "window.stride=32", "window.tail=drop,pad", "hydra.sweep.dir=E")
    assert other.returncode == 0, other.stderr
    assert len(list((tmp_path / "E/shards").iterdir())) == 2


def test_a_sweep_says_which_points_have_ended_and_how_much_time_is_left(cli):
    done = cli("-m", *TINY, "window.stride=16,32,abc")
    lines = [line for line in done.stderr.splitlines() if line.startswith("sweep  ")]
    assert lines[0] == "sweep  0 of 3 points (0 %)  starts"
    assert re.match(r"sweep  3 of 3 points \(100 %\)  \S+ points/s  done in \S+ s$", lines[-1])
    said = "\n".join(lines)
    assert [status for _, status in sorted(re.findall(r"  point (\d) (\w+)", said))] == ["done", "done", "failed"]
    assert re.search(r"of 3 points \(\d+ %\)  point \d done in \S+ s  \S+ s left", said)


def test_single_runs_are_compared_like_points(cli, tmp_path):
    assert cli(*TINY, "window.stride=16", "hydra.run.dir=A", "shards.path=a").returncode == 0
    assert cli(*TINY, "shards.seed=3", "hydra.run.dir=B", "shards.path=b").returncode == 0
    both = cli("stages=report", "sweep.path=[A,B]", "hydra.run.dir=R")
    assert both.returncode == 0, both.stderr
    rows = table(tmp_path / "R")
    assert [[row[name] for name in ("sweep", "window.stride", "shards.seed", "status")] for row in rows] == [
        ["A", "16", "0", "done"],  # a key that only the other run was given has its value here too
        ["B", "64", "3", "done"],
    ]
    (page,) = tmp_path.rglob("sweep.html")
    assert 'href="../A/"' in page.read_text()


OPTIMIZES = """
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf

class StandIn(Sweeper):
    def setup(self, *, hydra_context, task_function, config):
        self.config = config
        plugins = Plugins.instance()
        self.launcher = plugins.instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        fixed = [one for one in arguments if "choice(" not in one]
        (swept,) = (one for one in arguments if "choice(" in one)
        key, _, values = swept.partition("=choice(")
        found = {}
        for number, value in enumerate(values.rstrip(")").split(",")):
            (done,) = self.launcher.launch([[f"{key}={value}", *fixed]], initial_job_idx=number)
            found[value] = float(done.return_value)
        best = max(found, key=found.get)
        result = OmegaConf.create({"best": {key: best}, "found": found})
        OmegaConf.save(result, self.config.hydra.sweep.dir + "/best.yaml")

node = {"_target_": "hydra_plugins.stand_in.StandIn"}
ConfigStore.instance().store(group="hydra/sweeper", name="stand_in", node=node)
"""


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweeper_that_optimizes_gets_a_number_and_its_points_are_reported(cli, tmp_path, launcher):
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="hydra-joblib-launcher is not installed")
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins/stand_in.py").write_text(OPTIMIZES)
    path = f"{ROOT}{os.pathsep}{tmp_path}"
    given = ["hydra/sweeper=stand_in", f"hydra/launcher={launcher}", "tokenizer=bytes", "window.max_length=64"]
    more = {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    if launcher == "basic":  # refused before anything is launched
        refused = cli("-m", *given, "stages=write", "loader.batch_size=choice(4,32)", **more)
        assert refused.returncode == 2
        assert refused.stderr == (
            "stridemill: stages: a sweeper that optimizes needs the stage load, whose tokens per second are a point's "
            "number; got ['write']\n"
        )
    done = cli("-m", *given, "loader.batch_size=choice(4,32)", "hydra.sweep.dir=D", **more)
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path)
    assert [(row["status"], row["loader.batch_size"]) for row in rows] == [("done", "4"), ("done", "32")]
    best = OmegaConf.load(tmp_path / "D/best.yaml")
    for row in rows:
        assert best.found[row["loader.batch_size"]] == pytest.approx(float(row["loader_tokens_per_second"]))


@pytest.mark.slow
def test_sigterm_leaves_no_point_of_a_parallel_sweep_running(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="hydra-joblib-launcher is not installed")
    keys = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "loader.seed=range(8)", "window.stride=1"]
    command = ["-m", "tokenizer=bytes", "window.max_length=64", *keys, "hydra.sweep.dir=D"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *command], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if any('"running"' in path.read_text() for path in tmp_path.glob("D/*/point.json")):
            break
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 143, errors
    points = [json.loads(path.read_text()) for path in tmp_path.glob("D/*/point.json")]
    statuses = {point["status"] for point in points}  # a point that is stopped in its first moments has no summary yet
    assert "interrupted" in statuses
    assert statuses <= {"not started", "interrupted", "done"}


def test_axes_have_round_ticks():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(3, 300, log=True) == [5, 10, 20, 50, 100, 200]


def test_a_charts_text_is_escaped_and_its_points_are_counted():
    picture = chart([Series(name="<a & b>", points=[(1, 2), (2, 4)])], title="t", x_label="x", y_label="y", log="xy")
    assert "&lt;a &amp; b&gt;" in picture
    assert picture.count('class="point"') == 2


def test_a_chart_leaves_out_what_is_not_finite_and_labels_that_run_together():
    points = [(1.0, 1.0), (2.0, float("nan")), (3.0, float("inf")), (4.0, 2.0)]
    picture = chart([Series(name="one", points=points, line=points)], title="", x_label="", y_label="")
    assert picture.count('class="point"') == 2
    strides = [float(stride) for stride in range(100, 127)]
    many = chart(
        [Series(name="one", points=[(x, x) for x in strides])], title="", x_label="", y_label="", x_ticks=strides
    )
    places = [x for x, _ in tick_labels(many)]
    assert 10 < len(places) < 27
    assert all(right - left >= 21 for left, right in itertools.pairwise(places))


@given(st.lists(st.text("abcdefgh =.", min_size=1, max_size=30), min_size=1, max_size=12, unique=True))
def test_a_charts_legend_stands_outside_the_data(names):
    series = [Series(name=name, points=[(0.0, float(at)), (9.0, 1.0)]) for at, name in enumerate(names)]
    picture = chart(series, title="", x_label="", y_label="")
    squares = [(float(x), float(y)) for x, y in re.findall(r'<rect x="(\d+)" y="(\d+)"', picture)]
    assert len(squares) == len(names), "each series has its colour named"
    top = min(float(y) for y in re.findall(r'cy="([0-9.]+)"', picture))
    assert all(y + 10 < top - 4 for _, y in squares)
    assert all(x + 16 + 7 * len(name) <= 640 for (x, _), name in zip(squares, names, strict=True))


def test_of_equal_lines_each_is_seen():
    line = [(0.0, 1.0), (1.0, 2.0)]
    picture = chart([Series(name=name, line=line) for name in ("a", "b")], title="", x_label="", y_label="")
    assert re.findall(r'stroke-width="([0-9.]+)"', picture) == ["4.0", "1.5"], "the first is a border of the second"


@given(
    st.lists(st.tuples(st.floats(80, 600), st.floats(40, 400), st.text("abcdef", min_size=1, max_size=12)), max_size=40)
)
def test_no_label_of_a_scatter_lies_on_another(points):
    places = place_labels([(x, y) for x, y, _ in points], [label for *_, label in points])
    boxes = [
        (x, y - 10, x + 7 * len(label), y + 3)
        for (*_, label), (x, y) in ((point, place) for point, place in zip(points, places, strict=True) if place)
    ]
    for one, other in itertools.combinations(boxes, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    assert not points or places[0] is not None, "the first label always has room"


def test_labels_of_a_scatter_that_have_room_stand_to_the_right_of_their_points():
    assert place_labels([(100, 100), (300, 300)], ["a", "b"]) == [(106, 104), (306, 304)]
    picture = scatter([(0.0, 0.0, "a", 0), (1.0, 1.0, "b", 1)], title="t", groups=["vowels", "others"])
    assert picture.count("<rect") == 2
    assert "vowels" in picture


def tick_labels(picture):
    """The labels of the horizontal axis with their places."""
    baseline = float(re.search(r' height="(\d+)"', picture)[1]) - 30
    found = re.findall(rf'<text x="([0-9.]+)" y="{baseline}"[^>]*>([^<]*)</text>', picture)
    return [(float(x), label) for x, label in found]


def labels_of(picture):
    return [label for _, label in tick_labels(picture)]


@pytest.mark.parametrize("strides", [[64, 32, 16, 8, 4, 1], [1, 4, 8, 16, 32, 64], [8, 64, 1, 32, 4, 16]])
def test_every_tick_has_its_label_in_whatever_order_they_come(strides):
    points = [(float(stride), 5.0) for stride in strides]
    picture = chart(
        [Series(name="one", points=points)], title="", x_label="", y_label="", log="x", x_ticks=[x for x, _ in points]
    )
    assert labels_of(picture) == ["1", "4", "8", "16", "32", "64"]


def test_labels_have_the_digits_that_tell_neighbours_apart():
    assert label_ticks([3.29, 3.291, 3.292]) == ["3.29", "3.291", "3.292"]
    assert label_ticks([11.9, 11.95, 12.0]) == ["11.9", "11.95", "12"]
    assert label_ticks([1000.0, 1024.0, 4096.0]) == ["1,000", "1,024", "4,096"]
    assert number(1024) == "1,024"
    assert number(2_500_000) == "2.5 M"


@pytest.mark.parametrize(
    "picture",
    [
        chart([Series(name="one", points=[(1, 2), (2, 4)])], title="t", x_label="x", y_label="y"),
        scatter([(0.0, 0.0, "a", 0), (1.0, 1.0, "b", 1)], title="t"),
    ],
    ids=["chart", "scatter"],
)
def test_a_picture_carries_its_own_colours_for_light_and_dark(picture):
    """An SVG that a page shows as an image inherits no colour from the page."""
    assert "currentColor" not in picture
    assert re.search(r"text\{[^}]*fill:#222\}", picture)
    assert re.search(r"@media\(prefers-color-scheme:dark\)\{text\{fill:#ddd\}", picture)
