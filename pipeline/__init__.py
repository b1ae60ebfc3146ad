"""stridemill: text in, embedded batches out.

The names below are the public ones. Each is imported when it is first used, so that `import pipeline` is quick and the
write half works without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.load.batch import Batch as Batch
    from pipeline.load.dataset import WindowDataset as WindowDataset
    from pipeline.load.embedding import EmbeddedBatch as EmbeddedBatch
    from pipeline.load.embedding import TokenEmbedding as TokenEmbedding
    from pipeline.load.embedding import embed_batches as embed_batches
    from pipeline.load.loader import ShardLoader as ShardLoader
    from pipeline.manifest import Manifest as Manifest
    from pipeline.manifest import read_manifest as read_manifest
    from pipeline.verify import verify_shards as verify_shards
    from pipeline.write.stage import write_shards as write_shards

_HOMES = {
    "Batch": "pipeline.load.batch",
    "EmbeddedBatch": "pipeline.load.embedding",
    "Manifest": "pipeline.manifest",
    "ShardLoader": "pipeline.load.loader",
    "TokenEmbedding": "pipeline.load.embedding",
    "WindowDataset": "pipeline.load.dataset",
    "embed_batches": "pipeline.load.embedding",
    "read_manifest": "pipeline.manifest",
    "verify_shards": "pipeline.verify",
    "write_shards": "pipeline.write.stage",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
