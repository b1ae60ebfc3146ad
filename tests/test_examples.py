"""The examples as a user runs them: stopped by kill -9, started again on another number of processes.

Importing the frameworks takes ten seconds, so one process imports them once and is forked for each process of a job.
What a launcher gives to its processes is in their environment. torchrun itself starts `ddp.py` in `test_how_to.py`.
"""

import re
import signal
import textwrap
from importlib.util import find_spec
from itertools import count, islice
from typing import NamedTuple

import pytest
import torch
from support import ROOT, environment, open_ranks
from torch import nn
from warm import Server

from pipeline import ShardLoader, TokenEmbedding, WindowDataset, read_manifest

pytestmark = pytest.mark.slow
ENVIRONMENT = environment(OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")
STEPS, BATCH = 30, 32  # an epoch has 11 batches


@pytest.fixture(scope="module")
def shards(write_text):
    text = "".join(f"{number} bottles of beer. " for number in range(300))
    return write_text(text, tokenizer="bytes", max_length=16, windows_per_group=16, validation=0.065)


def needs(package):
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed; the extra `dev` has it")


def batches_of(path):
    loader = ShardLoader(path, batch_size=BATCH)
    while True:
        yield from loader


def trained(path, model, optimizer, logits_of=lambda output: output, clip=None):
    """The twin of every example: no framework, no stop.

    The loss and the windows of each step, numbered from 1, and at the end the validation loss, window by window.
    """
    seen = {}
    for step, batch in enumerate(islice(batches_of(path), STEPS), start=1):
        logits = logits_of(model(batch.input_ids))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.target_ids.flatten())
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        seen[step] = loss.item(), batch.window_ids.tolist()
    assert seen[STEPS][0] < seen[1][0]
    return seen, validation_loss(path, model, logits_of)


def validation_loss(path, model, logits_of=lambda output: output):
    """The slow twin of a validation: window by window, the losses of all targets in one list."""
    losses = []
    with torch.no_grad():
        for inputs, targets in WindowDataset(path, split="validation", pairs=True):
            logits = logits_of(model.eval()(inputs[None]))[0]
            losses += nn.functional.cross_entropy(logits, targets, reduction="none").tolist()
    return sum(losses) / len(losses)


def make_small_model(shards):
    vocab_size = read_manifest(shards).tokenizer["vocab_size"]
    torch.manual_seed(0)
    return nn.Sequential(TokenEmbedding(vocab_size, 32, 16), nn.LayerNorm(32), nn.Linear(32, vocab_size))


@pytest.fixture(scope="module")
def small_model(shards):
    model = make_small_model(shards)
    return trained(shards, model, torch.optim.SGD(model.parameters(), lr=0.5))


def make_gpt2(shards):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_positions": 16, "n_embd": 32, "n_layer": 1, "n_head": 2}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=read_manifest(shards).tokenizer["vocab_size"], **sizes, **dropout)
    ).train()


@pytest.fixture(scope="module")
def gpt2(shards):
    model = make_gpt2(shards)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    return trained(shards, model, optimizer, logits_of=lambda output: output.logits, clip=1.0)


FRAMEWORKS = {
    "lightning": ["lightning", "lightning.pytorch.callbacks"],
    "transformers": ["transformers.trainer", "transformers.models.gpt2.modeling_gpt2"],
    "accelerate": ["accelerate"],
    "torchdata": ["torchdata.stateful_dataloader"],
}


@pytest.fixture(scope="module")
def server():
    """A process that has imported the frameworks."""
    names = [name for package, names in FRAMEWORKS.items() if find_spec(package) for name in names]
    server = Server("torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict", *names)
    yield server
    server.close()


class Ended(NamedTuple):
    """What `subprocess.run` returns."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def start(server, tmp_path):
    """Start the processes of a job: their numbers, and for each the files of its output and its errors."""

    names, stores = count(), []

    def start_all(*command, ranks, is_launched=True):
        own, store = open_ranks(ranks) if is_launched else ([{}], None)
        stores.append(store)
        started = {}
        for more in own:
            files = [tmp_path / f"{next(names)}.{kind}" for kind in ("out", "err")]
            number = server.start(*command, cwd=ROOT, environment={**ENVIRONMENT, **more}, files=files)
            started[number] = files
        return started

    return start_all


@pytest.fixture
def run(server, start):
    """Run a job to its end, and return what its processes said."""

    def run_all(*command, ranks=1):
        started = start(*command, ranks=ranks, is_launched=ranks > 1)
        codes = [server.wait(number) for number in started]
        out, err = ("".join(files[k].read_text() for files in started.values()) for k in range(2))
        return Ended(max(codes, key=abs), out, err)

    return run_all


def lines_of(seen):
    """The losses and windows that each step wrote, a line of each rank."""
    steps = {}
    for line in seen.read_text().splitlines() if seen.exists() else []:
        step, loss, windows = line.split(" ")
        steps.setdefault(int(step), []).append((float(loss), list(map(int, windows.split(",")))))
    return steps


# The system ends the program as kill -9 does, a few milliseconds after the program opens the file for its tenth line.
KILL = """
    import itertools, runpy, signal, sys

    steps = itertools.count(1)
    file = sys.argv[1]

    def watch(event, arguments):
        if event == "open" and str(arguments[0]) == file and next(steps) == 10:
            signal.setitimer(signal.ITIMER_REAL, 0.01)

    sys.addaudithook(watch)
    del sys.argv[:2]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("program", "twin", "more", "ranks"),
    [
        pytest.param("ddp.py --accumulate=2", "small_model", [], 2),
        pytest.param("ddp.py --fsdp", "small_model", [], 2),
        pytest.param("lightning_fit.py", "small_model", ["--devices=2"], 2, marks=needs("lightning")),
        pytest.param("trainer.py", "gpt2", [], 2, marks=needs("transformers")),
        pytest.param("accelerate_loop.py --accumulate=2", "small_model", [], 2, marks=needs("accelerate")),
        pytest.param("stateful_dataloader.py", "small_model", ["--workers=2"], 1, marks=needs("torchdata")),
    ],
)
def test_a_job_killed_and_started_again_goes_on_with_the_windows_that_were_due(
    shards, tmp_path, request, server, start, run, program, twin, more, ranks
):
    whole, validation = request.getfixturevalue(twin)
    name, *options = program.split()
    options += ["--eval-batch=12"] if program != "stateful_dataloader.py" else []  # 25 windows: one rank has 13
    arguments = [
        ROOT / "examples" / name,
        *options,
        str(shards),
        f"--batch={BATCH}",
        f"--steps={STEPS}",
        f"--checkpoint={tmp_path / 'checkpoint'}",
    ]
    killed, resumed = tmp_path / "killed.txt", tmp_path / "resumed.txt"
    needs_launcher = name == "ddp.py"  # also for one process
    command = ["-c", textwrap.dedent(KILL), killed, *arguments, f"--seen={killed}"]
    ((number, files),) = start(*command, ranks=1, is_launched=needs_launcher).items()
    assert server.wait(number) == -signal.SIGALRM, files[1].read_text()
    before = lines_of(killed)
    assert 9 <= len(before) < STEPS, "killed in the middle"
    done = run(*arguments, *more, f"--seen={resumed}", ranks=ranks)
    assert done.returncode == 0, done.stderr
    after = lines_of(resumed)
    # Each step leaves a checkpoint, so at most the last one before the kill is done a second time.
    assert list(before) == list(range(1, len(before) + 1))
    assert sorted(after) == list(range(min(after), STEPS + 1))
    assert min(after) in {len(before), len(before) + 1}
    for steps, processes in ((before, 1), (after, ranks)):
        for step, lines in steps.items():
            loss, windows = whole[step]
            assert len(lines) == processes
            assert sorted(window for _, part in lines for window in part) == sorted(windows)
            assert sum(loss for loss, _ in lines) / processes == pytest.approx(loss, rel=1e-4)
    if program != "stateful_dataloader.py":
        assert printed_loss(done) == pytest.approx(validation, rel=1e-4)


def printed_loss(done):
    (loss,) = re.findall(r"^validation loss ([\d.]+)$", done.stdout, re.MULTILINE)
    return float(loss)


@pytest.mark.parametrize(
    ("ranks", "batch_size"),
    [(3, 4), (1, 1000)],  # 25 windows in batches of 12: two of the three ranks get none of the last one
)
@needs("transformers")
def test_the_trainers_validation_is_that_of_single_windows_at_any_batch_size_and_number_of_ranks(
    shards, tmp_path, run, ranks, batch_size
):
    arguments = [str(shards), "--steps=0", f"--eval-batch={batch_size}", f"--checkpoint={tmp_path / 'checkpoint'}"]
    done = run(ROOT / "examples" / "trainer.py", *arguments, ranks=ranks)
    assert done.returncode == 0, done.stderr
    expected = validation_loss(shards, make_gpt2(shards), lambda output: output.logits)
    assert printed_loss(done) == pytest.approx(expected, abs=1e-5)


@needs("accelerate")
@needs("torchdata")
def test_what_frameworks_would_do_wrong_with_a_loader_is_harmless_or_refused(shards, run):
    program = """
        import sys
        from accelerate import Accelerator
        from torchdata.stateful_dataloader import StatefulDataLoader
        from pipeline import ShardLoader

        loader = ShardLoader(sys.argv[1])
        assert Accelerator(cpu=True).prepare(loader) is loader
        try:
            next(iter(StatefulDataLoader(loader, batch_size=None, num_workers=1)))
        except ValueError as error:
            print(error)
    """
    done = run("-c", textwrap.dedent(program), shards)
    assert done.returncode == 0, done.stderr
    assert "let the loader start the processes: ShardLoader(..., workers=2)" in done.stdout


@needs("lightning")
def test_a_step_in_micro_batches_has_the_windows_of_a_step_in_one_also_where_epochs_meet(shards, tmp_path, run):
    seen = tmp_path / "seen"
    options = ["--steps", "13", "--batch", str(BATCH), "--accumulate", "4", "--seen", str(seen)]
    options += ["--checkpoint", str(tmp_path / "checkpoints")]
    done = run(ROOT / "examples" / "lightning_fit.py", shards, *options)
    assert done.returncode == 0, done.stderr
    steps = lines_of(seen)
    assert sorted(steps) == list(range(1, 14))
    for number, batch in enumerate(islice(batches_of(shards), 13), start=1):
        assert [window for _, windows in steps[number] for window in windows] == batch.window_ids.tolist()


@needs("torchdata")
def test_a_program_does_nothing_where_a_process_that_decodes_imports_it(shards, tmp_path, run):
    """As on macOS, where such a process is not a fork."""
    program = "import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__mp_main__')"
    example, seen = ROOT / "examples" / "stateful_dataloader.py", tmp_path / "seen"
    done = run("-c", program, example, shards, "--steps=1", f"--seen={seen}", f"--checkpoint={tmp_path / 'checkpoint'}")
    assert done.returncode == 0, done.stderr
    assert not seen.exists()
