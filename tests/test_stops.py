"""A write that stops at any call that changes the disk: the same command then finishes with the same bytes."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys

import pytest
from stops import SCENARIOS, contents
from support import ROOT, environment, run_python, sections

from pipeline import write_shards

STOPS = ROOT / "tests" / "stops.py"


# Each call that changes the disk meets one stop: every second one a kill, the others one of four errors by turns.
# STRIDEMILL_ALL_STOPS=1 tries every kind of stop at every call, which takes many minutes.
KINDS = {"kill": (2, 2), "once": (8, 1), "ENOSPC": (8, 3), "EROFS": (8, 5), "EIO": (8, 7)}


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_stop_at_a_call_that_changes_the_disk_is_mended_by_the_same_command(tmp_path, scenario):
    every = dict.fromkeys(KINDS, (1, 1)) if os.environ.get("STRIDEMILL_ALL_STOPS") else KINDS
    stops = ",".join(f"{kind}:{step}:{first}" for kind, (step, first) in every.items())
    done = run_python(STOPS, tmp_path / "stops", scenario, stops, timeout=3000)
    assert done.returncode == 0, done.stderr
    *problems, summary = done.stdout.splitlines()
    assert not problems, "\n".join(problems)
    stopped, calls = re.findall(r"\d+", summary)[:2]
    assert int(stopped) >= int(calls) - 5 > 50, f"few stops: {summary}"


# One process for all runs: it imports once. Each run is a fork that is stopped after some seconds by a signal.
FORKER = """
import os, sys, time
sys.path.insert(0, "tests")
from stops import preload
from support import sections
from pipeline import write_shards

preload()
folder, options, number = sys.argv[1], eval(sys.argv[2]), int(sys.argv[3])
for line in sys.stdin:
    started = time.perf_counter()
    child = os.fork()
    if not child:
        try:
            write_shards(f"{folder}/shards", **sections(**options, cache_path=f"{folder}/cache"))
        except KeyboardInterrupt:
            os._exit(130)
        os._exit(0)
    if float(line):
        time.sleep(float(line))
        os.kill(child, number)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), time.perf_counter() - started, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "codes"), [(signal.SIGKILL, {-9, 0}), (signal.SIGINT, {130, 0})])
def test_twenty_stops_at_random_instants_cost_no_byte(tmp_path, number, codes):
    (tmp_path / "in.txt").write_text(" ".join(str(number) for number in range(8_000)))
    options = {
        "corpus": "text",
        "corpus_path": str(tmp_path / "in.txt"),
        "tokenizer": "bytes",
        "max_length": 32,
        "windows_per_group": 16,
        "windows_per_shard": 128,
        "workers": 2,
    }
    write_shards(tmp_path / "calm" / "shards", **sections(**options, cache_path=tmp_path / "calm" / "cache"))
    whole = contents(tmp_path / "calm")
    command = [sys.executable, "-c", FORKER, str(tmp_path), repr(options), str(int(number))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes) as forker:

        def run(after=0.0):
            """Start a run, stop it after that many seconds, and return how it ended and how long it took."""
            print(after, file=forker.stdin, flush=True)
            code, took = forker.stdout.readline().split()
            return int(code), float(took)

        draw, stopped = random.Random(3), 0
        code, seconds = run()
        while stopped < 20:
            assert code in codes
            if code == 0:
                assert contents(tmp_path) == whole
                for name in ("shards", "cache"):
                    shutil.rmtree(tmp_path / name)
            code, _ = run(draw.uniform(0, seconds))
            stopped += code != 0
        assert run()[0] == 0
    assert contents(tmp_path) == whole
