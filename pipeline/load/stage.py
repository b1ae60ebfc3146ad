"""The load stage: one epoch of embedded batches, timed, as a training job would draw them."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from pipeline.load.embedding import TokenEmbedding, embed_batches
from pipeline.load.loader import MEMORY_BUDGET, ShardLoader
from pipeline.manifest import read_manifest

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What the load stage saw."""

    batches: int
    windows: int
    tokens: int
    seconds: float  # of the epoch; opening the data set and making the layer left out
    load_seconds: float  # the part of it spent waiting for the loader; the rest is the embedding's
    first_batch_seconds: float  # from the start of the epoch to the first embedded batch
    shapes: dict[str, list[int]]  # of the first batch: input_ids, target_ids, embeddings
    weight: list[int]  # the token table, [V, D]
    shuffle: str
    window_id: int  # the first batch's first window, for a look at it
    input_ids: list[int]
    target_ids: list[int]


def load_batches(
    path: str | os.PathLike[str],
    *,
    split: str = "train",
    batch_size: int | str = 8,
    shuffle: str = "auto",
    seed: int = 0,
    lanes: int = 64,
    drop_last: bool = True,
    score: str = "all",
    document_ids: bool = False,
    threads: int | None = None,
    memory_budget: int = MEMORY_BUDGET,
    tokenizer: Mapping[str, Any] | None = None,
    dim: int = 256,
    positions: str = "learned",
    embedding_seed: int = 0,
) -> LoadReport:
    """Stream one epoch of a data set through an embedding layer. `batch_size="all"` takes the split in one batch.

    Raises:
        ValueError: the folder is no data set, has no such split, is of another tokenizer, or holds fewer windows than
            one batch needs.

    """
    manifest = read_manifest(path)
    if batch_size == "all":
        batch_size = manifest.splits[split].num_windows if split in manifest.splits else 1
    assert isinstance(batch_size, int), "the config allows a whole number or 'all'"
    loader = ShardLoader(
        path,
        split=split,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        lanes=lanes,
        drop_last=drop_last,
        score=score,
        document_ids=document_ids,
        threads=threads,
        memory_budget=memory_budget,
        tokenizer=tokenizer,
    )
    if len(loader) == 0:
        raise ValueError(
            f"{path}: its {split} split has {len(loader.order)} windows, fewer than loader.batch_size={batch_size}; "
            "lower it, or set loader.drop_last=false"
        )
    vocab_size = manifest.tokenizer["vocab_size"]
    max_length = manifest.splits[split].max_length
    embedding = TokenEmbedding(vocab_size, dim, max_length, positions=positions, seed=embedding_seed)
    first, first_seconds, waited, batches, windows = None, 0.0, 0.0, 0, 0
    total = len(loader) * batch_size * max_length
    started = time.perf_counter()
    with (
        torch.no_grad(),
        closing(iter(loader)) as loaded,
        tqdm(desc="load", total=total, unit="tok", unit_scale=True, disable=None, file=sys.stderr) as bar,
    ):
        while True:
            asked = time.perf_counter()
            batch = next(loaded, None)
            waited += time.perf_counter() - asked
            if batch is None:
                break
            (embedded,) = embed_batches([batch], embedding)
            if first is None:
                first, first_seconds = embedded, time.perf_counter() - started
            batches += 1
            windows += int((batch.window_ids >= 0).sum())
            bar.update(batch.input_ids.numel())
    assert first is not None, "a loader with a length gives a batch"
    return LoadReport(
        batches=batches,
        windows=windows,
        tokens=windows * max_length,
        seconds=time.perf_counter() - started,
        load_seconds=waited,
        first_batch_seconds=first_seconds,
        shapes={name: list(getattr(first, name).shape) for name in ("input_ids", "target_ids", "embeddings")},
        weight=list(embedding.weight.shape),
        shuffle=loader.order.shuffle,
        window_id=int(first.window_ids[0]),
        input_ids=first.input_ids[0].tolist(),
        target_ids=first.target_ids[0].tolist(),
    )
