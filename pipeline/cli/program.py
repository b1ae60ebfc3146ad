"""What the commands have in common: check the command line, run a task under Hydra, end with one line and a code.

Exit code 2 means a rejected config; 1 means bad data, or a defect; 75 means that a part of an array job waits for
others; 130 means Ctrl-C and 143 SIGTERM. HYDRA_FULL_ERROR=1 shows the traceback of every error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.types import RunMode

from pipeline.base.wording import visible
from pipeline.cli.answer import answer
from pipeline.cli.compose import (
    CheckedCommand,
    check_command_line,
    find_conf,
    hide_secrets_in_configs,
    hydra_options,
    register_schema,
)
from pipeline.cli.config import Config
from pipeline.cli.errors import TerminatedError, is_interrupt, report_error
from pipeline.cli.log import hide_secrets_in_logs
from pipeline.cli.sweep import finish_sweep, reported_sweep
from pipeline.rules import hide_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from omegaconf import DictConfig

    from pipeline.cli.report import Report

READING = {"plan", "verify", "load", "show", "prove"}  # stages that write no data set


def run_program(
    task: Callable[[DictConfig], float | None],
    *,
    program: str,
    config_name: str = "config",
    kind: type[Config] = Config,
    conf: Sequence[Path] = (),
    check: Callable[[Any], None] = lambda _: None,
    check_number: Callable[[Any], None] = lambda _: None,
    resume_hint: Callable[[], str] = lambda: "",
    finish: Callable[[Path], Report] = finish_sweep,
) -> None:
    """Run a task with the config that the command line composes, and exit with its code.

    `conf` names folders of configs in addition to our own. `check` refuses a config that the task cannot use, and
    `check_number` one whose task returns no number, where a sweeper wants to optimize it.
    `resume_hint` says after an interrupt how to go on. `finish` makes the report of a sweep's folder.
    """
    if answer(sys.argv[1:], program=program, config_name=config_name, kind=kind, conf=conf):
        return
    wants_traceback = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here as they are, rather than printed by Hydra
    signal.signal(signal.SIGTERM, _terminate)
    hide_secrets_in_logs()
    hide_secrets_in_configs()
    try:
        with reported_sweep(finish):
            register_schema(kind)
            checked = check_command_line(
                sys.argv[1:], kind=kind, config_name=config_name, check=check, check_number=check_number
            )
            _run(task, checked, config_name)
    except BrokenPipeError:  # the reader of the summary has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as error:
        print(f"{program}: interrupted. {resume_hint()}", file=sys.stderr)
        # Python ends by the signal instead of our code if Ctrl-C came while some text was executed as code, as imports
        # do, even where that was caught. It forgets this with the next text.
        exec("")  # noqa: S102
        sys.exit(143 if isinstance(error, TerminatedError) else 130)
    except BaseException as error:
        if is_interrupt(error):
            raise
        if wants_traceback:
            print(visible(hide_secrets("".join(traceback.format_exception(error)))), end="", file=sys.stderr)
            sys.exit(1)
        sys.exit(report_error(error, program=program))


def _run(task: Callable[[DictConfig], float | None], checked: CheckedCommand, config_name: str) -> None:
    """Run a task under Hydra, in a temporary folder if its own cannot be made and it has nothing to leave there."""
    started = False
    failures: list[BaseException] = []

    def start(composed: DictConfig) -> float | None:
        nonlocal started
        started = True
        hide_secrets_in_logs()  # a launcher may have started this process
        try:
            return task(composed)
        except BaseException as error:
            if is_interrupt(error) or _is_sweep():
                raise
            failures.append(error)  # Hydra would print lines of its own
            return None

    main = hydra.main(config_path=str(find_conf()), config_name=config_name, **hydra_options())
    try:
        with known_to_hydra(checked):
            main(start)()
    except OSError as error:
        if started:
            raise
        config = checked.config
        where = error.filename or "the run's folder"
        if config is None or set(config.stages) - READING:
            key = "hydra.run.dir" if config is not None else "hydra.sweep.dir"
            remedy = f"Choose another folder, for example {key}={tempfile.gettempdir()}/run"
            raise ValueError(f"{key}: {where} cannot be created: {error.strerror}. {remedy}") from error
        with tempfile.TemporaryDirectory() as folder:
            sys.argv.append(f"hydra.run.dir={folder}")
            with known_to_hydra(checked._replace(composed=None)):
                main(start)()
            logging.shutdown()
    if failures:
        raise failures[0]


@contextlib.contextmanager
def known_to_hydra(checked: CheckedCommand) -> Iterator[None]:
    """Give Hydra what is composed already, and whether it is a sweep: it would compose once more for each."""
    get_mode, load = Hydra.get_mode, ConfigLoaderImpl.load_configuration
    # mypy has no other way to set a method
    setattr(Hydra, "get_mode", lambda *_, **__: checked.mode)  # noqa: B010
    if checked.composed is not None:
        setattr(ConfigLoaderImpl, "load_configuration", lambda *_, **__: checked.composed)  # noqa: B010
    try:
        yield
    finally:
        setattr(Hydra, "get_mode", get_mode)  # noqa: B010
        setattr(ConfigLoaderImpl, "load_configuration", load)  # noqa: B010


def _is_sweep() -> bool:
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.get().mode == RunMode.MULTIRUN


def _terminate(*_: object) -> NoReturn:
    raise TerminatedError
