"""Open what a loader reads: the shards of a data set, windows of a token store, or several of these.

The readers number a split's row groups through all shards in stored order, by the same arithmetic, so an order of one
is an order of the other. They cache no row group and own no thread, may be used by many threads at once, and can be
pickled. IDs are uint16 if the vocabulary allows it, else int32: the more compact they are, the more of them fit into
memory and the faster they are gathered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.base.paths import expand_user
from pipeline.loader.mixture_reader import MixtureReader
from pipeline.loader.row_group import DocumentRule
from pipeline.loader.shard_reader import ShardReader
from pipeline.loader.store_reader import StoreReader, StoreWindows
from pipeline.loader.target_mask import check_score
from pipeline.loader.token_ids import check_tokenizer, end_of_text_id
from pipeline.rules import check_path, check_uri, shorten
from pipeline.storage.names import is_uri
from pipeline.storage.open import open_storage

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.loader.disk_cache import DiskCache

SOURCES = "must be a data set's folder or URI, or a StoreWindows"

Reader: TypeAlias = ShardReader | StoreReader | MixtureReader
Source: TypeAlias = "str | os.PathLike[str] | StoreWindows"


def open_split(
    source: Source,
    split: str,
    *,
    score: str = "all",
    tokenizer: Mapping[str, Any] | None = None,
    on_bad: str = "raise",
    cache: DiskCache | None = None,
) -> ShardReader | StoreReader:
    """Open one split of a data set in a folder or an object store, or of the windows of a token store.

    Raises:
        ValueError: there is no such data set or split; its tokenizer has another hash than `tokenizer`; or it is not
            known which targets are new (`score`).

    """
    path: Path | str
    reader: ShardReader | StoreReader
    if isinstance(source, StoreWindows):
        path = expand_user(check_path("path", source.store, SOURCES)).absolute()
        reader = StoreReader(path, source.window, source.shards, split=split, score=score, on_bad=on_bad)
    else:
        path = place_of(source)
        if str(path).endswith(".json"):
            raise ValueError(
                f"{source} is a token store, which has no windows of its own: pass StoreWindows({str(source)!r}, "
                "WindowConfig(max_length=..., stride=...))"
            )
        reader = ShardReader(path, split, score=score, on_bad=on_bad, cache=cache)
    check_score(reader)
    if tokenizer is not None:
        check_tokenizer(reader.tokenizer, tokenizer, path)
    return reader


def place_of(source: str | os.PathLike[str]) -> Path | str:
    """Return the absolute path of a data set's folder, or its URI as it was given.

    Raises:
        ValueError: it is neither.

    """
    if is_uri(source):
        return open_storage(check_uri("path", str(source))).uri
    return expand_user(check_path("path", source, SOURCES)).absolute()


def describe(reader: Reader) -> str:
    """Describe what is read in a few words: the data set, its split, and its windows."""
    if isinstance(reader, MixtureReader):
        what = f"mixture of {len(reader.readers)} data sets, {reader.split}"
        strides = sorted({one.stride for one in reader.readers})
        stride = f"{strides[0]} to {strides[-1]}" if len(strides) > 1 else str(strides[0])
    else:
        what, stride = f"{shorten(str(reader.path), 60)!r}, {reader.split}", str(reader.stride)
    name = shorten(str(reader.tokenizer["name"]), 60)
    windows = f"{reader.groups.num_windows:,} windows of {reader.max_length} tokens"
    return f"{what}: {windows}, stride {stride}, tokenizer {name}"


def document_rule(reader: Reader, *, ids: bool, score_starts: bool) -> DocumentRule | None:
    """Return how documents are told apart; None if there is no need to.

    Raises:
        ValueError: as `end_of_text_id` does.

    """
    if score_starts and not ids:
        return None
    sources = reader.readers if isinstance(reader, MixtureReader) else [reader]
    end_of_text = None if all(source.packed for source in sources) else end_of_text_id(reader)
    return DocumentRule(end_of_text, ids, score_starts)
