"""Points that an earlier start of a sweep finished, and which of them still say what their config would give now.

A finished point is kept if its config is the same, and the data sets that it made or read are still there and still
those of the same text. Then its record, its reports and its times stay as they are.
"""

from __future__ import annotations

import dataclasses
import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipeline.base.atomic import write_json
from pipeline.base.hashing import hash_json
from pipeline.cli.compose import read_config
from pipeline.cli.plain import jsonable
from pipeline.cli.points import RECORD, SUMMARY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from omegaconf import DictConfig

    from pipeline.cli.config import Config

MAKES, READS = {"plan", "write"}, {"verify", "load", "prove"}
WRITE_SECTIONS = ("corpus", "tokenizer", "window", "split", "shards", "executor", "cache")


def keep_finished(folder: Path, holds: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any] | None:
    """Return the record of a point that an earlier start of its sweep finished, marked as kept; None if it must run.

    `holds` gets the point's `summary.json` and tells whether the point would give the same again.
    """
    record, summary = folder / RECORD, folder / SUMMARY
    if not record.is_file() or not summary.is_file():
        return None
    with suppress(ValueError, OSError):  # a damaged file; or the input cannot be read now, which the run will say
        found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        if found.get("status") == "done" and holds(json.loads(summary.read_text(encoding="utf-8"))):
            write_json(record, {**found, "kept": True})
            os.utime(record)  # which tells the sweep that the point has ended now
            return found
    return None


def describe_inputs(config: Config) -> dict[str, Any]:
    """Return what a point's results depend on: its config, and the data sets that it has made or read."""
    from pipeline.shards.manifest import read_manifest

    paths = [config.shards_path] if config.loader.sources is None else [one["path"] for one in config.loader.sources]
    is_read = set(config.stages) - {"plan", "report"}
    return {
        "config_hash": hash_json(jsonable(dataclasses.asdict(config))),
        "data_sets": {str(path): read_manifest(path).fingerprint for path in paths if is_read},
    }


def would_be_same(composed: DictConfig, summary: dict[str, Any]) -> bool:
    """Tell whether a finished point would give the same results again.

    Raises:
        ValueError: the config is refused, or its input cannot be read.

    """
    config = read_config(composed)
    stages = set(config.stages)
    if stages - MAKES - READS or stages == {"plan"} or config.executor.part is not None:
        return False  # cheap, or made for somebody to look at
    if any(summary.get(name) != value for name, value in describe_inputs(config).items()):
        return False
    return "write" not in stages or is_written(config)


def is_written(config: Config) -> bool:
    """Tell whether the data set of a config is complete, and of the text that the corpus has now."""
    from pipeline.shards.job import as_sections, prepare_job
    from pipeline.shards.outline import working_folder
    from pipeline.shards.write import find_complete

    job = prepare_job(as_sections(config.shards_path, **{name: getattr(config, name) for name in WRITE_SECTIONS}))
    with working_folder(job.sections.place) as (folder, storage):
        return find_complete(folder, storage, job) is not None
