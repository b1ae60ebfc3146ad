"""Laws of the tokenizers: all engines give tiktoken's IDs, no text is lost, equal hashes mean equal IDs."""

import base64
import doctest
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import regex
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import read_ranks, run_python
from tiktoken_ext import openai_public

import pipeline.settings
from pipeline.settings import SPECIAL_TEXTS, ExecutorConfig
from pipeline.shards.job import shares_encoder
from pipeline.tokenizer import engines, load, rank_files
from pipeline.tokenizer.engines import DocumentError
from pipeline.tokenizer.load import load_tokenizer
from pipeline.tokenizer.rank_files import END_OF_TEXT, PACKAGED_RANKS, PATTERNS, PUBLISHED

# The hash of GPT-2's tokenizer, recorded by every data set written with it: it must never change.
GPT2_HASH = "1ec7ffffbd66e7826a9949c2a369a186ecd7c7d9dddb478ace0454bed79662e7"

HAS_GIGATOKEN = importlib.util.find_spec("gigatoken") is not None
needs_gigatoken = pytest.mark.skipif(not HAS_GIGATOKEN, reason="the extra `fast` is not installed")
ENGINES_HERE = ["tiktoken", *(["gigatoken"] if HAS_GIGATOKEN else [])]
SPECIAL_NAMES = sorted({name for known in PUBLISHED.values() for name in known.special_tokens})

# Texts that pretokenizers treat differently, so that short examples reach every branch of the patterns.
SNIPPETS = [
    *SPECIAL_NAMES, "<|", "|>", "<|endof", "text|>", "<", "|", "/", "'", "'s", "'S", "'\u017f", "'ll", "'LL", "'re",
    "\u2019t", " ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\x00", "\x0b", "\x1c", "\x85", "\xa0", "\u2003", "\u3000",
    "\u200b", "\ufeff", "a", "Z", "word", "Word", "WORD", "iPhone", "\u01c5", "\u02b0", "\xe9", "e\u0301", "\u0301",
    "\xdf", "\u0130", "\u6f22\u5b57", "\u0e01", "\u0915\u094d", "1", "12345", "\u0660", "\xbd", "\u2167", "+", "...",
    "\U0001f642", "\U0001f468\u200d\U0001f469", "\U0010ffff", "\ue000",
]  # fmt: skip
runs = st.builds(lambda snippet, count: snippet * count, st.sampled_from(SNIPPETS), st.integers(1, 40))
texts = st.lists(st.one_of(st.sampled_from(SNIPPETS), st.text(max_size=8), runs), max_size=12).map("".join)
batches = st.lists(texts, max_size=5)


RANKS = read_ranks(PACKAGED_RANKS)


def gpt2_ranks(pattern: str = "gpt2", special_tokens: dict[str, int] | None = None) -> tiktoken.Encoding:
    """A tiktoken encoding made apart from the project's own loader, for comparison."""
    return tiktoken.Encoding(
        "test", pat_str=PATTERNS[pattern], mergeable_ranks=RANKS, special_tokens=special_tokens or {END_OF_TEXT: 50256}
    )


REFERENCE = gpt2_ranks()
PATTERN_REFERENCES = {pattern: gpt2_ranks(pattern) for pattern in PATTERNS}
PATTERN_ENCODERS = {
    pattern: engines.gigatoken_encoder(rank_file=PACKAGED_RANKS.read_bytes(), pattern=pattern, special_tokens={})
    for pattern in (PATTERNS if HAS_GIGATOKEN else ())
}
SEVERAL = {name: 50256 + index for index, name in enumerate(SPECIAL_NAMES)}
SEVERAL_REFERENCE = gpt2_ranks("cl100k", SEVERAL)
SEVERAL_ENCODER = HAS_GIGATOKEN and engines.gigatoken_encoder(
    rank_file=PACKAGED_RANKS.read_bytes(), pattern="cl100k", special_tokens=SEVERAL
)


@pytest.fixture
def fresh_cache():
    """Load tokenizers anew, and keep none of them."""
    load.load_cached.cache_clear()
    yield
    load.load_cached.cache_clear()


def as_lists(ids, counts):
    assert int(counts.sum()) == len(ids)
    return [part.tolist() for part in np.split(ids, np.cumsum(counts)[:-1])] if len(counts) else []


def write_ranks(path: Path, ranks: dict[bytes, int]) -> Path:
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return path


BYTE_RANKS = {bytes([byte]): byte for byte in range(256)}
SMALL_RANKS = BYTE_RANKS | {b"ab": 256, b"abc": 257}


# ---- The IDs


def test_a_small_case_by_eye():
    gpt2 = load_tokenizer("gpt2")
    ids, counts = gpt2.encode_batch(["hello world", "", "hello"])
    assert (ids.tolist(), counts.tolist()) == ([31373, 995, 31373], [2, 0, 1])
    assert (ids.dtype, counts.dtype) == (np.uint16, np.int64)
    assert gpt2.decode(ids) == "hello worldhello"
    assert gpt2.decode_pieces(ids) == ["hello", " world", "hello"]
    assert (gpt2.vocab_size, gpt2.eos, gpt2.special_tokens) == (50257, 50256, {END_OF_TEXT: 50256})
    assert gpt2.cut_safe
    assert gpt2.engine == ("gigatoken" if HAS_GIGATOKEN else "tiktoken")


def test_the_docstring_tells_the_truth():
    results = doctest.testmod(load)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("engine", ENGINES_HERE)
@settings(max_examples=150, deadline=None)
@given(documents=batches)
@example(documents=[])
@example(documents=["", "", ""])
@example(documents=["\x00" * 5000, " " * 5000, "a" * 5000, "\n" * 5000, "\U0001f642" * 2000])
def test_each_engine_gives_the_ids_of_encode_ordinary_for_all_text(engine, documents):
    loaded = load_tokenizer("gpt2", engine=engine)
    assert loaded.engine == engine
    expected = [REFERENCE.encode_ordinary(text) for text in documents]
    ids, counts = loaded.encode_batch(documents)
    assert as_lists(ids, counts) == expected
    assert loaded.decode(ids) == "".join(documents)
    for kind in (pa.string(), pa.large_string()):
        # A slice: neither its offsets nor its bytes are at the start of their buffers.
        sliced = pa.array(["before", *documents, "after"], kind).slice(1, len(documents))
        for one in (loaded, loaded.on_all_cores()):
            assert as_lists(*one.encode_batch(sliced)) == expected


@pytest.mark.parametrize("engine", ENGINES_HERE)
@settings(max_examples=150, deadline=None)
@given(documents=batches)
def test_control_gives_the_ids_of_encode_with_all_special_tokens_allowed(engine, documents):
    loaded = load_tokenizer("gpt2", engine=engine, special_text="control")
    expected = [REFERENCE.encode(text, allowed_special="all") for text in documents]
    assert as_lists(*loaded.encode_batch(documents)) == expected


@pytest.mark.slow
@needs_gigatoken
@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=150, deadline=None)
@given(documents=st.lists(texts, min_size=1, max_size=5))
def test_gigatoken_follows_each_pattern_as_tiktoken_does(pattern, documents):
    ids, counts = PATTERN_ENCODERS[pattern](pa.array(documents, pa.large_string()))
    assert as_lists(ids, counts) == [PATTERN_REFERENCES[pattern].encode_ordinary(text) for text in documents]


@needs_gigatoken
@settings(max_examples=100, deadline=None)
@given(documents=st.lists(texts, min_size=1, max_size=3))
def test_gigatoken_takes_several_special_tokens_as_tiktoken_does(documents):
    expected = [SEVERAL_REFERENCE.encode(text, allowed_special="all") for text in documents]
    assert as_lists(*SEVERAL_ENCODER(pa.array(documents, pa.large_string()))) == expected


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=150, deadline=None)
@given(text=texts)
@example(text="a\x1c b")
@example(text="it's 's 12 345/ \n x")
def test_a_text_may_be_cut_before_an_ascii_space_after_a_character_that_is_no_white_space(pattern, text):
    encode = PATTERN_REFERENCES[pattern].encode_ordinary
    in_one = encode(text)
    for cut in range(1, len(text)):
        if text[cut] == " " and not regex.match(r"\p{White_Space}", text[cut - 1]):
            assert encode(text[:cut]) + encode(text[cut:]) == in_one


def test_bytes_are_ids(fresh_cache):
    loaded = load_tokenizer("bytes")
    ids, counts = loaded.encode_batch(["Az", "", "\xe9"])
    assert (ids.tolist(), counts.tolist(), ids.dtype) == ([65, 122, 195, 169], [2, 0, 2], np.uint16)
    assert (loaded.vocab_size, loaded.eos, loaded.engine, loaded.cut_safe) == (257, 256, "bytes", True)
    assert loaded.decode([*ids, 256]) == f"Az\xe9{END_OF_TEXT}"
    assert loaded.decode_pieces(ids) == ["A", "z", "\\xc3", "\\xa9"]


@given(documents=batches)
def test_bytes_give_the_text_back(documents):
    for special_text in ("literal", "control"):
        loaded = load_tokenizer("bytes", special_text=special_text)
        ids, counts = loaded.encode_batch(pa.array(["before", *documents]).slice(1))
        assert [loaded.decode(part) for part in as_lists(ids, counts)] == documents
        found = int(loaded.count_special(documents).sum())
        assert int((ids == 256).sum()) == (found if special_text == "control" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("on_all_cores", [False, True])
@pytest.mark.parametrize("engine", ENGINES_HERE)
def test_threads_give_the_ids_of_one_thread_also_when_encoders_are_replaced(
    engine, on_all_cores, fresh_cache, monkeypatch
):
    monkeypatch.setattr(engines, "ENCODER_CPU_SECONDS", 0.0)  # a fresh encoder for every batch
    monkeypatch.setattr(engines, "SMALL_CACHE_BYTES", -(2**40))
    loaded = load_tokenizer("gpt2", engine=engine)
    if on_all_cores:
        loaded = loaded.on_all_cores()
    words = ["alpha ", "beta\n", "\u6f22", " 12", "  ", END_OF_TEXT]
    jobs = [["".join(words[(i * j) % len(words)] for j in range(k)) for k in range(30)] for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(loaded.encode_batch, jobs))
    for documents, (ids, counts) in zip(jobs, together, strict=True):
        assert as_lists(ids, counts) == [REFERENCE.encode_ordinary(text) for text in documents]


@needs_gigatoken
@pytest.mark.parametrize("bounds_itself", [True, False])
def test_an_encoder_that_bounds_its_cache_itself_is_told_how_much_and_stays(monkeypatch, bounds_itself):
    from gigatoken import gigatoken_rs

    original, made, told = gigatoken_rs.BPETokenizer, [], []

    class Encoder:  # stands in for a later release
        def __init__(self, *arguments):
            self.encode_batch = original.from_tiktoken(*arguments).encode_batch
            made.append(self)

        @classmethod
        def from_tiktoken(cls, *arguments):
            return cls(*arguments)

        if bounds_itself:

            def set_max_cache_bytes(self, count):
                told.append(count)

    monkeypatch.setattr(gigatoken_rs, "BPETokenizer", Encoder)
    monkeypatch.setattr(engines, "ENCODER_CPU_SECONDS", 0.0)
    encode = engines.gigatoken_encoder(rank_file=PACKAGED_RANKS.read_bytes(), pattern="gpt2", special_tokens={})
    for text in ("one text", "another", "a third"):
        ids, _ = encode(pa.array([text], pa.large_string()))
        assert ids.tolist() == REFERENCE.encode_ordinary(text)
    assert (len(made), told) == ((1, [engines.CACHE_BYTES]) if bounds_itself else (3, []))


@needs_gigatoken
@pytest.mark.parametrize(
    ("memory", "made"),
    [([10, 10, 20], 1), ([10, 10, 10 + 2**50], 2), ([None] * 3, 3)],
    ids=["small", "grown", "not known"],
)
def test_threads_share_one_encoder_until_its_life_ends_and_memory_has_grown(monkeypatch, memory, made):
    """Memory is looked at when an encoder is made, and when its life ends."""
    from gigatoken import gigatoken_rs

    original, encoders = gigatoken_rs.BPETokenizer, []

    class Encoder:
        @classmethod
        def from_tiktoken(cls, *arguments):
            encoders.append(original.from_tiktoken(*arguments))
            return encoders[-1]

    monkeypatch.setattr(gigatoken_rs, "BPETokenizer", Encoder)
    monkeypatch.setattr(engines, "ENCODER_CPU_SECONDS", -1.0)
    answers = iter(memory)
    monkeypatch.setattr(engines, "anonymous_memory", lambda: next(answers, memory[-1]))
    encode = engines.gigatoken_encoder(
        rank_file=PACKAGED_RANKS.read_bytes(), pattern="gpt2", special_tokens={}, on_all_cores=True
    )
    for text in ("one text", "another", "a third"):
        with ThreadPoolExecutor(1) as thread:
            ids, _ = thread.submit(encode, pa.array([text], pa.large_string())).result()
        assert ids.tolist() == REFERENCE.encode_ordinary(text)
    assert len(encoders) == made


@needs_gigatoken
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_encodes_without_the_threads_that_it_lacks():
    encoder = load_tokenizer("gpt2").on_all_cores()
    documents = [f"document {number} " * 1000 for number in range(64)]
    expected = as_lists(*encoder.encode_batch(documents))
    child = os.fork()
    if not child:
        signal.alarm(60)  # ends a child that waits for them
        os._exit(as_lists(*encoder.encode_batch(documents)) != expected)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("cores", "sharing"), [(16, {16, 17}), (4, {4, 5, 16, 17}), (3, {4, 5, 16, 17}), (1, {4, 5, 16, 17})]
)
def test_workers_share_an_encoder_only_if_they_are_many_and_have_all_cores(cores, sharing, monkeypatch):
    monkeypatch.setattr(pipeline.settings, "count_cores", lambda: cores)
    assert {count for count in (1, 2, 3, 4, 5, 16, 17) if shares_encoder(ExecutorConfig(workers=count))} == sharing
    assert shares_encoder(ExecutorConfig()) == (cores in sharing)
    assert not shares_encoder(ExecutorConfig(name="ray"))


def test_an_engine_that_has_one_way_to_encode_keeps_it():
    tiktoken_alone = load_tokenizer("gpt2", engine="tiktoken")
    assert tiktoken_alone.on_all_cores() is tiktoken_alone


def test_a_vocabulary_of_more_than_65536_ids_is_stored_as_uint32(tmp_path):
    pairs = (bytes(pair) for pair in itertools.product(range(256), repeat=2))
    many = BYTE_RANKS | {pair: 256 + rank for rank, pair in enumerate(pairs)}
    loaded = load_tokenizer("tiktoken_file", path=str(write_ranks(tmp_path / "x", many)), pattern="gpt2", eos=65792)
    assert (loaded.vocab_size, loaded.dtype, loaded.eos) == (256 + 65536 + 1, np.uint32, 65792)
    assert loaded.encode_batch([""])[0].dtype == np.uint32
    ids, _ = loaded.encode_batch(["\U0010ffff"])
    assert loaded.decode(ids) == "\U0010ffff"


# ---- Special tokens in text


def test_literal_is_text_control_is_the_token_and_error_refuses():
    documents = ["plain", f"one {END_OF_TEXT} two {END_OF_TEXT}", "<|endoftext"]
    literal = load_tokenizer("gpt2")
    control = load_tokenizer("gpt2", special_text="control")
    assert int((literal.encode_batch(documents)[0] == 50256).sum()) == 0
    assert int((control.encode_batch(documents)[0] == 50256).sum()) == 2
    for special_text in SPECIAL_TEXTS:
        loaded = load_tokenizer("gpt2", special_text=special_text)
        assert loaded.count_special(documents).tolist() == [0, 2, 0]
        assert loaded.count_special([]).tolist() == []
    with pytest.raises(
        ValueError, match=r"document 1 of this batch.*<\|endoftext\|> at character 4.*special_text=error"
    ):
        load_tokenizer("gpt2", special_text="error").encode_batch(documents)
    assert load_tokenizer("gpt2", special_text="error").encode_batch(["plain"])[0].tolist() == [25638]


@given(documents=batches)
def test_special_tokens_are_counted_by_name(documents):
    loaded = load_tokenizer("gpt2")
    assert loaded.count_special(documents).tolist() == [text.count(END_OF_TEXT) for text in documents]
    assert loaded.count_special(pa.array(["<|endoftext|>", *documents]).slice(1)).tolist() == [
        text.count(END_OF_TEXT) for text in documents
    ]


# ---- The cross-check


@needs_gigatoken
@settings(max_examples=50, deadline=None)
@given(documents=st.lists(texts, min_size=1, max_size=5), data=st.data())
def test_the_cross_check_passes_what_is_right_and_finds_each_planted_difference(documents, data):
    loaded = load_tokenizer("gpt2", engine="gigatoken")
    ids, counts = loaded.encode_batch(documents)
    everything = range(len(documents))
    assert loaded.audited
    assert loaded.audit(documents, ids, counts, everything) == len(documents)
    assert loaded.audit(pa.array(documents), ids, counts, []) == 0
    if len(ids):
        index = data.draw(st.integers(0, len(ids) - 1))
        document = int(np.searchsorted(np.cumsum(counts), index, "right"))
        token = index - int(counts[:document].sum())
        planted = ids.copy()
        planted[index] = 7 if ids[index] != 7 else 8
        with pytest.raises(ValueError, match=r"tokenizer.engine=tiktoken") as caught:
            loaded.audit(documents, planted, counts, everything)
        assert f"document {document} of this batch is encoded differently by tiktoken" in str(caught.value)
        assert f"token {token} is {planted[index]}, and {ids[index]} by tiktoken" in str(caught.value)
        assert loaded.audit(documents, planted, counts, [d for d in everything if d != document]) == len(documents) - 1


@needs_gigatoken
def test_the_cross_check_finds_a_missing_last_token():
    loaded = load_tokenizer("gpt2", engine="gigatoken")
    ids, counts = loaded.encode_batch(["hello world"])
    with pytest.raises(ValueError, match="token 1 is missing, and 995 by tiktoken"):
        loaded.audit(["hello world"], ids[:1], counts - 1, [0])


@pytest.mark.parametrize(("name", "engine"), [("gpt2", "tiktoken"), ("bytes", "auto")])
def test_an_engine_that_is_its_own_reference_says_that_nothing_was_compared(name, engine):
    loaded = load_tokenizer(name, engine=engine)
    ids, counts = loaded.encode_batch(["hello"])
    assert not loaded.audited
    assert loaded.audit(["hello"], ids, counts, [0]) == 0


# ---- Identity


def test_the_hash_is_the_content_and_not_the_name(tmp_path):
    copy = shutil.copy(PACKAGED_RANKS, tmp_path / "any name")
    same = [
        load_tokenizer("gpt2"),
        load_tokenizer("r50k_base", engine="tiktoken"),
        load_tokenizer("gpt2", special_text="control"),
        load_tokenizer("tiktoken_file", path=str(copy)),
        load_tokenizer("tiktoken_file", path=str(copy), pattern="gpt2"),
    ]
    assert {loaded.hash for loaded in same} == {GPT2_HASH}
    assert [loaded.name for loaded in same] == ["gpt2", "r50k_base", "gpt2", "r50k_base", "r50k_base"]
    assert {loaded.engine for loaded in (same[0], same[3], same[4])} == {ENGINES_HERE[-1]}


def test_ranks_pattern_and_size_each_change_the_hash(tmp_path):
    small = str(write_ranks(tmp_path / "small", SMALL_RANKS))
    swapped = str(write_ranks(tmp_path / "swapped", SMALL_RANKS | {b"ab": 257, b"abc": 256}))
    gap = str(write_ranks(tmp_path / "gap", SMALL_RANKS | {b"abc": 258}))
    backwards = str(write_ranks(tmp_path / "backwards", dict(reversed(SMALL_RANKS.items()))))
    hashes = [
        load_tokenizer(name, path=path, pattern=pattern, eos=eos).hash
        for name, path, pattern, eos in [
            ("gpt2", None, None, "auto"),
            ("bytes", None, None, "auto"),
            ("tiktoken_file", str(PACKAGED_RANKS), "cl100k", "auto"),
            ("tiktoken_file", small, "gpt2", 300),
            ("tiktoken_file", small, "o200k", 300),
            ("tiktoken_file", small, r"\s+|\S+", 300),
            ("tiktoken_file", swapped, "gpt2", 300),
            ("tiktoken_file", gap, "gpt2", 300),
        ]
    ]
    assert len(set(hashes)) == len(hashes)
    # The order of the lines in a file does not matter.
    assert load_tokenizer("tiktoken_file", path=backwards, pattern="gpt2", eos=300).hash == hashes[3]


def test_the_same_arguments_give_the_same_object_until_the_file_changes(tmp_path):
    path = write_ranks(tmp_path / "ranks", SMALL_RANKS)
    load = functools.partial(load_tokenizer, "tiktoken_file", path=str(path), pattern="gpt2")
    first = load(eos=300)
    assert load(eos=300) is first
    assert load(eos=300, bos=300) is not first
    write_ranks(path, SMALL_RANKS | {b"abcd": 258})
    assert (first.encode("abcd"), load(eos=300).encode("abcd")) == ([257, 100], [258])


def test_a_published_rank_file_comes_out_of_its_ranks_as_it_was():
    ranks, data = rank_files.packaged_ranks()
    assert data == PACKAGED_RANKS.read_bytes()
    assert ranks == rank_files.parse_ranks(data, "the packaged file")
    assert rank_files.canonical_rank_file(ranks) == data


@pytest.mark.parametrize("encoding", ["r50k_base", "p50k_base", "cl100k_base", "o200k_base"])
def test_the_table_of_published_encodings_is_that_of_the_installed_tiktoken(encoding, monkeypatch):
    asked = []
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *args, **kwargs: asked.append((args, kwargs)) or {})
    theirs = openai_public.ENCODING_CONSTRUCTORS[encoding]()
    ours = PUBLISHED[encoding]
    assert asked == [((rank_files.RANKS_URL.format(encoding),), {"expected_hash": ours.sha256})]
    assert (theirs["pat_str"], theirs["special_tokens"]) == (PATTERNS[ours.pattern], ours.special_tokens)


# ---- Rank files


def test_a_rank_file_of_ones_own(tmp_path):
    path = write_ranks(tmp_path / "mine.tiktoken", SMALL_RANKS)
    loaded = load_tokenizer("tiktoken_file", path=str(path), pattern="gpt2", eos=258)
    assert (loaded.name, loaded.engine, loaded.cut_safe) == ("tiktoken_file:mine.tiktoken", "tiktoken", True)
    assert (loaded.special_tokens, loaded.vocab_size) == ({END_OF_TEXT: 258}, 259)
    assert loaded.encode_batch(["abcab"])[0].tolist() == [257, 256]
    assert loaded.decode([257, 258]) == f"abc{END_OF_TEXT}"
    mine = load_tokenizer("tiktoken_file", path=str(path), pattern=r"b|[^b]+", eos=258)
    assert not mine.cut_safe
    assert mine.encode_batch(["abcab"])[0].tolist() == [97, 98, 99, 97, 98]


BAD_LINES = {
    "a token that is not base64": (
        b"?? 300",
        "line 257: expected a token in base64, a space and its rank, found b'?? 300'",
    ),
    "no rank": (b"YWI=", "line 257: expected a token"),
    "a rank that is no number": (b"YWI= x", "line 257: expected a token"),
    "three fields": (b"YWI= 1 2", "line 257: expected a token"),
    "a rank below zero": (b"YWI= -1", "line 257: a rank must be from 0 to"),
    "a rank beyond int32": (b"YWI= 2147483647", "line 257: a rank must be from 0 to"),
    "a token twice": (b"YQ== 300", "line 257: the token b'a' already has the rank 97"),
    "a rank twice": (b"YWI= 97", "line 257: the rank 97 already belongs to b'a'"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_of_a_rank_file_is_named(case, tmp_path):
    line, message = BAD_LINES[case]
    path = write_ranks(tmp_path / "ranks", BYTE_RANKS)
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ValueError, match="ranks, line 257") as caught:
        load_tokenizer("tiktoken_file", path=str(path), pattern="gpt2")
    assert message in str(caught.value)


def test_a_rank_file_without_all_bytes_is_refused(tmp_path):
    path = write_ranks(tmp_path / "ranks", {token: rank for token, rank in BYTE_RANKS.items() if rank < 200})
    with pytest.raises(ValueError, match=r"every single byte must be a token.*56 are missing, the first is b'\\xc8'"):
        load_tokenizer("tiktoken_file", path=str(path), pattern="gpt2")


def test_a_rank_file_that_holds_the_end_of_text_name_is_refused(tmp_path):
    path = write_ranks(tmp_path / "ranks", BYTE_RANKS | {END_OF_TEXT.encode(): 256})
    with pytest.raises(ValueError, match="must be a special token"):
        load_tokenizer("tiktoken_file", path=str(path), pattern="gpt2")


def test_a_truncated_published_rank_file_needs_a_pattern_and_says_what_it_may_be(tmp_path):
    path = tmp_path / "cut.tiktoken"
    path.write_bytes(b"".join(PACKAGED_RANKS.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(
        ValueError, match=r"tokenizer.pattern: give gpt2, cl100k, o200k.*not a published one.*truncated"
    ):
        load_tokenizer("tiktoken_file", path=str(path))


def test_a_changed_packaged_rank_file_is_refused(tmp_path, monkeypatch, fresh_cache):
    data = bytearray(PACKAGED_RANKS.read_bytes())
    data[-2] ^= 1
    (tmp_path / "gpt2.tiktoken").write_bytes(data)
    monkeypatch.setattr(rank_files, "PACKAGED_RANKS", tmp_path / "gpt2.tiktoken")
    found = hashlib.sha256(data).hexdigest()
    with pytest.raises(
        ValueError, match=f"gpt2.tiktoken.*truncated or changed.*{found}.*{PUBLISHED['r50k_base'].sha256}"
    ):
        load_tokenizer("gpt2")


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base"])
def test_a_failed_download_says_what_was_tried_and_both_ways_out(name, tmp_path, monkeypatch, fresh_cache):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(rank_files, "RANKS_URL", "http://127.0.0.1:9/{}.tiktoken")  # no server there
    with pytest.raises(
        ValueError, match=f"tokenizer={name}.*TIKTOKEN_CACHE_DIR is {tmp_path}.*http://127.0.0.1:9/"
    ) as e:
        load_tokenizer(name)
    assert "tokenizer=tiktoken_file tokenizer.path=<file>" in str(e.value)


def test_the_name_that_a_failed_download_gives_for_the_cache_is_where_tiktoken_looks(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    url = "http://127.0.0.1:9/{}.tiktoken"
    monkeypatch.setattr(rank_files, "RANKS_URL", url)
    with pytest.raises(ValueError, match=r"name it ([0-9a-f]{40})") as caught:
        rank_files.downloaded_ranks("r50k_base")
    name = regex.search("name it ([0-9a-f]{40})", str(caught.value))[1]
    shutil.copy(PACKAGED_RANKS, tmp_path / name)
    assert rank_files.downloaded_ranks("r50k_base") == rank_files.packaged_ranks()[0]


# ---- Patterns of one's own


@pytest.mark.parametrize("pattern", [r"\p{L}+", r"\S+", "a*", r"[\s\S]*", r"\w+|\s+", r".+"])
def test_a_pattern_that_would_lose_text_is_refused_at_the_start(pattern, tmp_path):
    path = str(write_ranks(tmp_path / "ranks", SMALL_RANKS))
    with pytest.raises(ValueError, match="must match every character and never the empty text"):
        load_tokenizer("tiktoken_file", path=path, pattern=pattern)


def test_a_pattern_that_loses_text_later_is_caught_then(tmp_path):
    path = str(write_ranks(tmp_path / "ranks", SMALL_RANKS))
    loaded = load_tokenizer("tiktoken_file", path=path, pattern=r"[^#]+|##+", eos=258)
    assert loaded.encode_batch(["abc", "", "##"])[1].tolist() == [1, 0, 2]
    with pytest.raises(ValueError, match="document 1 of this batch would lose 1 bytes"):
        loaded.encode_batch(["abc", "a#b", "abc"])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "is not a regular expression"),
        ("gtp2", "did you mean 'gpt2'"),
        ("", "must be one of gpt2, cl100k, o200k, or"),
    ],
)
def test_a_pattern_that_is_none_is_refused(pattern, message, tmp_path):
    path = str(write_ranks(tmp_path / "ranks", SMALL_RANKS))
    with pytest.raises(ValueError, match=message):
        load_tokenizer("tiktoken_file", path=path, pattern=pattern)


# ---- Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokenizer": "gtp2"}, r"tokenizer.name: must be one of gpt2, .*bytes \(did you mean 'gpt2'\?\); got 'gtp2'"),
        ({"engine": "tiktokn"}, r"tokenizer.engine: must be one of .* \(did you mean 'tiktoken'\?\)"),
        ({"special_text": "contrl"}, r"tokenizer.special_text: must be one of .* \(did you mean 'control'\?\)"),
        ({"path": "x"}, "tokenizer.path: tokenizer=gpt2 has its own vocabulary and takes no path"),
        ({"tokenizer": "tiktoken_file"}, "tokenizer.path: tokenizer=tiktoken_file needs the path"),
        ({"tokenizer": "huggingface"}, "tokenizer.path: tokenizer=huggingface needs the path"),
        ({"pattern": "gpt2"}, "tokenizer.pattern: is for tokenizer=tiktoken_file, not gpt2"),
        ({"tokenizer": "bytes", "engine": "gigatoken"}, "is its own engine"),
        ({"tokenizer": "tiktoken_file", "path": "no/such/file"}, "no/such/file cannot be read: No such file"),
        ({"tokenizer": "tiktoken_file", "path": "."}, "cannot be read: Is a directory"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_tokenizer(**arguments)


def test_gigatoken_is_refused_for_an_encoding_that_it_does_not_know(tmp_path):
    path = str(write_ranks(tmp_path / "ranks", SMALL_RANKS))
    with pytest.raises(ValueError, match=r"engine=gigatoken encodes r50k_base .*, not tiktoken_file:ranks"):
        load_tokenizer("tiktoken_file", path=path, pattern="gpt2", engine="gigatoken", eos=258)


def test_without_gigatoken_auto_takes_tiktoken_and_gigatoken_names_the_package(monkeypatch, fresh_cache):
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    assert load_tokenizer("gpt2").engine == "tiktoken"
    with pytest.raises(ValueError, match=r"pip install 'gigatoken>=0.10,<0.11'"):
        load_tokenizer("gpt2", engine="gigatoken")


def test_half_a_surrogate_pair_is_refused_with_its_position():
    with pytest.raises(ValueError, match=r"document 1 of this batch contains half a surrogate pair at character 2"):
        load_tokenizer("gpt2").encode_batch(["fine", "no\ud800"])


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_an_id_outside_the_vocabulary_is_refused(name):
    loaded = load_tokenizer(name)
    with pytest.raises(ValueError, match=f"ID {loaded.vocab_size} is not in the vocabulary of the tokenizer {name}"):
        loaded.decode([65, loaded.vocab_size])


def test_half_a_character_is_shown_and_never_an_error():
    loaded = load_tokenizer("gpt2")
    ids, _ = loaded.encode_batch(["\U0001f642"])
    assert loaded.decode(ids[:1]) == "\ufffd"
    assert "".join(loaded.decode_pieces(ids)) == "\\xf0\\x9f\\x99\\x82"


def test_importing_the_module_loads_no_tokenizer_library():
    heavy = ["tiktoken", "gigatoken", "tokenizers", "awkward", "torch", "regex", "huggingface_hub"]
    code = f"import sys, pipeline.tokenizer.load; print([name for name in {heavy} if name in sys.modules])"
    assert run_python("-c", code).stdout.strip() == "[]"


# ---- Hugging Face


@pytest.fixture(scope="module")
def huggingface_json(tmp_path_factory):
    """A byte-level BPE tokenizer of 300 tokens with two special ones, trained here."""
    tokenizers = pytest.importorskip("tokenizers")
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["</s>", "<pad>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["the cat sat on the mat and the rat ran " * 5], trainer)
    # Both would silently change the IDs, and so would a token of its own.
    core.enable_truncation(3)
    core.enable_padding(length=50, pad_id=1)
    core.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    path = tmp_path_factory.mktemp("huggingface") / "tokenizer.json"
    core.save(str(path))
    return path


def edited(path: Path, folder: Path, **changes) -> Path:
    document = json.loads(path.read_text("utf-8")) | changes
    (folder / "tokenizer.json").write_text(json.dumps(document, indent=4, sort_keys=True), "utf-8")
    return folder


@settings(max_examples=50, deadline=None)
@given(documents=batches)
def test_huggingface_encodes_complete_documents_and_gives_them_back(huggingface_json, documents):
    loaded = load_tokenizer("huggingface", path=str(huggingface_json))
    documents = [*documents, "the </s> cat"]
    ids, counts = loaded.encode_batch(documents)
    assert [loaded.decode(part) for part in as_lists(ids, counts)] == documents
    assert 0 not in ids
    assert loaded.count_special(["the </s></s> cat", "<pad>", ""]).tolist() == [2, 1, 0]


def test_huggingface_has_its_end_of_text_and_control_tokens(huggingface_json):
    loaded = load_tokenizer("huggingface", path=str(huggingface_json), special_text="control")
    assert (loaded.special_tokens, loaded.eos) == ({"</s>": 0, "<pad>": 1}, 0)
    assert (loaded.engine, loaded.cut_safe, loaded.audited, loaded.dtype) == ("huggingface", False, False, np.uint16)
    ids, _ = loaded.encode_batch(["the</s>cat"])
    assert int((ids == 0).sum()) == 1
    assert loaded.decode(ids) == "the</s>cat"
    assert "".join(loaded.decode_pieces(ids)) == "the</s>cat"
    with pytest.raises(ValueError, match="ID 9999 is not in the vocabulary"):
        loaded.decode([9999])
    with pytest.raises(ValueError, match="contains the special token </s> at character 3"):
        load_tokenizer("huggingface", path=str(huggingface_json), special_text="error").encode_batch(["the</s>"])


def test_huggingface_hashes_the_content(huggingface_json, tmp_path):
    original = load_tokenizer("huggingface", path=str(huggingface_json))
    assert load_tokenizer("huggingface", path=str(huggingface_json.parent)).hash == original.hash
    same = edited(huggingface_json, tmp_path, truncation=None)
    assert load_tokenizer("huggingface", path=str(same)).hash == original.hash
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<pad>"}}')
    other = load_tokenizer("huggingface", path=str(tmp_path))
    assert (other.eos, other.hash == original.hash) == (1, False)
    (tmp_path / "tokenizer_config.json").unlink()
    edited(huggingface_json, tmp_path, normalizer={"type": "Lowercase"})
    assert load_tokenizer("huggingface", path=str(tmp_path)).hash != original.hash


def test_huggingface_without_a_clear_end_of_text_asks_for_one(huggingface_json, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    edited(huggingface_json, tmp_path)
    with pytest.raises(
        ValueError, match=r"tokenizer.eos: give .*eos_token='<eos>', and its special tokens are </s>, <pad>"
    ):
        load_tokenizer("huggingface", path=str(tmp_path))
    (tmp_path / "tokenizer_config.json").unlink()
    edited(huggingface_json, tmp_path, added_tokens=[])
    with pytest.raises(ValueError, match=r"no tokenizer_config.json names one, and its special tokens are none at all"):
        load_tokenizer("huggingface", path=str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"eos_token": {}}', r'tokenizer_config.json says eos_token={}, which is no token.*{"content": "</s>"}'),
        ('{"eos_token": ["a"]}', r'says eos_token=\["a"\], which is no token'),
        ('{"eos_token": {"content": ["a"]}}', r'says eos_token={"content": \["a"\]}, which is no token'),
        ('{"eos_token": {"content": null}}', r'says eos_token={"content": null}, which is no token'),
        ('{"eos_token": 5}', r"says eos_token=5, which is no token"),
        ("[]", r"tokenizer_config.json is not a JSON object"),
    ],
)
def test_huggingface_configs_that_name_no_token_are_refused(huggingface_json, tmp_path, config, message):
    edited(huggingface_json, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(ValueError, match=message) as caught:
        load_tokenizer("huggingface", path=str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", ["{}", '{"eos_token": null}', '{"eos_token": {"content": "</s>"}}'])
def test_huggingface_configs_may_name_none_or_one_in_an_object(huggingface_json, tmp_path, config):
    edited(huggingface_json, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(config)
    assert load_tokenizer("huggingface", path=str(tmp_path)).eos == 0


def test_huggingface_dropout_is_turned_off(huggingface_json, tmp_path):
    model = json.loads(huggingface_json.read_text("utf-8"))["model"]
    edited(huggingface_json, tmp_path, model=model | {"dropout": 0.5})
    original = load_tokenizer("huggingface", path=str(huggingface_json))
    loaded = load_tokenizer("huggingface", path=str(tmp_path))
    documents = ["the cat sat on the mat"] * 20
    assert loaded.hash == original.hash
    assert as_lists(*loaded.encode_batch(documents)) == as_lists(*original.encode_batch(documents))


def test_huggingface_files_that_cannot_be_read_are_named(huggingface_json, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"tokenizer.json does not exist"):
        load_tokenizer("huggingface", path=str(tmp_path))
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match=r"cannot be loaded as a tokenizer.json|is no tokenizer.json"):
        load_tokenizer("huggingface", path=str(tmp_path))
    edited(huggingface_json, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(ValueError, match=r"tokenizer_config.json is not a JSON object"):
        load_tokenizer("huggingface", path=str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"nobody/nothing is not a local file or folder.*Hugging Face hub failed"):
        load_tokenizer("huggingface", path="nobody/nothing")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"pip install tokenizers"):
        load_tokenizer("huggingface", path=str(tmp_path))


# ---- Hugging Face: characters that a vocabulary lacks

PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
# How the ByteLevel pre-tokenizer writes each byte.
BYTE_LETTERS = {byte: chr(byte) for byte in PRINTABLE} | {byte: chr(256 + n) for n, byte in enumerate(OTHERS)}
ALL_BYTES = [BYTE_LETTERS[byte] for byte in range(256)]
UTF8_BYTES = [BYTE_LETTERS[byte] for byte in range(0xF5) if byte not in (0xC0, 0xC1)]
FALLBACK = [f"<0x{byte:02X}>" for byte in range(256)]
ASCII = [chr(byte) for byte in range(33, 127)]

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
WORDS = {"type": "Whitespace"}
BERT = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,
    "lowercase": True,
}
SENTENCEPIECE = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ],
}
CLEANING = {  # removes all characters of category C: control, format, private use, unassigned
    "type": "Sequence",
    "normalizers": [
        {"type": "NFKD"},
        {"type": "StripAccents"},
        {"type": "Replace", "pattern": {"Regex": r"\p{C}"}, "content": ""},
    ],
}
DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]}


def vocabulary(tokens, *, unknown=True):
    return {token: index for index, token in enumerate(["</s>", *(["<unk>"] if unknown else []), *tokens])}


def bpe(tokens, **options):
    return {"type": "BPE", "vocab": vocabulary(tokens), "merges": []} | options


def wordpiece(*, unknown=True):
    vocab = vocabulary(["a", "##b"], unknown=unknown)
    rules = {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    return {"type": "WordPiece", "vocab": vocab, "unk_token": "<unk>"} | rules


def word_level(*, unknown=True):
    return {"type": "WordLevel", "vocab": vocabulary(["a", "b"], unknown=unknown), "unk_token": "<unk>"}


def unigram(tokens, unk_id, **options):
    return {"type": "Unigram", "unk_id": unk_id, "vocab": [[token, -1.0] for token in vocabulary(tokens)]} | options


def write_huggingface(folder, model, normalizer=None, pre_tokenizer=None):
    """A folder with a tokenizer.json of these parts; its end-of-text token is </s>."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document = {
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": "</s>", "special": True} | flags],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "model": model,
    }
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    return str(folder)


KEEPING = {  # model, normalizer, pre-tokenizer
    "byte-level BPE, as GPT-2": (bpe(ALL_BYTES), None, BYTE_LEVEL),
    "byte-level BPE, its kind not named": ({"vocab": vocabulary(ALL_BYTES), "merges": []}, None, BYTE_LEVEL),
    "byte-level BPE with a split before": (bpe(ALL_BYTES), {"type": "NFC"}, DIGITS),
    "byte-level BPE by its normalizer": (bpe(ALL_BYTES), {"type": "ByteLevel"}, None),
    "byte-level BPE that cleans up": (bpe(ALL_BYTES), CLEANING, BYTE_LEVEL),
    "byte-level BPE without the bytes that are never in UTF-8": (bpe(UTF8_BYTES), None, BYTE_LEVEL),
    "byte-level BPE with a suffix, as CLIP": (
        bpe([*ALL_BYTES, *(f"{byte}</w>" for byte in ALL_BYTES)], unk_token="</s>", end_of_word_suffix="</w>"),
        {"type": "Lowercase"},
        BYTE_LEVEL,
    ),
    "BPE with byte_fallback and unk_token, as Llama": (
        bpe([*FALLBACK, "\u2581", *ASCII], unk_token="<unk>", fuse_unk=True, byte_fallback=True),
        SENTENCEPIECE,
        None,
    ),
    "BPE with byte_fallback alone": (bpe([*FALLBACK, "\u2581", *ASCII], byte_fallback=True), None, METASPACE),
    "BPE with unk_token": (bpe(["\u2581", *ASCII], unk_token="<unk>"), None, METASPACE),
    "WordPiece, as BERT": (wordpiece(), BERT, {"type": "BertPreTokenizer"}),
    "WordLevel": (word_level(), None, WORDS),
    "Unigram, as T5": (unigram(["\u2581", "\u2581a"], 1), {"type": "NFKC"}, METASPACE),
    "Unigram with byte_fallback": (unigram([*FALLBACK, "\u2581"], 1, byte_fallback=True), None, METASPACE),
}
DROPPING = {
    "BPE": (bpe(ASCII), None, None),
    "BPE that still gives a token for the space before": (bpe(["\u2581", *ASCII]), None, METASPACE),
    "BPE that cleans up": (bpe(ASCII), CLEANING, WORDS),
    "byte-level BPE without the bytes that its corpus lacked": (bpe(["\u0120", *ASCII]), None, BYTE_LEVEL),
    "BPE with byte_fallback and half of its tokens": (bpe(FALLBACK[:128], byte_fallback=True), None, None),
}
RAISING = {
    "BPE": (bpe(["a"], unk_token="missing"), None, WORDS),
    "WordPiece": (wordpiece(unknown=False), None, WORDS),
    "WordLevel": (word_level(unknown=False), None, WORDS),
    "Unigram": (unigram(["a"], None), None, WORDS),
}


@pytest.mark.parametrize("kind", KEEPING)
def test_huggingface_tokenizers_that_keep_or_mark_what_they_do_not_know_are_used(kind, tmp_path):
    pytest.importorskip("tokenizers")
    loaded = load_tokenizer("huggingface", path=write_huggingface(tmp_path, *KEEPING[kind]))
    _, counts = loaded.encode_batch(["a", "h\xe9llo \u2014 \u6f22\u5b57", "\U00012000", "\x00\u200b\U0001f642"])
    assert (counts > 0).all()


@pytest.mark.parametrize("kind", DROPPING)
def test_huggingface_tokenizers_that_drop_what_they_do_not_know_are_refused(kind, tmp_path):
    pytest.importorskip("tokenizers")
    path = write_huggingface(tmp_path, *DROPPING[kind])
    with pytest.raises(
        ValueError,
        match=r"tokenizer.json would lose text: .*such as U\+10600\. Give the model an unk_token.*byte_fallback",
    ):
        load_tokenizer("huggingface", path=path)


@pytest.mark.parametrize("kind", RAISING)
def test_huggingface_names_the_document_that_cannot_be_encoded(kind, tmp_path):
    pytest.importorskip("tokenizers")
    loaded = load_tokenizer("huggingface", path=write_huggingface(tmp_path, *RAISING[kind]))
    assert loaded.encode_batch(["a", "", "a"])[1].tolist() == [1, 0, 1]
    name = re.escape(tmp_path.name)
    with pytest.raises(DocumentError, match=rf"cannot be encoded by huggingface:{name}: .*; else remove") as caught:
        loaded.encode_batch(["a", "a a", "a \u6f22", "\u5b57"])
    assert caught.value.document == 2
