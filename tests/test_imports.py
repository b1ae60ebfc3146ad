"""Two wings and a hall: the write half and the load half meet in the manifest and the formats alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PIPELINE = Path(__file__).resolve().parents[1] / "pipeline"
HALL = {"chunk", "layout", "permutation", "windows", "token_store", "shard_format", "manifest"}


def imports_of(file):
    """Every module that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import hides where it goes"
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def imports_at_run_time(file):
    """The same without what only the type checker sees."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def files(folder):
    return sorted((PIPELINE / folder).rglob("*.py"))


def test_the_write_wing_imports_neither_load_nor_torch():
    for file in files("write"):
        for module in imports_of(file):
            assert not module.startswith(("pipeline.load", "torch")), f"{file.name} imports {module}"


def test_the_load_wing_imports_nothing_of_write():
    for file in files("load"):
        for module in imports_of(file):
            assert not module.startswith(("pipeline.write", "tiktoken", "gigatoken")), f"{file.name} imports {module}"


def test_the_hall_imports_neither_wing():
    for name in HALL:
        for module in imports_of(PIPELINE / f"{name}.py"):
            assert not module.startswith(("pipeline.write", "pipeline.load", "torch", "tiktoken")), f"{name}: {module}"


def test_no_module_is_imported_by_what_it_imports():
    names = {".".join(f.relative_to(PIPELINE.parent).with_suffix("").parts): f for f in files(".")}
    graph = {name: set(imports_at_run_time(file)) & set(names) - {name} for name, file in names.items()}
    while leaves := [name for name, found in graph.items() if not found]:
        for name in leaves:
            del graph[name]
        graph = {name: found - set(leaves) for name, found in graph.items()}
    assert not graph, f"a circle of imports among {', '.join(graph)}"


def test_only_the_tokenizer_imports_an_engine():
    engines = {"tiktoken", "gigatoken", "tokenizers", "awkward"}
    users = {f.stem for f in PIPELINE.rglob("*.py") if engines & {m.split(".")[0] for m in imports_of(f)}}
    assert users <= {"tokenizer", "engines", "tokenizer_huggingface"}


def test_below_the_command_line_no_module_knows_hydra_or_omegaconf():
    edge = {"__main__", "config", "sweep"}
    for file in PIPELINE.rglob("*.py"):
        if file.stem not in edge:
            assert not {"hydra", "omegaconf"} & {module.split(".")[0] for module in imports_of(file)}, file.name


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import pipeline", {"torch", "pyarrow", "tiktoken", "numpy", "hydra"}),
        ("from pipeline import write_shards", {"torch", "hydra"}),
        ("from pipeline import ShardLoader, TokenEmbedding, embed_batches", {"tiktoken", "gigatoken", "hydra"}),
        ("import pipeline.load.reader, pipeline.load.order, pipeline.load.mix", {"torch"}),
    ],
)
def test_an_import_brings_no_more_than_it_needs(statement, absent):
    code = f"import sys; {statement}; print(*(set(sys.modules) & {absent!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PIPELINE.parent, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_every_public_name_can_be_imported():
    import pipeline

    for name in pipeline.__all__:
        assert getattr(pipeline, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pipeline.nothing
