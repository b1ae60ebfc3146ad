"""Data sets of format 1, which list their shards in the manifest, are read, verified, resumed and finished."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support import sections, store_windows, write_format_1

from pipeline import ExecutorConfig, ShardLoader, read_manifest, verify_shards, write_shards
from pipeline.shards.part import write_part
from pipeline.shards.row_groups import EvenRowGroups, ListedRowGroups

BEFORE = Path(__file__).parent / "data" / "format-1"
EXPECTED = json.loads((BEFORE / "expected.json").read_text())
NAMES = tuple(EXPECTED["options"])  # even, packed, uneven


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy to work in."""
    shutil.copytree(BEFORE, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def options_of(name):
    return sections(**EXPECTED["options"][name], cache_path="cache")


def rest_of(path, name, shuffle):
    """The batches after the state that was saved."""
    batch_size = 2 if name == "uneven" else 8
    loader = ShardLoader(path, batch_size=batch_size, shuffle=shuffle, seed=5, lanes=3, drop_last=False)
    loader.load_state_dict(EXPECTED[f"{name}-{shuffle}"]["state"])
    return [batch.window_ids.tolist() for batch in loader]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_read_and_compared_with_its_token_store(old, name):
    manifest = read_manifest(name)
    assert (manifest.format_version, manifest.index) == (1, None)
    assert isinstance(manifest.splits["train"].row_groups, ListedRowGroups if name == "uneven" else EvenRowGroups)
    report = verify_shards(name, cache_path="cache")
    assert (report.faults, report.strays, report.compared_with_store) == ([], [], True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shuffle", ["none", "full", "lanes"])
def test_a_loader_resumes_from_a_state_of_it(old, name, shuffle):
    assert rest_of(name, name, shuffle) == EXPECTED[f"{name}-{shuffle}"]["rest"]


@pytest.mark.parametrize("shuffle", ["full", "lanes"])
def test_a_mixture_resumes_from_a_state_of_it(old, shuffle):
    loader = ShardLoader(["even", "packed"], weights=[2, 1], batch_size=32, shuffle=shuffle, seed=5, lanes=4)
    loader.load_state_dict(EXPECTED[f"mixture-{shuffle}"]["state"])
    found = [list(zip(batch.source_ids.tolist(), batch.window_ids.tolist(), strict=True)) for batch in loader]
    assert found == [[tuple(pair) for pair in batch] for batch in EXPECTED[f"mixture-{shuffle}"]["rest"]]


def test_windows_of_its_token_store_resume_from_a_state_of_them(old):
    expected = EXPECTED["even-store"]
    keys = ("max_length", "stride", "windows_per_group", "windows_per_shard")
    store = f"cache/stores/{read_manifest('even').store}.json"
    windows = store_windows(store, **{key: EXPECTED["options"]["even"][key] for key in keys})
    loader = ShardLoader(windows, batch_size=2, shuffle="lanes", seed=5, lanes=3, drop_last=False)
    loader.load_state_dict(expected["state"])
    assert [batch.window_ids.tolist() for batch in loader] == expected["rest"]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_config_finds_it_finished(old, name):
    before = contents(name)
    assert write_shards(name, **options_of(name)).finished_before
    assert write_part(name, **{**options_of(name), "executor": ExecutorConfig(part="0/2")}).finished_before
    assert contents(name) == before


@pytest.mark.parametrize("name", ["even", "packed"])
def test_the_same_config_writes_the_same_shards_in_format_2_whose_loaders_take_its_states(old, name):
    new = write_shards("new", **options_of(name))
    assert new.manifest.format_version == 2
    assert new.manifest.fingerprint == read_manifest(name).fingerprint
    for shard in read_manifest(name).splits["train"].shards:
        assert pq.read_table(f"new/{shard.path}").equals(pq.read_table(f"{name}/{shard.path}"))
    for shuffle in ("none", "full", "lanes"):
        assert rest_of("new", name, shuffle) == EXPECTED[f"{name}-{shuffle}"]["rest"]


@pytest.mark.parametrize("name", ["even", "packed"])
def test_one_that_has_lost_a_shard_is_finished_in_format_2_and_keeps_the_others(old, name):
    lost, kept = sorted(Path(name, "data").iterdir())[:2]
    lost.unlink()
    before = kept.stat().st_mtime_ns
    report = write_shards(name, **options_of(name))
    assert (report.finished_before, report.manifest.format_version) == (False, 2)
    assert kept.stat().st_mtime_ns == before
    assert verify_shards(name, cache_path="cache").faults == []
    assert rest_of(name, name, "lanes") == EXPECTED[f"{name}-lanes"]["rest"]


def test_row_groups_that_end_with_each_shard_are_read_by_a_table_and_written_no_more(old):
    assert list(read_manifest("uneven").splits["train"].row_groups) == [2, 1, 2, 1, 1]
    report = write_shards("new", **options_of("uneven"))
    assert isinstance(report.manifest.splits["train"].row_groups, EvenRowGroups)
    with pytest.raises(ValueError, match="belongs to another data set"):
        rest_of("new", "uneven", "lanes")


def test_a_data_set_of_format_2_turned_into_format_1_gives_the_same_batches(old):
    new = write_shards("new", **options_of("even")).path
    expected = [batch.window_ids.tolist() for batch in ShardLoader(new, batch_size=8, shuffle="lanes", lanes=3)]
    write_format_1(new)
    assert read_manifest(new).format_version == 1
    assert [batch.window_ids.tolist() for batch in ShardLoader(new, batch_size=8, shuffle="lanes", lanes=3)] == expected
    assert verify_shards(new, cache_path="cache").faults == []
