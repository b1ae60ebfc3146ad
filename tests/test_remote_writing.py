"""A data set whose corpus, cache and shards are in an object store: the bytes and the guarantees of a local one."""

from contextlib import contextmanager, suppress

import pytest
from support import sections

from pipeline import read_manifest, verify_shards, write_shards
from pipeline.shards.manifest import MANIFEST_NAME
from pipeline.storage.open import open_storage
from pipeline.storage.remote import RemoteStorage

TEXTS = [f"Text {number}: {'abc ' * (number % 7)}é." for number in range(200)]


def options(**more):
    return {"corpus": TEXTS, **sections(**{"tokenizer": "bytes", "max_length": 16, "windows_per_group": 8, **more})}


@pytest.fixture(autouse=True)
def own_temporary_files(tmp_path, monkeypatch):
    """Local copies of caches are below TMPDIR: each test starts without any."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


def contents(uri):
    """Every object below a URI, by name."""
    storage = open_storage(uri)
    return {entry.name: storage.read(entry.name) for entry in storage.list()}


def local_contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def put(uri, name, content):
    open_storage(uri).put(name, content, if_absent=False)


def test_a_data_set_at_a_uri_has_the_bytes_of_a_local_one(bucket, tmp_path):
    local = write_shards(tmp_path / "local", **options(cache_path=tmp_path / "cache", windows_per_shard=64))
    given = options(cache_path=f"{bucket}/cache", windows_per_shard=64)
    report = write_shards(f"{bucket}/ds", **given)
    assert report.path == f"{bucket}/ds"
    assert contents(f"{bucket}/ds") == local_contents(tmp_path / "local")
    assert read_manifest(f"{bucket}/ds") == local.manifest
    assert len(local.manifest.splits["train"].shards) > 2
    stored = {name for name in local_contents(tmp_path / "cache") if name.startswith(("chunks/", "stores/"))}
    assert stored <= set(contents(f"{bucket}/cache"))
    checked = verify_shards(f"{bucket}/ds", cache_path=f"{bucket}/cache")
    assert checked.faults == checked.strays == []
    assert checked.compared_with_store


def test_a_second_machine_finds_the_tokens_and_the_data_set(bucket, tmp_path, monkeypatch):
    first = write_shards(f"{bucket}/ds", **options(cache_path=f"{bucket}/cache"))
    before = {one.name: one.modified for one in open_storage(f"{bucket}/ds").list()}
    (tmp_path / "other").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "other"))
    again = write_shards(f"{bucket}/ds", **options(cache_path=f"{bucket}/cache"))
    assert again.finished_before
    assert {one.name: one.modified for one in open_storage(f"{bucket}/ds").list()} == before
    longer = write_shards(f"{bucket}/longer", **options(cache_path=f"{bucket}/cache", max_length=32))
    assert (longer.chunks_made, first.chunks_made) == (0, first.chunks)


def test_another_data_set_is_refused_and_replaced_only_on_demand(bucket, tmp_path):
    given = {"cache_path": tmp_path / "cache", "windows_per_shard": 16}
    write_shards(f"{bucket}/ds", **options(**given))
    old = contents(f"{bucket}/ds")
    with pytest.raises(ValueError, match=r"s3://\S+/ds holds another data set: window.max_length is 16 there and 32"):
        write_shards(f"{bucket}/ds", **options(**given, max_length=32))
    assert contents(f"{bucket}/ds") == old
    write_shards(f"{bucket}/ds", **options(**given, max_length=32, overwrite=True))
    write_shards(tmp_path / "local", **options(**given, max_length=32))
    assert contents(f"{bucket}/ds") == local_contents(tmp_path / "local")


@pytest.mark.parametrize("name", ["photo.jpg", "data/x.parquet", "manifest.json.bak"])
def test_a_prefix_with_other_objects_is_refused_and_left_alone(bucket, name):
    put(f"{bucket}/ds", name, b"mine")
    with pytest.raises(ValueError, match=r"s3://\S+ds contains .*, which is not part of a data set"):
        write_shards(f"{bucket}/ds", **options(cache_path=f"{bucket}/cache"))
    assert contents(f"{bucket}/ds") == {name: b"mine"}


class Killed(BaseException):
    """The end of a process."""


@contextmanager
def killed_after(changes):
    """Let the process end at a change of the store, before its request is sent."""
    left = [changes]

    def wrap(method):
        def call(self, *arguments, **more):
            if left[0] <= 0:
                raise Killed
            left[0] -= 1
            return method(self, *arguments, **more)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("put", "put_if_match", "delete"):
            patch.setattr(RemoteStorage, name, wrap(getattr(RemoteStorage, name)))
        yield


@pytest.mark.slow
@pytest.mark.parametrize("has_old", [False, True])
def test_a_kill_at_any_change_leaves_no_data_set_or_the_old_one_and_the_next_run_completes_it(
    bucket, tmp_path, has_old
):
    given = {"cache_path": tmp_path / "cache", "windows_per_shard": 200}
    expected = write_shards(tmp_path / "local", **options(**given)).manifest
    changes, is_over, step = 0, False, 1 if has_old else 3
    while not is_over:
        uri = f"{bucket}/ds-{changes}"
        if has_old:
            old = write_shards(uri, **options(**given, max_length=32)).manifest.fingerprint
        with killed_after(changes), suppress(Killed):
            write_shards(uri, **options(**given, overwrite=has_old))
            is_over = True
        found = contents(uri)
        if MANIFEST_NAME in found:
            fingerprint = read_manifest(uri).fingerprint
            assert fingerprint in ({expected.fingerprint} | ({old} if has_old else set()))
            assert {fault.file for fault in verify_shards(uri, cache_path=tmp_path).faults} <= {".writing"}
        write_shards(uri, **options(**given, overwrite=has_old))
        assert contents(uri) == local_contents(tmp_path / "local"), f"after {changes} changes"
        changes += step
    assert changes > 8
