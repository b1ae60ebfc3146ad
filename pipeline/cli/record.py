"""What a run leaves for programs to read: `summary.json`, from its start on and however it ends.

`status` is `running`, `done`, `failed` or `interrupted`, and `error` is the line that standard error has. A run that is
killed leaves `running`. The reports of the stages that finished are there in any case.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

from pipeline.base.atomic import write_json
from pipeline.base.paths import translate_os_errors
from pipeline.base.progress import lines
from pipeline.base.version import find_version
from pipeline.base.wording import duration
from pipeline.cli.errors import describe_error, is_expected, is_interrupt
from pipeline.cli.log import RUN, logged_warnings
from pipeline.cli.plain import jsonable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUMMARY = "summary.json"


@contextlib.contextmanager
def recorded_run(folder: Path, *, point: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the summary of a run, to which stages add their reports; keep it in the run's folder, and log its end."""
    summary: dict[str, Any] = {"point": point, "status": "running", "error": None, "stage_seconds": {}}
    started = time.perf_counter()
    lines.label = "" if point is None else f"point {point}"

    def save() -> None:
        with translate_os_errors(folder, "hydra.run.dir"):
            write_json(folder / SUMMARY, jsonable(summary))

    save()
    RUN.info("stridemill %s starts in %s, process %d", find_version(), os.getcwd(), os.getpid())  # noqa: PTH109 - as text
    try:
        with logged_warnings():
            yield summary
        summary["status"] = "done"
    except BaseException as error:
        summary["status"] = "interrupted" if is_interrupt(error) else "failed"
        summary["error"] = "interrupted" if is_interrupt(error) else describe_error(error)
        traceback = error if not is_interrupt(error) and not is_expected(error) else None
        RUN.error("%s after %s: %s", summary["status"], _since(started), summary["error"], exc_info=traceback)
        with contextlib.suppress(ValueError, OSError):  # the error itself matters more
            save()
        raise
    finally:
        lines.label = ""
    summary["seconds"] = time.perf_counter() - started
    save()
    RUN.info("done in %s", _since(started))


@contextlib.contextmanager
def logged_stage(name: str, summary: dict[str, Any]) -> Iterator[None]:
    """Log the start and the end of a stage, and keep its time in the summary."""
    started = time.perf_counter()
    RUN.info("stage %s starts", name)
    yield
    summary["stage_seconds"][name] = time.perf_counter() - started
    RUN.info("stage %s is done in %s", name, _since(started))


def _since(started: float) -> str:
    return duration(time.perf_counter() - started)
