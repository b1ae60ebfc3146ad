"""A data set whose corpus, cache and shards are in an object store: the bytes and the guarantees of a local one."""

import dataclasses
import gzip
import hashlib
import json
import os
from contextlib import contextmanager, suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import sections

from pipeline import (
    ExecutorConfig,
    ShardsConfig,
    WindowConfig,
    plan_shards,
    read_manifest,
    verify_shards,
    write_shards,
)
from pipeline.base.locks import hold
from pipeline.base.scratch import own_folder, remove_abandoned, scratch_folder
from pipeline.corpus.opened import TO_END, open_raw
from pipeline.shards.complete import PLAN
from pipeline.shards.entries import MANIFEST_NAME, ShardEntry
from pipeline.shards.folder import is_finished_by_now, record_shard
from pipeline.shards.part import write_part
from pipeline.shards.shard import publish_shard
from pipeline.storage import remote
from pipeline.storage.open import open_storage
from pipeline.storage.probe import honours_conditions
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
    changes, is_over, step = 0, False, 2 if has_old else 3
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


def upload(folder, uri):
    for name, content in local_contents(folder).items():
        put(uri, name, content)


def make_corpus(folder):
    """A folder with a large JSON-lines file, a compressed one, small ones and other files."""
    lines = [json.dumps({"text": f"Line {at} of a large file. {'é' * (at % 50)}"}) for at in range(40_000)]
    (folder / "sub").mkdir(parents=True)
    (folder / "large.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[:500]).encode()))
    (folder / "packed.jsonl.zst").write_bytes(pa.compress("\n".join(lines[500:900]).encode(), "zstd", asbytes=True))
    for at in range(5):
        (folder / "sub" / f"small-{at}.jsonl").write_text("\n".join(lines[at::1000]))
    (folder / "sub" / "notes.md").write_text("no JSON")
    (folder / ".hidden.jsonl").write_text(lines[0])


@pytest.mark.slow
def test_a_corpus_at_a_uri_has_the_bytes_of_a_local_one(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.corpus.partitions.PARTITION_BYTES", 1 << 20)
    make_corpus(tmp_path / "corpus")
    upload(tmp_path / "corpus", f"{bucket}/corpus")
    shape = {"tokenizer": "bytes", "max_length": 128, "corpus": "jsonl", "workers": 2}
    paths = [("corpus", "corpus"), ("corpus/sub/*.jsonl", "corpus/sub/*.jsonl"), ("corpus/large.jsonl",) * 2]
    for at, (path, name) in enumerate(paths):
        given = sections(**shape, corpus_path=str(tmp_path / path), cache_path=tmp_path / f"cache-{at}")
        local = write_shards(tmp_path / f"local-{at}", **given)
        given = sections(**shape, corpus_path=f"{bucket}/{name}", cache_path=tmp_path / f"other-{at}")
        remote = write_shards(tmp_path / f"remote-{at}", **given)
        assert remote.manifest == dataclasses.replace(local.manifest, config=remote.manifest.config)
        assert remote.passed_over == local.passed_over
        assert remote.chunks == local.chunks
    assert local.chunks > 2, "a large object is divided among the workers"
    report = plan_shards(f"{bucket}/planned", **given)
    assert report.documents.value == 40_000


def test_parquet_at_a_uri_is_read_by_ranges(bucket, tmp_path):
    table = pa.table({"text": [f"Row {at} {'x' * (at % 90)}" for at in range(3000)], "other": [b"y" * 500] * 3000})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=500)
    open_storage(bucket).put("corpus/rows.parquet", tmp_path / "rows.parquet")
    shape = {"tokenizer": "bytes", "max_length": 64, "corpus": "parquet"}
    places = {"local": str(tmp_path / "rows.parquet"), "remote": f"{bucket}/corpus/rows.parquet"}
    manifests = [
        write_shards(tmp_path / name, **sections(**shape, corpus_path=path, cache_path=tmp_path / f"c-{name}")).manifest
        for name, path in places.items()
    ]
    assert manifests[0] == dataclasses.replace(manifests[1], config=manifests[0].config)
    put(bucket, "corpus/rows.parquet", b"PAR1 no Parquet")
    with pytest.raises(ValueError, match="is not a complete Parquet file"):
        write_shards(tmp_path / "bad", **sections(**shape, corpus_path=f"{bucket}/corpus", cache_path=tmp_path / "c"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing.txt", "there is no such object, and none below it"),
        ("*.txt", "no object matches it as a glob"),
        ("pictures", r"the folder has no .txt, .md, .rst file \(or with .* added\), but 1 .png"),
    ],
)
def test_a_uri_without_text_is_refused_in_words(bucket, tmp_path, path, message):
    put(bucket, "pictures/a.png", b"picture")
    with pytest.raises(ValueError, match=message):
        write_shards(tmp_path / "ds", **sections(corpus="text", corpus_path=f"{bucket}/{path}", cache_path=tmp_path))


def test_what_stridemill_wrote_below_a_prefix_is_no_text(bucket, tmp_path):
    put(bucket, "mine/a.txt", b"My own text, and that alone. " * 9)
    write_shards(f"{bucket}/mine/ds", **options(cache_path=f"{bucket}/mine/cache"))
    given = sections(corpus="text", corpus_path=f"{bucket}/mine", tokenizer="bytes", max_length=8, cache_path=tmp_path)
    report = write_shards(tmp_path / "ds", **given)
    assert (report.manifest.corpus["documents"], report.passed_over) == (1, {})


def test_paths_and_uris_are_not_mixed(bucket, tmp_path):
    given = sections(corpus="text", corpus_path=[f"{bucket}/a", str(tmp_path)], cache_path=tmp_path / "cache")
    with pytest.raises(ValueError, match="must be URIs, or paths on this machine, not both"):
        write_shards(tmp_path / "ds", **given)


def test_verify_finds_what_is_wrong_at_a_uri(bucket, tmp_path):
    write_shards(f"{bucket}/ds", **options(cache_path=tmp_path / "cache", windows_per_shard=64))
    names = sorted(name for name in contents(f"{bucket}/ds") if name.startswith("data/"))
    storage = open_storage(f"{bucket}/ds")
    content = bytearray(storage.read(names[0]))
    content[len(content) // 2] ^= 1
    put(f"{bucket}/ds", names[0], bytes(content))
    storage.delete([names[1]])
    put(f"{bucket}/ds", "data/more.parquet", b"x")
    put(f"{bucket}/ds", "photo.jpg", b"mine")
    report = verify_shards(f"{bucket}/ds", cache_path=tmp_path / "cache")
    assert {fault.file for fault in report.faults} == {names[0], names[1], "data/more.parquet"}
    assert report.strays == ["photo.jpg"]
    nothing = verify_shards(f"{bucket}/nothing", cache_path=tmp_path / "cache")
    assert [fault.file for fault in nothing.faults] == [MANIFEST_NAME]


def test_a_damaged_chunk_at_a_uri_is_made_again(bucket, tmp_path, monkeypatch):
    write_shards(f"{bucket}/ds", **options(cache_path=f"{bucket}/cache"))
    name = next(name for name in contents(f"{bucket}/cache") if name.endswith("/train.npy"))
    right = open_storage(f"{bucket}/cache").read(name)
    put(f"{bucket}/cache", name, right[:-2] + b"??")
    (tmp_path / "other").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "other"))
    report = write_shards(f"{bucket}/longer", **options(cache_path=f"{bucket}/cache", max_length=32))
    assert report.chunks_mended == 1
    assert open_storage(f"{bucket}/cache").read(name) == right


def test_of_two_runs_with_different_data_the_second_is_refused_by_the_plan_of_the_first(bucket, tmp_path):
    uri, given = f"{bucket}/ds", {"cache_path": tmp_path / "cache", "windows_per_shard": 64}
    with killed_after(12), suppress(Killed):  # after a shard
        write_shards(uri, **options(**given))
    assert PLAN in contents(uri)
    with pytest.raises(ValueError, match=r"of another data set whose writing has not ended: window.max_length is 16"):
        write_shards(uri, **options(**given, max_length=32))
    write_shards(uri, **options(**given, max_length=32, overwrite=True))
    with pytest.raises(ValueError, match="by now written as another data set"):
        put(uri, PLAN, b'{"fingerprint": "another"}')
        is_finished_by_now(open_storage(uri), "mine")
    with pytest.raises(ValueError, match="its plan was removed while this run wrote there"):
        is_finished_by_now(open_storage(f"{uri}/nothing"), "mine")


def test_a_store_that_ignores_conditions_is_refused_for_several_writers_and_warned_of_for_one(
    new_bucket, rclone_server, tmp_path, caplog
):
    bucket = new_bucket(rclone_server)
    given = options(cache_path=tmp_path / "cache")
    pytest.importorskip("ray", reason="several writers need the extra ray")
    with pytest.raises(ValueError, match=r"does not honour conditions .* use executor=local, or another store"):
        write_shards(f"{bucket}/ds", **{**given, "executor": ExecutorConfig(name="ray")})
    report = write_shards(f"{bucket}/ds", **given)
    assert "write there with one run at a time" in caplog.text
    assert report.manifest.index == read_manifest(f"{bucket}/ds").index


@pytest.mark.slow
def test_a_complete_object_store_honours_conditions_and_takes_a_data_set(new_bucket, seaweed_server, tmp_path):
    bucket = new_bucket(seaweed_server)
    assert honours_conditions(open_storage(bucket), "probe")
    write_shards(f"{bucket}/ds", **options(cache_path=f"{bucket}/cache"))
    assert verify_shards(f"{bucket}/ds", cache_path=f"{bucket}/cache").faults == []


@pytest.mark.parametrize("limit", [None, 1 << 20])
def test_an_object_is_fetched_once_as_far_as_the_spool_goes(bucket, proxy, tmp_path, monkeypatch, limit):
    monkeypatch.setattr("pipeline.corpus.partitions.PARTITION_BYTES", 1 << 20)
    monkeypatch.setattr("pipeline.corpus.fetch.FETCH_BYTES", 700_001)
    lines = [json.dumps({"text": f"Line {at} of a large file. {'é' * (at % 50)}"}) for at in range(40_000)]
    (tmp_path / "large.jsonl").write_text("\n".join(lines) + "\n")
    size = (tmp_path / "large.jsonl").stat().st_size
    open_storage(bucket).put("corpus/large.jsonl", tmp_path / "large.jsonl")
    if limit:
        monkeypatch.setattr("pipeline.corpus.spool.SPOOL_BYTES", limit)
    shape = {"tokenizer": "bytes", "max_length": 128, "corpus": "jsonl"}
    local = sections(**shape, corpus_path=str(tmp_path / "large.jsonl"), cache_path=tmp_path / "cache")
    expected = write_shards(tmp_path / "local", **local).manifest
    given = sections(**shape, corpus_path=f"{bucket}/corpus/large.jsonl", cache_path=tmp_path / "other")
    proxy.set()
    manifest = write_shards(tmp_path / "remote", **given).manifest
    assert manifest == dataclasses.replace(expected, config=manifest.config)
    fetched = sum(one.sent for one in proxy.log() if one.method == "GET" and "large" in one.path)
    searched = 2 * (size >> 20) << 18  # where it may be cut: small requests
    least = size if limit is None else 2 * size - limit
    assert least <= fetched <= least + searched + (1 << 20)


def test_the_number_of_clients_does_not_grow_with_that_of_chunks_and_shards(bucket, tmp_path, monkeypatch):
    opened, counts = [], []
    open_client = remote.open_client
    monkeypatch.setattr(remote, "open_client", lambda *args, **more: opened.append(args) or open_client(*args, **more))
    for files in (1, 12):
        corpus = f"{bucket}/corpus-{files}"
        for number in range(files):
            put(corpus, f"{number}.txt", f"file {number} of {files} ".encode() * 100_000)  # above 1 MB: a chunk each
        opened.clear()
        shape = {"tokenizer": "bytes", "max_length": 1024, "corpus": "text", "windows_per_group": 64}
        shape |= {"corpus_path": corpus, "windows_per_shard": 256, "cache_path": f"{bucket}/cache-{files}"}
        report = write_shards(f"{bucket}/ds-{files}", **sections(**shape))
        assert report.chunks == files
        assert len(report.manifest.splits["train"].shards) > 4 * files
        counts.append(len(opened))
    assert counts[1] <= counts[0]


def test_an_object_that_is_replaced_while_it_is_read_is_noticed(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.corpus.opened.WINDOW_BYTES", 1 << 20)
    storage = open_storage(bucket)
    storage.put("text.txt", b"first " * 500_000)
    with open_raw(f"{bucket}/text.txt", stop=TO_END) as file:
        assert file.read(6) == b"first "
        storage.put("text.txt", b"other " * 500_000, if_absent=False)
        with pytest.raises(OSError, match="was changed while this run was reading it"):
            file.seek(2 << 20) and file.read(6)


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_uses_is_not(tmp_path):
    home = own_folder("work")
    for name in ("dead", "living"):
        (home / name).mkdir()
        (home / name / "file").touch()
    (home / "dead.lock").touch()
    living = hold(home / "living.lock")
    remove_abandoned.cache_clear()
    with scratch_folder() as folder:
        assert {path.name for path in home.iterdir()} == {"living", "living.lock", folder.name, f"{folder.name}.lock"}
    assert sorted(path.name for path in home.iterdir()) == ["living", "living.lock"]
    os.close(living)
    assert tmp_path in home.parents


def write_one(folder, content):
    """Write a shard with these bytes, and its record, as a task does before it is uploaded."""
    (folder / ".writing").mkdir(parents=True)
    (folder / "data").mkdir()
    digest = hashlib.sha256(content).hexdigest()
    entry = ShardEntry(path="data/x.parquet", num_windows=1, bytes=len(content), sha256=digest, row_groups=[1])
    (folder / entry.path).write_bytes(content)
    record_shard(folder, entry, "mine")
    return entry


@pytest.mark.parametrize(("is_remote", "single"), [(False, 3), (True, 3), (True, 1 << 30)])
def test_what_an_overlapping_run_of_a_task_has_published_is_kept_if_it_has_the_recorded_hash(
    bucket, tmp_path, monkeypatch, is_remote, single
):
    """The store's names are deterministic; its bytes are believed only after their hash was compared."""

    def publish(content):
        entry = write_one(tmp_path / content.decode(), content)
        return publish_shard(open_storage(place), tmp_path / content.decode(), entry, identity="mine"), entry

    place = f"{bucket}/ds" if is_remote else tmp_path / "ds"
    storage = open_storage(place)
    storage.put(PLAN, b'{"fingerprint": "mine"}')
    if is_remote:
        monkeypatch.setattr("pipeline.shards.shard.SINGLE_BYTES", single)
    published, first = publish(b"first")
    assert published == first
    published, _ = publish(b"other")
    assert (published, storage.read("data/x.parquet")) == (first, b"first")
    storage.put("data/x.parquet", b"hurt!", if_absent=False)
    published, third = publish(b"third")
    assert (published, storage.read("data/x.parquet")) == (third, b"third")


def test_a_shard_above_the_size_of_a_part_is_uploaded_by_one_request_on_a_condition(bucket, proxy, tmp_path):
    storage = open_storage(f"{bucket}/ds")
    storage.put(PLAN, b'{"fingerprint": "mine"}')
    entry = write_one(tmp_path / "large", os.urandom((16 << 20) + 1))
    proxy.set()
    assert publish_shard(storage, tmp_path / "large", entry, identity="mine") == entry
    assert [(one.method, one.received) for one in proxy.log() if entry.path in one.path] == [("PUT", entry.bytes)]
    with pytest.raises(FileExistsError, match="with another content"):
        storage.put(entry.path, b"other")


@pytest.mark.parametrize("there", [b"", b"hurt"])
def test_a_shard_that_another_run_finishes_in_the_last_moment_is_not_replaced(bucket, tmp_path, there):
    """Also not if what was there before had to be replaced, by the bytes of either."""
    storage = open_storage(f"{bucket}/ds")
    storage.put(PLAN, b'{"fingerprint": "mine"}')
    entry = write_one(tmp_path / "mine", b"mine")
    if there:
        storage.put(entry.path, there)
    put = RemoteStorage.put

    def finish():
        put(storage, PLAN, b'{"fingerprint": "theirs"}', if_absent=False)
        put(storage, entry.path, b"theirs", if_absent=False)

    refused = pytest.raises((FileExistsError, ValueError), match=r"changed by another run|by now written as another")
    with before_a_change(1 if there else 0, finish) as has_happened, refused:
        publish_shard(storage, tmp_path / "mine", entry, identity="mine")
    assert has_happened
    assert storage.read(entry.path) == b"theirs"


def part_at(uri, part, parts, **more):
    given = {**options(windows_per_shard=16, cache_path=f"{uri}/cache"), **more}
    return write_part(f"{uri}/ds", **{**given, "executor": ExecutorConfig(part=f"{part}/{parts}", workers=2)})


def test_parts_write_to_a_uri_and_a_call_without_part_commits(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.corpus.corpora.PARTITION_BYTES", 900)
    first = part_at(bucket, 1, 3)
    assert (set(first.missing_chunks), first.shards) == ({0, 2}, 0)
    done = [part_at(bucket, part, 3) for part in (0, 2, 0, 2)]
    assert [report.shards_written > 0 for report in done] == [False, True, True, False]
    assert set(done[-1].missing_shards) == {1}
    assert MANIFEST_NAME not in contents(f"{bucket}/ds")
    with pytest.raises(ValueError, match=r"of another data set whose writing has not ended: window.max_length is 16"):
        part_at(bucket, 1, 3, window=WindowConfig(max_length=32))
    with killed_after(5), suppress(Killed):
        part_at(bucket, 1, 3)
    part_at(bucket, 1, 3)
    before = {one.name: one.modified for one in open_storage(f"{bucket}/ds").list("data")}
    report = write_shards(f"{bucket}/ds", **options(windows_per_shard=16, cache_path=f"{bucket}/cache"))
    assert report.chunks_made == 0
    assert {one.name: one.modified for one in open_storage(f"{bucket}/ds").list("data")} == before
    write_shards(tmp_path / "local", **options(windows_per_shard=16, cache_path=tmp_path / "cache"))
    assert contents(f"{bucket}/ds") == local_contents(tmp_path / "local")
    assert part_at(bucket, 0, 3).finished_before
    with pytest.raises(ValueError, match="a part of an array job replaces nothing at a URI"):
        part_at(bucket, 0, 3, window=WindowConfig(max_length=32), shards=ShardsConfig(overwrite=True))
    assert contents(f"{bucket}/ds") == local_contents(tmp_path / "local")


@contextmanager
def before_a_change(number, action):
    """Let something happen before a change of the store, after all looks that precede it. Yield whether it has."""
    left, has_happened = [number], []

    def wrap(method):
        def call(self, *arguments, **more):
            left[0] -= 1
            if left[0] == -1:
                action()
                has_happened.append(True)
            return method(self, *arguments, **more)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("put", "put_if_match", "delete"):
            patch.setattr(RemoteStorage, name, wrap(getattr(RemoteStorage, name)))
        yield has_happened


MEANWHILE = {
    "sequential": {"finished"},
    "shuffled": {"by now another data set", "by now written as another data set"},
}


@pytest.mark.slow
@pytest.mark.parametrize(("order", "is_large"), [("sequential", False), ("shuffled", False), ("shuffled", True)])
def test_a_run_that_finishes_a_data_set_while_a_part_still_writes_loses_nothing_in_silence(
    bucket, tmp_path, monkeypatch, order, is_large
):
    """Whenever it finishes the part's data set, or replaces it by one whose shards have the same names."""
    if is_large:
        monkeypatch.setattr("pipeline.shards.shard.SINGLE_BYTES", 3)  # uploaded in parts, where no condition is set
    shape = {"windows_per_shard": 200, "cache_path": tmp_path / "cache"}
    other = {**options(**shape, order=order, overwrite=True), "executor": ExecutorConfig(workers=1)}
    part = {**options(**shape), "executor": ExecutorConfig(part="0/1", workers=1)}
    write_shards(tmp_path / "local", **other)
    expected, change, said, has_happened = local_contents(tmp_path / "local"), 4, set(), True  # after the probe
    while has_happened:
        uri, refused = f"{bucket}/ds-{change}", []

        def finish(uri=uri, refused=refused):
            try:
                write_shards(uri, **other)
            except ValueError as error:
                refused.append(str(error))

        with before_a_change(change, finish) as has_happened:
            try:
                said.add("finished" if write_part(uri, **part).finished_meanwhile else "not finished")
            except ValueError as error:
                said.add(str(error).partition("; ")[0].rpartition(" is ")[2])
        if refused:
            assert "was changed by another run while this one wrote there; run the same command again" in refused[0]
            write_shards(uri, **other)
        if has_happened:
            found = {name: content for name, content in contents(uri).items() if not name.startswith(".writing/")}
            differing = {name for name in expected | found if expected.get(name) != found.get(name)}
            faults = {fault.file for fault in verify_shards(uri, cache_path=tmp_path / "cache").faults}
            assert differing == faults - {".writing"}, f"before change {change}"
            assert not differing or is_large, f"before change {change}"
        change += 1
    assert change > 8
    assert said - {"not finished"} <= MEANWHILE[order], "the last time nothing happened"


@pytest.mark.parametrize("number", [0, 7])  # a shard of the data set, and one that it does not have
def test_what_a_late_upload_has_changed_is_noticed_before_the_manifest(bucket, tmp_path, number):
    uri, given = f"{bucket}/ds", options(cache_path=tmp_path / "cache")
    name = f"data/train-{number:05d}-of-00001.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.shards.write.write_card", lambda *_: put(uri, name, b"late"))  # before the commit
        with pytest.raises(ValueError, match=f"{name} was changed by another run while this one wrote there"):
            write_shards(uri, **given)
    assert MANIFEST_NAME not in contents(uri)
    write_shards(uri, **given)
    write_shards(tmp_path / "local", **given)
    assert contents(uri) == local_contents(tmp_path / "local")
