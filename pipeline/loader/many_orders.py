"""The windows of several orders at once: what `Order.windows` returns for each, without a call for each.

A mixture of small sources asks for a few windows of each of many (source, epoch) pairs. Calls for each pair would cost
100 times as much as the arithmetic. So the pairs' tables are laid end to end, and each step is done for all windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.base.permutation import Int64, make_key, permute
from pipeline.loader.order import GROUPS, IN_BLOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.loader.order import Order, RowGroupSequence


def windows_of_many(orders: Sequence[Order], sources: Int64, sizes: Int64, indices: Int64, epochs: Int64) -> Int64:
    """Return the stored window at each index [P] of an epoch [P] of a source [P] of that size [P]: int64 [P].

    The orders have the same shuffle, seed and lanes.
    """
    numbers = _numbers_of_many(orders, sources, sizes, indices, epochs)
    selecting = [source for source, order in enumerate(orders) if order.selection is not None]
    if selecting:
        numbers = numbers.copy()
    for source in np.intersect1d(sources, selecting).tolist():
        here, selection = sources == source, orders[source].selection
        assert selection is not None, "one of those that select"
        numbers[here] = selection.stored(numbers[here])
    return numbers


def _numbers_of_many(orders: Sequence[Order], sources: Int64, sizes: Int64, indices: Int64, epochs: Int64) -> Int64:
    """Return the windows by their numbers among those that are read: int64 [P]."""
    shuffle, seed, lanes = orders[0].shuffle, orders[0].seed, orders[0].lanes
    if shuffle == "none" or not len(indices):
        return indices
    if shuffle == "full":
        return permute(indices, sizes, make_key(seed, epochs, IN_BLOCK))
    pairs, of = _number_pairs(sources, epochs)
    sequences = _shuffle_row_groups(orders, pairs)
    bases = np.cumsum([0, *(len(orders[source]) for source, _ in pairs)])[of]  # [P] where each pair's windows start
    # Of all pairs, end to end: where blocks start, where row groups start, and the first window of each.
    blocks, first_block = _join([sequence.blocks for sequence in sequences], of)
    borders, _ = _join([sequence.borders for sequence in sequences], of)
    windows = [
        np.append(orders[source].kept_starts[sequence.groups], 0)
        for (source, _), sequence in zip(pairs, sequences, strict=True)
    ]
    lane = indices % lanes
    lane_start, lane_stop = (one * (sizes // lanes) + np.minimum(one, sizes % lanes) for one in (lane, lane + 1))
    at = lane_start + indices // lanes
    block = np.searchsorted(blocks, bases + at, side="right") - 1
    low, high = np.maximum(blocks[block] - bases, lane_start), np.minimum(blocks[block + 1] - bases, lane_stop)
    at = low + permute(at - low, high - low, make_key(seed, epochs, IN_BLOCK, lane, block - first_block))
    group = np.searchsorted(borders, bases + at, side="right") - 1
    found: Int64 = np.concatenate(windows)[group] + bases + at - borders[group]
    return found


def _number_pairs(sources: Int64, epochs: Int64) -> tuple[list[tuple[int, int]], Int64]:
    """Return the pairs of source and epoch, and the number of each window's pair [P]."""
    least = int(epochs.min())
    width = int(epochs.max()) - least + 1
    codes, of = np.unique(sources * width + epochs - least, return_inverse=True)
    return [(code // width, code % width + least) for code in codes.tolist()], of


def _join(tables: list[Int64], of: Int64) -> tuple[Int64, Int64]:
    """Return the pairs' tables end to end, and where each window's table starts [P].

    A table counts windows from 0 to its source's last one, and goes on from that of the pair before.
    """
    bases = np.cumsum([0, *(int(table[-1]) for table in tables[:-1])])
    starts = np.cumsum([0, *(len(table) for table in tables[:-1])])
    return np.concatenate([table + base for table, base in zip(tables, bases.tolist(), strict=True)]), starts[of]


def _shuffle_row_groups(orders: Sequence[Order], pairs: list[tuple[int, int]]) -> list[RowGroupSequence]:
    """Return the row groups of each pair in their order: those that are not known yet by one permutation."""
    known = [orders[source].known_sequence(epoch) for source, epoch in pairs]
    missing = [pair for pair, sequence in zip(pairs, known, strict=True) if sequence is None]
    if missing:
        counts = [len(orders[source].starts) - 1 for source, _ in missing]
        of = np.repeat(np.arange(len(missing)), counts)
        keys = make_key(orders[0].seed, np.array([epoch for _, epoch in missing]), GROUPS)
        bases = np.cumsum([0, *counts])
        groups = permute(np.arange(len(of)) - bases[of], np.array(counts)[of], keys[of])
        parts = iter(np.split(groups, bases[1:-1]))
    return [
        orders[source].remember_sequence(epoch, next(parts)) if sequence is None else sequence
        for (source, epoch), sequence in zip(pairs, known, strict=True)
    ]
