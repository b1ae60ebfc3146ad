"""Run independent tasks on a Ray cluster, and yield the results in the tasks' order.

Each task is a core task of Ray on one core. It returns a small record, so no object is lost with a node. What all tasks
share (the vocabulary, the windows) is in the object store once, and each worker process loads it once. Ray runs a
task again whose worker was killed, so a task may run twice, even at the same time: the files that it publishes have
the same names and bytes. A bounded number of tasks is in flight.

An error of a task is raised here as it is. The driver keeps nothing that a later run needs: what finished tasks have
published is found again.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from socket import gethostname
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pipeline.base.memory import keep_freed_memory
from pipeline.base.raised import is_raised_here
from pipeline.base.version import find_version
from pipeline.rules import ConfigError, hide_secrets, shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

Item = TypeVar("Item")
Result = TypeVar("Result")

LOG = logging.getLogger(__name__)
RETRIES = 3  # of a task whose worker or node ends
KEPT = "Finished work is kept; run the same command again to resume"
PATIENCE = 60.0  # seconds: NFS keeps what it knows of a folder for up to a minute
OBJECT_STORE_BYTES = 1 << 28  # of a cluster that we start; what does not fit goes to disk


class TaskDefect(RuntimeError):  # noqa: N818 - what it is; it keeps its traceback, so that it gets reported
    """A task raised an error that is no one's mistake but ours."""


class Failure(NamedTuple):
    """An error of a task, on its way to the driver."""

    kind: type[BaseException]
    arguments: tuple[Any, ...]
    state: dict[str, Any]
    is_ours: bool  # it is meant for the user
    trace: str


class Shipped(NamedTuple):
    """What all tasks of one call share, as it travels."""

    task: bytes
    buffers: Sequence[Any]  # the arrays in it, which a worker maps without a copy
    is_last_step_separate: bool
    releases: dict[str, str]
    folder: str  # in which the driver runs: relative paths are meant from there


@dataclass(frozen=True, slots=True)
class RayExecutor:
    """Runs tasks on the cluster that this process is connected to; see `pipeline.executor.choose.Executor`."""

    in_flight: int

    def run_tasks(self, task: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield `task(item)` for each item, in the items' order."""
        return self._run(task, items, is_last_step_separate=False)

    def run_and_flush(self, task: Callable[[Item], Callable[[], Result]], items: Iterable[Item]) -> Iterator[Result]:
        """Yield `task(item)()` for each item, in the items' order."""
        return self._run(task, items, is_last_step_separate=True)

    def _run(self, task: Any, items: Iterable[Any], *, is_last_step_separate: bool) -> Iterator[Any]:
        import ray

        # In a list: a worker asks for it once, and Ray does not hand it to each task.
        shared = [ray.put(ship(task, is_last_step_separate=is_last_step_separate))]
        call = ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=False)(run_on_worker)
        running: dict[Future[Any], tuple[int, Any]] = {}  # each with its number, and its reference, which cancels it
        ended: dict[int, Any] = {}
        try:
            coming, number, wanted = iter(items), 0, 0
            is_over = False
            while True:
                # Neither the tasks under way nor those that ended before their turn become many.
                while not is_over and len(running) < self.in_flight and number < wanted + 2 * self.in_flight:
                    try:
                        item = next(coming)
                    except StopIteration:
                        is_over = True
                        break
                    reference = call.remote(shared, shared[0].hex(), item)
                    running[reference.future()] = number, reference
                    number += 1
                if wanted in ended:
                    yield ended.pop(wanted)
                    wanted += 1
                    continue
                if not running:
                    return
                # Not `ray.wait`: out of it SIGTERM comes as Ctrl-C.
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    ended[running.pop(future)[0]] = result_of(future)
        finally:
            for _, reference in running.values():
                with suppress(Exception):  # the cluster may be gone
                    ray.cancel(reference, force=True)


def check_installed() -> None:
    """Refuse `executor=ray` where Ray is not installed."""
    if find_spec("ray") is None:
        raise ConfigError("executor: ray needs the package ray: pip install 'ray>=2.60'")


@contextmanager
def connect(address: str | None, workers: int | None) -> Iterator[RayExecutor]:
    """Connect to a Ray cluster, or start one on this machine, for the time of the block.

    A process that is connected already stays with its cluster. Ray's handler of SIGTERM is not kept.

    Raises:
        ConfigError: Ray is not installed.
        ValueError: the cluster cannot be reached.

    """
    check_installed()
    import ray

    is_ours = not ray.is_initialized()
    if is_ours:
        start(address, workers)
    try:
        cores = int(ray.cluster_resources().get("CPU", 0))
        nodes = sum(node["Alive"] for node in ray.nodes())
        LOG.info("Ray cluster with %d nodes and %d cores", nodes, cores)
        at_once = workers or max(1, cores)
        # Where all cores are ours, each has a next task at hand.
        yield RayExecutor(at_once if at_once < cores else 2 * at_once)
    finally:
        if is_ours:
            ray.shutdown()


def start(address: str | None, workers: int | None) -> None:
    """Call `ray.init`. Its handler of SIGTERM, under which `finally` blocks do not run, is replaced by the one before.

    Raises:
        ValueError: the cluster cannot be reached.

    """
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a run reports to nobody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # tasks use no GPU; without it Ray warns
    own: dict[str, Any] = {"num_cpus": workers, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    options = {"address": address} if address else {"address": "local", **own}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"executor.address={address}" if address else "executor=ray"
        what = shorten(" ".join(hide_secrets(str(error)).split()), 300)
        raise ValueError(f"{where}: Ray cannot be {'reached' if address else 'started'}: {what}") from error
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def wait_until_seen(files: Iterable[Path], key: str) -> None:
    """Wait for files that workers have written: a network file system may show them here a little later.

    Raises:
        ValueError: one of them does not come, so the nodes do not share that folder.

    """
    until = time.monotonic() + PATIENCE
    for file in files:
        while not file.is_file():
            if time.monotonic() > until:
                raise ValueError(
                    f"{key}: a worker has written {file}, which is not there on {gethostname()}; choose a folder that "
                    "all nodes of the cluster see under this path"
                )
            time.sleep(0.2)


def ship(task: Callable[..., Any], *, is_last_step_separate: bool) -> Shipped:
    """Pickle a task, its arrays apart."""
    import numpy as np

    buffers: list[pickle.PickleBuffer] = []
    packed = pickle.dumps(task, protocol=5, buffer_callback=buffers.append)
    arrays = [np.asarray(buffer.raw(), np.uint8) for buffer in buffers]
    return Shipped(packed, arrays, is_last_step_separate, find_releases(), os.getcwd())  # noqa: PTH109 - as text


def find_releases() -> dict[str, str]:
    """Return the releases that decide the bytes of shards."""
    return {"stridemill": find_version(), "pyarrow": version("pyarrow")}


_kept: deque[tuple[str, Callable[..., Any], bool]] = deque(maxlen=1)  # the task that this worker process has loaded


def run_on_worker(shared: list[Any], key: str, item: Any) -> Any:
    """Run a task in a worker process of Ray. Return its result, or a `Failure`."""
    try:
        if not _kept or _kept[0][0] != key:
            import ray

            _kept.append((key, *unpack(ray.get(shared[0]))))
        _, task, is_last_step_separate = _kept[0]
        result = task(item)
        return result() if is_last_step_separate else result
    except Exception as error:  # noqa: BLE001 - whatever it is, the driver must see it
        return describe_failure(error)


def unpack(shipped: Shipped) -> tuple[Callable[..., Any], bool]:
    """Load a task in a worker process.

    Raises:
        ValueError: this node has other releases than the driver's, another vocabulary, or not the driver's folder.

    """
    found = find_releases()
    for name, wanted in shipped.releases.items():
        if found[name] != wanted:
            raise ValueError(
                f"executor=ray: node {gethostname()} has {name} {found[name]}, and the driver has {wanted}; install "
                "the same releases on all nodes"
            )
    try:
        os.chdir(shipped.folder)
    except OSError as error:
        raise ValueError(
            f"executor=ray: node {gethostname()} has no folder {shipped.folder}, in which the run was started; start "
            "it in a folder that all nodes see"
        ) from error
    keep_freed_memory()
    return pickle.loads(shipped.task, buffers=shipped.buffers), shipped.is_last_step_separate  # noqa: S301 - our own


def describe_failure(error: Exception) -> Failure:
    """Turn an error into a record. What its class does when it is made does not matter."""
    is_ours = not isinstance(error, ValueError) or is_raised_here(error)
    arguments = error.args
    if isinstance(error, OSError):
        arguments = (error.errno, error.strerror, error.filename) if error.errno is not None else error.args
    state = {name: value for name, value in vars(error).items() if _can_travel(value)}
    trace = "".join(traceback.format_exception(error))
    if not _can_travel((type(error), arguments)):
        return Failure(RuntimeError, (f"{type(error).__name__}: {error}",), {}, is_ours, trace)
    return Failure(type(error), arguments, state, is_ours, trace)


def result_of(future: Future[Any]) -> Any:
    """Return the result of a task, or raise the error of the task or of Ray.

    Raises:
        ValueError: Ray has lost the task's worker more often than it tries again, or the cluster.
        TaskDefect: the task failed by a defect; the text has the traceback on the worker.

    """
    from ray.exceptions import RayError, RayTaskError

    try:
        result = future.result()
    except RayTaskError as error:
        what = shorten(" ".join(f"{type(error.cause).__name__}: {error.cause}".split()), 300)
        raise ValueError(f"executor=ray: a worker cannot run tasks ({what}); install stridemill on all nodes") from None
    except RayError as error:
        what = shorten(" ".join(str(error).split()), 300)
        raise ValueError(f"executor=ray: {type(error).__name__}: {what} {KEPT}") from None
    if isinstance(result, Failure):
        raise restore(result)
    return result


def restore(failure: Failure) -> BaseException:
    """Return the error of a failure."""
    if not failure.is_ours:
        return TaskDefect(f"a task failed on a worker of Ray:\n{failure.trace}")
    error = failure.kind.__new__(failure.kind, *failure.arguments)
    error.args = failure.arguments[:2] if isinstance(error, OSError) else failure.arguments
    vars(error).update(failure.state)
    error.add_note(f"On a worker of Ray:\n{failure.trace}")
    return error


def _can_travel(value: object) -> bool:
    try:
        pickle.loads(pickle.dumps(value))  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - whatever a class raises
        return False
    return True
