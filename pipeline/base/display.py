"""What a notebook shows of tokens, windows and batches: small pieces of HTML, and plain text for a terminal.

All text is escaped, since it comes from documents of any author. Colours are written into each element, because
notebooks drop style sheets. A token's dark text has a light background of its own, so it is readable on a dark page.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from html import escape
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.base.wording import counted, visible
from pipeline.rules import reject

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SHADES = ("#9fd8c2", "#f2cdb0", "#d2c7f0", "#f3c6d6")  # neighbouring tokens take different ones
MOST_ROWS, MOST_TOKENS, MOST_NUMBERS = 8, 128, 8  # shown of a batch, of a text or window, and of a row of numbers
CHIP = "white-space:pre;padding:0 3px;border-radius:3px;color:#111;background:"
COLUMN = "display:inline-flex;flex-direction:column;align-items:center;margin:2px 1px"
SMALL = "font-size:75%;opacity:.75"


def typed(piece: str) -> str:
    r"""Return a token's text as one would type it: \n for a line feed, \xNN for a part of a character."""
    return repr(piece)[1:-1].replace("\\\\x", "\\x")


def html_table(title: str, rows: Mapping[str, str]) -> str:
    """Return names and values as an HTML table."""
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return f"<p>{escape(title)}</p><table>{cells}</table>"


def numbers_table(columns: Mapping[str, Sequence[object]]) -> str:
    """Return the first rows of several columns as an HTML table; a row of numbers is cut after the first ones."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    rows = list(zip(*columns.values(), strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td><code>{escape(_cut(cell))}</code></td>' for cell in row)}</tr>" for row in rows[:MOST_ROWS]
    )
    more = f"<p>... and {counted(len(rows) - MOST_ROWS, 'more row')}</p>" if len(rows) > MOST_ROWS else ""
    return f"<table><tr>{head}</tr>{body}</table>{more}"


def _cut(cell: object) -> str:
    if not isinstance(cell, list):
        return str(cell)
    return " ".join(map(str, cell[:MOST_NUMBERS])) + (" ..." if len(cell) > MOST_NUMBERS else "")


def find_rows(tokens: Any) -> list[list[list[int]]]:
    """Return the rows of input IDs, and those of target IDs if there are any, of whatever has them.

    Raises:
        ConfigError: there are no IDs, or targets that are not one for each input.

    """
    parts = (tokens,)
    if hasattr(tokens, "keys"):
        parts = tuple(tokens[name] for name in ("input_ids", "target_ids") if name in list(tokens.keys()))
    elif isinstance(tokens, tuple) and not any(isinstance(one, Integral) for one in tokens):
        parts = tokens
    lists = [one.tolist() if hasattr(one, "tolist") else one for one in parts]
    if len(parts) not in (1, 2) or not all(isinstance(one, list | tuple | range) for one in lists):
        reject("tokens", "must be a text, IDs, or a window or batch with input_ids", tokens)
    rows = [[list(row) for row in one] if one and isinstance(one[0], list) else [list(one)] for one in lists]
    if len({tuple(map(len, one)) for one in rows}) > 1:
        reject("tokens", "must have a target for each input", tokens)
    return rows


class Token(NamedTuple):
    """One position: an input token and, in a window, its target."""

    text: str
    id: int
    target: str = ""  # the target's text, or -100 where it does not count in the loss


@dataclass(frozen=True, repr=False)
class TokenView:
    """Tokens as a notebook or a terminal shows them: one row for a text or a window, several for a batch."""

    rows: list[list[Token]]
    num_rows: int  # with those that are not shown
    num_tokens: int  # of the longest row

    def __repr__(self) -> str:
        """Show inputs above their IDs and targets, in as many lines as the terminal's width needs."""
        room = shutil.get_terminal_size((110, 24)).columns
        lines = [line for row in self.rows for line in [*_lines(row, room), ""]]
        return "\n".join([*lines[: None if self._more() else -1], *self._more()])

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<div style="margin:.5em 0">{"".join(map(_column, range(len(row)), row))}</div>' for row in self.rows
        )
        more = "".join(f"<p>{escape(line)}</p>" for line in self._more())
        return f'<div style="font:13px/1.5 monospace;overflow-x:auto">{rows}{more}</div>'

    def _more(self) -> list[str]:
        found = []
        if self.num_tokens > MOST_TOKENS:
            found.append(f"... and {counted(self.num_tokens - MOST_TOKENS, 'more token')} in a row")
        if self.num_rows > len(self.rows):
            found.append(f"... and {counted(self.num_rows - len(self.rows), 'more row')}")
        return found


def _column(position: int, token: Token) -> str:
    """Return a token with its ID and, in a window, its target below it."""
    shade, next_shade = SHADES[position % len(SHADES)], SHADES[(position + 1) % len(SHADES)]  # a token keeps its colour
    text = f'<span style="{CHIP}{shade}">{escape(typed(token.text))}</span><span style="{SMALL}">{token.id}</span>'
    if token.target:
        text += f'<span style="{CHIP}{next_shade}">{escape(typed(token.target))}</span>'
    return f'<span style="{COLUMN}">{text}</span>'


def _lines(row: list[Token], room: int) -> list[str]:
    """Return a row of tokens as lines of a terminal."""
    lines: list[str] = []
    cells = [(visible(typed(one.text)), str(one.id), visible(typed(one.target))) for one in row]
    while cells:
        used, count = 8, 0
        while count < len(cells) and (count == 0 or used + max(map(len, cells[count])) < room):
            used += max(map(len, cells[count])) + 1
            count += 1
        shown, cells = cells[:count], cells[count:]
        for name, part in zip(("input", "id", "target"), zip(*shown, strict=True), strict=True):
            if any(part):
                padded = (text.ljust(max(map(len, cell))) for text, cell in zip(part, shown, strict=True))
                lines.append(f"{name:<8}{' '.join(padded)}".rstrip())
    return lines
