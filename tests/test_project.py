"""The project's own files agree: what pyproject.toml declares is what the jobs install and test."""

import ast
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
USED = ["fast", "huggingface", "remote", "parallel"]  # extras that the package itself imports
EXTRAS = PROJECT["optional-dependencies"]
DECLARED = [
    Requirement(line) for line in [*PROJECT["dependencies"], *(line for extra in USED for line in EXTRAS[extra])]
]
# torch's lowest release has no file for every machine that runs the tests.
TESTED_ELSEWHERE = {"torch"}


def pins(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def lowest(requirement):
    (bound,) = (one.version for one in requirement.specifier if one.operator == ">=")
    return bound


@pytest.mark.parametrize("requirement", DECLARED, ids=lambda requirement: requirement.name)
def test_the_lowest_release_of_each_dependency_is_the_one_that_is_tested(requirement):
    pinned = pins("constraints-lowest.txt")[requirement.name]
    if requirement.name in TESTED_ELSEWHERE:
        assert pinned in requirement.specifier
    else:
        assert pinned in SpecifierSet(f"=={lowest(requirement)}")


def test_the_job_of_lowest_releases_pins_nothing_but_dependencies():
    assert set(pins("constraints-lowest.txt")) == {requirement.name for requirement in DECLARED}


def find_imports(file):
    tree = ast.parse(file.read_text())
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return found | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


def test_what_the_job_of_lowest_releases_leaves_out_calls_no_module_that_the_others_do_not():
    (names,) = re.findall(r"^LEFT_OUT = (.*(?:\\\n.*)*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    left_out = {ROOT / f"tests/test_{name}.py" for name in names.replace("\\", "").split()}
    others = set(ROOT.glob("tests/test_*.py")) - left_out
    packages = {requirement.name.replace("-", "_") for requirement in DECLARED} | {"omegaconf", "hydra"}
    called = {module for file in others for module in find_imports(file)}
    for file in left_out:
        own = {module for module in find_imports(file) if module.partition(".")[0] in packages}
        assert own <= called, file.name


def test_the_pythons_that_are_promised_are_tested():
    named = (re.fullmatch(r"Programming .* :: (3\.\d+)", line) for line in PROJECT["classifiers"])
    promised = {match[1] for match in named if match}
    supported = SpecifierSet(PROJECT["requires-python"])
    assert promised == {version for version in (f"3.{minor}" for minor in range(20)) if version in supported}
    assert promised == set(re.findall(r'"(3\.\d+)"', (ROOT / ".github/workflows/ci.yml").read_text()))
