"""How windows are divided: bounds that hold for all shapes, and sizes that releases must not change."""

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from test_windows import ListStream, one_segment

from pipeline.settings import ShardsConfig, WindowConfig
from pipeline.shards.layout import choose_layout
from pipeline.windows import read_windows

LENGTHS = st.integers(1, 1 << 22)


def layout_of(max_length, stride, *, documents="join", order="sequential", group=None, shard=None):
    return choose_layout(
        WindowConfig(max_length=max_length, stride=stride, documents=documents, allow_gaps=True),
        ShardsConfig(order=order, windows_per_group=group, windows_per_shard=shard),
    )


@given(
    max_length=LENGTHS,
    stride=LENGTHS,
    documents=st.sampled_from(["join", "separate"]),
    order=st.sampled_from(["sequential", "shuffled"]),
    windows=st.integers(1, 1 << 40),
)
def test_a_row_group_decodes_to_little_and_a_shard_holds_whole_ones(max_length, stride, documents, order, windows):
    layout = layout_of(max_length, stride, documents=documents, order=order)
    group, shard = layout.windows_per_group, layout.shard_size(windows)
    assert group == 1 or group * max_length <= 1 << 21
    assert group == 1 or group * min(max_length, stride) <= 1 << 19
    assert shard % group == 0
    if documents == "separate" or order == "shuffled" or stride >= max_length:
        assert group == max(1, (1 << 19) // max_length), "windows that share nothing gain nothing from larger groups"


@given(max_length=LENGTHS, windows=st.integers(1, 1 << 40), group=st.one_of(st.none(), st.integers(1, 10_000)))
def test_a_shard_of_disjoint_windows_has_the_size_that_it_always_had(max_length, windows, group):
    """A job that an earlier release began is finished with the same files."""
    rows = group or max(1, (1 << 19) // max_length)
    groups = -(-windows // rows)
    expected = min(max(8, -(-groups // 32)), 128) * rows
    assert layout_of(max_length, max_length, group=group).shard_size(windows) == expected


def test_gaps_take_no_memory():
    """Windows of 4 tokens, each 50,000 behind the one before: 2.5 million tokens lie between them."""
    stream = ListStream(np.arange(2_500_000) % 60_000)
    windows = one_segment(stream.ids, max_length=4, stride=50_000)
    tracemalloc.start()
    try:
        ids_BT1, starts, lengths = read_windows(stream, windows, 0, len(windows), pad_id=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert starts.tolist() == list(range(0, 2_500_000, 50_000))
    assert ids_BT1.tolist() == [stream.ids[start : start + 5].tolist() for start in starts]
    assert (lengths == 4).all()
    assert peak < 100_000
