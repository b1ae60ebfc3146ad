"""The teaching notebook runs with a text of a user's own, and is kept without outputs.

With the default text it runs while the documentation site is built (`test_site.py`).
"""

import os
import re

import pytest
from support import ROOT

nbformat = pytest.importorskip("nbformat", reason="the notebook needs the extra dev")

NOTEBOOK = ROOT / "examples" / "from_text_to_vectors.ipynb"


@pytest.fixture(scope="module")
def cells():
    return nbformat.read(NOTEBOOK, as_version=4).cells


def test_the_notebook_is_kept_without_what_a_run_leaves(cells):
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert len(code) > 20
    assert [cell.source for cell in code if cell.outputs or cell.execution_count] == []
    assert nbformat.read(NOTEBOOK, as_version=4).metadata.keys() == {"kernelspec", "language_info"}
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))


def test_every_exercise_has_an_answer(cells):
    before, _, after = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown").partition("## Answers")
    exercises = re.findall(r"^(\d)\. ", before.split("## Exercises")[1], re.MULTILINE)
    assert exercises == re.findall(r"^\*\*(\d)\.\*\*", after, re.MULTILINE)
    assert len(exercises) >= 4


@pytest.mark.slow
def test_the_notebook_runs_with_the_teaching_text_and_has_the_books_numbers(verdict, tmp_path):
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    environment = {**os.environ, "STRIDEMILL_THE_VERDICT": str(verdict), "PYTHONPATH": str(ROOT)}
    NotebookClient(notebook, timeout=300).execute(cwd=tmp_path, env=environment)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "\n".join(output.get("text", "") for output in outputs)
    assert "5,145 tokens" in text
    assert "stride 4: 1,286 windows of 4" in text
    assert text.count("batches are equal") == 3
    assert [path.name for path in tmp_path.iterdir()] == []
    html = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert len(html) >= 8
    assert not any(re.search(r"<script|\son\w+=|javascript:", one) for one in html)
