"""What a state says of its data sets, and how the data sets of a state and of a loader differ, in words."""

from __future__ import annotations

import hashlib
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from pipeline.base.hashing import hash_json
from pipeline.loader.mixture_reader import MixtureReader
from pipeline.rules import shorten
from pipeline.shards.row_groups import EvenRowGroups

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.loader.readers import Reader
    from pipeline.loader.shard_reader import ShardReader
    from pipeline.loader.store_reader import StoreReader

NAMES_SHOWN = 3
LISTED_GROUPS = 1 << 16  # row groups whose sizes are hashed one by one, as all were before there was a format 2


def describe_data_sets(reader: Reader) -> list[dict[str, Any]]:
    """Return what a state says about each of its data sets, by config key, so that a refusal can name what differs."""
    return [
        {
            "folder": shorten(PurePath(one.path).name.removesuffix(".json"), 60),
            "tokenizer": shorten(str(one.tokenizer["name"]), 60),
            "window.max_length": one.max_length,
            "window.stride": one.stride,
            "window.tail": "pad" if one.padded else "drop",
            "window.documents": one.documents,
            "shards.order": one.layout,
            "windows": one.groups.num_windows,
            "windows_per_group": one.groups.largest,
            "content": f"{content_of(one)} of {one.fingerprint[:12]}",
        }
        for one in _sources(reader)
    ]


def content_of(reader: ShardReader | StoreReader) -> str:
    """Return a hash of a split's windows and row groups: shards and a token store of the same windows have the same."""
    if reader.layout != "sequential":
        return reader.fingerprint
    shape = [reader.max_length, reader.stride, reader.padded, reader.documents, reader.closes_documents]
    groups = reader.groups
    if isinstance(groups, EvenRowGroups) and len(groups) > LISTED_GROUPS:
        return hash_json([reader.store, reader.split, *shape, groups.num_windows, groups.per_group])
    listed = hashlib.sha256(groups.counts().astype("<i8").tobytes()).hexdigest()
    return hash_json([reader.store, reader.split, *shape, listed])


def what_differs(was: list[Mapping[str, Any]], here: list[dict[str, Any]]) -> str:
    """Return how the data sets of a state differ from the loader's, by name, or by key with both values."""
    if not was:
        return "another data set (an older release saved it, which did not record which one)"
    if len(was) > 1 or len(here) > 1:
        keys = [key for key in ("tokenizer", "window.max_length") if was[0].get(key, here[0][key]) != here[0][key]]
        values = [f"{key} was {shorten(str(was[0].get(key)), 60)}, here it is {here[0][key]}" for key in keys]
        names = [_list(some) for some in (was, here)]
        same = values or [text for text in (_differing(one, other) for one in was for other in here) if text][:1]
        return f"another mixture of sources: {names[0]}; here {names[1]}{'; ' if same else ''}{'; '.join(same)}"
    one, other = was[0], here[0]
    differing = _differing(one, other, any_name=True)
    if differing or one.get("folder") != other["folder"]:
        names = [f" ({shorten(str(one.get('folder')), 40)}, here {shorten(other['folder'], 40)})"]
        return f"another data set{names[0]}: {differing or 'the same parameters, another text'}"
    return "another data set of the same name and parameters: its text is another one, or it was written anew"


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], *, any_name: bool = False) -> str:
    """Return the first parameters that differ between two data sets, of the same name unless told otherwise."""
    if not any_name and one.get("folder") != other["folder"]:
        return ""
    differing = [
        f"{key} was {shorten(str(one[key]), 60)}, here it is {value}"
        for key, value in other.items()
        if key in one and one[key] != value and key not in ("folder", "content")
    ]
    return ", ".join(differing[:2])


def describe_change(added: Sequence[Mapping[str, Any]], missing: Sequence[Mapping[str, Any]]) -> str:
    """Return which sources are new, and which are missing."""
    is_one = len(added) == 1
    parts = [f"{_list(added)} {'is new and starts with its' if is_one else 'are new and start with their'} first epoch"]
    parts = parts * bool(added) + [f"{_list(missing)} {'is' if len(missing) == 1 else 'are'} left out"] * bool(missing)
    parts += [f"{_name(one)}: {text}" for one in missing for other in added if (text := _differing(one, other))][:1]
    return f"the sources are not those of the state: {'; '.join(parts)}; the others go on where they were"


def _list(data_sets: Sequence[Mapping[str, Any]]) -> str:
    shown = ", ".join(shorten(_name(one), 30) for one in data_sets[:NAMES_SHOWN])
    return f"{shown} and {len(data_sets) - NAMES_SHOWN} more" if len(data_sets) > NAMES_SHOWN else shown


def _name(described: Mapping[str, Any]) -> str:
    return str(described.get("folder", "an unnamed data set"))


def _sources(reader: Reader) -> list[ShardReader | StoreReader]:
    return reader.readers if isinstance(reader, MixtureReader) else [reader]
