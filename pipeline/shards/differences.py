"""Say in facts why two data sets are not the same, so that a refusal need not compare two hashes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from pipeline.base.wording import counted
from pipeline.tokens.store import find_store, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pipeline.shards.job import Job
    from pipeline.shards.manifest import Manifest

SHOWN_FILES = 5
SHOWN_CHARACTERS = 60
# Keys that change no row of a data set.
_NO_EFFECT = {"corpus.on_bad", "corpus.max_bad_fraction", "tokenizer.engine", "tokenizer.audit", "shards.documents"}
_TEXT = ("corpus.", "tokenizer.", "split.")  # sections that decide the token store


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What defines a data set: `values` by config key, and hashes to tell which of these can matter."""

    values: dict[str, Any]
    store: str
    tokenizer: str


def job_facts(job: Job) -> Facts:
    """Return what defines the data set that a job will write."""
    return Facts(
        values=_values(job.sections.describe(), job.stored, name=job.encoder.name)
        | {"shards.windows_per_group": job.layout.windows_per_group},
        store=job.store_id,
        tokenizer=job.encoder.hash,
    )


def manifest_facts(manifest: Manifest) -> Facts:
    """Return what defines a finished data set."""
    values = _values(manifest.config, manifest.windows, name=manifest.tokenizer["name"])
    groups = [split.row_groups for split in manifest.splits.values()]
    if any(len(one) > 1 for one in groups):  # else its only row group may be smaller than the layout's
        values["shards.windows_per_group"] = max(one.largest for one in groups)
    else:
        values.pop("shards.windows_per_group", None)
    return Facts(values=values, store=manifest.store, tokenizer=manifest.tokenizer["hash"])


def name_differences(there: Facts, here: Facts) -> list[str]:
    """Return each key that can be the reason why two data sets differ, with both values."""
    named = []
    for key in sorted(there.values.keys() & here.values.keys() - _NO_EFFECT):
        old, new = there.values[key], here.values[key]
        if old == new or not _matters(key, there, here):
            continue
        named.append(f"{key} is {_show(old)} there and {_show(new)} here")
    return named


def explain(manifest: Manifest, job: Job) -> str:
    """Say why the data set in a folder is not the one that a job would write."""
    old, new = manifest.tokenizer["vocab_size"], job.encoder.vocab_size
    sizes = f" ({old:,} IDs there, {new:,} here)" if old != new else ""
    there, here = manifest_facts(manifest), job_facts(job)
    return _explain(there, here, sizes=sizes, compare_texts=lambda: _compare_texts(manifest, job))


def explain_plan(plan: dict[str, Any], job: Job) -> str:
    """Say the same of a data set whose writing has not ended, by the facts in its plan."""
    try:
        there = Facts(**plan["facts"])
        return _explain(there, job_facts(job), compare_texts=lambda: "the keys agree and the text is another")
    except (KeyError, TypeError, AttributeError):  # the plan of an earlier release has no facts
        return "its plan does not say how it differs"


def _explain(there: Facts, here: Facts, *, compare_texts: Callable[[], str], sizes: str = "") -> str:
    reasons = name_differences(there, here)
    is_named = any(reason.startswith(_TEXT) for reason in reasons)
    if there.tokenizer != here.tokenizer and not any(reason.startswith("tokenizer.") for reason in reasons):
        reasons.append(f"tokenizer {here.values['tokenizer.name']} has the same name and other content{sizes}")
    elif there.store != here.store and not is_named:
        reasons.append(compare_texts())
    return "; ".join(reasons) or "it was written with another layout of its row groups or files"


def _values(config: Mapping[str, Any], windows: Mapping[str, Any], *, name: str) -> dict[str, Any]:
    """Return the values of a config by their full keys, those that were left open as they were chosen."""
    sections = {section: keys for section, keys in config.items() if isinstance(keys, dict)}
    values = {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}
    values |= {f"window.{key}": windows[key] for key in ("max_length", "stride", "tail", "documents")}
    return values | {"shards.order": windows["order"], "shards.seed": windows["seed"], "tokenizer.name": name}


def _matters(key: str, there: Facts, here: Facts) -> bool:
    if key.startswith(_TEXT) and there.store == here.store:
        return False
    if key.startswith("tokenizer.") and key != "tokenizer.special_text" and there.tokenizer == here.tokenizer:
        return False
    if key == "split.seed":
        return bool(there.values.get("split.validation") or here.values.get("split.validation"))
    if key == "shards.seed":
        return bool(there.values["shards.order"] == here.values["shards.order"])
    if key == "window.stride":  # by default it follows max_length
        return any(facts.values[key] != facts.values["window.max_length"] for facts in (there, here))
    return True


def _compare_texts(manifest: Manifest, job: Job) -> str:
    """Say how the text of a data set and the corpus of a job differ, as far as the cache still knows."""
    size = sum(partition.num_bytes for partition in job.partitions)
    files = len({name for partition in job.partitions for name in partition.names})
    amounts = (
        f"{counted(manifest.corpus['documents'], 'document')} with {counted(manifest.corpus['bytes'], 'byte')} there, "
        f"{counted(files, 'file')} with {counted(size, 'byte')} here"
    )
    shards = (shard for split in manifest.splits.values() for shard in split.shards)
    if manifest.format_version == 1 and any(shard.footer_start is None for shard in shards):
        return f"release 0.1.0 wrote it and cannot tell this release whether the text is the same: {amounts}"
    try:
        path = find_store(job.sections.cache_folder, manifest.store)
        store = open_store(path) if path else None
    except (OSError, ValueError):
        store = None
    if store is None:
        return f"the keys agree and the text is another: {amounts}"
    old = _collect(zip(chain(*store.names), chain(*(chunk.units for chunk in store.chunks)), strict=False))
    new = _collect(zip(chain(*(one.names for one in job.partitions)), job.units, strict=True))
    changes = {
        "added": new.keys() - old.keys(),
        "removed": old.keys() - new.keys(),
        "changed": {name for name in old.keys() & new.keys() if old[name] != new[name]},
    }
    parts = [f"{what} {_list(names)}" for what, names in changes.items() if names]
    return f"the keys agree and the text is another: {'; '.join(parts) or 'its parts are in another order'} ({amounts})"


def _collect(named: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return for each file the units of its ranges."""
    units: dict[str, list[str]] = {}
    for name, unit in named:
        units.setdefault(name, []).append(unit)
    return units


def _list(names: Iterable[str]) -> str:
    listed = sorted(names)
    rest = len(listed) - SHOWN_FILES
    return ", ".join(map(_show, listed[:SHOWN_FILES])) + (f" and {rest:,} more" if rest > 0 else "")


def _show(value: object) -> str:
    if isinstance(value, list):
        return _list(map(str, value))
    text = "not set" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."
