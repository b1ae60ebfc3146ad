"""Tasks and their last steps: all of them, in order, and none of those that are begun is forgotten."""

import threading
import time

import pytest

from pipeline.executor.local import run_and_flush, run_tasks


def sleep_less_and_less(number):
    time.sleep((20 - number) / 4000)  # the later a task, the sooner it ends
    return number


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(workers):
    assert list(run_tasks(sleep_less_and_less, range(20), workers=workers)) == list(range(20))
    steps = run_and_flush(lambda n: lambda: sleep_less_and_less(n), range(20), workers=workers)
    assert list(steps) == list(range(20))


def test_last_steps_run_on_one_thread_that_is_no_worker():
    def task(_):
        worker = threading.get_ident()
        return lambda: (worker, threading.get_ident())

    workers, flushers = zip(*run_and_flush(task, range(50), workers=3), strict=True)
    assert len(set(flushers)) == 1
    assert not set(workers) & set(flushers)


@pytest.mark.parametrize("fails", ["task", "step"])
def test_after_an_error_every_task_that_ended_gets_its_last_step(fails):
    ended, stepped = [], []

    def task(number):
        if number == 5 and fails == "task":
            raise ValueError("five")
        ended.append(number)

        def step():
            stepped.append(number)
            if number == 5 and fails == "step":
                raise ValueError("five")

        return step

    with pytest.raises(ValueError, match="five"):
        list(run_and_flush(task, range(1000), workers=3))
    assert sorted(ended) == sorted(stepped)
    assert len(ended) < 100, "the rest was cancelled"


def test_a_consumer_that_stops_early_leaves_no_thread_and_no_step_behind():
    ended, stepped = [], []

    def task(number):
        ended.append(number)
        return lambda: stepped.append(number)

    before = threading.active_count()
    results = run_and_flush(task, range(1000), workers=2)
    next(results)
    results.close()
    assert sorted(ended) == sorted(stepped)
    assert threading.active_count() == before
