"""With `corpus.trust_mtime` a file whose name, size and times have not changed is not read to be hashed."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from support import divide_small_files, sections

from pipeline import write_shards
from pipeline.corpus import known_hashes, partitions, small_files, text
from pipeline.corpus.corpora import find_partitions
from pipeline.settings import CorpusConfig
from pipeline.tokens import encode

PAST = 1_600_000_000_000_000_000


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Twenty small files and two that are cut, all written long ago as the clock of this test says."""
    monkeypatch.setattr(partitions, "SMALL_BYTES", 1000)
    monkeypatch.setattr(partitions, "PARTITION_BYTES", 4000)
    for module in (text, partitions, encode):
        monkeypatch.setattr(module, "KEY_BYTES", 64)
    divide_small_files(monkeypatch, 4)
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(22):
        size = 3000 if number in (5, 6) else number
        (folder / f"{number:02}.txt").write_text(f"document {number} " + "word " * size)
    monkeypatch.setattr(known_hashes.time, "time_ns", lambda: time.monotonic_ns() + (1 << 62))
    return folder


@pytest.fixture
def read(monkeypatch):
    """The names of the files that are read to be hashed."""
    names = []
    for module, function in ((small_files, "read_complete"), (partitions, "_read_range")):
        original = getattr(module, function)

        def note(what, *more, original=original):
            names.append(Path(what if isinstance(what, str) else what.files[0].path).name)
            return original(what, *more)

        monkeypatch.setattr(module, function, note)
    return names


def find(folder, tmp_path, **more):
    corpus = CorpusConfig(name="text", path=str(folder), **{"trust_mtime": True, **more})
    return find_partitions(corpus, cache=tmp_path / "cache", cut_safe=True, workers=2).partitions


def test_a_second_run_reads_only_what_changed_and_finds_the_same(files, tmp_path, read):
    expected = find(files, tmp_path, trust_mtime=False)
    assert not (tmp_path / "cache").exists()
    read.clear()
    assert find(files, tmp_path) == expected
    assert len(set(read)) == 22
    read.clear()
    again = find(files, tmp_path)
    assert (again, read) == (expected, [])
    assert sum(len(one.trusted) for one in again) >= 22
    (files / "03.txt").write_text("changed text")
    (files / "new.txt").write_text("more")
    (files / "05.txt").write_text("word " * 3000)
    changed = find(files, tmp_path)
    assert set(read) == {"03.txt", "05.txt", "new.txt"}
    assert changed == find(files, tmp_path, trust_mtime=False)


@pytest.mark.parametrize("change", ["replaced", "rewritten", "copied", "moved"])
def test_the_same_size_and_time_of_writing_do_not_make_a_file_the_same(files, tmp_path, read, change):
    path = files / "04.txt"
    os.utime(path, ns=(PAST, PAST))
    find(files, tmp_path)
    read.clear()
    other = path.read_text().replace("document", "somthing")
    if change == "replaced":
        (files / "other").write_text(other)
        os.utime(files / "other", ns=(PAST, PAST))
        (files / "other").rename(path)
    elif change == "rewritten":
        path.write_text(other)
        os.utime(path, ns=(PAST, PAST))
    elif change == "copied":
        shutil.copytree(files, tmp_path / "copy")
        shutil.rmtree(files)
        (tmp_path / "copy").rename(files)
    else:
        files = files.rename(tmp_path / "moved")
    assert find(files, tmp_path) == find(files, tmp_path, trust_mtime=False)
    assert set(read) >= ({"04.txt"} if change in ("replaced", "rewritten") else {"03.txt", "05.txt", "21.txt"})


def test_a_file_written_just_before_the_run_is_hashed_again(files, tmp_path, read, monkeypatch):
    monkeypatch.setattr(known_hashes.time, "time_ns", lambda: (files / "04.txt").stat().st_mtime_ns + 10**9)
    find(files, tmp_path)
    read.clear()
    find(files, tmp_path)
    assert len(set(read)) == 22


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "gone", "not_text"])
def test_damaged_hashes_are_not_used(files, tmp_path, read, damage):
    expected = find(files, tmp_path)
    (kept,) = (tmp_path / "cache" / "files").glob("*.hashes")
    content = kept.read_bytes()
    damaged = {
        "cut": content[:-10],
        "changed": content.replace(b"0", b"1", 40),
        "empty": b"",
        "not_text": b"\xff" + content,
    }
    kept.write_bytes(damaged.get(damage, b""))
    if damage == "gone":
        kept.unlink()
    read.clear()
    assert find(files, tmp_path) == expected
    assert len(set(read)) == 22


def keep(path, known):
    """Write known hashes as the module does."""
    content = json.dumps(known).encode() + b"\n"
    path.write_bytes(known_hashes._sum(content) + b"\n" + content)  # noqa: SLF001


def test_hashes_of_an_earlier_release_are_not_used(files, tmp_path, read):
    expected = find(files, tmp_path)
    (kept,) = (tmp_path / "cache" / "files").glob("*.hashes")
    known = json.loads(kept.read_bytes().split(b"\n")[1])
    paths, *columns = known["files"]
    before = {path: [*row[:-1], {"": row[-1]}] for path, *row in zip(paths, *columns, strict=True)}
    for other in (before, {**known, "format": 3}, {**known, "format": 1}):
        keep(kept, other)
        read.clear()
        assert find(files, tmp_path) == expected
        assert len(set(read)) == 22


def test_a_false_hash_never_gets_tokens(files, tmp_path):
    options = sections(cache_path=tmp_path / "cache", corpus="text", corpus_path=files, tokenizer="bytes", max_length=8)
    options["corpus"].trust_mtime = True
    first = write_shards(tmp_path / "first", **options)
    assert "trust_mtime" not in json.dumps(first.manifest.config)
    shutil.rmtree(tmp_path / "cache" / "chunks")
    for name in ("04.txt", "05.txt"):
        path, content = files / name, (files / name).read_text()
        (kept,) = (tmp_path / "cache" / "files").glob("*.hashes")
        path.write_text("X" + content[1:])  # and what is known now says that this is the old content
        known = json.loads(kept.read_text().split("\n")[1])
        status = path.stat()
        paths, _, written, changed, *_ = known["files"]
        number = paths.index(str(path))
        written[number], changed[number] = status.st_mtime_ns, status.st_ctime_ns
        keep(kept, known)
        with pytest.raises(ValueError, match=rf"{name}: was changed, but its size and its times.*`touch` the file"):
            write_shards(tmp_path / "second", **options)
        path.touch()
        assert write_shards(tmp_path / "second", **options).chunks_made > 0
        shutil.rmtree(tmp_path / "cache" / "chunks")
        shutil.rmtree(tmp_path / "second")
