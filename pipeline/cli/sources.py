"""What the stages `load`, `show` and `prove` read, and training: one data set, or the mixture of `loader.sources`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.loader.weights import merge_weights
from pipeline.settings import LoaderConfig
from pipeline.storage.names import is_uri

if TYPE_CHECKING:
    import os

    from pipeline.loader.loader import ShardLoader
    from pipeline.loader.readers import Source

PASSED_ON = tuple(key.name for key in fields(LoaderConfig) if key.name != "sources")


def source_paths(path: str | os.PathLike[str], loader: LoaderConfig) -> list[str | os.PathLike[str]]:
    """Return the folders that are read: `path`, or those of the mixture."""
    return [path] if loader.sources is None else [one["path"] for one in loader.sources]


def source_places(path: str | os.PathLike[str], loader: LoaderConfig) -> list[Path | str]:
    """Return what is read as paths and, of data sets in object stores, as URIs."""
    return [str(one) if is_uri(one) else Path(one) for one in source_paths(path, loader)]


def open_loader(path: Source, loader: LoaderConfig, **options: Any) -> ShardLoader:
    """Return the loader of a data set or, if `loader.sources` is set, of the mixture; `batch_size="all"` takes all.

    Options beat what the section says.
    """
    from pipeline.loader.loader import ShardLoader

    given = {name: getattr(loader, name) for name in PASSED_ON} | options
    if given["batch_size"] == "all":
        one = given | {"batch_size": 1, "shuffle": "none", "step_size": None, "rank": 0, "world_size": 1}
        given["batch_size"] = len(open_loader(path, loader, **one).order)
    try:
        if loader.sources is None:
            return ShardLoader(path, **given)
        paths = [one["path"] for one in loader.sources]
        return ShardLoader(paths, weights=merge_weights([one["weight"] for one in loader.sources]), **given)
    except ValueError as error:
        if str(error).partition(":")[0] in PASSED_ON:  # an argument, which is a key here
            raise type(error)(f"loader.{error}") from None
        raise
