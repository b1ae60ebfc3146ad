"""Errors as one line for a terminal, a record or a summary, and the exit code that goes with each.

A line is for what the config or the outside world did wrong: a `ValueError` that this package raised on purpose, the
operating system, the network, memory, damaged input. Any other error is a defect of this program. It keeps its
traceback and asks for a report, so that it is not mistaken for the user's.
"""

from __future__ import annotations

import sys
import traceback

from pipeline.base.raised import is_raised_here
from pipeline.base.wording import visible
from pipeline.rules import ConfigError, WaitingError, hide_secrets, shorten

TRY_AGAIN = 75  # EX_TEMPFAIL in sysexits.h
LIMIT = 600  # characters of a line
OUTSIDE = (OSError, MemoryError, RecursionError, OverflowError)
LITTLE_MEMORY = "there is not enough memory. Lower executor.workers, loader.memory_budget or loader.batch_size"
TOO_DEEP = "the input is nested too deeply to be read"


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, handled like Ctrl-C."""


def is_interrupt(error: BaseException) -> bool:
    """Tell whether an error only ends the process."""
    return isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)


def describe_error(error: BaseException) -> str:
    """Return an error in one line of bounded length, without secrets and control characters."""
    kind, text = type(error).__name__, " ".join(hide_secrets(str(error)).split())
    if isinstance(error, MemoryError | RecursionError):
        text = f"{LITTLE_MEMORY if isinstance(error, MemoryError) else TOO_DEEP} ({text or kind})"
    elif isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    elif not text or not isinstance(error, ValueError | OSError):
        text = f"{kind}: {text}" if text else kind
    return shorten(visible(text), LIMIT)


def is_expected(error: BaseException) -> bool:
    """Tell whether an error is the config's or the outside world's rather than a defect of this program."""
    names = {kind.__name__ for kind in type(error).__mro__}  # of libraries that need not be imported
    if isinstance(error, (*OUTSIDE, ConfigError)) or names & {"PanicException", "HTTPException"}:
        return True
    return isinstance(error, ValueError) and is_raised_here(error)


def report_error(error: BaseException, *, program: str) -> int:
    """Print an error on stderr and return the exit code."""
    if not is_expected(error):
        lines = "".join(traceback.format_exception(error))
        print(visible(hide_secrets(lines)), file=sys.stderr)
        print(f"{program}: this is a defect of the program. Please report it with the lines above", file=sys.stderr)
        return 1
    print(f"{program}: {describe_error(error)}", file=sys.stderr)
    return 2 if isinstance(error, ConfigError) else TRY_AGAIN if isinstance(error, WaitingError) else 1
