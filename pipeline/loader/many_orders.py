"""The windows of several orders at once: what `Order.windows` returns for each, without a call for each.

A mixture of small sources asks for a few windows of each of many (source, epoch) pairs. Calls for each pair would cost
100 times as much as the arithmetic, so each step is done for all windows at once: the numbers that define a pair's
sequence of row groups become arrays, and where it has tables, these are laid end to end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.base.permutation import Int64, make_key, permute
from pipeline.loader.order import IN_BLOCK, find_windows
from pipeline.loader.sequence import GROUPS, EvenSequence, JoinedSequences, ListedSequence, shuffle_many_even
from pipeline.shards.row_groups import EvenRowGroups

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.loader.order import Order


def windows_of_many(orders: Sequence[Order], sources: Int64, sizes: Int64, indices: Int64, epochs: Int64) -> Int64:
    """Return the stored window at each index [P] of an epoch [P] of a source [P] of that size [P]: int64 [P].

    The orders have the same shuffle, seed and lanes.
    """
    numbers = _numbers_of_many(orders, sources, sizes, indices, epochs)
    selecting = [source for source, order in enumerate(orders) if order.selection is not None]
    if not selecting:
        return numbers
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
    found = np.empty_like(indices)
    blocks = np.array([order.block for order in orders])[sources]
    is_even = np.array([isinstance(order.kept, EvenRowGroups) for order in orders])[sources]
    for make_sequence, which in ((_even_sequence, is_even), (_joined_sequences, ~is_even)):
        if len(mine := np.flatnonzero(which)):
            sequence = make_sequence(orders, *_number_pairs(sources[mine], epochs[mine]))
            shape = {"sizes": sizes[mine], "blocks": blocks[mine]}
            found[mine] = find_windows(sequence, indices[mine], epochs[mine], **shape, lanes=lanes, seed=seed)
    return found


def _number_pairs(sources: Int64, epochs: Int64) -> tuple[list[tuple[int, int]], Int64]:
    """Return the pairs of source and epoch, and the number of each window's pair [P]."""
    least = int(epochs.min())
    width = int(epochs.max()) - least + 1
    codes, of = np.unique(sources * width + epochs - least, return_inverse=True)
    return [(code // width, code % width + least) for code in codes.tolist()], of


def _even_sequence(orders: Sequence[Order], pairs: list[tuple[int, int]], of: Int64) -> EvenSequence:
    """Return the sequence of each window's pair, of row groups of one size."""
    groups = [orders[source].kept for source, _ in pairs]
    sizes = np.array([one.num_windows for one in groups])
    per_group = np.array([one.per_group for one in groups if isinstance(one, EvenRowGroups)])
    epochs = np.array([epoch for _, epoch in pairs])
    return shuffle_many_even(sizes, per_group, seed=orders[0].seed, epochs=epochs, of=of)


def _joined_sequences(orders: Sequence[Order], pairs: list[tuple[int, int]], of: Int64) -> JoinedSequences:
    """Return the sequence of each window's pair, of row groups of any sizes: the tables of all pairs, end to end."""
    sequences = _shuffle_row_groups(orders, pairs)
    bases = np.cumsum([0, *(int(one.borders[-1]) for one in sequences[:-1])])
    firsts = np.cumsum([0, *(len(one.borders) for one in sequences[:-1])])
    return JoinedSequences(
        np.concatenate([one.borders + base for one, base in zip(sequences, bases.tolist(), strict=True)]),
        np.concatenate([np.append(one.windows[one.groups], 0) for one in sequences]),
        bases[of],
        firsts[of],
        np.array([one.num_groups for one in sequences])[of],
    )


def _shuffle_row_groups(orders: Sequence[Order], pairs: list[tuple[int, int]]) -> list[ListedSequence]:
    """Return the row groups of each pair in their order: those that are not known yet by one permutation."""
    known = [orders[source].known_sequence(epoch) for source, epoch in pairs]
    missing = [pair for pair, sequence in zip(pairs, known, strict=True) if sequence is None]
    if missing:
        counts = [len(orders[source].kept) for source, _ in missing]
        of = np.repeat(np.arange(len(missing)), counts)
        keys = make_key(orders[0].seed, np.array([epoch for _, epoch in missing]), GROUPS)
        bases = np.cumsum([0, *counts])
        groups = permute(np.arange(len(of)) - bases[of], np.array(counts)[of], keys[of])
        parts = iter(np.split(groups, bases[1:-1]))
    return [
        sequence if isinstance(sequence, ListedSequence) else orders[source].remember_groups(epoch, next(parts))
        for (source, epoch), sequence in zip(pairs, known, strict=True)
    ]
