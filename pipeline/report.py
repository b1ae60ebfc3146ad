"""The report of a sweep, made from the files that its points leave: `sweep.csv`, `sweep.html` and a table.

Each point keeps a record, `<sweep>/<point>/point.json`, from its start on, and leaves `summary.json` beside it when it
has finished; `<sweep>/plan.json` says which points were asked for. The report needs nothing else, so it comes out the
same whatever launcher ran the points, and after a failure, Ctrl-C or a killed process it still has every point: one
without a record never started.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.summary import rate, size

PLAN, RECORD, SUMMARY = "plan.json", "point.json", "summary.json"
TABLE, PAGE = "sweep.csv", "sweep.html"
STATUSES = ("done", "failed", "skipped", "interrupted", "unfinished", "not started")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One line of a sweep's table. What a point did not come to is None."""

    point: int | None
    overrides: str
    status: str  # of STATUSES; `unfinished` has begun, and its process left no word of an end
    max_length: int | None = None
    stride: int | None = None
    tail: str | None = None
    documents: str | None = None
    overlap: float | None = None  # L/S: the windows that a token lies in
    tokens: int | None = None  # of the corpus, in all splits
    split_tokens: str | None = None  # the same by split
    windows: int | None = None
    delivered: int | None = None  # tokens of all windows
    bytes: int | None = None  # of all shards
    bytes_per_token: float | None = None  # of the corpus
    naive_bytes_per_token: float | None = None  # inputs and targets as plain arrays of whole numbers
    chunks: int | None = None
    chunks_made: int | None = None  # tokenized by this point; the rest was found in the cache
    tokenize_seconds: float | None = None
    write_seconds: float | None = None
    loader_tokens_per_second: float | None = None
    seconds: float | None = None  # the whole point
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A sweep: its points in their order."""

    folder: Path
    points: list[Point]


def write_report(folder: str | os.PathLike[str]) -> Report:
    """Write `sweep.csv` and `sweep.html` into a sweep's folder and return what they say.

    Raises:
        ValueError: the folder holds no record of any point.

    """
    from pipeline.report_page import page

    folder = Path(folder)
    points = read_points(folder)
    table = io.StringIO()
    writer = csv.DictWriter(table, [field.name for field in dataclasses.fields(Point)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(point) for point in points)
    write_text(folder / TABLE, table.getvalue())
    write_text(folder / PAGE, page(points, name=folder.name))
    return Report(folder=folder, points=points)


def read_points(folder: Path) -> list[Point]:
    """The points of a sweep, in the order of their numbers, those that never started among them."""
    found = {}
    for path in folder.rglob(RECORD):
        record, summary = _read(path), path.with_name(SUMMARY)
        found[record["point"]] = _point({**record, **(_read(summary) if summary.exists() else {})})
    plan = folder / PLAN
    planned = _read(plan)["points"] if plan.exists() else None
    for number, overrides in enumerate(planned or []):
        if number not in found:
            found[number] = Point(point=number, overrides=" ".join(overrides), status="not started")
    if not found:
        raise ValueError(f"{folder} holds no record of a sweep's point; give the folder of a sweep as sweep.path")
    return [found[number] for number in sorted(found)]


def describe_sweep(report: Report) -> str:
    """The sweep as a table for a terminal, one line for each point, and what it came to."""
    head = ["point", "L", "S", "L/S", "windows", "delivered", "on disk", "B/token", "write", "load", "status", ""]
    rows = [head, *(_cells(point) for point in report.points)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head) - 1)]
    lines = ["sweep"]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append(f"  {'  '.join([*cells, row[-1]])}".rstrip())
    lines += [
        "",
        f"  {count_statuses(report.points)}",
        f"  {count_tokenizing(report.points)}",
        f"  in {report.folder}: {TABLE}, {PAGE}",
    ]
    return "\n".join(lines)


def count_statuses(points: list[Point]) -> str:
    """'9 points: 7 done, 2 skipped'."""
    counts = {status: sum(point.status == status for point in points) for status in STATUSES}
    return f"{len(points)} points: " + ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def count_tokenizing(points: list[Point]) -> str:
    """How often text was tokenized, counted by the points themselves."""
    written = [point for point in points if point.chunks is not None]
    made = sum(point.chunks_made or 0 for point in written)
    makers = sum(bool(point.chunks_made) for point in written)
    found = len(written) - makers
    return (
        f"tokenized by {makers} {'point' if makers == 1 else 'points'} ({made} chunks of the token store made); "
        f"{found} {'point' if found == 1 else 'points'} found all tokens in the cache"
    )


def _read(path: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return fields


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
        known["loader_tokens_per_second"] = load["tokens"] / max(load["seconds"], 1e-9)
    return Point(**known)


def _cells(point: Point) -> list[str]:
    def cell(value: float | None, form: str = ",") -> str:
        return "-" if value is None else format(value, form)

    disk = "-" if point.bytes is None else size(point.bytes)
    load = "-" if point.loader_tokens_per_second is None else rate(point.loader_tokens_per_second, 1.0, " tok")
    return [
        cell(point.point),
        cell(point.max_length),
        cell(point.stride),
        cell(point.overlap, ".3g"),
        cell(point.windows),
        cell(point.delivered),
        disk,
        cell(point.bytes_per_token, ".2f"),
        "-" if point.write_seconds is None else f"{point.write_seconds:.3f} s",
        load,
        point.status,
        point.overrides if point.error is None else point.error,
    ]


def write_text(path: Path, text: str) -> None:
    """Write a text under a temporary name, flush it to the disk, and rename it into place."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def jsonable(value: Any) -> Any:
    """Dicts, lists and plain values as JSON takes them; a path becomes its text."""
    if isinstance(value, dict):
        return {key: jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    return str(value) if isinstance(value, os.PathLike) else value
