"""States of mixtures: sources come and go, a state stays small, and a schedule of weights goes on."""

import itertools
import json
import random
import re
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT, sections, store_windows

from pipeline import ShardLoader, WindowDataset, read_manifest, write_shards
from pipeline.loader.carry import CarriedOrder, decode_draws, draws_by_row, encode_draws, skipped_draws
from pipeline.loader.mixture import Mixture
from pipeline.loader.order import Order

SIZES = {"a": 138, "b": 41, "c": 75, "tiny": 3}  # windows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data sets of one tokenizer and length, by the names of `SIZES`."""
    folder = tmp_path_factory.mktemp("mix")
    for name, windows in SIZES.items():
        write(folder, name, windows)
    return folder


def write(folder, name, windows, **options):
    (folder / f"{name}.txt").write_text("".join(f"{name}{k:05} " for k in range(windows * 3))[: 12 * windows + 1])
    corpus = {"corpus": "text", "corpus_path": str(folder / f"{name}.txt"), "cache_path": folder / "cache"}
    sizes = {"max_length": 12, "windows_per_group": 4, **options}
    return write_shards(folder / name, **sections(tokenizer="bytes", **corpus, **sizes)).path


def saved(loader):
    return json.loads(json.dumps(loader.state_dict()))


def resume(loader, state):
    """Load a state; return what is said about it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loader.load_state_dict(state)
    return [str(one.message) for one in said]


def samples(loader, count):
    """(source, window) of the next samples, epoch after epoch."""
    found = []
    for batch in itertools.chain.from_iterable(itertools.repeat(loader)):
        sources = batch.source_ids if batch.source_ids is not None else [0] * len(batch.window_ids)
        found += [(int(source), int(window)) for source, window in zip(sources, batch.window_ids, strict=True)]
        if len(found) >= count:
            return found
    return found


def position(loader):
    """How often each row has drawn each source, [C, S]."""
    order = loader.order
    if isinstance(order, Mixture):
        return order.origin_at(loader.consumed).drawn
    if isinstance(order, CarriedOrder) and not order.is_over(loader.epoch, loader.consumed):
        return order.position(loader.epoch, loader.consumed)[:, None]
    rows = order.lanes if order.shuffle == "lanes" else 1
    return draws_by_row(loader.epoch * len(order) + loader.consumed, rows)[:, None]


def windows_of(order, drawn):
    """How often each window comes in a source's own order, in draws of each row from the first on."""
    counts, rows = Counter(), len(drawn)
    for row, count in enumerate(drawn.tolist()):
        for draw in range(row, count * rows + row, rows):
            counts[int(order.windows([draw % len(order)], draw // len(order))[0])] += 1
    return counts


# --- sources that come and go -----------------------------------------------------------------------------------------

hops = st.lists(
    st.tuples(st.lists(st.sampled_from(sorted(SIZES)), min_size=1, max_size=4), st.booleans(), st.integers(1, 400)),
    min_size=2,
    max_size=4,
)


@pytest.mark.slow
@given(hops=hops, shuffle=st.sampled_from(["none", "full", "lanes"]), lanes=st.sampled_from([1, 4, 7]), data=st.data())
@settings(max_examples=15, deadline=None)
def test_each_source_that_stays_goes_on_with_no_window_lost_or_repeated(folder, hops, shuffle, lanes, data):
    """Through any chain of mixtures and single data sets, added, left out, in another order and twice."""
    seen, before, state = {}, [], None
    for chosen, is_single, count in hops:
        names = chosen[:1] if is_single else chosen
        here = [(name, names[:at].count(name)) for at, name in enumerate(names)]
        weights = data.draw(st.lists(st.sampled_from([0.01, 1, 3]), min_size=len(names), max_size=len(names)))
        paths = [folder / name for name in names]
        loader = ShardLoader(
            paths[0] if is_single else paths,
            weights=None if is_single else weights,
            batch_size=1,
            shuffle=shuffle,
            lanes=lanes,
            seed=5,
            drop_last=False,
        )
        if state is not None:
            if not set(here) & set(before):
                with pytest.raises(ValueError, match=r"belongs to another (data set|mixture)"):
                    loader.load_state_dict(state)
                return
            said = resume(loader, state)
            assert len(said) == (set(here) != set(before))
        seen = {one: seen.get(one, Counter()) for one in here}
        for source, window in samples(loader, count):
            seen[here[source]][window] += 1
        drawn = position(loader)
        for source, one in enumerate(here):
            order = loader.order.orders[source] if isinstance(loader.order, Mixture) else loader.order
            plain = Order(groups=order.stored.counts(), shuffle=shuffle, lanes=lanes, seed=5, block=order.block)
            assert seen[one] == windows_of(plain, drawn[:, source]), "the draws of each row, from the first on"
            assert drawn[:, source].max() - drawn[:, source].min() <= 40
        before, state = here, saved(loader)


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["none", "full", "lanes"])
def test_a_changed_mixture_is_the_same_for_every_world_size(folder, shuffle):
    options = {"shuffle": shuffle, "lanes": 4, "seed": 1}
    old = [
        ShardLoader([folder / "a", folder / "b"], batch_size=6 // w, rank=0, world_size=w, **options) for w in (1, 2)
    ]
    for loader in old:
        for _ in zip(range(50), loader, strict=False):
            pass
    assert saved(old[0]) == saved(old[1])
    paths = [folder / "c", folder / "b", folder / "a"]
    alone = ShardLoader(paths, batch_size=8, **options)
    assert len(resume(alone, saved(old[0]))) == 1
    states = []
    expected = samples(alone, 80)
    for world_size in (2, 4):
        ranks = [
            ShardLoader(paths, batch_size=8 // world_size, rank=rank, world_size=world_size, **options)
            for rank in range(world_size)
        ]
        for rank, loader in enumerate(ranks):
            assert len(resume(loader, saved(old[1]))) == (rank == 0), "one rank says it"
        parts = [samples(loader, 80 // world_size) for loader in ranks]
        each = 8 // world_size
        for step in range(10):
            got = [pair for part in parts for pair in part[step * each : step * each + each]]
            assert sorted(got) == sorted(expected[8 * step : 8 * step + 8])
        states += [saved(loader) for loader in ranks]
    assert all(state == saved(alone) for state in states)
    again = ShardLoader(paths, batch_size=8, **options)
    assert resume(again, states[-1]) == []
    assert samples(again, 40) == samples(alone, 40)


def test_a_source_in_its_third_epoch_becomes_a_data_set_alone_and_a_source_again(folder):
    mix = ShardLoader([folder / "a", folder / "b"], weights=[1, 9], shuffle="lanes", lanes=4, batch_size=4)
    samples(mix, 110)
    assert mix.source_epochs == [0, 2]
    left = mix.source_samples[1] - 2 * SIZES["b"]
    alone = ShardLoader(folder / "b", shuffle="lanes", lanes=4, batch_size=1)
    (said,) = resume(alone, saved(mix))
    assert "a is left out" in said
    assert (alone.epoch, alone.consumed) == (2, left)
    both = ShardLoader([folder / "b", folder / "a"], shuffle="lanes", lanes=4)
    resume(both, saved(alone))
    assert both.source_samples == [2 * SIZES["b"] + left, 0]
    assert both.epoch == 2


def test_the_weights_are_the_states_where_the_sources_are_the_same(folder):
    mix = ShardLoader([folder / "a", folder / "b"], weights=[0.8, 0.2], batch_size=10)
    samples(mix, 100)
    turned = ShardLoader([folder / "b", folder / "a"], weights=[5, 5], batch_size=10)
    assert resume(turned, saved(mix)) == []
    assert turned.state_dict()["weights"] == [[100, [0.2, 0.8]]]
    more = ShardLoader([folder / "a", folder / "b", folder / "c"], weights=[0.6, 0.2, 0.2], batch_size=10)
    (said,) = resume(more, saved(mix))
    assert said == (
        "the sources are not those of the state: c is new and starts with its first epoch; the others go on where they "
        "were"
    )
    before = more.source_samples
    assert before == [*mix.source_samples, 0]
    samples(more, 100)
    assert np.abs(np.subtract(more.source_samples, before) - [60, 20, 20]).max() <= 3


def test_a_refusal_names_what_differs(folder):
    state = saved(ShardLoader([folder / "a", folder / "b"]))
    wrong = write(folder, "other", 30, stride=6)
    for loader, words in (
        (ShardLoader([folder / "c", wrong]), ["a, b", "here c, other"]),
        (ShardLoader(wrong), ["a, b", "here other"]),
        (ShardLoader([folder / "a", folder / "b"], seed=7), ["loader.seed was 0, here it is 7"]),
        (ShardLoader([folder / "b", folder / "c"], shuffle="none"), ["loader.shuffle was 'full', here it is 'none'"]),
    ):
        before = saved(loader)
        with pytest.raises(ValueError, match="this state") as refused:
            loader.load_state_dict(state)
        assert all(word in str(refused.value) for word in words), refused.value
        assert len(str(refused.value)) < 400
        assert not any(fingerprint[:12] in str(refused.value) for fingerprint in state["fingerprint"])
        assert saved(loader) == before


def test_a_source_that_was_written_anew_is_said_to_differ(folder, tmp_path):
    write(tmp_path, "a", 50)
    state = saved(ShardLoader([folder / "a", folder / "b"]))
    (said,) = resume(ShardLoader([tmp_path / "a", folder / "b"]), state)
    assert "a is new and starts with its first epoch" in said
    assert "a is left out" in said
    assert "windows was 138, here it is 50" in said


def test_a_token_store_and_shards_of_the_same_windows_share_their_states(folder):
    store = folder / "cache" / "stores" / f"{read_manifest(folder / 'a').store}.json"
    cut = store_windows(store, max_length=12, windows_per_group=4)
    for shuffle in ("none", "full", "lanes"):
        options = {"shuffle": shuffle, "lanes": 4, "batch_size": 3}
        for one, other in ((cut, folder / "a"), (folder / "a", cut)):
            first, second = ShardLoader(one, **options), ShardLoader(other, **options)
            samples(first, 60)
            assert resume(second, saved(first)) == []
            assert samples(second, 90) == samples(first, 90)
        first, second = (
            ShardLoader([cut, folder / "b"], **options),
            ShardLoader([folder / "b", folder / "a"], **options),
        )
        samples(first, 60)
        assert resume(second, saved(first)) == []
        assert second.source_samples == first.source_samples[::-1]
    other_windows = ShardLoader(store_windows(store, max_length=12, windows_per_group=8), shuffle="full")
    with pytest.raises(ValueError, match=r"windows_per_group was 4, here it is 8"):
        other_windows.load_state_dict(saved(ShardLoader(folder / "a", shuffle="full")))


def test_growing_data_goes_on_with_nothing_repeated(tmp_path, monkeypatch):
    """The recipe of docs/loading.md, as it stands there."""
    section = (ROOT / "docs/loading.md").read_text().split("### Data that grows", 1)[1]
    recipe = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    (tmp_path / "shards").mkdir()
    sizes = [144, 56]
    for day, windows in enumerate(sizes, start=1):
        write(tmp_path / "shards", f"day-{day}", windows)
    monkeypatch.chdir(tmp_path)
    loader = ShardLoader("shards/day-1", batch_size=8)
    seen = Counter((0, window) for _, window in samples(loader, 64))
    names = {"ShardLoader": ShardLoader, "read_manifest": read_manifest, "state": saved(loader)}
    with pytest.warns(UserWarning, match="day-2 is new"):
        exec(recipe, names)
    seen.update(samples(names["loader"], sum(sizes) - 64))
    assert seen == Counter((source, window) for source, size in enumerate(sizes) for window in range(size))


# --- what a state keeps of the past -----------------------------------------------------------------------------------


@given(
    drawn=st.lists(st.integers(0, 30), min_size=1, max_size=9).map(np.array),
)
def test_the_draws_that_come_first_are_those_that_others_have_passed(drawn):
    rows = len(drawn)
    made = {draw * rows + row for row, count in enumerate(drawn.tolist()) for draw in range(count)}
    assert skipped_draws(drawn).tolist() == [draw for draw in range(max(made, default=0)) if draw not in made]
    encoded = json.loads(json.dumps(encode_draws(drawn[:, None])))
    assert decode_draws(encoded, rows=rows, sources=1)[:, 0].tolist() == drawn.tolist()


@pytest.mark.parametrize("shuffle", ["full", "lanes"])
def test_a_state_stays_small_and_a_change_of_weights_costs_what_the_first_cost(folder, shuffle, monkeypatch):
    hashed = Counter()
    from pipeline.base.permutation import make_key

    monkeypatch.setattr(
        "pipeline.loader.draws.make_key",
        lambda *parts: (hashed.update(all=np.broadcast(*parts).size), make_key(*parts))[1],
    )
    draw = random.Random(1)
    mix = ShardLoader([folder / name for name in SIZES], shuffle=shuffle, lanes=8, batch_size=16)
    costs, sizes = [], []
    batches = itertools.chain.from_iterable(itertools.repeat(mix))
    for _ in range(90):
        hashed.clear()
        mix.set_weights([draw.random() for _ in SIZES])
        next(batches)
        other = ShardLoader([folder / name for name in SIZES], shuffle=shuffle, lanes=8)
        state = saved(mix)
        other.load_state_dict(state)
        assert other.source_samples == mix.source_samples
        costs.append(hashed["all"])
        sizes.append(len(json.dumps({key: state[key] for key in ("weights", "drawn", "due")})))
    assert sum(costs[-20:]) < 1.3 * sum(costs[5:25])
    assert max(sizes) < 700


@pytest.mark.slow
@given(seed=st.integers(0, 99), sizes=st.lists(st.integers(5, 60), min_size=2, max_size=4))
@settings(max_examples=10, deadline=None)
def test_no_number_of_changes_makes_sources_or_rows_drift(seed, sizes):
    draw, rows = random.Random(seed), 4
    orders = [Order(groups=[size], shuffle="lanes", lanes=rows, seed=seed) for size in sizes]
    mix, asked = Mixture(orders=orders, weights=[(0, [1] * len(sizes))]), np.zeros(len(sizes))
    for index in range(0, 4000, 20):
        weights = np.array([draw.choice([0.0, 1e-9, 0.5, 1.0]) for _ in sizes]) + (np.arange(len(sizes)) == 0) * 1e-3
        mix = (
            mix.change([(index, weights.tolist())])
            if index
            else Mixture(orders=orders, weights=[(0, weights.tolist())])
        )
        asked += 20 * weights / weights.sum()
    drawn = mix.origin_at(4000).drawn
    assert drawn.sum() == 4000
    assert (np.abs(drawn.sum(axis=0) - asked) <= rows * (2 + len(sizes))).all()
    assert (drawn.max(axis=0) - drawn.min(axis=0) <= 2 * (2 + len(sizes))).all()


def test_a_state_that_lists_all_changes_of_weights_goes_on(folder):
    """States of an earlier main branch list them, and rows began their times anew at each."""
    loader = ShardLoader([folder / "a", folder / "b"], batch_size=5)
    listed = {**saved(loader), "version": 2, "consumed": 60, "weights": [[0, [1, 1]], [20, [3, 1]], [40, [1, 4]]]}
    loader.load_state_dict(listed)
    before = loader.source_samples
    assert sum(before) == 60
    assert np.abs(np.subtract(before, [10 + 15 + 4, 10 + 5 + 16])).max() <= 4
    again = ShardLoader([folder / "a", folder / "b"], batch_size=5)
    again.load_state_dict(saved(loader))
    expected = samples(loader, 100)
    assert samples(again, 100) == expected
    assert np.abs(np.subtract(loader.source_samples, before) - [20, 80]).max() <= 3


def test_a_damaged_state_is_refused_in_words(folder):
    mix = ShardLoader([folder / "a", folder / "b"], shuffle="lanes", lanes=4)
    samples(mix, 40)
    mix.set_weights([1, 2])
    samples(mix, 40)
    state = saved(mix)
    loader = ShardLoader([folder / "a", folder / "b"], shuffle="lanes", lanes=4)
    for broken, words in (
        ({"drawn": None}, "drawn: must be the draws of 2 sources in 4 rows"),
        ({"drawn": {**state["drawn"], "more": "AAAA"}}, "drawn: must be the draws"),
        ({"drawn": {**state["drawn"], "least": [1, True]}}, "drawn: must be the draws"),
        ({"due": [1.0]}, "due: must be 2 numbers"),
        ({"due": [1.0, float("nan")]}, "due: must be 2 numbers"),
        ({"consumed": 3}, "consumed: must be"),
        ({"weights": [[40, [1, 2, 3]]]}, "weights: must be"),
        ({"epoch_start": 5}, "epoch_start: must be"),
    ):
        with pytest.raises(ValueError, match=f"the state's {words}"):
            loader.load_state_dict({**state, **broken})
    without = {key: value for key, value in state.items() if key != "drawn"}
    with pytest.raises(ValueError, match="got a change at 40, and no draws before it"):
        loader.load_state_dict(without)


# --- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", ["none", "full", "lanes"])
def test_a_schedule_is_followed_by_step_as_if_the_weights_were_set_there(folder, shuffle):
    paths, options = [folder / "a", folder / "b", folder / "c"], {"shuffle": shuffle, "lanes": 4, "batch_size": 8}
    schedule = [(0, [1, 1, 1]), (5, [0, 1, 3]), (6, [1, 0, 0]), (30, [2, 1, 1])]
    planned = ShardLoader(paths, weights=schedule, **options)
    by_hand = ShardLoader(paths, weights=schedule[0][1], **options)
    found, states = [], []
    for step in range(45):
        if step and step in dict(schedule):
            by_hand.set_weights(dict(schedule)[step])
        states.append(saved(planned))
        found.append(samples(planned, 8))
        assert found[-1] == samples(by_hand, 8)
        assert planned.source_samples == by_hand.source_samples
    assert {source for source, _ in itertools.chain(*found[6:30])} == {0}
    for step in (5, 6, 30):
        other = ShardLoader(paths, weights=schedule, **options)
        assert resume(other, states[step]) == [], "the same schedule goes on"
        assert [samples(other, 8) for _ in range(step, 45)] == found[step:]
    assert saved(planned)["weights"] == [[240, [2, 1, 1]]]


def test_a_schedule_of_another_loader_is_said_not_to_count(folder):
    paths = [folder / "a", folder / "b"]
    loader = ShardLoader(paths, weights=[(0, [1, 1]), (10, [0, 1])], batch_size=8)
    samples(loader, 40)
    other = ShardLoader(paths, weights=[(0, [1, 1]), (12, [0, 1])], batch_size=8)
    (said,) = resume(other, saved(loader))
    assert "another schedule" in said
    assert "sample 80" in said
    other.set_weights([(0, [1, 1]), (6, [1, 0])])  # from here on this one: step 5 is next
    assert other.state_dict()["weights"] == [[40, [1, 1]], [48, [1, 0]]]
    other.set_weights([3, 1])
    assert other.state_dict()["weights"] == [[40, [3, 1]]]
    samples(other, 80)
    assert other.source_samples[0] > 60


def test_a_schedule_that_breaks_its_rule_is_refused(folder):
    paths = [folder / "a", folder / "b"]
    for weights, words in (
        ([(1, [1, 1])], "must start with 0 and rise"),
        ([(0, [1, 1]), (0, [1, 2])], "must start with 0 and rise"),
        ([(0, [1, 1]), (5.5, [1, 2])], "a step: must be"),
        ([(0, [1, 1]), [1, 2, 3]], "a number for each source, or a schedule"),
        ([(0, [1, 1]), 3], "a number for each source, or a schedule"),
        ([(0, [1, 1, 1])], "must be 2, one for each source"),
        ([(0, 1), (5, 2)], "a number for each source, or a schedule"),
        ([(0, [1, 1]), (5, [0, 0])], "must not all be 0"),
    ):
        with pytest.raises(ValueError, match=rf"weights: .*{words}"):
            ShardLoader(paths, weights=weights)


@pytest.mark.parametrize(("shuffle", "budget"), [("full", 10**9), ("lanes", 10**9), ("lanes", 4000), ("none", 4000)])
def test_threads_and_decoded_row_groups_stay_through_changes_of_weights(folder, shuffle, budget, monkeypatch):
    started = Counter()
    from pipeline.loader import prefetch

    monkeypatch.setattr("pipeline.loader.order.BLOCK_TOKENS", 48)  # row groups are not combined into shuffle blocks

    real = prefetch.ThreadPoolExecutor
    monkeypatch.setattr(
        prefetch, "ThreadPoolExecutor", lambda *given, **more: (started.update(pools=1), real(*given, **more))[1]
    )
    paths = [folder / name for name in ("a", "b", "c")]
    rows = {path: [WindowDataset(path)[k]["input_ids"].tolist() for k in range(5)] for path in paths}
    loader = ShardLoader(paths, shuffle=shuffle, lanes=2, batch_size=4, memory_budget=budget)
    for step, batch in enumerate(loader):
        for source, window, ids in zip(
            batch.source_ids.tolist(), batch.window_ids.tolist(), batch.input_ids, strict=True
        ):
            if window < 5:
                assert ids.tolist() == rows[paths[source]][window]
        loader.set_weights([1 + step % 3 / 10, 1, 1])
    assert started["pools"] == 3, "one that decodes, one that gathers and one that asks for the order, for the epoch"
    in_all = len(loader.reader.groups)
    if budget > 10**8:
        assert loader.metrics()["row_groups_decoded"] == in_all
    else:
        assert loader.metrics()["row_groups_decoded"] < in_all + 2 * step, "not the memory of all at each change"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_metrics_count_what_was_read(folder, workers):
    paths = [folder / "a", folder / "b"]
    loader = ShardLoader(
        paths, shuffle="full", batch_size=8, workers=workers, worker_context="fork" if workers else None
    )
    assert set(loader.metrics().values()) == {0}
    for _ in loader:
        now = loader.metrics()
        assert now["row_groups_cached"] > 0
    counts = loader.metrics()
    assert json.loads(json.dumps(counts)) == counts
    groups = len(loader.reader.groups)
    assert groups <= counts["row_groups_decoded"] <= groups * max(1, workers)
    assert counts["bytes_decoded"] >= 2 * 12 * sum(SIZES[name] for name in "ab")
    assert counts["seconds_waited"] > 0
    assert counts["samples"] == loader.consumed
    assert [counts["source_samples/0"], counts["source_samples/1"]] == loader.source_samples
    alone = ShardLoader(paths[0], batch_size=8)
    list(alone)
    assert alone.metrics()["samples"] == SIZES["a"]
