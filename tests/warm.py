"""Programs of the repository in processes that have imported torch and Hydra already.

Starting Python and importing both takes two seconds of a command that then works for a tenth of one, and the tests
start hundreds. So one process imports them once and is forked for each command. What a command is given and what it
leaves is that of any process: arguments, folder, environment, output, exit code. `tests/test_main.py`, the tutorial and
the installed wheel start real commands.
"""

import atexit
import multiprocessing
import multiprocessing.process
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "hydra", "pyarrow.parquet", "pipeline", "pipeline.cli.stages"])


def run_warm(*arguments, cwd, environment, timeout):
    """Run `-m module ...` or `program.py ...`, and return what it did, as `subprocess.run` does."""
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


def _run(arguments, cwd, environment, files):
    """Be the program: this is a fork that nothing else runs in."""
    multiprocessing.process._parent_process = None  # noqa: SLF001 - it is nobody's worker
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
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
    with suppress(BrokenPipeError):
        atexit._run_exitfuncs()  # noqa: SLF001 - a fork of multiprocessing ends without them
    sys.stdout.flush()
    os._exit(code or 0)


def _run_program(first, *rest):
    if first == "-m":
        name, *given = rest
        sys.argv[:] = [name, *given]
        sys.path[0] = str(Path.cwd())
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = [first, *rest]
        sys.path[0] = str(Path(first).absolute().parent)
        runpy.run_path(first, run_name="__main__")
