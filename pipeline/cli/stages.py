"""The command line: `python -m pipeline [overrides]`, installed as `stridemill`.

It composes the config, checks it, runs its stages in order and prints what each did. The run's folder keeps the same
in its log, and for programs in `summary.json` (`cli/record.py`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from pipeline.base.paths import translate_os_errors
from pipeline.base.progress import lines
from pipeline.base.wording import counted, visible
from pipeline.cli.compose import read_config, save_config
from pipeline.cli.finished import describe_inputs, keep_finished, would_be_same
from pipeline.cli.log import RUN
from pipeline.cli.program import run_program
from pipeline.cli.record import logged_stage, recorded_run
from pipeline.cli.sweep import finish_sweep, register_sweeper, run_point, turn_to_write
from pipeline.cli.sweep import folders as sweep_folders
from pipeline.rules import ConfigError, WaitingError, hide_secrets

if TYPE_CHECKING:
    from collections.abc import Callable

    from omegaconf import DictConfig

    from pipeline.cli.config import Config
    from pipeline.cli.epoch import LoadReport
    from pipeline.cli.prove import ProveReport
    from pipeline.cli.report import Report
    from pipeline.cli.show import ShowReport
    from pipeline.shards.part import PartReport
    from pipeline.shards.plan import PlanReport
    from pipeline.shards.verify import VerifyReport
    from pipeline.shards.write import WriteReport


def main() -> None:
    """Run the command line and exit with its code."""
    register_sweeper()
    run_program(
        run_job,
        program="stridemill",
        resume_hint=describe_resume,
        check_number=check_number,
    )


def check_number(config: Config) -> None:
    """Refuse stages that give a sweeper no number to optimize."""
    if "load" not in config.stages:
        rule = "a sweeper that optimizes needs the stage load, whose tokens per second are a point's number"
        raise ConfigError(f"stages: {rule}; got {config.stages}")


def describe_resume() -> str:
    """Say what an interrupted run has kept."""
    added = f" with hydra.sweep.dir={sweep_folders[0]} added" if sweep_folders else ""
    return f"Finished work is kept; run the same command again{added} to resume"


def run_job(composed: DictConfig) -> float | None:
    """Run once, or run one point of a sweep unless it is finished. Return its number for a sweeper that wants one."""
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return run(composed)
    kept = keep_finished(Path(HydraConfig.get().runtime.output_dir), lambda summary: would_be_same(composed, summary))
    return kept["number"] if kept else run_point(composed, run)


def run(composed: DictConfig) -> float | None:
    """Run the stages in order, and keep `summary.json` up to date. Return the loader's tokens per second, if it ran.

    Raises:
        ValueError: a stage failed, or found problems.
        WaitingError: a part of an array job waits for others.

    """
    output = Path(HydraConfig.get().runtime.output_dir)
    point = HydraConfig.get().job.num if HydraConfig.get().mode == RunMode.MULTIRUN else None
    with recorded_run(output, point=point) as summary:
        with translate_os_errors(output, "hydra.run.dir"):
            save_config(composed, output)
        config = read_config(composed)
        lines.interval = config.progress.every
        reports: dict[str, Any] = {}
        for stage in config.stages:
            with logged_stage(stage, summary):
                report = reports[stage] = RUNNERS[stage](config)
                summary[stage] = dataclasses.asdict(report)
                if stage == "write" and "plan" in reports:
                    summary["planned"] = compare_stages(reports["plan"], report)
                print(flush=True)
                if failure := find_failure(report):
                    raise ValueError(f"{config.shards_path}: {failure}")
        if point is not None:
            summary.update(describe_inputs(config))
    if waiting := getattr(reports.get("write"), "waiting", ""):  # its own share is done, so the run has not failed
        raise WaitingError(f"executor.part={config.executor.part}: pass two waits for {waiting}; run this part again")
    load = summary.get("load")
    return load["tokens"] / max(load["load_seconds"], 1e-9) if load else None


def say(text: str) -> None:
    """Print what a stage says, and keep it in the run's log, without secrets and control characters."""
    shown = visible(hide_secrets(text))
    print(shown)
    for line in filter(None, shown.splitlines()):
        RUN.info("%s", line)


def find_failure(report: Any) -> str:
    """Return what a stage's report says is wrong, or an empty text."""
    if faults := getattr(report, "faults", ()):
        return f"{counted(len(faults), 'problem')} found, listed above"
    if unproven := getattr(report, "unproven", ()):
        return f"not proven: {', '.join(unproven)}"
    return ""


def write_sections(config: Config) -> dict[str, Any]:
    """Return the sections that `write_shards` and `plan_shards` take, by their arguments' names."""
    names = ("corpus", "tokenizer", "window", "split", "shards", "executor", "cache")
    return {name: getattr(config, name) for name in names}


def run_plan(config: Config) -> PlanReport:
    """Estimate what the write stage will produce and cost."""
    from pipeline.cli.summary import describe_plan
    from pipeline.shards.plan import plan_shards

    report = plan_shards(config.shards_path, **write_sections(config))
    say(describe_plan(report))
    return report


def run_write(config: Config) -> WriteReport:
    """Turn text into shards."""
    from pipeline.cli.summary import describe_write
    from pipeline.shards.write import write_shards

    with turn_to_write(config.shards_path):
        report = write_shards(config.shards_path, **write_sections(config))
    say(describe_write(report))
    return report


def run_part(config: Config) -> PartReport:
    """Do one part of an array job."""
    from pipeline.cli.part import describe_part
    from pipeline.shards.part import write_part

    report = write_part(config.shards_path, **write_sections(config))
    say(describe_part(report))
    return report


def compare_stages(plan: PlanReport, report: WriteReport) -> dict[str, dict[str, float]]:
    """Say how far what was written is from the plan."""
    from pipeline.cli.summary import describe_comparison
    from pipeline.shards.planned import compare_with_plan

    compared = compare_with_plan(plan, report)
    say(describe_comparison(compared))
    return compared


def run_verify(config: Config) -> VerifyReport:
    """List every problem of the data set."""
    from pipeline.cli.summary import describe_verify
    from pipeline.shards.verify import verify_shards

    report = verify_shards(config.shards_path, cache_path=config.cache.path, workers=config.executor.num_workers)
    say(describe_verify(report))
    return report


def run_load(config: Config) -> LoadReport:
    """Turn shards into embedded batches."""
    from pipeline.cli.epoch import load_batches
    from pipeline.cli.summary import describe_load, describe_window
    from pipeline.tokenizer.load import load_tokenizer

    decoder = load_tokenizer(dataclasses.replace(config.tokenizer, engine="auto", special_text="literal"))
    report = load_batches(
        config.shards_path,
        loader=config.loader,
        embedding=config.embedding,
        score=config.window.score,
        tokenizer={"name": decoder.name, "hash": decoder.hash},
    )
    say(describe_load(report))
    print()
    say(describe_window(report, decoder))
    return report


def run_show(config: Config) -> ShowReport:
    """Show a window, or a batch of the loader."""
    from pipeline.cli.show import show_windows

    return show_windows(config)


def run_prove(config: Config) -> ProveReport:
    """Check what the loader promises, by running it."""
    from pipeline.cli.prove import prove_loader

    return prove_loader(config.shards_path, loader=config.loader, prove=config.prove)


def run_report(config: Config) -> Report:
    """Make a sweep's table and pictures again from the files that its points left, or compare several and runs."""
    assert config.sweep.path, "Config demands it"
    if isinstance(config.sweep.path, str):
        return finish_sweep(Path(config.sweep.path))
    return finish_sweep(*map(Path, config.sweep.path), into=Path(HydraConfig.get().runtime.output_dir))


RUNNERS: dict[str, Callable[[Config], Any]] = {
    "plan": run_plan,
    "write": lambda config: run_write(config) if config.executor.part is None else run_part(config),
    "verify": run_verify,
    "load": run_load,
    "show": run_show,
    "prove": run_prove,
    "report": run_report,
}
