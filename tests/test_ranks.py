"""A loader that does not know its rank is refused: several processes would read the same data."""

import pickle
import textwrap

import pytest
import torch.distributed
from support import run_python
from torch.utils.data import DataLoader

from pipeline import ShardLoader, WindowDataset

WAYS = r"make the loader after torch.distributed.init_process_group\(\), or pass rank= and world_size="


@pytest.fixture(scope="module")
def shards(write_text):
    """A data set of 100 windows."""
    return write_text("".join(f"{number:03} " for number in range(401)), tokenizer="bytes", max_length=16)


@pytest.fixture
def group(tmp_path):
    """Make this process the only one of a process group, until the test ends."""

    def make():
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    yield make
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("is_mixture", [False, True])
@pytest.mark.parametrize("options", [{}, {"shuffle": "lanes"}, {"shuffle": "none", "drop_last": False}])
def test_a_loader_of_one_of_several_processes_needs_a_rank(shards, monkeypatch, is_mixture, options):
    path = [shards, shards] if is_mixture else shards
    before = ShardLoader(path, **options)
    carried = pickle.dumps(before)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=rf"^rank: WORLD_SIZE is 2, but .* no rank was given.*; {WAYS}$"):
        ShardLoader(path, **options)
    for use in (lambda: next(iter(before)), lambda: pickle.loads(carried), lambda: pickle.dumps(before)):
        with pytest.raises(ValueError, match=WAYS):
            use()
    given = ShardLoader(path, rank=0, world_size=1, **options)
    assert len(list(pickle.loads(pickle.dumps(given)))) == len(given)
    assert len(WindowDataset(shards)) == 100
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert len(list(ShardLoader(path, **options))) == len(given)


def test_a_loader_whose_process_gets_another_rank_is_refused_before_it_reads(shards, monkeypatch, group):
    early = ShardLoader(shards)
    group()
    assert len(list(early)) == len(early), "rank 0 of 1 is what it took itself for"
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=rf"reads as rank 0 of 1, but this process is rank 1 of 2 .*; {WAYS}"):
        next(iter(early))
    assert (early.epoch, early.consumed) == (1, 0)
    later = ShardLoader(shards)
    assert (later.rank, later.world_size) == (1, 2)
    assert len(list(later)) == len(later)


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_loader_with_the_rank_of_a_group_goes_to_workers_that_have_none(shards, monkeypatch, context):
    loader = ShardLoader(shards, rank=1, world_size=2, workers=1, worker_context=context)
    vars(loader)["_rank_is_given"] = False  # as if it were that of a group of this process
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert len(list(loader)) == len(loader)
    assert len(list(DataLoader(loader, batch_size=None, num_workers=1, multiprocessing_context=context))) == len(loader)


@pytest.mark.slow
def test_spawned_processes_refuse_a_loader_that_was_made_before_their_group(shards, tmp_path):
    script = """
        import sys, torch.distributed as dist, torch.multiprocessing as mp
        from pipeline import ShardLoader

        def train(rank, loader):
            dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/group", rank=rank, world_size=2)
            try:
                next(iter(loader))
            except ValueError as error:
                print("refused:", error)

        if __name__ == "__main__":
            mp.spawn(train, (ShardLoader(sys.argv[1]),), nprocs=2)
    """
    file = tmp_path / "spawned.py"
    file.write_text(textwrap.dedent(script))
    done = run_python(file, shards, tmp_path)
    refusals = [line for line in done.stdout.splitlines() if "refused: rank: this loader reads as rank 0 of 1" in line]
    assert len(refusals) == 2, done.stdout + done.stderr
