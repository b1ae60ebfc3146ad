"""The points of a sweep, read from the files that they leave.

Each point has a record, `<sweep>/<point>/point.json`, from its start on. A finished point has a `summary.json` next to
it. `<sweep>/plan.json` lists the planned points. So the points are known whatever launcher ran them, even after a
failure, Ctrl-C or a killed process: a point without a record never started.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.base.wording import counted

if TYPE_CHECKING:
    from pathlib import Path

PLAN, RECORD, SUMMARY, TRACEBACK = "plan.json", "point.json", "summary.json", "traceback.txt"
STATUSES = ("done", "failed", "skipped", "interrupted", "unfinished", "not started")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One line of a sweep's table. What a point did not reach is None."""

    point: int | None
    overrides: str
    status: str  # of STATUSES; an `unfinished` point started, and its process never recorded an end
    max_length: int | None = None
    stride: int | None = None
    tail: str | None = None
    documents: str | None = None
    overlap: float | None = None  # L/S: how many windows contain a token
    tokens: int | None = None  # of the corpus, in all splits
    split_tokens: str | None = None  # the same, by split
    windows: int | None = None
    delivered: int | None = None  # window tokens: in all windows, each counted as often as it occurs
    bytes: int | None = None  # of all shards
    bytes_per_token: float | None = None  # of the corpus
    naive_bytes_per_token: float | None = None  # inputs and targets as plain arrays of whole numbers
    chunks: int | None = None
    chunks_made: int | None = None  # tokenized by this point; the others were found in the cache
    tokenize_seconds: float | None = None
    write_seconds: float | None = None
    loader_tokens_per_second: float | None = None  # without the embedding's time
    seconds: float | None = None  # the whole point
    error: str | None = None


def read_points(folder: Path) -> list[Point]:
    """Return the points of a sweep in the order of their numbers, including those that never started."""
    plan = folder / PLAN
    points: list[list[str]] | None = _read(plan)["points"] if plan.exists() else None
    planned = None if points is None else dict(enumerate(points))
    found = {}
    for path in folder.rglob(RECORD):
        record, summary = _read(path), path.with_name(SUMMARY)
        if planned is None or planned.get(record["point"]) == record["overrides"]:  # or it is of a sweep before this
            found[record["point"]] = _point({**record, **(_read(summary) if summary.exists() else {})})
    for number, overrides in (planned or {}).items():
        if number not in found:
            window = _planned_window(overrides)
            found[number] = _point({"point": number, "overrides": overrides, "status": "not started", "window": window})
    if not found:
        raise ValueError(f"{folder}: contains no record of a sweep's point. Set sweep.path to the folder of a sweep")
    return [found[number] for number in sorted(found)]


def count_statuses(points: list[Point]) -> str:
    """Return the points by status: '9 points: 7 done, 2 skipped'."""
    counts = {status: sum(point.status == status for point in points) for status in STATUSES}
    found = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return f"{counted(len(points), 'point')}: {found}"


def describe_tokenizing(points: list[Point]) -> str:
    """Return how many points tokenized text, and how many found all tokens in the cache."""
    written = [point for point in points if point.chunks is not None]
    makers = sum(bool(point.chunks_made) for point in written)
    found = len(written) - makers
    if not written:
        return "tokenized: no point wrote a data set"
    if not makers:
        return f"tokenized: {'all ' * (found > 1)}{counted(found, 'point')} reused the cache"
    made = counted(sum(point.chunks_made or 0 for point in written), "chunk")
    reused = f"; {counted(found, 'point')} reused the cache" if found else ""
    return f"tokenized: {counted(makers, 'point')} made {made} of tokens{reused}"


def _read(path: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return fields


def _planned_window(overrides: list[str]) -> dict[str, int]:
    """Return the max_length and stride of a point without a record, as far as its overrides name them."""
    given = dict(override.partition("=")[::2] for override in overrides)
    names = {key: given.get(f"window.{key}", "") for key in ("max_length", "stride")}
    return {key: int(value) for key, value in names.items() if value.isdecimal() and int(value) > 0}


def _point(record: dict[str, Any]) -> Point:
    window, write, load = record.get("window") or {}, record.get("write"), record.get("load")
    length, stride = window.get("max_length"), window.get("stride")
    known: dict[str, Any] = {
        "point": record["point"],
        "overrides": " ".join(record.get("overrides", [])),
        "status": "unfinished" if record["status"] == "running" else record["status"],
        "overlap": length / stride if length and stride else None,
        "error": record.get("error"),
        "seconds": record.get("seconds"),
        **window,
    }
    if write:
        splits = write["manifest"]["splits"].values()
        tokens = sum(split["num_tokens"] for split in splits)
        stored = sum(shard["bytes"] for split in splits for shard in split["shards"])
        windows = sum(split["num_windows"] for split in splits)
        item = 2 if write["manifest"]["tokenizer"]["vocab_size"] <= 1 << 16 else 4  # bytes of an ID
        known |= {
            "tokens": tokens,
            "split_tokens": " ".join(str(split["num_tokens"]) for split in splits),
            "windows": windows,
            "delivered": windows * length,
            "bytes": stored,
            "bytes_per_token": stored / max(1, tokens),
            "naive_bytes_per_token": 2 * item * windows * length / max(1, tokens),
            "chunks": write["chunks"],
            "chunks_made": write["chunks_made"],
        }
        if not write["finished_before"]:
            known |= {"tokenize_seconds": write["tokenize_seconds"], "write_seconds": write["write_seconds"]}
    if load:
        known["loader_tokens_per_second"] = load["tokens"] / max(load["load_seconds"], 1e-9)
    return Point(**known)
