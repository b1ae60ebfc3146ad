"""What `scripts/prove.py` says of a data set was tried, is true, and fits the exit code."""

import re
import sys
from functools import partial
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
import prove
import pyarrow.parquet as pq
import pytest
from support import ROOT, run_python

from pipeline import ShardLoader

SHARD = "data/train-00000-of-00001.parquet"


class Said(NamedTuple):
    """What a run printed, and what it ended with: 0, 2 where argparse refuses, or the line that comes with a 1."""

    lines: list[str]
    errors: str
    code: object


@pytest.fixture
def shards(write_books):
    return lambda **options: write_books(**{"max_length": 24, "stride": 16, **options}).path


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the program in this process."""

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["prove.py", *map(str, arguments)])
        code = 0
        try:
            prove.main()
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return Said(printed.out.splitlines(), printed.err, code)

    return main


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
    said = run(path, "--shuffle", shuffle, "--stops", 1, "--world-sizes", 1)
    assert said.code == 0
    figures = re.search(r"neighbours ([\d.]+) of what .* batch of 8: ([\d.]+) \(", said.lines[-1])
    assert figures.groups() == (f"{np.abs(np.diff(starts)).mean() / chance:.2f}", f"{near:.3f}")


def test_a_data_set_stored_shuffled_is_mixed_when_it_is_read_in_stored_order(shards, run):
    said = run(shards(stride=5, order="shuffled"), "--shuffle", "none", "--stops", "1")
    mixed, by_chance = map(float, re.search(r"neighbours ([\d.]+) .* order: ([\d.]+)\);", said.lines[-1]).groups())
    assert mixed == pytest.approx(by_chance, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("max_length", "windows", "stops"), [(900, 3, [0, 1, 2]), (71, 42, [0, 10, 20, 30, 41])])
def test_every_shape_is_compared_behind_every_place_to_the_epochs_end(shards, run, max_length, windows, stops):
    said = run(shards(max_length=max_length, stride=max_length))
    shapes = list(product(stops, (1, 2, 4, 8), (1, 8)))
    due = [min(windows - stop, 2 * world_size * batch_size) for stop, world_size, batch_size in shapes]
    for shuffle in ("none", "full", "lanes"):
        assert (
            f"{shuffle}: world sizes 1, 2, 4, 8, batches of 1 and 8, resumed at {len(stops)} places: one sequence "
            f"({sum(due):,} samples compared)"
        ) in said.lines
    assert (said.code, min(due)) == (0, 1)


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 1), (1, 8), (8, 1), (8, 8)])
def test_a_loader_that_goes_wrong_at_an_epochs_end_is_found_out(shards, run, monkeypatch, world_size, batch_size):
    class Wrong(ShardLoader):
        def load_state_dict(self, state):
            last = state["consumed"] == len(self.order) - 1
            wrong = last and (self.world_size, self.batch_size) == (world_size, batch_size)
            super().load_state_dict({**state, "consumed": state["consumed"] - wrong})

    monkeypatch.setattr(prove, "ShardLoader", Wrong)
    said = run(shards(), "--shuffle", "none")
    assert re.fullmatch(rf"none: FAILED: rank \d of {world_size}, resumed at sample \d+, got other .*", said.code)


def test_world_sizes_that_lanes_refuse_are_named(shards, run):
    path = shards()
    some = run(path, "--shuffle", "lanes", "--lanes", 4, "--world-sizes", 3, 2, 8, 2, "--stops", 1)
    assert some.code == 0
    assert "lanes: world sizes 3, 8 left out: lanes=4 is no multiple" in some.lines
    assert any(line.startswith("lanes: world size 2, batches of 1 and 8, resumed at 1 place: ") for line in some.lines)


def test_a_proof_of_nothing_is_no_proof(shards, run):
    none = run(shards(), "--world-sizes", "3", "--stops", 1)
    assert none.code == "prove.py: not proven: lanes"
    assert "lanes: world size 3 left out: lanes=64 is no multiple" in none.lines
    assert "lanes: nothing to resume was compared: no world size is left" in none.lines
    assert any(line.startswith("full: world size 3, batches") for line in none.lines)
    assert run("nothing").code.startswith("prove.py: nothing does not exist")


def test_an_order_that_memory_does_not_allow_is_an_error_where_it_was_asked_for(shards, run, monkeypatch):
    path = shards(windows_per_group=8, windows_per_shard=1000)
    monkeypatch.setattr(prove, "ShardLoader", partial(ShardLoader, memory_budget=2000))
    few = ("--world-sizes", 2, "--stops", 1)
    left_out = run(path, *few)
    assert left_out.code == 0
    assert any(line.startswith("none: world size 2, ") for line in left_out.lines)
    assert any(line.startswith("full: not tried: shuffle=full holds ") for line in left_out.lines)
    assert run(path, "--shuffle", "none", "full", *few).code == "prove.py: not proven: full"


def test_few_windows_have_no_figures_of_mixing(shards, run):
    said = run(shards(max_length=900, stride=900), "--shuffle", "none", "--stops", 1)
    assert said.lines[-1] == "none: 3 windows are no batch of 8: how well they are mixed is not measured"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--world-sizes", "0"],
        ["--world-sizes", "-2"],
        ["--world-sizes", "1", "x"],
        ["--stops", "0"],
        ["--stops", "1.5"],
        ["--epoch", "99999999999999999999"],
        ["--epoch", "9" * 5000],
        ["--epoch", "-1"],
        ["--seed", "-1"],
        ["--lanes", "0"],
        ["--shuffle", "other"],
    ],
)
def test_numbers_out_of_range_are_refused_in_one_line(shards, run, arguments):
    said = run(shards(), *arguments)
    assert said.code == 2
    assert said.lines == []
    assert f"prove.py: error: argument {arguments[0]}: " in said.errors.splitlines()[-1]


def test_the_last_epoch_and_seed_are_proven(shards, run):
    said = run(shards(), "--epoch", 2**64 - 1, "--seed", 2**64 - 1, "--stops", 1, "--world-sizes", 2)
    assert said.code == 0
    assert f"windows came once in epoch {2**64 - 1}" in said.lines[0]


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


@pytest.mark.parametrize("damage", [delete, truncate, flip_a_bit, spoil_the_footer])
def test_a_damaged_shard_is_named_in_one_line_for_each_order(shards, run, damage):
    path = shards()
    damage(path / SHARD)
    said = run(path)
    assert said.code == "prove.py: not proven: none, full, lanes"
    for line, shuffle in zip(said.lines, ["none", "full", "lanes"], strict=True):
        assert line.startswith(f"{shuffle}: the data set cannot be read: {path / SHARD}: row group 0 ")


@pytest.mark.slow
def test_the_command_ends_with_one_line_and_a_code(shards):
    path = shards()
    (path / SHARD).unlink()
    done = run_python("-W", "error", ROOT / "scripts/prove.py", path, "--shuffle", "lanes")
    assert (done.returncode, done.stderr) == (1, "prove.py: not proven: lanes\n")
    assert done.stdout.count("\n") == 1
