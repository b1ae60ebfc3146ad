"""The documentation site: `make docs` builds it from the Markdown pages, the notebook and the docstrings.

The pages are plain Markdown, so they read well on a Git host too. What only the site needs is added while it is built:
the navigation, from the lists of `docs/index.md`; the docstrings, at the names that `docs/reference.md` lists; and
`llms.txt` with the pages as Markdown, for language models.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pipeline

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]  # also Sphinx's source folder, so that all relative links stay as they are
LISTED = re.compile(r"^- \[(.+)\]\((\S+)\): (.+)$", re.MULTILINE)  # a page in a list of docs/index.md
NAMED = re.compile(r"^- \[`(\w+)`\]\(\S+\).*$", re.MULTILINE)  # a name in a list of docs/reference.md
CODE = re.compile(r"(?m)(?<=\S\n\n)((?:^ {4}.*\n(?:\n(?= {4}))?)+)")  # below `Args:` and the like is no empty line
FOLDER = re.compile(r"\[([^\[\]]+)\]\((?:\.\./)?(?:conf|examples)/?\)")

project = "stridemill"
author = "The stridemill authors"
release = version = pipeline.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb"]
root_doc = "docs/index"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LOG.md", "docs/**", "examples/*.ipynb"]
exclude_patterns = ["**/.*", ".*", "build", "dist", "outputs", "tests", "pipeline"]
highlight_language = "none"

html_theme = "furo"
html_title = f"stridemill {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = html_show_sphinx = html_copy_source = False

autodoc_member_order = "bysource"
napoleon_use_ivar = True
napoleon_use_rtype = False

myst_heading_anchors = 4  # the anchors of a Git host
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True


# --- pages ---


def add_to_page(_app: Sphinx, page: str, source: list[str]) -> None:
    """Add to a page what only the site has."""
    if source[0].startswith("{"):
        return  # a notebook
    source[0] = FOLDER.sub(r"\1", source[0])  # a folder is no page
    if page == root_doc:
        source[0] += navigation(source[0])
    if page == "docs/reference":
        source[0] = NAMED.sub(lambda found: directive(found[1]), source[0])


def navigation(text: str) -> str:
    """Return a hidden table of contents for each heading of the start page, of the pages that are listed below it."""
    tables = []
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        pages = [f"{title} <{target.rpartition('.')[0]}>" for title, target, _ in LISTED.findall(part)]
        tables += ["", "```{toctree}", ":hidden:", f":caption: {part.splitlines()[0]}", "", *pages, "```"]
    return "\n".join(tables)


def directive(name: str) -> str:
    """Return what puts a public name's docstring on the page."""
    kind = "class" if inspect.isclass(getattr(pipeline, name)) else "function"
    options = "   :members:\n" if kind == "class" else ""
    return f"```{{eval-rst}}\n.. auto{kind}:: pipeline.{name}\n{options}\n```\n"


# --- docstrings ---


def field_lines(kind: type) -> list[str]:
    """Return the fields of a class as lines of its docstring, each with the comment that its source has."""
    names = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else kind._fields
    lines, comments = [], []
    for line in inspect.getsource(kind).splitlines():
        if comment := re.match(r" {4}# (.*)", line):
            comments.append(comment[1])
        elif field := re.match(r" {4}(\w+): [^#]*(?:# (.*))?", line):
            if field[1] in names and not field[1].startswith("_"):
                lines.append(f"    {field[1]}: {' '.join(filter(None, [*comments, field[2]]))}")
            comments = []
    return lines


def improve_docstring(_app: Sphinx, kind: str, _name: str, item: object, _options: object, lines: list[str]) -> None:
    """Turn a docstring's Markdown into what autodoc reads, and add a class's fields where it does not list them."""
    text = "\n".join(lines)
    if kind == "class" and (dataclasses.is_dataclass(item) or hasattr(item, "_fields")) and "Args:" not in text:
        text = "\n".join([text, "", "Attributes:", *field_lines(item), ""])
    *others, last = CODE.split(text + "\n")
    parts = [*map(mark_code, others[0::2]), mark_code(last)]
    blocks = [f".. code-block:: python\n\n{block}\n" for block in others[1::2]]
    lines[:] = "".join(part + block for part, block in zip(parts, [*blocks, ""], strict=True)).splitlines()


def mark_code(text: str) -> str:
    """Turn `code` into what reStructuredText marks as code."""
    return re.sub(r"(?<!`)`([^`\n]+)`(?!`)", r"``\1``", text)


# --- for language models ---


def write_llms(app: Sphinx, exception: Exception | None) -> None:
    """Write `llms.txt`, a list of the pages as Markdown; `llms-full.txt`, all of them; and a page at the root."""
    if exception or app.builder.format != "html":
        return
    start = (ROOT / f"{root_doc}.md").read_text(encoding="utf-8")
    head, *parts = re.split(r"^## ", start, flags=re.MULTILINE)
    title, summary, *_ = head.split("\n\n")
    listed, texts = [title, "", "> " + " ".join(summary.split())], []
    for part in parts:
        listed += ["", f"## {part.splitlines()[0]}", ""]
        for name, target, words in LISTED.findall(part):
            file = (ROOT / "docs" / target).resolve()
            page = file.relative_to(ROOT).with_suffix(".md").as_posix()
            listed.append(f"- [{name}]({page}): {words}")
            texts.append(page_text(file).strip() + "\n")
            (app.outdir / page).write_text(texts[-1], encoding="utf-8")
    (app.outdir / "llms.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
    (app.outdir / "llms-full.txt").write_text("\n\n".join(texts), encoding="utf-8")
    to_start = f'<!DOCTYPE html><title>{project}</title><meta http-equiv="refresh" content="0; url={root_doc}.html">'
    (app.outdir / "index.html").write_text(to_start + f'<a href="{root_doc}.html">{project}</a>\n', encoding="utf-8")


def page_text(file: Path) -> str:
    """Return a page as Markdown: of a notebook its cells, and the reference with its docstrings."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
        return "\n\n".join(body if kind == "markdown" else f"```python\n{body}\n```" for kind, body in cells)
    return NAMED.sub(lambda found: docstrings(found[1]), text) if file.stem == "reference" else text


def docstrings(name: str) -> str:
    """Return a public name with its docstring and those of its methods, as Markdown."""
    item = getattr(pipeline, name)
    found = [(name, item)]
    if inspect.isclass(item):
        members = {key: one for key, one in vars(item).items() if callable(one) or isinstance(one, property)}
        found += [(f"{name}.{key}", one) for key, one in members.items() if key[0] != "_" and inspect.getdoc(one)]
    return "\n\n".join(f"### `{title}{signature(one)}`\n\n{inspect.getdoc(one)}" for title, one in found)


def signature(item: object) -> str:
    """Return the arguments of a function or class in brackets; nothing for a property or an exception."""
    try:
        return str(inspect.signature(item))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""


def leave_out(_app: Sphinx, _kind: str, _name: str, item: object, _skip: object, _options: object) -> bool | None:
    """Leave out the fields of a named tuple, which are listed with the class."""
    return True if (inspect.getdoc(item) or "").startswith("Alias for field number") else None


def short_signature(
    _app: Sphinx, _kind: str, _name: str, item: object, _options: object, *_signature: str
) -> tuple[str, None] | None:
    """Leave out the arguments of classes that users do not call: the list of their fields says the same."""
    has_fields = dataclasses.is_dataclass(item) or hasattr(item, "_fields")
    return ("", None) if has_fields and "Args:" not in (inspect.getdoc(item) or "") else None


def setup(app: Sphinx) -> None:
    """Tell Sphinx of the functions above."""
    app.connect("source-read", add_to_page)
    app.connect("autodoc-process-docstring", improve_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", short_signature)
    app.connect("autodoc-skip-member", leave_out)
    app.connect("build-finished", write_llms)
