"""Programs of the repository in processes that have imported torch and Hydra already.

Starting Python and importing both takes two seconds of a command that then works for a tenth of one, and the tests
start hundreds. So one process imports them once and is forked for each command. What a command is given and what it
leaves is that of any process: arguments, folder, environment, output, exit code. `tests/test_main.py`, the tutorial and
the installed wheel start real commands.
"""

import atexit
import gc
import multiprocessing
import multiprocessing.process
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from contextlib import suppress
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OWN = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in (ROOT / "pipeline").rglob("[!_]*.py")]
LATE = ["hydra.main", "hydra_plugins.hydra_joblib_launcher.joblib_launcher", "pydoc_data.topics", "pyarrow.compute"]
LATE += ["torch._dynamo", "numpy.ma", "numpy.random", "pandas"]  # by optimizers, and by pyarrow
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", *LATE, *OWN])


def run_warm(*arguments, cwd, environment, timeout):
    """Run `-m module ...`, `-c code ...` or `program.py ...`, and return what it did, as `subprocess.run` does.

    `-W ignore` may come first.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "out", Path(folder) / "err"]
        process = CONTEXT.Process(target=_run, args=(arguments, cwd, environment, files))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired([*arguments], timeout)
        out, err = (file.read_text(encoding="utf-8") for file in files)
        return subprocess.CompletedProcess([*arguments], process.exitcode, out, err)


class Server:
    """A process that has imported these modules as well, and is forked for each program that it starts."""

    def __init__(self, *modules):
        self.pipe, there = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_serve, args=(there, modules))
        self.process.start()

    def start(self, *arguments, cwd, environment, files):
        """Start a program that writes its output and its errors into these two files; return the process's number."""
        self.pipe.send(([*map(str, arguments)], str(cwd), environment, files))
        return self.pipe.recv()

    def poll(self, number):
        """Return how a program ended, as `Popen.returncode` has it, or None."""
        self.pipe.send(number)
        return self.pipe.recv()

    def wait(self, number, timeout=300):
        """Wait for a program's end; a program that takes longer is killed."""
        until = time.monotonic() + timeout
        while (code := self.poll(number)) is None:
            if time.monotonic() > until:
                os.kill(number, signal.SIGKILL)
            time.sleep(0.02)
        return code

    def close(self):
        """End the process."""
        self.process.kill()
        self.process.join()


def _serve(pipe, modules):
    """Be a server: fork for each program, and return how those ended that are asked for."""
    warnings.simplefilter("ignore")
    for name in modules:
        import_module(name)
    ended = {}
    while True:
        given = pipe.recv()
        if not isinstance(given, int):
            number = os.fork()
            if not number:
                _run(*given)
            pipe.send(number)
            continue
        if given not in ended:
            number, status = os.waitpid(given, os.WNOHANG)
            if number:
                ended[given] = os.waitstatus_to_exitcode(status)
        pipe.send(ended.get(given))


def _run(arguments, cwd, environment, files):
    """Be the program: this is a fork that nothing else runs in."""
    gc.freeze()  # what is there stays: it need not be looked through
    multiprocessing.process._parent_process = None  # noqa: SLF001 - it is nobody's worker
    multiprocessing.set_start_method(None, force=True)  # the system's own, as of a program that was just started
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    if os.environ.get("PYTHONWARNINGS") == "ignore":  # Python itself reads these two at its start
        warnings.simplefilter("ignore")
    sys.path[1:1] = os.environ["PYTHONPATH"].split(os.pathsep)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    try:
        _run_program(*arguments)
    except SystemExit as error:
        code = error.code
        if not isinstance(code, int | None):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:  # noqa: BLE001 - as Python's own end of a program
        sys.excepthook(*sys.exc_info())
        code = 1
    else:
        code = 0
    with suppress(BrokenPipeError):  # a fork of multiprocessing ends without what Python does at its end
        threading._shutdown()  # noqa: SLF001
        atexit._run_exitfuncs()  # noqa: SLF001
    sys.stdout.flush()
    os._exit(code or 0)


def _run_program(first, *rest):
    if first == "-W":
        action, *given = rest
        warnings.simplefilter(action)
        _run_program(*given)
    elif first == "-m":
        name, *given = rest
        sys.argv[:] = [name, *given]
        sys.path[0] = str(Path.cwd())
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    elif first == "-c":
        code, *given = rest
        sys.argv[:] = [first, *given]
        sys.path[0] = ""
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})  # as Python does
    else:
        sys.argv[:] = [first, *rest]
        sys.path[0] = str(Path(first).absolute().parent)
        runpy.run_path(first, run_name="__main__")
