"""Any number of ranks reads the steps of one: who reads which index, what each decodes, and where epochs end."""

import doctest
import itertools
import json
import math
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import ShardLoader
from pipeline.loader import division as division_module
from pipeline.loader.division import divide, fair_lanes
from pipeline.loader.order import Order
from pipeline.loader.workers import rows_of_workers

worlds = st.integers(1, 20)
batch_sizes = st.integers(1, 9)
lane_counts = st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16])
starts = st.integers(0, 100)
UNEQUAL = "ignore:batch_size. .* ranks of .* no multiple of the .* lanes:UserWarning"


def slow_division(start, world_size, batch_size, lanes):
    """The indices of each rank in the step from `start`, by dealing out and sorting, as the module's docstring says."""
    step = range(start, start + world_size * batch_size)
    if lanes == 1 or lanes % world_size == 0:
        return [[i for i in step if i % world_size == rank] for rank in range(world_size)]
    classes = 1 if len(step) % lanes == 0 else math.gcd(world_size, lanes)
    dealt = sorted(step, key=lambda i: (i % classes, i % lanes, i))
    return [sorted(dealt[rank * batch_size :][:batch_size]) for rank in range(world_size)]


@given(worlds, batch_sizes, lane_counts, starts, st.integers(1, 5))
def test_each_step_is_divided_as_the_slow_twin_does(world_size, batch_size, lanes, start, steps):
    parts = [divide(rank=r, world_size=world_size, batch_size=batch_size, lanes=lanes) for r in range(world_size)]
    indices = [part.indices(start, steps).tolist() for part in parts]
    for step in range(steps):
        begin = start + step * world_size * batch_size
        assert [one[step] for one in indices] == slow_division(begin, world_size, batch_size, lanes)


@given(worlds, batch_sizes, lane_counts, starts)
def test_a_rank_decodes_the_lanes_that_it_reads_and_no_others(world_size, batch_size, lanes, start):
    for rank in range(world_size):
        part = divide(rank=rank, world_size=world_size, batch_size=batch_size, lanes=lanes)
        read = part.lanes_read(start).tolist()
        assert read == np.unique(part.indices(start, lanes) % lanes).tolist()
        assert set(read) <= set(part.lanes_read().tolist())
        if world_size * batch_size % lanes == 0 or lanes % world_size == 0:
            assert len(part.lanes_read()) <= fair_lanes(world_size=world_size, lanes=lanes)


def test_the_default_lanes_are_shared_by_neighbours_alone_for_the_sizes_of_real_jobs():
    for world_size, lanes_of_a_rank in ((3, 23), (7, 11), (28, 4), (56, 3), (128, 1)):
        batch_size = 64 // math.gcd(64, world_size)
        parts = [divide(rank=r, world_size=world_size, batch_size=batch_size, lanes=64) for r in range(world_size)]
        assert max(len(part.lanes_read()) for part in parts) <= lanes_of_a_rank
        readers = Counter(lane for part in parts for lane in part.lanes_read().tolist())
        assert len(readers) == 64
        assert readers.total() <= 64 + 64 // math.gcd(64, world_size) * world_size


@given(worlds, batch_sizes, lane_counts, starts, st.integers(1, 4), st.integers(1, 3))
def test_workers_together_read_the_rows_of_their_rank(world_size, batch_size, lanes, start, workers, turns):
    for rank in {0, world_size - 1}:
        part = divide(rank=rank, world_size=world_size, batch_size=batch_size, lanes=lanes)
        parts = part.split(workers)
        batches = turns * parts[0].global_batch // part.global_batch
        expected = part.indices(start, batches).ravel()
        rows = np.full(len(expected), -1)
        for to, own in zip(rows_of_workers(part, parts, start, batches), parts, strict=True):
            rows[to] = own.indices(start, turns).ravel()
        assert rows.tolist() == expected.tolist()
        if lanes % (world_size * workers) == 0:  # each worker has lanes of its own
            assert sum(len(own.lanes_read()) for own in parts) == len(part.lanes_read())


def test_examples_in_docstrings_are_what_happens():
    result = doctest.testmod(division_module)
    assert (result.attempted, result.failed) == (1, 0)
    assert [divide(rank=r, world_size=3, batch_size=4, lanes=4).indices(0, 1).tolist() for r in range(3)] == [
        [[0, 1, 4, 8]],
        [[2, 5, 6, 9]],
        [[3, 7, 10, 11]],
    ]


@pytest.mark.parametrize("batch_size", [8, 16])
def test_56_ranks_of_64_lanes_decode_about_twice_what_64_ranks_do(batch_size):
    order = Order(groups=[256] * 3000, shuffle="lanes", lanes=64)

    def decoded(world_size):
        parts = [divide(rank=r, world_size=world_size, batch_size=batch_size, lanes=64) for r in range(world_size)]
        return max(len(list(order.spans(0, 0, part.lanes_read(0).tolist()))) for part in parts)

    assert decoded(56) <= 2.2 * decoded(64)


# --- the loader -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_sets(write_text):
    """Data sets of 138 and 61 windows, in row groups of 5 and 4, each of which is a shuffle block."""
    text = "".join(f"{number:04} " for number in range(400))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.loader.order.BLOCK_TOKENS", 1)
        yield [
            write_text(text[: 12 * windows + 1], tokenizer="bytes", max_length=12, windows_per_group=group)
            for windows, group in ((138, 5), (61, 4))
        ]


def steps_of(path, state=None, *, world_size, epochs=1, **options):
    """For each step the windows of each rank, and the states behind it, of the rest of the epoch and of later ones."""
    loaders = [ShardLoader(path, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    for loader in loaders:
        if state:
            loader.load_state_dict(json.loads(json.dumps(state)))
    assert len({len(loader) for loader in loaders}) == 1
    steps = []
    for _ in range(epochs):
        for batches in zip(*loaders, strict=True):
            windows = [names_of(batch) for batch in batches]
            assert {len(one) for one in windows} == {options["batch_size"]}
            states = [loader.state_dict() for loader in loaders]
            assert all(state == states[0] for state in states), "the state is the same on every rank"
            steps.append((windows, states[0]))
    return steps


def names_of(batch):
    if batch.source_ids is None:
        return batch.window_ids.tolist()
    return list(zip(batch.source_ids.tolist(), batch.window_ids.tolist(), strict=True))


def read(steps):
    """The windows of steps, sorted within each."""
    return [sorted(w for one in windows for w in one if w not in (-1, (0, -1))) for windows, _ in steps]


shapes = st.tuples(st.integers(1, 7), st.integers(1, 6))  # world size, batch size


@pytest.mark.slow
@pytest.mark.filterwarnings(UNEQUAL)
@given(
    shuffle=st.sampled_from(["none", "full", "lanes", "lanes"]),
    is_mixture=st.booleans(),
    lanes=st.sampled_from([1, 4, 6, 8]),
    head=shapes,
    tail=shapes,
    stop=st.integers(0, 12),
    drop_last=st.booleans(),
    keep=st.booleans(),
)
@settings(max_examples=12)
def test_any_ranks_read_the_steps_of_one_and_resume_on_any_others(
    data_sets, shuffle, is_mixture, lanes, head, tail, stop, drop_last, keep
):
    """Ranks together read what one rank reads, and goes on elsewhere from any index, with nothing lost or twice."""
    path = data_sets if is_mixture else data_sets[0]
    order = {"shuffle": shuffle, "lanes": lanes, "drop_last": drop_last, "seed": stop}
    order["memory_budget"] = 10**9 if keep or shuffle == "full" else 5_000
    world_size, batch_size = head
    steps = steps_of(path, world_size=world_size, batch_size=batch_size, **order)
    assert read(steps) == read(steps_of(path, world_size=1, batch_size=world_size * batch_size, **order))
    stop = min(stop, len(steps) - 1)
    if not stop:
        return
    rest = steps_of(path, steps[stop - 1][1], world_size=tail[0], batch_size=tail[1], **order)
    alone = ShardLoader(path, batch_size=1, rank=0, world_size=1, **order)
    walk = itertools.chain.from_iterable(itertools.repeat(alone)) if is_mixture else alone
    walked = [names_of(batch)[0] for batch in itertools.islice(walk, 400)]
    consumed = stop * world_size * batch_size
    size = tail[0] * tail[1]
    if not is_mixture and drop_last and len(walked) - consumed < size:
        return  # too few are left for a step, so that was the next epoch
    expected = walked[consumed:]
    if not is_mixture and drop_last:
        expected = expected[: len(expected) // size * size]
    if is_mixture:
        expected = expected[: len(rest) * size]
    assert read(rest) == [sorted(expected[at : at + size]) for at in range(0, len(expected), size)]


@pytest.mark.filterwarnings(UNEQUAL)
@pytest.mark.parametrize("is_mixture", [False, True])
@pytest.mark.parametrize(("world_size", "batch_size"), [(3, 4), (3, 8), (5, 3), (7, 8), (16, 2)])
def test_no_rank_decodes_a_row_group_of_a_lane_that_it_does_not_read(data_sets, is_mixture, world_size, batch_size):
    """And each is decoded once for each rank that reads it, held in no more memory than the loader said."""
    paths = data_sets if is_mixture else data_sets[:1]
    for rank in range(world_size):
        loader = ShardLoader(
            paths if is_mixture else paths[0],
            rank=rank,
            world_size=world_size,
            batch_size=batch_size,
            shuffle="lanes",
            lanes=8,
            memory_budget=3_000,
            threads=1,
        )
        groups = Counter()
        inner = loader.reader.read_group
        loader.reader.read_group = lambda group, *more, inner=inner, groups=groups: (
            groups.update([group]),
            inner(group, *more),
        )[1]
        stop = len(loader) * batch_size * world_size
        list(loader)
        part = divide(rank=rank, world_size=world_size, batch_size=batch_size, lanes=8)
        spans = loader.order.spans(0, 0, part.lanes_read(0).tolist())
        needed = Counter(span.group for span in itertools.takewhile(lambda span, stop=stop: span.first < stop, spans))
        assert set(groups) <= set(needed)
        assert all(groups[group] <= needed[group] for group in groups)


@pytest.mark.parametrize(("is_mixture", "drop_last"), [(False, True), (False, False), (True, True)])
@pytest.mark.filterwarnings(UNEQUAL)
def test_an_epoch_ends_at_the_same_window_however_a_step_is_divided(data_sets, is_mixture, drop_last):
    path = data_sets if is_mixture else data_sets[0]
    order = {"shuffle": "lanes", "lanes": 4, "drop_last": drop_last, "step_size": 24}
    whole = None
    for world_size, batch_size in ((1, 24), (1, 8), (2, 4), (4, 6), (3, 2)):
        micro = 24 // (world_size * batch_size)
        batches = steps_of(path, world_size=world_size, batch_size=batch_size, epochs=2, **order)
        windows = read(batches)
        steps = [sorted(itertools.chain(*windows[at : at + micro])) for at in range(0, len(windows), micro)]
        assert len(windows) % micro == 0
        whole = whole or steps
        assert steps == whole
        assert [state for _, state in batches[micro - 1 :: micro]][-1]["epoch"] == 2
        loader = ShardLoader(path, rank=0, world_size=world_size, batch_size=batch_size, **order)
        assert sum(len(batches) for batches in [list(loader), list(loader)]) == len(whole) * micro
        loader.set_epoch(1)
        assert len(loader) * batch_size * world_size == sum(1 for _ in loader) * batch_size * world_size
    if not is_mixture:
        assert len(whole) == 2 * (138 // 24 if drop_last else -(-138 // 24))


@pytest.mark.parametrize("is_mixture", [False, True])
@pytest.mark.parametrize("drop_last", [True, False])
def test_a_loader_stopped_within_a_step_goes_on_to_where_the_epoch_ends(data_sets, is_mixture, drop_last):
    path = data_sets if is_mixture else data_sets[0]
    order = {"shuffle": "lanes", "lanes": 4, "drop_last": drop_last, "step_size": 36, "batch_size": 6}
    whole = steps_of(path, world_size=2, **order)
    for stop in range(1, len(whole), 4):
        state = whole[stop - 1][1]
        if state["epoch"] == 0:
            rest = read(steps_of(path, state, world_size=2, **order))
            assert read(whole[:stop]) + rest == read(whole)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("consumed", [0, 1, 7, 40, 63, 100, 120, 131, 135, 137])
def test_a_state_of_another_step_size_goes_on_with_nothing_lost_or_twice(data_sets, drop_last, consumed):
    order = {"shuffle": "full", "drop_last": drop_last}
    whole = [w for step in read(steps_of(data_sets[0], world_size=1, batch_size=1, **order)) for w in step]
    state = {**ShardLoader(data_sets[0], **order).state_dict(), "consumed": consumed}
    for step_size, batch_size in ((32, 8), (32, 32), (18, 3), (64, 16), (6, 6)):
        loader = ShardLoader(data_sets[0], batch_size=batch_size, step_size=step_size, **order)
        loader.load_state_dict(state)
        border = 138 // step_size * step_size
        seen = [w for batch in loader for w in batch.window_ids.tolist() if w >= 0]
        if (drop_last and consumed >= border) or loader.epoch == 2:
            continue  # the step that was not complete is dropped: the next epoch
        assert loader.epoch == 1
        if not drop_last:
            assert seen == whole[consumed:]
        else:
            assert seen == whole[consumed : consumed + len(seen)]
            assert abs(consumed + len(seen) - border) < batch_size
            if consumed % batch_size == 0:
                assert consumed + len(seen) == border


def test_a_step_size_is_checked_with_the_numbers(data_sets):
    path = data_sets[0]
    for size, near in ((100, "96 or 120"), (25, "24 or 48"), (7, "24")):
        with pytest.raises(ValueError, match=rf"^step_size: .* 8 x 3 = 24, such as {near}; got {size}$"):
            ShardLoader(path, batch_size=8, rank=0, world_size=3, step_size=size, shuffle="full")
    for wrong in (0, -8, "8", 8.0, True):
        with pytest.raises(ValueError, match="step_size: must be "):
            ShardLoader(path, step_size=wrong)
    with pytest.raises(ValueError, match=r"^step_size: the train split has 138 windows, fewer than a step of 144;"):
        ShardLoader(path, batch_size=8, step_size=144)
    loader = ShardLoader(path, batch_size=8, step_size=24)
    assert ShardLoader(path, batch_size=8).step_size == 8
    assert loader.step_size == 24
    with pytest.raises(AttributeError, match="step_size"):
        loader.step_size = 48
    ShardLoader(path, batch_size=4).load_state_dict(loader.state_dict())  # not part of what a state must match


def test_a_shape_in_which_ranks_decode_most_lanes_is_warned_of_once(data_sets):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for rank in range(3):
            list(ShardLoader(data_sets[0], shuffle="lanes", batch_size=8, rank=rank, world_size=3))
    assert [one.category for one in found] == [UserWarning]
    assert found[0].filename == __file__
    said = str(found[0].message)
    assert said.startswith("batch_size: 3 ranks of 8 take 24 windows at once, no multiple of the 64 lanes, ")
    assert "batch_size=64" in said
    assert "lanes=63 or 66" in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ShardLoader(data_sets[0], shuffle="lanes", batch_size=64, rank=0, world_size=3, drop_last=False)
        for lanes in (63, 66):
            ShardLoader(data_sets[0], shuffle="lanes", lanes=lanes, batch_size=8, rank=0, world_size=3)
        for shuffle in ("none", "full"):
            ShardLoader(data_sets[0], shuffle=shuffle, batch_size=8, rank=0, world_size=3)
        for world_size in (1, 2, 4, 8, 16, 32, 64, 128):
            ShardLoader(data_sets[0], shuffle="lanes", batch_size=1, rank=0, world_size=world_size, drop_last=False)
        ShardLoader(data_sets[0], shuffle="lanes", batch_size=2, rank=0, world_size=56)


@pytest.mark.parametrize("world_size", [3, 5, 7, 12])
def test_memory_is_that_of_the_lanes_that_a_rank_reads(world_size):
    for batch_size in (8, 3):
        for rank in range(world_size):
            part = divide(rank=rank, world_size=world_size, batch_size=batch_size, lanes=8)
            order = Order(groups=[5] * 400, shuffle="lanes", lanes=8, block=2)
            assert order.num_buffered(len(part.lanes_read())) == 2 * len(part.lanes_read())
            spans = list(order.spans(0, 0, part.lanes_read(0).tolist()))
            for index in range(0, len(order), 37):
                active = [span for span in spans if span.first <= index <= span.last]
                assert sum(span.high - span.low for span in active) <= 5 * order.num_buffered(len(part.lanes_read()))
