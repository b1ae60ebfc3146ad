"""Train a small GPT on shards: `python scripts/train.py`, or `torchrun --nproc-per-node 2 scripts/train.py`.

It writes the data set of its config unless it is there already, trains on it, and leaves `metrics.csv`, `loss.svg` and
`checkpoint.pt` in its folder. `train.resume=<checkpoint.pt>` resumes a stopped run exactly.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from torch import distributed
from training import CHECKPOINT, CURVE, METRICS, Settings, train, unigram, write_metrics
from training_config import TrainConfig

from pipeline import ShardLoader, StoreWindows
from pipeline.base.wording import counted
from pipeline.cli.compose import check_command_line, find_conf, read_config, register_schema
from pipeline.cli.stages import run_write
from pipeline.settings import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from omegaconf import DictConfig


SCORES_PER_BATCH = 1 << 25  # 128 MiB of float32, in evaluation


def main(job: Callable[[TrainConfig, Path], None]) -> None:
    """Compose and check the config of a training job, run it, and turn an error into one line and an exit code."""
    wants_traceback = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register_schema(TrainConfig)
    failures: list[Exception] = []

    def task(composed: DictConfig) -> None:
        try:
            config = read_config(composed, TrainConfig)
            assert isinstance(config, TrainConfig), "the schema is that of the training jobs"
            if config.train.threads is not None:
                torch.set_num_threads(config.train.threads)
            job(config, Path(HydraConfig.get().runtime.output_dir))
        except (ValueError, OSError) as error:  # Hydra would print lines of its own
            failures.append(error)

    try:
        check_command_line(sys.argv[1:], kind=TrainConfig, config_name="train")
        hydra.main(config_path=str(find_conf()), config_name="train", version_base="1.3")(task)()
        if failures:
            raise failures[0]
    except (ValueError, OSError) as error:
        if wants_traceback:
            raise
        print(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted. train.resume=<{CHECKPOINT}> resumes the run", file=sys.stderr)
        sys.exit(130)


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


def open_loader(config: TrainConfig) -> ShardLoader:
    """Open the train split for training."""
    loader = config.loader
    assert isinstance(loader.batch_size, int), "the config allows a whole number alone"
    return ShardLoader(
        config.shards_path,
        batch_size=loader.batch_size,
        shuffle=loader.shuffle,
        seed=loader.seed,
        lanes=loader.lanes,
        drop_last=loader.drop_last,
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
    is_main = int(os.environ.get("RANK", "0")) == 0
    if "WORLD_SIZE" in os.environ:  # torchrun sets it
        distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
    try:
        if is_main:
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
        if is_main and metrics:
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
    main(run)
