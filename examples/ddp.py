"""Plain PyTorch, one process or many: torchrun --nproc-per-node 2 examples/ddp.py SHARDS [--steps 40]

Stop it at any step and start it again, with another number of processes: it resumes exactly where it stopped. The
batch of all processes together stays the same, so the losses continue as well.
"""

import argparse
import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline import ShardLoader, TokenEmbedding, read_manifest

parser = argparse.ArgumentParser()
parser.add_argument("shards")
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--batch", type=int, default=8, help="windows of a step, of all processes together")
parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
parser.add_argument("--seen", type=Path, help="a file that gets loss and windows of each step, a line a process")
parser.add_argument("--pause", type=float, default=0.0, help="seconds after each step, to try a kill -9")
arguments = parser.parse_args()

torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")

manifest = read_manifest(arguments.shards)
vocab_size, max_length = manifest.tokenizer["vocab_size"], manifest.splits["train"].max_length
loader = ShardLoader(arguments.shards, batch_size=arguments.batch // world_size)  # its rank is torch's
torch.manual_seed(0)
embedding = TokenEmbedding(vocab_size, 32, max_length)
model = nn.Sequential(embedding, nn.LayerNorm(32), nn.Linear(32, vocab_size)).to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

step = 0
if arguments.checkpoint.exists():
    saved = torch.load(arguments.checkpoint, map_location=device)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    loader.load_state_dict(saved["loader"])  # the same small dict on every rank
    step = saved["step"]
ddp = DistributedDataParallel(model)

while step < arguments.steps:
    for batch in loader:
        logits = ddp(batch.input_ids.to(device))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.target_ids.to(device).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if arguments.seen:
            with arguments.seen.open("a") as file:
                file.write(f"{step} {loss.item():.9f} {','.join(map(str, batch.window_ids.tolist()))}\n")
        if rank == 0:
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save({**saved, "loader": loader.state_dict()}, arguments.checkpoint.with_suffix(".new"))
            arguments.checkpoint.with_suffix(".new").replace(arguments.checkpoint)
        time.sleep(arguments.pause)
        if step == arguments.steps:
            break

torch.distributed.destroy_process_group()
