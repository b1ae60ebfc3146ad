"""The documentation site builds without a warning, all its links lead somewhere, and every public name is on it."""

import inspect
import re
from html.parser import HTMLParser

import pytest
from support import ROOT, run_python

import pipeline

pytestmark = pytest.mark.slow


class Links(HTMLParser):
    """The links, files and anchors of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.links.append((tag, value))
            if name in ("id", "name") and value:
                self.anchors.add(value)


def read_page(file):
    return Links(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def site(once):
    """The built site: the folder, by the command of `make docs`."""

    def build(folder):
        (command,) = re.findall(r"^SITE = (.*) \.$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        words = command.replace("build/doctrees", str(folder / "doctrees")).split()
        done = run_python(*words, ".", folder / "site", timeout=300, STRIDEMILL_THE_VERDICT="")
        assert done.returncode == 0, done.stderr

    return once("site", build) / "site"


@pytest.fixture(scope="module")
def pages(site):
    return {file: read_page(file) for file in site.rglob("*.html")}


def broken(pages):
    """The links of pages that lead to no file or no anchor, and files that a page loads from elsewhere."""
    found = []
    for page, content in pages.items():
        for tag, link in content.links:
            target, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", target):
                if tag != "a" and not target.startswith("data:"):
                    found.append((page.name, link))
                continue
            file = (page.parent / target.partition("?")[0]).resolve() if target else page
            if not file.is_file() or (anchor and file in pages and anchor not in pages[file].anchors):
                found.append((page.name, link))
    return found


def test_every_link_of_the_site_leads_somewhere_and_it_loads_nothing_from_elsewhere(pages):
    assert len(pages) > 15
    assert sum(len(page.links) for page in pages.values()) > 1000
    assert broken(pages) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<a id="here" href="#here">x</a><a href="gone.html"><a href="#gone"><script src="https://x.org/a.js">'
    )
    assert broken({page: read_page(page)}) == [
        ("page.html", "gone.html"),
        ("page.html", "#gone"),
        ("page.html", "https://x.org/a.js"),
    ]


def test_every_page_of_the_docs_is_on_the_site(site):
    sources = [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in ("README.md", "CHANGELOG.md"))]
    assert len(sources) > 10
    for source in sources:
        page = site / source.relative_to(ROOT).with_suffix(".html")
        assert page.is_file(), source.name
        assert page.with_suffix(".md").is_file() or source.stem == "index"


def test_the_notebook_ran_and_shows_what_it_printed(site):
    page = (site / "examples" / "from_text_to_vectors.html").read_text(encoding="utf-8")
    assert page.count("batches are equal") == 3 + 1  # and once in the source
    assert "Traceback" not in page
    assert "closest after" in page


def test_every_public_name_is_in_the_reference_with_its_docstring(site):
    page = (site / "docs" / "reference.html").read_text(encoding="utf-8")
    described = set(re.findall(r'<dt [^>]*id="pipeline\.(\w+)"', page))
    assert described == set(pipeline.__all__)
    for method in ("ShardLoader.state_dict", "TokenEmbedding.forward", "Tokenizer.encode", "Batch.num_targets"):
        assert f'id="pipeline.{method}"' in page
    assert "class Batch" not in page
    for field in ("input_ids", "window_ids", "line"):  # fields of classes with the comments of their source
        assert re.search(rf"<strong>{field}</strong>", page), field
    assert "``" not in re.sub(r"<[^>]*>", "", page)


def test_language_models_find_every_page_and_every_docstring(site):
    listed = re.findall(r"\]\(([^)]+)\)", (site / "llms.txt").read_text(encoding="utf-8"))
    complete = (site / "llms-full.txt").read_text(encoding="utf-8")
    assert len(listed) > 10
    for page in listed:
        assert (site / page).read_text(encoding="utf-8").strip() in complete
    for name in pipeline.__all__:
        assert inspect.getdoc(getattr(pipeline, name)) in complete
    assert inspect.getdoc(pipeline.ShardLoader.state_dict) in complete
