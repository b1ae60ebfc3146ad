"""Fixtures: the command line as a user calls it, small corpora and data sets, a browser, the teaching text."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes share the cores; torch's threads would wait busily

import pytest
from hypothesis import settings
from support import run_program, sections

from pipeline import write_shards

pytest_plugins = ["object_store"]

# A shell that starts a program in the background lets it ignore Ctrl-C, and the programs that it starts as well.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The files that take longest, or prepare what all their tests use, come first: no process ends with them alone.
FIRST = ("tutorial", "ray", "site", "stops", "study", "bench", "how_to", "notebook", "training", "examples", "wheel")

# The machines that run these tests are shared: an example's duration says nothing.
settings.register_profile("stridemill", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("fast", settings.get_profile("stridemill"), max_examples=20)  # for `make fast`
settings.load_profile("stridemill")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items):
    """Mark as slow whatever starts the command line or a browser: a process takes a second to import and compose.

    The longest files come first.
    """
    for item in items:
        if {"cli", "browse"} & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)
    names = [f"test_{name}" for name in FIRST]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else len(names))


@pytest.fixture(autouse=True)
def _registered_with_hydra():
    """Take back what a test registers with Hydra: the config of one program must not be the next test's."""
    if "hydra" not in sys.modules:
        yield
        return
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    store, plugins = ConfigStore.instance(), Plugins.instance()
    configs = copy_folders(store.repo)
    classes = {kind: list(found) for kind, found in plugins.plugin_type_to_subclass_list.items()}
    yield
    store.repo = configs
    plugins.plugin_type_to_subclass_list.clear()
    plugins.plugin_type_to_subclass_list.update(classes)


def copy_folders(repo):
    """Copy the nested dictionaries of Hydra's store, and keep the nodes in them."""
    return {name: copy_folders(one) if isinstance(one, dict) else one for name, one in repo.items()}


@pytest.fixture
def cli(tmp_path):
    """Run `python -m pipeline` in an empty folder."""

    def run(*arguments, cwd=tmp_path, **environment):
        return run_program("-m", "pipeline", *arguments, cwd=cwd, **environment)

    return run


@pytest.fixture(scope="session")
def verdict():
    """The teaching text's path."""
    path = os.environ.get("STRIDEMILL_THE_VERDICT")
    if not path:
        pytest.skip("STRIDEMILL_THE_VERDICT does not name the-verdict.txt (sha256 b41e41a6...)")
    return Path(path)


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Make a folder once for all processes that share the tests: `once(name, make)` calls `make(folder)` in one."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make_once(name, make):
        folder = base / f"once-{name}"
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "made").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                (folder / "made").touch()
        return folder

    return make_once


@pytest.fixture
def books(tmp_path):
    """A folder of three short texts."""
    folder = tmp_path / "books"
    (folder / "more").mkdir(parents=True)
    (folder / "a.txt").write_text("The cat sat on the mat. " * 40, encoding="utf-8")
    (folder / "b.md").write_text("A dog — naïve, brave — ran after it. " * 30, encoding="utf-8")
    (folder / "more" / "c.txt").write_text("Then both slept until the evening came. " * 20, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def write_text(tmp_path_factory):
    """Write one text as a data set in a folder of its own, and return the data set's path."""

    def write(text, **options):
        folder = tmp_path_factory.mktemp("text")
        (folder / "text.txt").write_text(text)
        corpus = {"corpus": "text", "corpus_path": str(folder / "text.txt"), "cache_path": folder / "cache"}
        return write_shards(folder / "shards", **sections(**corpus, **options)).path

    return write


@pytest.fixture
def write_books(tmp_path, books):
    """Write `books` as a data set, by default into `shards` and with the tokens in `cache`; the write's report."""

    def write(name="shards", **options):
        corpus = {"corpus": "text", "corpus_path": str(books), "cache_path": tmp_path / "cache"}
        return write_shards(tmp_path / name, **sections(**{**corpus, "tokenizer": "bytes", **options}))

    return write


@pytest.fixture
def browse():
    """A page in headless Chromium, with no name of any host resolved: its DOM, and what its console said."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")

    def load(path, folder):
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
        command += ["--enable-logging=stderr", f"--user-data-dir={folder}", f"--log-net-log={folder}/net.json"]
        done = subprocess.run(
            [*command, "--dump-dom", path.absolute().as_uri()], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return load
