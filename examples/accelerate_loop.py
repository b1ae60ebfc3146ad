"""Accelerate: accelerate launch --num_processes 2 examples/accelerate_loop.py SHARDS [--steps 40]

Stop it at any step and start it again, with another number of processes: it resumes exactly where it stopped.
`register_for_checkpointing` puts the loader's state into what `save_state` saves. At the end it prints the validation
loss, if the data set has a validation split. Two traps:

- Pass the model and the optimizer to `prepare`, not the loader. It divides a DataLoader around the loader among the
  processes a second time, and the samples left over never arrive.
- A kill in the middle of `save_state` leaves an incomplete folder, so a checkpoint is renamed once it is complete.
"""

import argparse
import shutil
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from pipeline import ShardLoader, TokenEmbedding, read_manifest

parser = argparse.ArgumentParser()
parser.add_argument("shards")
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--batch", type=int, default=8, help="windows of a step, of all processes together")
parser.add_argument("--accumulate", type=int, default=1, help="micro-batches that a step is divided into")
parser.add_argument("--eval-batch", type=int, default=16, help="validation windows of a batch, of each process")
parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints"))
parser.add_argument("--seen", type=Path, help="a file that gets loss and windows of each step, a line a process")
parser.add_argument("--pause", type=float, default=0.0, help="seconds after each step, to try a kill -9")
arguments = parser.parse_args()

accelerator = Accelerator(
    cpu=not torch.cuda.is_available(),  # unsaid, processes on CPUs do not find each other
    gradient_accumulation_steps=arguments.accumulate,
)
manifest = read_manifest(arguments.shards)
vocab_size, max_length = manifest.tokenizer["vocab_size"], manifest.splits["train"].max_length
loader = ShardLoader(
    arguments.shards,
    batch_size=arguments.batch // (accelerator.num_processes * arguments.accumulate),  # its rank is torch's
    step_size=arguments.batch,  # so epochs end at the same window, however a step is divided
)
torch.manual_seed(0)
embedding = TokenEmbedding(vocab_size, 32, max_length)
model = nn.Sequential(embedding, nn.LayerNorm(32), nn.Linear(32, vocab_size))
model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.5))
accelerator.register_for_checkpointing(loader)


def number(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def save(step: int) -> None:
    older = list(arguments.checkpoint.glob("step-*"))
    accelerator.save_state(arguments.checkpoint / "new")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (arguments.checkpoint / "new").rename(arguments.checkpoint / f"step-{step}")
        for checkpoint in older:
            shutil.rmtree(checkpoint)
    accelerator.wait_for_everyone()


def validate() -> float:
    """Return the mean loss of the validation split: sums over batches and ranks, divided once."""
    batches = ShardLoader(
        arguments.shards,
        split="validation",
        batch_size=arguments.eval_batch,
        shuffle="none",
        drop_last=False,
        restart=True,
    )
    totals = torch.zeros(2, dtype=torch.float64, device=accelerator.device)  # the losses of all targets, their number
    with torch.no_grad():
        for batch in batches:
            here = batch.to(accelerator.device)
            logits = model(here.input_ids)
            totals[0] += nn.functional.cross_entropy(logits.flatten(0, 1), here.target_ids.flatten(), reduction="sum")
            totals[1] += batch.num_targets
    totals = accelerator.reduce(totals, "sum")
    return float(totals[0] / totals[1])


step = 0
if latest := max(arguments.checkpoint.glob("step-*"), key=number, default=None):
    accelerator.load_state(latest)  # the loader's state is the same small dict on every rank
    step = number(latest)

losses, windows = [], []  # of this step
while step < arguments.steps:
    for batch in loader:
        here = batch.to(accelerator.device)
        with accelerator.accumulate(model):  # exchanges gradients and steps with the last micro-batch of a step
            logits = model(here.input_ids)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), here.target_ids.flatten())
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        windows += batch.window_ids.tolist()
        if not accelerator.sync_gradients:
            continue
        step += 1
        if arguments.seen:
            with arguments.seen.open("a") as file:
                file.write(f"{step} {sum(losses) / len(losses):.9f} {','.join(map(str, windows))}\n")
        losses, windows = [], []
        save(step)
        time.sleep(arguments.pause)
        if step == arguments.steps:
            break

if "validation" in manifest.splits:
    accelerator.print(f"validation loss {validate():.6f}")
accelerator.end_training()
