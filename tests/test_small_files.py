"""Small files are opened once, grouped by bytes, and found again however they are grouped."""

import gc
import itertools
import os
import pickle
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support import divide_small_files, sections

from pipeline import write_shards
from pipeline.base.hashing import hash_json, hash_pairs
from pipeline.corpus import hashed, small_files
from pipeline.corpus.corpora import find_partitions
from pipeline.corpus.documents import hash_each, hash_parts
from pipeline.corpus.hashed import HeldFiles, read_file
from pipeline.corpus.reader import read_partition
from pipeline.corpus.small_files import find_ends
from pipeline.settings import CorpusConfig
from pipeline.shards import job

OPENED: list[str] = []
sys.addaudithook(lambda event, details: OPENED.append(os.fspath(details[0])) if _is_path(event, details) else None)


def _is_path(event, details):
    return event == "open" and isinstance(details[0], str | os.PathLike)


@pytest.fixture
def files(tmp_path):
    """Forty small files in two folders; two have the same content, and one is empty."""
    folder = tmp_path / "in"
    for number in range(40):
        (folder / str(number % 2)).mkdir(parents=True, exist_ok=True)
        text = "" if number == 9 else f"document {max(2, number)} " + "word " * number
        (folder / str(number % 2) / f"{number:02}.txt").write_text(text)
    return folder


def write(folder, cache, name="ds", **more):
    options = sections(
        cache_path=cache, corpus="text", corpus_path=folder, tokenizer="bytes", max_length=8, workers=2, **more
    )
    return write_shards(cache.parent / name, **options)


def count_opened(folder):
    return sorted(path for path in OPENED if path.startswith(str(folder)) and path.endswith((".txt", ".jsonl")))


def find(folder, *, hold=0, corpus="text", **more):
    section = CorpusConfig(name=corpus, path=str(folder), **more)
    return find_partitions(section, cache=folder, cut_safe=True, workers=2, hold=hold).partitions


def read_all(partitions):
    batches = (
        batch
        for one in partitions
        for batch in read_partition(one, max_document_bytes=None, on_bad="raise", cut_safe=True)
    )
    return [text for batch in batches for text in batch.texts.to_pylist()]


def test_a_small_file_is_opened_once_in_a_first_run_and_once_in_a_second(files, tmp_path):
    names = sorted(map(str, files.rglob("*.txt")))
    for run in ("first", "second"):
        OPENED.clear()
        report = write(files, tmp_path / "cache", run)
        assert count_opened(files) == names
        assert (report.chunks, report.chunks_made) == (1, int(run == "first"))


@pytest.mark.parametrize("corpus", ["text", "jsonl", "delimited"])
@pytest.mark.parametrize("hold", [0, 700, 1 << 20])
def test_what_is_held_gives_the_same_documents_as_what_is_read_again(files, corpus, hold, monkeypatch):
    divide_small_files(monkeypatch, 4)
    monkeypatch.setattr(small_files, "READ_FILES", 3)
    more = {"delimiter": "word"} if corpus == "delimited" else {}
    if corpus == "jsonl":
        for path in sorted(files.rglob("*.txt")):
            path.rename(path.with_suffix(".jsonl"))
            path.with_suffix(".jsonl").write_text(f'{{"text": "{path.name}"}}\n{{"text": "more"}}\n')
    name = "jsonl" if corpus == "jsonl" else "text"
    expected = read_all(find(files, corpus=name, **more))
    partitions = find(files, corpus=name, hold=hold, **more)
    assert partitions == find(files, corpus=name, **more)
    OPENED.clear()
    assert read_all(partitions) == expected
    again = len(count_opened(files))
    assert again == {0: 40, 1 << 20: 0}.get(hold, again)
    assert hold != 700 or 0 < again < 40


def test_a_file_that_changes_after_its_hashing_is_an_error_unless_it_is_held(files):
    held, other = find(files, hold=1 << 20), find(files)
    expected = read_all(find(files))
    for path in files.rglob("*.txt"):
        path.write_text("something else")
    assert read_all(held) == expected
    with pytest.raises(ValueError, match=r"0/00\.txt: was changed while this run was reading it"):
        read_all(other)


def test_what_is_held_is_given_once_and_does_not_travel(files):
    (partition,) = find(files, hold=1 << 20)
    copied = pickle.loads(pickle.dumps(partition))
    assert copied == partition
    assert copied.held.take(0) is None
    part = partition.select(3, 5)
    assert partition.held.take(3) is None
    assert b"".join(read_file(part, 0)) == files.joinpath("0", "06.txt").read_bytes()
    assert part.held.take(0) is None
    partition.held.forget()
    assert partition.held.take(7) is None
    assert HeldFiles([b"a"]).take(1) is None


def test_tokens_of_small_files_are_found_however_they_were_grouped(files, tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        divide_small_files(patch, 2)
        first = write(files, tmp_path / "cache", "first")
        assert first.chunks_made > 8
    second = write(files, tmp_path / "cache", "second", stride=4)
    assert (second.chunks_made, second.manifest.store) == (0, first.manifest.store)
    (files / "0" / "021.txt").write_text("one more")
    assert write(files, tmp_path / "cache", "third").chunks_made == 1


def test_the_garbage_collector_pauses_while_files_are_found_and_is_left_as_it_was(files, tmp_path, monkeypatch):
    paused = []

    def find_and_look(*arguments, **more):
        paused.append(not gc.isenabled())
        return find_partitions(*arguments, **more)

    monkeypatch.setattr(job, "find_partitions", find_and_look)
    write(files, tmp_path / "cache")
    assert paused == [True]
    assert gc.isenabled()
    gc.disable()
    try:
        write(files, tmp_path / "cache")
        assert not gc.isenabled()
    finally:
        gc.enable()


def group(files):
    """Return the groups of files that are known by a number and a size."""
    ends = [0, *find_ends([hash_parts([number]) for number, _ in files], [size for _, size in files])]
    return [[number for number, _ in files[start:stop]] for start, stop in itertools.pairwise(ends)]


@hypothesis_settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=300), st.data())
def test_a_file_that_is_added_moves_few_borders_of_groups(sizes, data):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"FILE_BYTES": 10, "GROUP_BYTES": 8000, "LEAST_BYTES": 2000, "MOST_BYTES": 30_000}.items():
            patch.setattr(small_files, name, value)
        files = list(enumerate(sizes))
        numbers = group(files)
        assert list(itertools.chain(*numbers)) == list(range(len(sizes)))
        costs = [sum(sizes[number] + 10 for number in one) for one in numbers]
        assert all(2000 <= cost < 30_000 + 3010 for cost in costs[:-1])
        at = data.draw(st.integers(0, len(files)))
        others = group([*files[:at], (-1, 500), *files[at:]])
        before = [one for one in numbers[:-1] if one[-1] < at]
        assert others[: len(before)] == before, "groups before it stay"


@pytest.mark.parametrize("at", [0, 700, 1999])
def test_a_file_that_is_added_leaves_most_groups_after_it_as_they_were(monkeypatch, at):
    divide_small_files(monkeypatch, 8)
    monkeypatch.setattr(small_files, "LEAST_BYTES", 3 << 20)
    files = [(number, 2000) for number in range(2000)]
    before, after = (set(map(tuple, group(some))) for some in (files, [*files[:at], (-1, 500), *files[at:]]))
    assert len(before) > 150
    assert len(before - after) <= 20


class Clock:
    """A clock by which opening a file takes a thread some time, and a disk some more."""

    def __init__(self, waits):
        self.waits, self.time = waits, 0

    def open_file(self):
        self.time += 1

    def thread_time(self):
        return self.time

    def perf_counter(self):
        return self.time * (1 + self.waits)


@pytest.mark.parametrize(("waits", "alone"), [(0, 40), (2, 40), (5, 6), (100, 6)])
def test_many_threads_read_files_where_opening_waits(files, monkeypatch, waits, alone):
    clock, names, expected = Clock(waits), [], find(files)

    def read(path, expected):
        names.append(threading.current_thread().name)
        clock.open_file()
        return hashed.read_complete(path, expected)

    monkeypatch.setattr(small_files, "time", clock)
    monkeypatch.setattr(small_files, "read_complete", read)
    monkeypatch.setattr(small_files, "READ_FILES", 2)
    monkeypatch.setattr(small_files, "LEAST_AHEAD", 4)
    monkeypatch.setattr(small_files, "MOST_AHEAD", 8)
    assert find(files) == expected
    # of 20 batches, these by this thread: the first, one after 4 others, and one after 8
    assert names.count(threading.current_thread().name) == alone
    assert len(names) == 40


@given(st.lists(st.text(max_size=5), max_size=4), st.lists(st.text(max_size=5), max_size=4))
def test_hashes_of_many_are_the_hashes_of_each(parts, lasts):
    assert hash_each(parts, lasts) == tuple(hash_parts([*parts, last]) for last in lasts)
    keys = [hash_parts([last]) for last in lasts]
    assert hash_pairs("0f", keys) == tuple(hash_json(["0f", key]) for key in keys)
