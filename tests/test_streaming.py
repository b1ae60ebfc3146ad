"""Loading from an object store gives what loading from the folder gives, whatever the network does."""

import time
from itertools import islice

import pyarrow.parquet as pq
import pytest
import torch
from fault_proxy import Fault, count_round_trips
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import sections
from torch.utils.data import DataLoader

from pipeline import ConfigError, ShardLoader, WindowDataset, locate, read_manifest, write_shards
from pipeline.base import retry
from pipeline.cli.config import ProveConfig
from pipeline.cli.epoch import load_batches
from pipeline.cli.prove import prove_loader
from pipeline.loader.damage import DamagedRowGroup
from pipeline.settings import EmbeddingConfig, LoaderConfig
from pipeline.shards.entries import MANIFEST_NAME
from pipeline.storage.open import open_storage

GROUP = 8  # windows


def write(root, word="fox", **options):
    """Write a data set of several shards of several row groups, with padded tails and overlapping windows."""
    texts = [f"{number:02}: " + f"the quick brown {word} " * (5 + number % 7) for number in range(24)]
    given = {"max_length": 16, "stride": 8, "windows_per_group": GROUP, "windows_per_shard": 4 * GROUP, "tail": "pad"}
    given = sections(**(given | options))
    return write_shards(root / word, corpus=texts, tokenizer="bytes", cache=root / "cache", **given).path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("streaming"))


@pytest.fixture
def uri(folder, bucket):
    """The same data set in a bucket."""
    return upload(folder, f"{bucket}/some/data-set")


@pytest.fixture
def no_pauses(monkeypatch):
    """Try again at once."""
    monkeypatch.setattr(retry, "pause", lambda _: None)


def upload(folder, uri):
    storage = open_storage(uri)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            storage.put(file.relative_to(folder).as_posix(), file.read_bytes(), if_absent=False)
    return uri


def assert_same(found, expected):
    found, expected = list(found), list(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name in ("window_ids", "input_ids", "target_ids"):
            assert torch.equal(one[name], other[name])


@pytest.mark.parametrize("shuffle", ["none", "full", "lanes"])
def test_a_bucket_gives_the_batches_of_the_folder(folder, uri, shuffle):
    @settings(max_examples=4, suppress_health_check=[HealthCheck.too_slow])
    @given(
        seed=st.integers(0, 9), world_size=st.integers(1, 3), batch_size=st.integers(1, 9), skipped=st.integers(0, 20)
    )
    def check(seed, world_size, batch_size, skipped):
        for rank in range(world_size):
            found, expected = (
                ShardLoader(
                    path,
                    shuffle=shuffle,
                    lanes=4,
                    seed=seed,
                    batch_size=batch_size,
                    drop_last=False,
                    rank=rank,
                    world_size=world_size,
                    memory_budget=1 << 22 if shuffle == "full" else 1 << 18,
                )
                for path in (uri, folder)
            )
            found.skip(skipped)
            expected.load_state_dict(found.state_dict())  # the place is no part of a state
            assert_same(found, expected)

    check()


def test_a_mixture_takes_sources_from_buckets_and_folders(folder, uri):
    options = {"weights": [1, 2], "shuffle": "lanes", "lanes": 4, "batch_size": 5}
    found, expected = (islice(ShardLoader(paths, **options), 40) for paths in ([uri, folder], [folder, folder]))
    assert_same(found, expected)


def test_windows_by_number_come_from_a_bucket(folder, uri):
    found, expected = WindowDataset(uri), WindowDataset(folder)
    assert len(found) == len(expected)
    numbers = [0, 7, 8, 100, len(expected) - 1, 3]
    for one, other in zip(found[:], expected[:], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)
    for one, other in zip(found.__getitems__(numbers), expected.__getitems__(numbers), strict=True):
        assert torch.equal(one["target_ids"], other["target_ids"])


def test_documents_are_found_in_a_bucket(folder, uri):
    numbers = [0, 30, 7, -1]
    assert locate(uri, numbers) == locate(folder, numbers)


@pytest.mark.parametrize("lanes", [4, 48])  # more than are asked for at once otherwise
def test_a_row_group_is_one_request_and_a_first_batch_four_round_trips(uri, proxy, lanes):
    """The manifest, the index of shards, footers, row groups."""
    trips = []
    for latency in (0.25, 0.5, 1.0):  # a busy machine may delay a request by more than that
        proxy.set(latency=latency)
        loader = ShardLoader(uri, shuffle="lanes", lanes=lanes, batch_size=lanes)
        assert len(proxy.log()) == 1
        batches = iter(loader)
        needed = set((next(batches).window_ids // GROUP).tolist())
        now = time.monotonic()  # the same clock in all processes; what is read ahead comes later
        batches.close()
        log = [one for one in proxy.log() if one.stop is not None and one.stop <= now]
        trips.append(count_round_trips(log))
        if trips[-1] <= 4:
            break
    assert min(trips) <= 4
    assert lanes // 2 < len(needed) <= lanes
    shards = [one for one in log if "/data/" in one.path]
    footers = {one.path for one in shards}
    assert {one.method for one in log} == {"GET"}
    assert all(one.range for one in shards)
    assert len({(one.path, one.range) for one in shards}) == len(shards), "nothing is asked for twice"
    assert len(footers) + len(needed) <= len(shards) <= len(footers) + len(loader.reader.groups)


def test_opening_asks_for_the_manifest_alone(uri, proxy):
    ShardLoader(uri)
    WindowDataset(uri)
    assert [one.path.rpartition("/")[2] for one in proxy.log()] == ["manifest.json"] * 2


FAULTS = {
    "500": Fault(kind="status", status=500, match="/data/", skip=1, times=2),
    "503": Fault(kind="status", status=503, match="/data/", skip=5, times=3),
    "cut": Fault(kind="cut", match="/data/", skip=2, times=3),
    "truncate": Fault(kind="truncate", match="/data/", skip=2, times=2),
    "flip in a footer": Fault(kind="flip", match="/data/", times=1),
    "flip in a row group": Fault(kind="flip", match="/data/", skip=9, times=1),
    "lose": Fault(kind="lose", match="/data/", skip=1, times=1),
    "manifest": Fault(kind="status", status=503, match="manifest", times=2),
    "flip in the manifest": Fault(kind="flip", match="manifest", times=1),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("shuffle", ["none", "lanes"])
def test_what_the_network_does_once_changes_no_batch(folder, uri, proxy, no_pauses, fault, shuffle):
    proxy.set(FAULTS[fault])
    options = {"shuffle": shuffle, "lanes": 4, "batch_size": 5}
    assert_same(ShardLoader(uri, **options), ShardLoader(folder, **options))
    assert [one.fault for one in proxy.log() if one.fault]


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (Fault(kind="status", status=503, match="/data/", times=None), OSError, "the store answered 503"),
        (Fault(kind="cut", match="/data/", times=None), OSError, "the connection was lost"),
        (Fault(kind="status", status=403, match="/data/", times=None), OSError, "access is denied"),
        (Fault(kind="status", status=404, match="/data/", times=None), DamagedRowGroup, "there is no such object"),
        (Fault(kind="flip", match="/data/", times=None), DamagedRowGroup, "its footer does not have the sha256"),
    ],
)
def test_what_the_network_always_does_is_one_clear_error(uri, proxy, no_pauses, fault, kind, said):
    proxy.set(fault)
    with pytest.raises(OSError, match=said) as caught:
        next(iter(ShardLoader(uri, batch_size=4)))
    assert type(caught.value) is kind
    assert f"{uri}/data/train-0000" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_store_that_stalls_is_asked_again_and_given_up_after_a_time(folder, uri, proxy, no_pauses, monkeypatch):
    monkeypatch.setenv("STRIDEMILL_STORE_TIMEOUT", "1")
    proxy.set(Fault(kind="stall", match="/data/", times=1))
    assert_same(ShardLoader(uri, batch_size=5), ShardLoader(folder, batch_size=5))
    assert [one.fault for one in proxy.log()].count("stall") == 1
    monkeypatch.setenv("STRIDEMILL_STORE_TIMEOUT", "0.2")
    proxy.set(Fault(kind="stall", match="/data/", times=None))
    started = time.monotonic()
    with pytest.raises(OSError, match="the store did not answer in time"):
        next(iter(ShardLoader(uri, batch_size=5)))
    assert time.monotonic() - started < 100  # not the 120 s for which a request may make no progress otherwise
    monkeypatch.setenv("STRIDEMILL_STORE_TIMEOUT", "soon")
    with pytest.raises(ConfigError, match=r"STRIDEMILL_STORE_TIMEOUT must be a number of seconds above 0; got 'soon'"):
        open_storage(uri).read("manifest.json")


def test_a_store_that_does_not_answer_is_no_damage_to_pass_over(uri, proxy, no_pauses):
    loader = ShardLoader(uri, batch_size=4, on_bad="fill")
    proxy.set(Fault(kind="status", times=None))
    with pytest.raises(OSError, match="503"):
        next(iter(loader))
    assert not loader.bad_windows


def test_a_shard_that_is_missing_is_noticed_when_it_is_needed(folder, uri):
    storage, path = open_storage(uri), read_manifest(folder).splits["train"].shards[1].path
    storage.delete([path])
    loader = ShardLoader(uri, shuffle="none", batch_size=GROUP)
    with pytest.raises(DamagedRowGroup, match=f"{path} cannot be read: .*no such object"):
        list(loader)
    assert loader.consumed == 4 * GROUP
    loader = ShardLoader(uri, shuffle="none", batch_size=GROUP, on_bad="fill")
    with pytest.warns(UserWarning, match="come as rows that only fill"):
        batches = list(loader)
    assert loader.bad_windows == 4 * GROUP == sum(int((batch.window_ids < 0).sum()) for batch in batches)


@pytest.mark.parametrize("fault", [None, Fault(kind="status", match="/data/", skip=30, times=2)])
def test_a_data_set_that_is_replaced_while_it_is_read_is_noticed(tmp_path, bucket, proxy, no_pauses, fault):
    first, second = (write(tmp_path, word, compression="none") for word in ("fox", "dog"))
    offsets = [
        pq.read_metadata(next(path.glob("data/*-00001-*"))).row_group(3).column(3).data_page_offset
        for path in (first, second)
    ]
    assert offsets[0] == offsets[1], "row groups of both are at the same places"
    uri = upload(first, f"{bucket}/one")
    proxy.set(*([fault] if fault else []))
    loader = ShardLoader(uri, shuffle="none", batch_size=GROUP, memory_budget=1 << 13)
    batches = iter(loader)
    next(batches)
    open_storage(uri).delete([MANIFEST_NAME])  # as a writer does before it replaces a shard
    upload(second, uri)
    with pytest.raises(OSError, match=r"was replaced (by another data set|or removed) while it was read"):
        list(batches)


def test_a_shard_that_is_written_again_with_the_same_bytes_changes_nothing(folder, uri):
    loader = ShardLoader(uri, shuffle="none", batch_size=GROUP)
    batches = iter(loader)
    found = [next(batches)]
    upload(folder, uri)
    assert_same([*found, *batches], ShardLoader(folder, shuffle="none", batch_size=GROUP))


def test_a_forked_worker_says_how_to_start_it(uri):
    for dataset, options in ((WindowDataset(uri), {"batch_size": 4}), (ShardLoader(uri), {"batch_size": None})):
        loader = DataLoader(dataset, num_workers=1, multiprocessing_context="fork", timeout=300, **options)
        with pytest.raises(OSError, match=r"forked from one that has read it.*multiprocessing_context='spawn'"):
            next(iter(loader))
    with pytest.raises(ValueError, match=r"worker_context: .*choose spawn"):
        ShardLoader(uri, workers=1, worker_context="fork")


@pytest.mark.slow
def test_spawned_workers_give_the_same_batches(folder, uri):
    options = {"shuffle": "lanes", "lanes": 4, "batch_size": 4}
    expected = list(islice(ShardLoader(folder, **options), 6))
    assert_same(islice(ShardLoader(uri, workers=1, **options), 6), expected)
    loader = DataLoader(
        ShardLoader(uri, **options), batch_size=None, num_workers=1, multiprocessing_context="spawn", timeout=300
    )
    assert_same(islice(loader, 6), expected)


def test_the_stages_read_a_bucket(folder, uri, capsys):
    config = LoaderConfig(batch_size=4, document_ids=False)
    one, two = (load_batches(path, loader=config, embedding=EmbeddingConfig(dim=4)) for path in (uri, folder))
    assert (one.windows, one.input_ids) == (two.windows, two.input_ids)
    config = LoaderConfig(sources=[{"path": uri, "weight": 1}, {"path": str(folder), "weight": 2}], batch_size=4)
    assert set(load_batches("", loader=config, embedding=EmbeddingConfig(dim=4)).source_samples) == {uri, str(folder)}
    report = prove_loader(uri, loader=LoaderConfig(), prove=ProveConfig(shuffles=["none"], world_sizes=[2], stops=2))
    assert not report.unproven
    assert "distance between neighbours" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_line_shows_a_window_of_a_bucket(uri, cli):
    sources = f"loader.sources=[{{path: '{uri}'}}]"
    done = cli("stages=show", sources, "show.step=1", "loader.batch_size=2", "loader.shuffle=none", "tokenizer=bytes")
    assert done.returncode == 0, done.stderr
    assert f"window 2 of {uri}" in done.stdout
    assert "the quick brown" in done.stdout.replace("·", " ").replace("|", "")
