"""A loader that does not know its rank is refused: several processes would read the same data."""

import json
import pickle
import re
import textwrap

import pytest
import torch.distributed
from support import run_program, run_python, run_ranks
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
    done = run_program(file, shards, tmp_path)
    refused = done.stdout.count("rank: this loader reads as rank 0 of 1")  # both may write into one line
    assert refused == 2, done.stdout + done.stderr


PROCESSES = """
    import json, sys, torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from pipeline import ShardLoader

    dist.init_process_group("gloo")
    print(json.dumps(read(dist.get_rank(), sys.argv[1])))
    dist.destroy_process_group()
"""


def run_processes(read, shards, *, world_size):
    """What each of some real processes of a gloo group returns from `read(rank, shards)`."""
    ended = run_ranks("-c", textwrap.dedent(read) + textwrap.dedent(PROCESSES), shards, ranks=world_size)
    for done in ended:
        assert done.returncode == 0, done.stderr
    return [json.loads(done.stdout) for done in ended]


def joined(parts):
    """The windows of each step, of several ranks together."""
    return [sorted(window for part in step for window in part) for step in zip(*parts, strict=True)]


@pytest.mark.slow
def test_ranks_of_a_tensor_parallel_pair_get_the_same_batches(shards):
    """4 processes: data parallel 2 x tensor parallel 2, by a mesh and by the groups themselves."""
    read = """
        def read(rank, shards):
            mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
            errors, found = [], []
            for wrong in ({"mesh": mesh}, {"mesh": mesh["dp"], "rank": 0, "world_size": 2}, {"mesh": "dp"}):
                try:
                    ShardLoader(shards, batch_size=2, **wrong)
                except ValueError as error:
                    errors.append(str(error))
            outside = dist.new_group([0, 1])
            try:
                pair = ShardLoader(shards, batch_size=2, mesh=outside)
                errors.append(f"{pair.rank} of {pair.world_size}")
            except ValueError as error:
                errors.append(str(error))
            for given in (mesh["dp"], mesh["dp"].get_group(), dist.group.WORLD, None):
                loader = ShardLoader(shards, batch_size=2, shuffle="lanes", lanes=8, mesh=given)
                windows = [batch.window_ids.tolist() for batch in loader]
                found.append((loader.rank, loader.world_size, windows, loader.state_dict()))
            return {"errors": errors, "found": found}
    """
    ranks = run_processes(read, shards, world_size=4)
    whole = [batch.window_ids.tolist() for batch in ShardLoader(shards, batch_size=4, shuffle="lanes", lanes=8)]
    for way in (0, 1):  # the mesh, its process group
        places = [one["found"][way][:2] for one in ranks]
        assert places == [[0, 2], [0, 2], [1, 2], [1, 2]]
        windows = [one["found"][way][2] for one in ranks]
        assert windows[0] == windows[1]
        assert windows[2] == windows[3]
        assert joined([windows[0], windows[2]]) == [sorted(step) for step in whole]
        assert all(one["found"][way][3] == ranks[0]["found"][0][3] for one in ranks), "one state for all"
    for way in (2, 3):  # all processes, and nothing said
        assert [one["found"][way][:2] for one in ranks] == [[rank, 4] for rank in range(4)]
    for rank, one in enumerate(ranks):
        two, both, text, outside = one["errors"]
        assert re.fullmatch(r"mesh: has 2 dimensions \(dp, tp\), .* such as mesh\['dp'\], .* get the same batches", two)
        assert re.fullmatch(r"mesh, rank: give one of them, .* got a mesh and rank=0, world_size=2", both)
        assert re.fullmatch(r"mesh: must be a process group or a one-dimensional DeviceMesh, .*; got 'dp'", text)
        assert (
            outside == f"{rank} of 2" if rank < 2 else f"mesh: this process, rank {rank} of the job, is not" in outside
        )


@pytest.mark.slow
def test_three_real_ranks_share_the_lanes_and_go_on_from_two(shards):
    read = """
        def read(rank, shards):
            options = {"batch_size": 8, "shuffle": "lanes", "lanes": 8, "drop_last": False}
            loader = ShardLoader(shards, **options)
            steps = [(batch.window_ids.tolist(), loader.state_dict()) for batch in loader]
            resumed = ShardLoader(shards, **options)
            resumed.load_state_dict({**loader.state_dict(), "epoch": 0, "consumed": 44})
            return [[windows for windows, _ in steps], [state for _, state in steps],
                    [batch.window_ids.tolist() for batch in resumed]]
    """
    ranks = run_processes(read, shards, world_size=3)
    alone = ShardLoader(shards, batch_size=1, shuffle="lanes", lanes=8)
    whole = [batch.window_ids.item() for batch in alone]
    for which, start in ((0, 0), (2, 44)):
        expected = whole[start:] + [-1] * (-(100 - start) % 24)  # the last step is filled
        steps = [sorted(expected[at : at + 24]) for at in range(0, len(expected), 24)]
        assert joined([one[which] for one in ranks]) == steps
    assert ranks[0][1] == ranks[1][1] == ranks[2][1], "the state is the same on every rank"


def test_a_mesh_needs_a_process_group(shards):
    with pytest.raises(
        ValueError, match=r"^mesh: must be .*, of a job that has called .*init_process_group\(\); got 3$"
    ):
        ShardLoader(shards, mesh=3)


def test_a_loader_of_a_mesh_is_not_read_by_a_process_elsewhere_in_it(shards, monkeypatch, group):
    group()
    loader = ShardLoader(shards, mesh=torch.distributed.group.WORLD)
    carried = pickle.dumps(loader)
    assert len(list(loader)) == len(list(pickle.loads(carried))) == len(loader)
    monkeypatch.setenv("WORLD_SIZE", "4")  # the others share its batches
    assert len(list(pickle.loads(carried))) == len(loader)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    for use in (lambda: next(iter(loader)), lambda: pickle.loads(carried)):
        with pytest.raises(ValueError, match=r"^rank: this loader reads as rank 0 of 1 of its mesh, .* rank 1 of 4; "):
            use()


def test_what_has_no_mesh_does_not_import_meshes(shards):
    code = "import sys, torch.utils.data; print(*sys.modules); from pipeline import ShardLoader; "
    code += f"next(iter(ShardLoader({str(shards)!r}))); print(*sys.modules)"
    plain, modules = (line.split() for line in run_python("-c", code).stdout.splitlines())
    assert {name for name in modules if name.startswith("torch.distributed")} <= set(plain)
