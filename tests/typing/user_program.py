"""A program as a user writes it, which `make lint` gives to mypy and nobody runs.

Each line without a comment must pass under `--strict`. Each line with `type: ignore[...]` must be that very error: mypy
also reports an ignore that it does not need, so a wrong name or argument that passes fails the check.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

import torch

import pipeline
from pipeline import (  # type: ignore[attr-defined]
    Batch,
    CorpusConfig,
    EmbeddedBatch,
    Manifest,
    Nonsense,
    PlanReport,
    ShardLoader,
    ShardsConfig,
    SplitConfig,
    StoreWindows,
    TokenEmbedding,
    TokenizerConfig,
    VerifyReport,
    WindowConfig,
    WindowDataset,
    WriteReport,
    embed_batches,
    load_tokenizer,
    plan_shards,
    read_manifest,
    verify_shards,
    write_shards,
)


def write(folder: Path) -> Manifest:
    window = WindowConfig(max_length=1024, stride=512, tail="pad")
    assert_type(plan_shards(folder, window=window), PlanReport)
    report = write_shards(
        folder,
        corpus=CorpusConfig(name="jsonl", path=["a.jsonl", "b.jsonl"]),
        tokenizer=TokenizerConfig(name="gpt2", engine="tiktoken"),
        window=window,
        split=SplitConfig(validation=0.1),
        shards=ShardsConfig(compression="zstd"),
        cache=folder / "cache",
    )
    assert_type(report, WriteReport)
    assert_type(write_shards("texts", corpus=["one text", "another"], tokenizer="bytes"), WriteReport)
    assert_type(verify_shards(folder), VerifyReport)
    assert_type(pipeline.__version__, str)
    return read_manifest(str(folder))


def load(folder: Path) -> Iterator[EmbeddedBatch]:
    loader = ShardLoader(folder, split="train", batch_size=8, shuffle="lanes", seed=1, document_ids=True)
    state = loader.state_dict()
    loader.load_state_dict(state)
    loader.set_epoch(1)
    assert_type(len(loader), int)
    for batch in loader:
        assert_type(batch, Batch)
        assert_type(batch.input_ids, torch.Tensor)
        assert_type(batch.document_ids, torch.Tensor | None)
        inputs, targets = batch
        assert_type((inputs, targets, batch["input_ids"]), tuple[torch.Tensor, torch.Tensor, torch.Tensor])
    mixture = ShardLoader([folder, StoreWindows("store.json", WindowConfig())], weights=[1, 2.5])
    embedding = TokenEmbedding(50257, 256, 1024, positions="learned")
    assert_type(WindowDataset(folder)[0], dict[str, torch.Tensor])
    return embed_batches(mixture, embedding)


def encode(text: str) -> str:
    tokenizer = load_tokenizer("gpt2")
    return tokenizer.decode(tokenizer.encode(text))


def make_mistakes(folder: Path) -> None:
    pipeline.nonsense()  # type: ignore[attr-defined]
    Nonsense()
    WindowConfig(max_length="long")  # type: ignore[arg-type]
    WindowConfig(max_lenght=4)  # type: ignore[call-arg]
    WindowConfig(4)  # type: ignore[call-arg]
    CorpusConfig(text_field=5)  # type: ignore[arg-type]
    SplitConfig(validation="some")  # type: ignore[arg-type]
    write_shards(folder, window={"max_length": 4})  # type: ignore[arg-type]
    write_shards(folder, max_length=4)  # type: ignore[call-arg]
    write_shards(folder, corpus=5)  # type: ignore[arg-type]
    ShardLoader(folder, 8)  # type: ignore[call-arg,arg-type]
    ShardLoader(folder, batch_size="8")  # type: ignore[arg-type]
    ShardLoader(folder, path_to="x")  # type: ignore[call-arg]
    TokenEmbedding("gpt2", 256, 1024)  # type: ignore[arg-type]
    load_tokenizer(5)  # type: ignore[arg-type]
    read_manifest(folder).no_such_field  # type: ignore[attr-defined]  # noqa: B018
