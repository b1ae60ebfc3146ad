"""Exactly once: what a crash, a second writer, a full disk or a foreign file does to a data set's folder."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import run_program, run_python, sections

from pipeline import read_manifest, write_shards
from pipeline.base.reading import sign
from pipeline.shards.folder import lock_folder, prepare_folder


@pytest.fixture
def corpus(tmp_path):
    """One text of 40 kB and no vocabulary: 20 shards of 2 kB."""
    path = tmp_path / "numbers.txt"
    path.write_text(" ".join(str(number) for number in range(8_000)), encoding="utf-8")
    return path


@pytest.fixture
def options(tmp_path, corpus):
    return {
        "corpus": "text",
        "corpus_path": str(corpus),
        "tokenizer": "bytes",
        "max_length": 32,
        "windows_per_group": 16,
        "windows_per_shard": 64,
        "cache_path": tmp_path / "cache",
    }


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_bytes_are_the_same_for_1_2_and_4_workers(tmp_path, options):
    written = [
        contents(write_shards(tmp_path / str(workers), **sections(**options, workers=workers)).path)
        for workers in (1, 2, 4)
    ]
    assert len(written[0]) >= 20
    assert written[0] == written[1] == written[2]


@pytest.fixture
def interrupted(tmp_path, options, monkeypatch):
    """A folder whose writer stopped before its last steps: every shard is recorded, no manifest is there."""
    from pipeline.shards import write as stage

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_manifest", stop)
        with pytest.raises(KeyboardInterrupt):
            write_shards(tmp_path / "shards", **sections(**options))
    return tmp_path / "shards"


def inodes(folder):
    """The identity of each file: a new one may get the inode of one that was removed, but not its time."""
    found = {file.name: file.stat() for file in (folder / "data").iterdir()}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


def test_a_second_run_writes_only_what_is_missing_or_has_other_bytes(tmp_path, options, interrupted):
    whole = write_shards(tmp_path / "whole", **sections(**options))
    assert not (interrupted / "manifest.json").exists()
    before = inodes(interrupted)
    first, second, third, *_ = sorted(before)
    (interrupted / "data" / first).unlink()
    (interrupted / ".writing" / f"{second}.json").write_text("{")
    content = bytearray((interrupted / "data" / third).read_bytes())
    content[100] ^= 1
    (interrupted / "data" / third).write_bytes(content)
    write_shards(interrupted, **sections(**options))
    assert contents(interrupted) == contents(whole.path)
    after = inodes(interrupted)
    assert {name for name in before if before[name] == after[name]} == set(before) - {first, second, third}


def test_a_finished_data_set_that_lost_a_file_gets_it_back(tmp_path, options):
    report = write_shards(tmp_path / "shards", **sections(**options))
    whole, before = contents(report.path), inodes(report.path)
    name = sorted(before)[3]
    (report.path / "data" / name).unlink()
    assert not write_shards(report.path, **sections(**options)).finished_before
    assert contents(report.path) == whole
    after = inodes(report.path)
    assert {other for other in before if before[other] == after[other]} >= set(before) - {name}


def test_what_a_kill_after_the_manifest_leaves_is_removed(tmp_path, options):
    report = write_shards(tmp_path / "shards", **sections(**options))
    whole = contents(report.path)
    (report.path / ".writing").mkdir()
    (report.path / ".writing" / "plan.json").write_text("{}")
    assert write_shards(report.path, **sections(**options)).finished_before
    assert contents(report.path) == whole


def test_an_unfinished_data_set_of_another_config_is_refused_not_overwritten(options, interrupted):
    before = contents(interrupted)
    with pytest.raises(
        ValueError, match=r"shards of another data set whose writing has not ended: window\.max_length is 32"
    ):
        write_shards(interrupted, **sections(**{**options, "max_length": 31}))
    assert contents(interrupted) == before
    write_shards(interrupted, **sections(**{**options, "max_length": 31}, overwrite=True))
    assert read_manifest(interrupted).splits["train"].max_length == 31


def test_a_second_writer_is_refused_at_once_and_told_of_the_first(tmp_path, options):
    folder = tmp_path / "shards"
    with (
        lock_folder(folder, "0" * 64, overwrite=False),
        pytest.raises(ValueError, match=rf"is being written by another run \(process {os.getpid()} on "),
    ):
        write_shards(folder, **sections(**options))
    assert not write_shards(folder, **sections(**options)).finished_before


def test_a_failed_run_leaves_no_folder_of_its_own(tmp_path, options):
    with pytest.raises(ValueError, match="needs 50,001 tokens"):
        write_shards(
            tmp_path / "shards",
            **sections(**{**options, "max_length": 50_000, "windows_per_group": None, "windows_per_shard": None}),
        )
    assert not (tmp_path / "shards").exists()


def test_bad_input_does_not_cost_the_data_set_that_was_to_be_overwritten(tmp_path, options):
    report = write_shards(tmp_path / "shards", **sections(**options))
    before = contents(report.path)
    with pytest.raises(ValueError, match="needs 50,001 tokens"):
        write_shards(report.path, **sections(**{**options, "max_length": 50_000}, overwrite=True))
    assert contents(report.path) == before


@pytest.mark.parametrize("name", ["notes.txt", "data/notes.txt", "data/train-00000-of-00001.parquet", "README.md"])
def test_files_that_are_not_ours_are_kept_and_refuse_the_folder(tmp_path, options, name):
    file = tmp_path / "shards" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(ValueError, match=f"contains '{name}', which is not part of a data set"):
        write_shards(tmp_path / "shards", **sections(**options, overwrite=True))
    assert contents(tmp_path / "shards") == {name: b"mine"}


def test_overwriting_leaves_nothing_of_the_old_data_set(tmp_path, options):
    write_shards(tmp_path / "shards", **sections(**options))
    fresh = write_shards(tmp_path / "fresh", **sections(**{**options, "windows_per_shard": 128}))
    write_shards(tmp_path / "shards", **sections(**{**options, "windows_per_shard": 128}, overwrite=True))
    assert contents(tmp_path / "shards") == contents(fresh.path)


def test_shards_of_another_pyarrow_are_not_mixed_in(tmp_path, options, interrupted):
    before = inodes(interrupted)
    held = [file.open("rb") for file in (interrupted / "data").iterdir()]  # so that no inode number comes again
    plan = interrupted / ".writing" / "plan.json"
    plan.write_text(json.dumps(sign({**json.loads(plan.read_text()), "pyarrow": "17.0.0"})))
    write_shards(interrupted, **sections(**options))
    assert contents(interrupted) == contents(write_shards(tmp_path / "whole", **sections(**options)).path)
    assert not set(before.values()) & set(inodes(interrupted).values())
    for file in held:
        file.close()


WRITE = """
import sys, resource
sys.path.insert(0, "tests")
from support import sections
from pipeline import write_shards
options = sections(**eval(sys.argv[2]))
{before}
try:
    write_shards(sys.argv[1], **options)
except ValueError as error:
    print('refused:', error)
"""


def write_apart(folder, options, before=""):
    """Write in a process of its own, which `before` has restricted; what it printed."""
    code = WRITE.format(before=before)
    arguments = [str(folder), repr({**options, "cache_path": str(options["cache_path"])})]
    done = run_program("-c", code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_file_limit_ends_in_one_line_and_the_next_run_finishes(tmp_path, options):
    whole = write_shards(tmp_path / "whole", **sections(**options))
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))"
    said = write_apart(tmp_path / "shards", options, limit)
    assert said.startswith("refused: ")
    assert said.count("\n") == 1
    assert "a file is larger than this system or `ulimit -f` allows. Finished work is kept" in said
    assert not (tmp_path / "shards" / "manifest.json").exists()
    write_shards(tmp_path / "shards", **sections(**options))
    assert contents(tmp_path / "shards") == contents(whole.path)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_in_one_line_and_the_next_run_goes_on(tmp_path, options, small_disk):
    whole = write_shards(tmp_path / "whole", **sections(**options))
    with pytest.raises(ValueError, match=r"disk/shards: the disk is full\. Free some space"):
        write_shards(small_disk / "shards", **sections(**options))
    assert not (small_disk / "shards" / "manifest.json").exists()
    finished = inodes(small_disk / "shards")
    assert finished
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    write_shards(small_disk / "shards", **sections(**options))
    assert contents(small_disk / "shards") == contents(whole.path)
    assert inodes(small_disk / "shards").items() >= finished.items()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without permission")
def test_a_folder_that_may_not_be_written_ends_in_one_line(tmp_path, options):
    for folder in [tmp_path, *tmp_path.parents]:
        if "pytest" in str(folder):  # pytest's own folders are private to the user who runs it
            folder.chmod(0o755)
    write_shards(tmp_path / "warm", **sections(**options))  # tokens are in the cache: the folder is all that is refused
    before = "import os, pyarrow.parquet, pipeline.shards.write; os.setuid(65534)"
    said = write_apart(tmp_path / "shards", options, before)
    assert said.startswith(f"refused: {tmp_path / 'shards'}")
    assert "cannot be written: Permission denied. Choose another shards.path" in said
    assert said.count("\n") == 1
    assert "finished" not in write_apart(tmp_path / "warm", options, before), "a finished data set is only read"


def test_a_plan_is_there_before_the_old_manifest_goes(tmp_path, options, monkeypatch):
    report = write_shards(tmp_path / "shards", **sections(**options))
    seen = []
    unlink = Path.unlink

    def watched(path, *arguments, **keywords):
        seen.append((path.name, (report.path / ".writing" / "plan.json").exists()))
        unlink(path, *arguments, **keywords)

    with lock_folder(report.path, "1" * 64, overwrite=True) as lock:
        monkeypatch.setattr(Path, "unlink", watched)
        prepare_folder(lock, set())
        monkeypatch.undo()
    assert ("manifest.json", True) in seen
    assert all(has_plan for _, has_plan in seen)


def test_a_corpus_takes_no_text_from_what_this_program_wrote(cli, tmp_path):
    (tmp_path / "a.txt").write_text("some words to read " * 100)
    (tmp_path / "b.jsonl").write_text('{"text": 5}\n' + '{"text": "a line"}\n' * 200)
    common = ("corpus.path=.", "tokenizer=bytes", "stages=[write]", "corpus.max_bad_fraction=0.1")
    for corpus, found in (("text", "1 document "), ("jsonl", "200 documents")):
        for number in range(2):
            done = cli(f"corpus={corpus}", *common, "window.max_length=16", f"shards.path=sets/{corpus}")
            assert done.returncode == 0, done.stderr
            assert found in done.stdout
            assert number == 0 or "up to date: " in done.stdout
    assert cli("-m", "corpus=text", *common, "window.max_length=16,8").returncode == 0
    assert list(tmp_path.rglob("output.txt"))
    done = cli("corpus=text", *common, "corpus.path=**/*", "window.max_length=12", "corpus.max_bad_fraction=1")
    assert "2 documents" in done.stdout, "a glob: a.txt and b.jsonl"


def test_a_lost_card_comes_back_and_so_does_the_list_of_bad_documents(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": 5}\n' + '{"text": "a line of text"}\n' * 200)
    given = {"corpus": "jsonl", "corpus_path": str(tmp_path / "in.jsonl"), "tokenizer": "bytes", "max_length": 8}
    folder = write_shards(tmp_path / "shards", **sections(cache_path=tmp_path / "cache", **given)).path
    whole = contents(folder)
    for name in ("README.md", "quarantine.jsonl"):
        (folder / name).unlink()
        before = inodes(folder)
        assert not write_shards(folder, **sections(cache_path=tmp_path / "cache", **given)).finished_before
        assert contents(folder) == whole
        assert inodes(folder) == before
    assert write_shards(folder, **sections(cache_path=tmp_path / "cache", **given)).finished_before


def test_paths_that_cannot_become_a_folder_are_named_with_their_key(tmp_path, options):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "data").write_text("mine")
    cases = [
        ({}, "file", r"file.*: cannot be created or read: (Not a directory|File exists)\. Choose another shards\.path"),
        ({}, "file/below", r"file.*: cannot be created or read: Not a directory\. Choose another shards\.path"),
        ({}, "shards", r"shards contains 'data', which is not part of a data set; choose another shards\.path"),
        ({"cache_path": "/dev/null/x"}, "new", r"/dev/null/x.*: cannot be created .*\. Choose another cache\.path"),
        ({"cache_path": "/proc/x"}, "new", r"/proc/x.*: cannot be created .*\. Choose another cache\.path"),
    ]
    for more, name, message in cases:
        with pytest.raises(ValueError, match=message):
            write_shards(tmp_path / name, **sections(**{**options, **more}))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_plan_is_named_and_overwriting_gets_over_it(tmp_path, options, interrupted, content):
    (interrupted / ".writing" / "plan.json").write_text(content)
    with pytest.raises(ValueError, match=r"finished shards of a data set .*plan\.json is damaged\. Choose another"):
        write_shards(interrupted, **sections(**options))
    write_shards(interrupted, **sections(**options, overwrite=True))
    assert contents(interrupted) == contents(write_shards(tmp_path / "whole", **sections(**options)).path)


def lay(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


# Where one of the data set's own files or folders belongs lies a link: its name, and what is there before.
LINKS = {
    "the lock": ".writing/lock",
    "the working folder": ".writing",
    "the plan": ".writing/plan.json",
    "a shard that is being written": ".writing/train-00000-of-00020.parquet",
    "the folder of shards": "data",
    "a shard": "data/train-00000-of-00020.parquet",
    "the manifest": "manifest.json",
    "the card": "README.md",
    "the list of rejected documents": "quarantine.jsonl",
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("place", ["new", "another data set"])
@pytest.mark.parametrize("case", LINKS)
def test_a_link_where_a_file_of_ours_belongs_is_refused_and_leads_no_write_outside(
    tmp_path, options, case, place, overwrite
):
    home = lay(tmp_path / "home", {"notes.txt": "mine", "train-00000-of-00020.parquet": "mine"})
    folder = tmp_path / "shards"
    if place != "new":
        write_shards(folder, **sections(**{**options, "max_length": 30}))
    link = folder / LINKS[case]
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(home if link.name in ("data", ".writing") else home / "notes.txt")
    before = contents(folder)
    with pytest.raises(
        ValueError, match=rf"{link} is a symbolic link.* remove the link, or choose another shards\.path"
    ):
        write_shards(folder, **sections(**options, overwrite=overwrite))
    assert contents(folder) == before
    assert link.is_symlink()
    assert contents(home) == {"notes.txt": b"mine", "train-00000-of-00020.parquet": b"mine"}


def test_a_hard_link_at_the_locks_name_is_refused_and_not_written_to(tmp_path, options):
    lay(tmp_path, {"notes.txt": "mine"})
    (tmp_path / "shards" / ".writing").mkdir(parents=True)
    (tmp_path / "shards" / ".writing" / "lock").hardlink_to(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="is a hard link to another file; remove it"):
        write_shards(tmp_path / "shards", **sections(**options))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_copy_by_hard_links_keeps_its_bytes_when_the_data_set_is_written_again(tmp_path, options):
    report = write_shards(tmp_path / "shards", **sections(**options))
    whole = contents(report.path)
    shutil.copytree(report.path, tmp_path / "copy", copy_function=os.link)
    write_shards(report.path, **sections(**{**options, "max_length": 30}, overwrite=True))
    assert contents(tmp_path / "copy") == whole


def test_the_folders_that_the_user_names_may_be_links(tmp_path, options):
    whole = write_shards(tmp_path / "whole", **sections(**options))
    (tmp_path / "disk" / "shards").mkdir(parents=True)
    (tmp_path / "disk" / "cache").mkdir()
    (tmp_path / "shards").symlink_to(tmp_path / "disk" / "shards")
    (tmp_path / "my-cache").symlink_to(tmp_path / "disk" / "cache")
    write_shards(tmp_path / "shards", **sections(**{**options, "cache_path": tmp_path / "my-cache"}))
    assert contents(tmp_path / "disk" / "shards") == contents(whole.path)


def test_a_finished_data_set_of_links_is_found_and_nothing_is_written(tmp_path, options):
    whole = write_shards(tmp_path / "whole", **sections(**options))
    for file in contents(whole.path):
        (tmp_path / "hub" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / file).symlink_to(whole.path / file)
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write_shards(tmp_path / "hub", **sections(**options)).finished_before
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before


# Files of the user's with names that this program gives, too.
THEIRS = {
    "quarantine.jsonl": {"quarantine.jsonl": "mine"},
    "README.md": {"README.md": "# My notes"},
    "manifest.json": {"manifest.json": '{"name": "my app"}'},
    ".writing/notes.txt": {".writing/notes.txt": "mine"},
    ".manifest.json.part/x": {".manifest.json.part/x": "mine"},
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", THEIRS)
def test_a_file_of_the_users_with_a_name_of_ours_is_refused_and_kept(tmp_path, options, name, overwrite):
    folder = lay(tmp_path / "shards", THEIRS[name])
    before = contents(folder)
    with pytest.raises(ValueError, match=rf"contains '{name.split('/x')[0]}', which is not part of a data set"):
        write_shards(folder, **sections(**options, overwrite=overwrite))
    assert contents(folder) == before


def test_a_list_of_rejected_documents_that_the_manifest_does_not_know_is_the_users(tmp_path, options):
    report = write_shards(tmp_path / "shards", **sections(**options))
    lay(report.path, {"quarantine.jsonl": "mine"})
    assert write_shards(report.path, **sections(**options)).finished_before
    with pytest.raises(ValueError, match=r"contains 'quarantine\.jsonl', which is not part of a data set"):
        write_shards(report.path, **sections(**{**options, "max_length": 30}, overwrite=True))
    assert (report.path / "quarantine.jsonl").read_text() == "mine"


def test_a_damaged_manifest_is_ours_where_a_card_or_a_plan_says_so(tmp_path, options):
    report = write_shards(tmp_path / "shards", **sections(**options))
    whole = contents(report.path)
    for content in ("{", whole["manifest.json"].decode().replace("32", "31")):
        lay(report.path, {"manifest.json": content})
        with pytest.raises(ValueError, match=r"manifest\.json: .*Choose another shards\.path, or replace it"):
            write_shards(report.path, **sections(**options))
        write_shards(report.path, **sections(**options, overwrite=True))
        assert contents(report.path) == whole


# What killed runs of this and of earlier releases left.
LEFT = (".manifest.json.part", ".README.md.part", ".quarantine.jsonl.0123abcd.part", ".manifest.json-17-0123abcd")
LEFT_AT_WORK = (
    ".writing/plan.json",
    ".writing/.plan.json.part",
    ".writing/train-00003-of-00020.parquet",
    ".writing/train-00003-of-00020.parquet.part",
    ".writing/.train-00003-of-00020.parquet.json.part",
)


@pytest.mark.parametrize("state", ["new", "finished", "another data set"])
def test_what_killed_runs_left_is_removed(tmp_path, options, state):
    folder = tmp_path / "shards"
    if state != "new":
        write_shards(folder, **sections(**{**options, "max_length": 32 if state == "finished" else 30}))
    lay(folder, dict.fromkeys(LEFT + LEFT_AT_WORK, '{"fingerprint": "0"}'))
    write_shards(folder, **sections(**options, overwrite=True))
    assert contents(folder) == contents(write_shards(tmp_path / "whole", **sections(**options)).path)


def test_a_file_system_without_locks_is_named_with_a_way_out(tmp_path, options, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(
        ValueError, match=r"shards/\.writing/lock: this file system cannot lock files \(Function"
    ) as error:
        write_shards(tmp_path / "shards", **sections(**options))
    assert "Choose another shards.path, on a local disk" in str(error.value)


LITTLE_MEMORY = """
import resource, sys
sys.path.insert(0, "tests")
from stops import preload
from support import sections
from pipeline import write_shards
preload()
options = sections(**eval(sys.argv[2]))
write_shards(sys.argv[1] + "-first", **options)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]) * 2**20,) * 2)
try:
    write_shards(sys.argv[1], **{**options, "corpus": ["word " * 2_000_000] * 4, "cache": sys.argv[1] + "-cache"})
    print("done")
except (MemoryError, ValueError) as error:
    print("refused:", error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")
@pytest.mark.parametrize("mebibytes", [0, 4, 20, 50, 90])
def test_little_memory_ends_in_one_line_that_names_keys(tmp_path, options, mebibytes):
    given = repr({**options, "cache_path": str(options["cache_path"]), "workers": 2})
    done = run_python("-c", LITTLE_MEMORY, tmp_path / "shards", given, mebibytes)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("refused: not enough memory")
    assert "executor.workers" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["manifest.json", "README.md", "quarantine.jsonl", ".writing", ".writing/lock", "data"]
)
def test_a_pipe_where_a_file_of_ours_belongs_is_refused_and_nothing_waits_for_it(tmp_path, options, name):
    pipe = tmp_path / "shards" / name
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    assert write_apart(tmp_path / "shards", options).startswith("refused: ")
    assert pipe.is_fifo()
