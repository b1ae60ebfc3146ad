"""What is installed from the wheel works in any empty folder: `conf/` and the vocabulary travel along."""

import os
import subprocess
import sys
import zipfile

import pytest
from support import ROOT

pytestmark = pytest.mark.slow
# Without the user's PYTHONPATH, which may name a source folder.
ALONE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, env=ALONE, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.whl")
    return file


def test_the_wheel_holds_the_config_the_vocabulary_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "pipeline/conf/config.yaml" in names
    assert "pipeline/tokenizer/gpt2.tiktoken" in names
    for group in (ROOT / "conf").iterdir():
        if group.is_dir():
            assert {f"pipeline/conf/{group.name}/{file.name}" for file in group.iterdir()} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "conf/"))]


def test_the_console_script_runs_the_main_job_in_an_empty_folder(wheel, tmp_path):
    home = tmp_path / "home"
    venv = [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", str(home)]
    subprocess.run(venv, env=ALONE, check=True, timeout=300)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python")]
    pip += ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, env=ALONE, check=True, timeout=300)
    # The new environment sees this one's packages, but of the project itself only what the wheel holds.
    packages = [path for path in sys.path if path.endswith("site-packages")]
    script = home / "bin" / "stridemill"
    folder = tmp_path / "empty"
    folder.mkdir()
    done = subprocess.run(
        [script], cwd=folder, env={"PYTHONPATH": ":".join(packages)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "embeddings  [8, 256, 256]" in done.stdout
    assert (folder / "outputs/shards/python_docs-gpt2-L256-S256/manifest.json").is_file()
    where = [str(home / "bin" / "python"), "-c", "import pipeline; print(pipeline.__file__)"]
    place = subprocess.run(where, cwd=folder, env=ALONE, capture_output=True, text=True, timeout=300).stdout
    assert str(home) in place, "the installed package ran, not the source folder"
