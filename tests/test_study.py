"""The stride study in its quick form: its tables, its pictures, and the arithmetic behind them."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(script, *arguments, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )


def rows(folder, name):
    (file,) = folder.rglob(name)
    return list(csv.DictReader(file.read_text().splitlines()))


def test_the_quick_study_compares_strides_at_equal_updates_and_at_equal_passes(tmp_path):
    done = run("study.py", "experiment=stride_study_quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = rows(tmp_path, "study.csv")
    assert [(row["budget"], row["stride"], row["seed"]) for row in runs] == [
        (budget, stride, seed) for budget in ("updates", "passes") for stride in ("64", "32") for seed in "01"
    ]
    for row in runs:
        if row["budget"] == "updates":
            assert row["updates"] == "60"
        else:  # one epoch: each token is seen L/S times
            assert float(row["passes"]) == pytest.approx(64 / int(row["stride"]), rel=0.01)
        assert 2.0 < float(row["validation_loss"]) < 5.55, "below log(257), which no training gives"
    evaluations = rows(tmp_path, "evaluation.csv")
    assert [row["stride"] for row in evaluations] == ["64", "16"]
    targets = [int(row["targets"]) for row in evaluations]
    assert 0 <= targets[1] - targets[0] < 64, "each token is scored once, whatever the overlap"
    pictures = {path.stem: path.read_text().count('class="point"') for path in tmp_path.rglob("*.svg")}
    assert pictures == {"updates": 4, "passes": 4, "evaluation": 2}


def test_a_study_without_strides_is_refused(tmp_path):
    done = run("study.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "experiment=stride_study names some" in done.stderr
