"""Check the index of a data set's shards: its bytes, what each of its rows says of a shard, and the shards' names."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from pipeline.shards.complete import Fault
from pipeline.shards.entries import INDEX_NAME, MANIFEST_NAME, shard_path
from pipeline.shards.index import IndexedShards
from pipeline.storage.open import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from pipeline.shards.index import ShardIndex
    from pipeline.shards.manifest import Manifest, SplitEntry

CHUNK_BYTES = 1 << 24  # of an index, hashed at once


def check_index(manifest: Manifest) -> tuple[list[Fault], dict[str, Sequence[int]]]:
    """Return the problems of an index, and the numbers of the shards of each split that it says rightly.

    The shards of format 1 are in the manifest, which was checked.
    """
    known: dict[str, Sequence[int]] = {name: range(len(split.shards)) for name, split in manifest.splits.items()}
    sources = [split.shards.source for split in manifest.splits.values() if isinstance(split.shards, IndexedShards)]
    if not sources:
        return [], known
    index, names = sources[0], list(known)
    problems, size = _byte_problems(index)
    bad = [set[int]() for _ in names]
    if size < index.entry.bytes:  # its footer is lost, and with it the rest
        return [Fault(file=INDEX_NAME, problem=problem) for problem in problems], dict.fromkeys(names, ())
    for group in range(index.num_groups):
        split, numbers = index.shards_of(group)
        try:
            for number in numbers:
                index.shard(split, number)
        except ValueError as error:
            problems.append(f"row group {group}: {index.explain(error)}")
            bad[split].update(numbers)
    faults = [Fault(file=INDEX_NAME, problem=problem) for problem in dict.fromkeys(problems)]
    known = {name: [one for one in known[name] if one not in bad[at]] for at, name in enumerate(names)}
    return [*faults, *(_sum_problems(manifest) if not any(bad) else ())], known


def _byte_problems(index: ShardIndex) -> tuple[list[str], int]:
    """Return what is wrong with the bytes of an index, and its size, 0 if it cannot be read."""
    entry, storage, digest = index.entry, open_storage(index.folder), hashlib.sha256()
    try:
        size = storage.size(INDEX_NAME)
        for start in range(0, size, CHUNK_BYTES):
            (content,) = storage.read_ranges(INDEX_NAME, [(start, min(start + CHUNK_BYTES, size))])
            digest.update(content)
    except OSError as error:
        return [f"cannot be read: {error.strerror or error}"], 0
    problems = []
    if size != entry.bytes:
        problems.append(f"has {size} bytes; the manifest says {entry.bytes}")
    if digest.hexdigest() != entry.sha256:
        problems.append(f"has sha256 {digest.hexdigest()}; the manifest says {entry.sha256}")
    return problems, size


def _sum_problems(manifest: Manifest) -> Iterable[Fault]:
    for name, split in manifest.splits.items():
        found = sum(shard.bytes for shard in split.shards)
        if found != split.num_bytes:
            problem = f"splits.{name}.bytes is {split.num_bytes}, but the shards have {found} by the index"
            yield Fault(file=MANIFEST_NAME, problem=problem)


def check_names(folder: Path, manifest: Manifest) -> Iterator[Fault]:
    """List shards whose names are not those of their numbers, and files among the shards that are none."""
    named: set[str] = set()
    for name, split in manifest.splits.items():
        total = len(split.shards)
        if isinstance(split.shards, IndexedShards):  # their names were checked
            continue
        paths = [shard.path for shard in split.shards]
        if paths != [shard_path(name, number, total) for number in range(total)]:
            yield Fault(file=MANIFEST_NAME, problem=f"splits.{name}.shards must be numbered 0 to {total - 1}")
        named.update(paths)
    for file in sorted(folder.glob("data/*")):
        path = f"data/{file.name}"
        if path not in named and not any(_is_indexed(path, name, split) for name, split in manifest.splits.items()):
            yield Fault(file=path, problem="is not in the manifest")


def _is_indexed(path: str, name: str, split: SplitEntry) -> bool:
    """Tell whether a path is that of a shard of format 2, whose number says its name."""
    total = len(split.shards)
    found = re.fullmatch(rf"data/{name}-(\d{{5,15}})-of-\d+\.parquet", path)
    is_one = isinstance(split.shards, IndexedShards) and found is not None and int(found[1]) < total
    return is_one and found is not None and path == shard_path(name, int(found[1]), total)
