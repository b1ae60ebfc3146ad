"""The token store with audits, rejected documents, kills and other runs: each chunk is made once and intact."""

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import signal
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import run_program, sections

from pipeline import read_manifest, write_shards
from pipeline.base.atomic import part_of
from pipeline.corpus import partitions
from pipeline.corpus.corpora import find_partitions
from pipeline.executor.local import LocalExecutor
from pipeline.settings import CorpusConfig, SplitConfig
from pipeline.tokenizer import audit
from pipeline.tokenizer.load import load_tokenizer
from pipeline.tokens import encode
from pipeline.tokens.chunk import chunk_text, find_chunk, npy_header
from pipeline.tokens.chunk_writer import LONG_TOKENS, ChunkWriter, join_documents, remove_leftovers
from pipeline.tokens.encode import tokenize
from pipeline.tokens.source_counts import TOTALS
from pipeline.tokens.store import open_store

LINES = [json.dumps({"text": f"Line {n} says {n * n} in many words. " * (1 + n % 9)}) for n in range(900)]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A file of JSON lines that is cut into many splits."""
    monkeypatch.setattr(partitions, "PARTITION_BYTES", 8000)
    monkeypatch.setattr(partitions, "SMALL_BYTES", 1)
    (tmp_path / "in.jsonl").write_text("\n".join(LINES))
    return tmp_path / "in.jsonl"


def run(path, cache, *, encoder=None, workers=2, fraction=0.001, validation=0.0, seed=0, **rules):
    encoder = encoder or load_tokenizer("bytes")
    corpus = CorpusConfig(name="jsonl", path=path, **rules)
    store, origins = tokenize(
        find_partitions(corpus, cache=cache, cut_safe=encoder.cut_safe, workers=workers).partitions,
        cache=cache,
        tokenizer=encoder,
        corpus=corpus,
        split=SplitConfig(validation=validation, seed=seed),
        audit=fraction,
        executor=LocalExecutor(workers),
        advance=lambda _: None,
    )
    return store, {name: origins[name] for name in ("made", "mended", "found") if origins[name]}


def contents(cache):
    """Every file of the chunks and stores, with its bytes."""
    return {file.relative_to(cache): file.read_bytes() for file in cache.rglob("*") if file.is_file()}


def in_a_child(task):
    """Run a task in a copy of this process, and return the copy's number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads that the copy lacks: it needs none of them
        child = os.fork()
    if child:
        return child
    signal.alarm(300)  # rather than wait for ever
    try:
        task()
    finally:
        os._exit(0)


def test_two_runs_at_once_on_one_cache_do_not_harm_each_other(corpus, tmp_path):
    run(corpus, tmp_path / "calm")
    children = [in_a_child(lambda: run(corpus, tmp_path / "shared")) for _ in range(3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert contents(tmp_path / "shared") == contents(tmp_path / "calm")


def test_two_threads_that_make_one_chunk_both_get_it(corpus, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: run(corpus, tmp_path / "shared", workers=1)[0], range(4)))
    assert all(store.chunks == stores[0].chunks for store in stores)


def test_leftovers_are_removed_when_their_process_is_gone_and_only_then(tmp_path):
    options = {"units": ["c" * 64], "dtype": np.dtype(np.uint16), "end_of_text": 256}
    ChunkWriter(tmp_path, "a" * 64, **options)  # of a run that is alive: this one
    child = in_a_child(lambda: ChunkWriter(tmp_path, "b" * 64, **options))
    os.waitpid(child, 0)
    assert len(list((tmp_path / "chunks").iterdir())) == 4
    remove_leftovers(tmp_path)
    left = sorted(path.name for path in (tmp_path / "chunks").iterdir())
    assert [name[:3] for name in left] == [".aa", ".aa"]
    lock = os.open(tmp_path / "chunks" / left[1], os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)


def test_a_caches_mark_that_a_kill_has_truncated_is_written_again(corpus, tmp_path):
    run(corpus, tmp_path / "cache")
    mark = tmp_path / "cache" / "CACHEDIR.TAG"
    whole = mark.read_bytes()
    mark.write_bytes(b"")
    run(corpus, tmp_path / "cache", fraction=0.0, validation=0.5)
    assert mark.read_bytes() == whole
    part = tmp_path / "cache" / ".CACHEDIR.TAG.part"
    part.write_bytes(b"Signa")  # of a second thread, killed behind the first
    run(corpus, tmp_path / "cache", fraction=0.0, validation=0.5)  # which makes no chunk
    assert (mark.read_bytes(), part.exists()) == (whole, False)


def test_a_failed_task_leaves_no_file(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": 5}\n')
    with pytest.raises(ValueError, match=r"in\.jsonl, line 2: not_string"):
        run(tmp_path / "in.jsonl", tmp_path / "cache", on_bad="raise")
    assert list((tmp_path / "cache" / "chunks").iterdir()) == []


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 4
    file.write_bytes(content)


DAMAGE = {
    "a file that is cut short": lambda folder: os.truncate(folder / "train.npy", 300),
    "a flipped bit among the IDs": lambda folder: flip(folder / "train.npy", 777),
    "a flipped bit in the header": lambda folder: flip(folder / "train.npy", 20),
    "a flipped bit in the table of documents": lambda folder: flip(folder / "documents.npy", -5),
    "a flipped bit in the quarantine": lambda folder: flip(folder / "quarantine.jsonl", 30),
    "a file that is gone": lambda folder: (folder / "documents.npy").unlink(),
    "no chunk.json": lambda folder: (folder / "chunk.json").unlink(),
    "no JSON": lambda folder: (folder / "chunk.json").write_text("{"),
    "another kind of JSON": lambda folder: (folder / "chunk.json").write_text("[]"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_chunk_is_made_again_and_refused_to_readers(case, corpus, tmp_path):
    corpus.write_text('{"text": 5}\n' + corpus.read_text())
    cache = tmp_path / "cache"
    store, origins = run(corpus, cache)
    assert origins == {"made": len(store.chunks)}
    whole = contents(cache)
    (file,) = (cache / "stores").iterdir()
    DAMAGE[case](cache / "chunks" / store.chunks[0].id)

    def read_all():
        opened = open_store(file)
        stream = opened.stream("train")
        return stream.read(0, len(stream)), opened.documents("train")

    if "quarantine" not in case:  # it is for people
        with pytest.raises(ValueError, match=rf"chunks/{store.chunks[0].id}: its .*; remove this folder: the next"):
            read_all()
    again, origins = run(corpus, cache)
    assert origins == {"mended": 1, "found": len(store.chunks) - 1}
    assert contents(cache) == whole
    assert again == store
    assert read_all()[0].tolist() == store.stream("train").read(0, len(store.stream("train"))).tolist()


def test_runs_that_mend_one_chunk_at_once_all_get_an_intact_one(corpus, tmp_path):
    store, _ = run(corpus, tmp_path / "cache")
    whole = contents(tmp_path / "cache")
    for chunk in store.chunks:
        flip(tmp_path / "cache" / "chunks" / chunk.id / "train.npy", 500)
    children = [in_a_child(lambda: run(corpus, tmp_path / "cache")) for _ in range(3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert contents(tmp_path / "cache") == whole


def test_a_run_that_is_killed_while_it_mends_a_chunk_leaves_nothing_that_stays(corpus, tmp_path, monkeypatch):
    store, _ = run(corpus, tmp_path / "cache", workers=1)
    whole = contents(tmp_path / "cache")
    flip(tmp_path / "cache" / "chunks" / store.chunks[0].id / "train.npy", 500)

    def mend():
        monkeypatch.setattr("pipeline.tokens.chunk_writer.forget_files", lambda: os._exit(0))
        run(corpus, tmp_path / "cache", workers=1)

    os.waitpid(in_a_child(mend), 0)
    assert len(contents(tmp_path / "cache")) > len(whole), "the damaged chunk lies aside"
    assert run(corpus, tmp_path / "cache")[1] == {"found": len(store.chunks)}
    assert contents(tmp_path / "cache") == whole


def test_a_changed_store_file_is_no_store(corpus, tmp_path):
    run(corpus, tmp_path)
    (path,) = (tmp_path / "stores").iterdir()
    fields = json.loads(path.read_text())
    for content in ("[]", "{", "{}", json.dumps(fields | {"chunks": fields["chunks"][1:]})):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"stores/.*\.json: (is not a token store|was changed)"):
            open_store(path)


def test_the_store_names_its_tokenizer_and_refuses_chunks_of_another(corpus, tmp_path):
    store, _ = run(corpus, tmp_path)
    (path,) = (tmp_path / "stores").iterdir()
    assert {chunk.tokenizer for chunk in open_store(path).chunks} == {load_tokenizer("bytes").hash}
    file = tmp_path / "chunks" / store.chunks[3].id / "chunk.json"
    file.write_text(chunk_text(dataclasses.replace(store.chunks[3], tokenizer="f" * 64)))
    with pytest.raises(ValueError, match=r"was made with the tokenizer ffff.*, but the store with bytes \("):
        open_store(path)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("count", [0, 1, 10**6, 10**17])
def test_the_header_of_ids_is_numpys(dtype, count, tmp_path):
    header = npy_header(np.dtype(dtype), count)
    assert len(header) == 128
    with (tmp_path / "a.npy").open("w+b") as file:
        file.write(header)
        file.seek(0)
        assert np.lib.format.read_magic(file) == (1, 0)
        assert np.lib.format.read_array_header_1_0(file) == ((count,), False, np.dtype(dtype))


@pytest.mark.slow
def test_the_cross_check_is_part_of_every_run_and_the_same_for_any_number_of_workers(corpus, tmp_path):
    encoder = load_tokenizer("gpt2")
    if not encoder.audited:
        pytest.skip("the extra `fast` is not installed")
    one, _ = run(corpus, tmp_path / "one", encoder=encoder, workers=1)
    two, _ = run(corpus, tmp_path / "two", encoder=encoder, workers=3)
    assert [chunk.audited for chunk in one.chunks] == [chunk.audited for chunk in two.chunks]
    assert all(chunk.audited >= audit.AT_LEAST for chunk in one.chunks)
    everything, _ = run(corpus, tmp_path / "all", encoder=encoder, fraction=1.0)
    assert sum(chunk.audited for chunk in everything.chunks) == len(LINES)
    nothing, _ = run(corpus, tmp_path / "none", encoder=encoder, fraction=0.0)
    assert sum(chunk.audited for chunk in nothing.chunks) == 0


def test_a_difference_between_the_engines_stops_the_run_with_the_document_and_the_token(corpus, tmp_path):
    encoder = load_tokenizer("gpt2")
    if not encoder.audited:
        pytest.skip("the extra `fast` is not installed")

    def lies(texts):
        ids, counts = encoder.encode_batch(texts)
        wrong = ids.copy()
        wrong[2] += 1
        return wrong, counts

    liar = dataclasses.replace(encoder, _encode=lies)
    with pytest.raises(ValueError, match=r"in\.jsonl, line \d+ is encoded differently by tiktoken: token 2 is \d+"):
        run(corpus, tmp_path / "cache", encoder=liar, fraction=1.0)
    assert list((tmp_path / "cache" / "chunks").iterdir()) == []


def test_a_fraction_of_the_documents_is_compared_in_full():
    chosen = [audit.choose_documents(1000, fraction=0.05, seed=seed, at_least=3) for seed in range(100)]
    assert 4500 < sum(len(in_full) for in_full, _ in chosen) < 5500
    assert all(len(starts) == 3 and not set(in_full) & set(starts) for in_full, starts in chosen)
    assert len({tuple(in_full) for in_full, _ in chosen}) == 100
    assert audit.choose_documents(2, fraction=1e-9, seed=3, at_least=3) == ([], [0, 1])


def test_special_tokens_in_the_text_are_counted_and_errors_name_the_source(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": "b <|endoftext|> c <|endoftext|>"}\n')
    for special_text in ("literal", "control"):
        encoder = load_tokenizer("gpt2", special_text=special_text)
        store, _ = run(tmp_path / "in.jsonl", tmp_path / special_text, encoder=encoder)
        assert sum(chunk.special_text_found for chunk in store.chunks) == 2
    with pytest.raises(ValueError, match=r"in\.jsonl, line 2 contains the special token <\|endoftext\|> at char"):
        run(tmp_path / "in.jsonl", tmp_path / "c", encoder=load_tokenizer("gpt2", special_text="error"))


def test_a_hopeless_corpus_is_given_up_early(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "HOPELESS", 5)
    corpus.write_text(corpus.read_text().replace('"text"', '"body"'))
    with pytest.raises(ValueError, match=r"are rejected \(\d+ missing\).*in\.jsonl, line 1: .*fields are 'body'"):
        run(corpus, tmp_path / "cache", workers=1)
    assert len(list((tmp_path / "cache" / "chunks").iterdir())) < 5


def test_a_data_set_lists_its_bad_documents_in_one_file(corpus, tmp_path):
    with corpus.open("a") as file:
        file.write('\n{"text": 5}\n{"text": "a\\ud800"}\n{"text": null')
    report = write_shards(
        tmp_path / "shards",
        **sections(
            cache_path=tmp_path / "cache", corpus="jsonl", corpus_path=str(corpus), tokenizer="bytes", max_length=64
        ),
    )
    assert read_manifest(report.path).corpus["bad"] == {"not_json": 1, "not_string": 1, "not_unicode": 1}
    found = [json.loads(line) for line in (report.path / "quarantine.jsonl").read_text().splitlines()]
    assert [(bad["source"], bad["place"], bad["row"], bad["reason"]) for bad in found] == [
        ("in.jsonl", f"line {len(LINES) + more}", len(LINES) + more - 1, reason)
        for more, reason in [(1, "not_string"), (2, "not_unicode"), (3, "not_json")]
    ]
    assert found[0]["head"] == '{"text": 5}'
    again = {"corpus": "jsonl", "corpus_path": str(corpus), "tokenizer": "bytes", "max_length": 64}
    assert write_shards(tmp_path / "shards", **sections(cache_path=tmp_path / "cache", **again)).finished_before
    with pytest.raises(ValueError, match=r"3 of 903 .* are rejected .* line 901: .* All are listed in .*shards/quar"):
        write_shards(tmp_path / "shards", **sections(cache_path=tmp_path / "cache", max_bad_fraction=0.001, **again))
    with pytest.raises(ValueError, match=r"3 of 903 documents are rejected .* All are listed in (.*)") as refusal:
        write_shards(tmp_path / "other", **sections(cache_path=tmp_path / "cache", max_bad_fraction=0.001, **again))
    assert len(Path(str(refusal.value).rpartition(" in ")[2]).read_text().splitlines()) == 3
    assert not (tmp_path / "other").exists()


def test_settings_that_change_no_row_leave_a_finished_data_set_finished(corpus, tmp_path):
    def write(**more):
        common = {"corpus": "jsonl", "corpus_path": str(corpus), "tokenizer": "bytes", "max_length": 64}
        return write_shards(tmp_path / "shards", **sections(cache_path=tmp_path / "cache", **{**common, **more}))

    assert not write().finished_before
    assert write(on_bad="raise").finished_before
    assert write(split_seed=1).finished_before
    with pytest.raises(ValueError, match="another data set"):
        write(validation=0.1)
    with corpus.open("a") as file:
        file.write('\n{"text": 5}')
    with pytest.raises(ValueError, match=r"in\.jsonl, line 901: not_string: .*\. Mend or remove it, or set"):
        write(on_bad="raise", overwrite=True)
    assert write(overwrite=True).chunks_made == 1
    for made_before in (True, False):  # in the data set, in the cache
        path = {} if made_before else {"max_length": 32}
        with pytest.raises(ValueError, match=r"in\.jsonl, line 901: not_string: .*\. Mend or remove it"):
            write(on_bad="raise", overwrite=True, **path)


def test_a_corpus_without_a_usable_document_says_why(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"body": "a"}\n{"text": 5}\n')
    with pytest.raises(
        ValueError, match=r"none of 2 documents is usable \(1 missing, 1 not_string\); the first is .*in"
    ):
        write_shards(
            tmp_path / "shards",
            **sections(
                cache_path=tmp_path / "cache",
                corpus="jsonl",
                corpus_path=str(tmp_path / "in.jsonl"),
                max_bad_fraction=1.0,
            ),
        )


def test_the_command_line_takes_each_corpus_and_tokenizer(cli, corpus, tmp_path):
    done = cli("stages=[write]", "corpus=jsonl", f"corpus.path={corpus}", "tokenizer=gpt2", "tokenizer.audit=0.01")
    assert done.returncode == 0, done.stderr
    assert "900 documents" in done.stdout
    refused = cli("corpus=jsonl", f"corpus.path={corpus}", "corpus.text_field=")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "corpus.text_field: must not be empty" in refused.stderr
    assert "corpus.path: corpus=parquet needs a file" in cli("corpus=parquet").stderr
    assert "corpus.path: corpus=huggingface needs one folder or hub name" in cli("corpus=huggingface").stderr


def test_without_datasets_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install datasets"):
        find_partitions(CorpusConfig(name="huggingface", path="no/such"), cache=tmp_path, cut_safe=True, workers=1)


@given(
    documents=st.lists(
        st.tuples(st.sampled_from([0, 1, 3, 2 * LONG_TOKENS, 3 * LONG_TOKENS]), st.booleans()), max_size=6
    )
)
def test_chosen_documents_are_joined_with_an_end_after_each(documents):
    counts, chosen = (np.array([one[at] for one in documents], kind) for at, kind in enumerate((np.int64, bool)))
    ids = np.arange(counts.sum(), dtype=np.uint16)
    expected, firsts = [], []
    for part, is_chosen in zip(np.split(ids, np.cumsum(counts))[: len(counts)], chosen, strict=True):
        if is_chosen:
            firsts.append(len(expected))
            expected += [*part.tolist(), 60000]
    joined, found = join_documents(ids, counts, chosen, end_of_text=60000)
    assert (joined.tolist(), found.tolist(), joined.dtype) == (expected, firsts, np.uint16)


def test_chunks_of_segments_by_eye(tmp_path):
    def add(writer, ids, **more):
        totals = np.array([(0, len(ids), 0, 0)], TOTALS)
        writer.add_segment(np.array(ids, np.uint16), held_out=0, source=0, row=0, totals=totals, **more)

    with ChunkWriter(tmp_path, "a" * 64, units=["b" * 64], dtype=np.dtype(np.uint16), end_of_text=9) as writer:
        add(writer, [1, 2], continued=False, is_last=False)
        writer.drop_document()
        add(writer, [3], continued=False, is_last=True)
        add(writer, [4, 5], continued=False, is_last=False)
        chunk = writer.finish(tokenizer="t")
    assert np.load(tmp_path / "chunks" / chunk.id / "train.npy").tolist() == [3, 9, 4, 5]
    assert (chunk.num_documents, chunk.tokens, chunk.bytes) == (
        {"train": 2, "validation": 0},
        {"train": 4, "validation": 0},
        3,
    )
    assert find_chunk(tmp_path, chunk.id) == chunk


READ_ONLY = """
import os, sys
sys.path.insert(0, "tests")
from support import run_python, sections
from stops import preload
from pipeline import write_shards
import pipeline.shards.write
preload()
os.umask(0o022)
os.setuid(65534)
for name, options in eval(sys.argv[2]).items():
    try:
        report = write_shards(f"{sys.argv[1]}/{name}", **sections(**options))
        print("made", report.chunks_made)
    except ValueError as error:
        print("refused:", error)
"""


@pytest.fixture
def shared():
    """A cache that another user has filled, in a folder that all may enter; and a folder for this user's data sets."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are private to the user who runs it
        yield _fill_shared(Path(folder))


def _fill_shared(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "in.jsonl").write_text('{"text": 5}\n' + "\n".join(LINES[:200]))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o1777)
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets").chmod(0o777)
    options = {"corpus": "jsonl", "corpus_path": str(tmp_path / "in.jsonl"), "tokenizer": "bytes", "max_length": 64}
    options["cache_path"] = str(tmp_path / "cache")
    write_shards(tmp_path / "first", **sections(**options))
    return tmp_path, options


def write_as_nobody(shared, **runs):
    tmp_path, options = shared
    runs = {name: {**options, **more} for name, more in runs.items()}
    done = run_program("-c", READ_ONLY, tmp_path / "sets", repr(runs))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without permission")


@pytest.mark.slow
@ONLY_ROOT
@pytest.mark.parametrize("mode", [0o555, 0o1777])
def test_a_complete_cache_of_another_user_is_read_and_not_written(shared, mode):
    cache = shared[0] / "cache"
    cache.chmod(mode)
    before = {path: path.lstat().st_mtime_ns for path in cache.rglob("*")}
    assert write_as_nobody(shared, same={}, other={"max_length": 32}) == ["made 0", "made 0"]
    assert {path: path.lstat().st_mtime_ns for path in cache.rglob("*")} == before


@pytest.mark.slow
@ONLY_ROOT
@pytest.mark.parametrize("lost", ["stores", "quarantine", "CACHEDIR.TAG"])
def test_chunks_are_enough_where_nothing_can_be_written(shared, lost):
    path = shared[0] / "cache" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    (shared[0] / "cache").chmod(0o555)
    assert write_as_nobody(shared, same={}) == ["made 0"]


@ONLY_ROOT
def test_where_the_cache_must_be_written_and_may_not_one_line_names_the_key(shared):
    (line,) = write_as_nobody(shared, more={"validation": 0.5})
    assert line.startswith(f"refused: {shared[0] / 'cache' / 'chunks'}")
    assert line.endswith("cannot be written: Permission denied. Choose another cache.path")


@pytest.mark.slow
@ONLY_ROOT
def test_what_another_users_killed_run_has_left_stops_nobody(shared):
    cache = shared[0] / "cache"
    (store,) = (cache / "stores").iterdir()
    left = [part_of(store), part_of(cache / "CACHEDIR.TAG"), cache / "chunks" / f".{'a' * 64}-{'0' * 32}.lock"]
    for path in left:
        path.touch()
        path.chmod(0o600)
    (cache / "chunks" / f".{'a' * 64}-{'0' * 32}").mkdir(mode=0o700)
    assert write_as_nobody(shared, same={}, other={"max_length": 32}) == ["made 0", "made 0"]
    for name in ("chunks", "stores", "quarantine"):
        (cache / name).chmod(0o1777)
    assert write_as_nobody(shared, more={"validation": 0.5}) == ["made 1"]
    assert all(path.exists() for path in left)


def test_the_cache_is_written_through_no_link(corpus, tmp_path):
    home = tmp_path / "home"
    (home / "below").mkdir(parents=True)
    (home / "notes.txt").write_text("mine")
    for number, name in enumerate(("chunks", "stores", "quarantine")):
        cache = tmp_path / f"cache-{number}"
        cache.mkdir()
        (cache / ".CACHEDIR.TAG.part").symlink_to(home / "notes.txt")
        (cache / name).symlink_to(home / "below")
        corpus.write_text('{"text": 5}\n' + "\n".join(LINES))
        with pytest.raises(ValueError, match=f"{cache / name} is a symbolic link, and nothing is written through"):
            run(corpus, cache)
    assert {path.relative_to(home).as_posix() for path in home.rglob("*")} == {"below", "notes.txt"}
    assert (home / "notes.txt").read_text() == "mine"


def test_a_damaged_chunk_that_is_a_link_is_not_replaced(corpus, tmp_path):
    store, _ = run(corpus, tmp_path / "cache")
    chunk = tmp_path / "cache" / "chunks" / store.chunks[0].id
    chunk.rename(tmp_path / "elsewhere")
    chunk.symlink_to(tmp_path / "elsewhere")
    assert run(corpus, tmp_path / "cache")[1] == {"found": len(store.chunks)}
    flip(tmp_path / "elsewhere" / "train.npy", 500)
    before = contents(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"{chunk}: its train\.npy .* it is a symbolic link: remove it"):
        run(corpus, tmp_path / "cache")
    assert contents(tmp_path / "elsewhere") == before


def test_only_what_has_exactly_our_names_is_removed_from_a_cache(corpus, tmp_path):
    run(corpus, tmp_path / "cache")
    whole = contents(tmp_path / "cache")
    chunks = tmp_path / "cache" / "chunks"
    a, b = "a" * 64, "b" * 64
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "notes.txt").write_text("mine")
    kept = ["..lock", "...lock", ".lock", f".{a[:-1]}.lock", f".{a.upper()}.lock", f"{a}.lock", f".{a}-x.lock"]
    for name in kept:
        (chunks / name).touch()
    (chunks / ".my-folder").mkdir()
    (chunks / f".{b}").symlink_to(tmp_path / "home")  # the name is ours, but we make no links
    for name in (".notes.txt.part", f".{a}.txt.part", f"{a}.json.part"):
        (tmp_path / "cache" / "stores" / name).touch()
    for name in (f".{a}.json.part", f".{a}.json.0123abcd.part", f".{a}.json-17-0123abcd"):  # of killed runs
        (tmp_path / "cache" / "stores" / name).touch()
    gone = [f".{a}.lock", f".{a}-{'0' * 32}.lock"]
    for name in gone:
        (chunks / name).touch()
    for name in (f".{a}", f".{a}-{'1' * 32}"):
        (chunks / name).mkdir()
        (chunks / name / "train.npy").touch()
    remove_leftovers(tmp_path / "cache")
    made = {path.parts[1] for path in whole if path.parts[0] == "chunks"}
    assert {path.name for path in chunks.iterdir()} == {*kept, *made, ".my-folder", f".{b}"}
    stores = {path.name for path in (tmp_path / "cache" / "stores").iterdir()}
    assert stores == {*(path.name for path in whole if path.parts[0] == "stores"), ".notes.txt.part"} | {
        f".{a}.txt.part",
        f"{a}.json.part",
    }
    assert (tmp_path / "home" / "notes.txt").read_text() == "mine"


def test_a_file_system_without_locks_is_named_with_the_caches_key(tmp_path, monkeypatch):
    calls = []

    def flock(*_):
        calls.append(1)
        if len(calls) > 1:  # the data set's folder has locks
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(ValueError, match=r"\.lock: this file system cannot lock files .* Choose another cache\.path"):
        write_shards(tmp_path / "shards", corpus=["some text"] * 9, tokenizer="bytes", cache=tmp_path / "cache")
