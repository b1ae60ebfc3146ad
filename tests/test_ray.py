"""A Ray cluster as executor: the bytes of threads, whatever happens to workers, nodes and the driver."""

import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import environment, errors_of, run_python

from pipeline import (
    ConfigError,
    CorpusConfig,
    ExecutorConfig,
    ShardsConfig,
    SplitConfig,
    TokenizerConfig,
    WindowConfig,
    load_tokenizer,
    write_shards,
)
from pipeline.executor import ray as ray_executor
from pipeline.executor.choose import open_executor
from pipeline.executor.local import LocalExecutor, run_tasks
from pipeline.executor.ray import RETRIES, TaskDefect, describe_failure, ship, unpack
from pipeline.executor.ray import restore as restore_error
from pipeline.shards.folder import lock_folder, prepare_folder
from pipeline.shards.job import as_sections, prepare_job
from pipeline.shards.shard import keep_or_write, plan_shard_tasks
from pipeline.storage.open import open_storage
from pipeline.tokens.chunk import DamagedChunk
from pipeline.tokens.chunk_writer import remove_leftovers
from pipeline.tokens.encode import tokenize

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
TEXTS = [f"text {n}: " + "word " * (n * 7 % 31) for n in range(40)]
WINDOWS = {
    "joined": WindowConfig(max_length=16, stride=8),
    "separate": WindowConfig(max_length=16, stride=8, documents="separate", tail="pad"),
    "packed": WindowConfig(max_length=64, documents="pack"),
}


@pytest.fixture(scope="module")
def cluster(moto_server, tmp_path_factory):
    """A cluster of one node with two cores, to which this process is connected. Its workers find moto."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    import ray
    from ray.cluster_utils import Cluster

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (ENVIRONMENT | moto_server.environment).items():
            patch.setenv(name, value)
        own = {"TMPDIR": str(tmp_path_factory.mktemp("head"))}
        node = {"num_cpus": 2, "object_store_memory": 1 << 27, "env_vars": own}
        started = Cluster(initialize_head=True, head_node_args=node)
        ray.init(address=started.address, log_to_driver=False, logging_level="ERROR")
        signal.signal(signal.SIGTERM, handler)
        yield started
        ray.shutdown()
        started.shutdown()


@pytest.fixture
def executor(cluster):
    with open_executor(ExecutorConfig(name="ray")) as opened:
        yield opened


@pytest.fixture
def many(monkeypatch):
    """Divide texts in memory into many partitions."""
    monkeypatch.setattr("pipeline.corpus.corpora.PARTITION_BYTES", 300)


def contents(root):
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def leftovers(root):
    return [
        file for file in root.rglob(".*") if file.name == ".writing" or re.search(r"part$|^\.[0-9a-f]{64}", file.name)
    ]


def write(root, name, **more):
    given = {"corpus": TEXTS, "tokenizer": "bytes", "split": SplitConfig(validation=0.3), **more}
    return write_shards(root / "shards", **given, executor=ExecutorConfig(name=name), cache=root / "cache")


@pytest.mark.slow
@pytest.mark.parametrize("window", WINDOWS)
def test_a_cluster_writes_the_bytes_of_threads(cluster, many, window, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # relative paths are meant from the driver's folder
    given = {
        "window": WINDOWS[window],
        "shards": ShardsConfig(windows_per_group=8, windows_per_shard=16, order="shuffled"),
    }
    local, there = write(tmp_path / "local", "local", **given), write(Path("there"), "ray", **given)
    assert contents(tmp_path / "local") == contents(tmp_path / "there")
    assert local.chunks_made == there.chunks_made == there.chunks > 8
    assert write(Path("there"), "ray", **given).finished_before


@pytest.mark.slow
def test_results_come_in_order_and_a_bounded_number_of_tasks_is_in_flight(executor):
    taken = []
    results = executor.run_tasks(math.factorial, (taken.append(n) or n for n in range(50)))
    for number in range(50):
        assert next(results) == math.factorial(number)
        assert len(taken) <= number + 2 * executor.in_flight  # those in flight, and those that ended before their turn
    tasks = [f"__import__('time').sleep({0.3 * (n == 0)}) or ({n}, __import__('os').getpid())" for n in range(20)]
    numbers, workers = zip(*executor.run_tasks(eval, tasks), strict=True)  # a function that every worker has
    assert list(numbers) == list(range(20))
    assert os.getpid() not in workers


class StubbornError(ValueError):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")
        self.two = two


def fail(how):
    if how == "damaged":
        raise DamagedChunk(Path("cache/chunks/1"), "its train.npy is missing")
    if how == "config":
        raise ConfigError("window.stride: must be at least 1; got 0")
    if how == "system":
        Path("no/such/file").read_bytes()
    if how == "foreign":
        int("one")
    return how


def test_an_error_arrives_as_it_is():
    for how, kind in {"damaged": DamagedChunk, "config": ConfigError, "system": FileNotFoundError}.items():
        with pytest.raises(kind) as raised:
            fail(how)
        arrived = restore_error(pickle.loads(pickle.dumps(describe_failure(raised.value)._replace(is_ours=True))))
        assert type(arrived) is kind
        assert str(arrived) == str(raised.value)
        assert {k: v for k, v in vars(arrived).items() if k != "__notes__"} == vars(raised.value)
        assert getattr(arrived, "filename", None) == getattr(raised.value, "filename", None)
    with pytest.raises(ValueError, match="invalid literal") as raised:
        fail("foreign")
    arrived = restore_error(describe_failure(raised.value))
    assert type(arrived) is TaskDefect
    assert 'int("one")' in str(arrived)
    with pytest.raises(StubbornError) as raised:
        raise StubbornError("one", "two")
    raised.value.stays = lambda: None  # what cannot travel is left
    arrived = restore_error(pickle.loads(pickle.dumps(describe_failure(raised.value)._replace(is_ours=True))))
    assert (type(arrived), str(arrived), arrived.two) == (StubbornError, "one and two", "two")


@pytest.mark.slow
def test_a_task_that_fails_on_the_cluster_fails_as_it_does_on_threads(cluster, many, tmp_path):
    texts = [*TEXTS, "a name <|endoftext|> in the text"]
    said = {}
    for name in ("local", "ray"):
        with pytest.raises(ValueError, match=r"contains the special token <\|endoftext\|>") as raised:
            write(tmp_path / name, name, corpus=texts, tokenizer=TokenizerConfig(name="bytes", special_text="error"))
        said[name] = type(raised.value), str(raised.value)
    assert said["ray"] == said["local"]
    write(tmp_path / "ray", "ray", corpus=texts)
    assert not leftovers(tmp_path / "ray")


@pytest.mark.slow
def test_a_task_whose_worker_is_killed_runs_again_and_not_for_ever(executor, tmp_path):
    def die(name, times):
        """A task that kills its worker so many times, and then returns how often it ran."""
        count = f"open({str(tmp_path / name)!r}, 'a+').write('x') and len(open({str(tmp_path / name)!r}).read())"
        return f"(lambda n: n if n > {times} else __import__('os').kill(__import__('os').getpid(), 9))({count})"

    assert list(executor.run_tasks(eval, [die("a", 1), die("b", 0)])) == [2, 1]
    with pytest.raises(ValueError, match=r"^executor=ray: .*Finished work is kept; run the same command again"):
        list(executor.run_tasks(eval, [die("c", 99)]))
    assert (tmp_path / "c").read_text() == "x" * (RETRIES + 1)


def test_runs_of_one_task_at_the_same_time_publish_the_same_bytes(many, tmp_path):
    given = {"corpus": TEXTS, "tokenizer": "bytes", "window": WindowConfig(max_length=16, stride=1)}
    sections = as_sections(
        tmp_path / "shards", **given, split=None, shards=None, executor=None, cache=tmp_path / "cache"
    )
    job = prepare_job(sections)
    shared = {
        "cache": sections.cache_folder,
        "tokenizer": job.encoder,
        "corpus": sections.corpus,
        "split": sections.split,
    }

    def make_chunks(_):
        return tokenize(job.partitions, **shared, audit=0.0, executor=LocalExecutor(2), advance=lambda _: None)[0]

    stores = list(run_tasks(make_chunks, range(3), workers=3))
    assert all(store.chunks == stores[0].chunks for store in stores)
    stored = job.cut(stores[0], "train")
    (task,) = plan_shard_tasks("train", len(stored), job.layout, recorded={})
    with lock_folder(tmp_path / "shards", job.fingerprint, overwrite=False, job=job) as lock:
        prepare_folder(lock, {f"data/{task.name}"})

        def write_shard(_):
            return keep_or_write(task, folder=lock.folder, identity=lock.identity, stored=stored, layout=job.layout)

        with ThreadPoolExecutor(4) as pool:
            entries = list(pool.map(write_shard, range(8)))
        assert all(entry == entries[0] for entry in entries)
        assert not list((tmp_path / "shards" / ".writing").glob("*.part"))
        (tmp_path / "shards" / ".writing" / "plan.json").write_text('{"fingerprint": "1"}')
        with pytest.raises(ValueError, match="is by now written as another data set"):
            write_shard(0)
    write_shards(tmp_path / "one", **given, cache=tmp_path / "cache")
    assert (tmp_path / "shards" / "data" / task.name).read_bytes() == (
        tmp_path / "one" / "data" / task.name
    ).read_bytes()


def test_a_tokenizer_travels_as_how_to_load_it(tmp_path):
    known = load_tokenizer("gpt2", engine="tiktoken")
    packed = pickle.dumps(known)
    assert len(packed) < 1000
    assert pickle.loads(packed) is known
    ranks = tmp_path / "own.tiktoken"
    ranks.write_bytes(b"".join(b"%s %d\n" % (line, n) for n, line in enumerate(all_bytes())))
    packed = pickle.dumps(load_tokenizer("tiktoken_file", path=ranks, pattern="gpt2", eos=256))
    ranks.write_bytes(b"".join(b"%s %d\n" % (line, n) for n, line in enumerate(reversed(all_bytes()))))
    with pytest.raises(
        ValueError, match=r"own\.tiktoken: on .* it is another vocabulary than where the run was started"
    ):
        pickle.loads(packed)


def all_bytes():
    import base64

    return [base64.b64encode(bytes([byte])) for byte in range(256)]


def test_a_node_with_other_releases_or_without_the_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = ship(math.factorial, is_last_step_separate=False)
    assert unpack(shipped) == (math.factorial, False)
    with pytest.raises(ValueError, match=r"has pyarrow .*, and the driver has 1\.0; install the same releases on all"):
        unpack(shipped._replace(releases={**shipped.releases, "pyarrow": "1.0"}))
    with pytest.raises(ValueError, match=r"has no folder /no/such, in which the run was started"):
        unpack(shipped._replace(folder="/no/such"))


def test_a_file_that_nodes_do_not_share_is_waited_for_and_then_named(tmp_path, monkeypatch):
    writer = threading.Timer(0.1, (tmp_path / "late").touch)
    writer.start()
    monkeypatch.setattr(ray_executor, "PATIENCE", 200)
    ray_executor.wait_until_seen([tmp_path / "late"], "cache.path")
    monkeypatch.setattr(ray_executor, "PATIENCE", 0.1)
    with pytest.raises(ValueError, match=r"^cache\.path: a worker has written .*/never, which is not there on "):
        ray_executor.wait_until_seen([tmp_path / "late", tmp_path / "never"], "cache.path")


def test_without_ray_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_executor, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"^executor: ray needs the package ray: pip install 'ray>=[\d.]+'$"):
        write(tmp_path, "ray")
    assert not list(tmp_path.iterdir())


def test_what_an_address_is_for_is_checked():
    assert ExecutorConfig(name="ray", address="auto").workers is None
    with pytest.raises(ConfigError, match=r"^executor\.address: is for executor=ray, not local"):
        ExecutorConfig(address="auto")
    with pytest.raises(ConfigError, match=r"^executor\.address: must not be empty"):
        ExecutorConfig(name="ray", address="")


@pytest.mark.slow
def test_threads_import_nothing_of_ray(tmp_path):
    code = "import sys; from pipeline import write_shards; write_shards('ds', corpus=['a text'], tokenizer='bytes', "
    code += "window=__import__('pipeline').WindowConfig(max_length=2)); print('ray' in sys.modules)"
    done = run_python("-c", code, cwd=tmp_path)
    assert done.stdout == "False\n", done.stderr


@pytest.fixture
def long_text(tmp_path):
    """A corpus that takes some seconds."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number:02}.txt").write_text(f"file {number} has word {number}. " * 60_000)
    return CorpusConfig(name="text", path=str(folder))


def wait_for_a_chunk(cache, still_running):
    while not any((cache / "chunks").glob("[0-9a-f]*")):
        assert still_running()
        time.sleep(0.02)


LONG = {
    "tokenizer": TokenizerConfig(engine="tiktoken"),
    "window": WindowConfig(max_length=128),
    "split": SplitConfig(),
    "shards": ShardsConfig(windows_per_group=512, windows_per_shard=4096),
}


NODE = "__import__('time').sleep(0.1) or __import__('ray').get_runtime_context().get_node_id()"


@pytest.mark.slow
def test_a_node_that_is_killed_in_the_middle_changes_no_byte(cluster, long_text, tmp_path):
    node = cluster.add_node(num_cpus=2, object_store_memory=1 << 27)
    with open_executor(ExecutorConfig(name="ray")) as executor:
        while node.node_id not in executor.run_tasks(eval, [NODE] * 8):
            pass
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(write, tmp_path / "there", "ray", corpus=long_text, **LONG)
        wait_for_a_chunk(tmp_path / "there" / "cache", lambda: not running.done())
        cluster.remove_node(node, allow_graceful=False)
        report = running.result(timeout=240)
    assert report.chunks == 8
    write(tmp_path / "local", "local", corpus=long_text, **LONG)
    assert contents(tmp_path / "there") == contents(tmp_path / "local")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_driver_that_ends_costs_only_unfinished_tasks(number, code, cluster, long_text, tmp_path):
    given = ["corpus=text", "corpus.path=in", "tokenizer.engine=tiktoken", "window.max_length=128", "stages=write"]
    given += ["shards.windows_per_group=512", "shards.windows_per_shard=4096", "shards.path=there/shards"]
    given += ["cache.path=there/cache", "executor=ray", f"executor.address={cluster.address}"]
    driver = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *given],
        cwd=tmp_path,
        env=environment(**ENVIRONMENT),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_a_chunk(tmp_path / "there" / "cache", lambda: driver.poll() is None)
    driver.send_signal(number)
    driver.stdout, driver.stderr = driver.communicate(timeout=300)
    assert driver.returncode == code, driver.stderr
    if code > 0:
        assert errors_of(driver).count("\n") == 1
        assert "stridemill: interrupted. Finished work is kept" in errors_of(driver)
    report = write(tmp_path / "there", "local", corpus=long_text, **LONG)
    assert 0 < report.chunks_made < report.chunks
    assert report.chunks_mended == 0
    until = time.monotonic() + 120
    while leftovers(tmp_path / "there"):  # workers of a killed driver end a little later
        assert time.monotonic() < until, leftovers(tmp_path / "there")
        time.sleep(0.1)
        remove_leftovers(tmp_path / "there" / "cache")


@pytest.mark.slow
def test_nodes_that_share_nothing_but_a_bucket_write_the_bytes_of_threads(cluster, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.corpus.partitions.PARTITION_BYTES", 1 << 17)
    monkeypatch.setattr("pipeline.corpus.partitions.SMALL_BYTES", 1 << 10)
    lines = [json.dumps({"text": f"line {number} " + "word " * (number % 31)}) for number in range(6000)]
    (tmp_path / "text.jsonl").write_text("\n".join([*lines[:3000], "no JSON", *lines[3000:]]))
    open_storage(bucket).put("text.jsonl", tmp_path / "text.jsonl")
    given = {"window": WINDOWS["separate"], "shards": ShardsConfig(windows_per_group=64, windows_per_shard=1024)}
    local = write(tmp_path / "local", "local", **given, corpus=CorpusConfig(name="jsonl", path=str(tmp_path)))
    for name in ("driver", "node"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "driver"))
    own = {"TMPDIR": str(tmp_path / "node")}
    node = cluster.add_node(num_cpus=2, object_store_memory=1 << 27, env_vars=own)
    try:
        with open_executor(ExecutorConfig(name="ray")) as executor:
            while node.node_id not in executor.run_tasks(eval, [NODE] * 8):
                pass
        report = write_shards(
            f"{bucket}/ds",
            **{**given, "corpus": CorpusConfig(name="jsonl", path=f"{bucket}/text.jsonl"), "tokenizer": "bytes"},
            split=SplitConfig(validation=0.3),
            executor=ExecutorConfig(name="ray"),
            cache=f"{bucket}/cache",
        )
    finally:
        cluster.remove_node(node)
    assert report.chunks == report.chunks_made == local.chunks > 4
    assert report.manifest.corpus["bad"] == {"not_json": 1}
    storage = open_storage(f"{bucket}/ds")
    found = {entry.name: storage.read(entry.name) for entry in storage.list()}
    there = {name.removeprefix("shards/"): content for name, content in contents(tmp_path / "local").items()}
    assert {name for name in found if found[name] != there.get(name)} <= {"manifest.json", "README.md"}
    assert found.keys() == {name for name in there if not name.startswith("cache/")}
    assert list((tmp_path / "node").rglob("train.npy")), "the node has made chunks, or fetched them"
    assert not list((tmp_path / "driver").rglob("train.npy")), "the driver needs no token"
