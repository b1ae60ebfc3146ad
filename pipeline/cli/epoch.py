"""The load stage: one timed epoch of embedded batches, read as a training job would."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pipeline.base.progress import ProgressBar
from pipeline.cli.sources import open_loader, source_paths
from pipeline.embedding import TokenEmbedding, embed_batches
from pipeline.loader.mixture import Mixture

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from pipeline.loader.loader import ShardLoader
    from pipeline.settings import EmbeddingConfig, LoaderConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What the load stage saw."""

    batches: int
    windows: int
    tokens: int
    seconds: float  # of the epoch, without opening the data set and making the layer
    load_seconds: float  # the part of it spent waiting for the loader; the rest is the embedding's
    first_batch_seconds: float  # from the start of the epoch to the first embedded batch
    shapes: dict[str, list[int]]  # of the first batch: input_ids, target_ids, embeddings
    weight: list[int]  # the token table, [V, D]
    shuffle: str
    window_id: int  # the first window of the first batch, shown in the summary
    input_ids: list[int]
    target_ids: list[int]
    bytes_decoded: int = 0  # of row groups, as they are in memory
    source_samples: dict[str, int] | None = None  # of a mixture, how many samples each folder gave


def load_batches(
    path: str | os.PathLike[str],
    *,
    loader: LoaderConfig,
    embedding: EmbeddingConfig,
    score: str = "all",
    tokenizer: Mapping[str, Any] | None = None,
) -> LoadReport:
    """Stream one epoch of a data set through an embedding layer. `batch_size="all"` takes the split in one batch.

    Raises:
        ValueError: the folder is no data set, has no such split, was made with another tokenizer, or has fewer
            windows than one batch.

    """
    batches = open_loader(
        path,
        loader,
        rank=0,  # whatever else runs beside it: this stage reads the complete epoch
        world_size=1,
        score=score,
        tokenizer=tokenizer,
    )
    batch_size, max_length = batches.batch_size, batches.reader.max_length
    vocab_size = batches.reader.tokenizer["vocab_size"]
    layer = TokenEmbedding(vocab_size, embedding.dim, max_length, positions=embedding.positions, seed=embedding.seed)
    first, first_seconds, waited, num_batches, windows = None, 0.0, 0.0, 0, 0
    total = len(batches) * batch_size * max_length
    started = time.perf_counter()
    with (
        torch.no_grad(),
        closing(iter(batches)) as loaded,
        ProgressBar("load", total, "tokens") as bar,
    ):
        while True:
            asked = time.perf_counter()
            batch = next(loaded, None)
            waited += time.perf_counter() - asked
            if batch is None:
                break
            (embedded,) = embed_batches([batch], layer)
            num_vectors = embedded.embeddings.shape[:2].numel()  # looking at them computes them
            if first is None:
                first, first_seconds = embedded, time.perf_counter() - started
            num_batches += 1
            windows += int((batch.window_ids >= 0).sum())
            bar.update(num_vectors)
    assert first is not None, "a loader with a length has a batch"
    return LoadReport(
        batches=num_batches,
        windows=windows,
        tokens=windows * max_length,
        seconds=time.perf_counter() - started,
        load_seconds=waited,
        first_batch_seconds=first_seconds,
        shapes={name: list(getattr(first, name).shape) for name in ("input_ids", "target_ids", "embeddings")},
        weight=list(layer.weight.shape),
        shuffle=batches.order.shuffle,
        window_id=int(first.window_ids[0]),
        input_ids=first.input_ids[0].tolist(),
        target_ids=first.target_ids[0].tolist(),
        bytes_decoded=int(batches.metrics()["bytes_decoded"]),
        source_samples=count_samples(batches, source_paths(path, loader)),
    )


def count_samples(loader: ShardLoader, paths: list[str | os.PathLike[str]]) -> dict[str, int] | None:
    """Return how many samples each source of a mixture gave, by its folder; None for one data set."""
    if not isinstance(loader.order, Mixture):
        return None
    counts: dict[str, int] = {}
    for path, count in zip(map(str, paths), loader.source_samples, strict=True):
        counts[path] = counts.get(path, 0) + count  # the same data set may be there twice
    return counts
