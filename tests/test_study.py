"""The stride study and the neighbours of words in their quick forms: tables, pictures, and their arithmetic."""

import csv
import re

import neighbors
import numpy as np
import pytest
import study
import torch
from gpt import GPT
from support import ROOT, run_program, sections
from training import evaluate
from training_config import Study, Train

from pipeline import ShardLoader, write_shards
from pipeline.cli.compose import ConfigError

pytestmark = pytest.mark.slow


def run(script, *arguments, cwd):
    return run_program(ROOT / "scripts" / script, *arguments, cwd=cwd, timeout=500, OMP_NUM_THREADS="1")


def rows(folder, name):
    (file,) = folder.rglob(name)
    return list(csv.DictReader(file.read_text().splitlines()))


def test_the_quick_study_compares_strides_at_equal_updates_and_at_equal_passes(tmp_path):
    small = ["corpus=text", f"corpus.path={ROOT / 'pipeline/corpus'}/*s.py", "split.validation=0.2"]
    done = run("study.py", "experiment=stride_study_quick", *small, cwd=tmp_path)
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


def test_the_losses_of_a_windows_places_have_the_loss_as_their_mean(tmp_path):
    (tmp_path / "text.txt").write_text("the kettle sang and the tea was hot. " * 20)
    options = {"corpus": "text", "corpus_path": str(tmp_path / "text.txt"), "cache_path": tmp_path / "cache"}
    path = write_shards(tmp_path / "shards", **sections(tokenizer="bytes", max_length=12, **options)).path
    loader = ShardLoader(path, batch_size=8, shuffle="none", drop_last=False)  # the last batch is filled up
    model = GPT(257, 12, dim=8, layers=1, heads=2, positions="learned", seed=0)
    losses_T = study.loss_by_position(model, loader)
    assert losses_T.shape == (12,)
    assert losses_T.mean().item() == pytest.approx(evaluate(model, loader), rel=1e-6)
    lines = study.describe_loss_by_position(torch.arange(12.0)).splitlines()[1:]
    assert [" ".join(line.split()) for line in lines] == [
        "positions 0 loss 0.0000",
        "positions 1 loss 1.0000",
        "positions 2-3 loss 2.5000",
        "positions 4-7 loss 5.5000",
        "positions 8-11 loss 9.5000",
    ]


def test_differences_between_strides_stand_beside_the_spread_of_their_seeds():
    runs = [
        study.Run(
            budget=budget,
            stride=stride,
            seed=seed,
            updates=5,
            tokens=80,
            passes=1.0,
            validation_loss=stride + seed / 10,
        )
        for budget in study.BUDGETS
        for stride in (2, 1)
        for seed in (0, 1)
    ]
    text = study.describe(runs)
    assert text.count("stride 1 minus stride 2: -1.0000 (largest spread between seeds of one stride: 0.1000)") == 2
    assert text.count("mean 2.0500   seeds 2.0000 to 2.1000") == 2


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (Study, {"seeds": []}, "study.seeds: must name at least one"),
        (Study, {"passes": 0}, "study.passes: must be at least 1; got 0"),
        (Train, {"threads": 0}, "train.threads: must be at least 1; got 0"),
    ],
)
def test_a_study_of_nothing_is_refused(section, values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        section(**values)


def test_a_study_without_strides_is_refused(tmp_path):
    done = run("study.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "experiment=stride_study names some" in done.stderr


def test_the_quick_look_at_neighbours_leaves_its_table_and_pictures(tmp_path):
    done = run("neighbors.py", "experiment=neighbors_quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(tmp_path, "similarity.csv")] == ["0", "6", "12"]
    pictures = {path.stem: path.read_text().count('class="point"') for path in tmp_path.rglob("*.svg")}
    assert pictures["similarity"] == 6
    assert pictures["before"] == pictures["after"] > 20, "a point for each word that is one token"
    assert "' the'    before" in done.stdout
    for name in (*neighbors.GROUPS, "never seen"):
        assert f"\n  {name:<12} " in done.stdout


def test_nearest_tokens_and_random_pairs_by_hand():
    table_VD = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    assert [token for token, _ in neighbors.nearest(table_VD, 0, np.arange(4))] == [1, 2, 3]
    counts_V = torch.arange(1000, 0, -1)
    pairs = neighbors.random_pairs(counts_V, np.array([[500, 500], [30, 800]]), seed=0)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    near = np.abs(pairs[:, None] - [[500, 500], [30, 800]]) <= 20  # a token's number is its rank here
    assert (near.all(-1).sum(-1) == 1).all(), "either token is near the same pair's"
    assert (near.all(-1).sum(0) > 900).all()
    assert neighbors.related_pairs({"a": (1, 0), "b": (2, 0), "c": (3, 1)}).tolist() == [[1, 2]]
