"""The state of a loader: what it records, and where another loader goes on from it.

A state belongs to its data sets and their order, and each of its fields is checked before it is used. It goes by the
fingerprint of each source, so a mixture goes on when sources were added, left out or put in another order, and so does
one data set that becomes a source of a mixture, or was one (`pipeline.loader.carry`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.loader.carry import CarriedOrder, carry_order, decode_draws, draws_by_row, encode_draws
from pipeline.loader.draws import Origin
from pipeline.loader.mixture import Mixture
from pipeline.loader.order import Order
from pipeline.loader.selection import SELECTING, describe_selections
from pipeline.loader.state_sources import describe_change, describe_data_sets, what_differs
from pipeline.loader.weights import find_shares, weights_from
from pipeline.rules import MAX_COUNT, check_range, is_number, shorten
from pipeline.settings import MAX_EPOCH

if TYPE_CHECKING:
    from pipeline.base.permutation import Int64
    from pipeline.loader.readers import Reader

# Release 0.1.0 saved one data set as 1, and mixtures of another order as 1, too. Before weights had clocks, mixtures
# were 2, with all changes of weights in a list. 3 is a mixture, or a data set that goes on from one.
STATE_FORMAT, LISTED_MIXTURE_FORMAT, CARRIED_FORMAT = 1, 2, 3
KEEP = "Load it with the data set and settings it was saved with, or start a new run"
WEIGHTS_RULE = (
    "must be [[index, [weight, ...]], ...], rising from index 0 or that of the draws before, with one weight for each "
    "source"
)
OWN_CLOCKS = "drawn"  # in place of the sources' clocks: those of each row say what it has drawn
OF_SOURCES = (
    int,
    dict,
    type(None),
)  # what states have one of for each source: shuffle blocks, limits, excluded windows


class Resumed(NamedTuple):
    """Where a loader goes on from a state, and what its user should know."""

    epoch: int
    consumed: int
    order: Order | Mixture
    note: str = ""


class _Saved(NamedTuple):
    """A state whose fields are checked."""

    epoch: int
    consumed: int
    order: Order | Mixture  # a mixture's sources have only as many windows as the state says
    data_sets: list[Mapping[str, Any]]
    found: list[int | None]  # for each source of this loader, which one of the state it is


def identify(order: Order | Mixture, reader: Reader) -> dict[str, Any]:
    """Return the fields of a state that must be equal for it to be loaded."""
    identity: dict[str, Any] = {"fingerprint": reader.fingerprint, "split": reader.split, "shuffle": order.shuffle}
    if order.shuffle != "none" or isinstance(order, Mixture):
        identity["seed"] = order.seed
    if order.shuffle == "lanes":
        blocks = [one.block for one in order.orders] if isinstance(order, Mixture) else order.block
        identity |= {"lanes": order.lanes, "block": blocks}
    selections = [one.selection for one in order.orders] if isinstance(order, Mixture) else order.selection
    return identity | describe_selections(selections)


def write_state(epoch: int, consumed: int, order: Order | Mixture, reader: Reader) -> dict[str, Any]:
    """Return a state: small, and made of what JSON knows."""
    state = {"version": STATE_FORMAT, **identify(order, reader), "epoch": epoch, "consumed": consumed}
    if isinstance(order, Mixture):
        state["version"] = CARRIED_FORMAT
        state["weights"] = [[start, list(weights)] for start, weights in order.weights]
        if order.origin is not None:
            state["drawn"] = encode_draws(order.origin.drawn)
            state["due"] = OWN_CLOCKS if order.origin.due is None else order.origin.due.tolist()
        if any(order.epoch_start):
            state["epoch_start"] = list(order.epoch_start)
    elif isinstance(order, CarriedOrder):
        state |= {"version": CARRIED_FORMAT, "drawn": encode_draws(order.drawn[:, None])}
    data_sets = describe_data_sets(reader)
    for one, described in zip(order.orders if isinstance(order, Mixture) else [order], data_sets, strict=True):
        if one.selection is not None:
            described["selected"] = len(one)
    return {**state, "data_sets": data_sets}


def read_state(state: Mapping[str, Any], order: Order | Mixture, reader: Reader) -> Resumed:
    """Return where a loader goes on from a state; `order` is what it would start with.

    Raises:
        ValueError: the state has no data set in common with the loader, or another order, or a field that makes no
            sense; the message names it.

    """
    saved = _check_state(state, order, reader)
    here = describe_data_sets(reader)
    added = [one for one, number in zip(here, saved.found, strict=True) if number is None]
    missing = [one for number, one in enumerate(saved.data_sets) if number not in saved.found]
    note = describe_change(added, missing) if added or missing else ""
    if isinstance(order, Mixture):
        resumed = _into_mixture(saved, order)
        return resumed._replace(note=note or resumed.note)
    if not isinstance(saved.order, Mixture):
        return Resumed(saved.epoch, saved.consumed, saved.order)
    assert saved.found[0] is not None, "a state without a source of the loader was refused"
    drawn = saved.order.origin_at(saved.consumed).drawn[:, saved.found[0]]
    epoch, consumed = divmod(int(drawn.sum()), len(order))
    return Resumed(epoch, consumed, carry_order(order, drawn), note)


def _into_mixture(saved: _Saved, order: Mixture) -> Resumed:
    """Return where a mixture goes on."""
    found, old = saved.found, saved.order
    if isinstance(old, Mixture):
        start = saved.consumed
        is_same = None not in found and len(found) == len(old.orders)
        if is_same and found == list(range(len(found))):
            return Resumed(saved.epoch, start, replace(old, orders=order.orders), _compare_schedules(old, order, start))
        _, was_drawn, due = old.origin_at(start)
        was_due = was_drawn.mean(axis=0) if due is None else due
        first = min(start, old.planned_first(saved.epoch))
    else:
        is_same, start = False, saved.epoch * len(old) + saved.consumed
        was_drawn = _position(saved)[:, None]
        was_due, first = was_drawn.mean(axis=0), start - saved.consumed
    drawn, due = np.zeros((order.num_rows, len(found)), np.int64), np.zeros(len(found))
    for source, number in enumerate(found):
        if number is not None:
            drawn[:, source], due[source] = was_drawn[:, number], was_due[number]
    weights = weights_from(order.weights, start)
    if is_same and isinstance(old, Mixture):
        weights = [
            (at, [one[number] for number in found if number is not None])
            for at, one in weights_from(old.weights, start)
        ]
    epoch_start = (saved.epoch, first) if start < first + len(order) else (saved.epoch + 1, start)
    mixture = Mixture(orders=order.orders, weights=weights, origin=Origin(start, drawn, due), epoch_start=epoch_start)
    return Resumed(epoch_start[0], start, mixture, _compare_schedules(mixture, order, start))


def _compare_schedules(mixture: Mixture, own: Mixture, index: int) -> str:
    """Say which schedule is followed if a loader has one of its own and the state another one."""
    shares = [
        [(start, find_shares(weights, num_sources=len(own.orders)).tolist()) for start, weights in entries]
        for entries in (weights_from(one.weights, index) for one in (mixture, own))
    ]
    if len(own.weights) == 1 or shares[0] == shares[1]:
        return ""
    change = mixture.next_change(index)
    coming = "no change to come" if change is None else f"its next change at sample {change:,}"
    return (
        f"weights: the state has another schedule than this loader, and it is followed ({coming}); to follow another "
        "one, call set_weights(schedule) after load_state_dict"
    )


def _position(saved: _Saved) -> Int64:
    """Return how often each row has drawn the state's one data set, int64 [C]."""
    order = saved.order
    if isinstance(order, CarriedOrder) and not order.is_over(saved.epoch, saved.consumed):
        return order.position(saved.epoch, saved.consumed)
    assert isinstance(order, Order), "one data set"
    rows = order.lanes if order.shuffle == "lanes" else 1
    return draws_by_row(saved.epoch * len(order) + saved.consumed, rows)


def _check_state(state: Mapping[str, Any], order: Order | Mixture, reader: Reader) -> _Saved:
    if not isinstance(state, Mapping):
        raise ValueError(f"a state is the dict that state_dict() returns; got {shorten(repr(state), 60)}")  # noqa: TRY004
    _check_version(state)
    described = describe_data_sets(reader)
    was = _described(state)
    found = _find_sources(state, reader.fingerprint, was, described)
    if not any(number is not None for number in found):
        raise ValueError(f"this state belongs to {what_differs(was, described)}. {KEEP}")
    is_mixture = isinstance(state.get("fingerprint"), list | tuple)
    _check_order(state, identify(order, reader), found)
    epoch = check_range("the state's epoch", state.get("epoch"), 0, MAX_EPOCH)
    if is_mixture:
        old = _read_mixture(state, order, [one.get("selected", one.get("windows")) for one in was], found)
        consumed = check_range("the state's consumed", state.get("consumed"), old.weights[0][0], MAX_COUNT)
        is_known = set(range(len(old.orders))) <= set(found)  # the windows of all sources
        if is_known and epoch != old.next_epoch(epoch, consumed)[0]:
            raise ValueError(
                f"the state's epoch: {epoch} does not go with consumed={consumed}, of epochs of {len(old)} samples"
            )
        return _Saved(epoch, consumed, old, was, found)
    one = order.orders[found.index(0)] if isinstance(order, Mixture) else order
    consumed = check_range("the state's consumed", state.get("consumed"), 0, len(one))
    if "drawn" in state:
        drawn = decode_draws(state["drawn"], rows=one.lanes if one.shuffle == "lanes" else 1, sources=1)[:, 0]
        one = carry_order(one, drawn)
    return _Saved(epoch, consumed, one.since(epoch, consumed), was, found)


def _check_order(state: Mapping[str, Any], identity: Mapping[str, Any], found: list[int | None]) -> None:
    """Raise ValueError, with both values, if a state has another order."""
    is_one = not isinstance(state.get("fingerprint"), list | tuple)
    pairs = [(source, number) for source, number in enumerate(found) if number is not None]
    for key, here in {**dict.fromkeys(SELECTING), **identity}.items():
        was, value = state.get(key), here
        if key == "block" or (key in SELECTING and not (was is None and here is None)):  # those of each source
            value = [None if here is None else _as_list(here)[source] for source, _ in pairs]
            given = [one if type(one) in OF_SOURCES else shorten(repr(one), 60) for one in _as_list(was)]
            given = [None] * len(_as_list(state["fingerprint"])) if was is None and key in SELECTING else given
            was = [given[number] for _, number in pairs if number < len(given)]
        is_of_one = key == "seed" and is_one and state.get("shuffle") == "none"  # an order without a seed
        if key != "fingerprint" and not is_of_one and not _is_same(was, value):
            shown = shorten(repr(was), 60)
            raise ValueError(
                f"this state has another order: loader.{key} was {shown}, here it is {shorten(repr(value), 60)}. {KEEP}"
            )


def _check_version(state: Mapping[str, Any]) -> None:
    version, is_mixture = state.get("version"), isinstance(state.get("fingerprint"), list | tuple)
    if _is_same(version, STATE_FORMAT) and "weights" in state:
        raise ValueError(
            "the state's version: release 0.1.0 saved it, whose mixtures have another order; finish the run with "
            "that release, or start a new one"
        )
    known = (LISTED_MIXTURE_FORMAT, CARRIED_FORMAT) if is_mixture else (STATE_FORMAT, CARRIED_FORMAT)
    if not any(_is_same(version, one) for one in known):
        raise ValueError(
            f"the state's version: this loader reads {known[0]} and {known[1]}; got {shorten(repr(version), 60)}. Load "
            "it with the release that saved it"
        )


def _find_sources(
    state: Mapping[str, Any], here: object, was: list[Mapping[str, Any]], described: list[dict[str, Any]]
) -> list[int | None]:
    """Return for each source of the loader which one of the state it is; the same one twice counts in order."""
    prints = _as_list(state.get("fingerprint"))
    contents = [_content(one, fingerprint) for one, fingerprint in zip(was, prints, strict=False)]
    left, found = list(range(len(prints))), list[int | None]()
    for fingerprint, one in zip(_as_list(here), described, strict=True):
        content = _content(one, fingerprint)
        same = (
            at for at in left if _is_same(prints[at], fingerprint) or (content and content in contents[at : at + 1])
        )
        found.append(number := next(same, None))
        if number is not None:
            left.remove(number)
    return found


def _content(described: Mapping[str, Any], fingerprint: object) -> str:
    """Return the hash of a data set's content, if it was recorded with this fingerprint."""
    content, _, of = str(described.get("content", "")).partition(" of ")
    return content if of and str(fingerprint).startswith(of) else ""


def _read_mixture(
    state: Mapping[str, Any], order: Order | Mixture, windows: list[Any], found: list[int | None]
) -> Mixture:
    """Return a state's mixture, whose sources have only as many windows as the state says."""
    like = order.orders[0] if isinstance(order, Mixture) else order
    sources = len(state["fingerprint"])
    sizes = [size if type(size) is int and 0 < size < MAX_COUNT else 1 for size in windows]
    sizes = sizes if len(sizes) == sources else [1] * sources
    for source, number in enumerate(found):
        if number is not None:
            sizes[number] = len(order.orders[source] if isinstance(order, Mixture) else order)
    orders = [Order(groups=[size], shuffle=like.shuffle, seed=like.seed, lanes=like.lanes) for size in sizes]
    weights = _read_weights(state.get("weights"), num_sources=sources)
    if _is_same(state.get("version"), LISTED_MIXTURE_FORMAT):
        return _replay(orders, weights, state.get("consumed"))
    epoch_start = _as_list(state.get("epoch_start", [0, 0]))
    if len(epoch_start) != 2:
        raise ValueError(f"the state's epoch_start: must be an epoch and its index; got {epoch_start[:3]}")
    epoch_start = [check_range("the state's epoch_start", one, 0, MAX_EPOCH) for one in epoch_start]
    return Mixture(
        orders=orders,
        weights=weights,
        origin=_read_origin(state, weights[0][0], rows=like.lanes if like.shuffle == "lanes" else 1, sources=sources),
        epoch_start=(epoch_start[0], epoch_start[1]),
    )


def _read_origin(state: Mapping[str, Any], start: int, *, rows: int, sources: int) -> Origin | None:
    if "drawn" not in state:
        if start:
            raise ValueError(f"the state's weights: {WEIGHTS_RULE}; got a change at {start}, and no draws before it")
        return None
    drawn = decode_draws(state["drawn"], rows=rows, sources=sources)
    if _is_same(state.get("due"), OWN_CLOCKS):
        return Origin(start, drawn, None)
    values = _as_list(state.get("due"))
    if len(values) != sources or not all(is_number(one) and 0 <= one < MAX_COUNT for one in values):
        raise ValueError(
            f"the state's due: must be {sources} numbers from 0; got {shorten(repr(state.get('due')), 60)}"
        )
    return Origin(start, drawn, np.array(values, np.float64))


def _replay(orders: list[Order], weights: list[tuple[int, tuple[float, ...]]], consumed: object) -> Mixture:
    """Return the mixture of a state that lists all changes of weights, at each of which the rows' times began anew."""
    mixture = Mixture(orders=orders, weights=weights[:1])
    index = check_range("the state's consumed", consumed, 0, MAX_COUNT)
    past = [entry for entry in weights if entry[0] <= index]
    for entry in past[1:]:
        origin = Origin(entry[0], mixture.origin_at(entry[0]).drawn, None)
        mixture = Mixture(orders=orders, weights=[entry], origin=origin)
    return Mixture(orders=orders, weights=[past[-1], *weights[len(past) :]], origin=mixture.origin)


def _read_weights(weights: object, *, num_sources: int) -> list[tuple[int, tuple[float, ...]]]:
    """Return the weights of a mixture's state: from which index on which weights."""
    if not isinstance(weights, Sequence) or isinstance(weights, str) or not weights:
        raise ValueError(f"the state's weights: {WEIGHTS_RULE}; got {shorten(repr(weights), 60)}")
    read: list[tuple[int, tuple[float, ...]]] = []
    for entry in weights:
        is_pair = isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == 2
        if not is_pair or not isinstance(entry[1], Sequence) or len(entry[1]) != num_sources:
            raise ValueError(f"the state's weights: {WEIGHTS_RULE}; got {shorten(repr(entry), 60)}")
        start = check_range("the state's weights", entry[0], 0, MAX_COUNT)
        if read and start <= read[-1][0]:
            raise ValueError(f"the state's weights: {WEIGHTS_RULE}; got a change at {start}")
        read.append((start, tuple(entry[1])))
    return read


def _described(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    was = state.get("data_sets")
    is_list = isinstance(was, Sequence) and not isinstance(was, str)
    return [one for one in was if isinstance(one, Mapping)] if is_list else []  # type: ignore[union-attr]


def _as_list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_same(was: object, here: object) -> bool:
    was = list(was) if isinstance(was, tuple) else was  # not every format of checkpoints has both
    return type(was) is type(here) and was == here
