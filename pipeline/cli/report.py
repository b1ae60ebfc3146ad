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
from typing import Any

from pipeline.base.atomic import write_text
from pipeline.base.wording import rate, size
from pipeline.cli.html import page
from pipeline.cli.points import Point, count_statuses, describe_tokenizing, read_points

TABLE, PAGE = "sweep.csv", "sweep.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A sweep and its points, in order."""

    folder: Path
    points: list[Point]


def write_report(folder: str | os.PathLike[str]) -> Report:
    """Write `sweep.csv` and `sweep.html` into a sweep's folder.

    Raises:
        ValueError: the folder contains no record of any point.

    """
    folder = Path(folder)
    points = read_points(folder)
    table = io.StringIO()
    writer = csv.DictWriter(table, [field.name for field in dataclasses.fields(Point)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(point) for point in points)
    write_text(folder / TABLE, table.getvalue())
    write_text(folder / PAGE, page(points, name=folder.name))
    return Report(folder=folder, points=points)


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
    return "\n".join(lines)


def _cells(point: Point) -> list[str]:
    def cell(value: float | None, form: str = ",") -> str:
        return "-" if value is None else format(value, form)

    disk = "-" if point.bytes is None else size(point.bytes)
    load = "-" if point.loader_tokens_per_second is None else rate(point.loader_tokens_per_second, 1.0, "tok")
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


def jsonable(value: Any) -> Any:
    """Turn nested values into what JSON takes: tuples become lists, paths text."""
    if isinstance(value, dict):
        return {key: jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    return str(value) if isinstance(value, os.PathLike) else value
