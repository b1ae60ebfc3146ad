"""JSON lines: Arrow's way and Python's way give the same documents, and each bad line has its reason."""

import json
import time
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.corpus import compression, jsonl
from pipeline.corpus.documents import Partition
from pipeline.corpus.jsonl import parse_lines, parse_slowly, read_jsonl

SURROGATE = "\\ud83d"
# Whole lines, and pieces of which lines are made: what Arrow's and Python's readers take differently, among others.
LINES = [
    '{"text": "plain"}',
    '{"text": "caf\\u00e9 \\ud83d\\ude00 \U0001f642"}',
    '{"id": 1, "text": "b", "m": {"text": 3}}',
    "",
    " ",
    "\t",
    '{"text": ""}',
    '{"text": null}',
    '{"id": 2}',
    "{}",
    '{"text": 5}',
    '{"text": true}',
    '{"text": ["a"]}',
    '{"text": {"a": "b"}}',
    '{"text": "a", "text": "b"}',
    '{"text": null, "text": "b"}',
    '{"te\\u0078t": "key"}',
    '{"text": "\\ud800"}',
    '{"text": "\\udc00x"}',
    '{"text": "a", "x": "\\ud800"}',
    '{"text": "a", "x": NaN}',
    '{"text": "a", "x": -NaN}',
    '{"text": "a", "x": Inf}',
    '{"text": "a", "x": -Infinity}',
    '{"text": "a", "x": 1e999}',
    '{"text": "a", "x": 01}',
    '{"text": "a",}',
    '{"text": "a"} {"text": "b"}',
    '{"text": "a"}{"text": "b"}',
    '{"text":',
    '"c"}',
    '{"text": {}',
    '{"text": "tab\tin it"}',
    '{"text": "nul\x00in it"}',
    '{"text": "a"}\x00}',
    '{"text": "\\u0000"}',
    "[1]",
    '["text"]',
    '"text"',
    "null",
    "7",
    "nonsense",
    "}{",
    "{",
    "}",
    '{"text": "a"} ',
    ' {"text": "a"}',
    '{"text": "a"}\r',
    '{"text": "a"}\r{"text": "b"}',
    "\ufeff" + '{"text": "a"}',
    '{"text": "a", "x": "' + "y" * 5000 + '"}',
    '{"text": "a", "x": ' + "[" * 3000 + "]" * 3000 + "}",
    '{"x": ' + "[" * 3000 + "]" * 3000 + "}",
    '{"text": "a", "x": ' + "9" * 5000 + "}",
    '{"a": [1, {"text": "in"}], "text": "out"}',
    "\u2028",
    '{"text": "\u2028\x85\x7f"}',
]
PIECES = ['{"text": "', '"', "}", "{", "text", ":", ",", " ", "\\", SURROGATE, "\\n", "\r", "[", "]", "null", "1", "é"]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "id", ""]), inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(st.sampled_from(["text", "id", "é", ""]), values, max_size=4)
dumped = st.builds(lambda value, ascii_: json.dumps(value, ensure_ascii=ascii_), objects | values, st.booleans())
mixed = st.lists(st.sampled_from(PIECES), max_size=10).map("".join)
good = st.builds(lambda text, ascii_: json.dumps({"text": text}, ensure_ascii=ascii_), st.text(), st.booleans())
lines = st.one_of(st.sampled_from(LINES), dumped, mixed, good).map(lambda line: line.encode("utf-8", "surrogatepass"))
blocks = st.builds(
    lambda parts, end, last: end.join(parts) + (end if last else b""),
    st.lists(lines | st.binary(max_size=8), max_size=6),
    st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
    st.booleans(),
)


@pytest.mark.slow
@settings(max_examples=300)
@given(block=blocks)
@example(block=b'{"text": "a"}{"text": "b"}\n{"text":\n"c"}\n')
@example(block=b'{"text": "a"}{"text": "b"}\n{"text": {}\n')
def test_both_ways_give_the_same_documents(block):
    fast, slow = parse_lines(block, "text"), parse_slowly(block, "text")
    assert fast.texts.to_pylist() == slow.texts.to_pylist()
    assert fast.rows.tolist() == slow.rows.tolist()
    assert fast.num_lines == slow.num_lines
    assert [(row, fault.reason) for row, fault, _ in fast.faults] == [
        (row, fault.reason) for row, fault, _ in slow.faults
    ]


@pytest.mark.parametrize("after", ["", "x", "\\ud800", "\\udbff", "\\udc00", "\\udfff", "\\n", "\\\\", "\\u0041"])
def test_no_escape_makes_a_text_that_is_not_utf8(after):
    """Texts by Arrow are not checked again: only what it makes of escapes was not seen by the check of the block."""
    for point in (0, 0x1F, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0xE000, 0xFFFF):
        line = f'{{"text": "\\u{point:04x}{after}"}}'.encode()
        texts = parse_lines(line, "text").texts
        texts.validate(full=True)
        assert texts.equals(parse_slowly(line, "text").texts), line


@pytest.mark.parametrize("one", LINES)
@pytest.mark.parametrize("other", ['{"text": "good"}', "[1]"])
def test_a_line_is_judged_the_same_beside_any_other(one, other):
    """A neighbour decides whether Arrow or Python reads the block, and must decide nothing else."""
    alone = parse_lines(one.encode(), "text")
    beside = parse_lines(f"{other}\n{one}".encode(), "text")
    assert alone.texts.to_pylist() == [
        text for text, row in zip(beside.texts.to_pylist(), beside.rows, strict=True) if row
    ]
    assert [fault.reason for _, fault, _ in alone.faults] == [fault.reason for row, fault, _ in beside.faults if row]


inner = st.dictionaries(st.sampled_from(["b", "b.c", "c"]), st.none() | st.text(max_size=3) | st.integers(), max_size=3)
outer = st.dictionaries(
    st.sampled_from(["a", "a.b", "a.b.c"]),
    st.none() | st.text(max_size=3) | inner | st.dictionaries(st.just("b"), inner, max_size=1),
    max_size=3,
)
ODD_PATHS = [
    '{"a": {"b": "x"}, "a": {"b": "y"}}',
    '{"a": {"b": "x", "b": "y"}}',
    '{"a": {"b": "x"}, "a.b": null}',
    '{"a": {"b": "x"}, "a\\u002eb": "y"}',
    '{"\\u0061": {"b": "x"}}',
    '{"a": [{"b": "x"}]}',
    '{"a": {"b": {"c": "x"}}, "a.b": {"c": "y"}}',
    '{"a": "b.c\\": "}',
]


@settings(max_examples=200)
@given(
    rows=st.lists(outer.map(json.dumps) | st.sampled_from(ODD_PATHS), max_size=4),
    field=st.sampled_from(["a.b", "a.b.c"]),
)
def test_both_ways_follow_a_path_alike(rows, field):
    block = "\n".join(rows).encode()
    fast, slow = parse_lines(block, field), parse_slowly(block, field)
    assert fast.texts.to_pylist() == slow.texts.to_pylist()
    assert fast.rows.tolist() == slow.rows.tolist()
    assert [(row, fault.reason) for row, fault, _ in fast.faults] == [
        (row, fault.reason) for row, fault, _ in slow.faults
    ]


PATHS = {  # of a.b.c: the text, or the reason
    '{"a": {"b": {"c": "x"}}}': "x",
    '{"a.b": {"c": "x"}, "a": {"b": {"c": "y"}}}': "x",
    '{"a": {"b.c": "x", "b": {"c": "y"}}}': "x",
    '{"a.b.c": "x", "a": {"b": {"c": "y"}}}': "x",
    '{"a": {"b": null}}': "null",
    '{"a": {"b": {"c": null}}}': "null",
    '{"a": {"b": 5}}': "not_object",
    '{"a": "text"}': "not_object",
    '{"a": {"c": "x"}}': "missing",
    '{"a": {}, "a": {"b": {"c": "x"}}}': "duplicate",
    '{"a": {"b": {"c": 5}}}': "not_string",
}


@pytest.mark.parametrize("line", PATHS)
def test_a_path_by_eye(line):
    for parse in (parse_lines, parse_slowly):
        found = parse(line.encode(), "a.b.c")
        assert found.texts.to_pylist() + [one.reason for _, one, _ in found.faults] == [PATHS[line]]


def test_a_path_is_read_by_arrow_if_nothing_is_in_doubt(monkeypatch):
    monkeypatch.setattr(jsonl, "parse_slowly", None)
    block = b'{"meta": {"body": "inner \\u00e9 text", "x": 1}}\n' * 50
    assert len(parse_lines(block, "meta.body").texts) == 50


def test_looking_for_doubtful_keys_takes_time_in_proportion_to_the_text():
    block = b'{"meta": {"body": "' + b"line \\n" * 500_000 + b'"}}\n'
    started = time.process_time()
    assert len(parse_lines(block, "meta.body").texts) == 1
    assert time.process_time() - started < 5


def test_a_missing_path_lists_the_fields_as_paths_and_not_all_of_a_thousand():
    fields = {"meta": {"title": 1, "tags": {}}, "x" * 500: 2, **{f"field{n}": n for n in range(1000)}}
    ((_, fault, _),) = parse_lines(json.dumps(fields).encode(), "meta.body").faults
    assert "the fields are 'meta.title', 'meta.tags', " in fault.detail
    assert fault.detail.endswith("and 995 more")
    assert len(fault.detail) < 400


@settings(max_examples=200)
@given(texts=st.lists(st.text(), max_size=5), ascii_=st.booleans(), end=st.sampled_from(["\n", "\r\n"]))
def test_what_json_writes_is_read_back(texts, ascii_, end):
    block = "".join(json.dumps({"n": 1, "text": text}, ensure_ascii=ascii_) + end for text in texts)
    found = parse_lines(block.encode(), "text")
    assert found.texts.to_pylist() == texts
    assert found.rows.tolist() == list(range(len(texts)))
    assert not found.faults


def test_a_case_by_eye():
    found = parse_lines(b'{"text":"a"}\n\n{"text":7}\n{"id":1,"text":"b"}', "text")
    assert (found.texts.to_pylist(), found.rows.tolist(), found.num_lines) == (["a", "b"], [0, 3], 4)
    ((row, fault, line),) = found.faults
    assert (row, fault.reason, line) == (2, "not_string", b'{"text":7}')
    assert fault.detail == "the field 'text' is a number, not a string"


def test_while_a_batch_is_encoded_its_lines_are_not_kept(tmp_path, monkeypatch):
    size = 1 << 20
    monkeypatch.setattr(compression, "BLOCK_BYTES", size)
    line = json.dumps({"text": "word " * 2000}) + "\n"
    path = tmp_path / "a.jsonl"
    path.write_text(line * 400)
    partition = Partition(
        reader="jsonl", paths=(str(path),), names=("a.jsonl",), keys=("",), num_bytes=path.stat().st_size, field="text"
    )
    tracemalloc.start()
    try:
        kept = [tracemalloc.get_traced_memory()[0] for _ in read_jsonl(partition, 1 << 30)]  # without Arrow's texts
    finally:
        tracemalloc.stop()
    assert len(kept) >= 4
    assert max(kept[1:]) < size // 2  # but those of a file's first batch, whose start is looked at
