"""The loader's threads: bounded memory, errors that reach the caller at once, and nothing left behind."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import weakref
from itertools import chain

import pyarrow.parquet as pq
import pytest
from support import ROOT, run_python, sections

from pipeline import ShardLoader, write_shards
from pipeline.loader.row_group_cache import RowGroupCache, slot_bytes


@pytest.fixture(scope="module")
def shards(write_text):
    """A data set of 400 windows in 10 shards of 4 row groups."""
    text = "".join(f"{number:07} " for number in range(801))
    return write_text(text, tokenizer="bytes", max_length=16, windows_per_group=10, windows_per_shard=40)


def loading_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("stridemill")]


def corrupt(folder, tmp_path, shard):
    """A copy of the data set in which one page of the last row group of a shard has a flipped bit."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    file = copy / f"data/train-{shard:05}-of-00010.parquet"
    content = bytearray(file.read_bytes())
    content[pq.read_metadata(file).row_group(3).column(0).data_page_offset + 40] ^= 1
    file.write_bytes(content)
    return copy


def windows_of(loader):
    return [batch.window_ids.tolist() for batch in loader]


@pytest.mark.parametrize("shuffle", ["none", "full", "lanes"])
def test_memory_and_threads_change_nothing_but_the_time(shards, shuffle):
    def epoch(**options):
        loader = ShardLoader(shards, shuffle=shuffle, lanes=4, batch_size=7, drop_last=False, **options)
        return [(batch.window_ids.tolist(), batch.input_ids.tolist()) for batch in loader]

    whole = epoch()
    each = slot_bytes(ShardLoader(shards).reader)
    least = {"none": 1, "full": 40, "lanes": 40}[shuffle] * each
    for threads in (1, 3):
        assert epoch(threads=threads, memory_budget=least) == whole


def test_fewer_slots_than_a_prefetch_unit_needs_are_enough(shards):
    """A prefetch unit of 400 windows out of 40 row groups, of which 1 to 3 are cached at a time."""
    each = slot_bytes(ShardLoader(shards).reader)
    expected = ShardLoader(shards, shuffle="none", batch_size=400)
    (whole,) = expected
    for slots in (1, 2, 3):
        (batch,) = ShardLoader(shards, shuffle="none", batch_size=400, memory_budget=slots * each)
        assert batch.input_ids.equal(whole.input_ids)


def test_a_budget_that_the_order_exceeds_is_refused_with_what_it_needs(shards):
    with pytest.raises(ValueError, match=r"shuffle=full buffers 40 row groups of 322 bytes .* raise it to 12,880"):
        ShardLoader(shards, shuffle="full", memory_budget=10_000)
    with pytest.raises(ValueError, match=r"shuffle=lanes .* or fewer lanes"):
        ShardLoader(shards, shuffle="lanes", memory_budget=10_000)
    with pytest.raises(ValueError, match=r"loader.threads: must be at least 1; got 0"):
        ShardLoader(shards, threads=0)


def test_under_full_every_row_group_is_decoded_once_for_all_epochs(shards):
    loader = ShardLoader(shards, shuffle="full")
    first = windows_of(loader)
    for file in (shards / "data").iterdir():
        file.rename(file.with_suffix(".away"))
    try:
        second = windows_of(loader)
    finally:
        for file in (shards / "data").iterdir():
            file.rename(file.with_suffix(".parquet"))
    assert sorted(chain.from_iterable(first)) == sorted(chain.from_iterable(second))


def test_no_thread_is_left_after_an_epoch_a_break_or_an_error(shards, tmp_path):
    loader = ShardLoader(shards)
    list(loader)
    assert loading_threads() == []
    for _ in loader:
        assert loading_threads()
        break
    assert loading_threads() == []
    batches = iter(loader)
    next(batches)
    batches.close()
    assert loading_threads() == []
    with pytest.raises(RuntimeError, match="the training step failed"):
        for _ in loader:
            raise RuntimeError("the training step failed")
    with pytest.raises(OSError, match="row group"):
        list(ShardLoader(corrupt(shards, tmp_path, 0)))
    assert loading_threads() == []


@pytest.mark.parametrize("shuffle", ["none", "full", "lanes"])
def test_an_error_of_a_thread_names_the_file_and_its_cause(shards, tmp_path, shuffle):
    copy = corrupt(shards, tmp_path, 9)
    with pytest.raises(OSError, match=r"train-00009-of-00010.parquet: row group 3 cannot be read") as caught:
        list(ShardLoader(copy, shuffle=shuffle, lanes=4))
    assert isinstance(caught.value.__cause__, OSError)
    (copy / "data/train-00009-of-00010.parquet").unlink()
    with pytest.raises(OSError, match=r"train-00009-of-00010"):
        list(ShardLoader(copy, shuffle=shuffle, lanes=4))


def test_an_error_far_ahead_is_raised_with_the_first_batch_that_needs_the_row_group(shards, tmp_path):
    loader = ShardLoader(corrupt(shards, tmp_path, 9), shuffle="none", batch_size=4)
    seen = []
    with pytest.raises(OSError, match="row group 3 cannot be read"):
        for batch in loader:
            seen += batch.window_ids.tolist()
    assert seen == list(range(388)), "the damaged windows are the last ten of 400"
    assert loader.consumed == 388


def test_a_shard_that_is_not_what_the_manifest_says_is_refused(shards, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    first = copy / "data/train-00000-of-00010.parquet"
    first.unlink()
    table = pq.read_table(shards / "data/train-00001-of-00010.parquet")
    pq.write_table(table.slice(0, 39), first, row_group_size=10, store_schema=True)
    with pytest.raises(OSError, match=r"data/train-00000-of-00010\.parquet has [\d,]+ bytes, not [\d,]+\. To"):
        list(ShardLoader(copy))


@pytest.mark.parametrize("budget", [40, 100])
def test_later_epochs_decode_nothing_where_all_fits_half_of_the_budget(shards, monkeypatch, budget):
    monkeypatch.setattr("pipeline.loader.order.BLOCK_TOKENS", 1)
    each = slot_bytes(ShardLoader(shards).reader)
    loader = ShardLoader(shards, shuffle="lanes", lanes=4, memory_budget=budget * each)
    decoded = []
    read = loader.reader.read_group
    monkeypatch.setattr(
        loader.reader, "read_group", lambda group, *more: (decoded.append(group), read(group, *more))[1]
    )
    epochs = []
    for epoch in range(1, 4):
        epochs.append([window for batch in loader for window in batch.window_ids.tolist()])
        assert len(set(decoded)) == 40
        assert len(decoded) == 40 if budget == 100 else len(decoded) >= 40 * epoch
    assert len({tuple(one) for one in epochs}) == 3
    streamed = ShardLoader(shards, shuffle="lanes", lanes=4, memory_budget=40 * each)
    assert epochs[0] == [window for batch in streamed for window in batch.window_ids.tolist()]


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["none", "full", "lanes"])
def test_memory_does_not_grow_with_epochs(shards, shuffle, monkeypatch):
    monkeypatch.setattr("pipeline.loader.order.BLOCK_TOKENS", 1)
    loader = ShardLoader(shards, shuffle=shuffle, lanes=4)
    tracemalloc.start()
    try:
        held = []
        for _ in range(12):
            for batch in loader:
                batch.input_ids.sum()
            gc.collect()
            ours = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/pipeline/*")])
            held.append(sum(trace.size for trace in ours.traces))  # what others import meanwhile stays, too
    finally:
        tracemalloc.stop()
    assert held[-1] - held[1] < 40 * slot_bytes(loader.reader), "ten epochs leave less than the cache of one"


@pytest.mark.parametrize("shuffle", ["none", "full", "lanes"])
def test_cached_memory_is_free_at_once(shards, shuffle, monkeypatch):
    """Row groups may be hundreds of megabytes: they do not wait for the collector of circles."""
    made = []
    init = RowGroupCache.__init__

    def note(self, *args, **options):
        init(self, *args, **options)
        made.append(weakref.ref(self))

    monkeypatch.setattr(RowGroupCache, "__init__", note)
    gc.collect()
    gc.disable()
    try:
        loader = ShardLoader(shards, shuffle=shuffle, memory_budget=60 * slot_bytes(ShardLoader(shards).reader))
        for _ in range(2):
            for _ in loader:
                pass
        del loader
        assert made
        assert [one() for one in made] == [None] * len(made)
    finally:
        gc.enable()


SCRIPT = """
    import sys, time, torch.utils.data
    from pipeline import ShardLoader
    loader = ShardLoader(sys.argv[1], batch_size=2)
    batches = iter(loader)
    next(batches)
    {ending}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("pass", 0),
        ("sys.exit(3)", 3),
        ("raise RuntimeError('stop')", 1),
        ("del batches", 0),
        ("batches = iter(torch.utils.data.DataLoader(loader, batch_size=None)); next(batches)", 0),
    ],
)
def test_a_program_that_stops_in_the_middle_of_an_epoch_ends_at_once(shards, ending, code):
    done = run_python("-c", textwrap.dedent(SCRIPT).format(ending=ending), shards, timeout=300)
    assert done.returncode == code, done.stderr
    assert "stop" in done.stderr if code == 1 else done.stderr == ""


@pytest.mark.slow
def test_an_interrupt_ends_the_program(shards):
    body = "print('ready', flush=True)\nfor epoch in range(10**9):\n    for batch in loader: pass"
    script = textwrap.dedent(SCRIPT).format(ending=body)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(shards)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    assert "KeyboardInterrupt" in errors
    assert "Exception ignored" not in errors
    assert process.returncode != 0


def damaged(folder, tmp_path, damage):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    file = copy / "data/train-00009-of-00010.parquet"
    file.write_bytes(damage(file.read_bytes()))
    return copy


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-100],
        lambda content: b"",
        lambda content: content.replace(b"next_id", b"next_ie"),
        lambda content: content.replace(b"input_ids", b"input_idr"),
    ],
    ids=["cut short", "empty", "a column's name", "another one's"],
)
def test_a_shard_with_a_damaged_footer_is_named(shards, tmp_path, damage):
    copy = damaged(shards, tmp_path, damage)
    with pytest.raises((OSError, ValueError), match=r"train-00009-of-00010\.parquet(: row group \d)? (cannot|has)"):
        list(ShardLoader(copy))


def test_a_padded_tail_is_not_read_as_text_where_its_columns_name_is_damaged(tmp_path):
    (tmp_path / "text.txt").write_text("some words " * 5)
    report = write_shards(
        tmp_path / "shards",
        **sections(
            corpus="text",
            corpus_path=tmp_path / "text.txt",
            cache_path=tmp_path / "cache",
            tokenizer="bytes",
            max_length=64,
            tail="pad",
        ),
    )
    (file,) = (report.path / "data").iterdir()
    content = file.read_bytes()
    assert b"length" in content
    file.write_bytes(content.replace(b"length", b"lengti"))
    with pytest.raises(OSError, match="its footer does not have the sha256 of the manifest"):
        list(ShardLoader(report.path, batch_size=1))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_an_iteration_that_is_gone_on_with_in_a_forked_child_is_an_error_and_no_hang(shards):
    batches = iter(ShardLoader(shards, batch_size=1))
    next(batches)
    child = os.fork() if sys.version_info < (3, 12) else None
    if child is None:
        pytest.skip("Python 3.12 and later warn of a fork beside threads")
    if child == 0:
        try:
            for _ in batches:
                pass
        except RuntimeError as error:
            os._exit(7 if "started before a fork" in str(error) else 8)
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    batches.close()


def test_fewer_windows_than_a_batch_are_an_error_and_no_empty_epoch(shards):
    with pytest.raises(ValueError, match=r"the train split has 400 windows, fewer than a batch of 300 on each of 2"):
        ShardLoader(shards, batch_size=300, rank=0, world_size=2)


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["none", "full"])
def test_a_daemon_thread_that_iterates_waits_while_the_program_ends(shards, shuffle):
    """Otherwise Python would end it within torch, which aborts the program now and then."""
    script = """
        import atexit, sys, threading, time
        rounds = 0
        def end():  # after the hooks of all that is imported below
            before = rounds
            time.sleep(0.2)
            assert rounds == before, f"{rounds - before} more rounds"
        atexit.register(end)

        from pipeline import ShardLoader
        loader = ShardLoader(sys.argv[1], batch_size=2, shuffle=sys.argv[2])
        def iterate():
            global rounds
            while True:
                for batch in loader: rounds += 1
                rounds += 1
        threading.Thread(target=iterate, daemon=True).start()
        time.sleep(0.3)
        assert rounds
    """
    done = run_python("-c", textwrap.dedent(script), shards, shuffle, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_daemon_thread_that_asks_for_no_batch_delays_the_end_of_a_program_a_moment_only(shards):
    script = """
        import sys, threading, time
        from pipeline import ShardLoader
        loader = ShardLoader(sys.argv[1], batch_size=2)
        def iterate():
            for batch in loader: time.sleep(600)
        threading.Thread(target=iterate, daemon=True).start()
        time.sleep(0.3)
    """
    done = run_python("-c", textwrap.dedent(script), shards, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
