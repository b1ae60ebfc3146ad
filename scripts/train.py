"""Train a small GPT on shards: `python scripts/train.py`, or `torchrun --nproc-per-node 2 scripts/train.py`.

It writes the data set of its config unless it is there already, trains on it, and leaves `metrics.csv`, `loss.svg` and
`checkpoint.pt` in its folder. `train.resume=<checkpoint.pt>` resumes a stopped run exactly.
"""

from __future__ import annotations

import math
import os
import sys
import time
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from torch import distributed, nn
from train_compare import compare_points
from training import CHECKPOINT, CURVE, METRICS, Settings, build_gpt, train, unigram, write_metrics
from training_config import TrainConfig
from training_hooks import load_function, metric_reporter

from pipeline import ShardLoader, StoreWindows, load_tokenizer, read_manifest
from pipeline.base.progress import lines
from pipeline.base.wording import counted, percent, visible
from pipeline.cli import sources
from pipeline.cli.compose import read_config, save_config
from pipeline.cli.finished import keep_finished
from pipeline.cli.program import run_program
from pipeline.cli.record import recorded_run
from pipeline.cli.stages import describe_resume, run_write
from pipeline.cli.sweep import folders as sweep_folders
from pipeline.cli.sweep import register_sweeper, run_point
from pipeline.rules import ConfigError
from pipeline.settings import SplitConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hydra.core.config_search_path import ConfigSearchPath
    from omegaconf import DictConfig
    from training import Metric

    from pipeline.shards.manifest import Manifest


CONF = Path(__file__).resolve().parent / "conf"
IS_MAIN = os.environ.get("RANK", "0") == "0"  # torchrun sets it
SCORES_PER_BATCH = 1 << 25  # 128 MiB of float32, in evaluation
UNUSED_KEYS = ("study",)  # keys that train.py does not use
# Keys that no training program uses:
NO_EFFECT = (
    "stages",
    "window.score",
    "loader.split",
    "sweep",
    "show",
    "prove",
)


class ScriptsPath(SearchPathPlugin):
    """The folder of the training configs, which the package does not contain."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add it to Hydra's search path."""
        search_path.append("stridemill-scripts", f"file://{CONF}")


def register_configs() -> None:
    """Let Hydra find the training configs."""
    Plugins.instance().register(ScriptsPath)


def main(job: Callable[[TrainConfig, Path], dict[str, Any] | None], *, ignored: Sequence[str]) -> None:
    """Run a training job under its config; keys that have no effect on it are refused.

    A point of a sweep that an earlier start has finished is kept; one that it has begun goes on from its checkpoint.
    """
    register_configs()
    register_sweeper()
    program = Path(sys.argv[0]).name

    def train_point(composed: DictConfig) -> float | None:
        config = read_config(composed, TrainConfig)
        assert isinstance(config, TrainConfig), "the schema is that of the training jobs"
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        output = Path(HydraConfig.get().runtime.output_dir)
        save_config(composed, output)
        lines.interval = config.progress.every
        point = HydraConfig.get().job.num if is_sweep() else None
        if point is not None and config.train.resume is None and (output / CHECKPOINT).is_file():
            config.train.resume = str(output / CHECKPOINT)
        record: AbstractContextManager[dict[str, Any]] = nullcontext({})
        with recorded_run(output, point=point) if IS_MAIN else record as summary:
            result = job(config, output)
            if result is not None:
                summary["train"] = result
        return None if result is None else result["validation_loss"]

    def run_job(composed: DictConfig) -> float | None:
        if not is_sweep():
            return train_point(composed)
        finished = keep_finished(Path(HydraConfig.get().runtime.output_dir))
        return finished["number"] if finished else run_point(composed, train_point)

    run_program(
        run_job,
        program=program,
        config_name="train",
        kind=TrainConfig,
        conf=[CONF],
        check=lambda config: refuse_no_effect(config, (*NO_EFFECT, *ignored), program),
        check_number=lambda _: refuse_number(program),
        resume_hint=lambda: describe_resume() if sweep_folders else f"train.resume=<{CHECKPOINT}> resumes the run",
        finish=compare_points,
    )


def is_sweep() -> bool:
    """Tell whether this run is a point of a sweep."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def refuse_number(program: str) -> None:
    """Refuse a sweeper that optimizes, where a program returns no number."""
    if program != "train.py":
        raise ConfigError(f"hydra/sweeper: {program} has no number to optimize; use scripts/train.py")


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
    known: dict[str, Any] = {
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
        "build": config.model.build,
    }
    return Settings(**{**known, **changed})


def open_loader(
    config: TrainConfig,
    source: StoreWindows | None = None,
    *,
    seed: int | None = None,
    threads: int | None = None,
    tokenizer: Mapping[str, Any] | None = None,
) -> ShardLoader:
    """Open the train split for training: of the data set, of another source, or of the mixture of `loader.sources`."""
    options: dict[str, Any] = {} if seed is None else {"seed": seed}
    if config.loader.threads is None:
        options["threads"] = threads
    loader = sources.open_loader(source or config.shards_path, config.loader, tokenizer=tokenizer, **options)
    if loader.reader.max_length != config.window.max_length:
        found = counted(loader.reader.max_length, "token")
        raise ConfigError(
            f"window.max_length: must be that of loader.sources, for one model reads both and the validation split: "
            f"their windows have {found}; got {config.window.max_length}"
        )
    return loader


def open_evaluation(
    source: str | StoreWindows,
    *,
    split: str = "validation",
    score: str = "all",
    threads: int | None = None,
    document_ids: bool = False,
) -> ShardLoader:
    """Open every window of a split once, in stored order, in batches of about 128 MiB of scores."""
    probe = ShardLoader(source, split=split, shuffle="none", drop_last=False)
    rows = SCORES_PER_BATCH // (probe.reader.tokenizer["vocab_size"] * probe.reader.max_length)
    batch_size = max(1, min(rows, 256, len(probe.order)))
    return ShardLoader(
        source,
        split=split,
        batch_size=batch_size,
        shuffle="none",
        drop_last=False,
        score=score,
        threads=threads,
        document_ids=document_ids,
    )


def run(config: TrainConfig, output: Path) -> dict[str, Any] | None:
    """Write the data set, train, and print the losses; return the last ones."""
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
        manifest = read_manifest(config.shards_path)
        validation = open_evaluation(find_validation(config, manifest), document_ids=config.loader.document_ids)
        baseline = (
            unigram(open_evaluation(config.shards_path, split="train"), validation)
            if not distributed.is_initialized() and config.loader.sources is None
            else None
        )
        started = time.perf_counter()
        build = load_function("model.build", config.model.build) if config.model.build else build_gpt
        model, metrics = train(
            open_loader(config, tokenizer=manifest.tokenizer),
            validation,
            settings_of(config),
            folder=folder,
            resume=resume,
            validate_every=config.train.validate_every,
            checkpoint_every=config.train.checkpoint_every,
            device=device,
            bf16=config.train.bf16,
            compiled=config.train.compile,
            report=metric_reporter(config, folder) if IS_MAIN else lambda _row: None,
            build=build,
        )
        if not IS_MAIN or not metrics:
            return None
        seconds = time.perf_counter() - started
        write_metrics(folder, metrics, baseline)
        describe_run(config, manifest, validation, metrics, baseline)
        print(f"  the model continues the validation split: {write_sample(config, model, validation)}")
        print(f"  in {folder}: {METRICS}, {CURVE}, {CHECKPOINT}")
        return summarize(manifest, metrics[-1], seconds)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def find_validation(config: TrainConfig, manifest: Manifest) -> str | StoreWindows:
    """Return the validation windows: end to end, whatever the training stride, so that losses can be compared.

    They are cut from the token store. If the cache was cleared since the data set was written, its own windows serve.
    """
    store = Path(config.cache.path, "stores", f"{manifest.store}.json")
    if not store.is_file():
        if config.window.stride_tokens != config.window.max_length:
            print(f"{store} is missing, so the validation windows overlap like those of training", file=sys.stderr)
        return config.shards_path
    return StoreWindows(store, replace(config.window, stride=config.window.max_length))


def describe_run(
    config: TrainConfig, manifest: Manifest, validation: ShardLoader, metrics: list[Metric], baseline: float | None
) -> None:
    """Print the losses, and of what they are."""
    first, last = metrics[0], metrics[-1]
    print("\ntrain")
    for one in (first, last) if len(metrics) > 1 else (last,):
        losses = f"training loss {one.train_loss:.3f}   validation loss {one.validation_loss:.3f}"
        print(f"  step {one.step:<6} {losses}")
    print(f"  {counted(last.tokens, 'token')} at {last.tokens_per_second:,.0f} tokens/s")
    held_out, total = manifest.splits["validation"], sum(split.num_tokens for split in manifest.splits.values())
    share = percent(held_out.num_tokens, total)
    documents = counted(held_out.num_documents, "document")
    print(f"  validation: {documents}, {share} of the tokens (split.validation={config.split.validation})", end="")
    print(f"; {counted(len(validation.order), 'window')} of {counted(config.window.max_length, 'token')}, end to end")
    if baseline is not None:
        print(f"  unigram baseline (token frequencies only): validation loss {baseline:.3f}")


def summarize(manifest: Manifest, last: Metric, seconds: float) -> dict[str, Any]:
    """Return a run's last figures. Bits per byte of text compare tokenizers; they use the corpus's bytes per token."""
    tokens = sum(split.num_tokens for split in manifest.splits.values())
    bits = last.validation_loss / math.log(2) * tokens / max(1, manifest.corpus["bytes"])
    return {**asdict(last), "bits_per_byte": bits, "train_seconds": seconds}


@torch.no_grad()
def write_sample(config: TrainConfig, model: nn.Module, validation: ShardLoader, *, count: int = 120) -> str:
    """Let the model continue the first tokens of the validation split, drawing each token by its probability."""
    validation.set_epoch(0)
    with closing(iter(validation)) as batches:
        ids = next(batches).input_ids[0, : max(1, config.window.max_length // 4)].tolist()
    given, device = len(ids), next(model.parameters()).device
    generator = torch.Generator().manual_seed(config.embedding.seed)
    for _ in range(count):
        scores_V = model(torch.tensor([ids[-config.window.max_length :]], device=device))[0, -1].float().cpu()
        ids.append(int(torch.multinomial(torch.softmax(scores_V, 0), 1, generator=generator)))
    tokenizer = load_tokenizer(replace(config.tokenizer, engine="auto", special_text="literal"))
    return visible(f"{tokenizer.decode(ids[:given])!r} -> {tokenizer.decode(ids[given:])!r}")


if __name__ == "__main__":
    main(run, ignored=UNUSED_KEYS)
