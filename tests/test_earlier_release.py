"""What release 0.1.0 wrote is still read, verified, resumed and recognised: data sets, token stores, loader states."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support import sections, store_windows

from pipeline import ShardLoader, read_manifest, verify_shards, write_shards

RELEASE = Path(__file__).parent / "data" / "release-0.1.0"
EXPECTED = json.loads((RELEASE / "expected.json").read_text())
NAMES = tuple(EXPECTED["options"])  # join, separate, shuffled


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy to work in: reading must not need the right to write, but a test that fails might."""
    shutil.copytree(RELEASE, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shuffle", ["none", "full", "lanes"])
def test_a_loader_resumes_from_a_state_of_release_0_1_0(old, name, shuffle):
    expected = EXPECTED[f"{name}-{shuffle}"]
    loader = ShardLoader(name, batch_size=3, shuffle=shuffle, seed=5, lanes=4, drop_last=False, rank=0, world_size=1)
    loader.load_state_dict(expected["state"])
    assert [batch.window_ids.tolist() for batch in loader] == expected["rest"]


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_of_release_0_1_0_is_compared_with_its_token_store(old, name):
    report = verify_shards(name, cache_path="cache")
    assert report.faults == []
    assert report.compared_with_store
    assert report.windows == sum(split.num_windows for split in read_manifest(name).splits.values())


@pytest.mark.parametrize("name", ["join", "shuffled"])
def test_the_same_text_and_config_give_the_rows_of_release_0_1_0(old, name):
    new = write_shards(old.parent / "new", **sections(**EXPECTED["options"][name], cache_path=old.parent / "fresh"))
    manifest = read_manifest(name)
    for shard in manifest.splits["train"].shards:
        before, after = old / name / shard.path, new.path / shard.path
        assert pq.read_table(before).equals(pq.read_table(after))
        sizes = [file.stat().st_size for file in (after, before)]
        assert sizes[0] <= sizes[1], "the pages have other bytes, but no more of them"


def test_windows_are_cut_from_a_token_store_of_release_0_1_0(old):
    options = EXPECTED["options"]["join"]
    store = f"cache/stores/{read_manifest('join').store}.json"
    window = {name: options[name] for name in ("max_length", "stride", "windows_per_group")}
    kwargs = {"batch_size": 4, "shuffle": "full", "rank": 0, "world_size": 1, "drop_last": False}
    cut, written = ShardLoader(store_windows(store, **window), **kwargs), ShardLoader("join", **kwargs)
    for one, other in zip(cut, written, strict=True):
        assert one.window_ids.tolist() == other.window_ids.tolist()
        assert one.input_ids.tolist() == other.input_ids.tolist()
        assert one.target_ids.tolist() == other.target_ids.tolist()
