"""A write job that is ready to run: its input is hashed and its tokenizer loaded. `plan` and `write` start from it."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.hashing import hash_json
from pipeline.base.memory import pause_collection
from pipeline.base.paths import strip_folders
from pipeline.base.wording import counted
from pipeline.corpus.corpora import find_partitions
from pipeline.corpus.spool import Spool
from pipeline.packing import choose_group_tokens
from pipeline.rules import check_place, conflict, strip_secrets
from pipeline.settings import (
    CacheConfig,
    ExecutorConfig,
    ShardsConfig,
    SplitConfig,
    WindowConfig,
    as_corpus,
    as_tokenizer,
)
from pipeline.shards.entries import DOCUMENTS_FOLDER
from pipeline.shards.layout import Layout, choose_layout
from pipeline.shards.shard import shard_names
from pipeline.storage.names import is_uri
from pipeline.storage.open import open_storage
from pipeline.tokenizer.load import load_tokenizer
from pipeline.tokens.chunk_tasks import hash_rules, units_of
from pipeline.tokens.file_index import has_index
from pipeline.tokens.mirror import find_cache
from pipeline.tokens.store import store_id
from pipeline.windows import StoredWindows, cut_windows

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from pipeline.corpus.documents import Partition
    from pipeline.corpus.files import PassedOver
    from pipeline.settings import CorpusConfig, TokenizerConfig
    from pipeline.shards.manifest import Manifest
    from pipeline.tokenizer.tokenizer import Tokenizer
    from pipeline.tokens.store import TokenStore


LITTLE_BYTES = 1 << 20  # of input that tiktoken has encoded before gigatoken is imported and has its cache
SHARING_WORKERS = 4  # threads; fewer encode faster with an encoder each
IDENTITY_VERSION = 1  # of what a fingerprint covers: rows and row groups, not how the manifest lists them


@dataclass(frozen=True, slots=True, kw_only=True)
class Sections:
    """The config's sections that a write job needs."""

    corpus: CorpusConfig
    texts: list[str] | None  # a corpus in memory, instead of the section's
    tokenizer: TokenizerConfig
    window: WindowConfig
    split: SplitConfig
    shards: ShardsConfig
    executor: ExecutorConfig
    cache: CacheConfig

    @property
    def place(self) -> Path | str:
        """The data set's folder, or its URI."""
        assert self.shards.path is not None, "as_sections sets it"
        return open_storage(self.shards.path).uri if is_uri(self.shards.path) else Path(self.shards.path)

    @property
    def is_remote(self) -> bool:
        """Whether chunks or shards are uploaded."""
        return is_uri(self.shards.path) or is_uri(self.cache.path)

    @property
    def cache_folder(self) -> Path:
        """The folder of the token store; of one at a URI its local copy."""
        return find_cache(self.cache.path)

    def describe(self) -> dict[str, Any]:
        """Return what the manifest records: the values that define the data set, without secrets and absolute paths."""
        corpus, tokenizer = dataclasses.asdict(self.corpus), dataclasses.asdict(self.tokenizer)
        corpus["path"] = [strip_folders(path) for path in self.corpus.paths] or None
        corpus["url"] = self.corpus.url and strip_secrets(self.corpus.url)
        if self.texts is not None:
            corpus["name"] = "texts"
        tokenizer["path"] = self.tokenizer.path and strip_folders(self.tokenizer.path)
        window, shards = dataclasses.asdict(self.window), dataclasses.asdict(self.shards)
        for section, key in ((corpus, "trust_mtime"), (window, "score"), (shards, "path"), (shards, "overwrite")):
            del section[key]  # the loader's, this machine's, this run's
        return {
            "corpus": corpus,
            "tokenizer": tokenizer,
            "window": window,
            "split": dataclasses.asdict(self.split),
            "shards": shards,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A data set to be written: everything that defines its bytes."""

    sections: Sections
    encoder: Tokenizer
    partitions: list[Partition]
    passed_over: dict[str, PassedOver]  # files of the corpus's folders that it does not take, by kind
    rules: str  # hash of what decides the tokens besides the text
    units: list[str]  # what identifies the tokens of the partitions' sources, in their order
    layout: Layout
    seconds: float  # to load the tokenizer, and to find and hash the input

    @property
    def stored(self) -> dict[str, Any]:
        """The windows' parameters and their stored order, as in the manifest."""
        window, shards = self.sections.window, self.sections.shards
        return {
            "max_length": window.max_length,
            "stride": window.stride_tokens,
            "tail": window.tail,
            "documents": window.documents,
            "order": shards.order,
            "seed": shards.seed if shards.order == "shuffled" else None,
            **({} if window.documents == "join" else {"end_of_text_is_target": True}),
            **({"pack_group_tokens": choose_group_tokens(window.max_length)} if window.documents == "pack" else {}),
        }

    @property
    def store_id(self) -> str:
        """The ID of the token store that the windows are cut from."""
        return store_id(self.units, validation=self.sections.split.validation)

    @property
    def fingerprint(self) -> str:
        """The data set's identity: a hash of the token store's ID, the windows, their order, and the layout."""
        return _fingerprint(self.store_id, self.stored, self.layout)

    @property
    def fingerprints(self) -> list[str]:
        """The identity, and that of the same config in format 1, which allowed row groups of other sizes."""
        sections = self.sections
        layouts = [self.layout, choose_layout(sections.window, sections.shards, is_even=False)]
        store = self.store_id  # takes long of many files
        return list(dict.fromkeys(_fingerprint(store, self.stored, layout) for layout in layouts))

    def cut(self, store: TokenStore, split: str) -> StoredWindows:
        """Return a split's windows in their stored order."""
        window, shards = self.sections.window, self.sections.shards
        joined = window.documents == "join"
        stream = store.stream(split, closed=not joined)
        documents = None if joined else store.documents(split)
        group_tokens = choose_group_tokens(window.max_length)
        return StoredWindows(
            stream=stream,
            windows=cut_windows(window, num_tokens=len(stream), documents=documents, group_tokens=group_tokens),
            order=shards.order,
            seed=shards.seed,
            pad_id=self.encoder.eos,
        )


def fingerprint_of(manifest: Manifest) -> str | None:
    """Return the fingerprint that a manifest's other fields give, or None if it does not record the layout.

    Raises:
        ValueError: the recorded layout is not valid.

    """
    config, windows = manifest.config.get("shards"), manifest.windows
    if config is None:  # release 0.1.0, called from Python
        return None
    names = ("max_length", "stride", "tail", "documents", "order", "seed", "end_of_text_is_target", "pack_group_tokens")
    stored = {name: windows[name] for name in names if name in windows}
    window = WindowConfig(**{name: stored[name] for name in names[:4]}, allow_gaps=True)
    keys = ("windows_per_group", "windows_per_shard", "compression")
    shards = ShardsConfig(order=stored["order"], **{key: config.get(key) for key in keys})
    layout = choose_layout(window, shards, is_even=manifest.format_version > 1)
    return _fingerprint(manifest.store, stored, layout)


def _fingerprint(store: str, stored: dict[str, Any], layout: Layout) -> str:
    sizes = [layout.windows_per_group, layout.windows_per_shard, layout.compression]
    return hash_json([IDENTITY_VERSION, store, stored, *sizes])


def as_sections(
    path: str | os.PathLike[str],
    *,
    corpus: CorpusConfig | str | Sequence[str],
    tokenizer: TokenizerConfig | str,
    window: WindowConfig | None,
    split: SplitConfig | None,
    shards: ShardsConfig | None,
    executor: ExecutorConfig | None,
    cache: CacheConfig | str | os.PathLike[str],
) -> Sections:
    """Return the arguments of `write_shards` as sections."""
    source, texts = as_corpus(corpus)
    folder = check_place("shards.path", path)
    shards = shards or ShardsConfig()
    if shards.path not in (None, folder):
        conflict("shards.path", f"differs from the argument path={folder!r}: leave it out", shards.path)
    return Sections(
        corpus=source,
        texts=texts,
        tokenizer=as_tokenizer(tokenizer),
        window=window or WindowConfig(),
        split=split or SplitConfig(),
        shards=dataclasses.replace(shards, path=folder),
        executor=executor or ExecutorConfig(),
        cache=cache if isinstance(cache, CacheConfig) else CacheConfig(path=check_place("cache.path", cache)),
    )


def shares_encoder(executor: ExecutorConfig) -> bool:
    """Tell whether all threads use one encoder, which encodes on every core.

    Two threads on two cores tokenize 34 languages 1.2 times as fast with an encoder each, and English as fast as with
    one. From four on, loading an encoder for each, one after the other, takes longer than that gains.
    """
    return executor.has_all_cores and executor.num_workers >= SHARING_WORKERS


@pause_collection()
def prepare_job(sections: Sections, *, hold: int = 0) -> Job:
    """Load the tokenizer, find the input and hash it.

    Up to `hold` bytes of small files are kept in memory for tokenizing, if the cache has no tokens of small files yet.
    With `hold`, what is fetched of larger objects is kept on disk.

    Raises:
        ValueError: the vocabulary cannot be loaded or the corpus cannot be read; the message names which.

    """
    started = time.perf_counter()
    encoder = load_tokenizer(sections.tokenizer)
    rules = hash_rules(tokenizer=encoder, corpus=sections.corpus, split=sections.split)
    partitions, passed_over = find_partitions(
        sections.corpus,
        texts=sections.texts,
        cache=sections.cache_folder,
        cut_safe=encoder.cut_safe,
        workers=sections.executor.num_workers,
        hold=0 if has_index(sections.cache_folder, rules) else hold,
        spool=Spool() if hold else None,
    )
    if sections.tokenizer.engine == "auto" and sum(partition.num_bytes for partition in partitions) <= LITTLE_BYTES:
        encoder = encoder.by_reference()
    elif shares_encoder(sections.executor):
        encoder = encoder.on_all_cores()
    return Job(
        sections=sections,
        encoder=encoder,
        partitions=partitions,
        passed_over=passed_over,
        rules=rules,
        units=[unit for partition in partitions for unit in units_of(partition, rules)],
        layout=choose_layout(sections.window, sections.shards),
        seconds=time.perf_counter() - started,
    )


def cut_split(job: Job, store: TokenStore, split: str) -> StoredWindows:
    """Return a split's windows in stored order.

    Raises:
        ValueError: the split has no token, or is too short for one window.

    """
    stored = job.cut(store, split)
    if len(stored) == 0:
        window, tokens = job.sections.window, len(stored.stream)
        is_short = window.tail == "drop" and tokens > 1
        remedy = "lower window.max_length or set window.tail=pad" if is_short else "check the corpus"
        if store.validation:
            remedy += ", or change split.validation or split.seed"
        needed = window.max_length + 1 if window.tail == "drop" else 2
        one = " of one document with its end-of-text" if window.documents == "separate" else ""
        documents = counted(len(store.documents(split)[0]), "document")
        raise ValueError(
            f"the {split} split has {counted(tokens, 'token')} in {documents}, but a window of "
            f"window.max_length={window.max_length} needs {counted(needed, 'token')}{one}; {remedy}"
        )
    return stored


def list_files(job: Job, plans: dict[str, StoredWindows]) -> set[str]:
    """Return the paths of the shards and tables that the data set will have."""
    files = {f"data/{file}" for name, stored in plans.items() for file in shard_names(name, len(stored), job.layout)}
    return files | (
        {f"{DOCUMENTS_FOLDER}/{name}.parquet" for name in plans} if job.sections.shards.documents else set()
    )
