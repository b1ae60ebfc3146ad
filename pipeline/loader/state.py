"""The state of a loader, checked before it is used: does it belong to this data and order, and are its fields valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.loader.mixture import Mixture
from pipeline.loader.readers import MixtureReader
from pipeline.rules import MAX_COUNT, check_range, shorten
from pipeline.settings import MAX_EPOCH

if TYPE_CHECKING:
    from pipeline.loader.order import Order
    from pipeline.loader.readers import Reader

KEEP = "Load it with the data set and settings it was saved with, or start a new run"


def describe_data_sets(reader: Reader) -> list[dict[str, Any]]:
    """Return what a state says about each of its data sets, by config key, so that a refusal can name what differs."""
    readers = reader.readers if isinstance(reader, MixtureReader) else [reader]
    return [
        {
            "folder": shorten(one.path.stem if one.path.suffix == ".json" else one.path.name, 60),
            "tokenizer": shorten(str(one.tokenizer["name"]), 60),
            "window.max_length": one.max_length,
            "window.stride": one.stride,
            "window.tail": "pad" if one.padded else "drop",
            "window.documents": one.documents,
            "shards.order": one.layout,
            "windows": sum(one.groups),
            "windows_per_group": max(one.groups, default=0),
        }
        for one in readers
    ]


def read_state(
    state: Mapping[str, Any], identity: Mapping[str, Any], order: Order | Mixture, reader: Reader
) -> tuple[int, int, Order | Mixture]:
    """Return the epoch, the samples consumed and the order of a state.

    Raises:
        ValueError: the state has another identity, or a field that makes no sense; the message names it.

    """
    if not isinstance(state, Mapping):
        raise ValueError(f"a state is the dict that state_dict() returns; got {shorten(repr(state), 60)}")  # noqa: TRY004
    if not _is_same(version := state.get("version"), identity["version"]):
        if isinstance(order, Mixture) and _is_same(version, 1) and "weights" in state:
            raise ValueError(
                "the state's version: release 0.1.0 saved it, whose mixtures have another order; finish the run with "
                "that release, or start a new one"
            )
        raise ValueError(
            f"the state's version: this loader reads {identity['version']}; got {shorten(repr(version), 60)}. Load it "
            "with the release, and the kind of loader, that saved it"
        )
    if not _is_same(state.get("fingerprint"), identity["fingerprint"]):
        raise ValueError(f"this state belongs to {_what_differs(state, reader)}. {KEEP}")
    for key, here in identity.items():
        if not _is_same(state.get(key), here):
            was = shorten(repr(state.get(key)), 60)
            raise ValueError(f"this state has another order: loader.{key} was {was}, here it is {here!r}. {KEEP}")
    epoch = check_range("the state's epoch", state.get("epoch"), 0, MAX_EPOCH)
    if isinstance(order, Mixture):
        order = Mixture(orders=order.orders, weights=_read_weights(state.get("weights"), num_sources=len(order.orders)))
        consumed = check_range("the state's consumed", state.get("consumed"), 0, MAX_COUNT)
        if epoch != order.next_epoch(epoch, consumed)[0]:
            raise ValueError(
                f"the state's epoch: {epoch} does not go with consumed={consumed}, of epochs of {len(order)} samples"
            )
        return epoch, consumed, order
    consumed = check_range("the state's consumed", state.get("consumed"), 0, len(order))
    return epoch, consumed, order


def _is_same(was: object, here: object) -> bool:
    was = list(was) if isinstance(was, tuple) else was  # not every format of checkpoints has both
    return type(was) is type(here) and was == here


def _what_differs(state: Mapping[str, Any], reader: Reader) -> str:
    """Return which parameters of the data sets differ, with both values."""
    was, here = state.get("data_sets"), describe_data_sets(reader)
    if not isinstance(was, Sequence) or not all(isinstance(one, Mapping) for one in was):
        return "another data set (an older release saved it, which did not record which one)"
    if len(was) != len(here):
        return f"another mixture: it had {len(was)} data sets, here there are {len(here)}"
    for number, (one, other) in enumerate(zip(was, here, strict=True)):
        differing = [
            f"{key} was {shorten(str(one[key]), 60)}, here it is {value}"
            for key, value in other.items()
            if key in one and one[key] != value and key != "folder"
        ]
        if differing or one.get("folder") != other["folder"]:
            source = f" as source {number}" if len(here) > 1 else ""
            names = f" ({shorten(str(one.get('folder')), 40)}, here {shorten(other['folder'], 40)})"
            return f"another data set{source}{names}: {', '.join(differing[:2]) or 'the same parameters, another text'}"
    return "another data set of the same name and parameters: its text is another one, or it was written anew"


def _read_weights(weights: object, *, num_sources: int) -> list[tuple[int, tuple[float, ...]]]:
    """Return the weights of a mixture's state: from which index on which weights."""
    rule = "must be [[index, [weight, ...]], ...], rising from index 0, with one weight for each source"
    if not isinstance(weights, Sequence) or isinstance(weights, str) or not weights:
        raise ValueError(f"the state's weights: {rule}; got {shorten(repr(weights), 60)}")
    read: list[tuple[int, tuple[float, ...]]] = []
    for entry in weights:
        is_pair = isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == 2
        if not is_pair or not isinstance(entry[1], Sequence) or len(entry[1]) != num_sources:
            raise ValueError(f"the state's weights: {rule}; got {shorten(repr(entry), 60)}")
        start = check_range("the state's weights", entry[0], 0, MAX_COUNT)
        if start <= read[-1][0] if read else start != 0:
            raise ValueError(f"the state's weights: {rule}; got a change at {start}")
        read.append((start, tuple(entry[1])))
    return read
