"""stridemill: a training-data pipeline for language models.

It turns text into token IDs, windows and embedded batches. The names below are the public API. Each is imported when it
is first used, so that `import pipeline` is quick and writing works without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.cli.epoch import LoadReport as LoadReport
    from pipeline.embedding import EmbeddedBatch as EmbeddedBatch
    from pipeline.embedding import TokenEmbedding as TokenEmbedding
    from pipeline.embedding import embed_batches as embed_batches
    from pipeline.loader.batch import Batch as Batch
    from pipeline.loader.loader import ShardLoader as ShardLoader
    from pipeline.loader.locate import DocumentSpan as DocumentSpan
    from pipeline.loader.locate import locate as locate
    from pipeline.loader.map_dataset import WindowDataset as WindowDataset
    from pipeline.loader.store_reader import StoreWindows as StoreWindows
    from pipeline.rules import ConfigError as ConfigError
    from pipeline.settings import CacheConfig as CacheConfig
    from pipeline.settings import CorpusConfig as CorpusConfig
    from pipeline.settings import EmbeddingConfig as EmbeddingConfig
    from pipeline.settings import ExecutorConfig as ExecutorConfig
    from pipeline.settings import LoaderConfig as LoaderConfig
    from pipeline.settings import ShardsConfig as ShardsConfig
    from pipeline.settings import SplitConfig as SplitConfig
    from pipeline.settings import TokenizerConfig as TokenizerConfig
    from pipeline.settings import WindowConfig as WindowConfig
    from pipeline.shards.manifest import Manifest as Manifest
    from pipeline.shards.manifest import read_manifest as read_manifest
    from pipeline.shards.plan import PlanReport as PlanReport
    from pipeline.shards.plan import plan_shards as plan_shards
    from pipeline.shards.verify import VerifyReport as VerifyReport
    from pipeline.shards.verify import verify_shards as verify_shards
    from pipeline.shards.write import WriteReport as WriteReport
    from pipeline.shards.write import write_shards as write_shards
    from pipeline.tokenizer.load import load_tokenizer as load_tokenizer
    from pipeline.tokenizer.tokenizer import Tokenizer as Tokenizer

    __version__: str

_HOMES = {
    "Batch": "loader.batch",
    "CacheConfig": "settings",
    "ConfigError": "rules",
    "CorpusConfig": "settings",
    "DocumentSpan": "loader.locate",
    "EmbeddedBatch": "embedding",
    "EmbeddingConfig": "settings",
    "ExecutorConfig": "settings",
    "LoadReport": "cli.epoch",
    "LoaderConfig": "settings",
    "Manifest": "shards.manifest",
    "PlanReport": "shards.plan",
    "ShardLoader": "loader.loader",
    "ShardsConfig": "settings",
    "SplitConfig": "settings",
    "StoreWindows": "loader.store_reader",
    "TokenEmbedding": "embedding",
    "Tokenizer": "tokenizer.tokenizer",
    "TokenizerConfig": "settings",
    "VerifyReport": "shards.verify",
    "WindowConfig": "settings",
    "WindowDataset": "loader.map_dataset",
    "WriteReport": "shards.write",
    "embed_batches": "embedding",
    "load_tokenizer": "tokenizer.load",
    "locate": "loader.locate",
    "plan_shards": "shards.plan",
    "read_manifest": "shards.manifest",
    "verify_shards": "shards.verify",
    "write_shards": "shards.write",
}
__all__ = list(_HOMES)

if not TYPE_CHECKING:  # hidden from type checkers, so that they report a name that does not exist

    def __getattr__(name: str) -> object:
        if name == "__version__":
            return import_module("pipeline.base.version").find_version()
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"pipeline.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
