"""Worker processes of every start method give the batches that threads give, each window once."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings

import pytest
from support import environment
from torch.utils.data import DataLoader, get_worker_info

from pipeline import ShardLoader, WindowDataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(write_text):
    """A data set of 138 windows in row groups of 10, the last window padded."""
    text = "".join(f"{number:04} " for number in range(400))[: 12 * 138 - 3]
    return write_text(text, tokenizer="bytes", max_length=12, tail="pad", windows_per_group=10, windows_per_shard=30)


@pytest.fixture(autouse=True)
def _forking_is_meant():
    with warnings.catch_warnings():  # Python 3.12 and later warn of a fork beside threads, which pyarrow may have
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="This DataLoader will create .* worker processes")
        yield


def contents(batches):
    return [(b.window_ids.tolist(), b.input_ids.tolist(), b.target_ids.tolist()) for b in batches]


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_workers_give_the_batches_of_threads_however_they_are_started(shards, context):
    options = {"batch_size": 5, "shuffle": "lanes", "lanes": 4, "drop_last": False}
    whole = contents(ShardLoader(shards, **options))
    workers = 1 if context == "spawn" else 2  # each imports torch anew
    assert contents(ShardLoader(shards, **options, workers=workers, worker_context=context)) == whole
    plain = ShardLoader(shards, **options)
    plain = DataLoader(plain, batch_size=None, num_workers=workers, multiprocessing_context=context)
    assert contents(plain) == whole
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("shuffle", ["none", "full", "lanes"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_ranks_with_workers_resume_where_ranks_without_stopped(shards, shuffle, workers):
    order = {"shuffle": shuffle, "lanes": 4, "drop_last": False}
    loader = ShardLoader(shards, batch_size=7, **order)
    batches = iter(loader)
    seen = contents(next(batches) for _ in range(5))
    batches.close()
    state = loader.state_dict()
    for rank in (0, 1):
        one, other = (
            ShardLoader(shards, batch_size=4, rank=rank, world_size=2, **order, workers=count, worker_context="fork")
            for count in (0, workers)
        )
        one.load_state_dict(state)
        other.load_state_dict(state)
        assert contents(one) == contents(other)
        assert one.state_dict() == other.state_dict()
    assert len(seen) == 5


def test_the_state_counts_what_was_handed_over_and_a_break_ends_the_workers(shards):
    loader = ShardLoader(shards, batch_size=4, workers=2, worker_context="fork")
    for step, _ in enumerate(loader, start=1):
        assert loader.consumed == 4 * step
        if step == 3:
            break
    assert multiprocessing.active_children() == []
    assert len(contents(loader)) == 138 // 4 - 3


def test_an_error_in_a_worker_reaches_the_caller(shards, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    next(copy.glob("data/*-00002-of-*")).unlink()
    with pytest.raises(OSError, match="train-00002-of-00005"):
        contents(ShardLoader(copy, workers=2, worker_context="fork"))


def test_a_dataset_in_workers_gives_each_window_once(shards):
    dataset = WindowDataset(shards)
    rows = [
        tuple(row)
        for batch in DataLoader(dataset, batch_size=9, num_workers=2, multiprocessing_context="fork")
        for row in batch["input_ids"].tolist()
    ]
    assert rows == [tuple(dataset[k]["input_ids"].tolist()) for k in range(len(dataset))]


def test_a_loader_in_the_worker_of_a_dataloader_has_no_state_to_save(shards):
    def state(_worker):
        get_worker_info().dataset.state_dict()

    plain = DataLoader(ShardLoader(shards), batch_size=None, num_workers=1, worker_init_fn=state)
    with pytest.raises(ValueError, match=r"num_workers=0, .* ShardLoader\(..., workers=2\)"):
        next(iter(plain))


def test_settings_of_workers_are_checked(shards):
    with pytest.raises(ValueError, match="workers: must be at least 0; got -1"):
        ShardLoader(shards, workers=-1)
    with pytest.raises(ValueError, match="worker_context: must be one of fork, spawn, forkserver; got 'thread'"):
        ShardLoader(shards, worker_context="thread")


def test_workers_that_live_on_give_each_window_once_after_a_break(shards):
    plain = DataLoader(
        ShardLoader(shards, batch_size=4, shuffle="full"),
        batch_size=None,
        num_workers=2,
        multiprocessing_context="fork",
        persistent_workers=True,
    )
    for _ in range(3):
        for step, _ in enumerate(plain):
            if step == 4:
                break
        windows = [window for batch in plain for window in batch.window_ids.tolist()]
        assert len(windows) == len(set(windows)) == 138 // 4 * 4


def test_a_loader_that_would_start_processes_starts_none_in_a_worker(shards):
    plain = DataLoader(ShardLoader(shards, workers=1), batch_size=None, num_workers=1, multiprocessing_context="fork")
    assert contents(plain) == contents(ShardLoader(shards))


@pytest.mark.parametrize(
    ("context", "kind"),
    [
        ("fork", signal.SIGKILL),
        ("fork", signal.SIGTERM),
        ("spawn", signal.SIGKILL),
        ("forkserver", signal.SIGTERM),
    ],
)
def test_workers_end_with_their_parent_whatever_ends_it(shards, tmp_path, context, kind):
    script = """
        import sys, time
        from torch.utils.data import DataLoader
        from pipeline import ShardLoader

        if __name__ == "__main__":
            own = iter(ShardLoader(sys.argv[1], workers=1, worker_context=sys.argv[2], batch_size=1))
            plain = ShardLoader(sys.argv[1], batch_size=1)
            wrapped = DataLoader(plain, batch_size=None, num_workers=1, multiprocessing_context=sys.argv[2])
            wrapped = iter(wrapped)
            next(own), next(wrapped)
            print("ready", flush=True)
            time.sleep(600)
    """
    file = tmp_path / f"killed-{context}-{kind}.py"
    file.write_text(textwrap.dedent(script))
    # All processes inherit this pipe: its end is closed once the last of them has ended.
    reads, writes = os.pipe()
    with subprocess.Popen(
        [sys.executable, str(file), str(shards), context],
        stdout=subprocess.PIPE,
        stderr=writes,
        env=environment(PYTHONWARNINGS="ignore"),
        text=True,
    ) as parent:
        os.close(writes)
        assert parent.stdout.readline() == "ready\n"
        parent.send_signal(kind)
        parent.wait(300)
    deadline = time.monotonic() + 200
    with os.fdopen(reads, "rb") as pipe:
        os.set_blocking(pipe.fileno(), False)
        while (left := pipe.read()) != b"" and time.monotonic() < deadline:
            time.sleep(0.1)
    assert left == b"", "a process has outlived its parent"
