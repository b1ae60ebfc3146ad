"""Verify a data set: check everything that its manifest and its shards promise, and list every problem.

Algorithm: the manifest's own hash; the index of the shards, row by row; each file's size and sha256; its columns and
row groups; then, in every row group, page checksums, `target_ids` and `next_id` against `input_ids`, IDs against the
vocabulary, `start` and `length` against the windows' arithmetic, and all rows against the token store, if that is still
in the cache. The store's own checksums are checked first: rows are not compared with a damaged chunk, which is a
problem of its own. Cost: each shard is read twice, for its hash and for its rows, and the store once; each worker keeps
one row group in memory.

A problem in one place does not hide the others.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from functools import partial
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.paths import translate_os_errors
from pipeline.base.progress import ProgressBar
from pipeline.base.wording import counted
from pipeline.executor.local import run_tasks
from pipeline.rules import names_arguments
from pipeline.settings import WindowConfig
from pipeline.shards.complete import Fault, list_leftovers, list_missing, list_strays
from pipeline.shards.documents import list_problems
from pipeline.shards.entries import DOCUMENTS_FOLDER, MANIFEST_NAME
from pipeline.shards.format import find_footer
from pipeline.shards.job import fingerprint_of
from pipeline.shards.manifest import Manifest, SplitEntry, read_manifest
from pipeline.shards.outline import fetch_object, fetch_outline, working_folder
from pipeline.shards.verify_index import check_index, check_names
from pipeline.shards.verify_shard import ExpectedRows, check_shard
from pipeline.shards.verify_store import check_store, list_differences, one_line
from pipeline.storage.names import is_uri
from pipeline.storage.open import open_storage
from pipeline.tokens.mirror import find_cache
from pipeline.tokens.store import TokenStore, TokenStream
from pipeline.windows import StoredWindows, count_cut, count_padding, count_unused, cut_windows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.storage.interface import Storage


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class VerifyReport:
    """What was checked, and the problems that were found."""

    path: Path | str  # the folder, or the URI
    faults: list[Fault]
    shards: int
    windows: int
    bytes: int
    compared_with_store: bool  # False: the token store is missing from the cache, or damaged
    seconds: float
    strays: list[str] = field(default_factory=list)  # names in the folder that do not belong to the data set
    has_manifest: bool = True

    def __repr__(self) -> str:
        """Show the counts in one line; `faults` has the list."""
        compared = "compared" if self.compared_with_store else "not compared"
        return (
            f"VerifyReport({Path(self.path).name!r:.99}: problems={len(self.faults):,}, shards={self.shards:,}, "
            f"windows={self.windows:,}, bytes={self.bytes:,}, {compared} with the token store)"
        )

    def _repr_html_(self) -> str:
        """Show the problems as a table in a notebook."""
        rows = "".join(f"<tr><td>{escape(one.file)}</td><td>{escape(one.problem)}</td></tr>" for one in self.faults)
        return f"<p>{escape(repr(self))}</p><table>{rows}</table>"


@names_arguments
def verify_shards(
    path: str | os.PathLike[str], *, cache_path: str | os.PathLike[str] = "outputs/cache", workers: int = 1
) -> VerifyReport:
    """Check a data set and list all its problems. Nothing is written.

    Args:
        path: the data set's folder or URI. From a URI, each shard is fetched once.
        cache_path: the cache, a folder or a URI, with the token store that the windows were cut from. If it is there,
            all rows are compared with it.
        workers: how many shards are checked at once.

    Returns:
        A report whose `faults` is empty if the data set is complete and intact. A damaged data set raises nothing.

    """
    uri = open_storage(path).uri if is_uri(path) else None
    with translate_os_errors(uri or Path(path), "shards.path"), working_folder(uri or Path(path)) as (folder, storage):
        if storage is not None:
            fetch_outline(storage, folder)
        return _verify(uri or folder, folder, storage, find_cache(os.fspath(cache_path)), workers)


def _verify(path: Path | str, folder: Path, storage: Storage | None, cache: Path, workers: int) -> VerifyReport:
    """Check a data set that is in a folder, or whose outline is there."""
    started = time.perf_counter()
    try:
        manifest = read_manifest(path)
    except (ValueError, OSError) as error:
        return VerifyReport(
            path=path,
            faults=[
                Fault(file=MANIFEST_NAME, problem=str(error)),
                *(_list_unreadable(folder) if storage is None else ()),
            ],
            shards=0,
            windows=0,
            bytes=0,
            compared_with_store=False,
            seconds=time.perf_counter() - started,
            has_manifest=(folder / MANIFEST_NAME).is_file(),
        )
    faults, store = check_store(manifest, cache, workers)
    faults += [Fault(file=MANIFEST_NAME, problem=problem) for problem in _manifest_problems(manifest, store)]
    index_faults, known = check_index(manifest)
    faults += index_faults
    tasks = []
    for name in manifest.splits:
        rows, problems = _expect(manifest, name, store)
        faults += [Fault(file=MANIFEST_NAME, problem=problem) for problem in problems]
        tasks += [(rows, index) for index in known[name]]
    entries = [rows.entry.shards[index] for rows, index in tasks]
    faults += [*check_names(folder, manifest), *list_missing(folder, manifest), *list_leftovers(folder)]
    if storage is not None:
        for split in manifest.splits.values():
            if split.documents and (folder / split.documents.path).is_file():
                fetch_object(storage, split.documents.path, folder)
    faults += _check_documents(folder, manifest, store)
    total = sum(entry.bytes for entry in entries)
    with ProgressBar("verify", total, "B") as bar:
        found = run_tasks(partial(check_shard, folder, storage), tasks, workers=workers)
        for entry, shard_faults in zip(entries, found, strict=True):
            faults += shard_faults
            bar.update(entry.bytes)
    return VerifyReport(
        path=path,
        faults=faults,
        shards=len(entries),
        windows=sum(entry.num_windows for entry in entries),
        bytes=total,
        compared_with_store=store is not None,
        seconds=time.perf_counter() - started,
        strays=list_strays(folder, manifest),
    )


def _list_unreadable(folder: Path) -> list[Fault]:
    """Name the files that are not Parquet at all: without a manifest, nothing else can be said about them."""
    faults = []
    for file in sorted(folder.glob("data/*")):
        try:
            find_footer(file)
        except (OSError, ValueError) as error:
            faults.append(Fault(file=f"data/{file.name}", problem=f"cannot be read as Parquet: {one_line(error)}"))
    return faults


def _manifest_problems(manifest: Manifest, store: TokenStore | None) -> Iterator[str]:
    """List what the manifest says of the complete data set that is not so, as far as that is known."""
    windows = manifest.windows
    for name, split in manifest.splits.items():
        for key in ("max_length", "stride"):
            if getattr(split, key) != windows[key]:
                yield f"splits.{name}.{key} is {getattr(split, key)}, but windows.{key} is {windows[key]}"
    if windows["tail"] == "pad" and windows["pad_id"] != windows.get("end_of_text", windows["pad_id"]):
        yield f"windows.pad_id is {windows['pad_id']}, but windows.end_of_text is {windows['end_of_text']}"
    try:
        expected = fingerprint_of(manifest) or manifest.fingerprint
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        expected = f"config.shards: {one_line(error)}"
    if manifest.fingerprint != expected:
        yield f"fingerprint is {manifest.fingerprint}, but by its other fields {expected}"
    if store is not None:
        yield from list_differences(manifest, store)


def _expect(manifest: Manifest, name: str, store: TokenStore | None) -> tuple[ExpectedRows, list[str]]:
    """Return what a split must contain by arithmetic, and the problems of its entry in the manifest."""
    entry, cut = manifest.splits[name], manifest.windows
    store = store if store and name in store.splits() else None
    end_is_target = cut.get("end_of_text_is_target", False)
    stream = store.stream(name, closed=end_is_target) if store else None
    problems, windows = [], None
    if store or cut["documents"] == "join":
        section = WindowConfig(
            max_length=entry.max_length,
            stride=None if cut["documents"] == "pack" else entry.stride,
            allow_gaps=True,
            tail=cut["tail"],
            documents=cut["documents"],
        )
        documents = store.documents(name) if store else None
        num_tokens = entry.num_tokens if stream is None else len(stream)
        windows = cut_windows(
            section,
            num_tokens=num_tokens,
            documents=documents,
            end_is_target=end_is_target,
            group_tokens=cut.get("pack_group_tokens"),
        )
        if len(windows) != entry.num_windows:
            problems.append(
                f"{name} has {counted(entry.num_windows, 'window')} by the manifest, but {len(windows):,} by arithmetic"
            )
    if store and stream is not None:
        firsts, sizes = store.documents(name)
        found = {"num_tokens": len(stream), "num_documents": len(firsts)}
        problems += [
            f"splits.{name}.{key} is {getattr(entry, key)}, but the token store has {count}"
            for key, count in found.items()
            if getattr(entry, key) != count
        ]
        unused = cut.get("left_over", {}).get(name)  # early data sets have no such count
        if windows and unused and unused != (found_unused := count_unused(windows, firsts, sizes)):
            problems.append(f"windows.left_over.{name} is {unused}, but {found_unused} by the token store")
        counts_by_name = {"padding": count_padding} | ({"cut": count_cut} if cut["documents"] == "pack" else {})
        for key, count_windows in counts_by_name.items():
            recorded = cut.get(key, {}).get(name)
            if windows and recorded is not None and recorded != (counted_here := count_windows(windows)):
                problems.append(f"windows.{key}.{name} is {recorded}, but {counted_here} by the token store")
    stored = None
    if windows and not problems:
        stored = StoredWindows(
            stream=TokenStream([], []) if stream is None else stream,
            windows=windows,
            order=cut["order"],
            seed=cut["seed"] or 0,
            pad_id=cut["pad_id"] or 0,
        )
    rows = ExpectedRows(
        entry=entry,
        first_rows=_first_rows(entry),
        stored=stored,
        has_stream=stream is not None,
        padded=cut["tail"] == "pad",
        packed=cut["documents"] == "pack",
        vocab_size=manifest.tokenizer["vocab_size"],
        pad_id=cut["pad_id"] or 0,
    )
    return rows, problems


def _first_rows(entry: SplitEntry) -> Sequence[int]:
    if entry.windows_per_shard is not None:
        return range(0, entry.num_windows, entry.windows_per_shard)
    return [0, *accumulate(shard.num_windows for shard in entry.shards)]


def _check_documents(folder: Path, manifest: Manifest, store: TokenStore | None) -> Iterator[Fault]:
    tables = {f"{name}.parquet": split for name, split in manifest.splits.items() if split.documents}
    for name, split in manifest.splits.items():
        if split.documents:
            known = store if store and name in store.splits() else None
            for problem in list_problems(folder, name, split, known):
                yield Fault(file=split.documents.path, problem=problem)
    for file in sorted(folder.glob(f"{DOCUMENTS_FOLDER}/*")) if tables else ():
        if file.name not in tables:
            yield Fault(file=f"{DOCUMENTS_FOLDER}/{file.name}", problem="is not in the manifest")
