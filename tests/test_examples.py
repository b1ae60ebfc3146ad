"""The examples as a user runs them: stopped by kill -9, started again on another number of processes."""

import re
import socket
import subprocess
import sys
import textwrap
import time
from importlib.util import find_spec
from itertools import islice

import pytest
import torch
from support import ROOT, environment
from torch import nn

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


def one_process(program, *arguments):
    """The program as the one process of its job, without torchrun: a signal to it reaches it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    place = place if program == "ddp.py" else {}
    return {"args": [sys.executable, str(ROOT / "examples" / program), *arguments], "env": {**ENVIRONMENT, **place}}


def torchrun(program, *arguments, ranks=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return {"args": [*command, str(ROOT / "examples" / program), *arguments], "env": ENVIRONMENT}


def two_devices(program, *arguments):
    return one_process(program, *arguments, "--devices", "2")


def two_workers(program, *arguments):
    return one_process(program, *arguments, "--workers", "2")


def lines_of(seen):
    """The losses and windows that each step wrote, a line of each rank."""
    steps = {}
    for line in seen.read_text().splitlines() if seen.exists() else []:
        step, loss, windows = line.split(" ")
        steps.setdefault(int(step), []).append((float(loss), list(map(int, windows.split(",")))))
    return steps


@pytest.mark.parametrize(
    ("program", "twin", "again", "ranks"),
    [
        pytest.param("ddp.py --accumulate=2", "small_model", torchrun, 2),
        pytest.param("ddp.py --fsdp", "small_model", torchrun, 2),
        pytest.param("lightning_fit.py", "small_model", two_devices, 2, marks=needs("lightning")),
        pytest.param("trainer.py", "gpt2", torchrun, 2, marks=needs("transformers")),
        pytest.param("accelerate_loop.py --accumulate=2", "small_model", torchrun, 2, marks=needs("accelerate")),
        pytest.param("stateful_dataloader.py", "small_model", two_workers, 1, marks=needs("torchdata")),
    ],
)
def test_a_job_killed_and_started_again_goes_on_with_the_windows_that_were_due(
    shards, tmp_path, request, program, twin, again, ranks
):
    whole, validation = request.getfixturevalue(twin)
    program, *options = program.split()
    options += ["--eval-batch=12"] if program != "stateful_dataloader.py" else []  # 25 windows: one rank has 13
    arguments = [
        *options,
        str(shards),
        f"--batch={BATCH}",
        f"--steps={STEPS}",
        f"--checkpoint={tmp_path / 'checkpoint'}",
    ]
    killed, resumed = tmp_path / "killed.txt", tmp_path / "resumed.txt"
    with subprocess.Popen(
        **one_process(program, *arguments, f"--seen={killed}", "--pause=0.05"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        until = time.monotonic() + 150
        while len(lines_of(killed)) < 10 and time.monotonic() < until and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    before = lines_of(killed)
    assert 10 <= len(before) < STEPS, "killed in the middle"
    done = subprocess.run(
        **again(program, *arguments, f"--seen={resumed}"), timeout=200, capture_output=True, text=True
    )
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
    shards, tmp_path, ranks, batch_size
):
    program = "trainer.py"
    arguments = [str(shards), "--steps=0", f"--eval-batch={batch_size}", f"--checkpoint={tmp_path / 'checkpoint'}"]
    run = one_process(program, *arguments) if ranks == 1 else torchrun(program, *arguments, ranks=ranks)
    done = subprocess.run(**run, timeout=200, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = validation_loss(shards, make_gpt2(shards), lambda output: output.logits)
    assert printed_loss(done) == pytest.approx(expected, abs=1e-5)


@needs("accelerate")
@needs("torchdata")
def test_what_frameworks_would_do_wrong_with_a_loader_is_harmless_or_refused(shards):
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
    command = [sys.executable, "-c", textwrap.dedent(program), str(shards)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "let the loader start the processes: ShardLoader(..., workers=2)" in done.stdout


@needs("lightning")
def test_a_step_in_micro_batches_has_the_windows_of_a_step_in_one_also_where_epochs_meet(shards, tmp_path):
    seen = tmp_path / "seen"
    options = ["--steps", "13", "--batch", str(BATCH), "--accumulate", "4", "--seen", str(seen)]
    command = one_process("lightning_fit.py", str(shards), *options, "--checkpoint", str(tmp_path / "checkpoints"))
    subprocess.run(**command, check=True, cwd=tmp_path, capture_output=True, timeout=240)
    steps = lines_of(seen)
    assert sorted(steps) == list(range(1, 14))
    for number, batch in enumerate(islice(batches_of(shards), 13), start=1):
        assert [window for _, windows in steps[number] for window in windows] == batch.window_ids.tolist()
