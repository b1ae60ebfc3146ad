"""Row groups of one size by arithmetic, and of any sizes by tables: both answer the same, everywhere."""

import doctest
import itertools
import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.permutation import invert, make_key, permute, permute_one
from pipeline.loader import sequence as sequence_module
from pipeline.loader.mixture import Mixture
from pipeline.loader.order import Order
from pipeline.loader.sequence import shuffle_even, shuffle_many_even
from pipeline.shards import row_groups as row_groups_module
from pipeline.shards.row_groups import (
    EvenRowGroups,
    JoinedRowGroups,
    ListedRowGroups,
    as_row_groups,
    divide_windows,
)

even_groups = st.builds(EvenRowGroups, st.integers(0, 90), st.integers(1, 12))
listed_groups = st.builds(ListedRowGroups, st.lists(st.integers(0, 7), max_size=9))
shuffles = st.sampled_from(["none", "full", "lanes"])
epochs = st.integers(0, 2**40)
seeds = st.integers(0, 2**64 - 1)


def listed(groups):
    """The slow twin: the same sizes as a table."""
    return ListedRowGroups(groups.counts())


def test_examples_in_docstrings_are_what_happens():
    assert doctest.testmod(row_groups_module)[0] == 0
    assert doctest.testmod(row_groups_module).attempted == 4


@given(even_groups)
def test_arithmetic_and_a_table_answer_the_same(groups):
    twin = listed(groups)
    assert list(groups) == list(twin) == groups[:] == twin[:]
    assert len(groups) == len(twin)
    assert (groups.num_windows, groups.largest, groups.num_filled) == (twin.num_windows, twin.largest, twin.num_filled)
    assert groups.starts().tolist() == twin.starts().tolist() == [0, *itertools.accumulate(groups)]
    assert [groups.first_window(one) for one in range(len(groups))] == groups.starts()[:-1].tolist()
    windows = np.arange(groups.num_windows)
    assert [one.tolist() for one in groups.locate(windows)] == [one.tolist() for one in twin.locate(windows)]


@given(st.lists(st.integers(0, 4), max_size=7))
def test_sizes_are_arithmetic_exactly_if_all_but_the_last_are_equal_and_none_is_empty(counts):
    groups = as_row_groups(counts)
    assert list(groups) == counts
    is_even = len(counts) > 0 and 0 not in counts and len(set(counts[:-1])) < 2 and counts[-1] <= counts[0]
    assert isinstance(groups, EvenRowGroups) == is_even
    assert as_row_groups(groups) is groups


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 9))
def test_row_groups_are_cut_shard_by_shard(num_windows, per_group, per_shard):
    per_group = min(per_group, per_shard)
    shards = [range(first, min(first + per_shard, num_windows)) for first in range(0, num_windows, per_shard)]
    expected = [len(shard[at : at + per_group]) for shard in shards for at in range(0, len(shard), per_group)]
    assert list(divide_windows(num_windows, per_group=per_group, per_shard=per_shard)) == expected


@given(st.lists(st.one_of(even_groups, listed_groups), min_size=1, max_size=5))
def test_joined_row_groups_are_those_of_one_list(parts):
    joined, twin = JoinedRowGroups(parts), ListedRowGroups([count for part in parts for count in part])
    assert [joined[group] for group in range(len(joined))] == list(twin)
    assert (joined.num_windows, joined.largest) == (twin.num_windows, twin.largest)
    windows = np.arange(twin.num_windows)
    assert [one.tolist() for one in joined.locate(windows)] == [one.tolist() for one in twin.locate(windows)]
    sources, numbers = joined.sources_of(windows)
    assert list(zip(sources.tolist(), numbers.tolist(), strict=True)) == [
        (source, number) for source, part in enumerate(parts) for number in range(part.num_windows)
    ]


@given(even_groups, shuffles, seeds, st.integers(1, 12), st.integers(1, 4), epochs)
@settings(max_examples=300)
def test_the_order_by_arithmetic_is_the_order_by_tables(groups, shuffle, seed, lanes, block, epoch):
    one, twin = (
        Order(groups=sizes, shuffle=shuffle, seed=seed, lanes=lanes, block=block) for sizes in (groups, listed(groups))
    )
    indices = np.arange(len(one))
    assert one.windows(indices, epoch).tolist() == twin.windows(indices, epoch).tolist()
    for start in {0, len(one) // 2, max(0, len(one) - 1)}:
        assert list(one.spans(start, epoch)) == list(twin.spans(start, epoch))
    assert (one.num_groups, one.num_buffered(2)) == (twin.num_groups, twin.num_buffered(2))


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9), st.booleans()), min_size=1, max_size=4),
    shuffles,
    seeds,
    st.integers(1, 5),
    st.integers(1, 3),
)
def test_a_mixture_of_both_kinds_is_that_of_tables(shapes, shuffle, seed, lanes, block):
    def mixture(is_listed):
        groups = [EvenRowGroups(windows, per_group) for windows, per_group, _ in shapes]
        sizes = [listed(one) if among else one for one, among in zip(groups, is_listed, strict=True)]
        orders = [Order(groups=one, shuffle=shuffle, seed=seed, lanes=lanes, block=block) for one in sizes]
        return Mixture(orders=orders, weights=[(0, [1 + number for number in range(len(orders))])])

    one, twin = mixture([among for *_, among in shapes]), mixture([True] * len(shapes))
    indices = np.arange(100)
    assert one.windows(indices).tolist() == twin.windows(indices).tolist()
    assert list(itertools.islice(one.spans(7), 50)) == list(itertools.islice(twin.spans(7), 50))


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 8), st.integers(0, 3)), min_size=1, max_size=6), seeds)
def test_the_sequences_of_many_data_sets_are_those_of_each(cases, seed):
    """Asked for every index of all of them, when a table is made, and for one index of each, when none is."""
    sizes, per_group, epochs = (np.array(column) for column in zip(*cases, strict=True))
    for counts in (sizes, np.ones_like(sizes)):
        of = np.repeat(np.arange(len(cases)), counts)
        index = np.concatenate([np.arange(count) for count in counts])
        many = shuffle_many_even(sizes, per_group, seed=seed, epochs=epochs, of=of)
        number = many.number(index)
        for case, (windows, size, epoch) in enumerate(cases):
            one, mine = shuffle_even(EvenRowGroups(windows, size), seed=seed, epoch=epoch), of == case
            assert number[mine].tolist() == one.number(index[mine]).tolist()
            assert many.first_window(number)[mine].tolist() == one.first_window(number[mine]).tolist()


def test_the_example_of_a_sequence_is_what_happens():
    order = Order(groups=EvenRowGroups(10, 3), shuffle="lanes", seed=1)
    epoch = next(
        epoch for epoch in range(100) if [order.sequence(epoch).group(one) for one in range(4)] == [2, 3, 0, 1]
    )
    sequence = order.sequence(epoch)
    assert (sequence.short, sequence.missing) == (1, 2)
    assert [sequence.number(index) for index in range(10)] == [0, 0, 0, 1, 2, 2, 2, 3, 3, 3]
    assert "number     0 0 0 | 1 | 2 2 2 | 3 3 3" in sequence_module.__doc__


def test_no_size_of_a_data_set_takes_memory_or_needs_a_table():
    """15 trillion tokens in windows of 1,024, and a million times as many: any epoch, from any index on."""
    for windows in (15 * 10**12 // 1024, 2**56):
        tracemalloc.start()
        try:
            order = Order(groups=EvenRowGroups(windows, 512), shuffle="lanes", seed=3, lanes=1024)
            found = order.windows(np.arange(windows - 500, windows), 7)
            spans = list(itertools.islice(order.spans(windows // 2, 7, range(64)), 200))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert len(set(found.tolist())) == 500
        assert 0 <= found.min() <= found.max() < windows
        assert len({span.group for span in spans}) == 200
        assert peak < 1_000_000


@given(st.integers(1, 3000), seeds)
def test_the_inverse_undoes_a_permutation(n, seed):
    numbers, key = np.arange(n), make_key(seed)
    assert invert(permute(numbers, n, key), n, key).tolist() == numbers.tolist()


@given(st.lists(st.tuples(st.integers(1, 2**62), st.integers(0, 2**62), seeds), max_size=8))
def test_one_number_is_permuted_as_many_are_and_the_inverse_takes_a_size_and_key_for_each(cases):
    n, x, keys = (
        np.array([case[at] for case in cases], kind) for at, kind in enumerate((np.int64, np.int64, np.uint64))
    )
    images = permute(x % n, n, keys)
    assert [permute_one(x % n, n, key) for n, x, key in cases] == images.tolist()
    assert invert(images, n, keys).tolist() == (x % n).tolist()
