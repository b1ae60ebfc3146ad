"""The examples as a user runs them: stopped by kill -9, started again on another number of processes."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import write_shards

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    (folder / "text.txt").write_text("".join(f"{number} bottles of beer. " for number in range(300)))
    report = write_shards(
        folder / "shards",
        corpus="text",
        corpus_path=str(folder / "text.txt"),
        cache_path=folder / "cache",
        tokenizer="bytes",
        max_length=16,
        windows_per_group=16,
    )
    return report.path


DDP = str(ROOT / "examples" / "ddp.py")


def one_process(*arguments):
    """The example as the one process of its job, without torchrun: a signal to it reaches it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    return {"args": [sys.executable, DDP, *map(str, arguments)], "env": {**ENVIRONMENT, **place}}


def torchrun(processes, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return {"args": [*command, DDP, *map(str, arguments)], "env": ENVIRONMENT}


def losses_of(file):
    lines = file.read_text().splitlines() if file.exists() else []
    return {int(step): float(loss) for step, loss in (line.split() for line in lines)}


def test_a_job_killed_and_resumed_on_two_processes_has_the_losses_of_one_that_ran_through(shards, tmp_path):
    def arguments(name):
        return (shards, "--checkpoint", tmp_path / f"{name}.pt", "--losses", tmp_path / f"{name}.txt")

    subprocess.run(**one_process(*arguments("whole")), check=True, timeout=200, capture_output=True)
    whole = losses_of(tmp_path / "whole.txt")
    assert list(whole) == list(range(1, 41))

    killed = tmp_path / "killed.txt"
    with subprocess.Popen(**one_process(*arguments("killed"), "--pause", 0.05), stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 150
        while len(losses_of(killed)) < 15 and time.monotonic() < until and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    before = losses_of(killed)
    assert 15 <= len(before) < 40, "killed in the middle"
    subprocess.run(**torchrun(2, *arguments("killed")), check=True, timeout=200, capture_output=True)
    resumed = losses_of(killed)  # where a step was done twice, the second time counts
    assert list(resumed) == list(range(1, 41))
    assert resumed == pytest.approx(whole, rel=1e-4)
    assert whole[40] < whole[1]


def test_the_proof_holds_for_a_data_set_and_says_what_it_could_not_try(shards):
    command = [sys.executable, str(ROOT / "scripts" / "prove.py"), str(shards), "--lanes", "4", "--stops", "3"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for shuffle in ("none", "full", "lanes"):
        assert f"{shuffle}: each of 386 windows came once in epoch 0" in done.stdout
        assert f"{shuffle}: world sizes 1, 2, 4" in done.stdout
        assert f"{shuffle}: distance between neighbours" in done.stdout
    gone = subprocess.run([*command, "--split", "validation"], env=ENVIRONMENT, capture_output=True, timeout=200)
    assert b"has no split 'validation'" in gone.stdout
