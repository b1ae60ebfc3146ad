"""The pages of docs/how-to/ do what they say: their commands and Python blocks run, and print what they show.

The blocks are read and compared as those of the tutorial (`test_tutorial.py`). Each page runs in a folder of its own.
"""

import os
import re
import sys
from unittest.mock import patch

import pytest
from support import ROOT
from test_tutorial import SAME_TOPICS, Session, first_difference, read_blocks, run

pytestmark = pytest.mark.slow
PAGES = sorted((ROOT / "docs" / "how-to").glob("*.md"))


def run_page(page, folder):
    """Run the blocks of a page in order, and yield each with its exit code, output and errors."""
    for name in ("scripts", "examples"):
        (folder / name).symlink_to(ROOT / name)
    session = Session()
    for block in read_blocks(page.read_text(encoding="utf-8")):
        is_python = block.kind == "python"
        yield block, session.type_in(block.source, folder) if is_python else run(block.source, folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_and_prints_what_it_shows(page, tmp_path):
    with patch.dict(os.environ), patch.object(sys, "path", list(sys.path)):  # a page may set some for itself
        blocks = list(run_page(page, tmp_path))
    assert blocks
    for block, (status, output, errors) in blocks:
        assert status == 0, f"{block.source}\n{errors}"
        different = first_difference(block.shown, output, by_form=not SAME_TOPICS)
        assert different is None, f"{block.source}\n\nthe page has\n{different}\n\nprinted was\n{output}"


def test_every_console_block_is_on_a_page_that_the_tests_run():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    with_blocks = {page for page in pages if re.search(r"^```console$", page.read_text(encoding="utf-8"), re.MULTILINE)}
    assert with_blocks <= {ROOT / "docs" / "tutorial.md", *PAGES}
    assert len(PAGES) >= 10


def test_a_page_asks_one_question():
    for page in PAGES:
        title, *rest = page.read_text(encoding="utf-8").splitlines()
        assert re.fullmatch(r"# How do I [^?]+\?", title), page.name
        assert len(rest) < 70, page.name
