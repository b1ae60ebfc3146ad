"""The stride study: `python scripts/study.py experiment=stride_study`, or `experiment=stride_study_quick`.

It trains the same model at several strides and with several seeds. It does so twice: with equal numbers of updates, and
with equal passes over the text, where a smaller stride means more updates. Every model is scored on the same validation
windows, which do not overlap. Then the best model's perplexity is measured with overlapping evaluation windows, which
score each token once (`score=new`). Windows are cut from the token store as they are read, so no stride needs a data
set.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from gpt import IGNORED
from torch.nn import functional
from train import main, open_evaluation, open_loader, settings_of
from training import evaluate, train

from pipeline import ShardLoader, StoreWindows
from pipeline.base.atomic import write_text
from pipeline.base.wording import counted
from pipeline.cli.report import csv_text
from pipeline.cli.stages import run_write
from pipeline.cli.svg import Series, chart
from pipeline.rules import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from gpt import GPT
    from training_config import TrainConfig

UNUSED_KEYS = (
    *("window.stride", "window.allow_gaps", "loader.seed", "embedding.seed", "train.validate_every"),
    *("train.checkpoint_every", "train.resume", "train.device", "train.bf16", "train.compile"),
    *("model.build", "train.on_metrics", "train.tensorboard", "loader.cache_dir", "loader.cache_limit"),
    *("loader.sources", "loader.document_ids"),
)
BUDGETS = {
    "updates": "equal updates: the same number of batches, and so of window tokens",
    "passes": "equal passes: every window equally often, so a smaller stride has more updates and more window tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run of the study: a line of `study.csv`."""

    budget: str  # what was equal for all strides: a key of BUDGETS
    stride: int
    seed: int
    updates: int
    tokens: int  # window tokens
    passes: float  # how often each token of the text was seen, on average
    validation_loss: float  # nats per token, validation windows without overlap


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A line of `evaluation.csv`: one trained model, scored with windows that overlap."""

    stride: int
    targets: int  # each scored once
    loss: float
    perplexity: float


def run(config: TrainConfig, output: Path) -> None:
    """Train at every stride, with every seed and budget; score; write and print tables and pictures."""
    study, length = config.study, config.window.max_length
    bad = [stride for stride in (*study.strides, *study.evaluation_strides) if not 1 <= stride <= length]
    if not study.strides or bad:
        rule = f"must be from 1 to window.max_length={length} (experiment=stride_study names some)"
        raise ConfigError(f"study.strides, study.evaluation_strides: {rule}; got {bad or study.strides}")
    report = run_write(config)
    store = f"{config.cache.path}/stores/{report.manifest.store}.json"
    runs: list[Run] = []
    for budget in BUDGETS:
        for stride in study.strides:
            for seed in study.seeds:
                found, trained = train_run(config, store, budget=budget, stride=stride, seed=seed)
                runs.append(found)
                write_text(output / "study.csv", csv_text(runs))
                updates = counted(found.updates, "update").rjust(14)
                print(f"  {budget:<8} stride {stride:<5} seed {seed:<3} {updates}", end="")
                print(f"   validation loss {found.validation_loss:.4f}", flush=True)
                if found == min(runs, key=lambda one: one.validation_loss):
                    best, model = found, trained
    evaluations = [
        score(model, windows_of(config, store, stride)) for stride in sorted(study.evaluation_strides, reverse=True)
    ]
    write_text(output / "evaluation.csv", csv_text(evaluations))
    for budget in BUDGETS:
        write_text(output / f"{budget}.svg", picture(runs, budget))
    if evaluations:
        points = [(float(one.stride), one.perplexity) for one in evaluations]
        axes: dict[str, Any] = {
            "x_label": "stride of the evaluation windows",
            "y_label": "perplexity per token",
            "log": "x",
        }
        series = Series(name="the best model", points=points, line=points)
        ticks = [x for x, _ in points]
        write_text(output / "evaluation.svg", chart([series], title="Evaluation with overlap", x_ticks=ticks, **axes))
    sizes = {name: split.num_tokens for name, split in report.manifest.splits.items()}
    weights = sum(weight.numel() for weight in model.parameters())
    print(f"\nstudy: windows of {counted(length, 'token')}; validation loss in nats per token, without overlap")
    print(
        f"  {counted(sizes['train'], 'training token')}, {counted(sizes['validation'], 'validation token')}; ", end=""
    )
    print(f"a model of {counted(weights, 'weight')}; {counted(len(study.seeds), 'seed')}")
    print(describe(runs))
    if evaluations:
        print(describe_evaluations(evaluations, best, length=length))
        print(describe_loss_by_position(loss_by_position(model, open_evaluation(windows_of(config, store, length)))))
    print(f"\n  in {output}: study.csv, evaluation.csv, updates.svg, passes.svg, evaluation.svg")


def windows_of(config: TrainConfig, store: str, stride: int) -> StoreWindows:
    """Windows cut from the token store, so that no stride needs shards of its own."""
    return StoreWindows(store, dataclasses.replace(config.window, stride=stride))


def train_run(config: TrainConfig, store: str, *, budget: str, stride: int, seed: int) -> tuple[Run, GPT]:
    """Train once; the seed decides the initial weights and the order of windows."""
    length = config.window.max_length
    loader = open_loader(config, windows_of(config, store, stride), seed=seed, threads=1)
    steps = config.train.steps if budget == "updates" else config.study.passes * len(loader)
    model, _ = train(loader, None, settings_of(config, steps=steps, seed=seed), validate_every=steps, progress=False)
    validation_loss = evaluate(model, open_evaluation(windows_of(config, store, length)))
    tokens = steps * loader.batch_size * length
    once = len(loader.order) * stride  # the text, to within one window
    found = Run(
        budget=budget,
        stride=stride,
        seed=seed,
        updates=steps,
        tokens=tokens,
        passes=tokens / once,
        validation_loss=validation_loss,
    )
    return found, model


def score(model: GPT, windows: StoreWindows) -> Evaluation:
    """Measure the model's validation loss with overlapping windows; each token counts once."""
    loader = open_evaluation(windows, score="new")
    targets = sum(int((batch.target_ids >= 0).sum()) for batch in loader)
    loss = evaluate(model, loader)
    return Evaluation(stride=windows.window.stride_tokens, targets=targets, loss=loss, perplexity=math.exp(loss))


@torch.no_grad()
def loss_by_position(model: GPT, loader: ShardLoader) -> torch.Tensor:
    """Return the mean loss at each position of a window, float64 [T]: it shows the value of more context."""
    totals_T = torch.zeros(loader.reader.max_length, dtype=torch.float64)
    counts_T = torch.zeros_like(totals_T)
    for batch in loader:
        scores_BVT = model(batch.input_ids).transpose(1, 2)
        losses_BT = functional.cross_entropy(scores_BVT, batch.target_ids, ignore_index=IGNORED, reduction="none")
        totals_T += losses_BT.double().sum(0)
        counts_T += (batch.target_ids != IGNORED).sum(0)
    return totals_T / counts_T


def picture(runs: list[Run], budget: str) -> str:
    """Draw validation loss by stride: a point for each seed, and a line through the means."""
    mine = [run for run in runs if run.budget == budget]
    strides = sorted({run.stride for run in mine})
    means = [(float(s), statistics.fmean(run.validation_loss for run in mine if run.stride == s)) for s in strides]
    points = [(float(run.stride), run.validation_loss) for run in mine]
    axes: dict[str, Any] = {"x_label": "stride of the training windows", "y_label": "validation loss, nats per token"}
    series = Series(name="points: seeds, line: mean", points=points, line=means)
    return chart([series], title=f"Equal {budget}", log="x", x_ticks=[x for x, _ in means], **axes)


def describe(runs: list[Run]) -> str:
    """Return the losses as tables; below each, the difference of its ends and the spread between seeds."""
    lines = []
    for budget, meaning in BUDGETS.items():
        lines.append(f"  {meaning}")
        mine = [run for run in runs if run.budget == budget]
        strides = sorted({run.stride for run in mine}, reverse=True)
        means, spreads = [], []
        for stride in strides:
            same = [run for run in mine if run.stride == stride]
            losses = [run.validation_loss for run in same]
            means.append(statistics.fmean(losses))
            spreads.append(max(losses) - min(losses))
            lines.append(
                f"    stride {stride:<4} {counted(same[0].updates, 'update'):>14}   each token seen "
                f"{same[0].passes:4.1f}x   mean {means[-1]:.4f}   seeds {min(losses):.4f} to {max(losses):.4f}"
            )
        if len(strides) > 1:
            ends = f"stride {strides[-1]} minus stride {strides[0]}: {means[-1] - means[0]:+.4f}"
            lines.append(f"    {ends} (largest spread between seeds of one stride: {max(spreads):.4f})")
    return "\n".join(lines)


def describe_evaluations(evaluations: list[Evaluation], best: Run, *, length: int) -> str:
    """Return the best model's perplexities."""
    model = f"equal {best.budget}, stride {best.stride}, seed {best.seed}"
    lines = [f"evaluation with overlap: the best model ({model}), each validation token scored once"]
    for one in evaluations:
        context = f"at least {counted(length - one.stride, 'token')} of context"
        losses = f"loss {one.loss:.4f}   perplexity {one.perplexity:.3f}"
        lines.append(f"    stride {one.stride:<4} {counted(one.targets, 'token')}   {context}   {losses}")
    return "\n".join(lines)


def describe_loss_by_position(losses_T: torch.Tensor) -> str:
    """Return the loss by position in the window, in ranges that double: 0, 1, 2-3, 4-7, ..."""
    edges = [0, *(2**power for power in range(len(losses_T).bit_length()) if 2**power < len(losses_T)), len(losses_T)]
    lines = ["the same model's loss by position in the window, from 0; position n has n tokens before it"]
    for first, stop in itertools.pairwise(edges):
        positions = f"{first}" if stop == first + 1 else f"{first}-{stop - 1}"
        lines.append(f"    positions {positions:<9} loss {float(losses_T[first:stop].mean()):.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main(run, ignored=UNUSED_KEYS)
