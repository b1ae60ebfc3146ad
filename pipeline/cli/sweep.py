"""What a sweep adds to single runs: a plan at its start, a record of each point, a report at its end.

A point writes its record when it starts and again when it ends, for whatever reason, so the report (`cli/report.py`)
needs only files. Hydra 1.3.8 calls `on_multirun_end` only if no job failed, and a parallel launcher's processes do not
share a callback's memory. So the process that started the sweep makes the report, after Hydra has returned or raised.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.base.atomic import write_json
from pipeline.base.wording import counted
from pipeline.cli.points import PLAN, RECORD, SUMMARY, TRACEBACK
from pipeline.cli.report import TABLE, describe_sweep, write_report
from pipeline.settings import ConflictError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from omegaconf import DictConfig

    from pipeline.cli.points import Point
    from pipeline.cli.report import Report

folders: list[Path] = []  # of the sweeps that this process started


class KeepPlan(Callback):
    """Hydra's callback at the start of a sweep: records its folder and its points."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Write `plan.json` into the sweep's folder."""
        folder = Path(config.hydra.sweep.dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        folders.append(folder)
        write_json(folder / PLAN, {"overrides": list(config.hydra.overrides.task), "points": plan_points(config)})


def plan_points(config: DictConfig) -> list[list[str]] | None:
    """Return the overrides of every point, or None if the sweeper chooses its points while it runs."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    sweeper = config.hydra.sweeper
    if not str(sweeper._target_).endswith(".BasicSweeper"):
        return None
    fixed = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    given = OverridesParser.create().parse_overrides([*fixed, *config.hydra.overrides.task])
    (points,) = BasicSweeper.split_arguments(given, max_batch_size=None)
    return [list(point) for point in points]


def run_point(composed: DictConfig, run: Callable[[DictConfig], None]) -> None:
    """Run one point, with its output in the point's `output.txt`, and record how it ended.

    Raises:
        Exception: what `run` raised, unless the config says to skip this point.

    """
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    window = {key: _window_value(composed, key) for key in ("max_length", "stride", "tail", "documents")}
    record: dict[str, Any] = {"point": job.job.num, "overrides": list(job.overrides.task), "window": window}
    for name in (SUMMARY, TRACEBACK):  # of an earlier run in the same folder
        (folder / name).unlink(missing_ok=True)
    write_json(folder / RECORD, {**record, "status": "running"})
    started = time.perf_counter()
    try:
        with (folder / "output.txt").open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            run(composed)
        record["status"] = "done"
    except ConflictError as error:
        skip = OmegaConf.select(composed, "sweep.bad_points") == "skip"
        record |= {"status": "skipped" if skip else "failed", "error": str(error)}
        if not skip:
            raise
    except Exception as error:
        (folder / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        record |= {"status": "failed", "error": " ".join(f"{kind}{error}".split())}
        raise
    except BaseException:
        record["status"] = "interrupted"
        raise
    finally:
        write_json(folder / RECORD, {**record, "seconds": time.perf_counter() - started})


@contextlib.contextmanager
def reported_sweep() -> Iterator[None]:
    """Make the report of the sweep that runs inside the block, whether it finishes or fails.

    Raises:
        ValueError: points of the sweep did not finish; the message has their number and the first one's error.

    """
    failure: Exception | None = None
    try:
        yield
    except KeyboardInterrupt:
        for folder in folders:
            finish_sweep(folder)
        raise
    except Exception as error:
        if not folders:
            raise
        failure = error  # a point's, and in its record; or of the launcher itself
    for folder in folders:
        bad = [point for point in finish_sweep(folder).points if point.status not in ("done", "skipped")]
        if failure and not any(point.error for point in bad):
            raise failure
        if bad:
            raise ValueError(describe_failure(bad, folder)) from failure


def finish_sweep(folder: Path) -> Report:
    """Make the report of a sweep's folder and print it."""
    report = write_report(folder)
    print(describe_sweep(report), flush=True)
    return report


def describe_failure(bad: list[Point], folder: Path) -> str:
    """Name in one line the points that did not finish: their number, and the first one's error."""
    first = bad[0]
    hint = "; sweep.bad_points=skip leaves such points out" if _only_conflicts(bad) else ""
    return (
        f"{counted(len(bad), 'point')} of the sweep did not finish; the first is point {first.point} "
        f"({first.overrides}): {first.error or first.status}{hint}. The other points finished. All are listed in "
        f"{folder / TABLE}"
    )


def _only_conflicts(points: list[Point]) -> bool:
    return all(point.stride and point.max_length and point.stride > point.max_length for point in points)


def _window_value(composed: DictConfig, key: str) -> Any:
    with contextlib.suppress(OmegaConfBaseException):  # a broken config must not break the record
        return OmegaConf.select(composed, f"window.{key}")
    return None
