"""The window explorer: a part of a page in which one drags `max_length` and `stride`, and watches the windows slide.

The page contains a stretch of the data set's tokens and everything the counts need, so it loads nothing. What comes
from the data set is JSON without `<`, and the script shows it only as text: no document can run anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.loader.row_group import view_windows
from pipeline.loader.row_group_cache import count_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.loader.shard_reader import ShardReader
    from pipeline.loader.store_reader import StoreReader
    from pipeline.shards.manifest import Manifest
    from pipeline.windows import Documents

HERE = Path(__file__).parent
MOST_TOKENS = 1200  # of the text: a page of a browser draws them in a tenth of a second
BEFORE = 200  # tokens shown before the window that was asked for


def explorer(
    manifest: Manifest,
    reader: ShardReader | StoreReader,
    window: int,
    *,
    documents: Documents | None,
    show_pieces: Callable[[Sequence[int]], list[str]],
) -> str:
    """Return the explorer's HTML, with the text around a window; nothing if windows are not cut by a stride.

    Args:
        manifest: of the data set.
        reader: of one of its splits.
        window: the number of the window that is chosen first.
        documents: first token and number of tokens of each, if windows do not cross documents.
        show_pieces: the text of each of some token IDs.

    """
    entry = manifest.splits[reader.split]
    if manifest.windows["documents"] not in ("join", "separate"):
        return ""
    start, first, ids = read_stretch(reader, window)
    if manifest.windows["documents"] == "join":
        segments, sizes = [[0, entry.num_tokens]], Counter([entry.num_tokens])
    elif documents is not None:
        firsts, counts = documents
        inside = (firsts < first + len(ids)) & (firsts + counts > first)
        segments = np.stack([firsts[inside], counts[inside]], axis=1).tolist()
        sizes = Counter(counts.tolist())
    else:
        return ""
    known = iter(show_pieces([token for token in ids if token is not None]))
    data = {
        "split": reader.split,
        "first": first,
        "ids": ids,
        "pieces": [None if token is None else next(known) for token in ids],
        "segments": segments,
        "sizes": [[size, count] for size, count in sorted(sizes.items())],
        "num_tokens": entry.num_tokens,
        "documents": manifest.windows["documents"],
        "tail": manifest.windows["tail"],
        "max_length": reader.max_length,
        "stride": reader.stride,
        "start": start,
        "num_windows": entry.num_windows,
        "bytes": entry.num_bytes,
    }
    return fill_template(data)


def read_stretch(reader: ShardReader | StoreReader, window: int) -> tuple[int, int, list[int | None]]:
    """Return a window's first token, the first token of a stretch of the split around it, and the stretch's IDs.

    An ID is None where no window contains the token. The stretch ends where the window's row group does.
    """
    group = int(reader.groups.locate(np.array([window]))[0][0])
    tokens = np.empty(count_tokens(reader, group), reader.dtype)
    rows = reader.read_group(group, tokens)
    windows_BT1 = view_windows(tokens, pitch=reader.pitch_of(group), max_length=reader.max_length)
    offset = reader.groups.first_window(group)
    start = int(rows.starts[window - offset])
    low = max(0, start - BEFORE)
    near = np.flatnonzero((rows.starts < low + MOST_TOKENS) & (rows.starts + rows.lengths >= low))
    found: dict[int, int] = {}
    for row in near.tolist():
        ids = windows_BT1[row, : rows.lengths[row] + 1].tolist()
        found |= dict(enumerate(ids, int(rows.starts[row])))
    first = max(low, min(found))
    last = min(max(found), first + MOST_TOKENS - 1)
    return start, first, [found.get(token) for token in range(first, last + 1)]


def fill_template(data: dict[str, Any]) -> str:
    """Return the explorer with its data and its script."""
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    page = (HERE / "explorer.html").read_text(encoding="utf-8")
    return page.replace("@SCRIPT@", script()).replace("@DATA@", text)


def script() -> str:
    """Return the explorer's script."""
    return (HERE / "explorer.js").read_text(encoding="utf-8")


def script_policy() -> str:
    """Return the part of a page's content policy that allows the explorer's script, by its hash, and no other."""
    return f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()}'"
