"""Both engines give the same IDs for every Unicode text, and no cache mixes them up."""

import importlib.util
import json
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import TokenizerConfig, WindowConfig, write_shards
from pipeline.tokenizer import unicode_differences as differences
from pipeline.tokenizer.load import load_tokenizer
from pipeline.tokenizer.rank_files import PATTERNS

if importlib.util.find_spec("gigatoken") is None:
    pytest.skip("gigatoken is not installed", allow_module_level=True)

CODE_POINTS = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
DIFFERING = {
    pattern: [chr(point) for first, last in differences.differing_ranges(pattern) for point in range(first, last + 1)]
    for pattern in PATTERNS
}
AMONG = [*DIFFERING["gpt2"][:5], "a", " ", "1", "'s", "\u6f22", "!"]


@pytest.fixture(scope="module")
def both():
    return load_tokenizer("gpt2", engine="gigatoken"), load_tokenizer("gpt2", engine="tiktoken")


def same(both, texts):
    array = pa.array(texts, pa.large_string())
    (ids, counts), (expected, expected_counts) = (one.encode_batch(array) for one in both)
    return np.array_equal(counts, expected_counts) and np.array_equal(ids, expected)


@pytest.mark.slow
def test_the_engines_agree_on_every_code_point_that_has_a_meaning_and_on_some_others(both):
    """Where they would differ is looked for among all of them below."""
    others = {"Cn", "Co"}  # not assigned, or of private use
    among = [c for n, c in enumerate(CODE_POINTS) if n % 64 == 0 or unicodedata.category(c) not in others]
    among += DIFFERING["gpt2"]
    for start in range(0, len(among), 1 << 16):
        assert same(both, [f"a{c}a {c}1{c}'s{c}!" for c in among[start : start + (1 << 16)]]), start


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_recorded_differences_are_those_of_the_installed_libraries(pattern):
    recorded = json.loads(differences.KNOWN.read_text())
    assert differences.releases() in recorded
    assert differences.find_differences(pattern) == recorded[differences.releases()][pattern]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_gigatoken_alone_would_differ_on_what_is_recorded(pattern):
    core = differences.revealing_engines(pattern)
    is_same, _ = differences.compare(core, [differences.AROUND_CODE_POINT.format(c) for c in DIFFERING[pattern]])
    assert not is_same.any()


@settings(max_examples=100, deadline=None)
@given(
    documents=st.lists(
        st.lists(st.sampled_from([*DIFFERING["gpt2"][:5], "a", " ", "1", "'s", "\u6f22", "!"])), max_size=6
    )
)
@example(documents=[[], ["\U0002b73a"], []])
def test_documents_are_found_and_encoded_as_by_tiktoken_wherever_they_stand(both, documents):
    texts = ["".join(document) for document in documents]
    odd = set(DIFFERING["gpt2"])
    for kind in (pa.string(), pa.large_string()):
        sliced = pa.array(["before", *texts, "after"], kind).slice(1, len(texts))
        if texts:
            assert differences.find_documents(sliced, "gpt2").tolist() == [bool(odd & set(text)) for text in texts]
    assert same(both, texts) if texts else True


def test_a_document_is_found_wherever_its_text_is_divided_for_the_search(monkeypatch):
    texts = ["a\u088f", "\u0e01\U0001f50e", "\u088f", "b", "\U0002b73a\u0c5c"]
    for size in range(1, 12):
        monkeypatch.setattr(differences, "SEARCHED_BYTES", size)
        found = differences.find_documents(pa.array(texts, pa.large_string()), "gpt2")
        assert found.tolist() == [True, False, True, False, True], size


def test_every_code_point_is_found_or_not_as_its_range_says():
    for pattern in PATTERNS:
        odd = set(DIFFERING[pattern])
        found = differences.find_documents(pa.array(CODE_POINTS, pa.large_string()), pattern)
        assert [c for c, is_found in zip(CODE_POINTS, found, strict=True) if is_found] == sorted(odd)


def test_the_tokens_do_not_depend_on_the_engine_nor_on_whose_cache_it_is(tmp_path):
    documents = [f"ordinary document {k} with some words" for k in range(300)]
    documents[150] = "Extension C: \U0002b73a's"
    runs = [("gigatoken", "a", 1), ("tiktoken", "b", 1), ("tiktoken", "a", 1), ("gigatoken", "a", 0), ("auto", "b", 0)]
    contents = set()
    for number, (engine, cache, made) in enumerate(runs):
        report = write_shards(
            tmp_path / str(number),
            corpus=documents,
            tokenizer=TokenizerConfig(engine=engine),
            window=WindowConfig(max_length=32),
            cache=tmp_path / cache,
        )
        # Whoever asks for tiktoken gets no cached tokens of another engine; the other way round they are the same.
        assert report.chunks_made == made, (engine, cache)
        shards = sorted((tmp_path / str(number) / "data").iterdir())
        contents.add((report.manifest.fingerprint, *(shard.read_bytes() for shard in shards)))
    assert len(contents) == 1


def test_a_release_that_is_not_recorded_is_compared(monkeypatch):
    monkeypatch.setattr(differences, "releases", lambda: "tiktoken 99, gigatoken 99")
    monkeypatch.setattr(differences, "find_differences", lambda _: [[0x4E00, 0x4E01]])
    differences.differing_ranges.cache_clear()
    try:
        found = differences.find_documents(pa.array(["a", "\u4e00", "\u4e01b", "\u4e02"]), "gpt2")
        assert found.tolist() == [False, True, True, False]
    finally:
        differences.differing_ranges.cache_clear()
