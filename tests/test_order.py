"""The order of samples: laws for every parameter, slow twins, golden values, and statistics of the shuffle."""

import doctest
import itertools
import math
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.permutation import make_key, permute
from pipeline.loader import order as order_module
from pipeline.loader.division import divide
from pipeline.loader.order import (
    BLOCK_TOKENS,
    FULL_SHUFFLE_TOKENS,
    Order,
    default_block,
    num_batches,
    resolve_shuffle,
)

orders = st.builds(
    Order,
    groups=st.lists(st.integers(0, 9), max_size=12),
    shuffle=st.sampled_from(["none", "full", "lanes"]),
    seed=st.integers(0, 2**64 - 1),
    lanes=st.integers(1, 12),
    block=st.integers(1, 4),
)
epochs = st.integers(0, 2**40)


def whole_epoch(order, epoch):
    return order.windows(np.arange(len(order)), epoch).tolist()


# --- The slow and obvious twin: plain Python integers, one window at a time, lists cut and joined -------------------


def slow_mix(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def slow_key(*parts):
    key = 0
    for part in parts:
        key = slow_mix((key + 0x9E3779B97F4A7C15 + part) % 2**64)
    return key


def slow_permute(x, n, key):
    bits = max((n - 1).bit_length(), 4)
    low_bits = bits // 2
    while True:
        high, low = divmod(x, 2**low_bits)
        for step in range(1, 11):
            step_key = key + step * 0x9E3779B97F4A7C15
            if step % 2 == 1:
                high = (high + slow_mix((low + step_key) % 2**64)) % 2 ** (bits - low_bits)
            else:
                low = (low + slow_mix((high + step_key) % 2**64)) % 2**low_bits
        x = high * 2**low_bits + low
        if x < n:
            return x


def slow_pieces(order, epoch):
    """Each lane as a list of pieces; a piece is (its windows in stored order, its key)."""
    first = [0, *itertools.accumulate(order.groups)]
    group_key = slow_key(order.seed, epoch, 1)
    line = []  # (block, window), in the line's order
    for at in range(len(order.groups)):
        group = slow_permute(at, len(order.groups), group_key)
        line += [(at // order.block, window) for window in range(first[group], first[group + 1])]
    lanes, rest = [], line
    for lane in range(order.lanes):
        length = math.ceil((len(line) - lane) / order.lanes)
        own, rest = rest[:length], rest[length:]
        by_block = itertools.groupby(own, key=lambda entry: entry[0])
        pieces = [(block, [window for _, window in entries]) for block, entries in by_block]
        lanes.append([(windows, slow_key(order.seed, epoch, 2, lane, block)) for block, windows in pieces])
    assert rest == []
    return lanes


def slow_epoch(order, epoch):
    n = sum(order.groups)
    if order.shuffle == "none":
        return list(range(n))
    if order.shuffle == "full":
        return [slow_permute(i, n, slow_key(order.seed, epoch, 2)) for i in range(n)]
    lanes = [
        [windows[slow_permute(k, len(windows), key)] for windows, key in lane for k in range(len(windows))]
        for lane in slow_pieces(order, epoch)
    ]
    turns = itertools.zip_longest(*lanes)
    return [window for turn in turns for window in turn if window is not None]


# --- By eye --------------------------------------------------------------------------------------------------------


def test_the_example_in_the_module_docstring_is_what_happens():
    order = Order(groups=[3, 3, 2], shuffle="lanes", seed=10, lanes=2, block=1)
    assert whole_epoch(order, 0) == [4, 2, 3, 1, 5, 7, 0, 6]
    assert whole_epoch(order, 0)[0::2] == [4, 3, 5, 0]  # rank 0 of 2: lane 0, row group 1 and a part of row group 0
    assert [tuple(s) for s in order.spans(0, 0, [0])] == [(1, 0, 3, 0, 4), (0, 0, 1, 6, 6)]
    assert [tuple(s) for s in order.spans(0, 0, [1])] == [(0, 1, 3, 1, 3), (2, 0, 2, 5, 7)]
    assert "global order          4 2 3 1 5 7 0 6" in order_module.__doc__


def test_examples_in_docstrings_are_what_happens():
    result = doctest.testmod(order_module)
    assert (result.attempted, result.failed) == (1, 0)


def test_locate_gives_row_group_and_row_and_skips_empty_row_groups():
    order = Order(groups=[3, 0, 2, 0], shuffle="none")
    group, row = order.locate([0, 1, 2, 3, 4])
    assert group.tolist() == [0, 0, 0, 2, 2]
    assert row.tolist() == [0, 1, 2, 0, 1]


def test_golden_values_pin_the_order_for_ever():
    """These are the definition. If this fails, saved loader states no longer resume: mend the code, not the test."""
    assert make_key(0)[0] == 0xE220A8397B1DCDAF  # the first output of SplitMix64 from seed 0, as published
    assert make_key(1, 2, 3)[0] == 0x6AE515C1C0AC7E37
    assert permute(np.arange(10), 10, make_key(0)).tolist() == [8, 1, 7, 5, 3, 4, 0, 2, 9, 6]
    assert permute(np.arange(2), 2**62, make_key(7)).tolist() == [4243177399738718142, 664634751266170275]
    full = Order(groups=[10**9], shuffle="full", seed=1)
    assert full.windows([0, 1, 2, 10**9 - 1], 3).tolist() == [474954083, 162156709, 192173687, 455415771]
    order = Order(groups=[5, 7, 1, 8, 3], shuffle="lanes", seed=42, lanes=4, block=2)
    assert " ".join(map(str, whole_epoch(order, 0))) == (
        "5 3 12 18 9 1 22 20 7 2 23 16 6 4 21 15 10 11 13 17 8 0 14 19"
    )
    assert " ".join(map(str, whole_epoch(order, 1))) == (
        "0 10 21 17 12 9 22 16 1 8 11 15 3 5 23 20 4 6 14 19 2 7 13 18"
    )
    big = Order(groups=np.full(10**5, 10**4), shuffle="lanes", seed=2**64 - 1, lanes=64, block=3)
    assert big.windows([0, 1, 64, 10**9 - 1], 5).tolist() == [918595079, 453845033, 172840402, 249784237]


# --- Laws of the order ---------------------------------------------------------------------------------------------


@given(orders, epochs)
def test_each_window_comes_once_in_every_epoch(order, epoch):
    assert sorted(whole_epoch(order, epoch)) == list(range(len(order)))


@given(orders, epochs)
def test_the_order_is_that_of_the_slow_twin(order, epoch):
    assert whole_epoch(order, epoch) == slow_epoch(order, epoch)


@given(orders, epochs, st.data())
def test_entering_anywhere_equals_walking_there(order, epoch, data):
    walked = whole_epoch(order, epoch)
    positions = data.draw(st.lists(st.integers(0, max(0, len(order) - 1)), max_size=20 if len(order) else 0))
    again = Order(groups=order.groups, shuffle=order.shuffle, seed=order.seed, lanes=order.lanes, block=order.block)
    assert again.windows(positions, epoch).tolist() == [walked[i] for i in positions]


@given(orders, epochs)
def test_locate_is_the_inverse_of_numbering_windows_through_row_groups(order, epoch):
    numbered = [(group, row) for group, count in enumerate(order.groups) for row in range(count)]
    group, row = order.locate(order.windows(np.arange(len(order)), epoch))
    pairs = zip(group.tolist(), row.tolist(), strict=True)
    assert [numbered.index(pair) for pair in pairs] == whole_epoch(order, epoch)


@given(orders, epochs, st.integers(1, 20), st.integers(1, 5), st.data())
def test_every_world_size_and_batch_size_gives_the_same_steps_from_any_start(
    order, epoch, world_size, batch_size, data
):
    start = data.draw(st.integers(0, len(order)))
    walked, size = whole_epoch(order, epoch), world_size * batch_size
    lanes = order.num_rows
    parts = [divide(rank=r, world_size=world_size, batch_size=batch_size, lanes=lanes) for r in range(world_size)]
    for step, begin in enumerate(range(start, len(order), size)):
        sent = np.concatenate([part.indices(start, step + 1)[-1] for part in parts])
        sent = sent[sent < len(order)]
        assert sorted(order.windows(sent, epoch).tolist()) == sorted(walked[begin : begin + size])


@given(st.integers(0, 300), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_an_epoch_ends_at_the_same_place_however_a_step_is_divided(stop, batch_size, world_size, more, drop_last):
    step_size = batch_size * world_size * more
    whole = num_batches(0, stop, global_batch=step_size, step_size=step_size, drop_last=drop_last)
    assert whole == (stop // step_size if drop_last else len(range(0, stop, step_size)))
    size = batch_size * world_size
    end = whole * step_size
    for consumed in range(0, stop + 1, size):  # also from the middle of a step
        left = num_batches(consumed, stop, global_batch=size, step_size=step_size, drop_last=drop_last)
        assert left == (max(0, end - consumed) // size if consumed < stop else 0)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 20), st.integers(1, 4), st.booleans())
def test_from_any_index_an_epoch_ends_within_one_batch_of_its_end(consumed, stop, size, more, drop_last):
    left = num_batches(consumed, stop, global_batch=size, step_size=size * more, drop_last=drop_last)
    end = consumed + left * size
    border = stop // (size * more) * size * more
    if consumed >= stop:
        assert left == 0
    elif drop_last:
        assert end <= stop, "every batch is full"
        assert end > border - size or not left
        assert end < border + size or not left
    else:
        assert end >= stop, "nothing is lost"
        assert end - size < stop or end <= border + size * more, "only a step's rest is filling"
    if more == 1:  # as release 0.1.0 counted
        assert left == (max(0, stop - consumed) // size if drop_last else len(range(consumed, stop, size)))


@given(orders, epochs, st.integers(1, 20), st.integers(1, 5), st.data())
def test_spans_cover_what_a_rank_reads_and_no_other_lane(order, epoch, world_size, batch_size, data):
    rank, start = data.draw(st.integers(0, world_size - 1)), data.draw(st.integers(0, len(order)))
    part = divide(rank=rank, world_size=world_size, batch_size=batch_size, lanes=order.num_rows)
    lanes = part.lanes_read(start).tolist()
    spans = list(order.spans(start, epoch, lanes))
    assert [s.first for s in spans] == sorted(s.first for s in spans)
    own = part.indices(start, len(order) // part.global_batch + 1).ravel()
    own = own[own < len(order)]
    group, row = order.locate(order.windows(own, epoch))
    for index, g, r in zip(own.tolist(), group.tolist(), row.tolist(), strict=True):
        holding = [s for s in spans if s.group == g and s.low <= r < s.high]
        assert len(holding) == 1
        assert holding[0].first <= index <= holding[0].last
    if order.shuffle == "lanes":
        assert {s.first % order.lanes for s in spans} | {s.last % order.lanes for s in spans} <= set(lanes)
        assert all(s.last >= start for s in spans)
        if start == 0:
            assert sum(s.high - s.low for s in spans) == sum(len(range(j, len(order), order.lanes)) for j in lanes)


@given(orders, epochs)
def test_only_a_row_group_across_the_end_of_a_lane_has_two_readers(order, epoch):
    lanes = Order(groups=order.groups, shuffle="lanes", seed=order.seed, lanes=order.lanes, block=order.block)
    decoded = Counter()
    for rank in range(lanes.lanes):
        decoded.update({s.group for s in lanes.spans(0, epoch, [rank])})
    present = sum(count > 0 for count in order.groups)
    assert len(decoded) == present
    assert decoded.total() <= present + lanes.lanes - 1


def test_a_reader_of_lanes_holds_one_piece_of_each_lane():
    order = Order(groups=[10] * 400, shuffle="lanes", lanes=8, block=2)
    spans = list(order.spans(0, 0, range(1, 8, 2)))
    held = [sum(s.high - s.low for s in spans if s.first <= i <= s.last) for i in range(len(order))]
    assert max(held) <= 8 // 2 * 2 * 10  # lanes / world size * row groups per block * windows of a row group


def test_epochs_and_seeds_differ_and_an_order_survives_pickling():
    for shuffle in ("full", "lanes"):
        one, other = (Order(groups=[50] * 8, shuffle=shuffle, seed=seed, lanes=4) for seed in (0, 1))
        seen = [whole_epoch(one, 0), whole_epoch(one, 1), whole_epoch(other, 0), whole_epoch(other, 1)]
        assert len({tuple(epoch) for epoch in seen}) == 4
        assert [whole_epoch(one, epoch) for epoch in (7, 8, 9, 1, 0)][3:] == [seen[1], seen[0]]
        assert whole_epoch(pickle.loads(pickle.dumps(one)), 1) == seen[1]


# --- What is refused -----------------------------------------------------------------------------------------------


def test_bad_parameters_and_positions_are_refused():
    with pytest.raises(ValueError, match=r"loader.lanes=0 must be at least 1"):
        Order(groups=[1], shuffle="lanes", lanes=0)
    with pytest.raises(ValueError, match=r"loader.seed=-1 must be from 0 to 2\*\*64 - 1"):
        Order(groups=[1], shuffle="full", seed=-1)
    with pytest.raises(ValueError, match="block must be at least 1, not 0"):
        Order(groups=[1], shuffle="lanes", block=0)
    order = Order(groups=[3, 2], shuffle="full")
    with pytest.raises(ValueError, match=r"indices 5 to 5: each index must be from 0 to 4"):
        order.windows([5], 0)
    with pytest.raises(ValueError, match=r"windows -1 to 2: each window must be from 0 to 4"):
        order.locate([2, -1])


def test_auto_looks_at_the_size_of_the_data_alone():
    assert resolve_shuffle("auto", num_windows=FULL_SHUFFLE_TOKENS // 256, max_length=256) == "full"
    assert resolve_shuffle("auto", num_windows=FULL_SHUFFLE_TOKENS // 256 + 1, max_length=256) == "lanes"
    for shuffle in ("none", "full", "lanes"):
        assert resolve_shuffle(shuffle, num_windows=10**12, max_length=1024) == shuffle
    with pytest.raises(ValueError, match=r"loader.shuffle='random' .* choose auto, none, full or lanes"):
        resolve_shuffle("random", num_windows=1, max_length=1)


@given(st.lists(st.integers(0, 10**5), max_size=20), st.integers(1, 4096))
def test_a_default_block_is_as_many_row_groups_as_fit(groups, max_length):
    block, largest = default_block(groups, max_length=max_length), max(groups, default=0) * max_length
    assert block == 1 or block * largest <= BLOCK_TOKENS
    assert largest == 0 or (block + 1) * largest > BLOCK_TOKENS


# --- Permutations --------------------------------------------------------------------------------------------------


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
@settings(max_examples=50)
def test_permute_is_a_permutation_for_every_size_and_key(n, key):
    assert sorted(permute(np.arange(n), n, make_key(key)).tolist()) == list(range(n))


SIZES = st.integers(1, 3) | st.integers(1, 2**62)  # of one and two there is more than one number for a key, too
KEYS = st.integers(0, 3) | st.integers(0, 2**64 - 1)


@given(st.lists(st.tuples(SIZES, st.integers(0, 2**62), KEYS), max_size=8))
def test_permute_equals_its_slow_twin_with_a_size_and_key_for_each_number(cases):
    n = np.array([n for n, _, _ in cases], dtype=np.int64)
    x = np.array([x % n for n, x, _ in cases], dtype=np.int64)
    keys = np.array([key for _, _, key in cases], dtype=np.uint64)
    slow = [slow_permute(x % n, n, key) for n, x, key in cases]
    assert permute(x, n, keys).tolist() == slow


def deviations(counts, expected):
    """A chi-square statistic in standard deviations from its mean: within 4 for almost every fair sample."""
    freedom = len(counts) - 1
    return (((np.asarray(counts) - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_every_permutation_of_few_is_equally_likely(n):
    trials = 100_000
    keys = np.repeat(make_key(11, np.arange(trials)), n)
    images = permute(np.tile(np.arange(n), trials), n, keys).reshape(trials, n)
    counts = Counter(map(tuple, images.tolist()))
    assert len(counts) == math.factorial(n)
    assert abs(deviations(list(counts.values()), trials / math.factorial(n))) < 4


@pytest.mark.parametrize("n", [16, 17, 64, 1000])
def test_the_images_of_two_neighbours_are_a_fair_pair(n):
    trials = 200_000
    keys = make_key(12, np.arange(trials))
    first, second = (permute(np.full(trials, x), n, keys) for x in (n // 2, n // 2 + 1))
    shift = (second - first) % n
    assert shift.min() == 1  # two numbers never share an image
    assert abs(deviations(np.bincount(first, minlength=n), trials / n)) < 4
    assert abs(deviations(np.bincount(shift, minlength=n)[1:], trials / (n - 1))) < 4


def test_one_permutation_of_many_is_spread_evenly_and_its_neighbours_are_strangers():
    n, cells = 1_000_000, 100
    image = permute(np.arange(n), n, make_key(13))
    table = np.bincount(np.arange(n) * cells // n * cells + image * cells // n, minlength=cells**2)
    # Rows and columns have fixed sums: (cells - 1)**2 degrees of freedom.
    freedom = (cells - 1) ** 2
    assert abs(((table - n / cells**2) ** 2 / (n / cells**2)).sum() - freedom) / math.sqrt(2 * freedom) < 4
    assert abs(np.abs(np.diff(image)).mean() / (n / 3) - 1) < 0.005  # as for two numbers drawn at random
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 4 / math.sqrt(n)
    assert abs((np.diff(image) == 1).sum() - 1) < 6  # one is expected


# --- The shuffle as a reader sees it -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["full", "lanes"])
def test_over_many_epochs_every_window_is_as_likely_at_a_position(shuffle):
    order, trials = Order(groups=[5] * 8, shuffle=shuffle, seed=21, lanes=4), 4000
    epochs = np.array([order.windows([0, 7, 39], epoch) for epoch in range(trials)])
    for column in epochs.T:
        assert abs(deviations(np.bincount(column, minlength=40), trials / 40)) < 4


@pytest.mark.parametrize("shuffle", ["full", "lanes"])
def test_neighbours_in_the_order_are_as_far_apart_in_the_text_as_random_ones(shuffle):
    order = Order(groups=[100] * 2000, shuffle=shuffle, seed=22)
    distance = np.abs(np.diff(order.windows(np.arange(len(order)), 0)))
    assert abs(distance.mean() / (len(order) / 3) - 1) < 0.05  # lanes: 2000 row groups, not 200000 windows, are drawn


@pytest.mark.parametrize("shuffle", ["full", "lanes"])
def test_windows_of_a_batch_that_overlap_are_as_rare_as_in_a_random_order(shuffle):
    """max_length 256, stride 1: two windows share tokens where their numbers differ by less than 256."""
    order, batch = Order(groups=[1000] * 300, shuffle=shuffle, seed=23), 8
    n = len(order)
    pairs = list(itertools.combinations(range(batch), 2))

    def overlapping(windows):
        return sum((np.abs(windows[:, a] - windows[:, b]) < 256).sum() for a, b in pairs)

    found = overlapping(order.windows(np.arange(n), 0).reshape(-1, batch))
    expected = n / batch * len(pairs) * 2 * 256 / n  # about 1800
    assert overlapping(np.arange(n).reshape(-1, batch)) == n // batch * len(pairs)  # as stored: all of them
    assert found < 1.15 * expected
    if shuffle == "full":
        assert found > 0.85 * expected
