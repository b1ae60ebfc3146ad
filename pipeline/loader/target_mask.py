"""Which targets count: those of real tokens and, with `score=new`, only those that no earlier window has scored.

Window k scores the tokens start + 1 .. start + L. A window before it in the same text that starts S tokens earlier has
scored those up to start - S + L, so of window k the first L - S targets are old. Evaluation with overlap counts each
token once this way, with the longest context that the windows give it (Hugging Face's guide to the perplexity of
fixed-length models does the same). The first window of a text has no old target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.settings import SCORES, check_choice

if TYPE_CHECKING:
    from pipeline.loader.readers import Reader, ShardReader, StoreReader
    from pipeline.loader.row_group import RowInfo


def check_score(reader: ShardReader | StoreReader) -> None:
    """Refuse an unknown score, and windows of which it is not known which have earlier ones."""
    check_choice("score", reader.score, SCORES)
    if reader.score == "new" and reader.documents == "separate" and reader.layout == "shuffled":
        raise ValueError(
            "score=new: these windows are stored shuffled and do not cross documents, so which of them starts a "
            "document is not known; evaluate a data set with shards.order=sequential"
        )


def count_scored_targets(reader: Reader, group: int, rows: RowInfo) -> np.ndarray:
    """How many of its first targets each window of a row group shares with earlier windows: int32 [B].

    Where windows cross documents there is one text, and its first window alone has no earlier one. Where they do not, a
    window goes on from the one stored before it if that one is full and starts one stride earlier: a full window's
    document has max_length + 1 tokens from there and one end-of-text token, so the next one cannot begin that early.
    """
    reader, group = reader.part(group)
    overlap = max(0, reader.max_length - reader.stride)
    starts, lengths = rows
    if reader.documents == "join":
        return np.where(starts > 0, overlap, 0).astype(np.int32)
    before, length_before = reader.read_last(group - 1) if group else (-1, 0)
    earlier = np.concatenate([[before], starts[:-1]])
    full = np.concatenate([[length_before], lengths[:-1]]) == reader.max_length
    follows = full & (starts - earlier == reader.stride)
    return np.where(follows, overlap, 0).astype(np.int32)
