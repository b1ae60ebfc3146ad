r"""JSON lines to documents: Arrow parses a block of lines at once; Python's json judges the lines of a refused block.

Guarantee: both ways give the same documents. Arrow's answer is taken for a block only if the block is UTF-8 without NUL
bytes, each line that is not blank begins with `{` and ends with `}`, and Arrow finds as many objects as there are such
lines. Between `}` and a following `{` JSON allows nothing but the top level, so then each line is exactly one object.
Any other block goes to Python's json, line by line, which gives each bad line its reason. A line that Python refuses
but Arrow takes by itself (nesting deeper than Python's recursion, `-NaN`) is taken, as it would be in a good block.

Blank lines are no documents. A byte order mark at the begin of a file is passed over. Lines end in \n or \r\n.

Cost: Arrow 300 to 700 MB/s on one core, Python's json about 100.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.json

from pipeline.corpus.documents import DocumentFault, as_utf8

BLANKS = b" \t\r"
NAME = 60  # characters of a field's name that a message shows
MAX_BLOCK = 2**31 - 2**16  # Arrow's blocks and strings have 32-bit sizes


class Lines(NamedTuple):
    """The documents in a block of lines."""

    texts: pa.Array  # large_binary [documents], valid UTF-8
    rows: np.ndarray  # int64 [documents], the number of each one's line in the block, from 0
    faults: list[tuple[int, DocumentFault, bytes]]  # line number, what is wrong, the line
    num_lines: int


def parse_lines(block: bytes, field: str) -> Lines:
    """The documents in a block of whole lines (the last may lack its line feed): the text in `field` of each."""
    return _parse_fast(block, field) or parse_slowly(block, field)


def parse_slowly(block: bytes, field: str) -> Lines:
    """The same by Python's json, line by line: the judge of what is bad, and the fast path's slow twin."""
    texts: list[bytes] = []
    rows: list[int] = []
    faults: list[tuple[int, DocumentFault, bytes]] = []
    lines = block.split(b"\n")
    if not lines[-1]:
        lines.pop()
    for row, line in enumerate(lines):
        if not line.strip(BLANKS):
            continue
        text = parse_line(line, field)
        if isinstance(text, DocumentFault):
            faults.append((row, text, line))
        else:
            texts.append(text)
            rows.append(row)
    return Lines(pa.array(texts, pa.large_binary()), np.array(rows, np.int64), faults, len(lines))


class _Object(tuple[tuple[str, object], ...]):
    """A JSON object as its pairs, so that a name that comes twice is seen."""

    __slots__ = ()


def parse_line(line: bytes, field: str) -> bytes | DocumentFault:
    """The text of one line as UTF-8, or what is wrong with it."""
    try:
        decoded = line.decode()
    except UnicodeDecodeError as error:
        return DocumentFault(
            "not_utf8", f"byte {error.start} of it (0x{line[error.start]:02x}) is not UTF-8: {error.reason}"
        )
    try:
        found = json.loads(
            decoded, object_pairs_hook=_Object, parse_int=_number, parse_float=_number, parse_constant=_number
        )
    except (ValueError, RecursionError) as error:
        found_by_arrow = _ask_arrow(line, field)
        if not found_by_arrow:
            return DocumentFault("not_json", f"it is no JSON: {error}")
        text = found_by_arrow[0][0].as_py()
        return (
            DocumentFault("missing", f"its field {field!r} (corpus.text_field) is missing or null")
            if text is None
            else text
        )
    return _text_of(found, field)


def _text_of(found: object, field: str) -> bytes | DocumentFault:  # noqa: PLR0911 - each reason is a return
    if not isinstance(found, _Object):
        return DocumentFault("not_object", f"it is no JSON object, but {_kind(found)}")
    values = [value for name, value in found if name == field]
    if not values:
        names = ", ".join(repr(name[:NAME]) for name, _ in found[:8]) or "none"
        return DocumentFault("missing", f"it has no field {field!r} (corpus.text_field); its fields are {names}")
    if len(values) > 1:
        return DocumentFault("duplicate", f"its field {field!r} comes {len(values)} times")
    (value,) = values
    if value is None:
        return DocumentFault("null", f"its field {field!r} is null")
    if not isinstance(value, str):
        return DocumentFault("not_string", f"its field {field!r} is {_kind(value)}, not a string")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        return DocumentFault(
            "not_unicode", f"its field {field!r} holds half a surrogate pair at character {error.start}"
        )


def _parse_fast(block: bytes, field: str) -> Lines | None:
    """By Arrow; None where its answer would not be certain to be that of the slow path."""
    found = _ask_arrow(block, field)
    if found is None:
        return None
    texts, starts, stops, rows, num_lines = found
    if not texts.null_count:
        return Lines(texts, rows, [], num_lines)
    faults = []
    for at in np.flatnonzero(texts.is_null().to_numpy(zero_copy_only=False)):  # null, or no such field
        line = block[starts[at] : stops[at]]
        fault = parse_line(line, field)
        assert isinstance(fault, DocumentFault), f"Arrow finds no text where Python's json does: {line[:200]!r}"
        faults.append((int(rows[at]), fault, line))
    valid = texts.is_valid()
    return Lines(texts.filter(valid), rows[valid.to_numpy(zero_copy_only=False)], faults, num_lines)


def _ask_arrow(  # noqa: PLR0911 - each doubt is a return
    block: bytes, field: str
) -> tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray, int] | None:
    """The texts of a block (large_binary, null where there is none), the begins, ends and numbers of their lines."""
    if len(block) > MAX_BLOCK or b"\0" in block:
        return None
    data = np.frombuffer(block, np.uint8)
    stops = np.flatnonzero(data == ord("\n"))
    if len(block) and block[-1] != ord("\n"):
        stops = np.append(stops, len(block))
    num_lines = len(stops)
    starts = np.append(0, stops[:-1] + 1) if num_lines else stops
    stops = stops - ((stops > starts) & (data[stops - 1] == ord("\r")))
    rows = np.flatnonzero(stops > starts)
    starts, stops = starts[rows], stops[rows]
    if not len(rows):
        return pa.array([], pa.large_binary()), starts, stops, rows, num_lines
    if not ((data[starts] == ord("{")).all() and (data[stops - 1] == ord("}")).all()):
        return None
    offsets = pa.py_buffer(np.array([0, len(block)], np.int64))
    if as_utf8(pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(block)])) is None:
        return None
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(block),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=pa.schema([(field, pa.string())]), unexpected_field_behavior="ignore"
            ),
        )
    except pa.ArrowInvalid:
        return None
    column = table.column(0)
    texts = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which would copy even one chunk
    texts = texts.cast(pa.large_binary())
    if len(texts) != len(rows) or as_utf8(texts) is None:
        return None
    return texts, starts, stops, rows, num_lines


def _number(_: str) -> int:
    """All numbers are one: none is a text, and a million digits need no conversion."""
    return 0


def _kind(value: object) -> str:
    kinds = {bool: "a truth value", int: "a number", str: "a string", list: "an array", _Object: "an object"}
    return "null" if value is None else kinds[type(value)]
