"""The page of `show.html`: windows as tokens above their targets, on a page that fetches nothing."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from pipeline.cli.explorer import script_policy
from pipeline.cli.html import ICON, POLICY
from pipeline.cli.shown import describe_marks, describe_place, name_window, show_pairs

if TYPE_CHECKING:
    from pipeline.cli.shown import Shown
    from pipeline.tokenizer.tokenizer import Tokenizer

SHADES = ("#9fd8c2", "#f2cdb0", "#d2c7f0", "#f3c6d6")
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
h1, p, dd { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
.tokens { display: flex; flex-wrap: wrap; gap: 4px 2px; font: 13px monospace; }
.pair { display: inline-flex; flex-direction: column; align-items: center; border-top: 4px solid transparent; }
.pair span { white-space: pre; padding: 0 2px; color: #111; }
.before { border-top-color: #0072b2; } .after { border-top-color: #d55e00; } .both { border-top-color: #009e73; }
.padding { opacity: .5; border-top-color: #777; }
small { opacity: .7; } pre { white-space: pre-wrap; background: #8882; padding: .5rem; }
"""


def page(title: str, windows: list[Shown], tokenizer: Tokenizer | None, *, explorer: str = "") -> str:
    """Return the windows as an HTML page that fetches nothing."""
    body = [
        f"<h1>{escape(title)}</h1>",
        explorer,
        "<p>Each column: an input token, its ID, and its target, the next token.</p>",
    ]
    colours = {"before": "blue", "after": "orange", "both": "green", "padding": "grey"}
    for window in windows:
        body.append(
            f"<h2>W{escape(name_window(window))[1:]}</h2><p>{describe_place(window)} of the {window.split} split.</p>"
        )
        body += [f"<p>{escape(line)}.</p>" for line in describe_marks(window, colours)]
        body.append("<div class='tokens'>")
        for position, (piece, token, target, kind) in enumerate(show_pairs(window, tokenizer)):
            shades = [SHADES[(position + later) % len(SHADES)] for later in (0, 1)]
            body.append(
                f'<span class="pair {kind}"><span style="background:{shades[0]}">{escape(piece)}</span>'
                f'<small>{token}</small><span style="background:{shades[1]}">{escape(target)}</span></span>'
            )
        body.append("</div>")
        if tokenizer is not None:
            body.append(f"<pre>{escape(tokenizer.decode(window.input_ids[: window.length]))}</pre>")
        body += [f"<p>{escape(document)}</p>" for document in window.documents]
    policy = f"{POLICY}; {script_policy()}" if explorer else POLICY
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(title)}</title>{ICON}<style>{STYLE}</style>"
    head += f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    text = "\n".join(body)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{text}\n</body></html>\n'
