"""JSON lines: Arrow's way and Python's way give the same documents, and each bad line has its reason."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.corpus.jsonl import parse_lines, parse_slowly

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
@settings(max_examples=600)
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


@settings(max_examples=200)
@given(texts=st.lists(st.text(), max_size=5), ascii_=st.booleans(), end=st.sampled_from(["\n", "\r\n"]))
def test_what_json_writes_is_read_back(texts, ascii_, end):
    block = "".join(json.dumps({"n": 1, "text": text}, ensure_ascii=ascii_) + end for text in texts)
    found = parse_lines(block.encode(), "text")
    assert [text.decode() for text in found.texts.to_pylist()] == texts
    assert found.rows.tolist() == list(range(len(texts)))
    assert not found.faults


def test_a_case_by_eye():
    found = parse_lines(b'{"text":"a"}\n\n{"text":7}\n{"id":1,"text":"b"}', "text")
    assert (found.texts.to_pylist(), found.rows.tolist(), found.num_lines) == ([b"a", b"b"], [0, 3], 4)
    ((row, fault, line),) = found.faults
    assert (row, fault.reason, line) == (2, "not_string", b'{"text":7}')
    assert fault.detail == "the field 'text' is a number, not a string"
