"""`limit` and `exclude`: which windows of a split are read, compared with a list of them made in plain Python."""

import hashlib
import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import LoaderConfig, ShardLoader
from pipeline.loader.order import Order
from pipeline.loader.selection import Selection, select_windows

SIZE = 83
KINDS = {
    "none": {"shuffle": "none"},
    "full": {"shuffle": "full"},
    "lanes": {"shuffle": "lanes", "lanes": 4, "memory_budget": 4000},
}
kinds = st.sampled_from(list(KINDS))
limits = st.none() | st.integers(1, SIZE) | st.floats(0.02, 1.0)
excluded = st.none() | st.sets(st.integers(0, SIZE - 1), max_size=SIZE - 5).map(sorted)


@pytest.fixture(scope="module")
def shards(write_text):
    """A data set of 83 windows in 9 row groups."""
    text = "".join(f"{number:04} " for number in range(250))[: 12 * SIZE + 1]
    return write_text(text, tokenizer="bytes", max_length=12, windows_per_group=10, windows_per_shard=30)


def selected(size, limit, exclude):
    """The slow twin: the windows that are read, in their stored order."""
    remaining = [window for window in range(size) if window not in (exclude or [])]
    wanted = len(remaining)
    if limit is not None:
        wanted = round(limit * len(remaining)) if isinstance(limit, float) else limit
    return [remaining[number * len(remaining) // wanted] for number in range(wanted)] if wanted else []


def read(loader):
    return [window for batch in loader for window in batch.window_ids.tolist() if window >= 0]


@given(limit=limits, exclude=excluded, group=st.integers(1, 40))
def test_the_selected_windows_are_those_of_a_walk_through_all(limit, exclude, group):
    expected = selected(SIZE, limit, exclude)
    if not expected or len(expected) > SIZE - len(exclude or []):
        with pytest.raises(ValueError, match="limit: must be at"):
            select_windows([SIZE], split="train", limit=limit, exclude=exclude)
        return
    (selection,) = select_windows([SIZE], split="train", limit=limit, exclude=exclude)
    groups = [min(group, SIZE - first) for first in range(0, SIZE, group)]
    order = Order(groups=groups, shuffle="none", selection=selection)
    assert order.windows(np.arange(len(order)), 0).tolist() == expected
    edges = [0, *np.cumsum(groups).tolist()]
    counts = [sum(low <= window < high for window in expected) for low, high in itertools.pairwise(edges)]
    assert list(order.kept) == counts
    assert order.num_groups == sum(count > 0 for count in counts)


@given(kind=kinds, limit=limits, exclude=excluded, seed=st.integers(0, 9), epoch=st.integers(0, 2))
@settings(max_examples=25)
def test_an_epoch_has_the_selected_windows_and_only_these_in_any_order(shards, kind, limit, exclude, seed, epoch):
    expected = selected(SIZE, limit, exclude)
    if not expected or len(expected) > SIZE - len(exclude or []):
        return
    loaders = [
        ShardLoader(
            shards, batch_size=4, rank=rank, world_size=2, seed=seed, limit=limit, exclude=exclude, drop_last=False,
            **KINDS[kind],
        )
        for rank in range(2)
    ]  # fmt: skip
    parts = []
    for loader in loaders:
        loader.set_epoch(epoch)
        assert len(loader) == -(-len(expected) // 8)
        parts += read(loader)
    assert sorted(parts) == expected


@example(size=2**40, limit=2**40 - 3, numbers=[2**39, 2**40 - 5])
@given(size=st.integers(1, 2**40), limit=st.integers(1, 2**40), numbers=st.lists(st.integers(0, 2**40), min_size=1))
def test_selections_of_any_size_are_exact(size, limit, numbers):
    limit = min(size, limit)
    here = sorted(number % limit for number in numbers)
    selection = Selection(np.empty(0, np.int64), size, limit)
    windows = selection.stored(here)
    assert windows.tolist() == [number * size // limit for number in here]
    assert selection.starts(windows).tolist() == here
    assert selection.starts(windows + 1).tolist() == [number + 1 for number in here]


def test_a_limit_is_spread_evenly_over_the_data_set(shards):
    windows = sorted(read(ShardLoader(shards, limit=0.25, batch_size=1)))
    assert len(windows) == 21
    assert set(np.diff(windows).tolist()) == {3, 4}
    assert windows[-1] >= SIZE - 4
    assert len(read(ShardLoader(shards, limit=1, batch_size=1))) == 1
    assert len(read(ShardLoader(shards, limit=1.0, batch_size=1))) == SIZE


@pytest.mark.parametrize("kind", KINDS)
def test_row_groups_without_a_selected_window_are_not_decoded(shards, kind, monkeypatch):
    loader = ShardLoader(shards, exclude=range(20, 70), limit=30, batch_size=1, threads=1, **KINDS[kind])
    decoded, read_group = set(), loader.reader.read_group
    monkeypatch.setitem(
        vars(loader.reader), "read_group", lambda group, *more: decoded.add(group) or read_group(group, *more)
    )
    assert len(read(loader)) == 30
    assert decoded == {0, 1, 7, 8}


def test_an_order_needs_memory_for_the_row_groups_that_it_reads_alone(shards):
    slot = 2 * (10 * 12 + 1)  # bytes of a row group: 10 windows of one text, and the next token
    for kind in ("full", "lanes"):
        with pytest.raises(ValueError, match="buffers 9 row groups"):
            ShardLoader(shards, shuffle=kind, memory_budget=4 * slot, batch_size=1)
        loader = ShardLoader(shards, shuffle=kind, memory_budget=4 * slot, batch_size=1, exclude=range(33, 83))
        assert sorted(read(loader)) == list(range(33))


@given(kind=kinds, limit=st.integers(9, 40), exclude=excluded, stop=st.integers(0, 8))
@settings(max_examples=15)
def test_a_resume_goes_on_with_the_selected_windows_that_remained(shards, kind, limit, exclude, stop):
    remaining = SIZE - len(exclude or [])
    options = {**KINDS[kind], "limit": min(limit, remaining), "exclude": exclude, "drop_last": False}
    whole = read(ShardLoader(shards, batch_size=4, **options))
    loader = ShardLoader(shards, batch_size=4, **options)
    stop = min(stop, len(loader) - 1)
    seen = [window for _, batch in zip(range(stop), loader, strict=False) for window in batch.window_ids.tolist()]
    state = json.loads(json.dumps(loader.state_dict()))
    other = pickle.loads(pickle.dumps(ShardLoader(shards, batch_size=3, **options)))
    other.load_state_dict(state)
    assert seen + read(other) == whole


def test_the_state_names_the_selection_and_another_one_is_refused_by_name(shards):
    def state(**options):
        return ShardLoader(shards, batch_size=2, **options).state_dict()

    plain = state()
    assert {"limit", "exclude"}.isdisjoint(plain)
    assert state(limit=1.0, exclude=[]) == plain
    assert state(limit=20)["limit"] == 20
    assert state(limit=20) == state(limit=20 / SIZE)
    chosen = state(exclude=[5, 3, 3])["exclude"]
    assert chosen == {"windows": 2, "sha256": hashlib.sha256(np.array([3, 5], "<i8").tobytes()).hexdigest()[:16]}
    assert chosen == state(exclude=np.array([3, 5]))["exclude"]
    selections = [{}, {"limit": 20}, {"limit": 21}, {"exclude": [1]}, {"exclude": [2]}, {"exclude": [1], "limit": 20}]
    for mine in selections:
        for other in selections:
            loader = ShardLoader(shards, batch_size=2, **mine)
            if mine == other:
                loader.load_state_dict(state(**other))
                continue
            key = "limit" if mine.get("limit") != other.get("limit") else "exclude"
            with pytest.raises(ValueError, match=rf"another order: loader\.{key} was .*, here it is "):
                loader.load_state_dict(state(**other))


def test_each_source_of_a_mixture_has_its_own_selection(shards):
    def open_mixture(**options):
        return ShardLoader([shards, shards], batch_size=4, **{"shuffle": "full", **options})

    def by_source(loader):
        found = [[], []]
        for batch in loader:
            for source, window in zip(batch.source_ids.tolist(), batch.window_ids.tolist(), strict=True):
                found[source].append(window)
        return found

    for options in ({}, {"shuffle": "lanes", "lanes": 2}, {"shuffle": "none"}, {"workers": 0, "weights": [3, 1]}):
        loader = open_mixture(limit=[0.5, None], exclude=[None, [0, 1, 2]], **options)
        assert len(loader.order) == 42 + 80
        found = [set(), set()]
        for _ in range(6):
            for source, windows in enumerate(by_source(loader)):
                found[source].update(windows)
        assert [sorted(windows) for windows in found] == [selected(SIZE, 0.5, None), selected(SIZE, None, [0, 1, 2])]
        other = open_mixture(limit=[0.5, None], exclude=[None, [0, 1, 2]], **options)
        other.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        assert by_source(other) == by_source(loader)
        with pytest.raises(ValueError, match=r"loader\.limit was \[42, None\], here it is \[None, None\]"):
            open_mixture(exclude=[None, [0, 1, 2]], **options).load_state_dict(loader.state_dict())
    assert len(open_mixture(limit=10).order) == 20, "one value holds for each source"
    assert set(open_mixture(limit=[None, 8]).state_dict()["limit"]) == {None, 8}


@pytest.mark.filterwarnings("ignore:the sources are not those of the state")
@pytest.mark.parametrize("kind", ["full", "lanes"])
def test_sources_take_their_selection_along_when_others_come_and_go(shards, write_text, kind):
    other = write_text("".join(f"{number:04} " for number in range(900, 990)), tokenizer="bytes", max_length=12)
    order = {"batch_size": 4, "shuffle": kind, "lanes": 2, "restart": False}
    loader = ShardLoader([shards, other], limit=[20, None], exclude=[None, [0]], **order)
    loader.skip(3)
    state, drawn = json.loads(json.dumps(loader.state_dict())), loader.source_samples
    swapped = ShardLoader([other, shards], limit=[None, 20], exclude=[[0], None], **order)
    swapped.load_state_dict(state)
    assert swapped.source_samples == drawn[::-1]
    alone = ShardLoader(shards, limit=20, **order)
    alone.load_state_dict(state)
    assert alone.epoch * 20 + alone.consumed == drawn[0]
    for wrong, words in (
        ({"limit": 21}, r"limit was \[20\], here it is \[21\]"),
        ({}, r"limit was \[20\], here it is \[None\]"),
    ):
        with pytest.raises(ValueError, match=words):
            ShardLoader(shards, **wrong, **order).load_state_dict(state)


def test_window_numbers_come_from_lists_arrays_and_files(shards, tmp_path):
    numbers = [70, 3, 3, 12]
    text, array, empty = tmp_path / "leave-out.txt", tmp_path / "leave-out.npy", tmp_path / "empty"
    text.write_text("70\n3\n\n 3\n12")
    np.save(array, np.array(numbers, np.uint8))
    empty.write_text("\n")
    expected = ShardLoader(shards, exclude=numbers).state_dict()
    for given_ in (
        tuple(numbers),
        set(numbers),
        np.array(numbers, np.int16),
        torch.tensor(numbers),
        text,
        str(text),
        array,
    ):
        assert ShardLoader(shards, exclude=given_).state_dict() == expected
    for nothing in ([], empty, np.empty(0)):
        assert "exclude" not in ShardLoader(shards, exclude=nothing).state_dict()


class Trap:
    """What would leave a file behind if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_of_anything_else_is_refused_with_its_name_and_line(shards, tmp_path):
    file, array = tmp_path / "numbers", tmp_path / "numbers.npy"
    for content, line in (("1\n2.5\n", 2), ("1\n\n-3", 3), ("1 2\n", 1), ("x", 1), ("9" * 30, 1), ("1\n٣", 2)):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=rf"^exclude: {file} must have one window number a line.*line {line} is"):
            ShardLoader(shards, exclude=file)
    file.write_bytes(b"\xff\xfe")
    for values in (np.array([1.5]), np.array([[1]]), np.array([True]), np.array([Trap(tmp_path / "trap")])):
        np.save(array, values, allow_pickle=True)
        for path in (file, array):
            with pytest.raises(ValueError, match=rf"^exclude: {path} must have one window number a line"):
                ShardLoader(shards, exclude=path)
    assert not (tmp_path / "trap").exists()
    with pytest.raises(ValueError, match=r"^exclude: .*nowhere cannot be read: No such file"):
        ShardLoader(shards, exclude=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limit": 0}, r"limit: must be at least 1; got 0"),
        ({"limit": -1}, r"limit: must be at least 1"),
        ({"limit": 0.0}, r"limit: as a fraction must be above 0 and at most 1.0, which is all windows; got 0.0"),
        ({"limit": 1.5}, r"limit: as a fraction"),
        ({"limit": float("nan")}, r"limit: as a fraction"),
        ({"limit": True}, r"limit: must be a number of windows, such as 1000, or a fraction of them, such as 0.1"),
        ({"limit": "0.1"}, r"limit: must be a number of windows.*; got '0.1'"),
        ({"limit": 84}, r"limit: must be at most the 83 windows of the train split; got 84"),
        ({"limit": 80, "exclude": range(9)}, r"at most the 74 windows of the train split that exclude leaves; got 80"),
        ({"limit": 0.001}, r"limit: must be at least one of the 83 windows of the train split; got 0.001"),
        ({"limit": [1, 2]}, r"limit: must be one value, as this is one data set"),
        ({"limit": 4, "batch_size": 8}, r"has 4 windows after limit and exclude, fewer than a batch of 8"),
        ({"exclude": 7}, r"exclude: must be a list of window numbers, or a file of them; got 7"),
        ({"exclude": [1, 83]}, r"exclude: window 83 is none of the train split, which has 83 windows, 0 to 82"),
        ({"exclude": [-1]}, r"exclude: window -1 is none of the train split"),
        ({"exclude": np.array([2**64 - 1], np.uint64)}, r"exclude: window \d+ is none of the train split"),
        ({"exclude": range(83)}, r"exclude: leaves none of the 83 windows of the train split"),
        ({"exclude": [1.5]}, r"exclude: must be window numbers"),
        ({"exclude": [None]}, r"exclude: must be window numbers"),
        ({"exclude": [[1]]}, r"exclude: must be window numbers"),
        ({"exclude": ["1"]}, r"exclude: must be window numbers"),
        ({"exclude": [10**30]}, r"exclude: must be window numbers"),
    ],
)
def test_a_selection_of_nothing_or_of_no_window_is_refused_by_its_name(shards, options, words):
    with pytest.raises(ValueError, match=words):
        ShardLoader(shards, **options)


def test_a_selection_of_a_source_is_refused_with_its_number(shards):
    for options, words in (
        ({"exclude": [None, [83]]}, r"exclude: window 83 is none of source 1, which has 83 windows, 0 to 82"),
        ({"limit": [84, None]}, r"limit: must be at most the 83 windows of source 0; got 84"),
        ({"exclude": [range(83), None]}, r"exclude: leaves none of the 83 windows of source 0"),
    ):
        with pytest.raises(ValueError, match=words):
            ShardLoader([shards, shards], **options)


def test_the_config_refuses_the_same_values(shards):
    with pytest.raises(ValueError, match=r"^loader\.limit: as a fraction must be above 0"):
        LoaderConfig(limit=-0.5)
    with pytest.raises(ValueError, match=r"^loader\.exclude: must be a list of window numbers"):
        LoaderConfig(exclude=3)
    for wrong in ({"limit": [0.5]}, {"exclude": [[1]]}, {"exclude": [1, 2]}, {"exclude": "numbers.txt"}):
        with pytest.raises(ValueError, match=r"(limit|exclude): must be a list for a mixture, with one entry for each"):
            ShardLoader([shards, shards], **wrong)


def test_the_stages_read_the_selection(cli, shards):
    done = cli(
        "stages=[load,prove,show]", f"shards.path={shards}", "loader.limit=20", "loader.exclude=[0,1,2]",
        "window.max_length=12", "tokenizer=bytes", "loader.batch_size=all", "show.step=0", "prove.world_sizes=[1]",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "20 windows" in done.stdout
    assert "epoch 0 contains each of 20 windows once" in done.stdout
