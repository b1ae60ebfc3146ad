"""A mixture of data sets: any weights are met, each source in its own order, and one index is the state."""

import itertools
import json
import math
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import sections
from test_order import slow_key
from torch.utils.data import DataLoader

from pipeline import ShardLoader, embed_batches, write_shards
from pipeline.base.permutation import make_key
from pipeline.embedding import TokenEmbedding
from pipeline.loader.division import divide
from pipeline.loader.draws import sort_by_row, sort_in_runs
from pipeline.loader.mixture import Mixture
from pipeline.loader.order import Order
from pipeline.loader.weights import find_shares

SIZES = {"a": 138, "b": 40, "c": 75}  # windows


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Three data sets, of one tokenizer and length, in row groups of 10, 4 and 25 windows."""
    folder = tmp_path_factory.mktemp("mix")

    def write(name, windows, group, **options):
        (folder / f"{name}.txt").write_text("".join(f"{name}{k:05} " for k in range(windows * 2))[: 12 * windows + 1])
        corpus = {"corpus": "text", "corpus_path": str(folder / f"{name}.txt"), "cache_path": folder / "cache"}
        sizes = {"max_length": 12, "windows_per_group": group, **options}
        return write_shards(folder / f"{name}-{len(options)}", **sections(tokenizer="bytes", **corpus, **sizes)).path

    paths = [write(name, windows, group) for (name, windows), group in zip(SIZES.items(), (10, 4, 25), strict=True)]
    return paths, write


def drawn(loader, count):
    """(source, window) of the next `count` samples of one rank, epoch after epoch."""
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    samples = (
        pair for batch in batches for pair in zip(batch.source_ids.tolist(), batch.window_ids.tolist(), strict=True)
    )
    return list(itertools.islice(samples, count))


def alone(path, count, **options):
    """The windows that a data set's own loader gives, one by one, epoch after epoch."""
    loader = ShardLoader(path, batch_size=1, **options)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    return [batch.window_ids.item() for batch in itertools.islice(batches, count)]


# --- sorting draws ----------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0**60, math.inf]) | st.floats(0, 9), max_size=8)))
def test_times_are_sorted_within_each_run_and_equal_ones_stay_in_order(runs):
    times = np.array([time for run in runs for time in run], float)
    run = np.repeat(np.arange(len(runs)), [len(one) for one in runs])
    found = sort_in_runs(times, run, np.array([len(one) for one in runs], np.int64))
    assert found.tolist() == np.lexsort((times, run)).tolist()


@given(st.lists(st.tuples(st.integers(0, 3) | st.just(1 << 16), st.integers(0, 5))))
def test_draws_are_sorted_by_row_whatever_order_they_come_in(pairs):
    row, draw = np.array(pairs, np.int64).reshape(-1, 2).T
    assert sort_by_row(row, draw).tolist() == np.lexsort((draw, row)).tolist()


# --- proportions ------------------------------------------------------------------------------------------------------


def orders_of(sizes, shuffle, *, lanes=4, seed=0, group=3):
    groups = [[group] * (size // group) + [size % group] * (size % group > 0) for size in sizes]
    return [Order(groups=counts, shuffle=shuffle, seed=seed, lanes=lanes) for counts in groups]


def by_eye(mix, count):
    sources = np.searchsorted(mix.offsets, mix.windows(np.arange(count)), side="right") - 1
    return "".join(map(str, sources.tolist()))


def test_the_sources_of_a_small_mix_by_eye():
    """Weights of 2 and 1: about two of three draws are of source 0, at times that a seed picks."""
    found = by_eye(Mixture(orders=orders_of([50, 50], "none"), weights=[(0, [2, 1])]), 30)
    assert Counter(found) == {"0": 20, "1": 10}
    assert found == "100010010100010001001010010100"  # a change of one draw would break every resume


def slow_samples(mix, count):
    """(source, draw of the source) of the first indices: every draw with its time, in plain numbers, sorted."""
    rows, drawn, samples = mix.num_rows, Counter(), []
    due = [0.0] * len(mix.orders)
    stops = [start for start, _ in mix.weights[1:]] + [count]
    for (start, weights), stop in zip(mix.weights, stops, strict=True):
        shares = [weight / math.fsum(weights) for weight in weights]
        events = []
        for row in range(rows):
            times = []
            for source, share in enumerate(shares):
                first = drawn[row, source]
                for draw in range(first, first + count + 9) if share else ():
                    part = (slow_key(mix.seed, 4, row, source, draw) >> 11) / 2**53
                    times.append((max(0, (draw - due[source] + part) / share), source, draw))
            events.append(iter(sorted(times)))
        for index in range(start, min(stop, count)):
            _, source, draw = next(events[index % rows])
            drawn[index % rows, source] = draw + 1
            samples.append((source, draw * rows + index % rows))
        due = [known + share * ((stop - start) / rows) for known, share in zip(due, shares, strict=True)]
    return samples


mixtures = st.tuples(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.sampled_from(["none", "full", "lanes"]),
    st.sampled_from([1, 3, 4, 8]),
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(1, 90), max_size=2, unique=True).map(sorted),
    st.data(),
)


def draw_mixture(given_):
    """A mixture of sources of any size, also below the lanes, whose weights change at some indices."""
    sizes, shuffle, lanes, seed, changes, data = given_
    weight = st.sampled_from([0, 1e-9, 0.3, 1, 7])
    some = st.lists(weight, min_size=len(sizes), max_size=len(sizes)).filter(any)
    weights = [(0, [1] * len(sizes)), *((index, data.draw(some)) for index in changes)]
    return Mixture(orders=orders_of(sizes, shuffle, lanes=lanes, seed=seed), weights=weights), data


@pytest.mark.slow
@given(mixtures)
@settings(max_examples=25)
def test_the_samples_are_those_of_the_slow_twin(given_):
    mix, _ = draw_mixture(given_)
    samples = slow_samples(mix, 150)
    windows = []
    for source, draw in samples:
        order, size = mix.orders[source], len(mix.orders[source])
        windows.append(int(order.windows([draw % size], draw // size)[0] + mix.offsets[source]))
    assert mix.windows(np.arange(150)).tolist() == windows
    for index in range(0, 151, 10):
        expected = np.bincount([source for source, _ in samples[:index]], minlength=len(mix.orders))
        assert mix.draws(index).tolist() == expected.tolist(), "what was drawn is counted without a walk"


@given(
    weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=6).filter(any),
    shuffle=st.sampled_from(["none", "full", "lanes"]),
    lanes=st.sampled_from([1, 3, 4]),
    start=st.sampled_from([0, 10**3, 10**9, 10**14]),
)
@settings(max_examples=20)
def test_each_row_of_draws_keeps_the_weights_at_every_length_without_drift(weights, shuffle, lanes, start):
    mix = Mixture(orders=orders_of([23] * len(weights), shuffle, lanes=lanes), weights=[(0, weights)])
    shares = find_shares(weights, num_sources=len(weights))
    indices = start * mix.num_rows + np.arange(90 * mix.num_rows)
    sources = np.searchsorted(mix.offsets, mix.windows(indices), side="right") - 1
    before = mix.draws(start * mix.num_rows)
    assert before.sum() == start * mix.num_rows
    assert (np.abs(before - start * mix.num_rows * shares) <= mix.num_rows * (1 + shares * len(weights)) + 1e-3).all()
    if not start:
        for row in range(mix.num_rows):
            counts = np.cumsum(sources[row :: mix.num_rows, None] == np.arange(len(weights)), axis=0)
            expected = np.arange(1, 91)[:, None] * shares
            assert (np.abs(counts - expected) <= 1 + shares * len(weights) + 1e-9).all()


@pytest.mark.slow
@given(mixtures)
@settings(max_examples=20)
def test_any_index_is_entered_as_by_walking_there(given_):
    mix, data = draw_mixture(given_)
    expected = mix.windows(np.arange(300))
    fresh = Mixture(orders=mix.orders, weights=json.loads(json.dumps(mix.weights)))
    for _ in range(4):  # each call goes on from the one before where it can
        indices = np.array(data.draw(st.lists(st.integers(0, 299), max_size=20)), dtype=np.int64)
        assert fresh.windows(indices).tolist() == expected[indices].tolist()
        start = data.draw(st.integers(0, 200))
        for low in range(start, 290, 45):
            assert fresh.windows(np.arange(low, low + 10)).tolist() == expected[low : low + 10].tolist()


@pytest.mark.slow
@given(mixtures)
@settings(max_examples=25)
def test_spans_hold_every_row_when_it_is_needed(given_):
    """What a reader decodes by them, and drops after their last index, is there at every index."""
    mix, data = draw_mixture(given_)
    start = data.draw(st.integers(0, 130))
    world_size, batch_size = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    starts = np.cumsum([0, *(count for order in mix.orders for count in order.stored.counts())])
    for rank in range(world_size):
        part = divide(rank=rank, world_size=world_size, batch_size=batch_size, lanes=mix.num_rows)
        indices = part.indices(start, 120 // part.global_batch + 1).ravel()
        indices = indices[indices < (mix.next_change(start) or start + 120)]
        windows = mix.windows(indices)
        all_spans = mix.spans(start, rows=part.lanes_read(start).tolist())
        last = int(indices[-1])
        spans = list(itertools.takewhile(lambda span, last=last: span.first <= last, all_spans))
        assert [span.first for span in spans] == sorted(span.first for span in spans)
        group = np.searchsorted(starts, windows, side="right") - 1
        row = windows - starts[group]
        for index, its_group, its_row in zip(indices.tolist(), group.tolist(), row.tolist(), strict=True):
            assert any(
                span.group == its_group and span.low <= its_row < span.high and span.first <= index <= span.last
                for span in spans
            )


@pytest.mark.slow
@given(
    sizes=st.lists(st.integers(1, 300), min_size=2, max_size=3),
    lanes=st.sampled_from([1, 4, 16, 64]),
    shuffle=st.sampled_from(["none", "full", "lanes"]),
    seed=st.integers(0, 9),
    data=st.data(),
)
@settings(max_examples=15)
def test_each_window_of_a_source_comes_as_often_as_any_other(sizes, lanes, shuffle, seed, data):
    """To within the draws by which rows are ahead of one another, however many epochs the source is in."""
    weights = st.lists(st.sampled_from([0.1, 1, 3]), min_size=len(sizes), max_size=len(sizes))
    changes = [(0, data.draw(weights)), (data.draw(st.integers(1, 3000)), data.draw(weights))]
    mix = Mixture(orders=orders_of(sizes, shuffle, lanes=lanes, seed=seed), weights=changes)
    windows = mix.windows(np.arange(12_000))
    for source, size in enumerate(sizes):
        counts = np.bincount(windows, minlength=len(mix))[mix.offsets[source] : mix.offsets[source + 1]]
        ahead = 2 * (2 + 2 * len(sizes))  # of one row in draws, under both weights
        assert counts.max() - counts.min() <= 1 + (0 if mix.num_rows == 1 else -(-ahead * mix.num_rows // size))


# --- the loader -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", ["none", "full"])
def test_each_source_comes_in_the_order_of_its_own_loader_epoch_after_epoch(sources, shuffle):
    paths, _ = sources
    options = {"shuffle": shuffle, "seed": 3}
    samples = drawn(ShardLoader(paths, weights=[2, 2, 1], batch_size=7, **options), 1000)
    assert Counter(source for source, _ in samples) == {0: 400, 1: 400, 2: 200}
    for source, path in enumerate(paths):
        mine = [window for one, window in samples if one == source]
        assert mine == alone(path, len(mine), **options)


def test_under_lanes_the_draws_of_a_source_through_all_lanes_are_its_epochs(sources):
    paths, _ = sources
    options = {"shuffle": "lanes", "lanes": 4, "seed": 3}
    samples = drawn(ShardLoader(paths, weights=[2, 2, 1], batch_size=7, **options), 1600)
    for source, path in enumerate(paths):
        own = alone(path, 20 * SIZES["abc"[source]], drop_last=False, **options)
        for row in range(4):
            mine = [window for i, (one, window) in enumerate(samples) if one == source and i % 4 == row]
            assert mine == own[row::4][: len(mine)]


def test_batches_hold_the_tokens_of_the_windows_that_they_name(sources):
    paths, _ = sources
    rows = [list(ShardLoader(path, shuffle="none", batch_size=1)) for path in paths]
    for shuffle in ("none", "full", "lanes"):
        for batch in ShardLoader(paths, batch_size=8, shuffle=shuffle, lanes=4):
            for at, (source, window) in enumerate(zip(batch.source_ids, batch.window_ids, strict=True)):
                assert batch.input_ids[at].equal(rows[source][window].input_ids[0])
                assert batch.target_ids[at].equal(rows[source][window].target_ids[0])


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["none", "full", "lanes"])
def test_a_mix_stopped_at_every_step_goes_on_elsewhere_with_the_same_samples(sources, shuffle):
    paths, _ = sources
    order = {"shuffle": shuffle, "lanes": 4, "seed": 5, "weights": [0.5, 0.3, 0.2]}
    whole = drawn(ShardLoader(paths, batch_size=1, **order), 600)
    loader = ShardLoader(paths, batch_size=8, **order)
    for step, _ in enumerate(loader, start=1):
        state = json.loads(json.dumps(loader.state_dict()))
        world_size, batch_size, memory = [(1, 5, 10**9), (2, 3, 10**9), (4, 4, 40_000)][step % 3]
        parts = []
        for rank in range(world_size):
            other = ShardLoader(
                paths,
                rank=rank,
                world_size=world_size,
                batch_size=batch_size,
                memory_budget=10**9 if shuffle == "full" else memory,
                **order,
            )
            other.load_state_dict(state)
            parts.append(drawn(other, 30))
        first = 8 * step % world_size
        tail = [sample for rows in zip(*(parts[first:] + parts[:first]), strict=True) for sample in rows]
        assert tail == whole[8 * step : 8 * step + len(tail)]


@pytest.mark.parametrize("shuffle", ["none", "full", "lanes"])
def test_nothing_is_lost_or_repeated_where_epochs_of_the_mix_meet(sources, shuffle):
    """An epoch ends with the first whole batch at or behind as many samples as there are windows."""
    paths, _ = sources
    loader = ShardLoader(paths, batch_size=16, shuffle=shuffle, lanes=4)
    total = sum(SIZES.values())
    samples = []
    for epoch in range(3):
        assert loader.epoch == epoch
        loader.set_epoch(epoch)  # as trainers do: it is there already
        expected = len(loader)
        batches = [drawn_batch for drawn_batch in loader if drawn_batch.window_ids.min() >= 0]
        assert len(batches) == expected
        samples += [pair for b in batches for pair in zip(b.source_ids.tolist(), b.window_ids.tolist(), strict=True)]
        assert 0 <= len(samples) - (epoch + 1) * total < 16
    assert samples == drawn(ShardLoader(paths, batch_size=1, shuffle=shuffle, lanes=4), len(samples))


@pytest.mark.parametrize("shuffle", ["none", "full"])
def test_weights_change_at_a_position_without_losing_or_repeating_a_window(sources, shuffle):
    paths, _ = sources
    loader = ShardLoader(paths, weights=[1, 1, 1], batch_size=10, shuffle=shuffle, seed=2)
    samples, states = [], []
    changes = {7: [8, 1, 1], 20: [0, 1, 3]}
    for step, batch in enumerate(itertools.chain.from_iterable(itertools.repeat(loader)), start=1):
        samples += zip(batch.source_ids.tolist(), batch.window_ids.tolist(), strict=True)
        if step in changes:
            loader.set_weights(changes[step])
        states.append(loader.state_dict())
        if step == 60:
            break
    assert states[-1]["weights"] == [[200, [0, 1, 3]]], "what is past is not kept"
    for low, high, weights in ((0, 70, [1, 1, 1]), (70, 200, [8, 1, 1]), (200, 600, [0, 1, 3])):
        counts = np.bincount([source for source, _ in samples[low:high]], minlength=3)
        shares = np.array(weights) / sum(weights)
        assert (np.abs(counts - (high - low) * shares) <= 1 + 3 * shares).all()
        assert ((counts > 0) == (shares > 0)).all()
    for source, path in enumerate(paths):
        mine = [window for one, window in samples if one == source]
        assert mine == alone(path, len(mine), shuffle=shuffle, seed=2)
    for step in (3, 7, 15, 20, 31):
        other = ShardLoader(paths, batch_size=4, shuffle=shuffle, seed=2)
        other.load_state_dict(json.loads(json.dumps(states[step - 1])))
        expected = samples[10 * step : 10 * step + 40]
        if step not in (3, 15):  # there a change was still to come
            assert drawn(other, 40) == expected
        assert other.state_dict()["weights"] == states[step - 1]["weights"]


def test_samples_and_epochs_of_each_source_can_be_read(sources):
    paths, _ = sources
    loader = ShardLoader(paths, weights=[1, 2, 1], batch_size=8, shuffle="full")
    seen = Counter()
    for step, batch in enumerate(itertools.chain.from_iterable(itertools.repeat(loader)), start=1):
        seen.update(batch.source_ids.tolist())
        assert loader.source_samples == [seen[0], seen[1], seen[2]]
        assert loader.source_epochs == [seen[0] // 138, seen[1] // 40, seen[2] // 75]
        if step == 70:
            break
    assert loader.source_epochs == [1, 7, 1] or loader.source_samples[1] < 280


def test_without_weights_each_window_counts_alike(sources):
    paths, _ = sources
    samples = drawn(ShardLoader(paths, batch_size=11, shuffle="full"), sum(SIZES.values()))
    assert sorted(samples) == [(source, window) for source in range(3) for window in range(SIZES["abc"[source]])]


def test_ranks_decode_their_own_lanes_alone(sources, monkeypatch):
    paths, _ = sources
    groups = Counter()
    for rank in range(4):
        loader = ShardLoader(paths, batch_size=4, shuffle="lanes", lanes=4, rank=rank, world_size=4)
        read = loader.reader.read_group
        monkeypatch.setattr(
            loader.reader, "read_group", lambda group, *more, read=read: (groups.update([group]), read(group, *more))[1]
        )
        list(loader)
    in_all = len(loader.reader.groups)
    # Each row group once; for each lane of each source one that crosses its end, and two of the source's next epoch.
    assert sum(groups.values()) <= in_all + 3 * 4 * len(paths), f"{groups} of {in_all} row groups"
    assert in_all + 3 * 4 * len(paths) < 4 * in_all, "what four ranks would decode that read everything"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_mix_in_worker_processes_is_the_mix(sources, workers):
    paths, _ = sources

    def contents(batches):
        return [(b.source_ids.tolist(), b.window_ids.tolist(), b.input_ids.tolist()) for b in batches]

    options = {"batch_size": 6, "shuffle": "lanes", "lanes": 4}
    whole = contents(ShardLoader(paths, **options))
    assert contents(ShardLoader(paths, **options, workers=workers, worker_context="fork")) == whole
    plain = DataLoader(
        ShardLoader(paths, **options), batch_size=None, num_workers=workers, multiprocessing_context="fork"
    )
    assert contents(plain) == whole


def test_a_mix_is_embedded_scored_and_numbered_as_its_sources_are(sources):
    paths, write = sources
    overlapping = write("b", 40, 4, stride=3)
    loader = ShardLoader([paths[0], overlapping], batch_size=8, score="new", document_ids=True, shuffle="full")
    embedding = TokenEmbedding(257, 4, 12)
    ignored = Counter()
    for batch in embed_batches(loader, embedding):
        assert batch.embeddings.shape == (8, 12, 4)
        for source, targets in zip(batch.source_ids.tolist(), batch.target_ids, strict=True):
            ignored[source] += int((targets < 0).sum())
    assert ignored[0] == 0
    assert ignored[1] >= 9 * 100, "windows that start 3 tokens apart have 3 new targets of 12"


def test_what_cannot_be_mixed_is_refused(sources, tmp_path):
    paths, write = sources
    (tmp_path / "d.txt").write_text("Some text of another kind. " * 40)
    corpus = {"corpus": "text", "corpus_path": str(tmp_path / "d.txt"), "cache_path": tmp_path / "cache"}
    gpt2 = write_shards(tmp_path / "gpt2", **sections(max_length=12, **corpus)).path
    with pytest.raises(ValueError, match=r"source 1 of the mixture was made by the tokenizer 'gpt2' .* but 'bytes'"):
        ShardLoader([paths[0], gpt2])
    with pytest.raises(ValueError, match=r"source 1 of the mixture has windows of 6 tokens, source 0 of 12"):
        ShardLoader([paths[0], write("e", 40, 4, max_length=6)])
    with pytest.raises(ValueError, match=r"weights: must be 3, one for each source; got 2"):
        ShardLoader(paths, weights=[1, 2])
    for weights in ([1, -1, 1], [0, 0, 0], [1, float("nan"), 1], [1, True, 1], [1, "1", 1], [10**400, 1, 1], "123", 3):
        with pytest.raises(ValueError, match=r"weights: must "):
            ShardLoader(paths, weights=weights)
    with pytest.raises(ValueError, match=r"weights: belong to a mixture; pass a list"):
        ShardLoader(paths[0], weights=[1])
    with pytest.raises(ValueError, match=r"a mixture needs at least one data set"):
        ShardLoader([])
    alone_ = ShardLoader(paths[0])
    with pytest.raises(ValueError, match=r"this loader has one data set"):
        alone_.set_weights([1])


def test_any_weights_of_many_sources_are_met_without_a_warning():
    weights = np.random.default_rng(0).lognormal(0, 3, 200).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mix = Mixture(orders=orders_of(range(1, 201), "full"), weights=[(0, weights)])
    expected = 40_000 * np.array(weights) / sum(weights)
    assert np.abs(mix.draws(40_000) - expected).max() <= 3
    assert mix.draws(40_000).sum() == 40_000


def test_the_cost_of_a_start_does_not_grow_with_the_square_of_the_sources(monkeypatch):
    """Counted in hashes, of which each draw that is looked at takes one."""
    hashed = Counter()
    monkeypatch.setattr(
        "pipeline.loader.draws.make_key",
        lambda *parts: (hashed.update(all=np.broadcast(*parts).size), make_key(*parts))[1],
    )
    costs = []
    for sources in (20, 40, 80):
        hashed.clear()
        mix = Mixture(orders=orders_of([200] * sources, "lanes", lanes=16), weights=[(0, [1] * sources)])
        mix.windows(np.arange(64))
        next(mix.spans(0))
        costs.append(hashed["all"])
    assert costs[2] <= 2.2 * costs[1] <= 2.2 * 2.2 * costs[0]


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["full", "lanes"])
def test_a_source_smaller_than_the_lanes_is_mixed(sources, shuffle):
    paths, write = sources
    tiny = write("t", 3, 2)
    loader = ShardLoader(
        [paths[0], tiny], weights=[1, 1], shuffle=shuffle, batch_size=64, lanes=64, memory_budget=10**5
    )
    counts = Counter(window for source, window in drawn(loader, 4000) if source == 1)
    assert len(counts) == 3
    assert sum(counts.values()) == pytest.approx(2000, abs=130)


def test_the_state_of_an_older_releases_mixture_is_refused_in_words(sources):
    paths, _ = sources
    loader = ShardLoader(paths, weights=[1, 2, 1])
    old = {**loader.state_dict(), "version": 1}
    with pytest.raises(ValueError, match=r"release 0.1.0 .* another order; .* that release"):
        loader.load_state_dict(old)
