"""Pictures as plain SVG text: lines with points, and labelled points. No script, no font, no other file.

`width` and `height` are in pixels. The colours are those of Okabe and Ito 2008, which people with any colour vision can
tell apart. A picture has its own text colours for light and dark, because as an image it inherits none from its page.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#777777")
LEFT, RIGHT, TOP, BOTTOM = 74, 16, 34, 46  # margins: room for the axes' labels
STYLE = (
    "text{font:12px sans-serif;fill:#222}.grid{stroke:#222;stroke-opacity:.15}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#ddd}}"
)
LETTER = 7  # pixels that a letter or a digit takes, about


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One colour of a chart: measured points and a line."""

    name: str
    points: Sequence[tuple[float, float]] = ()
    line: Sequence[tuple[float, float]] = ()
    spread: Sequence[tuple[float, float]] = field(default=())  # lowest and highest y at each point
    dashed: bool = False
    colour: int | None = None  # an index of COLOURS; by default its number among the series


def chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log: str = "",
    x_ticks: Sequence[float] | None = None,
    width: int = 640,
    height: int = 380,
) -> str:
    """Draw points and lines over two axes; `log` names the axes with a logarithmic scale: `""`, `"x"`, `"y"` or `"xy"`.

    A logarithmic axis needs values above 0. Points that are not finite are left out.
    """
    series = [_finite(one) for one in series]
    xs = [x for one in series for x, _ in (*one.points, *one.line)]
    ys = [y for one in series for _, y in (*one.points, *one.line)]
    ys += [y for one in series for ends in one.spread for y in ends]
    if not xs:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20"><title>{escape(title)}</title></svg>'
        )
    named = [
        (one.name, index if one.colour is None else one.colour)
        for index, one in enumerate(series)
        if one.name and not one.dashed  # the title says what dashes mean
    ]
    legend, top = _legend(named, width)
    height += top - TOP
    across, x_low, x_high = _scale(xs, LEFT, width - RIGHT, log="x" in log)
    upward, y_low, y_high = _scale(ys, height - BOTTOM, top, log="y" in log)
    parts = [_frame(title, x_label, y_label, width, height, top=top), *legend]
    free = 0.0  # where the labels so far end
    x_values = sorted(set(x_ticks)) if x_ticks is not None else ticks(x_low, x_high, log="x" in log)
    for tick, label in zip(x_values, label_ticks(x_values), strict=True):
        x, half = across(tick), LETTER * len(label) / 2
        parts.append(f'<path class="grid" d="M{x:.1f} {top}V{height - BOTTOM}"/>')
        if x - half >= free:
            parts.append(_text(x, height - BOTTOM + 16, label, anchor="middle"))
            free = x + half + LETTER
    y_values = ticks(y_low, y_high, log="y" in log)
    for tick, label in zip(y_values, label_ticks(y_values), strict=True):
        y = upward(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{width - RIGHT}"/>')
        parts.append(_text(LEFT - 6, y + 4, label, anchor="end"))
    for index, one in enumerate(series):
        colour = COLOURS[(index if one.colour is None else one.colour) % len(COLOURS)]
        if one.line:
            path = "L".join(f"{across(x):.1f} {upward(y):.1f}" for x, y in one.line)
            dash = ' stroke-dasharray="5 4"' if one.dashed else ""
            wider = 2.5 * sum(later.line == one.line for later in series[index + 1 :])  # equal lines show borders
            parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{1.5 + wider}"{dash}/>')
        for (x, _), (low, high) in zip(one.points, one.spread, strict=False):
            parts.append(f'<path d="M{across(x):.1f} {upward(low):.1f}V{upward(high):.1f}" stroke="{colour}"/>')
        radius = 3.5 + min(8, 1.5 * sum(bool(later.points) for later in series[index + 1 :]))  # equal points show rings
        parts += [
            f'<circle class="point" cx="{across(x):.1f}" cy="{upward(y):.1f}" r="{radius}" fill="{colour}">'
            f"<title>{escape(one.name)}: {number(x)}, {number(y)}</title></circle>"
            for x, y in one.points
        ]
    return _svg(parts, width, height)


def scatter(
    points: Sequence[tuple[float, float, str, int]],
    *,
    title: str,
    groups: Sequence[str] = (),
    width: int = 640,
    height: int = 480,
) -> str:
    """Draw labelled points (x, y, label, number of its group) without axes, for positions that have no unit.

    A label stands beside its point where it lies on no other label, and where possible on no point. One that finds no
    such place is left out; the point shows it under the pointer.
    """
    legend, top = _legend([(name, index) for index, name in enumerate(groups)], width)
    height += top - TOP
    parts = [_frame(title, "", "", width, height, top=top), *legend]
    if points:
        across, *_ = _scale([point[0] for point in points], LEFT, width - LEFT)
        upward, *_ = _scale([point[1] for point in points], height - BOTTOM, top)
        centers = [(across(x), upward(y)) for x, y, *_ in points]
        for (x, y), (*_, label, group) in zip(centers, points, strict=True):
            colour = COLOURS[group % len(COLOURS)]
            parts.append(
                f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">'
                f"<title>{escape(label)}</title></circle>"
            )
        labels = [label for *_, label, _ in points]
        for place, label in zip(place_labels(centers, labels), labels, strict=True):
            if place is not None:
                parts.append(_text(place[0], place[1], label))
    return _svg(parts, width, height)


def place_labels(centers: Sequence[tuple[float, float]], labels: Sequence[str]) -> list[tuple[float, float] | None]:
    """Return where the text of each point's label starts, on its baseline; None where there is no room for it."""
    taken: list[tuple[float, float, float, float]] = []  # left, top, right, bottom
    dots = [(x - 4, y - 4, x + 4, y + 4) for x, y in centers]
    found: list[tuple[float, float] | None] = []
    for (x, y), label in zip(centers, labels, strict=True):
        size = LETTER * len(label)
        starts = [(x + 6, y + 4), (x - 6 - size, y + 4), (x - size / 2, y - 7), (x - size / 2, y + 16)]
        boxes = {start: (start[0], start[1] - 10, start[0] + size, start[1] + 3) for start in starts}
        free = [start for start in starts if not any(_overlap(boxes[start], box) for box in taken)]
        clear = [start for start in free if not any(_overlap(boxes[start], dot) for dot in dots)]
        chosen = next(iter([*clear, *free]), None)
        if chosen is not None:
            taken.append(boxes[chosen])
        found.append(chosen)
    return found


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _legend(names: Sequence[tuple[str, int]], width: int) -> tuple[list[str], int]:
    """Return the legend, names with their colours in rows under the title, and where the data begin below it."""
    parts, x, y = [], LEFT, TOP + 2
    for name, colour in names:
        size = 18 + LETTER * len(name)
        if x > LEFT and x + size > width - RIGHT:
            x, y = LEFT, y + 16
        parts.append(f'<rect x="{x}" y="{y}" width="10" height="10" fill="{COLOURS[colour % len(COLOURS)]}"/>')
        parts.append(_text(x + 16, y + 9, name))
        x += size + 2 * LETTER
    return parts, y + 18 if names else TOP


def ticks(low: float, high: float, *, log: bool = False) -> list[float]:
    """Return round values from `low` to `high`: 1, 2 and 5 times powers of ten."""
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        steps = (1, 2, 5) if last - first < 4 else (1,)
        found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        return [tick for tick in found if low * 0.999 <= tick <= high * 1.001]
    span = high - low
    step = 10.0 ** math.floor(math.log10(span / 5))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 6)
    return [step * index for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def number(value: float, digits: int = 3) -> str:
    """Return a figure for a reader: whole numbers below a million in full, others with some digits, or with k and M."""
    if value == round(value) and abs(value) < 1e6:
        return f"{value:,.0f}"
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.{digits}g} {unit}"
    return f"{value:.{digits}g}"


def label_ticks(values: Sequence[float]) -> list[str]:
    """Return a label for each tick, with as many digits as it takes to distinguish them."""
    labels: list[str] = []
    for digits in range(3, 16):
        labels = [number(value, digits) for value in values]
        if len(set(labels)) == len(labels):
            break
    return labels


def _finite(one: Series) -> Series:
    kept = [all(map(math.isfinite, point)) for point in one.points]
    return dataclasses.replace(
        one,
        points=list(itertools.compress(one.points, kept)),
        line=[point for point in one.line if all(map(math.isfinite, point))],
        spread=list(itertools.compress(one.spread, kept)),
    )


def _scale(
    values: Sequence[float], start: float, stop: float, *, log: bool = False
) -> tuple[Callable[[float], float], float, float]:
    low, high = min(values), max(values)
    if log:
        assert low > 0, f"a logarithmic axis cannot show {low}"
        low, high = (low / 1.3, high * 1.3)
        span = math.log(high / low)
        return lambda value: start + (stop - start) * math.log(value / low) / span, low, high
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin
    return lambda value: start + (stop - start) * (value - low) / (high - low), low, high


def _frame(title: str, x_label: str, y_label: str, width: int, height: int, *, top: int) -> str:
    middle = (top + height - BOTTOM) / 2
    return "".join(
        [
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            f'<path d="M{LEFT} {top}H{width - RIGHT}V{height - BOTTOM}H{LEFT}Z" class="grid" fill="none"/>',
            _text(LEFT, 20, title),
            _text((LEFT + width - RIGHT) / 2, height - 10, x_label, anchor="middle"),
            f'<g transform="rotate(-90 14 {middle})">{_text(14, middle, y_label, anchor="middle")}</g>',
        ]
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], width: int, height: int) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    return head + "".join(parts) + "</svg>"
