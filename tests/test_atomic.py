"""Files that are either complete or absent, and locks that end with their process."""

import errno
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import run_python

from pipeline.base.atomic import final_name, part_of, replace_file, write_json, write_text
from pipeline.base.locks import hold


def test_a_file_is_replaced_completely_and_no_other_file_is_left(tmp_path):
    write_text(tmp_path / "a", "long text \u00e9 \udcff")
    write_text(tmp_path / "a", "short")
    assert (tmp_path / "a").read_bytes() == b"short"
    write_json(tmp_path / "b", {"name": "odd \udcff"})
    assert (tmp_path / "b").read_bytes() == b'{\n "name": "odd \\udcff"\n}\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_an_error_leaves_what_was_there(tmp_path):
    write_text(tmp_path / "a", "old")
    with pytest.raises(KeyError), replace_file(tmp_path / "a") as file:
        file.write(b"half of the ne")
        raise KeyError
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_what_a_killed_writer_has_left_is_written_over(tmp_path):
    write_text(tmp_path / "a", "old")
    child = os.fork()
    if not child:
        with replace_file(tmp_path / "a") as file:
            file.write(b"much longer than what comes next")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    write_text(tmp_path / "a", "new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new"}


def test_many_writers_take_turns(tmp_path):
    texts = [str(number) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_text(tmp_path / "a", text), texts * 10))
    assert (tmp_path / "a").read_text() in texts
    assert len(list(tmp_path.iterdir())) == 1


def test_a_lock_on_a_name_that_was_removed_is_taken_again(tmp_path):
    first = hold(tmp_path / "lock")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(hold, tmp_path / "lock")
        (tmp_path / "lock").unlink()
        os.close(first)
        second = waiting.result()
    assert os.fstat(second).st_ino == (tmp_path / "lock").stat().st_ino
    os.close(second)


def test_only_temporary_names_are_known_as_such(tmp_path):
    taken = [part_of(tmp_path / "a.json"), part_of(tmp_path / "a.json", "0123abcd"), tmp_path / ".a.json-77-0123abcd"]
    assert [final_name(path.name) for path in taken] == ["a.json"] * 3
    assert [final_name(name) for name in ("a.json", ".a.json", "a.json.part", ".part", ".a-b-0123abcd")] == [None] * 5


@pytest.fixture
def notes(tmp_path):
    """A file of the user's, in a folder of its own."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "notes.txt").write_text("mine")
    return tmp_path / "home" / "notes.txt"


IN_THE_WAY = {
    "a symbolic link": lambda path, notes: path.symlink_to(notes),
    "a link to nothing": lambda path, notes: path.symlink_to(notes.with_name("none")),
    "a hard link": lambda path, notes: path.hardlink_to(notes),
    "a folder": lambda path, _: path.mkdir(),
    "a link to a folder": lambda path, notes: path.symlink_to(notes.parent),
    "a pipe": lambda path, _: os.mkfifo(path),
    "a file": lambda path, _: path.write_text("left by a killed run"),
}


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_a_write_follows_no_link_at_its_temporary_name(tmp_path, notes, kind):
    (tmp_path / "out").mkdir()
    IN_THE_WAY[kind](part_of(tmp_path / "out" / "a"), notes)
    write_text(tmp_path / "out" / "a", "new")
    assert (tmp_path / "out" / "a").read_text() == "new"
    assert {path.name: path.read_text() for path in notes.parent.iterdir()} == {"notes.txt": "mine"}
    left = [path.name for path in (tmp_path / "out").iterdir()]
    assert left == ["a"] or kind == "a folder"


def test_a_file_with_the_same_content_is_not_written_again(tmp_path):
    write_text(tmp_path / "a", "text")
    part_of(tmp_path / "a").write_text("left by a killed run")
    before = (tmp_path / "a").stat()
    write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").stat() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_files_are_replaced_on_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    part_of(tmp_path / "a").write_text("of a run that may be alive")
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    assert part_of(tmp_path / "a").read_text() == "of a run that may be alive"


FORKED = """
import os, signal, sys, threading
from tqdm import tqdm
from pipeline import write_shards
from pipeline.base.terminal_bar import TerminalBar

signal.alarm(240)
write_shards(sys.argv[1] + "/a", corpus=["some text " * 50], tokenizer="bytes", cache=sys.argv[1])
locks = tqdm.get_lock(), TerminalBar.get_lock()
if not (child := os.fork()):
    for lock in locks:
        lock.acquire()
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
write_shards(sys.argv[1] + "/b", corpus=["some text " * 50], tokenizer="bytes", cache=sys.argv[1])
held = threading.Event()
hold = lambda: (TerminalBar.get_lock().acquire(), held.set(), threading.Event().wait(240))
threading.Thread(target=hold, daemon=True).start()
held.wait()
if not (child := os.fork()):  # while a thread of the parent draws a bar
    signal.alarm(240)
    write_shards(sys.argv[1] + "/c", corpus=["some text " * 50], tokenizer="bytes", cache=sys.argv[1])
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
os._exit(0)
"""


def test_a_lock_of_a_killed_process_stops_no_other(tmp_path):
    done = run_python("-c", FORKED, tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
