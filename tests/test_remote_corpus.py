"""A corpus in an object store: found, cut and hashed as local files are, with as few requests as that takes."""

import logging
import random

import pytest

from pipeline import CorpusConfig
from pipeline.corpus import compression, partitions
from pipeline.corpus.corpora import find_partitions
from pipeline.corpus.reader import read_partition
from pipeline.corpus.spool import Spool
from pipeline.storage.open import open_storage


def find(path, cache, *, spool=None, **more):
    corpus = CorpusConfig(path=str(path), **more)
    return find_partitions(corpus, cache=cache, cut_safe=True, workers=2, spool=spool).partitions


def read(found):
    """All text of some partitions, joined."""
    batches = (
        batch
        for one in found
        for batch in read_partition(one, max_document_bytes=1 << 26, on_bad="raise", cut_safe=True)
    )
    return b"".join(bytes(text.as_buffer()) for batch in batches for text in batch.texts).decode()


def put(uri, name, content):
    open_storage(uri).put(name, content.encode(), if_absent=False)


NAMES = ["a b", "100%", "a%20b", "q?x=1", "h#x", "é ü", "plus+", "star*", "b[r]", "a'\"q", "co:lon;", "user:pw@x", "~t"]


@pytest.mark.parametrize("size", [1, 400_000], ids=["small", "large"])
def test_objects_of_any_name_are_read_below_their_prefix(bucket, tmp_path, size):
    for name in NAMES:
        put(bucket, f"names/{name}.txt", f"{name} " * size)
    found = find(f"{bucket}/names", tmp_path, name="text")
    assert sorted(name for one in found for name in one.names) == sorted(f"{name}.txt" for name in NAMES)
    assert read(found) == "".join(f"{name} " * size for name in sorted(NAMES))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "q?x=1"])
def test_an_object_is_found_by_its_name_even_if_that_looks_like_a_glob(bucket, tmp_path, name):
    put(bucket, f"names/{name}.txt", "some text")
    assert read(find(f"{bucket}/names/{name}.txt", tmp_path, name="text")) == "some text"


def test_a_name_that_looks_like_a_query_is_refused_and_the_prefix_proposed(bucket, tmp_path):
    with pytest.raises(ValueError, match=r"an object with \? or # in its name is found by the prefix above it"):
        find(f"{bucket}/names/q?x=1.txt", tmp_path, name="text")


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
@pytest.mark.parametrize("limit", [None, 0, 200_000])
def test_an_object_is_cut_where_a_file_is_wherever_its_lines_end(bucket, tmp_path, monkeypatch, kind, limit):
    monkeypatch.setattr(partitions, "PARTITION_BYTES", 1 << 16)
    monkeypatch.setattr(partitions, "SMALL_BYTES", 1 << 10)
    monkeypatch.setattr(partitions, "KEY_BYTES", 1 << 10)
    monkeypatch.setattr(compression, "RAW_BYTES", 1 << 11)  # a cut is near within 8 KB
    draw = random.Random(0)
    for number in range(4):
        sizes = [int(2 ** draw.uniform(1, 18)) for _ in range(12)]  # some reach over several places
        ends = "\n" if kind == "jsonl" else " "
        content = "".join(f'{{"text": "{"x" * size}"}}{ends}' for size in sizes) + "x" * (200_000 * (number % 2))
        (tmp_path / f"{number}.{kind}").write_text(content)
        open_storage(bucket).put(f"{kind}/{number}.{kind}", tmp_path / f"{number}.{kind}")
    files = [str(tmp_path / f"{number}.{kind}") for number in range(4)]
    local = [one for file in files for one in find(file, tmp_path, name={"txt": "text"}.get(kind, kind))]
    spool = None if limit is None else Spool(limit)
    remote = find(f"{bucket}/{kind}", tmp_path, name={"txt": "text"}.get(kind, kind), spool=spool)
    assert [(one.start, one.stop, one.keys) for one in remote] == [(one.start, one.stop, one.keys) for one in local]
    assert len(local) > 12
    assert all(one.stop is None or one.start < one.stop for one in local)


def test_a_listing_says_enough_to_read_what_it_names(bucket, proxy, tmp_path):
    for number in range(5):
        put(bucket, f"corpus/{number}.txt", f"small {number}")
        put(bucket, f"corpus/large-{number}.txt", f"large {number} " * 200_000)
    put(bucket, "corpus/empty.txt", "")
    proxy.set()
    found = find(f"{bucket}/corpus", tmp_path, name="text", spool=Spool())
    asked = [one.path for one in proxy.log() if one.method == "HEAD"]
    assert all(path.endswith(("/corpus", "/empty.txt")) for path in asked)
    got = [one.path for one in proxy.log() if one.method == "GET" and ".txt" in one.path]
    assert sorted(got) == sorted(set(got))
    assert len([name for one in found for name in one.names]) == 11


@pytest.mark.parametrize("size", [1, 400_000], ids=["small", "large"])
def test_an_object_that_is_replaced_after_it_was_listed_is_noticed(bucket, tmp_path, monkeypatch, size):
    put(bucket, "corpus/a.txt", "one " * size)
    find_objects = partitions.partition_text

    def replace_and_go_on(*args, **more):
        put(bucket, "corpus/a.txt", "two " * size)
        return find_objects(*args, **more)

    monkeypatch.setattr("pipeline.corpus.corpora.partition_text", replace_and_go_on)
    with pytest.raises(ValueError, match="was changed while this run was reading it"):
        find(f"{bucket}/corpus/a.txt", tmp_path, name="text", spool=Spool())


def test_reading_large_objects_shows_its_progress(bucket, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    put(bucket, "corpus/large.txt", "text " * 400_000)
    for spool in (None, Spool(), Spool(0)):
        caplog.clear()
        find(f"{bucket}/corpus", tmp_path, name="text", spool=spool)
        assert [line for line in caplog.messages if line.startswith("read") and "2 of 2 MB (100 %)" in line]
