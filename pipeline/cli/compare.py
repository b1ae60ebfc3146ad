"""What the points of a sweep differ in: the keys that were swept, the figures that they changed, and their pictures."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.base.wording import rate, size
from pipeline.cli.svg import Series, chart
from pipeline.windows import count_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from pipeline.cli.points import Point

STAGES = ("start", "tokenize", "write", "verify", "load")  # where a point's time goes
LOG_RATIO = 4  # an axis is logarithmic from this ratio of its ends on
AXES = ("window.stride", "window.max_length")  # the keys that are an axis before others


class Figure(NamedTuple):
    """A figure of a point, in a table for a terminal and in a picture."""

    field: str
    title: str  # of its column
    label: str  # of its axis
    show: Callable[[Any], str]


FIGURES = (
    Figure("windows", "windows", "windows", lambda value: f"{value:,}"),
    Figure("bytes_per_token", "B/token", "bytes on disk per corpus token", lambda value: f"{value:.2f}"),
    Figure("text_bytes_per_token", "text/token", "bytes of text per token", lambda value: f"{value:.2f} B"),
    Figure("bytes", "on disk", "bytes on disk", size),
    Figure("loader_tokens_per_second", "loader", "loader tokens/s", lambda value: rate(value, 1.0, "tok")),
    Figure("delivered", "window tokens", "window tokens", lambda value: f"{value:,}"),
)
PICTURES = ("windows", "bytes_per_token", "text_bytes_per_token", "loader_tokens_per_second")


def find_swept_keys(points: Sequence[Point]) -> list[str]:
    """Return the keys whose values differ between points, in the order of their overrides."""
    keys = dict.fromkeys(key for point in points for key in point.given)
    return [key for key in keys if len({point.given.get(key) for point in points}) > 1]


def shared_overrides(points: Sequence[Point]) -> str:
    """Return the overrides that all points have."""
    swept = find_swept_keys(points)
    first = points[0].given if points else {}
    return " ".join(f"{key}={value}" for key, value in first.items() if key not in swept)


def name_columns(keys: Sequence[str]) -> list[str]:
    """Return short titles for keys: the last part of a name, unless two keys share it."""
    last = [key.rpartition(".")[2] for key in keys]
    return [short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)]


def find_figures(points: Sequence[Point]) -> list[Figure]:
    """Return the figures in which points differ; for a single point, all that it has."""
    found = [(figure, [getattr(point, figure.field) for point in points]) for figure in FIGURES]
    known = [(figure, {value for value in values if value is not None}) for figure, values in found]
    return [figure for figure, values in known if len(values) > (1 if len(points) > 1 else 0)]


def find_axis(points: Sequence[Point]) -> str | None:
    """Return the swept key that is the x axis: one with numbers; the stride and the length come first."""
    numeric = [key for key in find_swept_keys(points) if all(_number(one, key) is not None for one in points)]
    return next((key for key in (*AXES, *numeric) if key in numeric), None)


def draw_pictures(points: Sequence[Point]) -> list[str]:
    """Draw each figure that differs over the swept numbers; without a swept number there is no picture."""
    measured = [point for point in points if point.status == "done"]
    axis = find_axis(measured)
    if axis is None:
        return []
    figures = {figure.field: figure for figure in find_figures(measured)}
    shown = [name for name in PICTURES if name in figures]
    if len(shown) > 1 and not axis.startswith("loader."):  # its rate differs between any two runs
        shown = [name for name in shown if name != "loader_tokens_per_second"]
    return [_draw(measured, axis, figures[name]) for name in shown]


def group_points(points: Sequence[Point], axis: str) -> dict[str, list[Point]]:
    """Group the points that differ only along an axis: one series of a picture each."""
    others = [key for key in find_swept_keys(points) if key != axis]
    groups: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda one: _number(one, axis) or 0):
        values = zip(name_columns(others), (point.given.get(key, "default") for key in others), strict=True)
        groups.setdefault(" ".join(f"{name}={value}" for name, value in values), []).append(point)
    return groups


def _draw(points: Sequence[Point], axis: str, figure: Figure) -> str:
    groups = group_points(points, axis)
    series, note = [], ""
    for colour, (name, group) in enumerate(groups.items()):
        values = [(_number(one, axis) or 0.0, getattr(one, figure.field)) for one in group]
        measured = [(x, float(y)) for x, y in values if y is not None]
        if figure.field == "windows" and axis == "window.stride":
            note = " (lines: the formula)"
            series.append(Series(name=name, points=measured, line=_formula(group), colour=colour))
            continue
        series.append(Series(name=name, points=measured, line=measured, colour=colour))
        if figure.field == "bytes_per_token":
            note = " (dashed: naive storage)"
            naive = [(_number(one, axis) or 0.0, one.naive_bytes_per_token or 0.0) for one in group]
            series.append(Series(name=f"{name}, naive", line=naive, dashed=True, colour=colour))
    xs = sorted({x for one in series for x, _ in one.points})
    ys = [y for one in series for _, y in (*one.points, *one.line)]
    spread = {name: values for name, values in (("x", xs), ("y", ys)) if values}
    log = "".join(name for name, values in spread.items() if 0 < min(values) * LOG_RATIO <= max(values))
    title = f"{figure.label[0].upper()}{figure.label[1:]} by {axis}{note}"
    return chart(series, title=title, x_label=axis, y_label=figure.label, log=log, x_ticks=xs)


def _formula(points: Sequence[Point]) -> list[tuple[float, float]]:
    """Return the number of windows at all strides between the points' by the formula, if windows cross documents."""
    first = points[0]
    if first.documents != "join" or not first.max_length or not first.split_tokens:
        return []
    sizes = np.array([int(tokens) for tokens in first.split_tokens.split()])
    strides = [point.stride or 1 for point in points]
    line = []
    for stride in np.unique(np.geomspace(min(strides), max(strides), 60).round().astype(int)):
        counts = count_windows(sizes, max_length=first.max_length, stride=int(stride), tail=first.tail or "drop")
        line.append((float(stride), float(counts.sum())))
    return line


def _number(point: Point, key: str) -> float | None:
    """Return a point's value of a key as a number, if it is a finite one. A window's key has a value by default."""
    given = point.given.get(key)
    if given is None and key in AXES:
        given = str(point.stride if key == "window.stride" else point.max_length)
    with contextlib.suppress(TypeError, ValueError):
        value = float(given) if given is not None else math.nan
        return value if math.isfinite(value) else None
    return None
