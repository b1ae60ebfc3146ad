"""Ask an order which windows come next before a reader needs them: in large questions, from a thread of their own.

A question has a price besides that of its windows: with 200 sources under `lanes`, 4 ms. So questions are large, and
each is asked while the answer to the one before is used up. The first one is small, since a caller waits for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future, ThreadPoolExecutor

# Windows of each question, the last one for all that follow. The third is so large that it takes as long as using up
# the second, so that the caller seldom waits for it.
QUESTIONS = (32, 1 << 13, 1 << 15)


class Lookahead:
    """The windows of a reader's batches, one after the other.

    Args:
        ask: returns the windows of batches: (the first of them, how many). Their last batch may be incomplete.
        batch_size: windows of a batch.
        thread: where questions are asked.

    """

    def __init__(self, ask: Callable[[int, int], np.ndarray], *, batch_size: int, thread: ThreadPoolExecutor) -> None:
        self._ask, self._batch_size, self._thread = ask, batch_size, thread
        self._windows = np.empty(0, np.int64)  # answered and not taken
        self._taken = self._answered = self._questions = 0  # batches, batches, questions
        self._coming: tuple[int, Future[np.ndarray]] | None = None  # batches, and their windows

    def take(self, batches: int, *, stop: int) -> np.ndarray:
        """Return the windows of the next batches, int64 [B], and have those after them asked for.

        No question goes beyond the batch `stop`, counted from the first one; the next batches do not either.
        """
        self._taken += batches
        assert self._taken <= stop, "what is taken may be asked for"
        while self._answered < self._taken:
            count, answer = self._coming or self._submit(stop, at_least=batches)
            self._windows, self._coming = np.concatenate([self._windows, answer.result()]), None
            self._answered += count
        if self._coming is None and self._answered < stop:
            self._coming = self._submit(stop)
        count = batches * self._batch_size
        mine, self._windows = self._windows[:count], self._windows[count:]
        return mine

    def _submit(self, stop: int, *, at_least: int = 1) -> tuple[int, Future[np.ndarray]]:
        size = QUESTIONS[min(self._questions, len(QUESTIONS) - 1)] // self._batch_size
        count = min(max(at_least, size), stop - self._answered)
        self._questions += 1
        return count, self._thread.submit(self._ask, self._answered, count)
