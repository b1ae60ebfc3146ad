r"""Read JSON lines: Arrow parses a block of lines at once, and Python's json judges the lines of a block it refuses.

Guarantee: both give the same documents. Arrow's answer is used for a block only if the block is UTF-8 without NUL
bytes, each line that is not blank starts with `{` and ends with `}`, and Arrow finds as many objects as there are such
lines. Between `}` and a following `{` JSON allows nothing but the top level, so each line is then exactly one object.
The texts of such a block are UTF-8, since Arrow refuses the only escape that would not be: half a surrogate pair.
In a dotted path no key may be spelled in another way that leads to the text (`"a.b":`, or a key with an escape).
Any other block goes to Python's json, line by line, which gives each bad line its reason. A line that Python refuses
but Arrow accepts by itself (nesting deeper than Python's recursion, `-NaN`) is accepted, as it is in a good block.

Blank lines are not documents. A byte order mark at the start of a file is skipped. Lines end in \n or \r\n.

Cost: Arrow 300 to 700 MB/s on one core, Python's json about 100.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from pipeline.base.arrow import binary_array, flags_of
from pipeline.corpus.compression import BLOCK_BYTES, read_blocks
from pipeline.corpus.documents import (
    HEAD_BYTES,
    DocumentBatch,
    DocumentFault,
    Partition,
    as_utf8,
    not_utf8,
    only_rejected,
    reject,
    too_long,
)
from pipeline.corpus.fields import list_some
from pipeline.corpus.hashed import read_file
from pipeline.corpus.signatures import check_format

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLANKS = b" \t\r"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_BLOCK = 2**31 - 2**16  # Arrow's blocks and strings have 32-bit sizes


def read_jsonl(partition: Partition, limit: int) -> Iterator[DocumentBatch]:
    """Yield the documents of some files, or of a byte range of one; a line over `limit` bytes is rejected."""
    for source, path in enumerate(partition.paths):
        row = partition.first_row
        blocks = read_file(partition, source)
        if partition.start == 0:
            blocks = check_format(path, blocks)
        for block, size in _complete_lines(blocks, limit, is_start=partition.start == 0):
            if size:
                yield only_rejected(reject(partition, source, row, too_long(size, limit, " of one line"), block))
                row += 1
                continue
            lines = parse_lines(block, partition.field)
            faults = [one for one in lines.faults if one[1].reason != "null"]
            num_nulls = len(lines.faults) - len(faults)
            del block  # not needed while the batch is encoded
            yield DocumentBatch(
                texts=lines.texts,
                sources=np.full(len(lines.texts), source, np.int32),
                rows=lines.rows + row,
                rejected=[
                    reject(partition, source, row + at, _name_csv(fault, line) if row + at == 0 else fault, line)
                    for at, fault, line in faults
                ],
                skipped=Counter({(source, "null"): num_nulls} if num_nulls else {}),
            )
            row += lines.num_lines


def _name_csv(fault: DocumentFault, line: bytes) -> DocumentFault:
    """Say of a file's first line that it looks like one of CSV, if it does."""
    if fault.reason != "not_json" or line.startswith(b"{") or not (b"," in line or b"\t" in line):
        return fault
    return DocumentFault("not_json", f"{fault.detail}; it looks like CSV: convert the file to JSON lines or Parquet")


def has_json_lines(path: str | Path, field: str) -> bool:
    """Tell whether a file whose name ends in `.json` contains JSON lines: its first line is an object with the field.

    A line that does not end in the file's first block is taken for one.
    """
    try:
        block = next(read_blocks(path), b"").removeprefix(BYTE_ORDER_MARK).lstrip()
    except ValueError:
        return True  # its reader says what is wrong
    line, end, _ = block.partition(b"\n")
    if not line.startswith(b"{") or (not end and len(block) >= BLOCK_BYTES):
        return line.startswith(b"{")
    fault = parse_line(line, field)
    return not isinstance(fault, DocumentFault) or fault.reason not in ("not_json", "not_object", "missing")


def _complete_lines(blocks: Iterator[bytes], limit: int, *, is_start: bool) -> Iterator[tuple[bytes, int]]:
    """Yield blocks of complete lines, and 0. Of a line over `limit` bytes: its first bytes, and its size so far."""
    open_line: list[bytes] = []
    size = 0
    skipping = False
    for block in _without_mark(blocks) if is_start else blocks:
        end = block.rfind(b"\n") + 1
        if end and skipping:
            skipping = False
            first = block.find(b"\n") + 1
            block, end = block[first:], end - first  # noqa: PLW2901 - what remains of it
        elif skipping:
            continue
        if end:
            lines = [b"".join([*open_line, memoryview(block)[:end]])]  # one copy, not two
            open_line, size = [], 0
            block = block[end:]  # noqa: PLW2901
            yield lines.pop(), 0
        if block:
            open_line.append(block)
            size += len(block)
        if size > limit:
            yield open_line[0][:HEAD_BYTES], size
            open_line, size, skipping = [], 0, True
    if open_line:
        yield b"".join(open_line), 0


def _without_mark(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the blocks without a byte order mark at their start, which may cross the first ones."""
    start = b""
    while len(start) < len(BYTE_ORDER_MARK) and (block := next(blocks, None)) is not None:
        start += block
    yield start.removeprefix(BYTE_ORDER_MARK)
    del start, block  # which are a complete block
    yield from blocks


class Lines(NamedTuple):
    """The documents in a block of lines."""

    texts: pa.Array  # large_string [documents], valid UTF-8
    rows: np.ndarray  # int64 [documents], the number of each one's line in the block, from 0
    faults: list[tuple[int, DocumentFault, bytes]]  # line number, what is wrong, the line
    num_lines: int


def parse_lines(block: bytes, field: str) -> Lines:
    """Return the documents in a block of complete lines (the last may lack its line feed): the text in `field`."""
    return _parse_fast(block, field) or parse_slowly(block, field)


def parse_slowly(block: bytes, field: str) -> Lines:
    """Do the same with Python's json, line by line: it decides what is rejected, and is the fast path's slow twin."""
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
    return Lines(binary_array(texts, pa.large_string()), np.array(rows, np.int64), faults, len(lines))


class _Object(tuple[tuple[str, object], ...]):
    """A JSON object as its pairs, so that a repeated name is noticed."""

    __slots__ = ()


def parse_line(line: bytes, field: str) -> bytes | DocumentFault:
    """Return the text of one line as UTF-8, or what is wrong with it."""
    if fault := not_utf8(line):
        return fault
    try:
        found = json.loads(
            line.decode(), object_pairs_hook=_Object, parse_int=_number, parse_float=_number, parse_constant=_number
        )
    except (ValueError, RecursionError) as error:
        found_by_arrow = _ask_arrow(line, field)
        if not found_by_arrow:
            return DocumentFault("not_json", f"the line is not JSON: {error}")
        text = found_by_arrow[0][0].as_buffer()
        return (
            DocumentFault("missing", f"the field {field!r} (corpus.text_field) is missing or null")
            if text is None
            else text.to_pybytes()
        )
    return _text_of(found, field)


def _text_of(found: object, field: str) -> bytes | DocumentFault:
    if not isinstance(found, _Object):
        return DocumentFault("not_object", f"the line is not a JSON object, but {_kind(found)}")
    value = _find_value(found, field)
    if isinstance(value, DocumentFault):
        return value
    if value is None:
        return DocumentFault("null", f"the field {field!r} is null")
    if not isinstance(value, str):
        return DocumentFault("not_string", f"the field {field!r} is {_kind(value)}, not a string")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        return DocumentFault("not_unicode", f"the field {field!r} has half a surrogate pair at character {error.start}")


def _find_value(found: _Object, field: str) -> object:
    """Return the value of a field, which may be nested (`fields` has the rule), or what is wrong with the object."""
    parts, on_the_way = field.split("."), found
    while True:
        for stop in range(len(parts), 0, -1):
            name = ".".join(parts[:stop])
            if values := [value for key, value in on_the_way if key == name]:
                break
        else:
            names = list_some(repr(name) for name in _list_fields(found))
            return DocumentFault("missing", f"there is no field {field!r} (corpus.text_field); the fields are {names}")
        if len(values) > 1:
            return DocumentFault("duplicate", f"the field {name!r} occurs {len(values)} times")
        parts, value = parts[stop:], values[0]
        if not parts or value is None:
            return value
        if not isinstance(value, _Object):
            return DocumentFault("not_object", f"the field {name!r} on the way to {field!r} is {_kind(value)}")
        on_the_way = value


def _list_fields(found: _Object, before: str = "") -> Iterator[str]:
    for name, value in found:
        if isinstance(value, _Object) and value:
            yield from _list_fields(value, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def _parse_fast(block: bytes, field: str) -> Lines | None:
    """Parse a block with Arrow; return None if its answer might differ from the slow path's."""
    found = _ask_arrow(block, field)
    if found is None:
        return None
    texts, starts, stops, rows, num_lines = found
    if not texts.null_count:
        return Lines(texts, rows, [], num_lines)
    faults = []
    for at in np.flatnonzero(flags_of(texts.is_null())):  # null, or no such field
        line = block[starts[at] : stops[at]]
        fault = parse_line(line, field)
        assert isinstance(fault, DocumentFault), f"Arrow finds no text where Python's json does: {line[:200]!r}"
        faults.append((int(rows[at]), fault, line))
    valid = texts.is_valid()
    return Lines(texts.filter(valid), rows[flags_of(valid)], faults, num_lines)


def _ask_arrow(block: bytes, field: str) -> tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray, int] | None:
    """Return a block's texts (large_string, null if missing), and the starts, ends and numbers of their lines."""
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
        return binary_array([], pa.large_string()), starts, stops, rows, num_lines
    if not ((data[starts] == ord("{")).all() and (data[stops - 1] == ord("}")).all()):
        return None
    offsets = pa.py_buffer(np.array([0, len(block)], np.int64))
    if as_utf8(pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(block)])) is None:
        return None
    texts = _read_column(block, field)
    if texts is None or len(texts) != len(rows):
        return None
    return texts, starts, stops, rows, num_lines


def _read_column(block: bytes, field: str) -> pa.Array | None:
    """Read the text in `field` of each object of a block; None if Arrow refuses or may miss it.

    The block is UTF-8, so the texts are: Arrow's cast to large_string checks nothing again, it only widens offsets.
    """
    names = field.split(".")
    if len(names) > 1 and _other_spellings(field).search(block):
        return None
    kind: Any = pa.string()
    for name in reversed(names[1:]):
        kind = pa.struct([(name, kind)])
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(block),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=pa.schema([(names[0], kind)]), unexpected_field_behavior="ignore"
            ),
        )
    except pa.ArrowInvalid:
        return None
    column = table.column(0)
    texts = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which would copy even one chunk
    for _ in names[1:]:
        texts = pc.struct_field(texts, [0])
    return texts.cast(pa.large_string())


@lru_cache
def _other_spellings(field: str) -> re.Pattern[bytes]:
    """Return what may be a key that spells a part of a dotted path otherwise: `"a.b":`, or a key with an escape."""
    parts = field.split(".")
    joined = {".".join(parts[start:stop]) for start in range(len(parts)) for stop in range(start + 2, len(parts) + 1)}
    plain = "|".join(re.escape(name) for name in sorted(joined))
    longest = 6 * len(field)  # each character may be written as an escape
    return re.compile(rf'(?:(?:{plain})"|\\[^"]{{0,{longest}}}")[ \t\r]*:'.encode())


def _number(_: str) -> int:
    """Replace every number: none is a text, and a million digits need no conversion."""
    return 0


def _kind(value: object) -> str:
    kinds = {bool: "a truth value", int: "a number", str: "a string", list: "an array", _Object: "an object"}
    return "null" if value is None else kinds[type(value)]
