"""A loader that Ctrl-C or a kill stops at any instant resumes with the first window that was not handed over."""

import pytest
from support import run_program

SCRIPT = """
import random, signal, sys
import torch
from pipeline import ShardLoader, embed_batches

path, kind, trials = sys.argv[1], sys.argv[2], int(sys.argv[3])
signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
options = {
    "full": {"shuffle": "full"},
    "none": {"shuffle": "none"},
    "cached lanes": {"shuffle": "lanes", "lanes": 4},
    "streamed lanes": {"shuffle": "lanes", "lanes": 4, "memory_budget": 30_000},
    "rank": {"shuffle": "lanes", "lanes": 4, "rank": 1, "world_size": 2},
    "mixture": {"shuffle": "lanes", "lanes": 4, "weights": [3, 1]},
    "embedded": {"shuffle": "full"},
    "restart": {"shuffle": "full", "restart": True},
    "workers": {"shuffle": "full", "workers": 2, "worker_context": "fork"},
}[kind]
layer = torch.nn.Embedding(257, 4)


def open_loader(seed):
    return ShardLoader([path, path] if kind == "mixture" else path, batch_size=16, threads=2, seed=seed, **options)


def read(loader):
    return embed_batches(loader, layer) if kind == "embedded" else loader


def names(batches):
    return [(batch.window_ids.tolist(), batch.input_ids.tolist()) for batch in batches]


stopped = 0
for trial in range(trials):
    rng = random.Random(trial)
    straight = open_loader(trial)
    expected = [names(straight) for _ in range(3)]
    loader, received = open_loader(trial), []
    for _ in range(4):
        if kind == "restart":  # what one iteration leaves remains in its state, and the next one is complete
            received, resumed = [], open_loader(trial)
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0003, 0.02 if kind != "workers" else 0.3))
            for batch in read(loader):
                received.append(batch)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            stopped += 1
        if kind == "restart":
            signal.setitimer(signal.ITIMER_REAL, 0)
            resumed.load_state_dict(loader.state_dict())
            remaining = names(resumed)
            if received:  # otherwise the state is what the iteration before left
                assert names(received) + remaining in (expected[0], expected[0] + remaining), f"trial {trial}"
            assert loader.epoch == 0
    if kind == "restart":
        continue
    while loader.epoch < 3:
        received += list(loader)
    received = names(received)
    whole = [batch for epoch in expected for batch in epoch]
    assert received[: len(whole)] == whole, f"trial {trial}: {len(received)} batches of {len(whole)}"
    assert loader.state_dict()["consumed"] in (0, straight.consumed), loader.state_dict()
assert stopped > trials, f"{stopped} interrupts"
"""


@pytest.fixture(scope="module")
def shards(write_text):
    """A data set of 600 windows in 150 row groups."""
    text = "".join(f"{number:07} " for number in range(1201))
    return write_text(text, tokenizer="bytes", max_length=16, windows_per_group=4, windows_per_shard=100)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "trials"),
    [
        ("full", 3),
        ("none", 3),
        ("cached lanes", 3),
        ("streamed lanes", 3),
        ("rank", 3),
        ("mixture", 3),
        ("embedded", 3),
        ("restart", 3),
        ("workers", 2),
    ],
)
def test_no_window_is_lost_or_comes_twice_whenever_ctrl_c_comes(shards, kind, trials):
    done = run_program("-W", "ignore", "-c", SCRIPT, shards, kind, trials)
    assert done.returncode == 0, done.stderr[-3000:]


# One process for all trials: it imports once, and forks a training program that is killed after some milliseconds.
KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path
from pipeline import ShardLoader

path, kind, file = sys.argv[1], sys.argv[2], Path(sys.argv[3])
options = {
    "full": {"shuffle": "full"},
    "streamed lanes": {"shuffle": "lanes", "lanes": 4, "memory_budget": 30_000},
    "mixture": {"shuffle": "lanes", "lanes": 4, "weights": [3, 1]},
    "workers": {"shuffle": "full", "workers": 2, "worker_context": "fork"},
}[kind]


def open_loader(batch_size):
    return ShardLoader([path, path] if kind == "mixture" else path, batch_size=batch_size, drop_last=False, **options)


def received(batch):
    return batch.window_ids.tolist() if kind != "mixture" else [batch.window_ids.tolist(), batch.source_ids.tolist()]


def train(batch_size, saves):
    loader, done = open_loader(batch_size), []
    if file.exists():
        saved = json.loads(file.read_text())
        loader.load_state_dict(saved["state"])
        done = saved["done"]
    for step, batch in enumerate(loader):
        done.append(received(batch))
        if step % 3 == 0:
            new = file.with_suffix(f".{os.getpid()}")
            new.write_text(json.dumps({"state": loader.state_dict(), "done": done}))
            new.replace(file)
            os.write(saves, b".")


def flat(batches):
    parts = [batch if kind == "mixture" else [batch] for batch in batches]
    rows = zip(*([number for part in parts for number in part[row]] for row in range(len(parts[0]))))
    return [row for row in rows if row[0] >= 0]  # without those that only fill a batch


rng, killed = random.Random(kind), 0
for trial in range(int(sys.argv[4])):
    saved, saves = os.pipe()
    child = os.fork()
    if not child:
        while True:
            train(2 + trial % 4, saves)  # every program in this row of resumes has another batch size
    for _ in range(rng.randint(1, 12)):  # it goes on at least as far as this
        os.read(saved, 1)
    time.sleep(rng.uniform(0, 0.01))
    os.close(saved)
    os.kill(child, signal.SIGKILL)
    killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
assert killed == int(sys.argv[4]), f"{killed} kills"
saved = json.loads(file.read_text())
got, straight, expected = flat(saved["done"]), open_loader(1), []
while len(expected) < len(got):
    expected += flat([received(batch) for batch in straight])
print(len(got), "windows")
assert len(got) > 50, f"{len(got)} windows"
assert got == expected[: len(got)]
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "trials"), [("full", 4), ("streamed lanes", 4), ("mixture", 4), ("workers", 3)])
def test_kills_of_a_training_program_cost_no_window_and_repeat_none(tmp_path, shards, kind, trials):
    done = run_program("-W", "ignore", "-c", KILLED, shards, kind, tmp_path / "state.json", trials)
    assert done.returncode == 0, done.stderr[-3000:]
