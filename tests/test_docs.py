"""README and docs are true: what they link to, name, import and type exists, and every shell takes their commands.

No command runs here, only its words are checked; the tutorial's commands run in `test_tutorial.py`.
"""

import ast
import builtins
import contextlib
import importlib
import inspect
import re
import shlex
import textwrap
import tomllib
from functools import cache
from typing import get_type_hints
from xml.etree import ElementTree as ET

import neighbors
import pytest
import study
import test_corpus
import train
from support import ROOT, write_config_files
from training_config import TrainConfig
from yaml import safe_load

import pipeline
from pipeline.cli.compose import check_command_line, find_conf, register_schema, schema_keys
from pipeline.cli.config import Config
from pipeline.corpus import files
from pipeline.corpus.corpora import WITH_FILES
from pipeline.corpus.reader import READERS
from pipeline.rules import ConfigError

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

FOLDERS = ("pipeline", "conf", "docs", "scripts", "examples", "benchmarks", "tests")
COMMANDS = ("python", "stridemill", "pip", "make", "torchrun", "duckdb", "source", "git", "mkdir")
PIPELINE = re.compile(r"^(python -m pipeline|stridemill)\b")
TRAINING = re.compile(r"^python scripts/(train|study|neighbors)\.py\b")
PROGRAMS = {"train": train, "study": study, "neighbors": neighbors}
EXTENSIONS = {".csv", ".html", ".json"}
FOREIGN = {  # classes and files of others that the pages mention
    "ByteLevel",
    "DataLoader",
    "DistributedSampler",
    "IterableDataset",
    "StatefulDataLoader",
    "WordLevel",
}


def fences(page):
    """The fenced blocks of a page, as (language, body)."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def prose(page):
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def spans(page):
    """What a page has in single backquotes."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page))


def commands(page):
    """Every command of a page, with the output that is shown below it: from its blocks, and from its prose."""
    found = [(span, "") for span in spans(page) if span.split()[0] in COMMANDS and " " in span and "=..." not in span]
    for language, body in fences(page):
        if language not in ("", "console", "sh"):
            continue
        if re.search(r"^\$ ", body, re.MULTILINE):
            found += [tuple(part.partition("\n")[::2]) for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]]
        elif body.split()[0] in COMMANDS:
            found += [(line, "") for line in body.splitlines() if line]
    return found


def test_every_page_is_read():
    assert {"README.md", "CONTRIBUTING.md", "tutorial.md", "glossary.md", "sweeps.md"} <= {page.name for page in PAGES}
    assert sum(len(commands(page)) for page in PAGES) > 40
    assert sum(len(spans(page)) for page in PAGES) > 300


# --- links ---


def slug(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page):
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)}


def broken_link(page, link):
    """What is wrong with a link of a page; None if nothing is."""
    target, _, anchor = link.partition("#")
    if re.match(r"[a-z]+:", target):
        return None if target.startswith("https://") else "is no https address"
    path = (page.parent / target).resolve() if target else page
    if not path.exists():
        return "leads to no file"
    if anchor and anchor not in anchors(path):
        return "leads to no heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_anchors_lead_somewhere(page):
    links = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(page))
    assert [(link, problem) for link in links if (problem := broken_link(page, link))] == []


def test_a_broken_link_is_found():
    page = ROOT / "docs" / "tutorial.md"
    assert broken_link(page, "loading.md") is None
    assert broken_link(page, "#exercises") is None
    assert broken_link(page, "../README.md#how-it-works") is None
    assert broken_link(page, "loadings.md") == "leads to no file"
    assert broken_link(page, "loading.md#nothing") == "leads to no heading"
    assert broken_link(page, "http://example.org") == "is no https address"


# --- files, keys and names ---


def missing_file(span):
    """Whether a span names a file of this repository that is not there."""
    name = re.sub(r"[ :].*", "", span)
    if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./-]*", name):
        return not (ROOT / name).exists()
    return bool(re.fullmatch(r"\w+\.py", name)) and not any(next(ROOT.glob(f"{one}/**/{name}"), 0) for one in FOLDERS)


@cache
def keys():
    return {*schema_keys(TrainConfig)}


def wrong_key(span):
    """What is wrong with a span that is a config key or an override; None if it is neither, or right."""
    found = re.fullmatch(r"'?(\w+)((?:\.\w+)?)(?:=([^'{ ]*))?'?", span)
    sections = {key.split(".")[0] for key in keys()}
    if not found or found[1] not in {*sections, *groups()} or found[2] in EXTENSIONS:
        return None
    key, value = found[1] + found[2], found[3]
    if not found[2] and key in groups() and value is not None:
        return None if value in (*groups()[key], "null") else f"{key} has no choice {value}"
    if not found[2]:
        return None  # the word alone, or `stages=...`, which composing checks
    if key not in keys():
        return f"there is no key {key}"
    return wrong_value(key, value)


def wrong_value(key, value):
    """The refusal of a key's value, without the other keys; None if it is taken, or if none is given."""
    section, name = key.split(".")
    kind = get_type_hints(Config).get(section)
    check = kind and kind.__dataclass_fields__[name].metadata.get("check")
    if not check or value is None or value == "..." or value.startswith("<"):
        return None
    try:
        check(key, safe_load(value))
    except ConfigError as error:
        return str(error)
    return None


@cache
def groups():
    files = [*find_conf().glob("*/*.yaml"), *train.CONF.glob("*/*.yaml")]
    return {one.parent.name: [file.stem for file in files if file.parent.name == one.parent.name] for one in files}


def unknown_name(span):
    """Whether a span is a class of Python, alone or called, that `pipeline` does not export."""
    found = re.match(r"([A-Z][a-z]+(?:[A-Z][a-z]+)+)(?:\(|$)", span)
    return bool(found) and found[1] not in {*pipeline.__all__, *FOREIGN, *dir(builtins)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_keys_and_names_that_a_page_mentions_exist(page):
    assert [span for span in spans(page) if missing_file(span)] == []
    assert [problem for span in spans(page) if (problem := wrong_key(span))] == []
    assert [span for span in spans(page) if unknown_name(span)] == []


def test_a_file_a_key_or_a_name_that_does_not_exist_is_found():
    assert missing_file("pipeline/nothing.py")
    assert missing_file("nothing.py")
    assert not missing_file("scripts/train.py train.steps=4")
    assert not missing_file("order.py")
    assert "there is no key" in wrong_key("window.length")
    assert "must be one of" in wrong_key("window.tail=cut")
    assert "no choice" in wrong_key("corpus=csv")
    assert wrong_key("window.tail=pad") is None
    assert wrong_key("batch.input_ids") is None
    assert unknown_name("ShardReader")
    assert unknown_name("ShardReader(path)")
    assert not unknown_name("ShardLoader(path, weights=[1, 2])")


# --- Python ---

PYTHON = [
    pytest.param(body, id=f"{page.name}-{number}")
    for page in PAGES
    for number, (language, body) in enumerate(fences(page))
    if language == "python"
]


@pytest.mark.parametrize("source", PYTHON)
def test_a_python_block_imports_what_exists_and_calls_it_with_arguments_that_exist(source):
    imported = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name: importlib.import_module(alias.name) for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            imported |= {alias.name: getattr(module, alias.name) for alias in node.names}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called = imported.get(node.func.id) or getattr(pipeline, node.func.id, None)
            if called is not None and getattr(called, "__module__", "").startswith("pipeline"):
                given = {keyword.arg: None for keyword in node.keywords}
                inspect.signature(called).bind_partial(*node.args, **given)


def test_the_python_blocks_are_found():
    assert len(PYTHON) > 20


# --- commands ---


def refused_by_zsh(command):
    """What zsh would expand or refuse in a command as it is typed; None if every shell reads the same words."""
    bare = re.sub(r"'[^']*'", "''", command)  # what stands in single quotes is safe
    if found := re.search(r'"[^"]*([$`\\!])[^"]*"', bare):
        return f"{found[1]} inside double quotes"
    bare = re.sub(r'"[^"]*"', '""', bare)
    found = re.search(r"[][{}()*?<>|&;!`$^#\\]|(?<!\S)[~=]", bare)
    return f"{found[0]} without quotes" if found else None


TYPED = [
    pytest.param(page, command, shown, id=f"{page.name}-{number}")
    for page in PAGES
    for number, (command, shown) in enumerate(commands(page))
]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command", "shown"), TYPED)
def test_a_command_is_taken_by_every_shell_and_composes(page, command, shown, tmp_path, monkeypatch):
    assert refused_by_zsh(command) is None, command
    monkeypatch.chdir(tmp_path)
    write_config_files(page.read_text(encoding="utf-8"), tmp_path)
    if PIPELINE.match(command):
        register_schema(Config)
        compose(PIPELINE.sub("", command), shown)
    elif found := TRAINING.match(command):
        register_schema(TrainConfig)
        train.register_configs()
        unused = (*train.NO_EFFECT, *PROGRAMS[found[1]].UNUSED_KEYS)
        compose(
            TRAINING.sub("", command),
            shown,
            kind=TrainConfig,
            config_name="train",
            check=lambda config: train.refuse_no_effect(config, unused, found[1]),
        )
    elif command.startswith("pip install"):
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"\w+", "".join(re.findall(r"\[(.*?)\]", command)))) <= set(extras)
    elif command.startswith("make "):
        assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_messages_ask_for_the_packages_that_the_project_declares():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    requirements = [requirement for extra in extras.values() for requirement in extra]
    declared = {*requirements, *(re.match(r"[\w-]+", requirement)[0] for requirement in requirements)}
    declared |= {f"stridemill[{extra}]" for extra in extras}
    sources = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "pipeline").rglob("*.py"))
    asked = set(re.findall(r"pip install '?([\w-]+[^\s'\"]*)", sources))
    assert len(asked) >= 3
    assert asked <= declared


def compose(overrides, shown, **schema):
    """A command composes; or it is refused in the words that are shown below it."""
    words = [word for word in shlex.split(overrides) if word != "..."]
    refusal = re.match(r"stridemill: (.*)", shown)
    with pytest.raises(ConfigError, match=f"^{re.escape(refusal[1])}$") if refusal else contextlib.nullcontext():
        check_command_line(words, **schema)


@pytest.mark.parametrize(
    "command",
    ["a x=[b]", "a x={a,b}", "a *.md", "a b # c", "a ~/x", 'a "$HOME"', "a b | c", "a =b", "a !b", "a (b)", "a b?"],
)
def test_what_zsh_expands_or_refuses_is_found(command):
    assert refused_by_zsh(command)


@pytest.mark.parametrize(
    "command",
    ["a 'x=[b]'", "a x=1,2 y=~/z", """a 'path="crawl/*.zst"'""", 'a "two words"', "a b=3.5 -m c", "a -e '.[b]'"],
)
def test_what_every_shell_takes_is_taken(command):
    assert refused_by_zsh(command) is None


def test_the_first_change_of_contributing_works_as_it_says(tmp_path, monkeypatch):
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^   ```python\n(.*?)^   ```$", page, re.MULTILINE | re.DOTALL)
    names = {**vars(test_corpus)}
    exec(textwrap.dedent(block), names)
    test = names["test_a_folder_of_texts_contributes_its_markdown_files"]
    with pytest.raises(ValueError, match="has no"):
        test(tmp_path)
    assert WITH_FILES["text"][0] == files.TEXT_SUFFIXES
    monkeypatch.setitem(WITH_FILES, "text", ((*files.TEXT_SUFFIXES, ".markdown"), *WITH_FILES["text"][1:]))
    test(tmp_path)
    for name, module in re.findall(r"`([A-Z_]+)`\s+(?:in |\()`([\w/.]+)\.py", page):
        assert hasattr(importlib.import_module(module.replace("/", ".")), name)
    assert WITH_FILES.keys() <= READERS.keys()
    assert {"TEXT_SUFFIXES", "WITH_FILES", "READERS", "CORPORA", "TOKENIZERS"} <= set(re.findall(r"`([A-Z_]+)`", page))


def test_the_tokens_in_the_picture_are_those_of_gpt2():
    picture = ET.parse(ROOT / "docs/img/pipeline.svg")
    words = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    text = words[words.index("text") + 1]
    tokenizer = pipeline.load_tokenizer("gpt2")
    ids = tokenizer.encode(text)
    shown = words[words.index("tokens") + 1 :][: 2 * len(ids)]
    assert shown[0::2] == [tokenizer.decode([number]).replace(" ", "␣") for number in ids]
    assert shown[1::2] == [str(number) for number in ids]
    assert len(ids) > 10
