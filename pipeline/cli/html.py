"""A sweep as one HTML page with a table and pictures. The page's content policy forbids it to fetch anything."""

from __future__ import annotations

import os
import platform
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from pipeline.base.version import find_version
from pipeline.base.wording import counted, visible
from pipeline.cli.compare import STAGES, draw_pictures, find_swept_keys, shared_overrides
from pipeline.cli.points import Point, count_statuses, describe_tokenizing

if TYPE_CHECKING:
    from collections.abc import Sequence

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
h1, p, dd { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }
td.left, th.left { text-align: left; }
tr.failed td, tr.interrupted td, tr.unfinished td { color: #d55e00; }
tr.skipped td, tr.not-started td { opacity: .65; }
figure { margin: 1rem 0; }
@media (min-width: 76rem) { figure { display: inline-block; width: 49%; vertical-align: top; } }
svg { width: 100%; max-width: 60rem; height: auto; }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
ICON = '<link rel="icon" href="data:,">'  # without it a browser asks the page's server for one
EXPLANATION = (
    "<p>A token is in L/S windows of max_length L and stride S. With <code>window.documents=join</code>, N tokens have "
    "<code>max(0, ceil((N - L) / S))</code> windows. Naive storage keeps every window's inputs and targets as plain "
    "integers, so it grows with L/S. Shards store both columns too, but compression removes most of the overlap.</p>"
)
COLUMNS = (  # field, title, format
    ("windows", "windows", ","),
    ("delivered", "window tokens", ","),
    ("overlap", "overlap factor L/S", ".4g"),
    ("text_bytes_per_token", "bytes of text per token", ".3f"),
    ("bytes", "bytes on disk", ","),
    ("bytes_per_token", "bytes on disk per corpus token", ".3f"),
    ("naive_bytes_per_token", "naive bytes per corpus token", ".1f"),
    ("loader_tokens_per_second", "loader tokens/s", ",.0f"),
    *((f"{name}_seconds", f"seconds: {name}", ".2f") for name in STAGES),
    ("seconds", "seconds: all", ".2f"),
)


def page(points: list[Point], *, folder: Path, sweeps: Sequence[Path] = (), command: str = "") -> str:
    """Return the page of a sweep, of what command there was one, or of several, to be written into a folder."""
    swept, shared = find_swept_keys(points), shared_overrides(points)
    title = f"Sweep over {', '.join(swept)}" if swept else f"Sweep {folder.name}"
    facts = [f"{count_statuses(points)}. {describe_tokenizing(points).capitalize()}."]
    if command:
        facts.append(f"Command: <code>{escape(command)}</code>.")
    elif shared:
        facts.append(f"All points: <code>{escape(shared)}</code>.")
    sources = ", ".join(str(sweep.absolute()) for sweep in sweeps or [folder])
    machine = f"{platform.system()} {platform.machine()}, {counted(os.cpu_count() or 1, 'core')}"
    facts.append(f"stridemill {find_version()}, {datetime.now().astimezone():%Y-%m-%d %H:%M}, {machine}; {sources}")
    pictures = draw_pictures(points)
    body = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{fact if '<code>' in fact else escape(fact)}</p>" for fact in facts),
        *(f"<figure>{picture}</figure>" for picture in pictures),
        EXPLANATION if any(point.stride for point in points) else "",
        f'<div class="wide">{_table(points, swept, folder)}</div>',
        _errors(points),
    ]
    return visible(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width">{ICON}<style>{STYLE}</style></head>\n'
        "<body>\n" + "\n".join(filter(None, body)) + "\n</body></html>\n"
    )


def _table(points: list[Point], swept: list[str], folder: Path) -> str:
    """Return the points as a table of the swept keys and of the figures that not all points have in common."""
    columns = [
        (field, title, form)
        for field, title, form in COLUMNS
        if len({getattr(point, field) for point in points}) > 1
        or (len(points) == 1 and getattr(points[0], field) is not None)
    ]
    names = ["point", "status", *swept]
    head = [f'<th class="left">{escape(name)}</th>' for name in names]
    head += [f"<th>{escape(title)}</th>" for _, title, _ in columns]
    rows = []
    for point in points:
        words = [_link(point, folder), escape(point.status), *(escape(point.given.get(key, "")) for key in swept)]
        cells = [f'<td class="left">{word}</td>' for word in words]
        for field, _, form in columns:
            value = getattr(point, field)
            cells.append(f"<td>{'' if value is None else escape(format(value, form))}</td>")
        rows.append(f'<tr class="{escape(point.status.replace(" ", "-"))}">{"".join(cells)}</tr>')
    return f"<table><thead><tr>{''.join(head)}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _link(point: Point, folder: Path) -> str:
    """Return a point's number with a link to its folder, which is relative to the page where it is below it."""
    number = "run" if point.point is None else str(point.point)
    name = escape(number if point.sweep is None else f"{point.sweep} {number}")
    if point.folder is None:
        return name
    target = os.path.relpath(Path(point.sweep or folder, point.folder).absolute(), folder.absolute())
    return f'<a href="{escape(quote(target))}/">{name}</a>'


def _errors(points: list[Point]) -> str:
    found = [point for point in points if point.error is not None]
    lines = (f"<li>point {escape(str(point.point))}: {escape(point.error or '')}</li>" for point in found)
    return f"<h2>Errors</h2><ul>{''.join(lines)}</ul>" if found else ""
