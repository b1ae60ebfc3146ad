"""Places at which a long text may be cut, so that its parts encode to the IDs of the whole.

Such a place is an ASCII space that follows a character which is not white space. In the patterns of the published
encodings no pretoken holds such a space behind its first character, so a pretoken always begins there, and merging
never crosses pretokens. A tokenizer says by `cut_safe` whether this holds for it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# A space behind a byte that may end a character which is not white space; from 0x80 `_ends_in_space` decides.
PLACE = re.compile(rb"[\x21-\x7e\x80-\xff] ")


def safe_cuts(text: bytes | bytearray, start: int = 0) -> Iterator[int]:
    """Where a text may be cut: each place of an ASCII space behind a character that is not white space.

    The two parts encode to the IDs of the whole (`rank_files.PATTERNS` says for which tokenizers).
    """
    for match in PLACE.finditer(text, start):
        place = match.end() - 1
        if text[place - 1] < 0x80 or not _ends_in_space(text, place):
            yield place


def _ends_in_space(text: bytes | bytearray, stop: int) -> bool:
    """Whether the character that ends before byte `stop` is white space, or no character at all."""
    start = next((at for at in range(stop - 1, max(-1, stop - 5), -1) if text[at] & 0xC0 != 0x80), stop)
    try:
        return text[start:stop].decode().isspace() or start == stop
    except UnicodeDecodeError:
        return True
