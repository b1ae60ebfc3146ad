"""The cache of row groups on a local disk: never wrong, never above its limit, never another's files."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import run_program, sections

from pipeline import ShardLoader, WindowDataset, write_shards
from pipeline.loader.disk_cache import FOLDER, DiskCache
from pipeline.storage.open import open_storage

GROUP = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("cached")
    texts = [f"{number:02}: " + "a lazy dog " * (9 + number % 7) for number in range(24)]
    options = sections(max_length=16, stride=8, windows_per_group=GROUP, windows_per_shard=6 * GROUP)
    return write_shards(root / "shards", corpus=texts, tokenizer="bytes", cache=root / "cache", **options).path


@pytest.fixture
def uri(folder, bucket):
    storage = open_storage(f"{bucket}/ds")
    for file in folder.rglob("*"):
        if file.is_file():
            storage.put(file.relative_to(folder).as_posix(), file.read_bytes())
    return storage.uri


def epoch(path, **options):
    loader = ShardLoader(path, shuffle="none", batch_size=GROUP, drop_last=False, **options)
    return torch.cat([batch.input_ids[batch.window_ids >= 0] for batch in loader])


def entries(cache_dir):
    return [file for file in (cache_dir / FOLDER).rglob("*") if file.is_file() and file.name != "total"]


def name(number):
    return f"{number:064x}-0"


def test_a_second_epoch_asks_the_store_for_the_manifest_and_the_index_alone(folder, uri, proxy, tmp_path):
    expected = epoch(folder)
    assert torch.equal(epoch(uri, cache_dir=tmp_path), expected)
    proxy.set()
    for _ in range(2):
        assert torch.equal(epoch(uri, cache_dir=tmp_path), expected)
    assert {one.path.rpartition("/")[2] for one in proxy.log()} == {"manifest.json", "index.parquet"}
    assert torch.equal(epoch(folder, cache_dir=tmp_path), expected), "a folder with the same shards shares the entries"
    assert torch.stack([one["input_ids"] for one in WindowDataset(uri, cache_dir=tmp_path)[:]]).equal(expected)
    assert len(proxy.log()) == 3 * 2, "each of the three has asked for both once"


def test_the_targets_are_not_stored(folder, tmp_path):
    epoch(folder, cache_dir=tmp_path)
    groups = [file for file in entries(tmp_path) if "-" in file.name]
    stored = sum(file.stat().st_size for file in groups)
    assert len(groups) == len(ShardLoader(folder).reader.groups)
    assert stored < 0.7 * sum(file.stat().st_size for file in folder.glob("data/*"))


@pytest.mark.parametrize("kind", ["flip", "cut", "empty", "other", "folder", "link", "pipe"])
def test_a_damaged_entry_is_noticed_and_fetched_again(folder, tmp_path, kind):
    expected = epoch(folder, cache_dir=tmp_path)
    files = sorted(entries(tmp_path))
    contents = {file: file.read_bytes() for file in files}
    for file, other in zip(files, [*files[1:], files[0]], strict=True):
        content = bytearray(contents[file])
        content[len(content) // 2] ^= 4
        if kind == "flip":
            file.write_bytes(content)
        elif kind == "cut":
            file.write_bytes(content[:-1])
        elif kind == "empty":
            file.write_bytes(b"")
        elif kind == "other":
            file.write_bytes(contents[other])
        else:
            file.unlink()
            {"folder": file.mkdir, "link": partial(file.symlink_to, "/dev/zero"), "pipe": partial(os.mkfifo, file)}[
                kind
            ]()
    assert torch.equal(epoch(folder, cache_dir=tmp_path), expected)
    if kind in ("flip", "cut", "empty", "other"):
        assert torch.equal(epoch(folder, cache_dir=tmp_path), expected)


@settings(max_examples=20)
@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=40), limit=st.integers(60, 200))
def test_the_entries_never_exceed_the_limit_and_the_newest_stay(sizes, limit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("limit")
    cache = DiskCache(folder, limit)
    now = time.time_ns()
    for number, size in enumerate(sizes):
        cache.write(name(number), [bytes([number]) * size])
        (file,) = [file for file in entries(folder) if file.name == name(number)]
        os.utime(file, ns=(now + number, now + number))  # clocks are coarser than this loop
        kept = {file.name: file.stat().st_size for file in entries(folder)}
        assert sum(kept.values()) <= limit
        assert int((folder / FOLDER / "total").read_text()) == sum(kept.values())
        assert set(kept) == {name(one) for one in range(number + 1 - len(kept), number + 1)}
    for number, size in enumerate(sizes):
        assert cache.read(name(number), [(0, size)], size=size) in (None, [bytes([number]) * size])


def test_an_entry_above_the_limit_is_not_stored(tmp_path):
    cache = DiskCache(tmp_path, 10)
    cache.write(name(1), [bytes(11)])
    assert entries(tmp_path) == []


def test_nothing_but_its_own_files_is_removed(tmp_path):
    cache = DiskCache(tmp_path, 100)
    own = tmp_path / FOLDER
    elsewhere = tmp_path / "elsewhere"
    for file in (tmp_path / "mine.txt", own / "notes", own / "ab" / "mine", own / "zz" / name(0), elsewhere / name(5)):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(500))
    (own / "cd").symlink_to(elsewhere)
    (own / "ab" / name(0xAB)).symlink_to(elsewhere / name(5))
    before = {file: file.lstat() for file in tmp_path.rglob("*") if not file.is_dir()}
    for number in range(20):
        cache.write(name(number << 248), [bytes(50)])
    assert {file for file in before if not file.is_symlink() and not file.exists()} == set()
    assert (own / "ab" / name(0xAB)).is_symlink()
    assert sum(file.stat().st_size for file in entries(tmp_path) if file not in before) <= 100


def test_threads_and_processes_share_a_cache_while_entries_are_removed(tmp_path):
    code = """
import random, sys
from pathlib import Path
from pipeline.loader.disk_cache import DiskCache
cache, seed = DiskCache(Path(sys.argv[1]), 20_000), int(sys.argv[2])
rng, hits = random.Random(seed), 0
for _ in range(1500):
    number = rng.randrange(60)
    content = bytes([number]) * (500 + number)
    found = cache.read(f"{number:064x}-0", [(0, len(content))], size=len(content))
    assert found in (None, [content])
    hits += found is not None
    if found is None:
        cache.write(f"{number:064x}-0", [content[:100], content[100:]])
print(hits)
"""
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda seed: run_program("-c", code, tmp_path, seed), range(3)))
    for one in done:
        assert one.returncode == 0, one.stderr
        assert int(one.stdout) > 100
    kept = sum(file.stat().st_size for file in entries(tmp_path))
    assert 5_000 < kept <= 20_000
    assert int((tmp_path / FOLDER / "total").read_text()) == kept


def test_a_cache_that_cannot_be_written_costs_no_batch(folder, tmp_path, caplog):
    expected = epoch(folder)
    (tmp_path / FOLDER).mkdir()
    for first in range(256):
        (tmp_path / FOLDER / f"{first:02x}").write_text("in the way")
    assert torch.equal(epoch(folder, cache_dir=tmp_path), expected)
    assert len([one for one in caplog.records if "row groups are not cached" in one.message]) == 1


def test_a_place_for_the_cache_that_is_none_is_refused(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"loader.cache_dir"):
        ShardLoader(folder, cache_dir=tmp_path / "file")
    with pytest.raises(ValueError, match="cache_dir: must be a path on this machine"):
        ShardLoader(folder, cache_dir="s3://bucket/x")
    with pytest.raises(ValueError, match="cache_limit: must be at least 1"):
        ShardLoader(folder, cache_limit=0)


def test_temporary_files_of_killed_processes_go_with_the_oldest_entries(tmp_path):
    cache = DiskCache(tmp_path, 100)
    cache.write(name(1), [bytes(60)])
    folder = entries(tmp_path)[0].parent
    old, new = (folder / f".{name(1)}.{number:032x}.part" for number in (1, 2))
    for part in (old, new):
        part.write_bytes(bytes(500))
    os.utime(old, (0, 0))
    cache.write(name(2), [bytes(60)])
    assert not old.exists()
    assert new.exists()
