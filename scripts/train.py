"""Train a small GPT on shards: `python scripts/train.py`, or `torchrun --nproc-per-node 2 scripts/train.py`.

It writes the data set of its config unless it is there already, trains on it, and leaves `metrics.csv`, `loss.svg` and
`checkpoint.pt` in its folder. `train.resume=<checkpoint.pt>` resumes a stopped run exactly.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from torch import distributed
from training import CHECKPOINT, CURVE, METRICS, Settings, train, unigram, write_metrics
from training_config import TrainConfig

from pipeline import ShardLoader, StoreWindows
from pipeline.base.progress import lines
from pipeline.base.wording import counted
from pipeline.cli.compose import read_config, save_config
from pipeline.cli.program import run_program
from pipeline.cli.record import recorded_run
from pipeline.cli.stages import run_write
from pipeline.rules import ConfigError
from pipeline.settings import SplitConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hydra.core.config_search_path import ConfigSearchPath
    from omegaconf import DictConfig


CONF = Path(__file__).resolve().parent / "conf"
IS_MAIN = os.environ.get("RANK", "0") == "0"  # torchrun sets it
SCORES_PER_BATCH = 1 << 25  # 128 MiB of float32, in evaluation
UNUSED_KEYS = ("study",)  # keys that train.py does not use
# Keys that no training program uses:
NO_EFFECT = ("stages", "window.score", "loader.split", "loader.document_ids", "sweep", "show", "prove")


class ScriptsPath(SearchPathPlugin):
    """The folder of the training configs, which the package does not contain."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add it to Hydra's search path."""
        search_path.append("stridemill-scripts", f"file://{CONF}")


def register_configs() -> None:
    """Let Hydra find the training configs."""
    Plugins.instance().register(ScriptsPath)


def main(job: Callable[[TrainConfig, Path], None], *, ignored: Sequence[str]) -> None:
    """Run a training job under its config; keys that have no effect on it are refused."""
    register_configs()
    program = Path(sys.argv[0]).name

    def run_job(composed: DictConfig) -> None:
        config = read_config(composed, TrainConfig)
        assert isinstance(config, TrainConfig), "the schema is that of the training jobs"
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        output = Path(HydraConfig.get().runtime.output_dir)
        save_config(composed, output)
        lines.interval = config.progress.every
        with recorded_run(output) if IS_MAIN else nullcontext():
            job(config, output)

    run_program(
        run_job,
        program=program,
        config_name="train",
        kind=TrainConfig,
        conf=[CONF],
        check=lambda config: refuse_no_effect(config, (*NO_EFFECT, *ignored), program),
        resume_hint=lambda: f"train.resume=<{CHECKPOINT}> resumes the run",
    )


def refuse_no_effect(config: TrainConfig, keys: Sequence[str], program: str) -> None:
    """Refuse a section or a key that has another value than its default, if the program does not use it."""
    for key in keys:
        section, _, name = key.partition(".")
        mine, default = getattr(config, section), getattr(EXAMPLE, section)
        for inner in [name] if name else [one.name for one in fields(mine)] if is_dataclass(mine) else [""]:
            value, usual = (getattr(mine, inner), getattr(default, inner)) if inner else (mine, default)
            if value != (config.window.max_length if key == "window.stride" else usual):
                raise ConfigError(f"{section}{inner and '.'}{inner}: has no effect on {program}; leave it out")


EXAMPLE = TrainConfig(split=SplitConfig(validation=0.1))


def settings_of(config: TrainConfig, **changed: int) -> Settings:
    """Return the settings of the run that the config describes, with some of them changed."""
    train_, embedding = config.train, config.embedding
    known = {
        "layers": config.model.layers,
        "heads": config.model.heads,
        "dim": embedding.dim,
        "positions": embedding.positions,
        "seed": embedding.seed,
        "steps": train_.steps,
        "learning_rate": train_.learning_rate,
        "warmup": train_.warmup,
        "weight_decay": train_.weight_decay,
        "clip": train_.clip,
    }
    return Settings(**{**known, **changed})  # type: ignore[arg-type]


def open_loader(
    config: TrainConfig, source: StoreWindows | None = None, *, seed: int | None = None, threads: int | None = None
) -> ShardLoader:
    """Open the train split for training, of the data set or of another source."""
    loader = config.loader
    assert isinstance(loader.batch_size, int), "TrainConfig refuses 'all'"
    return ShardLoader(
        source or config.shards_path,
        batch_size=loader.batch_size,
        shuffle=loader.shuffle,
        seed=loader.seed if seed is None else seed,
        lanes=loader.lanes,
        limit=loader.limit,
        exclude=loader.exclude,
        drop_last=loader.drop_last,
        score_document_starts=loader.score_document_starts,
        threads=loader.threads or threads,
        memory_budget=loader.memory_budget,
        on_bad=loader.on_bad,
    )


def open_evaluation(
    source: str | StoreWindows, *, split: str = "validation", score: str = "all", threads: int | None = None
) -> ShardLoader:
    """Open every window of a split once, in stored order, in batches of about 128 MiB of scores."""
    probe = ShardLoader(source, split=split, shuffle="none", drop_last=False)
    rows = SCORES_PER_BATCH // (probe.reader.tokenizer["vocab_size"] * probe.reader.max_length)
    batch_size = max(1, min(rows, 256, len(probe.order)))
    return ShardLoader(
        source, split=split, batch_size=batch_size, shuffle="none", drop_last=False, score=score, threads=threads
    )


def run(config: TrainConfig, output: Path) -> None:
    """Write the data set, train, and print the losses."""
    has_gpu = torch.cuda.is_available()
    device = config.train.device if config.train.device != "auto" else "cuda" if has_gpu else "cpu"
    if "WORLD_SIZE" in os.environ:  # torchrun sets it
        distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
    try:
        if IS_MAIN:
            run_write(config)
        if distributed.is_initialized():
            distributed.barrier()
        resume = Path(config.train.resume) if config.train.resume else None
        folder = resume.parent if resume else output
        validation = open_evaluation(config.shards_path)
        baseline = (
            unigram(open_evaluation(config.shards_path, split="train"), validation)
            if not distributed.is_initialized()
            else None
        )
        _, metrics = train(
            open_loader(config),
            validation,
            settings_of(config),
            folder=folder,
            resume=resume,
            validate_every=config.train.validate_every,
            checkpoint_every=config.train.checkpoint_every,
            device=device,
            bf16=config.train.bf16,
            compiled=config.train.compile,
        )
        if IS_MAIN and metrics:
            write_metrics(folder, metrics, baseline)
            first, last = metrics[0], metrics[-1]
            print("\ntrain")
            for one in (first, last) if len(metrics) > 1 else (last,):
                losses = f"training loss {one.train_loss:.3f}   validation loss {one.validation_loss:.3f}"
                print(f"  step {one.step:<6} {losses}")
            print(f"  {counted(last.tokens, 'token')} at {last.tokens_per_second:,.0f} tokens/s")
            if baseline is not None:
                print(f"  unigram baseline (token frequencies only): validation loss {baseline:.3f}")
            print(f"  in {folder}: {METRICS}, {CURVE}, {CHECKPOINT}")
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


if __name__ == "__main__":
    main(run, ignored=UNUSED_KEYS)
