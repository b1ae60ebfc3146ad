"""The report of a sweep: `sweep.csv`, `sweep.html` and a table.

It needs only the files that the points leave (`cli/points.py`). So it is the same whatever launcher ran the points, and
can be made again at any time.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.atomic import write_text
from pipeline.base.wording import counted
from pipeline.cli.compare import STAGES, find_figures, find_swept_keys, name_columns, shared_overrides
from pipeline.cli.html import page
from pipeline.cli.points import Point, count_statuses, describe_tokenizing, find_value, read_command, read_points
from pipeline.rules import shorten

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

TABLE, PAGE = "sweep.csv", "sweep.html"
WIDTH = 120  # columns of a terminal
MAX_CELL = 30  # characters of a swept value in the table


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One sweep or several, or runs, and their points in order."""

    folder: Path  # where the report was written
    points: list[Point]
    leftovers: list[str]  # folders of points that the sweep no longer has


def write_report(*sweeps: str | os.PathLike[str], into: Path | None = None) -> Report:
    """Write `sweep.csv` and `sweep.html` of one or more sweeps or runs into a folder, by default the sweep's own.

    Raises:
        ValueError: a folder is not one sweep's own, nor a run's.

    """
    folder = into or Path(sweeps[0])
    points, leftovers = [], []
    for sweep in sweeps:
        found, unplanned = read_points(Path(sweep))
        points += found if len(sweeps) == 1 else [dataclasses.replace(point, sweep=str(sweep)) for point in found]
        leftovers += unplanned
    if len(sweeps) > 1:
        points = [fill_swept(point, find_swept_keys(points)) for point in points]
    write_text(folder / TABLE, points_csv(points))
    command = read_command(Path(sweeps[0])) if len(sweeps) == 1 else ""
    write_text(folder / PAGE, page(points, folder=folder, sweeps=[Path(sweep) for sweep in sweeps], command=command))
    return Report(folder=folder, points=points, leftovers=leftovers)


def fill_swept(point: Point, keys: Sequence[str]) -> Point:
    """Return a point with its values of the keys that only other runs were given."""
    found = {key: find_value(point, key, Path(point.sweep or ".")) for key in keys if key not in point.given}
    return dataclasses.replace(
        point, given={**point.given, **{key: one for key, one in found.items() if one is not None}}
    )


def points_csv(points: Sequence[Point]) -> str:
    """Return the points as a table with a column for each swept key, by its full name."""
    swept = find_swept_keys(points)
    names = [field.name for field in dataclasses.fields(Point) if field.name not in ("given", "kept")]
    at = names.index("overrides") + 1
    names[at:at] = swept
    rows = [{**dataclasses.asdict(point), **{key: point.given.get(key) for key in swept}} for point in points]
    return table_csv(names, [{name: row[name] for name in names} for row in rows])


def csv_text(rows: Sequence[Any], names: Sequence[str] | None = None) -> str:
    """Return dataclasses of one kind as a table with a header line; without names and rows it is empty."""
    if names is None and rows:
        names = [field.name for field in dataclasses.fields(rows[0])]
    return "" if names is None else table_csv(names, [dataclasses.asdict(row) for row in rows])


def table_csv(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a table with a header line."""
    table = io.StringIO()
    writer = csv.DictWriter(table, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def describe_sweep(report: Report) -> str:
    """Return the sweep as a table for a terminal: what the points differ in, and where their time went."""
    points = report.points
    shared = shared_overrides(points)
    table = align(table_of(points))
    lines = [f"sweep   all points: {shared}" if shared else "sweep", *table]
    lines += [f"  point {_name(point)}: {point.error}" for point in points if point.error is not None]
    lines += [
        "",
        f"  {count_statuses(points)}",
        f"  {describe_tokenizing(points)}",
        f"  in {report.folder}: {TABLE}, {PAGE}",
    ]
    if kept := sum(point.kept for point in points):
        lines.insert(-2, f"  kept from an earlier start: {counted(kept, 'point')}, with the figures of then")
    if report.leftovers:
        lines.insert(-1, f"  not in this sweep, from an earlier one: {', '.join(report.leftovers)}")
    return "\n".join(lines)


def table_of(points: Sequence[Point]) -> list[list[str]]:
    """Return the head and the rows of a table: swept keys, figures that differ, seconds by stage, status.

    Figures are left out from the last on, until a line has `WIDTH` columns.
    """
    swept, figures = find_swept_keys(points), find_figures(points)
    stages = [name for name in STAGES if any(getattr(point, f"{name}_seconds") is not None for point in points)]
    while True:
        head = ["point", *name_columns(swept), *(figure.title for figure in figures)]
        head += [*stages, "all", "status"]
        rows = [head]
        for point in points:
            values = [(figure.show, getattr(point, figure.field)) for figure in figures]
            times = [getattr(point, f"{name}_seconds") for name in stages] + [point.seconds]
            rows.append(
                [
                    _name(point),
                    *(shorten(point.given.get(key, "-"), MAX_CELL) for key in swept),
                    *("-" if value is None else show(value) for show, value in values),
                    *map(_time, times),
                    point.status,
                ]
            )
        if not figures or max(map(len, align(rows)), default=0) <= WIDTH:
            return rows
        figures = figures[:-1]


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [f"  {'  '.join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))}" for row in rows]


def _time(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s" if value < 100 else f"{value:,.0f} s"


def _name(point: Point) -> str:
    number = "-" if point.point is None else f"{point.point}"
    return number if point.sweep is None else point.sweep if point.point is None else f"{point.sweep} {number}"
