"""Text that lies in no window: tails that fill none, documents too short for one, gaps of a stride above `max_length`.

By arithmetic, nothing is read. A token is in a window if it is one of its inputs or its last target. The windows of a
segment begin at its first token, so what they leave is a gap behind each of them (from stride L + 2 on) and the tail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.windows import Windows


def count_left_over(windows: Windows, firsts: np.ndarray, counts: np.ndarray) -> dict[str, int]:
    """How many tokens, and how many documents as a whole, lie in none of a split's windows.

    Args:
        windows: of the split; one segment for all of it, or one for each document.
        firsts: int64 [documents], each document's first token in the split's stream.
        counts: int64 [documents], its tokens.

    """
    span = windows.max_length + 1
    in_segment = np.diff(windows.ends, prepend=0)
    last = np.maximum(in_segment - 1, 0) * windows.stride  # where the last window of each segment begins
    ends = np.where(in_segment > 0, np.minimum(last + span, windows.sizes), 0)  # behind its last target
    gaps = np.maximum(in_segment - 1, 0) * max(0, windows.stride - span)
    tokens = int((windows.sizes - ends + gaps).sum())
    if len(windows.sizes) == len(firsts) > 1:
        return {"tokens": tokens, "documents": int((in_segment == 0).sum())}
    (last,), (end,) = last, ends
    place = firsts % windows.stride
    in_gap = (firsts < last) & (place >= span) & (place + counts <= windows.stride)
    return {"tokens": tokens, "documents": int(((firsts >= end) | in_gap).sum())}
