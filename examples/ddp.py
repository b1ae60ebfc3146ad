"""Plain PyTorch, one process or many: torchrun --nproc-per-node 2 examples/ddp.py SHARDS [--steps 40] [--fsdp]

With `--accumulate 4` each process divides its part of a step into 4 batches. The loader knows the step's size, so it
ends an epoch with a complete step.

Stop it at any step and start it again, with another number of processes: it resumes exactly where it stopped. The
batch of all processes together stays the same, so the losses continue as well. At the end it prints the validation
loss, if the data set has a validation split.

With `--fsdp` the model's weights are sharded over the processes (FSDP2). The embedding is a layer of the model in both
cases and is called in its `forward`, where the weights are gathered.
"""

import argparse
import os
import time
from itertools import islice
from pathlib import Path

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from pipeline import ShardLoader, TokenEmbedding, read_manifest

parser = argparse.ArgumentParser()
parser.add_argument("shards")
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--batch", type=int, default=8, help="windows of a step, of all processes together")
parser.add_argument("--accumulate", type=int, default=1, help="micro-batches that a step is divided into")
parser.add_argument("--fsdp", action="store_true", help="shard the weights instead of copying them")
parser.add_argument("--eval-batch", type=int, default=16, help="validation windows of a batch, of each process")
parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
parser.add_argument("--seen", type=Path, help="a file that gets loss and windows of each step, a line a process")
parser.add_argument("--pause", type=float, default=0.0, help="seconds after each step, to try a kill -9")
arguments = parser.parse_args()

torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")

manifest = read_manifest(arguments.shards)
vocab_size, max_length = manifest.tokenizer["vocab_size"], manifest.splits["train"].max_length
loader = ShardLoader(
    arguments.shards,
    batch_size=arguments.batch // (world_size * arguments.accumulate),  # its rank is torch's
    step_size=arguments.batch,  # so epochs end at the same window, however a step is divided
)
torch.manual_seed(0)
embedding = TokenEmbedding(vocab_size, 32, max_length)
model = nn.Sequential(embedding, nn.LayerNorm(32), nn.Linear(32, vocab_size)).to(device)

step, saved = 0, None
if arguments.checkpoint.exists():
    saved = torch.load(arguments.checkpoint, map_location=device)
    model.load_state_dict(saved["model"])  # before the weights are sharded
    loader.load_state_dict(saved["loader"])  # the same small dict on every rank
    step = saved["step"]
if arguments.fsdp:
    fully_shard(model, mesh=init_device_mesh(device.type, (world_size,)))
parallel = model if arguments.fsdp else DistributedDataParallel(model)
optimizer = torch.optim.SGD(parallel.parameters(), lr=0.5)
if saved:
    optimizer.load_state_dict(saved["optimizer"])
complete = StateDictOptions(full_state_dict=True)  # for any number of processes


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
    totals = torch.zeros(2, dtype=torch.float64, device=device)  # the losses of all targets, and their number
    with torch.no_grad():
        for batch in batches:
            logits, targets = parallel(batch.input_ids.to(device)), batch.target_ids.to(device)
            totals[0] += nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
            totals[1] += batch.num_targets
    torch.distributed.all_reduce(totals)
    return float(totals[0] / totals[1])


def exchange_gradients(is_wanted: bool) -> None:
    """Exchange gradients with the next backward pass, or only add them up: do what `no_sync` of DDP does."""
    if isinstance(parallel, FSDPModule):
        parallel.set_requires_gradient_sync(is_wanted)
    else:
        parallel.require_backward_grad_sync = is_wanted


while step < arguments.steps:
    batches = iter(loader)
    while step < arguments.steps and (micro_batches := list(islice(batches, arguments.accumulate))):
        optimizer.zero_grad()
        losses = []
        for number, batch in enumerate(micro_batches, 1):
            exchange_gradients(number == arguments.accumulate)
            logits = parallel(batch.input_ids.to(device))
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.target_ids.to(device).flatten())
            (loss / arguments.accumulate).backward()
            losses.append(loss.detach())
        optimizer.step()
        step += 1
        if arguments.seen:
            windows = torch.cat([batch.window_ids for batch in micro_batches]).tolist()
            with arguments.seen.open("a") as file:
                file.write(f"{step} {torch.stack(losses).mean().item():.9f} {','.join(map(str, windows))}\n")
        weights = get_model_state_dict(parallel, options=complete)  # on all ranks, since it gathers sharded weights
        if rank == 0:  # optimizers with a state of their own need `get_optimizer_state_dict` if weights are sharded
            saved = {"model": weights, "optimizer": optimizer.state_dict(), "step": step}
            torch.save({**saved, "loader": loader.state_dict()}, arguments.checkpoint.with_suffix(".new"))
            arguments.checkpoint.with_suffix(".new").replace(arguments.checkpoint)
        time.sleep(arguments.pause)

if "validation" in manifest.splits:
    loss_of_all = validate()
    if rank == 0:
        print(f"validation loss {loss_of_all:.6f}")
torch.distributed.barrier()  # no process leaves while another one needs it
torch.distributed.destroy_process_group()
