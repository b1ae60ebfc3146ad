"""Array jobs: parts in any order, at once or killed, give the bytes of one process and disturb nobody."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT, environment

from pipeline import ConfigError, CorpusConfig, ExecutorConfig, ShardsConfig, SplitConfig, WindowConfig, write_shards
from pipeline.cli.config import Config
from pipeline.corpus.corpora import find_partitions
from pipeline.shards.folder import lock_folder
from pipeline.shards.job import as_sections, prepare_job
from pipeline.shards.own_files import refuse_others
from pipeline.shards.part import name_parts, write_part
from pipeline.shards.shared_folder import share_folder
from pipeline.tokens.chunk_tasks import hash_rules, plan_chunks
from pipeline.tokens.encode_part import find_owners

TEXTS = [f"text {n}: " + "word " * (n * 7 % 31) for n in range(40)]
SECTIONS = {
    "corpus": TEXTS,
    "tokenizer": "bytes",
    "window": WindowConfig(max_length=16, stride=8),
    "split": SplitConfig(validation=0.3),
    "shards": ShardsConfig(windows_per_group=8, windows_per_shard=16),
}


@pytest.fixture
def many(monkeypatch):
    """Divide texts in memory into many partitions."""
    monkeypatch.setattr("pipeline.corpus.corpora.PARTITION_BYTES", 300)


def contents(root):
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def run_part(root, part, parts, **more):
    executor = ExecutorConfig(part=f"{part}/{parts}", workers=1)
    return write_part(root / "shards", **{**SECTIONS, **more}, executor=executor, cache=root / "cache")


def finish(root, **more):
    executor = ExecutorConfig(workers=1)
    return write_shards(root / "shards", **{**SECTIONS, **more}, executor=executor, cache=root / "cache")


@pytest.fixture
def one_process(many, tmp_path):
    finish(tmp_path / "one")
    return contents(tmp_path / "one")


@settings(max_examples=8)
@given(st.integers(1, 5).flatmap(lambda parts: st.tuples(st.just(parts), st.lists(st.integers(0, parts - 1)))))
def test_parts_in_any_order_and_any_number_of_times_give_the_bytes_of_one_process(tmp_path_factory, drawn):
    parts, order = drawn
    few = {"corpus": TEXTS[:10]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.corpus.corpora.PARTITION_BYTES", 120)
        root = tmp_path_factory.mktemp("parts")
        done: set[int] = set()
        for part in order[:8]:
            report = run_part(root, part, parts, **few)
            done.add(part)
            waits_for = set(range(parts)) - done
            assert report.chunks >= 5
            assert set(report.missing_chunks) == waits_for
            assert bool(report.waiting) == bool(waits_for)
            assert report.shards == 0 or not waits_for
        finish(root, **few)
        one = root.with_name(f"{root.name}-one")
        finish(one, **few)
        assert contents(root) == contents(one)


def test_parts_at_once_give_the_bytes_of_one_process(one_process, tmp_path):
    root = tmp_path / "many"
    for _ in range(2):  # the second time pass two is open to all
        with ThreadPoolExecutor(4) as pool:
            reports = list(pool.map(lambda part: run_part(root, part, 4), range(4)))
    assert sum(report.own_chunks for report in reports) == reports[0].chunks > 8
    assert sum(report.own_shards for report in reports) == reports[0].shards > 8
    assert not any(report.missing_chunks for report in reports)
    assert min(sum(report.missing_shards.values()) for report in reports) == 0
    report = finish(root)
    assert report.chunks_made == 0
    assert contents(root) == one_process


@pytest.mark.parametrize("place", ["encode", "shards"])
def test_a_part_that_was_killed_is_run_again_while_others_run(place, one_process, tmp_path):
    root = tmp_path / "killed"
    if place == "shards":
        for part in range(3):
            run_part(root, part, 3)
    spot = {"encode": "pipeline.tokens.chunk_writer.sync_folder", "shards": "pipeline.shards.shard.record_shard"}[place]
    child = os.fork()
    if not child:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(spot, lambda *_: os._exit(9))
            run_part(root, 1, 3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = {name for name in contents(root) if re.search(r"/\.[^/]*(-[0-9a-f]{32}/|\.part$)", f"/{name}")}
    assert left
    for part in islice(cycle([2, 0, 1]), 6):
        run_part(root, part, 3)
    finish(root)
    assert contents(root) == one_process


def test_parts_refuse_what_one_writer_refuses(many, tmp_path):
    finish(tmp_path)
    before = contents(tmp_path)
    other = {"window": WindowConfig(max_length=8)}
    with pytest.raises(ValueError, match=r"holds another data set: window\.max_length is 16 there and 8 here"):
        run_part(tmp_path, 0, 2, **other)
    assert {name: content for name, content in contents(tmp_path).items() if "shards" in name} == {
        name: content for name, content in before.items() if "shards" in name
    }
    for part in islice(cycle(range(2)), 4):
        run_part(tmp_path, part, 2, **other, shards=ShardsConfig(windows_per_group=8, overwrite=True))
    finish(tmp_path, **other, shards=ShardsConfig(windows_per_group=8, overwrite=True))
    finish(tmp_path / "new", **other, shards=ShardsConfig(windows_per_group=8))
    assert contents(tmp_path / "shards") == contents(tmp_path / "new" / "shards")


def job_of(root, **more):
    given = {**SECTIONS, **more}
    given.setdefault("executor", ExecutorConfig(part="0/2"))
    return prepare_job(as_sections(root / "shards", **given, cache=root / "cache"))


def test_while_a_part_runs_no_other_run_and_no_part_of_another_data_set_writes_there(many, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.shards.shared_folder.PATIENCE", 0.1)
    with share_folder(job_of(tmp_path)):
        with pytest.raises(ValueError, match=r"is being written by another run \(process \d+ on .*, a part of an arr"):
            finish(tmp_path)
        with pytest.raises(ValueError, match=r"is being written by parts of another data set \(process"):
            run_part(tmp_path, 1, 2, window=WindowConfig(max_length=8))
        run_part(tmp_path, 1, 2)
    job = job_of(tmp_path)
    with (
        lock_folder(tmp_path / "shards", job.fingerprint, overwrite=False),
        pytest.raises(ValueError, match=r"is being written by another run \(process \d+ on "),
    ):
        run_part(tmp_path, 1, 2)
    run_part(tmp_path, 0, 2)
    finish(tmp_path)
    assert not (tmp_path / "shards" / ".writing").exists()


def test_a_part_leaves_an_empty_folder_as_it_was_until_it_writes(many, tmp_path):
    report = run_part(tmp_path, 1, 2)
    assert report.waiting.endswith("chunks of part 0")
    assert not (tmp_path / "shards").exists()


def test_the_part_of_a_chunk_does_not_depend_on_the_cache(tmp_path):
    for number in range(12):
        (tmp_path / f"{number:02}.txt").write_text(f"file {number} " * 9)
    corpus = CorpusConfig(name="text", path=str(tmp_path))
    write_shards(  # its chunk has some of the files
        tmp_path / "some",
        corpus=CorpusConfig(name="text", path=[str(tmp_path / f"{number:02}.txt") for number in (3, 4, 7)]),
        tokenizer="bytes",
        window=WindowConfig(max_length=4),
        cache=tmp_path / "cache",
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"MOST_BYTES": 2500, "LEAST_BYTES": 0}.items():  # three small files are a group
            patch.setattr(f"pipeline.corpus.small_files.{name}", value)
        partitions = find_partitions(corpus, cache=tmp_path, cut_safe=True, workers=1).partitions
    job = job_of(tmp_path, corpus=corpus)
    rules = hash_rules(tokenizer=job.encoder, corpus=corpus, split=SplitConfig())
    owners = {}
    for cache in ("cache", "empty"):
        tasks = plan_chunks(partitions, cache=tmp_path / cache, rules=rules)
        found = find_owners(tasks, partitions, 3)
        owners[cache] = [owner for task in tasks for owner in [found[task[1:]]] * len(task.units)]
    assert len(partitions) > 3
    assert owners["cache"] == owners["empty"]
    assert owners["empty"] == [n % 3 for n, partition in enumerate(partitions) for _ in partition.keys]


def test_missing_parts_are_named_as_ranges():
    assert name_parts({3: 1}) == "part 3"
    assert name_parts(dict.fromkeys([0, 1, 2, 7], 1)) == "parts 0-2 and 7"
    assert name_parts(dict.fromkeys([9, 4, 5, 0], 1)) == "parts 0, 4-5 and 9"


@pytest.mark.parametrize("value", ["4/4", "3/0", "-1/4", "3", "1/2/3", "a/b", "", 3, 0.25, None])
def test_a_value_that_is_no_part_is_refused_in_words(value):
    if value is None:
        assert ExecutorConfig(part=value).share == (0, 1)
        return
    with pytest.raises(ConfigError, match=r"^executor\.part: must be a part and the number of parts, such as 3/16"):
        ExecutorConfig(part=value)


def test_what_a_part_cannot_be_combined_with_is_refused():
    assert Config(stages="write", executor=ExecutorConfig(part="03/16")).executor.share == (3, 16)
    with pytest.raises(ConfigError, match=r"^executor\.part: a part of an array job only writes: set stages=write"):
        Config(stages=["write", "load"], executor=ExecutorConfig(part="0/2"))
    with pytest.raises(ConfigError, match=r"^executor\.part: is for executor=local"):
        ExecutorConfig(name="ray", part="0/2")
    with pytest.raises(ConfigError, match=r"^executor\.part: in Python, call pipeline\.shards\.part\.write_part"):
        write_shards("never", corpus=TEXTS, executor=ExecutorConfig(part="0/2"))


SBATCH = """#!/usr/bin/env bash
echo "$@" >> "$JOBS"
wc -l < "$JOBS"
"""

# The command, killed when its first chunk is complete and not yet in its place.
KILLED = """
import os, signal
import pipeline.tokens.chunk_writer
from pipeline.__main__ import main

pipeline.tokens.chunk_writer.sync_folder = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main()
"""


@pytest.mark.slow
def test_the_example_for_slurm_with_a_killed_part_gives_the_bytes_of_one_process(tmp_path):
    for number in range(4):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.txt").write_text(f"file {number} has word {number}. " * 60_000)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(SBATCH)
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    (tmp_path / "killed.py").write_text(KILLED)
    script = str(ROOT / "examples" / "slurm_array.sh")
    window = ["window.max_length=128", "window.stride=64", "shards.windows_per_shard=4096"]
    given = ["corpus=text", "corpus.path=in", "tokenizer.engine=tiktoken", "executor.workers=1", *window]
    given += ["shards.windows_per_group=1024", "shards.path=ds", "cache.path=cache"]
    shared = environment(
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        STRIDEMILL=f"{sys.executable} -m pipeline",
        JOBS=str(tmp_path / "jobs"),
        PARTS="2",
    )

    def start(command, part, **more):
        task = {"SLURM_ARRAY_TASK_ID": str(part), "SLURM_ARRAY_TASK_COUNT": "2"}
        return subprocess.Popen(
            ["bash", *command],
            cwd=tmp_path,
            env={**shared, **task, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    done = subprocess.run(["bash", script, *given], cwd=tmp_path, env=shared, capture_output=True, text=True)
    assert done.stdout == "submitted the arrays 1 and 2, and 3, which completes the data set\n", done.stderr
    jobs = [line.split() for line in (tmp_path / "jobs").read_text().splitlines()]
    assert [[option for option in job if option.startswith("--")] for job in jobs] == [
        ["--parsable", "--array=0-1"],
        ["--parsable", "--array=0-1", "--dependency=afterany:1"],
        ["--parsable", "--dependency=afterany:2"],
    ]
    tokenize, write, complete = ([word for word in job if not word.startswith("--")] for job in jobs)

    killed = start(tokenize, 1, STRIDEMILL=f"{sys.executable} {tmp_path / 'killed.py'}")
    said = killed.communicate(timeout=300)[0]
    assert killed.returncode != 0, said
    assert "Killed" in said
    assert any((tmp_path / "cache" / "chunks").glob(".*"))

    for command in (tokenize, write):
        for process in [start(command, part) for part in (1, 0)]:
            said = process.communicate(timeout=300)[0]
            assert process.returncode == 0, said
    assert "4 chunks" in said
    assert not (tmp_path / "ds" / "manifest.json").exists()
    process = start(complete, "")
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert "4 chunks found in the cache" in said
    assert "no problem found" in said

    (tmp_path / "one").mkdir()
    write_shards(
        tmp_path / "one" / "ds",
        corpus=CorpusConfig(name="text", path=str(tmp_path / "in")),
        window=WindowConfig(max_length=128, stride=64),
        shards=ShardsConfig(windows_per_shard=4096, windows_per_group=1024),
        cache=tmp_path / "one" / "cache",
    )
    shards = contents(tmp_path / "ds")
    assert len([name for name in shards if name.startswith("data/")]) >= 4
    assert {name: shards[name] for name in shards if name.endswith(".parquet")} == {
        name: content for name, content in contents(tmp_path / "one" / "ds").items() if name.endswith(".parquet")
    }
    assert not [file for file in (tmp_path / "ds").rglob("*") if ".part" in file.name or file.name == ".writing"]
    assert not [file for file in (tmp_path / "cache").rglob("*") if re.match(r"\.[0-9a-f]{64}", file.name)]


def test_a_file_that_another_part_renames_while_the_folder_is_listed_is_no_strangers(tmp_path, monkeypatch):
    (tmp_path / ".writing").mkdir()
    (tmp_path / ".writing" / ".train-00000-of-00001.parquet.0123abcd.part").touch()
    lstat = Path.lstat

    def renamed_first(path):
        if path.suffix == ".part":
            path.unlink()
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", renamed_first)
    refuse_others(tmp_path, has_plan=True, manifest=None)
    assert list((tmp_path / ".writing").iterdir()) == []
