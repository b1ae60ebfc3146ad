"""What a sweep adds to single runs: a plan at its start, a record of each point, a report at its end.

`PointSweeper` expands the command line once, writes the points into `plan.json` and hands them to the launcher. A point
is known by its overrides: started again in the same folder, a sweep finds the folders of the points that it had before,
wherever they are in the new list. A point writes its record when it starts and again when it ends, for whatever reason,
so the report (`cli/report.py`) needs only files. The process that started the sweep makes it.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import sys
import time
import traceback
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from hydra._internal import core_plugins
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.base.atomic import write_json
from pipeline.base.hashing import hash_json
from pipeline.base.locks import hold, try_to_hold
from pipeline.base.progress import ProgressBar
from pipeline.base.wording import counted, duration, visible
from pipeline.cli.compose import one_line, save_yaml
from pipeline.cli.errors import describe_error, is_interrupt
from pipeline.cli.log import RUN
from pipeline.cli.plain import jsonable
from pipeline.cli.points import PLAN, RECORD, SUMMARY, TRACEBACK, find_records, identify
from pipeline.cli.report import describe_sweep, write_report
from pipeline.rules import ConfigError, StrideError, hide_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig

    from pipeline.cli.points import Point
    from pipeline.cli.report import Report

folders: list[Path] = []  # of the sweeps that this process started
POLL_SECONDS = 0.5


class PointSweeper(Sweeper):
    """Hydra's basic sweeper, with a plan, stable folders, and points that fail one by one."""

    def __init__(self, max_batch_size: int | None = None, params: dict[str, str] | None = None) -> None:
        self.max_batch_size = max_batch_size
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over."""
        self.loader = hydra_context.config_loader
        self.composed = config
        self.groups = set(self.loader.list_groups(""))
        self.starter = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Plan and launch all points; the records say how each ended."""
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        fixed = [f"{key}={value}" for key, value in self.params.items()]
        parser = OverridesParser.create(config_loader=self.loader)
        parsed = parser.parse_overrides(arguments)
        batches = BasicSweeper.split_arguments([*parser.parse_overrides(fixed), *parsed], self.max_batch_size)
        self.composed_groups = self.groups & {one.key_or_group for one in parsed if not one.is_sweep_override()}
        folder = Path(self.composed.hydra.sweep.dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        save_yaml(self.composed, folder / "multirun.yaml")
        points = [list(point) for batch in batches for point in batch]
        write_json(folder / PLAN, jsonable({"overrides": arguments, "points": points}))
        folder_names = self._name_folders(folder, points)
        with watched_points(folder, folder_names):
            return self._launch(batches, folder, iter(folder_names))

    def _launch(self, batches: list[list[list[str]]], folder: Path, names: Iterator[str]) -> list[Any]:
        launched, returns = 0, list[Any]()
        for batch in batches:
            jobs: list[list[str]] = []
            for point, name in zip(batch, names, strict=False):
                if self._is_composable(list(point), folder / name if name else None):
                    own = [f"hydra.sweep.subdir={name}"] if name not in ("", str(launched + len(jobs))) else []
                    jobs.append([*point, *own])
            returns += self.starter.launch(jobs, initial_job_idx=launched) if jobs else []
            launched += len(jobs)
        return returns

    def _name_folders(self, folder: Path, points: list[list[str]]) -> list[str]:
        """Name each point's folder: that of its record, or a new number; no name if the user has set a pattern."""
        sweep: Any = OmegaConf.to_container(self.composed.hydra.sweep, resolve=False)
        if sweep["subdir"] != "${hydra.job.num}":
            return [""] * len(points)
        known: dict[tuple[str, ...], list[str]] = {}
        for path, record in find_records(folder):
            known.setdefault(identify(record["overrides"]), []).append(path.parent.name)
        taken = {name for names in known.values() for name in names}
        kept = [known.get(identify(jsonable(point)), []) for point in points]
        free = (str(number) for number in itertools.count() if str(number) not in taken)
        return [names.pop(0) if names else next(free) for names in kept]

    def _is_composable(self, overrides: list[str], folder: Path | None) -> bool:
        """Check that a point can be composed, which the launcher expects; one that cannot is recorded as failed.

        Composing takes a tenth of a second, so values alone are assigned to the sweep's own config instead.
        """
        try:
            parser = OverridesParser.create(config_loader=self.loader)
            parsed = [one for one in parser.parse_overrides(overrides) if one.key_or_group not in self.composed_groups]
            if any(override.key_or_group in self.groups for override in parsed):
                self.loader.load_sweep_config(self.composed, overrides)
            else:
                typed = copy.deepcopy(self.composed)
                for override in parsed:
                    OmegaConf.update(typed, override.key_or_group, override.value())
        except (HydraException, OmegaConfBaseException) as error:
            if folder is None:
                raise one_line(error) from error
            folder.mkdir(exist_ok=True)
            record = {
                "point": None,
                "overrides": overrides,
                "status": "failed",
                "error": describe_error(one_line(error)),
            }
            write_json(folder / RECORD, jsonable({**record, "kind": "config"}))
            return False
        return True


@contextlib.contextmanager
def watched_points(folder: Path, names: list[str]) -> Iterator[None]:
    """Say of each point that ends inside the block how it ended, and how many and how much time are left.

    Whatever launcher runs the points: only their records are read.
    """
    started, finished, ended = time.time(), set[Path](), Event()

    def look() -> None:
        files = [folder / name / RECORD for name in names] if all(names) else list(folder.glob(f"*/{RECORD}"))
        for file in files:
            if file in finished or not file.is_file() or file.stat().st_mtime < started:
                continue
            with contextlib.suppress(ValueError, OSError):  # it is being replaced
                record = json.loads(file.read_text(encoding="utf-8"))
                if record["status"] == "running":
                    continue
                finished.add(file)
                bar.update()
                left = (time.time() - started) / len(finished) * (len(names) - len(finished))
                took = f" in {duration(record['seconds'])}" if record.get("seconds") is not None else ""
                ended_now = f"{record['status']}{took}"
                how = "was finished before" if record.get("kept") else ended_now
                bar.say(f"point {file.parent.name} {how}", f"{duration(left)} left")

    def watch() -> None:
        while not ended.wait(POLL_SECONDS):
            look()

    watcher = Thread(target=watch, name="stridemill-sweep", daemon=True)
    with ProgressBar("sweep", len(names), "points") as bar:
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
            look()


@contextlib.contextmanager
def turn_to_write(path: str) -> Iterator[None]:
    """Wait, in a sweep, until no other of its points writes the same data set; then it is there already."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        yield
        return
    locks = Path(HydraConfig.get().sweep.dir).absolute() / ".locks"
    locks.mkdir(exist_ok=True)
    file = locks / hash_json(str(Path(path).absolute()))[:16]
    descriptor = try_to_hold(file)
    if descriptor is None:
        RUN.info("waits for another point, which writes %s", path)
        descriptor = hold(file)
    try:
        yield
    finally:
        os.close(descriptor)


def register_sweeper() -> None:
    """Make `PointSweeper` known to Hydra, which finds plugins only by a name inside its own packages."""
    setattr(core_plugins, "stridemill", sys.modules[__name__])  # noqa: B010 - a name that type checkers do not know
    PointSweeper.__module__ = f"{core_plugins.__name__}.stridemill"
    plugins = Plugins.instance()
    plugins.register(PointSweeper)
    make = plugins.instantiate_sweeper
    if getattr(make, "notes_folders", False):
        return

    def make_and_note(**options: Any) -> Sweeper:
        folder = Path(options["config"].hydra.sweep.dir).absolute()
        if folder not in folders:
            folders.append(folder)
        return make(**options)

    make_and_note.notes_folders = True  # type: ignore[attr-defined]
    plugins.instantiate_sweeper = make_and_note  # type: ignore[method-assign]


def run_point(composed: DictConfig, run: Callable[[DictConfig], float | None]) -> float | None:
    """Run one point, with its output in the point's `output.txt`, and record how it ended. Return its number.

    Raises:
        Exception: what `run` raised, unless the config says to skip this point.

    """
    job = HydraConfig.get()
    folder, sweep = Path(job.runtime.output_dir), Path(job.sweep.dir).absolute()
    if not (sweep / PLAN).exists():  # another sweeper's: its points are not known before they run
        write_json(sweep / PLAN, {"points": None})
    overrides = OmegaConf.to_container(job.overrides.task, resolve=False)
    window = {key: _window_value(composed, key) for key in ("max_length", "stride", "tail", "documents")}
    record: dict[str, Any] = jsonable({"point": job.job.num, "overrides": overrides, "window": window})
    for name in (SUMMARY, TRACEBACK):  # of an earlier run in the same folder
        (folder / name).unlink(missing_ok=True)
    write_json(folder / RECORD, {**record, "status": "running"})
    started, number = time.perf_counter(), None
    try:
        with (folder / "output.txt").open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            number = run(composed)
        record |= {"status": "done", "number": number}
    except StrideError as error:
        skip = OmegaConf.select(composed, "sweep.bad_points") == "skip"
        record |= {"status": "skipped" if skip else "failed", "error": describe_error(error), "kind": "stride"}
        if not skip:
            raise
    except BaseException as error:
        if is_interrupt(error):
            record["status"] = "interrupted"
            raise
        kind = "config" if isinstance(error, ConfigError) else "data"
        record |= {"status": "failed", "error": describe_error(error), "kind": kind}
        if kind == "data":
            (folder / TRACEBACK).write_text(visible(hide_secrets(traceback.format_exc())), encoding="utf-8")
        if isinstance(error, Exception):
            raise
        raise RuntimeError(describe_error(error)) from error  # a library's panic, which must not end the other points
    finally:
        write_json(folder / RECORD, {**record, "seconds": time.perf_counter() - started})
    return number


@contextlib.contextmanager
def reported_sweep(finish: Callable[[Path], Report]) -> Iterator[None]:
    """Let `finish` make the report of the sweep that runs inside the block, whether it finishes or fails.

    Raises:
        ValueError: points of the sweep did not finish; the message has their number and the first one's error.

    """
    failure: Exception | None = None
    try:
        yield
    except KeyboardInterrupt:
        for folder in started_sweeps():
            mark_interrupted(folder)
            finish(folder)
        raise
    except Exception as error:
        if not started_sweeps():
            raise
        failure = error  # a point's, and in its record; or of the launcher itself
    for folder in started_sweeps():
        bad = [point for point in finish(folder).points if point.status not in ("done", "skipped")]
        if failure and not any(point.error for point in bad):
            raise failure
        if bad:
            raise ValueError(describe_failure(bad, folder)) from failure


def started_sweeps() -> list[Path]:
    """Return the folders of this process's sweeps that got as far as a plan."""
    return [folder for folder in folders if (folder / PLAN).is_file()]


def mark_interrupted(folder: Path) -> None:
    """Record as interrupted the points of a sweep whose processes were ended with it, before they could do so."""
    for path, record in find_records(folder):
        if record.get("status") == "running":
            write_json(path, {**record, "status": "interrupted"})
            summary = path.with_name(SUMMARY)
            if summary.is_file() and (found := json.loads(summary.read_text(encoding="utf-8")))["status"] == "running":
                write_json(summary, {**found, "status": "interrupted", "error": "interrupted"})


def finish_sweep(*found: Path, into: Path | None = None) -> Report:
    """Make the report of a sweep's folder, or of several, and print it."""
    report = write_report(*found, into=into)
    print(visible(hide_secrets(describe_sweep(report))), flush=True)
    return report


def describe_failure(bad: list[Point], folder: Path) -> str:
    """Name in one line the points that did not finish: their number, and the first one's error."""
    first = bad[0]
    hint = "; sweep.bad_points=skip leaves such points out" if all(point.kind == "stride" for point in bad) else ""
    return (
        f"{counted(len(bad), 'point')} of the sweep did not finish; the first is point {first.point} "
        f"({first.overrides}): {(first.error or first.status).rstrip('.')}{hint}. The other points finished. All are "
        f"listed in {folder}"
    )


def _window_value(composed: DictConfig, key: str) -> Any:
    with contextlib.suppress(OmegaConfBaseException):  # a broken config must not break the record
        return OmegaConf.select(composed, f"window.{key}")
    return None
