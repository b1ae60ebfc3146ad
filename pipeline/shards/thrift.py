"""Write structs of Thrift's compact protocol, in which Parquet has its page headers and its footer.

A field is its number, its kind and its encoded value; `i32`, `i64`, `text`, `structs` and the others make one. The
fields of a struct stand in the order of their numbers. The protocol:
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

Field: TypeAlias = tuple[int, int, bytes]  # its number in the struct, the kind of its value, the value

TRUE, BYTE, I32, I64, BINARY, LIST, STRUCT = 1, 3, 5, 6, 8, 9, 12


def varint(value: int) -> bytes:
    """Return a number from 0 in groups of 7 bits, the lowest first.

    >>> varint(300).hex()
    'ac02'

    """
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def struct(*fields: Field) -> bytes:
    """Return a struct of fields, in ascending order of their numbers."""
    parts, before = [], 0
    for number, kind, value in fields:
        assert 0 < number - before < 16, "the fields of a struct ascend in small steps"
        parts.append(bytes([number - before << 4 | kind]) + value)
        before = number
    return b"".join(parts) + b"\0"


def byte(number: int, value: int) -> Field:
    """Return a field with a small number."""
    return number, BYTE, bytes([value])


def true(number: int) -> Field:
    """Return a field that is true."""
    return number, TRUE, b""


def i32(number: int, value: int) -> Field:
    """Return a field with a signed number of 32 bits."""
    return number, I32, _zigzag(value)


def i64(number: int, value: int) -> Field:
    """Return a field with a signed number of 64 bits."""
    return number, I64, _zigzag(value)


def binary(number: int, value: bytes) -> Field:
    """Return a field with bytes."""
    return number, BINARY, varint(len(value)) + value


def text(number: int, value: str) -> Field:
    """Return a field with a text."""
    return binary(number, value.encode())


def nested(number: int, *fields: Field) -> Field:
    """Return a field with a struct."""
    return number, STRUCT, struct(*fields)


def structs(number: int, values: Iterable[bytes]) -> Field:
    """Return a field with a list of encoded structs."""
    return number, LIST, _list(STRUCT, list(values))


def numbers(number: int, values: Iterable[int]) -> Field:
    """Return a field with a list of signed numbers of 32 bits."""
    return number, LIST, _list(I32, [_zigzag(value) for value in values])


def texts(number: int, values: Iterable[str]) -> Field:
    """Return a field with a list of texts."""
    return number, LIST, _list(BINARY, [binary(0, value.encode())[2] for value in values])


def _list(kind: int, values: list[bytes]) -> bytes:
    size = len(values)
    head = bytes([size << 4 | kind]) if size < 15 else bytes([0xF0 | kind]) + varint(size)
    return head + b"".join(values)


def _zigzag(value: int) -> bytes:
    return varint(value << 1 if value >= 0 else (-value << 1) - 1)
