"""Where a long text may be cut so that its segments encode to the same IDs as the complete text.

A cut point is an ASCII space that follows a character other than white space. In the patterns of the published
encodings such a space is always the first character of a pretoken, and merging never crosses pretokens. A tokenizer's
`cut_safe` says whether this holds for it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# A space after a byte that may end a character other than white space; from 0x80 on `_ends_in_space` decides.
_CANDIDATE = re.compile(rb"[\x21-\x7e\x80-\xff] ")


def safe_cuts(text: bytes | bytearray, start: int = 0) -> Iterator[int]:
    """Yield the byte offset of each cut point: an ASCII space that follows a character other than white space.

    `rank_files.PATTERNS` says for which tokenizers both parts encode to the IDs of the complete text.
    """
    for match in _CANDIDATE.finditer(text, start):
        offset = match.end() - 1
        if text[offset - 1] < 0x80 or not _ends_in_space(text, offset):
            yield offset


def _ends_in_space(text: bytes | bytearray, stop: int) -> bool:
    """Return whether the character that ends before byte `stop` is white space, or not a character at all."""
    start = next((at for at in range(stop - 1, max(-1, stop - 5), -1) if text[at] & 0xC0 != 0x80), stop)
    try:
        return text[start:stop].decode().isspace() or start == stop
    except UnicodeDecodeError:
        return True
