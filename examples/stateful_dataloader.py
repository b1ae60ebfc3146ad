"""torchdata's StatefulDataLoader: python examples/stateful_dataloader.py SHARDS [--steps 40]

For a training program that needs this class; the loader itself has the same two methods and needs no wrapper.
Stop it at any step and start it again: it resumes exactly where it stopped. Two traps:

- `batch_size=None`: the loader yields batches already.
- `num_workers=0`: each worker would decode everything and have a state of its own, which is rejected. If processes are
  to decode, let the loader start them: `--workers 2`.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import nn
from torchdata.stateful_dataloader import StatefulDataLoader

from pipeline import ShardLoader, TokenEmbedding, read_manifest

parser = argparse.ArgumentParser()
parser.add_argument("shards")
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--workers", type=int, default=0, help="processes that decode, instead of threads")
parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
parser.add_argument("--seen", type=Path, help="a file that gets loss and windows of each step")
parser.add_argument("--pause", type=float, default=0.0, help="seconds after each step, to try a kill -9")
arguments = parser.parse_args()


def main() -> None:
    manifest = read_manifest(arguments.shards)
    vocab_size, max_length = manifest.tokenizer["vocab_size"], manifest.splits["train"].max_length
    batches = ShardLoader(arguments.shards, batch_size=arguments.batch, workers=arguments.workers)
    loader = StatefulDataLoader(batches, batch_size=None, num_workers=0)
    torch.manual_seed(0)
    embedding = TokenEmbedding(vocab_size, 32, max_length)
    model = nn.Sequential(embedding, nn.LayerNorm(32), nn.Linear(32, vocab_size))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    step = 0
    if arguments.checkpoint.exists():
        saved = torch.load(arguments.checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
        step = saved["step"]

    while step < arguments.steps:
        for batch in loader:
            logits = model(batch.input_ids)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.target_ids.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if arguments.seen:
                with arguments.seen.open("a") as file:
                    file.write(f"{step} {loss.item():.9f} {','.join(map(str, batch.window_ids.tolist()))}\n")
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save({**saved, "loader": loader.state_dict()}, arguments.checkpoint.with_suffix(".new"))
            arguments.checkpoint.with_suffix(".new").replace(arguments.checkpoint)
            time.sleep(arguments.pause)
            if step == arguments.steps:
                break


if __name__ == "__main__":  # processes that decode import this file where the system does not fork
    main()
