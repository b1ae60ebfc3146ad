"""A write job whose input is found and hashed and whose vocabulary is loaded: what plan and write both start from."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.layout import Layout, choose_layout
from pipeline.manifest import FORMAT_VERSION
from pipeline.schema import MAX_WORKERS, Cache, Corpus, Shards, Split, Window, local, within
from pipeline.schema import Tokenizer as TokenizerConfig
from pipeline.token_store import store_id
from pipeline.windows import Windows
from pipeline.write.corpus import CorpusOptions, find_splits
from pipeline.write.tokenizer import load_tokenizer
from pipeline.write.tokens import Policy, chunk_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.token_store import TokenStore, TokenStream
    from pipeline.write.documents import InputSplit
    from pipeline.write.vocabulary import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that decides a data set's bytes."""

    encoder: Tokenizer
    inputs: list[InputSplit]
    policy: Policy
    cache: Path
    chunk_ids: list[str]  # of the inputs, in their order
    window: dict[str, Any]  # max_length, stride, tail, documents
    order: str
    seed: int  # of a shuffled order
    layout: Layout
    seconds: float  # it took to get ready: to load the tokenizer, and to find and hash the input

    @property
    def stored(self) -> dict[str, Any]:
        """The windows' parameters and the order in which they are stored, as the manifest has them."""
        return {**self.window, "order": self.order, "seed": self.seed if self.order == "shuffled" else None}

    @property
    def fingerprint(self) -> str:
        """The data set's identity: sha256 over the token store's identity, the windows, their order, and the layout."""
        layout = [self.layout.windows_per_group, self.layout.windows_per_shard, self.layout.compression]
        parts = [FORMAT_VERSION, store_id(self.chunk_ids, validation=self.policy.validation), self.stored, *layout]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def cut(self, store: TokenStore, split: str) -> tuple[TokenStream, Windows]:
        """A split's token stream and its windows."""
        stream = store.stream(split)
        if self.window["documents"] == "separate":
            firsts, sizes = store.documents(split)
        else:
            firsts, sizes = np.zeros(1, np.int64), np.array([len(stream)], np.int64)
        lengths = {key: self.window[key] for key in ("max_length", "stride", "tail")}
        return stream, Windows(firsts=firsts, sizes=sizes, **lengths)


def prepare_job(
    *,
    corpus: str,
    corpus_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    corpus_url: str | None,
    corpus_sha256: str | None,
    corpus_subset: str | None,
    corpus_part: str,
    text_field: str,
    on_bad: str,
    max_document_bytes: int | None,
    tokenizer: str,
    tokenizer_path: str | None,
    tokenizer_pattern: str | None,
    engine: str,
    special_text: str,
    max_length: int,
    stride: int | None,
    allow_gaps: bool,
    tail: str,
    documents: str,
    validation: float,
    split_seed: int,
    windows_per_shard: int | None,
    windows_per_group: int | None,
    compression: str,
    order: str,
    order_seed: int,
    cache_path: str | os.PathLike[str],
    workers: int,
) -> Job:
    """Load the tokenizer, find the input and hash it. The arguments are those of `write_shards`.

    Raises:
        ValueError: an option or a vocabulary is wrong, or the corpus cannot be read; the message names which.

    """
    started = time.perf_counter()
    if isinstance(corpus_path, Iterable) and not isinstance(corpus_path, str | bytes | os.PathLike):
        corpus_path = list(corpus_path)
    # A call is refused for the same values as a config, in the same words; numpy's numbers become Python's.
    source = Corpus(
        name=corpus,
        path=corpus_path,
        text_field=text_field,
        subset=corpus_subset,
        part=corpus_part,
        url=corpus_url,
        sha256=corpus_sha256,
        on_bad=on_bad,
        max_document_bytes=max_document_bytes,
    )
    vocabulary = TokenizerConfig(
        name=tokenizer, path=tokenizer_path, pattern=tokenizer_pattern, engine=engine, special_text=special_text
    )
    stride = max_length if stride is None else stride
    window = Window(max_length=max_length, stride=stride, allow_gaps=allow_gaps, tail=tail, documents=documents)
    split = Split(validation=validation, seed=split_seed)
    shards = Shards(
        windows_per_shard=windows_per_shard,
        windows_per_group=windows_per_group,
        compression=compression,
        order=order,
        seed=order_seed,
    )
    workers = within("executor.workers", workers, 1, MAX_WORKERS)
    cache = Path(Cache(path=local("cache.path", cache_path)).path)
    layout = choose_layout(
        max_length=window.max_length,
        stride=window.stride,
        documents=documents,
        order=order,
        windows_per_group=shards.windows_per_group,
        windows_per_shard=shards.windows_per_shard,
        compression=compression,
    )
    encoder = load_tokenizer(
        name=tokenizer, path=vocabulary.path, pattern=tokenizer_pattern, engine=engine, special_text=special_text
    )
    options = CorpusOptions(
        paths=tuple(source.paths),
        text_field=text_field,
        subset=corpus_subset,
        part=corpus_part,
        url=corpus_url,
        sha256=corpus_sha256,
        cache=cache,
        cut_safe=encoder.cut_safe,
        workers=workers,
    )
    inputs = find_splits(corpus, options)
    policy = Policy(validation=validation, seed=split.seed, on_bad=on_bad, max_document_bytes=source.max_document_bytes)
    ids = [chunk_id(part, tokenizer_hash=encoder.hash, special_text=special_text, policy=policy) for part in inputs]
    return Job(
        encoder=encoder,
        inputs=inputs,
        policy=policy,
        cache=cache,
        chunk_ids=ids,
        window={"max_length": window.max_length, "stride": window.stride, "tail": tail, "documents": documents},
        order=order,
        seed=shards.seed,
        layout=layout,
        seconds=time.perf_counter() - started,
    )
