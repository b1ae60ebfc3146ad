"""The command line: `python -m pipeline [overrides]`, installed as `stridemill`.

Composes the config, checks it, runs its stages in order and prints a summary. A refusal is one line on stderr: exit
code 2 for a config, 1 for data and for a sweep with failing points. HYDRA_FULL_ERROR=1 shows the traceback instead.
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

from pipeline.atomic import write_json
from pipeline.config import check_command_line, find_conf, read_config, register_schema
from pipeline.report import Report, jsonable
from pipeline.schema import Config, ConfigError
from pipeline.sweep import finish_sweep, reported_sweep, run_point
from pipeline.sweep import folders as sweep_folders

if TYPE_CHECKING:
    from collections.abc import Callable

    from omegaconf import DictConfig

    from pipeline.verify import VerifyReport
    from pipeline.write.plan import PlanReport
    from pipeline.write.stage import WriteReport


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
    except BrokenPipeError:  # whoever read the summary has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, MemoryError) as error:  # numpy says which array the memory was not enough for
        if wants_traceback:
            raise
        print(f"stridemill: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:
        goes_on = f"with hydra.sweep.dir={sweep_folders[0]} added " if sweep_folders else ""
        print(
            f"stridemill: interrupted; what is finished is kept, and the same command {goes_on}goes on from there",
            file=sys.stderr,
        )
        sys.exit(130)


def run(composed: DictConfig) -> None:
    """One run, or one point of a sweep: its stages in order, then a summary on stdout and in `summary.json`."""
    config = read_config(composed)
    output = Path(HydraConfig.get().runtime.output_dir)
    point = HydraConfig.get().job.num if HydraConfig.get().mode == RunMode.MULTIRUN else None
    reports: dict[str, Any] = {}
    faults = 0
    for stage in config.stages:
        report = RUNNERS[stage](config, reports)
        reports[stage] = report
        print(flush=True)
        faults = len(getattr(report, "faults", ()))
        if faults:
            break
    write_json(
        output / "summary.json",
        jsonable({"point": point, **{stage: dataclasses.asdict(report) for stage, report in reports.items()}}),
    )
    if faults:
        raise ValueError(f"{config.shards.path} has {faults} fault{'s' * (faults > 1)}, listed above")


def job_options(config: Config) -> dict[str, Any]:
    """What decides a data set's bytes, as keyword arguments: plan and write both take them."""
    corpus, tokenizer, window, shards = config.corpus, config.tokenizer, config.window, config.shards
    return {
        "corpus": corpus.name,
        "corpus_path": corpus.path,
        "corpus_url": corpus.url,
        "corpus_sha256": corpus.sha256,
        "corpus_subset": corpus.subset,
        "corpus_part": corpus.part,
        "text_field": corpus.text_field,
        "on_bad": corpus.on_bad,
        "max_document_bytes": corpus.max_document_bytes,
        "tokenizer": tokenizer.name,
        "tokenizer_path": tokenizer.path,
        "tokenizer_pattern": tokenizer.pattern,
        "engine": tokenizer.engine,
        "special_text": tokenizer.special_text,
        "max_length": window.max_length,
        "stride": window.stride,
        "allow_gaps": window.allow_gaps,
        "tail": window.tail,
        "documents": window.documents,
        "validation": config.split.validation,
        "split_seed": config.split.seed,
        "windows_per_shard": shards.windows_per_shard,
        "windows_per_group": shards.windows_per_group,
        "compression": shards.compression,
        "order": shards.order,
        "order_seed": shards.seed,
        "cache_path": config.cache.path,
        "workers": config.executor.workers or 1,
    }


def run_plan(config: Config, _: dict[str, Any]) -> PlanReport:
    """The plan stage: what the write stage will make and cost."""
    from pipeline.summary import describe_plan
    from pipeline.write.job import prepare_job
    from pipeline.write.plan import plan_job

    job = prepare_job(**job_options(config))
    workers = config.executor.workers or 1
    report = plan_job(job, Path(config.shards.path), audit=config.tokenizer.audit, workers=workers)
    print(describe_plan(report))
    return report


def run_write(config: Config, earlier: dict[str, Any] | None = None) -> WriteReport:
    """The write stage: text to shards."""
    from pipeline.summary import describe_held, describe_write
    from pipeline.write.stage import write_shards

    report = write_shards(
        config.shards.path,
        **job_options(config),
        max_bad_fraction=config.corpus.max_bad_fraction,
        audit=config.tokenizer.audit,
        overwrite=config.shards.overwrite,
        config=dataclasses.asdict(config),
    )
    print(describe_write(report))
    plan = (earlier or {}).get("plan")
    if plan and not report.finished_before:
        print()
        print(describe_held(plan, report))
    return report


def run_verify(config: Config, _: dict[str, Any]) -> VerifyReport:
    """The verify stage: every fault of the data set."""
    from pipeline.summary import describe_verify
    from pipeline.verify import verify_shards

    report = verify_shards(config.shards.path, cache_path=config.cache.path, workers=config.executor.workers or 1)
    print(describe_verify(report))
    return report


def run_load(config: Config, _: dict[str, Any]) -> Any:
    """The load stage: shards to embedded batches."""
    from pipeline.load.stage import load_batches
    from pipeline.summary import describe_load, describe_window
    from pipeline.write.tokenizer import load_tokenizer

    loader, embedding, tokenizer = config.loader, config.embedding, config.tokenizer
    decoder = load_tokenizer(
        name=tokenizer.name, path=tokenizer.path, pattern=tokenizer.pattern, engine="auto", special_text="literal"
    )
    report = load_batches(
        config.shards.path,
        split=loader.split,
        batch_size=loader.batch_size,
        shuffle=loader.shuffle,
        seed=loader.seed,
        lanes=loader.lanes,
        drop_last=loader.drop_last,
        score=config.window.score,
        document_ids=loader.document_ids,
        threads=loader.threads,
        memory_budget=loader.memory_budget,
        tokenizer={"name": decoder.name, "hash": decoder.hash},
        dim=embedding.dim,
        positions=embedding.positions,
        embedding_seed=embedding.seed,
    )
    print(describe_load(report))
    print()
    print(describe_window(report, decoder))
    return report


def run_report(config: Config, _: dict[str, Any]) -> Report:
    """The report stage: a sweep's table and pictures, made again from what its points left."""
    assert config.sweep.path, "the config asks for it"
    return finish_sweep(Path(config.sweep.path))


RUNNERS: dict[str, Callable[[Config, dict[str, Any]], Any]] = {
    "plan": run_plan,
    "write": run_write,
    "verify": run_verify,
    "load": run_load,
    "report": run_report,
}

if __name__ == "__main__":
    main()
