"""Verify the token store that a data set's windows were cut from, and what the manifest says that the store knows."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

from pipeline.executor.local import run_tasks
from pipeline.shards.complete import Fault
from pipeline.shards.entries import MANIFEST_NAME
from pipeline.shards.write import count_corpus
from pipeline.tokens.chunk import Chunk, DamagedChunk, check_chunk
from pipeline.tokens.mirror import shown_path
from pipeline.tokens.store import MissingChunk, TokenStore, find_store, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.shards.manifest import Manifest

# What the manifest counts of the corpus and the token store knows too. `audited` may differ: it never changes the IDs.
COUNTED = ("documents", "characters", "bytes", "special_text_found", "bad")


def check_store(manifest: Manifest, cache: Path, workers: int) -> tuple[list[Fault], TokenStore | None]:
    """Return the problems of the token store that the windows were cut from, and the store if it has none."""
    try:
        path = find_store(cache, manifest.store)
        if path is None:  # a cache may be cleared
            return [], None
        store = open_store(path)
        damaged = [chunk for chunk in run_tasks(partial(_find_damage, cache), store.chunks, workers=workers) if chunk]
    except (OSError, ValueError) as error:
        path = cache / "stores" / f"{manifest.store}.json"
        return [] if isinstance(error, MissingChunk) else [_blame(error, path, cache)], None
    if store.tokenizer["hash"] != manifest.tokenizer["hash"]:
        made_with = store.tokenizer["hash"]
        problem = f"tokenizer.hash is {manifest.tokenizer['hash']}, but its token store was made with {made_with}"
        return [Fault(file=MANIFEST_NAME, problem=problem)], None
    if damaged:
        return [_blame(error, path, cache) for error in damaged], None
    return [], dataclasses.replace(store, checks=False)  # its files were just read


def list_differences(manifest: Manifest, store: TokenStore) -> Iterator[str]:
    """List what the manifest says of the corpus and the tokenizer, and the token store does not."""
    if list(manifest.splits) != store.splits():
        yield f"splits are {', '.join(manifest.splits)}, but {', '.join(store.splits())} by the token store"
    known = store.tokenizer
    found = {**manifest.tokenizer, "end_of_text": manifest.windows.get("end_of_text", known["end_of_text"])}
    found |= {f"corpus.{key}": manifest.corpus.get(key) for key in COUNTED}
    counts = count_corpus(store)
    for key, value in {**known, **{f"corpus.{key}": counts[key] for key in COUNTED}}.items():
        if found.get(key) != value:
            yield f"{key} is {found.get(key)!r:.99}, but {value!r:.99} by the token store"


def _find_damage(cache: Path, chunk: Chunk) -> DamagedChunk | None:
    try:
        check_chunk(cache, chunk)
    except DamagedChunk as error:
        return error
    return None


def _blame(error: Exception, store: Path, cache: Path) -> Fault:
    damaged, what = (error.folder, error.what) if isinstance(error, DamagedChunk) else (store, one_line(error))
    return Fault(file=shown_path(cache, damaged), problem=f"{what}; the cache is damaged; the shards need not be")


def one_line(error: Exception) -> str:
    """Return an error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
