"""The progress of a long stage: a bar where standard error is a terminal, and lines in the log.

A stage logs a line when it starts, one every `interval` seconds and one when it ends: how much of how much is done, the
rate and the time left. A thread writes them, so they also come while nothing is finished. They go to the logger
`pipeline.progress` at level INFO. The command line shows them where standard error is no terminal, and keeps them in
the run's log file; another program sees them if it asks `logging` for them.
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass
from threading import Event, Thread
from typing import TYPE_CHECKING

from pipeline.base.wording import duration, out_of, rate

if TYPE_CHECKING:
    from typing import Self

    from pipeline.base.terminal_bar import TerminalBar

LOG = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Lines:
    """How the lines of this process come."""

    interval: float = 30.0  # seconds between two of them
    label: str = ""  # before each, such as the point of a sweep


lines = Lines()


class ProgressBar:
    """Counts units up to `total`, from any thread. It shows them in a `with` block; outside of one it only counts."""

    def __init__(self, name: str, total: int, unit: str, *, done: int = 0) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = self.first = done
        self.note = ""  # shown after the rate
        self.bar: TerminalBar | None = None
        self.ended = Event()
        self.thread = Thread(target=self._log_until_the_end, name="stridemill-progress", daemon=True)

    def update(self, count: int = 1) -> None:
        """Count some more units."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)

    def annotate(self, note: str) -> None:
        """Show a note after the rate from now on."""
        self.note = note
        if self.bar is not None:
            self.bar.set_postfix_str(note)

    def __enter__(self) -> Self:
        self.started, self.label = time.monotonic(), lines.label
        if sys.stderr.isatty():
            from pipeline.base.terminal_bar import TerminalBar

            self.bar = TerminalBar(self.name, self.total, self.unit, self.done)
        self.say("starts")
        if LOG.isEnabledFor(logging.INFO):
            self.thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.ended.set()
        if self.thread.ident is not None:
            self.thread.join()
        if self.bar is not None:
            self.bar.close()
        taken = time.monotonic() - self.started
        speed = rate(self.done - self.first, taken, self.unit)
        self.say(speed, f"{'done in' if kind is None else 'stopped after'} {duration(taken)}", self.note)

    def _log_until_the_end(self) -> None:
        before, then = self.done, self.started
        while not self.ended.wait(lines.interval):
            now, done = time.monotonic(), self.done
            if done == before:  # nothing was finished since the last line: the rate is that of the stage so far
                before, then = self.first, self.started
            taken = now - then
            left = [f"{duration((self.total - done) * taken / (done - before))} left"] if done > before else []
            self.say(rate(done - before, taken, self.unit), *left, self.note)
            before, then = done, now

    def say(self, *parts: str) -> None:
        """Log a line."""
        amount = out_of(self.done, self.total, self.unit)
        LOG.info("%s", "  ".join(part for part in (self.label, self.name, amount, *parts) if part))
