"""The walls of the house: a room imports its own modules and rooms below it, never one above."""

import ast
from functools import cache

import pytest
from support import ROOT, run_python

PIPELINE = ROOT / "pipeline"

# From the ground up. A room may import every room before it, except those that WALLS forbids.
ROOMS = (
    "rules",
    "settings",
    "base",
    "storage",
    "executor",
    "packing",
    "windows",
    "corpus",
    "tokenizer",
    "tokens",
    "shards",
    "loader",
    "embedding",
    "cli",
    "__main__",
)
WALLS = {
    "tokenizer": {"corpus", "executor", "windows"},
    "loader": {"corpus", "tokenizer", "executor"},
    "embedding": {"corpus", "tokenizer", "tokens", "shards", "executor"},
}
READ_SIDE = {
    f"pipeline.shards.{name}"
    for name in ("manifest", "entries", "format", "document_format", "layout", "id_pages", "pages", "row_groups")
}
HEAVY = {
    "torch": {"loader", "embedding", "cli"},
    "tiktoken": {"tokenizer"},
    "gigatoken": {"tokenizer"},
    "tokenizers": {"tokenizer"},
    "awkward": {"tokenizer"},
    "datasets": {"corpus"},
    "ray": {"executor"},
    "obstore": {"storage"},
    "boto3": {"storage"},
    "hydra": {"cli"},
    "omegaconf": {"cli"},
}


@cache
def modules():
    """Every module of the package by its full name, without the package's own `__init__`."""
    found = {".".join(f.relative_to(PIPELINE.parent).with_suffix("").parts): f for f in PIPELINE.rglob("*.py")}
    return {name.removesuffix(".__init__"): file for name, file in found.items() if name != "pipeline.__init__"}


@cache
def imports_of(file, *, at_run_time=False):
    """Every module that a file imports, wherever in it the import is; or without what only a type checker sees."""
    tree = ast.parse(file.read_text())
    if at_run_time:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
                node.body = [ast.Pass()]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import hides where it leads"
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def room_of(module):
    return module.split(".")[1]


def own_imports(file):
    known = modules()
    return {module for module in imports_of(file) if module in known}


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_its_own_room_and_rooms_below_it(name):
    room = room_of(name)
    assert room in ROOMS, f"{room} is a room that the list does not know"
    for module in own_imports(modules()[name]):
        other = room_of(module)
        assert ROOMS.index(other) <= ROOMS.index(room), f"{name} imports {module}, which is above it"
        assert other not in WALLS.get(room, ()), f"{name} imports {module} through a wall"


def test_the_loader_knows_of_shards_only_what_is_written_on_disk():
    for name, file in modules().items():
        if room_of(name) == "loader":
            from_shards = {module for module in own_imports(file) if room_of(module) == "shards"} - {"pipeline.shards"}
            assert from_shards <= READ_SIDE, name


def test_settings_imports_its_rules_alone_and_these_nothing():
    assert {room_of(name) for name in own_imports(PIPELINE / "settings.py")} == {"rules"}
    assert own_imports(PIPELINE / "rules.py") == set()


def test_no_module_is_imported_by_what_it_imports():
    known = modules()
    graph = {name: set(imports_of(file, at_run_time=True)) & set(known) - {name} for name, file in known.items()}
    while leaves := [name for name, found in graph.items() if not found]:
        for name in leaves:
            del graph[name]
        graph = {name: found - set(leaves) for name, found in graph.items()}
    assert not graph, f"a circle of imports among {', '.join(graph)}"


@pytest.mark.parametrize("library", HEAVY)
def test_a_library_is_imported_in_its_rooms_alone(library):
    users = {room_of(n) for n, f in modules().items() if library in {m.split(".")[0] for m in imports_of(f)}}
    assert users <= HEAVY[library]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import pipeline", {"torch", "pyarrow", "tiktoken", "numpy", "hydra"}),
        ("from pipeline import CorpusConfig; CorpusConfig()", {"torch", "pyarrow", "tiktoken", "numpy", "hydra"}),
        ("from pipeline import write_shards", {"torch", "hydra"}),
        ("from pipeline import ShardLoader, TokenEmbedding, embed_batches", {"tiktoken", "gigatoken", "hydra"}),
        (
            "from pipeline import write_shards; write_shards('ds', corpus=['some text ' * 900, ' '], cache='cache')",
            {"torch", "pandas", "gigatoken"},
        ),
        ("import pipeline.loader.readers, pipeline.loader.order, pipeline.loader.mixture", {"torch"}),
    ],
)
def test_an_import_brings_no_more_than_it_needs(tmp_path, statement, absent):
    code = f"import sys; {statement}; print(*(set(sys.modules) & {absent!r}))"
    done = run_python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_every_public_name_can_be_imported():
    import pipeline

    for name in pipeline.__all__:
        assert getattr(pipeline, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pipeline.nothing


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], {"torch", "hydra", "numpy", "pyarrow", "tqdm", "http.client"}),
        (["--version"], {"torch", "hydra", "omegaconf", "numpy", "pyarrow", "tqdm", "http.client"}),
        (["stages=plan"], {"torch", "pandas", "tqdm"}),
        (["stages=[write,write,show]"], {"torch", "pandas", "tqdm", "gigatoken", "awkward"}),
    ],
)
def test_a_command_imports_no_more_than_it_needs(tmp_path, arguments, absent):
    paths = [f"{key}={tmp_path / key}" for key in ("shards.path", "cache.path", "hydra.run.dir")]
    code = (
        "import sys; sys.argv[0] = 'stridemill'\n"
        "from pipeline.__main__ import main\n"
        "main()\n"
        f"print(*sorted(set(sys.modules) & {absent!r}), file=sys.stderr)"
    )
    done = run_python("-c", code, *arguments, *(paths if "=" in arguments[0] else []))
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == ""
    assert done.stdout
