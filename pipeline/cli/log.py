"""The log of a run: a file with times in its folder, and what of it is shown on standard error.

Every process that runs a job sets it up, whatever launcher started it: Hydra does so from the config (`JOB_LOGGING`).
The file has the start and the end of each stage, its progress and its counts, warnings and errors. Standard error shows
the progress where it is no terminal (a terminal has bars), and warnings of other packages. No record has secrets.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, Any

from pipeline.base.progress import LOG as PROGRESS
from pipeline.base.wording import visible
from pipeline.rules import hide_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN = logging.getLogger("stridemill")  # what a run prints too, so that only the file needs it
JOB_LOGGING = {
    "version": 1,
    "formatters": {"file": {"format": "%(asctime)s %(levelname)s %(message)s"}, "shown": {"format": "%(message)s"}},
    "handlers": {
        "console": {"class": "pipeline.cli.log.ShownHandler", "formatter": "shown"},
        "file": {
            "class": "logging.FileHandler",
            "formatter": "file",
            "filename": "${hydra.runtime.output_dir}/${hydra.job.name}.log",
            "encoding": "utf-8",
            "delay": True,  # a folder that is only read has no log
        },
    },
    "root": {"level": "INFO", "handlers": ["console", "file"]},
    "disable_existing_loggers": False,
}


HYDRA_LOGGING = {  # of the process that starts the points of a sweep
    "version": 1,
    "formatters": {"hydra": {"format": "[%(asctime)s][HYDRA] %(message)s"}, "shown": {"format": "%(message)s"}},
    "handlers": {
        "hydra": {"class": "pipeline.cli.log.HydraHandler", "formatter": "hydra", "stream": "ext://sys.stdout"},
        "console": {"class": "pipeline.cli.log.ShownHandler", "formatter": "shown"},
    },
    "root": {"level": "INFO", "handlers": ["hydra", "console"]},
    "disable_existing_loggers": False,
}


class HydraHandler(logging.StreamHandler[Any]):
    """Shows on standard output what Hydra and its plugins say."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show all but our own records."""
        if record.name not in (PROGRESS.name, RUN.name) and record.levelno < logging.WARNING:
            super().emit(record)


class ShownHandler(logging.StreamHandler[Any]):
    """Shows on standard error what the run does not print itself."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show progress off a terminal, and warnings."""
        if record.name == PROGRESS.name:
            is_shown = not sys.stderr.isatty()
        else:
            is_shown = record.name != RUN.name and record.levelno >= logging.WARNING
        if is_shown:
            super().emit(record)


def hide_secrets_in_logs() -> None:
    """Make every record of this process without secrets and control characters, its traceback too."""
    make = logging.getLogRecordFactory()
    if getattr(make, "hides_secrets", False):
        return

    def make_safe(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = make(*arguments, **options)
        record.msg, record.args = visible(hide_secrets(record.getMessage().expandtabs(4))), ()
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = visible(hide_secrets("".join(traceback.format_exception(*record.exc_info)).rstrip()))
        return record

    make_safe.hides_secrets = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_safe)


@contextlib.contextmanager
def logged_warnings() -> Iterator[None]:
    """Write Python's warnings into the log, too, while the block runs."""
    show = warnings.showwarning

    def show_and_log(message: Warning | str, category: type[Warning], *arguments: Any, **options: Any) -> None:
        RUN.warning("%s: %s", category.__name__, message)
        show(visible(hide_secrets(str(message))), category, *arguments, **options)

    warnings.showwarning = show_and_log
    try:
        yield
    finally:
        warnings.showwarning = show
