"""A loader that is stopped anywhere goes on with what was left, whatever the world size, batch size and threads."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import ShardLoader
from pipeline.loader.batch import Int64Block

WINDOWS_PER_GROUP = 10


@pytest.fixture(scope="module")
def shards(write_text):
    """A data set of 138 windows in row groups of 10."""
    text = "".join(f"{number:04} " for number in range(400))[: 12 * 138 + 1]
    sizes = {"windows_per_group": WINDOWS_PER_GROUP, "windows_per_shard": 3 * WINDOWS_PER_GROUP}
    return write_text(text, tokenizer="bytes", max_length=12, **sizes)


def windows_of(batches):
    return [batch.window_ids.tolist() for batch in batches]


def interleave(per_rank, world_size):
    """The global sequence of an epoch's batches: position i was rank i % world_size's."""
    steps = [[window for rows in zip(*step, strict=True) for window in rows] for step in zip(*per_rank, strict=True)]
    return [window for step in steps for window in step if window >= 0]


def all_ranks(path, *, world_size, state=None, **options):
    """The rest of an epoch as all ranks together read it, and whether all gave as many batches."""
    loaders = [ShardLoader(path, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    for loader in loaders:
        if state:
            loader.load_state_dict(json.loads(json.dumps(state)))
    start = loaders[0].consumed % world_size
    per_rank = [windows_of(loaders[(rank + start) % world_size]) for rank in range(world_size)]
    assert len({len(batches) for batches in per_rank}) == 1, "all ranks end together"
    return interleave(per_rank, world_size)


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["none", "full", "lanes", "lanes of small blocks"])
def test_a_loader_stopped_at_every_step_goes_on_in_fresh_ones_of_any_shape(shards, shuffle, monkeypatch):
    """The one test that everything else leans on: stop at each step, restore elsewhere, compare the tail."""
    memories = (10**9, 30_000, 12_000)
    if shuffle == "lanes of small blocks":  # a few row groups at a time, which come and go
        monkeypatch.setattr("pipeline.loader.order.BLOCK_TOKENS", 1)
        shuffle, memories = "lanes", (8_000, 2_000, 1_500)
    order = {"shuffle": shuffle, "lanes": 4, "seed": 5, "drop_last": False}
    whole = all_ranks(shards, world_size=1, batch_size=8, **order)
    assert sorted(whole) == list(range(len(whole)))
    shapes = [(1, 5, 1, memories[0]), (2, 3, 2, memories[1]), (4, 8, 1, memories[2])]  # world and batch size, threads
    loader = ShardLoader(shards, batch_size=8, **order)
    for step, _ in enumerate(loader, start=1):
        state = loader.state_dict()
        for world_size, batch_size, threads, memory in shapes if step % 4 == 0 else shapes[step % 3 : step % 3 + 1]:
            options = {"batch_size": batch_size, "threads": threads, **order}
            options["memory_budget"] = 10**9 if shuffle == "full" else memory
            tail = all_ranks(shards, world_size=world_size, state=state, **options)
            if step < len(loader):
                assert tail == whole[8 * step :]
            else:
                assert sorted(tail) == sorted(whole), "the end of an epoch is the start of the next"


@given(
    shuffle=st.sampled_from(["none", "full", "lanes"]),
    world_sizes=st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4])),
    batch_sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    steps=st.integers(0, 4),
    seed=st.integers(0, 3),
)
@settings(max_examples=25)
def test_two_parts_of_an_epoch_of_any_shapes_make_one_sequence(shards, shuffle, world_sizes, batch_sizes, steps, seed):
    order = {"shuffle": shuffle, "lanes": 8, "seed": seed, "drop_last": False}
    whole = all_ranks(shards, world_size=1, batch_size=138, **order)
    first = [
        ShardLoader(shards, rank=rank, world_size=world_sizes[0], batch_size=batch_sizes[0], **order)
        for rank in range(world_sizes[0])
    ]
    if steps >= len(first[0]):
        return
    heads = []
    for loader in first:
        batches = iter(loader)
        heads.append([next(batches).window_ids.tolist() for _ in range(steps)])
        batches.close()
    states = [loader.state_dict() for loader in first]
    assert all(state == states[0] for state in states), "the state is the same on every rank"
    head = interleave(heads, world_sizes[0])
    tail = all_ranks(shards, world_size=world_sizes[1], batch_size=batch_sizes[1], state=states[0], **order)
    assert head + tail == whole


def test_the_end_of_an_epoch_is_the_start_of_the_next(shards):
    loader = ShardLoader(shards, batch_size=8, shuffle="full")
    batches = list(loader)
    assert loader.state_dict()["epoch"] == 1
    assert loader.state_dict()["consumed"] == 0
    other = ShardLoader(shards, batch_size=3, shuffle="full")
    other.load_state_dict({**loader.state_dict(), "epoch": 0, "consumed": 8 * len(batches)})
    assert (other.epoch, other.consumed) == (1, 0), "two windows were still due: too few for a batch of three"
    assert len(windows_of(other)) == len(other), "so this is the next epoch, whole"
    assert other.epoch == 2


def test_set_epoch_leaves_the_epoch_in_hand_where_it_is(shards):
    loader = ShardLoader(shards, batch_size=8)
    batches = iter(loader)
    next(batches)
    batches.close()
    loader.set_epoch(0)  # as trainers call it before each epoch, a resumed one too
    assert loader.consumed == 8
    loader.set_epoch(3)
    assert (loader.epoch, loader.consumed) == (3, 0)
    with pytest.raises(ValueError, match="epoch: must be at least 0; got -1"):
        loader.set_epoch(-1)


def test_a_loader_moved_while_it_is_read_goes_on_from_there(shards):
    straight = ShardLoader(shards, batch_size=8, seed=1)
    first, second = windows_of(straight), windows_of(straight)
    loader = ShardLoader(shards, batch_size=8, seed=1)
    seen = []
    for batch in loader:
        seen.append(batch.window_ids.tolist())
        if len(seen) == 3:
            state = loader.state_dict()
        if len(seen) == 5:
            loader.load_state_dict(state)
        if len(seen) == 7:
            loader.set_epoch(1)
    assert seen == first[:5] + first[3:5] + second


def test_two_readers_of_one_loader_share_one_sequence(shards):
    whole = windows_of(ShardLoader(shards, batch_size=8))
    loader = ShardLoader(shards, batch_size=8)
    one, other = iter(loader), iter(loader)
    seen = [next(reader).window_ids.tolist() for reader in (one, other, other, one, other, one)]
    one.close()
    other.close()
    assert seen == whole[:6]


def test_the_state_is_small_and_plain(shards):
    state = ShardLoader(shards, shuffle="lanes").state_dict()
    assert json.loads(json.dumps(state)) == state
    order = {"version", "fingerprint", "split", "shuffle", "seed", "lanes", "block", "epoch", "consumed"}
    assert set(state) == {*order, "data_sets"}


def test_a_state_of_another_data_set_or_order_is_refused_by_name(shards):
    def refuses(message, mine, other):
        state = ShardLoader(shards, **other).state_dict()
        with pytest.raises(ValueError, match=message):
            ShardLoader(shards, **mine).load_state_dict(state)

    refuses(r"loader.seed was 1, here it is 2", {"seed": 2}, {"seed": 1})
    refuses(r"loader.shuffle was 'lanes', here it is 'full'", {"shuffle": "full"}, {"shuffle": "lanes"})
    refuses(r"loader.lanes was 64, here it is 32", {"shuffle": "lanes", "lanes": 32}, {"shuffle": "lanes"})
    loader = ShardLoader(shards)
    with pytest.raises(ValueError, match=r"this state belongs to another data set of the same name and parameters"):
        loader.load_state_dict({**loader.state_dict(), "fingerprint": "another"})
    with pytest.raises(ValueError, match=r"the state's consumed: must be at least 0; got -1"):
        loader.load_state_dict({**loader.state_dict(), "consumed": -1})
    ShardLoader(shards, shuffle="none", seed=1, lanes=2).load_state_dict(
        ShardLoader(shards, shuffle="none", seed=2, lanes=4).state_dict()
    )  # the stored order has neither


def test_the_length_is_that_of_a_whole_epoch_and_equal_on_all_ranks(shards):
    for world_size in (1, 2, 4):
        for drop_last in (True, False):
            loaders = [
                ShardLoader(shards, rank=rank, world_size=world_size, batch_size=5, drop_last=drop_last)
                for rank in range(world_size)
            ]
            lengths = {len(loader) for loader in loaders} | {len(windows_of(loader)) for loader in loaders}
            assert len(lengths) == 1
            rows = 5 * world_size
            assert lengths == {138 // rows if drop_last else -(-138 // rows)}


def test_a_rank_that_makes_no_sense_is_refused(shards):
    with pytest.raises(ValueError, match=r"rank, world_size: give both or neither"):
        ShardLoader(shards, rank=0)
    with pytest.raises(ValueError, match=r"rank: must be at most 1; got 2"):
        ShardLoader(shards, rank=2, world_size=2)


@pytest.mark.parametrize("shape", [{"batch_size": 16}, {"batch_size": 4, "rank": 1, "world_size": 4}])
def test_an_epoch_too_short_to_go_on_with_is_left_at_once_and_none_comes_twice(shards, shape):
    """The loop of a trainer, which asks the loader where it stands and sets each epoch."""
    loader = ShardLoader(shards, batch_size=8, seed=2)
    batches = iter(loader)
    for _ in range(16):
        next(batches)
    batches.close()
    state = loader.state_dict()
    assert (state["epoch"], state["consumed"]) == (0, 128), "ten windows are left"
    resumed = ShardLoader(shards, seed=2, **shape)
    resumed.load_state_dict(state)
    passes = []
    for epoch in range(resumed.epoch, 3):
        resumed.set_epoch(epoch)
        passes.append(windows_of(resumed))
    straight = ShardLoader(shards, seed=2, **shape)
    assert passes == [windows_of(straight) for _ in range(3)][1:]


def test_a_batch_that_could_not_be_made_does_not_count(shards, monkeypatch):
    """As when a device has no memory left, or Ctrl-C comes then."""
    whole = windows_of(ShardLoader(shards, batch_size=8))
    loader = ShardLoader(shards, batch_size=8, device="cpu")
    made = []
    make = Int64Block.batch

    def fail_once(self, rows):
        made.append(rows)
        if len(made) == 4:
            raise MemoryError("no memory on the device")
        return make(self, rows)

    monkeypatch.setattr(Int64Block, "batch", fail_once)
    seen = []
    with pytest.raises(MemoryError):
        seen.extend(batch.window_ids.tolist() for batch in loader)
    assert len(seen) < len(whole)
    assert loader.consumed == 8 * 3
    assert windows_of(loader) == whole[3:]


def test_two_iterations_end_with_the_epoch_that_they_share(shards):
    loader = ShardLoader(shards, batch_size=8)
    whole = windows_of(ShardLoader(shards, batch_size=8))
    pairs = list(itertools.islice(zip(loader, loader, strict=False), 60))
    assert windows_of(batch for pair in pairs for batch in pair) == whole[: 2 * len(pairs)]
    assert len(pairs) == len(whole) // 2
    outer = 0
    loader = ShardLoader(shards, batch_size=8)
    for _ in itertools.islice(loader, 60):
        outer += 1
        assert len(list(loader)) == len(whole) - 1
    assert (outer, loader.epoch) == (1, 1)


def test_the_state_is_json_whatever_kind_of_numbers_was_given(shards):
    alone = ShardLoader(shards, rank=np.int64(0), world_size=np.int64(1), batch_size=np.int32(8))
    mixes = [
        ShardLoader([shards, shards], lanes=2, weights=kind([0.25, 0.75])) for kind in (np.array, torch.tensor, list)
    ]
    states = []
    for loader in (alone, *mixes):
        batches = iter(loader)
        next(batches)
        batches.close()
        states.append(json.dumps(loader.state_dict()))
    assert states[1] == states[2] == states[3]


@pytest.mark.parametrize(
    ("is_mix", "change", "words"),
    [
        (False, None, "a state is the dict"),
        (False, {"version": 2}, "this loader reads 1 and 3; got 2"),
        (False, {"consumed": 139}, "the state's consumed: must be at most 138; got 139"),
        (False, {"consumed": -1}, "the state's consumed: must be at least 0; got -1"),
        (False, {"epoch": "1"}, "the state's epoch: must be a whole number; got '1'"),
        (True, {"weights": None}, "rising from index 0"),
        (True, {"weights": []}, "rising from index 0"),
        (True, {"weights": [[8, [1, 1]]]}, "rising from index 0.*; got a change at 8"),
        (True, {"weights": [[0, [1, 1]], [0, [1, 2]]]}, "rising from index 0.*; got a change at 0"),
        (True, {"weights": [[0, [1]]]}, "one weight for each source"),
        (True, {"epoch": 5, "consumed": 0}, "epoch: 5 does not go with consumed=0"),
    ],
)
def test_a_damaged_state_is_refused_and_moves_nothing(shards, is_mix, change, words):
    loader = ShardLoader([shards, shards] if is_mix else shards, lanes=2)
    here = loader.state_dict()
    with pytest.raises(ValueError, match=words):
        loader.load_state_dict(change and {**here, **change})
    assert loader.state_dict() == here


@pytest.mark.parametrize("is_mixture", [False, True])
def test_no_value_of_any_field_of_a_state_does_more_than_being_refused(shards, is_mixture):
    """Each field: missing, of another type, negative, not finite, far too large; and the loader stays as it was."""
    loader = ShardLoader([shards, shards] if is_mixture else shards, batch_size=8, shuffle="lanes", lanes=2)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    batches.close()
    if is_mixture:
        loader.set_weights([1, 2])  # the state has more fields then
    state = loader.state_dict()
    values = [
        None,
        "x",
        "1",
        True,
        1.5,
        -1,
        10**30,
        10**400,
        float("nan"),
        float("inf"),
        [],
        {},
        [[0, "x"]],
        np.zeros(2),
    ]
    values += [
        [[0, [10**400, 1]]],
        [[0, [1, float("nan")]]],
        [[0, [1, "x"]]],
        [[0, ["x" * 999, 1]]],
        [[10**30, [1, 1]]],
    ]
    for key in set(state) - {"data_sets"}:
        for value in values:
            with pytest.raises(ValueError) as refused:  # noqa: PT011 - the words are looked at below
                loader.load_state_dict({**state, key: value})
            assert len(str(refused.value)) < 400
            assert key in str(refused.value) or key == "fingerprint", refused.value
        with pytest.raises(ValueError, match="state"):
            loader.load_state_dict({one: value for one, value in state.items() if one != key})
    assert loader.state_dict() == state
    with pytest.raises(ValueError, match="a state is the dict"):
        loader.load_state_dict([state])
    for value in values:  # what only serves to name differences is no reason to refuse
        loader.load_state_dict({**state, "data_sets": value})
    other = ShardLoader([shards, shards] if is_mixture else shards, batch_size=8, shuffle="lanes", lanes=2)
    other.load_state_dict({key: value for key, value in state.items() if key != "data_sets"})
    assert windows_of(loader) == windows_of(other)


def test_a_state_of_another_data_set_says_what_differs_with_both_values(write_text):
    text = "".join(f"{number:04} " for number in range(400))
    mine = ShardLoader(write_text(text, tokenizer="bytes", max_length=12, stride=6))
    for options, words in (
        ({"max_length": 12, "stride": 4}, "window.stride was 4, here it is 6"),
        ({"max_length": 24, "stride": 6}, "window.max_length was 24, here it is 12"),
        ({"max_length": 12, "stride": 6, "tail": "pad"}, "window.tail was pad, here it is drop"),
        ({"max_length": 12, "stride": 6, "order": "shuffled"}, "shards.order was shuffled, here it is sequential"),
    ):
        state = ShardLoader(write_text(text, tokenizer="bytes", **options)).state_dict()
        with pytest.raises(ValueError, match="belongs to another data set") as refused:
            mine.load_state_dict(json.loads(json.dumps(state)))
        assert words in str(refused.value)
        assert len(str(refused.value)) < 400
        for strange in ({}, {"data_sets": 3}, {"data_sets": [None]}, {"data_sets": [{}]}, {"data_sets": [{}, {}]}):
            known = {key: value for key, value in state.items() if key != "data_sets"}
            with pytest.raises(ValueError, match="belongs to another"):
                mine.load_state_dict({**known, **strange})
