"""Arrow arrays made and read without what imports pandas where it is installed, for 0.3 s: `pa.array`, `to_numpy`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def binary_array(texts: Sequence[bytes], kind: pa.DataType | None = None) -> pa.Array:
    """Return texts as a large_binary array, or as another type with the same layout."""
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))]
    return pa.Array.from_buffers(kind or pa.large_binary(), len(texts), buffers)


def numbers_of(array: pa.Array) -> np.ndarray:
    """Return an array of integers without nulls as numpy's, without a copy; `to_numpy` imports pandas, too."""
    assert not array.null_count, "a null is no number"
    width = array.type.bit_width // 8
    values = array.buffers()[1]
    if not len(array):
        return np.zeros(0, f"i{width}")
    return np.frombuffer(values, f"i{width}", len(array), array.offset * width)


def numbers_array(values: np.ndarray) -> pa.Array:
    """Return numpy's integers, 1-D, as an array, without a copy if they are contiguous."""
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, buffer])


def flags_of(array: pa.BooleanArray) -> np.ndarray:
    """Return an array of booleans without nulls as numpy's."""
    assert not array.null_count, "a null is no flag"
    if not len(array):
        return np.zeros(0, bool)
    bits = np.frombuffer(array.buffers()[1], np.uint8)
    return np.unpackbits(bits, count=array.offset + len(array), bitorder="little")[array.offset :].view(bool)


def flags_array(flags: np.ndarray) -> pa.BooleanArray:
    """Return numpy's booleans, 1-D, as an array."""
    bits = pa.py_buffer(np.packbits(flags, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), len(flags), [None, bits])


def text_array(texts: Iterable[str]) -> pa.Array:
    """Return texts as a string array."""
    return binary_array([text.encode() for text in texts], pa.large_string()).cast(pa.string())
