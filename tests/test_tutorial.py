"""docs/tutorial.md does what it says: its commands and Python blocks run in order, and print what it shows.

A `console` block holds commands (`$ ...`), each followed by its output; a `python` block is typed into one session, and
the `text` block below it is what it printed. Lines are compared after times, rates and dates are taken out. Sizes and
numbers with a decimal point may differ by a tenth, since files differ a little between releases of pyarrow; all else
must be equal. `...` stands for lines left out.

Two things are compared by their form alone, with numbers and quoted pieces taken out. Full-size training runs stand in
the tutorial as they are, and run here at the size that `SMALLER` gives them. And under a Python whose help topics, the
default corpus, are others than the tutorial's, the counts are others too.
"""

import code
import contextlib
import csv
import hashlib
import io
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from support import ROOT, run_program, write_config_files

pytestmark = pytest.mark.slow
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
COMMANDS, SESSIONS = 17, 18  # what must be found in it, so that nothing is passed over

VERDICT = "the-verdict.txt"  # commands that name it need a copy of it
STUDY = "python scripts/study.py experiment=stride_study"
NEIGHBORS = "python scripts/neighbors.py experiment=neighbors"
QUICK = f"{STUDY}_quick study.seeds=[0] study.evaluation_strides=[64,32]"
SMALLER = {
    "python scripts/train.py": "python scripts/train.py train.steps=4 model.layers=1 embedding.dim=16",
    STUDY: f"{QUICK} train.steps=8",
    f"{STUDY} 'study.strides=[64]' train.steps=2702": (
        f"{QUICK} study.strides=[64] train.steps=120 corpus=text corpus.path=scripts/*.py split.validation=0.5"
    ),
    NEIGHBORS: f"{NEIGHBORS}_quick train.steps=2 train.validate_every=1",
}
TOPICS = "6061bdb5"  # sha256, its beginning: the help topics of the Python that the tutorial was made with
SAME_TOPICS = hashlib.sha256(repr(sorted(topics.items())).encode()).hexdigest().startswith(TOPICS)

# What may stand in the text without standing in an output: facts, each with its source.
FACTS = {
    "50,000": "GPT-2's merges: 50,257 IDs less 256 bytes and end-of-text",
    "0.01": "a size of differences, of no output",
    "19.44": "Hugging Face's perplexity guide",
    "16.44": "the same",
    "1,024": "the same",
    "2305.16264": "Muennighoff et al. 2023",
    "1907.12009": "Gao et al. 2019",
    "3.11": "Python's release, part of 3.11.7",
}

UNSTEADY = re.compile(
    r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-\d+"  # folders with a date
    r"|[\d.,]+(e-\d+)? ?[kMGT]? ?(B|windows|tokens|tok)?/s\b"
    r"|[\d.,]+(e-\d+)? s\b"
    r"|(?<= by )(gigatoken|tiktoken)\b"
    r"|(?<=\bin )\S*(?=outputs/)"
)
SIZE = re.compile(r"\b[\d.]+ [kMG]?B\b|\d+\.\d+")
FORM = re.compile(r"'[^']*'|\"[^\"]*\"|[-+]?\d[\d.,]*")


@dataclass(frozen=True)
class Block:
    """One command, or one Python block, with what the tutorial says that it prints."""

    number: int
    kind: str
    source: str
    shown: str

    def __str__(self):
        return f"{self.number}-{re.sub(r'[^a-z_0-9]+', '-', self.source.splitlines()[0].lower())[:50]}"


def read_blocks(text):
    """Every command and Python block of a page, in order."""
    found = []
    fences = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for (kind, body), (below, output) in zip(fences, [*fences[1:], ("", "")], strict=True):
        if kind == "python":
            found.append((kind, body, output if below == "text" else ""))
        elif kind == "console":
            for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                command, _, shown = part.partition("\n")
                found.append((kind, command, shown))
    return [Block(number, *block) for number, block in enumerate(found, start=1)]


BLOCKS = read_blocks(TUTORIAL)


def steady(line):
    return UNSTEADY.sub("~", " ".join(line.split()))


def kind_of(line):
    """A line's words without its numbers and quoted text; a noun after a number is in the singular."""
    return re.sub(r"(?<=~ )([a-z]+?)s?\b", r"\1", FORM.sub("~", steady(line)))


def agree(shown, real, *, by_form):
    """Whether a line of the tutorial is a line that was printed."""
    shown, real = steady(shown), steady(real)
    if by_form:
        return kind_of(shown) == kind_of(real)
    if SIZE.sub("~", shown) != SIZE.sub("~", real):
        return False
    pairs = zip(SIZE.findall(shown), SIZE.findall(real), strict=True)
    return all(
        one.split()[1:] == two.split()[1:]
        and abs(float(one.split()[0]) - float(two.split()[0])) <= 0.1 * float(one.split()[0])
        for one, two in pairs
    )


def first_difference(shown, real, *, by_form=False):
    """The first line of the tutorial that was not printed where it says so; None if all were, and nothing more."""
    shown, real = [[line for line in text.splitlines() if line.strip()] for text in (shown, real)]
    places = {0}  # how many printed lines may have been used up
    for line in shown:
        if line == "...":
            places = set(range(min(places), len(real) + 1))
        else:
            places = {at + 1 for at in places if at < len(real) and agree(line, real[at], by_form=by_form)}
        if not places:
            return line
    return None if len(real) in places else f"(nothing more), but there is: {real[max(places)]}"


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What each block printed: all of them run once, in order; None where a copy of The Verdict is needed."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "scripts").symlink_to(ROOT / "scripts")
    verdict = os.environ.get("STRIDEMILL_THE_VERDICT")
    if verdict:
        (folder / VERDICT).write_bytes(Path(verdict).read_bytes())
    session = Session()
    found = {}
    for block in BLOCKS:
        if VERDICT in block.source and not verdict:
            found[block.number] = None
        elif block.kind == "python":
            found[block.number] = session.type_in(block.source, folder)
        else:
            found[block.number] = run(block.source, folder)
    return found


def run(command, folder):
    """A command's exit code, output and errors; a full-size run at its smaller size."""
    words = shlex.split(SMALLER.get(command, command))
    assert words[0] == "python", f"{command}: a command of the tutorial begins with python"
    done = run_program(*words[1:], cwd=folder, timeout=500)
    return done.returncode, done.stdout, done.stderr


class Session(code.InteractiveConsole):
    """Python as one who types the blocks in sees it: line by line, with the values of expressions shown."""

    def __init__(self):
        super().__init__()
        self.errors = ""

    def write(self, data):
        self.errors += data

    def type_in(self, source, folder):
        output = io.StringIO()
        self.errors = ""
        with contextlib.chdir(folder), contextlib.redirect_stdout(output):
            for line in [*source.splitlines(), ""]:
                self.push(line)
        return int(bool(self.errors)), output.getvalue(), self.errors


def test_all_of_the_tutorial_is_found():
    assert sum(block.kind == "console" for block in BLOCKS) == COMMANDS
    assert sum(block.kind == "python" for block in BLOCKS) == SESSIONS
    assert set(SMALLER) <= {block.source for block in BLOCKS}
    for block in BLOCKS:
        assert block.shown.replace("...", "").strip(), f"{block} has no output that could be compared"
    assert TUTORIAL.count("```") == 2 * len(re.findall(r"^```(?:console|python|text)$", TUTORIAL, re.MULTILINE))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_runs_and_prints_what_the_tutorial_shows(block, printed):
    if printed[block.number] is None:
        pytest.skip(f"STRIDEMILL_THE_VERDICT does not name {VERDICT}, which the command reads")
    status, output, errors = printed[block.number]
    assert status == 0, f"{block.source}\n{errors}"
    shown = block.shown
    if block.source in SMALLER:  # fewer strides, seeds and steps: each kind of line is there, not each line
        kinds = {kind_of(line) for line in output.splitlines()}
        lines = [line for line in shown.splitlines() if line.strip() and line != "..."]
        assert len(lines) > 3
        missing = [line for line in lines if kind_of(line) not in kinds]
        assert not missing, output
    else:
        different = first_difference(shown, output, by_form=not SAME_TOPICS)
        assert different is None, f"{block.source}\n\nthe tutorial has\n{different}\n\nprinted was\n{output}"


def test_the_readme_shows_what_the_first_run_prints(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```\n(write\n.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    status, output, errors = run("python -m pipeline", tmp_path)
    assert status == 0, errors
    different = first_difference(shown, output, by_form=not SAME_TOPICS)
    assert different is None, f"the README has\n{different}\n\nprinted was\n{output}"


def test_pairs_of_values_run_as_the_page_on_sweeps_says(tmp_path):
    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    write_config_files(page, tmp_path)
    (tmp_path / "a.txt").write_text("The kettle sang. She poured the tea.")
    (tmp_path / "b.jsonl").write_text('{"text": "The tea was too hot to drink, so she let the tea stand."}')
    (command,) = re.findall(r"^(python -m pipeline --config-dir .*)$", page, re.MULTILINE)
    status, _, errors = run(command, tmp_path)
    assert status == 0, errors
    (table,) = tmp_path.glob("outputs/sweeps/*/*/sweep.csv")
    points = [(row["status"], int(row["tokens"])) for row in csv.DictReader(table.read_text().splitlines())]
    assert points == [("done", 36), ("done", 9), ("done", 55), ("done", 15)]


def test_this_pythons_help_topics_are_the_tutorials():
    if not SAME_TOPICS:
        pytest.skip("another release of Python, with other help topics: the tutorial's counts were not compared")


def test_figures_in_the_text_are_those_of_the_outputs():
    outputs = "\n".join(re.findall(r"^```\w+\n(.*?)^```$", TUTORIAL, re.MULTILINE | re.DOTALL))
    text = re.sub(r"^```\w+\n.*?^```$", "", TUTORIAL, flags=re.MULTILINE | re.DOTALL)
    figures = set(re.findall(r"(?<![\w.])\d{1,3}(?:,\d{3})+|\d+\.\d+", text))
    known = set(re.findall(r"(?<![\w.])\d{1,3}(?:,\d{3})+|\d+\.\d+", outputs)) | set(FACTS)
    assert figures - known == set()
    assert len(figures) > 10


def test_a_line_that_is_not_so_is_found():
    real = "write\n  tokens    25 tokens   3.64 bytes\n  took      0.51 s   44 MB/s\n  in        /a/outputs/x"
    assert first_difference(real, real) is None
    assert first_difference("write\n...\n  took  9 s   1 kB/s\n  in    outputs/x", real) is None
    assert first_difference("write\n  tokens    25 tokens   3.70 bytes\n...", real) is None
    assert "26" in first_difference("write\n  tokens    26 tokens   3.64 bytes\n...", real)
    assert "4.64" in first_difference("write\n  tokens    25 tokens   4.64 bytes\n...", real)
    assert "nothing more" in first_difference("write", real)
    assert "gone" in first_difference("...\n  gone", real)
    assert "kB" in first_difference("on disk 270 kB", "on disk 270 MB")
    assert first_difference("loss 2.6, 'a'", "loss 31, 'b'", by_form=True) is None
    assert "loss" in first_difference("loss 2.6, 'a'", "less 31, 'b'", by_form=True)


def test_a_block_of_every_kind_is_read():
    page = "a\n```console\n$ one 1\nout\n$ two\n```\nb\n```python\nx\n```\n\n```text\n4\n```\n```python\ny\n```\n"
    assert [(block.kind, block.source, block.shown) for block in read_blocks(page)] == [
        ("console", "one 1", "out\n"),
        ("console", "two", ""),
        ("python", "x\n", "4\n"),
        ("python", "y\n", ""),
    ]
