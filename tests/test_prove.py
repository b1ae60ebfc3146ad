"""What the stage `prove` says of a data set was tried, is true, and fits the exit code."""

import re
import warnings
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import ConfigError, ShardLoader
from pipeline.cli import prove
from pipeline.cli.config import ProveConfig
from pipeline.settings import LoaderConfig

SHARD = "data/train-00000-of-00001.parquet"


class Said(NamedTuple):
    """What the stage printed, each line's words with single spaces, and the orders that were not proven."""

    lines: list[str]
    unproven: list[str]


@pytest.fixture
def shards(write_books):
    return lambda **options: write_books(**{"max_length": 24, "stride": 16, **options}).path


@pytest.fixture
def run(capsys):
    """Run the stage; seed and lanes are the loader's, the other options are its own."""

    def main(path, seed=0, lanes=64, **options):
        loader = LoaderConfig(seed=seed, lanes=lanes)
        report = prove.prove_loader(str(path), loader=loader, prove=ProveConfig(**options))
        return Said([" ".join(line.split()) for line in capsys.readouterr().out.splitlines()[1:]], report.unproven)

    return main


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["none", "full", "lanes"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tail": "pad"},
        {"order": "shuffled"},
        {"documents": "separate"},
        {"documents": "separate", "tail": "pad"},
        {"documents": "separate", "tail": "pad", "order": "shuffled"},
    ],
)
def test_the_figures_of_mixing_are_those_of_the_tokens_that_windows_hold(shards, run, shuffle, options):
    path = shards(stride=5, windows_per_group=32, windows_per_shard=192, **options)
    rows = [row for file in sorted((path / "data").iterdir()) for row in pq.read_table(file).to_pylist()]
    order = [window for batch in ShardLoader(path, shuffle=shuffle, drop_last=False) for window in batch.window_ids]
    order = [int(window) for window in order if window >= 0]
    held = [set(range(rows[k]["start"], rows[k]["start"] + rows[k].get("length", 24))) for k in order]
    batches = [held[at : at + 8] for at in range(0, len(held) - 7, 8)]
    near = sum(bool(a & b) for batch in batches for a, b in combinations(batch, 2)) / len(batches)
    starts = np.array([rows[k]["start"] for k in order])
    chance = np.mean([abs(a - b) for a, b in combinations(starts.tolist(), 2)])
    said = run(path, shuffles=[shuffle], stops=1, world_sizes=[1])
    assert said.unproven == []
    figures = re.search(r"chance: ([\d.]+) \(.* batch of 8: ([\d.]+) \(", said.lines[-1])
    assert figures.groups() == (f"{np.abs(np.diff(starts)).mean() / chance:.2f}", f"{near:.3f}")


def test_a_data_set_stored_shuffled_is_mixed_when_it_is_read_in_stored_order(shards, run):
    said = run(shards(stride=5, order="shuffled"), shuffles=["none"], stops=1)
    mixed, by_chance = map(float, re.search(r"chance: ([\d.]+) \(random order: ([\d.]+)\);", said.lines[-1]).groups())
    assert mixed == pytest.approx(by_chance, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("max_length", "windows", "stops"), [(900, 3, [0, 1, 2]), (71, 42, [0, 10, 20, 30, 41])])
def test_every_shape_is_compared_after_every_point_to_the_epochs_end(shards, run, max_length, windows, stops):
    said = run(shards(max_length=max_length, stride=max_length))
    shapes = list(product(stops, (1, 2, 4, 8), (1, 8)))
    due = [min(windows - stop, 2 * world_size * batch_size) for stop, world_size, batch_size in shapes]
    for shuffle in ("none", "full", "lanes"):
        assert (
            f"{shuffle} world sizes 1, 2, 4, 8, batches of 1 and 8, resumed at {len(stops)} points: one sequence "
            f"({sum(due):,} samples compared)"
        ) in said.lines
    assert (said.unproven, min(due)) == ([], 1)


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 1), (1, 8), (8, 1), (8, 8)])
def test_a_loader_that_goes_wrong_at_an_epochs_end_is_found_out(shards, run, monkeypatch, world_size, batch_size):
    class Wrong(ShardLoader):
        def load_state_dict(self, state):
            last = state["consumed"] == len(self.order) - 1
            wrong = last and (self.world_size, self.batch_size) == (world_size, batch_size)
            super().load_state_dict({**state, "consumed": state["consumed"] - wrong})

    monkeypatch.setattr("pipeline.loader.loader.ShardLoader", Wrong)
    said = run(shards(), shuffles=["none"])
    assert said.unproven == ["none"]
    assert re.fullmatch(rf"none FAILED: {world_size} ranks?, resumed at sample \d+, got other .*", said.lines[-1])


def test_any_world_size_is_compared_under_lanes_too(shards, run):
    path = shards()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it tries any shape: what that would cost in training is no news here
        some = run(path, shuffles=["lanes"], lanes=4, world_sizes=[3, 2, 8, 2], stops=1)
    assert some.unproven == []
    assert any(line.startswith("lanes world sizes 3, 2, 8, batches of 1 and 8, resumed at ") for line in some.lines)


def test_a_proof_of_nothing_is_no_proof(run):
    with pytest.raises(ValueError, match=r"/nothing does not exist"):
        run("nothing")


def test_an_order_that_memory_does_not_allow_is_an_error_where_it_was_asked_for(shards, run, monkeypatch):
    path = shards(windows_per_group=8, windows_per_shard=1000)

    class Small(ShardLoader):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **{**options, "memory_budget": 2000})

    monkeypatch.setattr("pipeline.loader.loader.ShardLoader", Small)
    few = {"world_sizes": [2], "stops": 1}
    left_out = run(path, **few)
    assert left_out.unproven == []
    assert any(line.startswith("none world size 2, ") for line in left_out.lines)
    assert any(line.startswith("full not tried: shuffle=full ") for line in left_out.lines)
    assert run(path, shuffles=["none", "full"], **few).unproven == ["full"]


def test_few_windows_have_no_figures_of_mixing(shards, run):
    said = run(shards(max_length=900, stride=900), shuffles=["none"], stops=1)
    assert said.lines[-1] == "none 3 windows, fewer than a batch of 8, so mixing is not measured"


@pytest.mark.parametrize(
    "options",
    [
        {"world_sizes": [0]},
        {"world_sizes": [-2]},
        {"world_sizes": [1, "x"]},
        {"world_sizes": []},
        {"stops": 0},
        {"stops": 1.5},
        {"epoch": 2**64},
        {"epoch": -1},
        {"shuffles": ["other"]},
        {"shuffles": []},
    ],
)
def test_numbers_out_of_range_are_refused_with_their_key(options):
    with pytest.raises(ConfigError, match=rf"^prove\.{next(iter(options))}: must be "):
        ProveConfig(**options)


def test_the_last_epoch_and_seed_are_proven(shards, run):
    said = run(shards(), epoch=2**64 - 1, seed=2**63 - 1, stops=1, world_sizes=[2])
    assert said.unproven == []
    assert said.lines[0].startswith(f"none epoch {2**64 - 1} contains each of ")


def delete(file):
    file.unlink()


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(content)


def spoil_the_footer(file):
    content = bytearray(file.read_bytes())
    content[-100:-8] = bytes(92)
    file.write_bytes(content)


@pytest.mark.parametrize(("damage", "words"), [(delete, "is missing"), (truncate, "has [0-9,]+ bytes, not")])
def test_a_shard_that_is_missing_or_cut_short_is_named_before_any_order_is_tried(shards, run, damage, words):
    path = shards()
    damage(path / SHARD)
    with pytest.raises(OSError, match=f"{SHARD} {words}"):
        run(path)


@pytest.mark.parametrize("damage", [flip_a_bit, spoil_the_footer])
def test_a_damaged_shard_is_named_in_one_line_for_each_order(shards, run, damage):
    path = shards()
    damage(path / SHARD)
    said = run(path)
    assert said.unproven == ["none", "full", "lanes"]
    for line, shuffle in zip(said.lines, ["none", "full", "lanes"], strict=True):
        assert line.startswith(f"{shuffle} the data set cannot be read: {path / SHARD}")
        assert (": row group 0 " in line) == (damage is flip_a_bit), "a damaged file is named as a file"


def test_the_stage_ends_with_one_line_and_a_code(shards, cli):
    path = shards()
    flip_a_bit(path / SHARD)
    done = cli("stages=[prove,load]", f"shards.path={path}", "prove.shuffles=[lanes]")
    assert (done.returncode, done.stderr) == (1, f"stridemill: {path}: not proven: lanes\n")
    assert len(done.stdout.split("\n")) == 4, "the next stage does not run"


def test_a_split_that_is_not_there_is_refused(shards, cli):
    done = cli("stages=prove", f"shards.path={shards()}", "loader.split=validation", "prove.stops=1")
    assert done.returncode == 1
    assert "has no split 'validation'" in done.stderr
