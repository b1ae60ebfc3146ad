"""The report of a sweep: `sweep.csv`, `sweep.html` and a table.

It needs only the files that the points leave (`cli/points.py`). So it is the same whatever launcher ran the points, and
can be made again at any time.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.atomic import write_text
from pipeline.base.wording import rate, size
from pipeline.cli.html import page
from pipeline.cli.points import Point, count_statuses, describe_tokenizing, read_points
from pipeline.rules import hide_secrets

if TYPE_CHECKING:
    from collections.abc import Sequence

TABLE, PAGE = "sweep.csv", "sweep.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One sweep or several, and their points in order."""

    folder: Path  # where the report was written
    points: list[Point]
    leftovers: list[str]  # folders of points that the sweep no longer has


def write_report(*sweeps: str | os.PathLike[str], into: Path | None = None) -> Report:
    """Write `sweep.csv` and `sweep.html` of one or more sweeps into a folder, by default the sweep's own.

    Raises:
        ValueError: a folder is not one sweep's own.

    """
    folder = into or Path(sweeps[0])
    points, leftovers = [], []
    for sweep in sweeps:
        found, unplanned = read_points(Path(sweep))
        points += found if len(sweeps) == 1 else [dataclasses.replace(point, sweep=str(sweep)) for point in found]
        leftovers += unplanned
    write_text(folder / TABLE, csv_text(points, [field.name for field in dataclasses.fields(Point)]))
    write_text(folder / PAGE, page(points, name=" and ".join(Path(sweep).name for sweep in sweeps)))
    return Report(folder=folder, points=points, leftovers=leftovers)


def csv_text(rows: Sequence[Any], names: Sequence[str] | None = None) -> str:
    """Return dataclasses of one kind as a table with a header line; without names and rows it is empty."""
    table = io.StringIO()
    if names is None and rows:
        names = [field.name for field in dataclasses.fields(rows[0])]
    if names is not None:
        writer = csv.DictWriter(table, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)
    return table.getvalue()


def describe_sweep(report: Report) -> str:
    """Return the sweep as a table for a terminal, one line for each point, and totals below it."""
    head = ["point", "L", "S", "L/S", "windows", "window tokens", "on disk", "B/token", "write", "load", "status", ""]
    rows = [head, *(_cells(point) for point in report.points)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head) - 1)]
    lines = ["sweep"]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append(f"  {'  '.join([*cells, row[-1]])}".rstrip())
    lines += [
        "",
        f"  {count_statuses(report.points)}",
        f"  {describe_tokenizing(report.points)}",
        f"  in {report.folder}: {TABLE}, {PAGE}",
    ]
    if report.leftovers:
        lines.insert(-1, f"  not in this sweep, from an earlier one: {', '.join(report.leftovers)}")
    return "\n".join(lines)


def _cells(point: Point) -> list[str]:
    def cell(value: float | None, form: str = ",") -> str:
        return "-" if value is None else format(value, form)

    disk = "-" if point.bytes is None else size(point.bytes)
    load = "-" if point.loader_tokens_per_second is None else rate(point.loader_tokens_per_second, 1.0, "tok")
    return [
        cell(point.point) if point.sweep is None else f"{point.sweep} {cell(point.point)}",
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


def jsonable(value: Any) -> Any:
    """Turn nested values into what JSON takes: tuples become lists, paths text. Secrets of URLs are left out."""
    if isinstance(value, dict):
        return {key: jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    value = str(value) if isinstance(value, os.PathLike) else value
    return hide_secrets(value) if isinstance(value, str) else value
