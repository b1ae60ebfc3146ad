"""What tests share: the command line as a user calls it, small corpora, and the teaching text where it is at hand."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# The machines that run these tests are shared: an example's duration says nothing.
settings.register_profile("stridemill", deadline=None, derandomize=True)
settings.load_profile("stridemill")


@pytest.fixture
def cli(tmp_path):
    """Run `python -m pipeline` in an empty folder."""

    def run(*arguments, cwd=tmp_path, **environment):
        return subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture(scope="session")
def verdict():
    """The teaching text's path."""
    path = os.environ.get("STRIDEMILL_THE_VERDICT")
    if not path:
        pytest.skip("STRIDEMILL_THE_VERDICT does not name the-verdict.txt (sha256 b41e41a6...)")
    return Path(path)


@pytest.fixture
def books(tmp_path):
    """A folder of three short texts."""
    folder = tmp_path / "books"
    (folder / "more").mkdir(parents=True)
    (folder / "a.txt").write_text("The cat sat on the mat. " * 40, encoding="utf-8")
    (folder / "b.md").write_text("A dog — naïve, brave — ran after it. " * 30, encoding="utf-8")
    (folder / "more" / "c.txt").write_text("Then both slept until the evening came. " * 20, encoding="utf-8")
    return folder


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
            [*command, "--dump-dom", path.absolute().as_uri()], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return load
