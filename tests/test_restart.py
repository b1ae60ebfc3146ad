"""With `restart` each iteration is the complete epoch, and without it the rest; `skip` passes over batches."""

import itertools
import json
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pipeline import ShardLoader, embed_batches

KINDS = {
    "none": {"shuffle": "none"},
    "full": {"shuffle": "full"},
    "lanes": {"shuffle": "lanes", "lanes": 4, "memory_budget": 4000},
    "mixture": {"shuffle": "full", "weights": [3, 1]},
    "mixture with a schedule": {"shuffle": "full", "weights": [(0, [3, 1]), (2, [1, 1]), (9, [0, 1]), (40, [1, 0])]},
    "mixture of lanes": {"shuffle": "lanes", "lanes": 4, "weights": [1, 2]},
}
kinds = st.sampled_from(list(KINDS))
shapes = st.sampled_from([(5, 0, 1), (16, 0, 1), (4, 1, 2), (7, 3, 4), (3, 2, 3)])  # batch size, rank, world size


@pytest.fixture(scope="module")
def shards(write_text):
    """A data set of 83 windows in 9 row groups."""
    text = "".join(f"{number:04} " for number in range(250))[: 12 * 83 + 1]
    return write_text(text, tokenizer="bytes", max_length=12, windows_per_group=10, windows_per_shard=30)


@pytest.fixture(scope="module")
def open_loader(shards):
    def make(kind, shape=(5, 0, 1), **options):
        batch_size, rank, world_size = shape
        path = [shards, shards] if "mixture" in kind else shards
        given = {**KINDS[kind], "batch_size": batch_size, "rank": rank, "world_size": world_size, "seed": 3, **options}
        return ShardLoader(path, **given)

    return make


def names(batches):
    """What identifies each batch: its windows, their sources and their tokens."""
    return [
        (b.window_ids.tolist(), None if b.source_ids is None else b.source_ids.tolist(), b.input_ids.tolist())
        for b in batches
    ]


def twin_epoch(make, epoch):
    """An epoch as a loader without `restart` reads it."""
    loader = make()
    loader.set_epoch(epoch)
    return names(loader)


class StoppedError(Exception):
    pass


def stop_by_break(loader, count):
    for number, _ in enumerate(loader, start=1):
        if number >= count:
            break


def stop_by_exception(loader, count):
    with pytest.raises(StoppedError):
        for number, _ in enumerate(loader, start=1):
            if number >= count:
                raise StoppedError


def stop_by_islice(loader, count):
    list(itertools.islice(loader, count))


def stop_by_zip(loader, count):
    list(zip(range(count), loader, strict=False))


def abandon(loader, count):
    batches = iter(loader)
    for _ in range(count):
        next(batches, None)
    ABANDONED.append(batches)


ABANDONED = []
STOPS = [stop_by_break, stop_by_exception, stop_by_islice, stop_by_zip, abandon]


@given(
    kind=kinds,
    shape=shapes,
    drop_last=st.booleans(),
    stops=st.lists(st.tuples(st.sampled_from(STOPS), st.integers(1, 30), st.integers(0, 2)), max_size=3),
)
@settings(max_examples=12)
def test_each_iteration_is_the_whole_epoch_however_the_last_one_ended(open_loader, kind, shape, drop_last, stops):
    loader = open_loader(kind, shape, drop_last=drop_last, restart=True)
    for stop, count, epoch in stops:
        stop(loader, min(count, len(loader)))
        before = loader.state_dict()
        loader.set_epoch(loader.epoch)
        assert loader.state_dict() == before, "the epoch in hand stays where it is"
        loader.set_epoch(epoch)
        for _ in range(2):
            assert names(loader) == twin_epoch(lambda: open_loader(kind, shape, drop_last=drop_last), epoch)
            assert loader.epoch == epoch, "an iteration that ends does not move the epoch"
            assert len(loader) == len(names(loader))
    ABANDONED.clear()


@given(kind=kinds, turns=st.lists(st.integers(0, 2), max_size=40), new_epoch=st.integers(0, 2))
@settings(max_examples=15)
def test_iterations_side_by_side_do_not_disturb_each_other(open_loader, kind, turns, new_epoch):
    loader = open_loader(kind, restart=True)
    whole = names(loader)
    readers = [iter(loader) for _ in range(3)]
    seen = [names([next(reader)]) for reader in readers]
    loader.set_epoch(new_epoch)
    for turn in turns:
        seen[turn] += names(itertools.islice(readers[turn], 1))
    for turn, reader in enumerate(readers):
        assert seen[turn] + names(reader) == whole, "an iteration stays in the epoch in which it started"
    assert loader.epoch == new_epoch
    assert names(loader) == twin_epoch(lambda: open_loader(kind), new_epoch)


@given(kind=kinds, shape=shapes, epoch=st.integers(0, 2), stop=st.integers(0, 40), drop_last=st.booleans())
@settings(max_examples=15)
def test_after_a_resume_one_iteration_is_the_rest_and_the_others_are_whole(
    open_loader, kind, shape, epoch, stop, drop_last
):
    whole = twin_epoch(lambda: open_loader(kind, shape, drop_last=drop_last), epoch)
    loader = open_loader(kind, shape, restart=True, drop_last=drop_last)
    loader.set_epoch(epoch)
    batches = iter(loader)
    seen = names(itertools.islice(batches, min(stop, len(whole))))
    state = json.loads(json.dumps(loader.state_dict()))
    batches.close()
    assert state == loader.state_dict()
    for _ in range(2):  # in another loader, and again in the same one
        other = open_loader(kind, shape, restart=True, drop_last=drop_last)
        other.load_state_dict(state)
        other = pickle.loads(pickle.dumps(other))
        other.set_epoch(other.epoch)
        if len(seen) < len(whole):
            assert seen + names(other) == whole
            assert names(other) == names(other) == whole
        else:  # the end of an epoch is the start of the next
            assert other.epoch == epoch + 1
            assert (
                names(other) == names(other) == twin_epoch(lambda: open_loader(kind, shape), epoch + 1) or not drop_last
            )
    plain = open_loader(kind, shape, drop_last=drop_last)
    plain.load_state_dict(state)
    assert seen + names(plain) == whole or len(seen) == len(whole), "states are those of a loader without it"


def test_without_restart_the_rest_of_the_epoch_remains(open_loader):
    loader = open_loader("full")
    whole = names(open_loader("full"))
    stop_by_break(loader, 3)
    assert names(loader) == whole[3:]
    assert loader.epoch == 1


def test_embedded_batches_restart_too(open_loader):
    layer = torch.nn.Embedding(257, 4)
    loader = open_loader("full", restart=True)
    whole = names(loader)
    for _ in range(2):
        assert names(itertools.islice(embed_batches(loader, layer), 3)) == whole[:3]
    assert names(embed_batches(loader, layer)) == whole


@pytest.mark.slow
def test_worker_processes_restart_too(open_loader):
    context = "fork"
    with warnings.catch_warnings():  # Python 3.12 and later warn of a fork beside threads, which pyarrow may have
        warnings.simplefilter("ignore")
        whole = names(open_loader("lanes"))
        own = open_loader("lanes", restart=True, workers=2, worker_context=context)
        plain = open_loader("lanes", restart=True)
        wrapped = DataLoader(plain, batch_size=None, num_workers=2, multiprocessing_context=context)
        kept = DataLoader(
            plain, batch_size=None, num_workers=2, multiprocessing_context=context, persistent_workers=True
        )
        for one in (own, wrapped, kept):
            assert names(itertools.islice(one, 3)) == whole[:3]
            assert names(one) == names(one) == whole
        plain.set_epoch(1)
        assert names(wrapped) == twin_epoch(lambda: open_loader("lanes"), 1)


def read_on(loader, count):
    """Read this many batches, over the ends of epochs: what `skip` is compared with."""
    while count > 0:
        read = len(list(itertools.islice(loader, count)))
        assert read, "an epoch has a batch"
        count -= read


@given(
    kind=kinds,
    shape=shapes,
    drop_last=st.booleans(),
    epoch=st.integers(0, 2),
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 45)), min_size=1, max_size=3),
)
@settings(max_examples=12)
def test_a_skip_is_as_if_the_batches_had_been_read(open_loader, kind, shape, drop_last, epoch, steps):
    loader, twin = (open_loader(kind, shape, drop_last=drop_last) for _ in range(2))
    for one in (loader, twin):
        one.set_epoch(epoch)
    for read, skipped in steps:
        for one in (loader, twin):
            read_on(one, read)
        loader.skip(skipped)
        read_on(twin, skipped)
        assert loader.state_dict() == twin.state_dict()
        if "mixture" in kind:
            assert loader.source_samples == twin.source_samples
            assert loader.source_epochs == twin.source_epochs
    assert names(loader) == names(twin)


@given(kind=kinds, first=st.integers(1, 6), skipped=st.integers(0, 60), restart=st.booleans())
@settings(max_examples=25)
def test_a_skip_in_a_loop_leaves_these_batches_out_and_ends_the_loop_with_its_epoch(
    open_loader, kind, first, skipped, restart
):
    twin = open_loader(kind)
    sequence = [names(twin) for _ in range(5)]
    loader, seen = open_loader(kind, restart=restart), []
    for batch in loader:
        seen += names([batch])
        if len(seen) == first:
            loader.skip(skipped)
    passed = first + skipped
    assert seen == sequence[0][:first] + sequence[0][passed:]
    flat = [batch for epoch in sequence for batch in epoch]
    if passed >= len(sequence[0]) or not restart:
        rest = max(passed, len(sequence[0]))
        here = names(loader)
        assert flat[rest : rest + len(here)] == here


def test_a_skip_decodes_nothing_and_is_one_step_of_any_length(open_loader, monkeypatch):
    loader = open_loader("full")
    monkeypatch.setattr(type(loader.reader), "read_group", lambda *_: pytest.fail("decoded"))
    loader.skip(0)
    assert (loader.epoch, loader.consumed) == (0, 0)
    loader.skip(16)
    assert (loader.epoch, loader.consumed) == (1, 0), "the end of an epoch is the start of the next"
    loader.skip(10**12)
    assert loader.epoch == 1 + 10**12 // 16
    assert loader.consumed == 10**12 % 16 * 5


@pytest.mark.parametrize("wrong", [-1, 1.5, "3", True, None])
def test_a_skip_of_no_number_of_batches_is_refused_by_its_name(open_loader, wrong):
    loader = open_loader("full")
    with pytest.raises(ValueError, match=r"^skip: must be "):
        loader.skip(wrong)
    assert (loader.epoch, loader.consumed) == (0, 0)


def test_with_restart_a_skip_before_an_iteration_is_where_that_one_starts(open_loader):
    loader = open_loader("full", restart=True)
    whole = names(loader)
    loader.skip(4)
    assert names(loader) == whole[4:]
    assert names(loader) == whole
    stop_by_break(loader, 3)
    loader.skip(2)
    loader.skip(2)
    assert names(loader) == whole[4:]
    assert names(loader) == whole


def test_restart_is_a_truth_value(open_loader):
    with pytest.raises(ValueError, match=r"restart: must be true or false; got 'yes'"):
        open_loader("full", restart="yes")
