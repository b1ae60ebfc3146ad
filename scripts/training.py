"""Training on shards: the loop, its checkpoint, and its files.

A run is a function of its settings, its seed and its data set. A checkpoint contains the model, the optimizer, the
loader's state and the metrics so far. It is one file, written under a temporary name and renamed. It is read as plain
tensors (`weights_only=True`), so nothing in it is executed. The learning rate depends only on the step. So on one
device a run that was stopped and resumed gives the same weights, bit for bit, as an undisturbed one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from gpt import GPT, summed_loss, unigram_loss
from torch import distributed, nn

from pipeline import TokenEmbedding
from pipeline.base.atomic import replace_file, write_text
from pipeline.base.progress import ProgressBar
from pipeline.base.wording import counted
from pipeline.cli.report import csv_text
from pipeline.cli.svg import Series, chart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pipeline import ShardLoader
    from pipeline.loader.batch import Batch

CHECKPOINT, METRICS, CURVE = "checkpoint.pt", "metrics.csv", "loss.svg"
KEY_OF = {  # of the settings whose key is not train.<name>
    "layers": "model.layers",
    "heads": "model.heads",
    "build": "model.build",
    "dim": "embedding.dim",
    "positions": "embedding.positions",
    "seed": "embedding.seed",
}
KEYS = {"model", "optimizer", "loader", "step", "tokens", "global_batch", "settings", "metrics"}  # of a checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What decides a run besides its data. A checkpoint resumes only with the same settings."""

    layers: int = 2
    heads: int = 4
    dim: int = 64
    positions: str = "learned"
    seed: int = 0
    steps: int = 300
    learning_rate: float = 3e-3  # the highest; a cosine falls from it to a tenth
    warmup: int = 20  # steps
    weight_decay: float = 0.1
    clip: float = 1.0  # of the gradient's norm
    build: str | None = None  # the function that makes the model; None means GPT


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One line of `metrics.csv`. Losses are in nats per token."""

    step: int
    tokens: int  # window tokens so far, of all ranks
    train_loss: float  # mean since the previous line
    validation_loss: float
    learning_rate: float
    tokens_per_second: float


def build_gpt(vocab_size: int, max_length: int, settings: Settings) -> GPT:
    """Make the small GPT of the settings."""
    return GPT(
        vocab_size,
        max_length,
        dim=settings.dim,
        layers=settings.layers,
        heads=settings.heads,
        positions=settings.positions,
        seed=settings.seed,
    )


def train(
    loader: ShardLoader,
    validation: ShardLoader | None,
    settings: Settings,
    *,
    folder: Path | None = None,
    resume: Path | None = None,
    validate_every: int = 50,
    checkpoint_every: int = 100,
    device: str = "cpu",
    bf16: bool = False,
    compiled: bool = False,
    observe: Callable[[int, Any], object] = lambda _step, _model: None,
    report: Callable[[Metric], object] = lambda _row: None,
    build: Callable[[int, int, Settings], nn.Module] = build_gpt,
    progress: bool = True,
) -> tuple[Any, list[Metric]]:
    """Train a model on the loader's batches, epoch after epoch, and return it with its metrics.

    `observe` is called with a step's number and the model: before the first step, and at each metric. `report`
    is called with each new row of metrics. `build` makes the model from the size of the vocabulary, the
    longest window and the settings; it maps int64 [B, T] to scores [B, T, V]. In a process group each rank trains on
    its part of the batch, and only rank 0 writes files.

    Raises:
        ValueError: the loader has no batch, the checkpoint belongs to another run, or the loss is no longer finite.

    """
    if len(loader) == 0:
        raise ValueError(f"the train split has {counted(len(loader.order), 'window')}, fewer than one batch needs")
    model = build(loader.reader.tokenizer["vocab_size"], loader.reader.max_length, settings).to(device)
    optimizer = make_optimizer(model, settings)
    metrics: list[Metric] = []
    first = tokens = 0
    world_size = distributed.get_world_size() if distributed.is_initialized() else 1
    is_main = not distributed.is_initialized() or distributed.get_rank() == 0
    global_batch = world_size * loader.batch_size
    if resume is not None:
        state = read_checkpoint(resume, settings, device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])
        metrics, first = [Metric(**row) for row in state["metrics"]], state["step"]
        tokens = state["tokens"]
        if is_main and state["global_batch"] != global_batch:
            print(
                f"{resume}: its run had {counted(state['global_batch'], 'window')} per step, this one has "
                f"{global_batch:,}, so the resumed run is not exact",
                file=sys.stderr,
            )
    else:
        observe(0, model)
    stepped: Any = nn.parallel.DistributedDataParallel(model) if distributed.is_initialized() else model
    stepped = torch.compile(stepped) if compiled else stepped
    precision = torch.autocast(torch.device(device).type, torch.bfloat16) if bf16 else contextlib.nullcontext()
    bar = ProgressBar("train", settings.steps, "steps", done=first)
    batches = endless(loader)
    total, count, started = 0.0, 0, time.perf_counter()
    with bar if is_main and progress else contextlib.nullcontext():
        for step in range(first + 1, settings.steps + 1):
            rate = set_learning_rate(optimizer, learning_rate(step, settings))
            batch = next(batches)
            with precision:
                loss, targets = summed_loss(stepped, batch.to(device))
            loss_sum, targets_sum = take_step(model, optimizer, loss, targets, step=step, settings=settings)
            total += loss_sum
            count += targets_sum
            tokens += world_size * batch.input_ids.numel()
            bar.update()
            if step % validate_every == 0 or step == settings.steps:
                row = Metric(
                    step=step,
                    tokens=tokens,
                    train_loss=total / count,
                    tokens_per_second=count / (time.perf_counter() - started),
                    validation_loss=math.nan if validation is None else evaluate(model, validation, device=device),
                    learning_rate=rate,
                )
                metrics.append(row)
                losses = f"loss {row.train_loss:.3f}, validation {row.validation_loss:.3f}"
                bar.annotate(f"{losses}, {row.tokens_per_second:,.0f} tokens/s")
                observe(step, model)
                report(row)
                total, count, started = 0.0, 0, time.perf_counter()
            if folder is not None and is_main and (step % checkpoint_every == 0 or step == settings.steps):
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "loader": loader.state_dict(),
                }
                state |= {"step": step, "tokens": tokens, "global_batch": global_batch}
                write_checkpoint(folder / CHECKPOINT, state, settings, metrics)
                write_metrics(folder, metrics)
    return model, metrics


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: torch.Tensor,
    targets: int,
    *,
    step: int,
    settings: Settings,
) -> tuple[float, int]:
    """Take one step down the mean loss over all ranks' targets; return the summed loss and the number of targets.

    DistributedDataParallel averages the ranks' gradients. The scaling here makes that the gradient of the mean over all
    targets, even if the ranks have different numbers of targets.

    Raises:
        ValueError: the loss is not finite; every rank raises it.

    """
    loss_sum, targets_sum = sum_over_ranks(loss.detach(), targets)
    if not math.isfinite(loss_sum):
        highest = settings.learning_rate
        raise ValueError(f"the loss is not finite at step {step}. Lower train.learning_rate, which is {highest}")
    world_size = distributed.get_world_size() if distributed.is_initialized() else 1
    torch.autograd.backward(loss * (world_size / targets_sum))
    nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss_sum, targets_sum


def endless(loader: ShardLoader) -> Iterator[Batch]:
    """Yield batches from the loader's current position, epoch after epoch."""
    while True:
        yield from loader


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) that decays matrices, but no norm, bias or embedding."""
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding | TokenEmbedding)]
    tables = {id(weight) for module in embeddings for weight in module.parameters()}
    decayed = [weight for weight in model.parameters() if weight.dim() == 2 and id(weight) not in tables]
    chosen = {id(weight) for weight in decayed}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> float:
    """Set the learning rate of all parameters, and return it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def learning_rate(step: int, settings: Settings) -> float:
    """Rise linearly for `warmup` steps, then fall along a cosine to a tenth; depends only on the step."""
    if step <= settings.warmup:
        return settings.learning_rate * step / max(1, settings.warmup)
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def evaluate(model: nn.Module, loader: ShardLoader, *, device: str = "cpu") -> float:
    """Return the mean loss in nats over a split's targets, those of all ranks."""
    loader.set_epoch(0)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in loader:
        loss, targets = summed_loss(model, batch.to(device))
        total += loss.double().cpu()
        count += targets
    total_sum, count_sum = sum_over_ranks(total, count)
    return total_sum / count_sum


def sum_over_ranks(total: torch.Tensor, count: int) -> tuple[float, int]:
    """Sum over all ranks a loss, summed over `count` targets, and the count."""
    pair = torch.tensor([float(total), float(count)], dtype=torch.float64)
    if distributed.is_initialized():
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        pair = pair.to(device)
        distributed.all_reduce(pair)
    return float(pair[0]), int(pair[1])


def unigram(train_split: ShardLoader, validation: ShardLoader) -> float:
    """Return the validation loss of a model that knows only how often each token occurs."""
    counts = torch.zeros(train_split.reader.tokenizer["vocab_size"], dtype=torch.int64)
    train_split.set_epoch(0)
    for batch in train_split:
        seen = batch.target_ids[batch.target_ids >= 0]
        counts += torch.bincount(seen, minlength=len(counts))
    train_split.set_epoch(0)
    validation.set_epoch(0)
    return unigram_loss(counts, [batch.target_ids for batch in validation])


def write_checkpoint(path: Path, state: dict[str, Any], settings: Settings, metrics: list[Metric]) -> None:
    """Replace the checkpoint; at any moment either the old or the new one is there."""
    rows = [dataclasses.asdict(metric) for metric in metrics]
    with replace_file(path) as file:
        torch.save({**state, "settings": dataclasses.asdict(settings), "metrics": rows}, file)


def read_checkpoint(path: Path, settings: Settings, device: str) -> dict[str, Any]:
    """Read what `write_checkpoint` wrote.

    More steps may be asked of a run than it had: it goes on with its weights, optimizer and loader. That is not the run
    that so many steps would have given from the start, which a warning says.

    Raises:
        ValueError: there is no such file, it is no complete checkpoint, or its run had other settings; the message
            names all that differ.

    """
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint. A run writes {CHECKPOINT} every train.checkpoint_every steps")
    try:
        state: Any = torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch's parsers raise many types for other bytes: IndexError, RuntimeError, ...
        raise ValueError(f"{path}: damaged, or no checkpoint. Resume from another one, or start a new run") from error
    if not isinstance(state, dict) or not state.keys() >= KEYS:
        raise ValueError(f"{path}: not a checkpoint of this program. Resume from another one, or start a new run")
    checkpoint: dict[str, Any] = state
    changed = {
        KEY_OF.get(name, f"train.{name}"): (state["settings"].get(name), mine)
        for name, mine in dataclasses.asdict(settings).items()
        if state["settings"].get(name) != mine
    }
    words = "; ".join(f"{key} was {was}, here it is {mine}" for key, (was, mine) in changed.items())
    if (
        set(changed) == {"train.steps"}
        and state["step"] < settings.steps
        and changed["train.steps"][0] < settings.steps
    ):
        print(
            f"{path}: {words}. The run goes on from step {state['step']} with its weights, optimizer and order of "
            f"windows. From here on the learning rate follows the schedule of {settings.steps} steps, so the result "
            "is not that of a run with as many steps from the start",
            file=sys.stderr,
        )
    elif changed:
        raise ValueError(
            f"{path}: its run had other settings: {words}. Resume with the settings of the checkpoint, or start a new "
            "run without train.resume"
        )
    return checkpoint


def write_metrics(folder: Path, metrics: list[Metric], baseline: float | None = None) -> None:
    """Write `metrics.csv` and `loss.svg`; a given baseline becomes a line in the picture."""
    write_text(folder / METRICS, csv_text(metrics, [field.name for field in dataclasses.fields(Metric)]))
    if not metrics:
        return
    losses = {
        "train": [(float(metric.step), metric.train_loss) for metric in metrics],
        "validation": [(float(m.step), m.validation_loss) for m in metrics if not math.isnan(m.validation_loss)],
    }
    series = [Series(name=name, points=points, line=points) for name, points in losses.items()]
    if baseline is not None:
        ends = (float(metrics[0].step), float(metrics[-1].step))
        series.append(Series(name=f"unigram baseline: {baseline:.2f}", line=[(x, baseline) for x in ends]))
    write_text(folder / CURVE, chart(series, title="Loss", x_label="step", y_label="nats per token"))
