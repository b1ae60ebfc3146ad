"""Extend the content of a zstd frame at both ends without compressing it again.

Compressed blocks refer to content by its distance, so they mean the same after other content. A frame's first
compressed block also assumes that no block before it has set a repeated distance or a table: blocks that only store
bytes set none. So stored blocks before and after the blocks of a frame give another valid frame. The format:
https://www.rfc-editor.org/rfc/rfc8878
"""

from __future__ import annotations

from typing import NamedTuple

MAGIC = bytes.fromhex("28b52ffd")
MAX_BLOCK = 1 << 17
STORED, RUN = 0, 1  # kinds of blocks: bytes as they are, one byte repeated; others are compressed


class _Header(NamedTuple):
    size: int  # of the header itself
    window: bytes  # the byte that gives the window's size; none where the window is the whole content
    max_block: int
    content: int  # bytes that the frame unpacks to


def extend_frame(frame: memoryview, *, before: bytes, after: bytes = b"") -> list[bytes | memoryview]:
    """Return, in pieces, one frame that unpacks to `before`, the content of `frame`, and `after`.

    >>> import pyarrow as pa
    >>> codec = pa.Codec("zstd")
    >>> frame = memoryview(codec.compress(b"banana" * 100))
    >>> codec.decompress(b"".join(extend_frame(frame, before=b"<", after=b">")), 602, asbytes=True)[-8:]
    b'bbanana>'

    """
    header = _parse_header(frame)
    total = len(before) + header.content + len(after)
    is_single = not header.window
    pieces: list[bytes | memoryview] = [
        MAGIC + bytes([2 << 6 | is_single << 5]) + header.window + total.to_bytes(4, "little"),
        *_store(before, header.max_block, is_last=False),
    ]
    if not after:
        return [*pieces, frame[header.size :]]
    last = _last_block(frame, header.size)
    flag = bytes([frame[last] & 0xFE])  # it is not the last block any more
    return [*pieces, frame[header.size : last], flag, frame[last + 1 :], *_store(after, header.max_block, is_last=True)]


def _parse_header(frame: memoryview) -> _Header:
    assert frame[:4] == MAGIC, "this is a zstd frame"
    descriptor = frame[4]
    assert not descriptor & 7, "the frame has neither a checksum nor a dictionary"
    is_single = descriptor >> 5 & 1
    at = 5 + (not is_single)
    width = (is_single, 2, 4, 8)[descriptor >> 6]
    assert width, "the frame says how long its content is"
    content = int.from_bytes(frame[at : at + width], "little") + (256 if width == 2 else 0)
    window = content
    if not is_single:
        base = 1 << 10 + (frame[5] >> 3)
        window = base + base // 8 * (frame[5] & 7)
    return _Header(at + width, bytes(frame[5:at]), max(1, min(window, MAX_BLOCK)), content)


def _store(content: bytes, max_block: int, *, is_last: bool) -> list[bytes]:
    """Return blocks that store bytes as they are."""
    starts = range(0, len(content), max_block)
    parts = [content[start : start + max_block] for start in starts]
    return [
        (len(part) << 3 | STORED << 1 | (is_last and start == starts[-1])).to_bytes(3, "little") + part
        for start, part in zip(starts, parts, strict=True)
    ]


def _last_block(frame: memoryview, at: int) -> int:
    """Return where the header of a frame's last block is."""
    while True:
        header = int.from_bytes(frame[at : at + 3], "little")
        if header & 1:
            return at
        at += 3 + (1 if header >> 1 & 3 == RUN else header >> 3)
