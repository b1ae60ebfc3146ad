"""Write a data set and stop at one of the calls that change the disk, then run the same command again.

    python stops.py <working folder> <scenario> <kind>:<every>:<first>,...

A call is an open for writing, a write, rename, unlink, mkdir, rmdir, truncate or fsync below the working folder. Each
`every`-th call from `first` on is tried with this kind of stop: `kill`; `once`, a single EIO; or an error by its name
that every later call of that sort meets, too, so that the clean-up fails as well. After the second run the folder and
the cache must have the bytes of an undisturbed run, and no other file. Each stop where they do not is printed.
"""

import builtins
import errno
import io
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from importlib import import_module
from pathlib import Path

from support import sections

from pipeline import write_shards

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
NEEDS_SPACE = {"open", "write", "os.mkdir", "fsync"}
BAD = '{"text": 5}\n'
SCENARIOS = {
    "new": {},
    "bad documents": {"corpus_path": "bad.jsonl", "validation": 0.3, "max_bad_fraction": 0.5},
    "overwrite": {"overwrite": True, "max_length": 12},
    "mending": {},
    "small files": {"corpus": "text", "corpus_path": "texts"},
}


class Stop:
    """Count the calls that change the disk below `root`, and stop at the call number `at`."""

    def __init__(self, root, at, kind):
        self.root, self.at, self.kind = str(root), at, kind
        self.count = 0
        self.lock = threading.Lock()

    def install(self):
        real_open, real_fsync, real_pwrite = io.open, os.fsync, os.pwrite
        stop = self

        class Raw(io.FileIO):
            def write(self, content):
                stop.meet("write")
                return super().write(content)

        def watched_open(file, mode="r", *more, **options):
            if "b" in mode and set(mode) & set("wxa"):
                return io.BufferedWriter(Raw(file, mode))
            return real_open(file, mode, *more, **options)

        def fsync(descriptor):
            self.meet("fsync")
            real_fsync(descriptor)

        def pwrite(*arguments):
            self.meet("write")
            return real_pwrite(*arguments)

        io.open = builtins.open = watched_open
        os.fsync, os.pwrite = fsync, pwrite
        sys.addaudithook(self.hear)

    def hear(self, event, arguments):
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, os.PathLike)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.meet("open", str(path))
        elif event in CHANGES:
            path = arguments[0]
            self.meet(event, str(path) if isinstance(path, (str, os.PathLike)) else None)

    def meet(self, call, path=None):
        if path is not None and path.startswith("/") and not path.startswith(self.root):
            return
        with self.lock:
            self.count += 1
            if self.at is None or self.count < self.at:
                return
            if self.kind == "once" and self.count > self.at:
                return
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind != "ENOSPC" or call in NEEDS_SPACE:
            number = errno.EIO if self.kind == "once" else getattr(errno, self.kind)
            raise OSError(number, os.strerror(number), path)


def write(root, options, stop):
    """Write in a child process. Returns how it ended and how many calls it made."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        os.close(receive)
        ended = "done"
        try:
            stop.install()
            write_shards(root / "shards", **sections(**options, cache_path=root / "cache"))
        except (ValueError, OSError) as error:
            ended = f"{type(error).__name__}: {error}"
        except BaseException:  # noqa: BLE001 - whatever it is, the parent must see it
            ended = traceback.format_exc()
        stop.at = None
        os.write(send, json.dumps([ended, stop.count]).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as file:
        said = file.read()
    os.waitpid(child, 0)
    return json.loads(said) if said else ["killed", 0]


def write_again(root, options):
    """Write in this process, which nothing stops; a process of its own would take twice as long."""
    try:
        write_shards(root / "shards", **sections(**options, cache_path=root / "cache"))
    except Exception:  # noqa: BLE001 - whatever it is, it is a problem of this stop
        return traceback.format_exc()
    return "done"


def contents(root):
    return {
        file.relative_to(root).as_posix(): file.read_bytes() if file.is_file() else None
        for place in ("shards", "cache")
        for file in (root / place).rglob("*")
    }


def prepare(start, scenario):
    """Lay down what is there before the run: the corpus, and an older data set where the scenario has one."""
    start.mkdir(parents=True)
    lines = "".join(json.dumps({"text": f"Line {n} has {n * n} in it. " * 3}) + "\n" for n in range(24))
    (start / "good.jsonl").write_text(lines)
    (start / "bad.jsonl").write_text(BAD + lines + BAD)
    (start / "texts").mkdir()
    for number in range(3):
        (start / "texts" / f"{number}.txt").write_text(f"File {number}. " * 50)
    options = {
        "corpus": "jsonl",
        "corpus_path": str(start / "good.jsonl"),
        "tokenizer": "bytes",
        "max_length": 16,
        "windows_per_group": 32,
        "windows_per_shard": 64,
    }
    more = dict(SCENARIOS[scenario])
    if "corpus_path" in more:
        more["corpus_path"] = str(start / more["corpus_path"])
    if scenario == "overwrite":
        write(
            start, {**options, "corpus_path": str(start / "bad.jsonl"), "max_bad_fraction": 0.5}, Stop(start, None, "")
        )
    if scenario == "mending":
        write(start, options, Stop(start, None, ""))
        next((start / "shards" / "data").iterdir()).unlink()
        (array,) = (start / "cache" / "chunks").glob("*/train.npy")
        content = bytearray(array.read_bytes())
        content[-3] ^= 1
        array.write_bytes(content)
    return {**options, **more}


def preload():
    """Import what pyarrow imports late: once, not in every child."""
    for name in ("numpy.random", "numpy.ma", "pandas"):
        import_module(name)


def main():
    preload()
    root, scenario, kinds = Path(sys.argv[1]), sys.argv[2], [kind.split(":") for kind in sys.argv[3].split(",")]
    start = root / "start"
    options = prepare(start, scenario)
    calm = root / "calm"
    shutil.copytree(start, calm)
    ended, calls = write(calm, options, Stop(calm, None, ""))
    assert ended == "done", ended
    whole = contents(calm)
    assert not any(".part" in name or ".writing" in name or ".lock" in name for name in whole), whole
    stops = failures = 0
    tried = [(number, kind) for kind, every, first in kinds for number in range(int(first), calls + 1, int(every))]
    for number, kind in tried:
        place = root / "stopped"
        shutil.copytree(start, place, symlinks=True)
        ended, _ = write(place, options, Stop(place, number, kind))
        again = write_again(place, options)
        found = contents(place)
        stops += 1
        problems = []
        if ended.startswith("Traceback") or ended.count("\n"):
            problems.append(f"ended with {ended}")
        if again != "done":
            problems.append(f"the next run ended with {again}")
        elif found != whole:
            odd = sorted({name for name in found | whole if found.get(name, 0) != whole.get(name, 0)})
            problems.append(f"other files: {odd}")
        if problems:
            failures += 1
            print(f"{kind} at call {number} of {calls}: {'; '.join(problems)}", flush=True)
        shutil.rmtree(place)
    print(f"{stops} stops at {calls} calls, {failures} failures")


if __name__ == "__main__":
    main()
