"""Which targets count: those of real tokens and, with `score=new`, only those that no earlier window has scored.

Window k scores the tokens start + 1 .. start + L. An earlier window of the same text that starts S tokens before it has
scored the tokens up to start - S + L, so the first L - S targets of window k are scored already. Evaluation with
overlap then counts each token once, with the longest context that the windows give it (as Hugging Face's guide to the
perplexity of fixed-length models does). All targets of a text's first window are new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.loader.damage import DamagedRowGroup
from pipeline.rules import check_choice
from pipeline.settings import SCORES

if TYPE_CHECKING:
    from pipeline.loader.readers import Reader
    from pipeline.loader.row_group import RowInfo
    from pipeline.loader.shard_reader import ShardReader
    from pipeline.loader.store_reader import StoreReader


def check_score(reader: ShardReader | StoreReader) -> None:
    """Refuse an unknown score, and windows whose predecessors are unknown."""
    check_choice("score", reader.score, SCORES)
    if reader.score == "new" and reader.documents == "separate" and reader.layout == "shuffled":
        raise ValueError(
            "score=new: these windows are stored shuffled and do not cross documents, so which of them starts a "
            "document is not known; evaluate a data set with shards.order=sequential"
        )


def count_scored_targets(reader: Reader, group: int, rows: RowInfo) -> np.ndarray:
    """Return how many of its first targets each window of a row group shares with earlier windows: int32 [B].

    Where windows cross documents there is one text, and only its first window has no predecessor. Where they do not, a
    window continues the window stored before it if that one is full and starts one stride earlier: the document of a
    full window has max_length + 1 tokens from there, then one end-of-text token, so the next document starts later.
    """
    reader, group = reader.source_of(group)
    overlap = max(0, reader.max_length - reader.stride)
    starts, lengths, _ = rows
    if reader.documents == "pack":  # packed windows do not overlap
        return np.zeros(len(starts), np.int32)
    if reader.documents == "join":
        return np.where(starts > 0, overlap, 0).astype(np.int32)
    try:
        before, length_before = reader.read_last(group - 1) if group else (-1, 0)
    except DamagedRowGroup:
        if reader.on_bad == "raise":
            raise
        before, length_before = -1, 0  # its windows only fill, so they score no target
    earlier = np.concatenate([[before], starts[:-1]])
    is_full = np.concatenate([[length_before], lengths[:-1]]) == reader.max_length
    continues = is_full & (starts - earlier == reader.stride)
    return np.where(continues, overlap, 0).astype(np.int32)
