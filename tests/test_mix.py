"""A mix of data sets: exact proportions, each source in its own order, one position as the state."""

import itertools
import json
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import sections
from torch.utils.data import DataLoader

from pipeline import ShardLoader, embed_batches, write_shards
from pipeline.embedding import TokenEmbedding
from pipeline.loader.mixture import MAX_CYCLE, Mixture, make_shares
from pipeline.loader.order import Order

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


# --- proportions ------------------------------------------------------------------------------------------------------


def orders_of(sizes, shuffle, *, lanes=4, seed=0, group=3):
    groups = [[group] * (size // group) + [size % group] * (size % group > 0) for size in sizes]
    return [Order(groups=counts, shuffle=shuffle, seed=seed, lanes=lanes) for counts in groups]


def by_eye(mix, count):
    sources = np.searchsorted(mix.offsets, mix.windows(np.arange(count)), side="right") - 1
    return "".join(map(str, sources.tolist()))


def test_the_sources_of_a_small_mix_by_eye():
    """Shares of 2 and 1: in each three draws two of source 0, one of source 1, in places that a seed picks."""
    found = by_eye(Mixture(orders=orders_of([50, 50], "none"), weights=[(0, [2, 1])]), 30)
    assert all(Counter(found[at : at + 3]) == {"0": 2, "1": 1} for at in range(0, 30, 3))
    assert len({found[at : at + 3] for at in range(0, 30, 3)}) > 1
    assert found == "100010100001010001010010100001"  # a change of one draw would break every resume


@pytest.mark.filterwarnings("ignore:source . of the mix")
@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ([0.5, 0.3, 0.2], [5, 3, 2]),
        ([3, 1], [3, 1]),
        ([6, 0, 2], [3, 0, 1]),
        ([0.1, 0.1], [1, 1]),
        ([7], [1]),
        ([1e-9, 1], [1, 4095]),
    ],
)
def test_weights_become_the_smallest_whole_shares(weights, shares):
    assert make_shares(weights, num_sources=len(weights)).tolist() == shares


@pytest.mark.filterwarnings("ignore:source . of the mix")
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=6).filter(any))
def test_shares_are_the_weights_to_within_a_draw_of_the_finest_cycle(weights):
    shares = make_shares(weights, num_sources=len(weights))
    assert shares.sum() <= MAX_CYCLE + len(weights)
    parts = np.array(weights) / sum(weights)
    assert np.abs(shares / shares.sum() - parts).max() <= (1 + len(weights)) / MAX_CYCLE
    assert ((shares > 0) == (np.array(weights) > 0)).all(), "no source that has a weight is left out"


@given(
    weights=st.lists(st.integers(0, 9), min_size=2, max_size=4).filter(any),
    shuffle=st.sampled_from(["none", "full", "lanes"]),
    lanes=st.sampled_from([1, 3, 4]),
    seed=st.integers(0, 5),
)
@settings(max_examples=40)
def test_each_row_of_draws_keeps_the_proportions_at_every_length(weights, shuffle, lanes, seed):
    mix = Mixture(orders=orders_of([23] * len(weights), shuffle, lanes=lanes, seed=seed), weights=[(0, weights)])
    count = mix.num_rows * 3 * sum(weights)
    sources = np.searchsorted(mix.offsets, mix.windows(np.arange(count)), side="right") - 1
    part = np.array(weights) / sum(weights)
    for row in range(mix.num_rows):
        row_sources = sources[row :: mix.num_rows]
        counts = np.cumsum(row_sources[:, None] == np.arange(len(weights)), axis=0)
        expected = np.arange(1, len(row_sources) + 1)[:, None] * part
        assert np.abs(counts - expected).max() <= len(weights)
    for at in range(count + 1):
        expected = np.bincount(sources[:at], minlength=len(weights))
        assert mix.draws(at).tolist() == expected.tolist(), "the closed sum is the count"


@pytest.mark.slow
@given(data=st.data(), shuffle=st.sampled_from(["none", "full", "lanes"]), seed=st.integers(0, 3))
@settings(max_examples=40)
def test_any_position_is_entered_as_by_walking_there(data, shuffle, seed):
    sizes = data.draw(st.lists(st.integers(4, 40), min_size=1, max_size=3))
    mix = Mixture(orders=orders_of(sizes, shuffle, seed=seed), weights=[(0, [1] * len(sizes))])
    for position in sorted(data.draw(st.lists(st.integers(1, 100), max_size=2, unique=True))):
        weights = data.draw(st.lists(st.integers(0, 5), min_size=len(sizes), max_size=len(sizes)).filter(any))
        mix = mix.change(position, weights)
    whole = mix.windows(np.arange(200))
    fresh = Mixture(orders=mix.orders, weights=json.loads(json.dumps(mix.weights)))
    places = np.array(data.draw(st.lists(st.integers(0, 199), max_size=20)), dtype=np.int64)
    assert fresh.windows(places).tolist() == whole[places].tolist()


@pytest.mark.slow
@given(data=st.data(), shuffle=st.sampled_from(["none", "full", "lanes"]), seed=st.integers(0, 3))
@settings(max_examples=60)
def test_stretches_hold_every_row_when_it_is_needed(data, shuffle, seed):
    """What a reader decodes by them, and gives up behind their last position, is there at every position."""
    sizes = data.draw(st.lists(st.integers(4, 40), min_size=1, max_size=3))
    mix = Mixture(orders=orders_of(sizes, shuffle, seed=seed), weights=[(0, [1] * len(sizes))])
    for position in sorted(data.draw(st.lists(st.integers(1, 60), max_size=2, unique=True))):
        weights = data.draw(st.lists(st.integers(0, 5), min_size=len(sizes), max_size=len(sizes)).filter(any))
        mix = mix.change(position, weights)
    start = data.draw(st.integers(mix.weights[-1][0], 90))
    world_size = data.draw(st.sampled_from([1, 2, 4])) if shuffle == "lanes" else 1
    starts = np.cumsum([0, *(count for order in mix.orders for count in np.diff(order.starts))])
    for rank in range(world_size):
        positions = np.arange(start, start + 120)
        positions = positions[positions % world_size == rank]
        windows = mix.windows(positions)
        spans = list(
            itertools.takewhile(
                lambda stretch: stretch.first < start + 120, mix.spans(start, rank=rank, world_size=world_size)
            )
        )
        assert [stretch.first for stretch in spans] == sorted(stretch.first for stretch in spans)
        group = np.searchsorted(starts, windows, side="right") - 1
        row = windows - starts[group]
        for position, its_group, its_row in zip(positions.tolist(), group.tolist(), row.tolist(), strict=True):
            assert any(
                stretch.group == its_group
                and stretch.low <= its_row < stretch.high
                and stretch.first <= position <= stretch.last
                for stretch in spans
            )


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


def test_under_lanes_each_lane_of_a_source_gives_each_window_once_an_epoch(sources):
    paths, _ = sources
    lanes = 4
    samples = drawn(ShardLoader(paths, weights=[2, 2, 1], batch_size=7, shuffle="lanes", lanes=lanes, seed=3), 1600)
    for source, path in enumerate(paths):
        own = alone(path, 20 * SIZES["abc"[source]], shuffle="lanes", lanes=lanes, seed=3)
        size = SIZES["abc"[source]]
        for lane in range(lanes):
            mine = [window for i, (one, window) in enumerate(samples) if one == source and i % lanes == lane]
            its_own = [own[epoch * size + i] for epoch in range(20) for i in range(lane, size, lanes)]
            assert mine == its_own[: len(mine)]
        counts = Counter(window for one, window in samples if one == source)
        assert len(counts) == size
        assert max(counts.values()) - min(counts.values()) <= 2, "epochs overlap by some draws where they meet"


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
    assert states[-1]["weights"] == [[0, [1, 1, 1]], [70, [8, 1, 1]], [200, [0, 1, 3]]]
    counts = [Counter(source for source, _ in samples[low:high]) for low, high in ((0, 60), (70, 200), (200, 600))]
    assert counts == [{0: 20, 1: 20, 2: 20}, {0: 104, 1: 13, 2: 13}, {1: 100, 2: 300}]
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
    assert loader.source_epochs == [1, 7, 1]


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
            loader.reader, "read_group", lambda group, ids, read=read: (groups.update([group]), read(group, ids))[1]
        )
        list(loader)
    in_all = len(loader.reader.groups)
    # An epoch of the mix, a few windows of the next of a source, and row groups that lie across the ends of lanes.
    assert sum(groups.values()) <= 2 * in_all, f"{groups} of {in_all} row groups"


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
    with pytest.raises(ValueError, match=r"source 1 of the mix was made by the tokenizer 'gpt2' .* but 'bytes'"):
        ShardLoader([paths[0], gpt2])
    with pytest.raises(ValueError, match=r"source 1 of the mix has windows of 6 tokens, source 0 of 12"):
        ShardLoader([paths[0], write("e", 40, 4, max_length=6)])
    with pytest.raises(ValueError, match=r"weights must be 3, one for each source; got 2"):
        ShardLoader(paths, weights=[1, 2])
    for weights in ([1, -1, 1], [0, 0, 0], [1, float("nan"), 1]):
        with pytest.raises(ValueError, match=r"weights must be numbers from 0, at least one of them above 0"):
            ShardLoader(paths, weights=weights)
    with pytest.raises(ValueError, match=r"weights belong to a mix: give a list"):
        ShardLoader(paths[0], weights=[1])
    with pytest.raises(ValueError, match=r"a mix needs at least one data set"):
        ShardLoader([])
    with pytest.raises(ValueError, match=r"source 1 has 40 windows for 64 lanes; choose loader.lanes=40 or fewer"):
        ShardLoader(paths, shuffle="lanes")
    with pytest.raises(ValueError, match=r"world_size=3 does not divide loader.lanes=4"):
        ShardLoader(paths, shuffle="lanes", lanes=4, rank=0, world_size=3)
    alone_ = ShardLoader(paths[0])
    with pytest.raises(ValueError, match=r"this loader has one data set"):
        alone_.set_weights([1])
    state = ShardLoader(paths).state_dict()
    with pytest.raises(ValueError, match=r"the state has fingerprint="):
        ShardLoader(paths[:2]).load_state_dict(state)


def test_a_weight_that_is_too_small_to_be_met_is_said():
    with pytest.warns(UserWarning, match=r"source 1 of the mix gives 1 of 4096 .* and its weight asks for 0.004096"):
        assert make_shares([1, 1e-6], num_sources=2).tolist() == [4095, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_shares([0.7, 0.2, 0.1], num_sources=3)
        make_shares([1 / 3, 2 / 3], num_sources=2)
