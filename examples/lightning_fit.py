"""Lightning: python examples/lightning_fit.py SHARDS [--steps 40] [--devices 2]

Stop it at any step and start it again, with another number of devices: it resumes exactly where it stopped.
Lightning keeps the loader's state in its own checkpoints. If the data set has a validation split, it validates after
each epoch and prints the loss at the end. Four traps:

- Return the loader itself. A DataLoader around it has no state, so a resume starts the epoch again; around something
  without an exact `len`, Lightning reads a batch ahead, which a resume then omits.
- Make it in `train_dataloader`. Before that the processes do not know their ranks, so the loader would be rejected.
- The sanity check and `limit_val_batches` leave the validation loader early: with `restart` it starts again each time.
- `limit_train_batches` leaves an epoch early too. Then the training loader needs `restart`, and `set_epoch` at the
  start of each epoch and of a resumed one, which Lightning calls for samplers only.
"""

import argparse
import time
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from pipeline import Batch, ShardLoader, TokenEmbedding, read_manifest

parser = argparse.ArgumentParser()
parser.add_argument("shards")
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--batch", type=int, default=8, help="windows of a step, of all processes together")
parser.add_argument("--accumulate", type=int, default=1, help="micro-batches that a step is divided into")
parser.add_argument("--devices", type=int, default=1)
parser.add_argument("--limit", type=int, help="batches of an epoch, if not all: Lightning's limit_train_batches")
parser.add_argument("--eval-batch", type=int, default=16, help="validation windows of a batch, of each process")
parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints"))
parser.add_argument("--seen", type=Path, help="a file that gets loss and windows of each step, a line a process")
parser.add_argument("--pause", type=float, default=0.0, help="seconds after each step, to try a kill -9")
arguments = parser.parse_args()


class LanguageModel(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        manifest = read_manifest(arguments.shards)
        vocab_size, max_length = manifest.tokenizer["vocab_size"], manifest.splits["train"].max_length
        torch.manual_seed(0)
        embedding = TokenEmbedding(vocab_size, 32, max_length)
        self.layers = nn.Sequential(embedding, nn.LayerNorm(32), nn.Linear(32, vocab_size))
        self.totals = torch.zeros(2)

    def train_dataloader(self) -> ShardLoader:
        self.loader = ShardLoader(
            arguments.shards,
            batch_size=arguments.batch // (self.trainer.world_size * arguments.accumulate),  # its rank is torch's
            step_size=arguments.batch,  # so epochs end at the same window, however a step is divided
            restart=bool(arguments.limit),
        )
        return self.loader

    def on_train_epoch_start(self) -> None:
        if arguments.limit:
            self.loader.set_epoch(self.current_epoch)

    on_train_start = on_train_epoch_start  # a resume calls this one alone

    def val_dataloader(self) -> ShardLoader | list[ShardLoader]:
        if "validation" not in read_manifest(arguments.shards).splits:
            return []
        return ShardLoader(
            arguments.shards,
            split="validation",
            batch_size=arguments.eval_batch,
            shuffle="none",
            drop_last=False,
            restart=True,
        )

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:  # Lightning has moved the batch to the device
        logits = self.layers(batch.input_ids)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.target_ids.flatten())
        if arguments.seen:
            with arguments.seen.open("a") as file:
                windows = ",".join(map(str, batch.window_ids.tolist()))
                file.write(f"{self.global_step + 1} {loss.item():.9f} {windows}\n")
        time.sleep(arguments.pause)
        return loss

    def on_validation_epoch_start(self) -> None:  # the losses of all targets, and their number
        self.totals = torch.zeros(2, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, _: int) -> None:
        logits, targets = self.layers(batch.input_ids), batch.target_ids
        self.totals[0] += nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        self.totals[1] += batch.num_targets

    def on_validation_epoch_end(self) -> None:  # sums over batches and ranks, divided once
        totals = self.trainer.strategy.reduce(self.totals, reduce_op="sum")
        self.log("validation_loss", totals[0] / totals[1], sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


every_step = ModelCheckpoint(arguments.checkpoint, save_top_k=0, save_last=True, every_n_train_steps=1)
trainer = lightning.Trainer(
    max_steps=arguments.steps,
    max_epochs=-1,
    devices=arguments.devices,
    limit_train_batches=arguments.limit,
    accumulate_grad_batches=arguments.accumulate,
    callbacks=[every_step],
    logger=False,
)
model = LanguageModel()
trainer.fit(model, ckpt_path="last")
if "validation" in read_manifest(arguments.shards).splits:
    results = trainer.validate(model, verbose=False)
    if trainer.is_global_zero:
        print(f"validation loss {results[0]['validation_loss']:.6f}")
