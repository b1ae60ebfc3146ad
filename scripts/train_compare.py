"""The points of a training sweep side by side: `compare.csv`, the curves in `compare.svg`, and a table."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

from training import METRICS

from pipeline.base.atomic import write_text
from pipeline.cli.compare import find_swept_keys, name_columns, shared_overrides
from pipeline.cli.points import Point, count_statuses, read_points
from pipeline.cli.report import Report, align, table_csv
from pipeline.cli.svg import Series, chart

if TYPE_CHECKING:
    from pathlib import Path

COMPARED, CURVES = "compare.csv", "compare.svg"
FIGURES = {  # of a run's last metrics -> how the table shows it
    "step": "{:,}",
    "tokens": "{:,}",
    "train_loss": "{:.4f}",
    "validation_loss": "{:.4f}",
    "bits_per_byte": "{:.4f}",
    "tokens_per_second": "{:,.0f}",
}


def compare_points(folder: Path) -> Report:
    """Write the comparison of a sweep's points into its folder, and print it."""
    points, leftovers = read_points(folder)
    swept = find_swept_keys(points)
    trained = [_last_metrics(folder, point) for point in points]
    names = ["point", "status", *swept, *FIGURES, "seconds", "overrides", "error", "folder"]
    rows = [
        {
            **{name: getattr(point, name) for name in names if hasattr(point, name)},
            "tokens": None,
            **point.given,
            **last,
        }
        for point, last in zip(points, trained, strict=True)
    ]
    write_text(folder / COMPARED, table_csv(names, [{name: row.get(name) for name in names} for row in rows]))
    curves = [(point, curve) for point in points if (curve := read_curve(folder, point))]
    keys = name_columns(swept)
    series = [
        Series(
            name=" ".join(f"{key}={point.given.get(full, '-')}" for key, full in zip(keys, swept, strict=True)),
            points=curve,
            line=curve,
        )
        for point, curve in curves
    ]
    write_text(folder / CURVES, chart(series, title="Validation loss", x_label="step", y_label="nats per token"))
    table = [["point", *keys, *(name.replace("_", " ") for name in FIGURES), "seconds", "status"]]
    for point, last in zip(points, trained, strict=True):
        figures = [form.format(last[name]) if name in last else "-" for name, form in FIGURES.items()]
        time = "-" if point.seconds is None else f"{point.seconds:.1f}"
        given = [point.given.get(key, "-") for key in swept]
        table.append(["-" if point.point is None else str(point.point), *given, *figures, time, point.status])
    shared = shared_overrides(points)
    print(f"sweep   all points: {shared}" if shared else "sweep")
    print("\n".join([*align(table), *(f"  point {one.point}: {one.error}" for one in points if one.error)]))
    print(f"\n  {count_statuses(points)}\n  in {folder}: {COMPARED}, {CURVES}", flush=True)
    return Report(folder=folder, points=points, leftovers=leftovers)


def _last_metrics(folder: Path, point: Point) -> dict[str, Any]:
    """Return the last figures of a point that has finished."""
    if point.folder is None or not (summary := folder / point.folder / "summary.json").is_file():
        return {}
    found: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8")).get("train") or {}
    return found


def read_curve(folder: Path, point: Point) -> list[tuple[float, float]]:
    """Return a point's validation losses by step, as far as it came."""
    if point.folder is None or not (file := folder / point.folder / METRICS).is_file():
        return []
    with file.open(newline="", encoding="utf-8") as rows:
        return [(float(row["step"]), float(row["validation_loss"])) for row in csv.DictReader(rows)]
