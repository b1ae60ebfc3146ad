"""The command line: `python -m pipeline [overrides]`, installed as `stridemill`.

It composes the config, checks it, runs its stages in order and prints a summary. An error is one line on stderr. Exit
code 2 means a rejected config; 1 means bad data, or a sweep with failed points. HYDRA_FULL_ERROR=1 shows the traceback
instead.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from pipeline.base.atomic import write_json
from pipeline.base.wording import counted
from pipeline.cli.compose import check_command_line, find_conf, read_config, register_schema
from pipeline.cli.report import Report, jsonable
from pipeline.cli.sweep import finish_sweep, reported_sweep, run_point
from pipeline.cli.sweep import folders as sweep_folders
from pipeline.settings import Config, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from omegaconf import DictConfig

    from pipeline.cli.epoch import LoadReport
    from pipeline.cli.prove import ProveReport
    from pipeline.cli.show import ShowReport
    from pipeline.shards.plan import PlanReport
    from pipeline.shards.verify import VerifyReport
    from pipeline.shards.write import WriteReport


def main() -> None:
    """Run the command line and exit with its code."""
    wants_traceback = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here as they are, rather than printed by Hydra
    register_schema()
    failures: list[Exception] = []

    def task(composed: DictConfig) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            register_schema()  # a parallel launcher's process has not done so
            run_point(composed, run)
            return
        try:
            run(composed)
        except (ValueError, OSError, MemoryError) as error:
            failures.append(error)

    try:
        with reported_sweep():
            check_command_line(sys.argv[1:])
            hydra.main(config_path=str(find_conf()), config_name="config", version_base="1.3")(task)()
        if failures:
            raise failures[0]
    except BrokenPipeError:  # the reader of the summary has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, MemoryError) as error:  # numpy names the array that was too large
        if wants_traceback:
            raise
        print(f"stridemill: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:
        added = f" with hydra.sweep.dir={sweep_folders[0]} added" if sweep_folders else ""
        print(
            f"stridemill: interrupted. Finished work is kept; run the same command again{added} to resume",
            file=sys.stderr,
        )
        sys.exit(130)


def run(composed: DictConfig) -> None:
    """Run the stages of one run, or of one point of a sweep, in order; then write `summary.json`."""
    config = read_config(composed)
    output = Path(HydraConfig.get().runtime.output_dir)
    point = HydraConfig.get().job.num if HydraConfig.get().mode == RunMode.MULTIRUN else None
    reports: dict[str, Any] = {}
    failure = ""
    for stage in config.stages:
        reports[stage] = report = RUNNERS[stage](config)
        print(flush=True)
        failure = find_failure(report)
        if failure:
            break
    write_json(
        output / "summary.json",
        jsonable({"point": point, **{stage: dataclasses.asdict(report) for stage, report in reports.items()}}),
    )
    if failure:
        raise ValueError(f"{config.shards_path}: {failure}")


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
    print(describe_plan(report))
    return report


def run_write(config: Config) -> WriteReport:
    """Turn text into shards."""
    from pipeline.cli.summary import describe_write
    from pipeline.shards.write import write_shards

    report = write_shards(config.shards_path, **write_sections(config))
    print(describe_write(report))
    return report


def run_verify(config: Config) -> VerifyReport:
    """List every problem of the data set."""
    from pipeline.cli.summary import describe_verify
    from pipeline.shards.verify import verify_shards

    report = verify_shards(config.shards_path, cache_path=config.cache.path, workers=config.executor.num_workers)
    print(describe_verify(report))
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
    print(describe_load(report))
    print()
    print(describe_window(report, decoder))
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
    """Make a sweep's table and pictures again, from the files that its points left."""
    assert config.sweep.path, "Config demands it"
    return finish_sweep(Path(config.sweep.path))


RUNNERS: dict[str, Callable[[Config], Any]] = {
    "plan": run_plan,
    "write": run_write,
    "verify": run_verify,
    "load": run_load,
    "show": run_show,
    "prove": run_prove,
    "report": run_report,
}
