"""A sweep as one HTML page with a table and pictures. The page's content policy forbids it to fetch anything."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from pipeline.base.wording import visible
from pipeline.cli.points import Point, count_statuses, describe_tokenizing
from pipeline.cli.svg import Series, chart
from pipeline.windows import count_windows

if TYPE_CHECKING:
    from collections.abc import Sequence

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }
td.left, th.left { text-align: left; }
tr.failed td, tr.interrupted td, tr.unfinished td { color: #d55e00; }
tr.skipped td, tr.not-started td { opacity: .65; }
svg { max-width: 100%; height: auto; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
ICON = '<link rel="icon" href="data:,">'  # without it a browser asks the page's server for one
EXPLANATION = (
    "<p>With <code>window.documents=join</code>, N tokens have <code>max(0, ceil((N - L) / S))</code> windows of "
    "max_length L and stride S. The line in the first picture is this formula, summed over the splits. L/S windows "
    "contain a token. Naive storage keeps every window's inputs and targets as plain integers, so it grows with L/S. "
    "Shards store both columns too, but compression removes most of the overlap.</p>"
)
COLUMNS = (
    ("point", "point", ","),
    ("status", "status", ""),
    ("overrides", "overrides", ""),
    ("max_length", "max_length L", ","),
    ("stride", "stride S", ","),
    ("overlap", "overlap factor L/S", ".4g"),
    ("windows", "windows", ","),
    ("delivered", "window tokens", ","),
    ("bytes", "bytes on disk", ","),
    ("bytes_per_token", "bytes per corpus token", ".3f"),
    ("naive_bytes_per_token", "naive bytes per corpus token", ".1f"),
    ("write_seconds", "seconds to write", ".3f"),
    ("loader_tokens_per_second", "loader tokens/s", ",.0f"),
    ("error", "error", ""),
)


def page(points: list[Point], *, name: str) -> str:
    """Return the page of a sweep; `name` is its folder's."""
    measured = [point for point in points if point.windows and point.stride]
    ticks = sorted({float(point.stride) for point in measured if point.stride})
    axes = {"x_label": "stride (tokens)", "log": "xy", "x_ticks": ticks}
    groups = group_points(measured)
    pictures = [
        chart(
            [window_series(key, group) for key, group in groups.items()],
            title="Windows by stride (points: measured, lines: formula)",
            y_label="windows",
            **axes,  # type: ignore[arg-type]
        ),
        chart(
            [one for colour, (key, group) in enumerate(groups.items()) for one in disk_series(key, group, colour)],
            title="Bytes per corpus token by stride (points: on disk, dashed: naive storage)",
            y_label="bytes per corpus token",
            **axes,  # type: ignore[arg-type]
        ),
    ]
    body = [
        f"<h1>Sweep {escape(name)}</h1>",
        f"<p>{escape(count_statuses(points))}. {escape(describe_tokenizing(points).capitalize())}.</p>",
        *(f"<figure>{picture}</figure>" for picture in (pictures if measured else [])),
        EXPLANATION,
        f'<div class="wide">{_table(points)}</div>',
    ]
    return visible(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Sweep {escape(name)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">{ICON}<style>{STYLE}</style></head>\n'
        "<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def group_points(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Group the points that differ only in the stride: one colour of a picture each."""
    groups: dict[tuple[str, ...], list[Point]] = {}
    for point in sorted(points, key=lambda one: (one.max_length or 0, one.stride or 0)):
        ours = (f"window.max_length={point.max_length}", f"window.stride={point.stride}")
        others = (part for part in point.overrides.split() if part not in ours)
        groups.setdefault((f"max_length {point.max_length}", *others), []).append(point)
    shared = set.intersection(*(set(key[1:]) for key in groups)) if groups else set()
    return {" ".join(part for part in key if part not in shared): group for key, group in groups.items()}


def window_series(name: str, points: Sequence[Point]) -> Series:
    """Return windows by stride: as written, and the formula's curve if windows cross documents."""
    first = points[0]
    line: list[tuple[float, float]] = []
    if first.documents == "join" and first.max_length and first.split_tokens:
        sizes = np.array([int(tokens) for tokens in first.split_tokens.split()])
        strides = [point.stride or 1 for point in points]
        for stride in np.unique(np.geomspace(min(strides), max(strides), 60).round().astype(int)):
            counts = count_windows(sizes, max_length=first.max_length, stride=int(stride), tail=first.tail or "drop")
            line.append((float(stride), float(counts.sum())))
    return Series(name=name, points=[(float(p.stride or 1), float(p.windows or 0)) for p in points], line=line)


def disk_series(name: str, points: Sequence[Point], colour: int) -> list[Series]:
    """Return bytes per corpus token by stride: on disk, and what plain arrays would take."""
    stored = [(float(p.stride or 1), p.bytes_per_token or 0.0) for p in points]
    naive = [(float(p.stride or 1), p.naive_bytes_per_token or 0.0) for p in points]
    return [
        Series(name=name, points=stored, line=stored, colour=colour),
        Series(name=f"{name}, naive", line=naive, dashed=True, colour=colour),
    ]


def _table(points: list[Point]) -> str:
    head = "".join(f"<th{_left(form)}>{escape(title)}</th>" for _, title, form in COLUMNS)
    rows = []
    for point in points:
        cells = []
        for field, _, form in COLUMNS:
            value = getattr(point, field)
            shown = format(value, form) if isinstance(value, int | float) else "" if value is None else str(value)
            cells.append(f"<td{_left(form)}>{escape(shown)}</td>")
        rows.append(f'<tr class="{escape(point.status.replace(" ", "-"))}">{"".join(cells)}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _left(form: str) -> str:
    return "" if form else ' class="left"'
