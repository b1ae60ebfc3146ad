"""Files that are there whole or not at all."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.base.atomic import replace_file, write_json, write_text
from pipeline.base.locks import hold


def test_a_file_is_replaced_whole_and_nothing_lies_beside_it(tmp_path):
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
