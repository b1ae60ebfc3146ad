"""Hugging Face Trainer: torchrun --nproc-per-node 2 examples/trainer.py SHARDS [--steps 40]

Stop it at any step and start it again, with another number of processes: it resumes exactly where it stopped.
At the end it prints the validation loss, if the data set has a validation split. Six traps:

- The models shift `labels` once more. `shift_labels` are targets that are shifted already; the models compute a loss
  only if there are `labels` too.
- A `train_dataset` would be divided among the processes a second time. `get_train_dataloader` returns the loader as it
  is, and with `ignore_data_skip` it stays where its state has put it.
- With a `len`, the Trainer counts a resumed epoch from its start, and omits the last step of the epoch unless
  `gradient_accumulation_steps` divides it. So it gets an endless stream here, and counts steps only.
- `position_ids` keep documents apart only without a cache and without an `attention_mask`. So the config says
  `use_cache=False`, and the items have no mask.
- The Trainer's own evaluation averages the means of batches: the last one, mostly rows that only fill it, weighs as
  much as the others. `evaluate` below adds up losses and targets over batches and processes, and divides once.
- A kill in the middle of a save leaves an incomplete folder. The loader's state is written last, so a checkpoint
  without it is incomplete.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from pipeline import ShardLoader, read_manifest

parser = argparse.ArgumentParser()
parser.add_argument("shards")
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--batch", type=int, default=8, help="windows of a step, of all processes together")
parser.add_argument("--eval-batch", type=int, default=16, help="validation windows of a batch, of each process")
parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints"))
parser.add_argument("--seen", type=Path, help="a file that gets loss and windows of each step, a line a process")
parser.add_argument("--pause", type=float, default=0.0, help="seconds after each step, to try a kill -9")
arguments = parser.parse_args()


class Batches:
    """The loader's batches as the dicts that a model takes, epoch after epoch."""

    windows: tuple[int, ...] = ()  # of the batch in hand

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            for batch in loader:
                self.windows = tuple(batch.window_ids.tolist())
                items = {"input_ids": batch.input_ids, "labels": batch.target_ids, "shift_labels": batch.target_ids}
                yield {**items, "position_ids": batch["position_ids"]}


class WindowTrainer(Trainer):
    def get_train_dataloader(self) -> Batches:  # type: ignore[override]  # it takes any iterable
        return batches

    def training_step(self, *given: Any, **named: Any) -> torch.Tensor:
        loss = super().training_step(*given, **named)
        if arguments.seen:
            with arguments.seen.open("a") as file:
                file.write(f"{self.state.global_step + 1} {loss.item():.9f} {','.join(map(str, batches.windows))}\n")
        return loss

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Return the mean loss of the validation split: sums over batches and ranks, divided once."""
        validation = ShardLoader(
            arguments.shards,
            split="validation",
            batch_size=arguments.eval_batch,
            shuffle="none",
            drop_last=False,
            restart=True,
        )
        assert isinstance(self.model, torch.nn.Module), "the Trainer was given a model"
        model = self.model.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self.args.device)  # the losses of all targets, their number
        with torch.no_grad():
            for batch in validation:
                here = batch.to(self.args.device)
                logits = model(input_ids=here.input_ids, use_cache=False).logits
                totals[0] += torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), here.target_ids.flatten(), reduction="sum"
                )
                totals[1] += batch.num_targets
        totals = self.accelerator.reduce(totals, "sum")
        metrics = {f"{metric_key_prefix}_loss": float(totals[0] / totals[1])}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class SaveLoader(TrainerCallback):
    def on_save(self, *_: Any, **__: Any) -> None:
        trainer.accelerator.wait_for_everyone()  # each process saves a part of its own
        if trainer.is_world_process_zero():
            file = arguments.checkpoint / f"checkpoint-{trainer.state.global_step}" / "loader.json"
            file.with_suffix(".new").write_text(json.dumps(loader.state_dict()))
            file.with_suffix(".new").replace(file)
        time.sleep(arguments.pause)


options = TrainingArguments(
    arguments.checkpoint,
    max_steps=arguments.steps,
    learning_rate=1e-2,
    lr_scheduler_type="constant",
    save_steps=1,
    save_total_limit=2,  # the previous one is deleted once the next one is complete
    ignore_data_skip=True,
    use_cpu=not torch.cuda.is_available(),  # unsaid, processes on CPUs do not find each other
    report_to="none",
    disable_tqdm=True,
)
loader = ShardLoader(
    arguments.shards,
    batch_size=arguments.batch // options.world_size,  # its rank is torch's
    document_ids=True,
)
batches = Batches()
manifest = read_manifest(arguments.shards)
torch.manual_seed(0)
config = GPT2Config(
    vocab_size=manifest.tokenizer["vocab_size"],
    bos_token_id=None,
    eos_token_id=None,
    use_cache=False,
    n_positions=manifest.splits["train"].max_length,
    n_embd=32,
    n_layer=1,
    n_head=2,
    resid_pdrop=0.0,  # so that the losses do not depend on the number of processes
    embd_pdrop=0.0,
    attn_pdrop=0.0,
)
trainer = WindowTrainer(GPT2LMHeadModel(config), options, callbacks=[SaveLoader()])

complete = {
    int(file.parent.name.removeprefix("checkpoint-")): file for file in arguments.checkpoint.glob("*/loader.json")
}
step = max(complete, default=0)
if step:
    loader.load_state_dict(json.loads(complete[step].read_text()))
if step < arguments.steps:  # the Trainer does a step before it looks
    trainer.train(resume_from_checkpoint=str(complete[step].parent) if step else None)
if "validation" in manifest.splits:
    loss = trainer.evaluate()["eval_loss"]
    if trainer.is_world_process_zero():
        print(f"validation loss {loss:.6f}")
