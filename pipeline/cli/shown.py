"""A window as the stage `show` has it: its tokens, its overlap with its neighbours, and its documents.

Only the shown row groups and the documents' tables are read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.base.display import typed
from pipeline.base.wording import counted
from pipeline.corpus.compression import SUFFIXES
from pipeline.corpus.documents import describe_location
from pipeline.corpus.files import JSONL_SUFFIXES, TEXT_SUFFIXES
from pipeline.loader.locate import locate
from pipeline.loader.readers import open_split
from pipeline.loader.row_group import view_windows
from pipeline.loader.row_group_cache import count_tokens
from pipeline.loader.target_mask import count_scored_targets
from pipeline.settings import PACKAGED, SPLITS, TokenizerConfig
from pipeline.shards.manifest import read_manifest
from pipeline.tokenizer.load import load_tokenizer
from pipeline.tokens.mirror import find_cache
from pipeline.tokens.store import TokenStore, open_store
from pipeline.tokens.store import find_store as find_file
from pipeline.windows import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.cli.config import Config
    from pipeline.loader.shard_reader import ShardReader
    from pipeline.loader.store_reader import StoreReader
    from pipeline.shards.manifest import Manifest
    from pipeline.tokenizer.tokenizer import Tokenizer
    from pipeline.windows import Documents

MARKS = {"before": "<", "after": ">", "both": "=", "padding": "."}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One window."""

    window: int
    split: str
    start: int  # its first token in its split's token stream
    length: int  # real tokens; the rest is padding
    input_ids: list[int]
    target_ids: list[int]  # -100 where a target does not count
    before: int  # its first tokens that the previous window contains too
    after: int  # its last tokens that the next window contains too
    segments: list[int]  # of a packed window, the tokens of each document
    documents: list[str] = field(default_factory=list)  # their sources, and which of their tokens the window contains
    path: str | None = None  # in a mixture, its data set's folder


def find_windows(
    config: Config, paths: list[Path | str], samples: list[tuple[int, int]]
) -> tuple[list[Shown], list[Path]]:
    """Return the windows of samples that are no filling, in their order, and the token stores that would be needed."""
    split, shown, missing = config.loader.split, {}, []
    for source in sorted({source for source, number in samples if number >= 0}):
        manifest = read_manifest(paths[source])
        reader = open_split(paths[source], split, score=config.window.score)
        store = find_store(config, manifest)
        if store is None and manifest.splits[split].documents is None:
            missing.append(store_file(config, manifest))
        for number in {number for one, number in samples if one == source and number >= 0}:
            found = find_window(manifest, reader, number, store)
            found = replace(found, documents=find_documents(paths[source], manifest, found, store))
            shown[source, number] = replace(found, path=str(paths[source])) if config.loader.sources else found
    return [shown[one] for one in samples if one in shown], missing


def store_file(config: Config, manifest: Manifest) -> Path:
    """Return where a data set's token store is, if it is there."""
    return find_cache(config.cache.path) / "stores" / f"{manifest.store}.json"


def find_store(config: Config, manifest: Manifest) -> TokenStore | None:
    """Return a data set's token store, None if it is not there."""
    file = find_file(find_cache(config.cache.path), manifest.store)
    return open_store(file) if file else None


def find_window(manifest: Manifest, reader: ShardReader | StoreReader, number: int, store: TokenStore | None) -> Shown:
    """Return a window's tokens and its overlap with its neighbours."""
    start, length, segments, inputs, targets = read_window(reader, number)
    first, size = find_segment(manifest, store, reader.split, start)
    text_end = first + size
    padded = manifest.windows["tail"] == "pad"
    has_next = start + length < text_end - 1 if padded else start + reader.stride + reader.max_length < text_end
    return Shown(
        window=number,
        split=reader.split,
        start=start,
        length=length,
        input_ids=inputs,
        target_ids=targets,
        before=max(0, reader.max_length - reader.stride) if start > first else 0,
        after=max(0, length - reader.stride) if has_next else 0,
        segments=segments,
    )


class WindowRead(NamedTuple):
    """A window as its row group has it."""

    start: int  # its first token in its split
    length: int  # real tokens
    segments: list[int]  # of a packed window, the tokens of each document
    inputs: list[int]
    targets: list[int]  # -100 where they do not count


def read_window(reader: ShardReader | StoreReader, number: int) -> WindowRead:
    """Read a window as a batch would have it, without torch, whose import takes longer than all else here."""
    group, row = (int(one[0]) for one in reader.groups.locate(np.array([number])))
    tokens = np.empty(count_tokens(reader, group), reader.dtype)
    rows = reader.read_group(group, tokens)
    length, segments = int(rows.lengths[row]), []
    ids = view_windows(tokens, pitch=reader.pitch_of(group), max_length=reader.max_length)[row].tolist()
    counts = np.arange(reader.max_length) < length
    if reader.score == "new":
        counts[: count_scored_targets(reader, group, rows)[row]] = False
    if rows.ends is not None:
        is_last = np.unpackbits(rows.ends[row], count=reader.max_length, bitorder="little").astype(bool)
        counts &= ~is_last
        stops = np.flatnonzero(is_last) + 1
        stops = stops if len(stops) and stops[-1] == length else np.append(stops, length)  # the last one continues
        segments = np.diff(stops, prepend=0).tolist()
    targets = np.where(counts, ids[1:], IGNORED).tolist()
    return WindowRead(int(rows.starts[row]), length, segments, ids[:-1], targets)


def find_segment(manifest: Manifest, store: TokenStore | None, split: str, start: int) -> tuple[int, int]:
    """Return the first token and the size of the text that a window is cut from: a document, or the split."""
    if manifest.windows["documents"] != "separate":
        return 0, manifest.splits[split].num_tokens
    segments = find_segments(manifest, store, split)
    if segments is None:
        raise ValueError("windows of separate documents need the token store to be shown; cache.path names its folder")
    firsts, sizes = segments
    at = int(np.searchsorted(firsts, start, side="right")) - 1
    return int(firsts[at]), int(sizes[at])


def find_segments(manifest: Manifest, store: TokenStore | None, split: str) -> Documents | None:
    """Return the first token and the size of each document that windows do not cross; None if they cross them."""
    if manifest.windows["documents"] == "join" or store is None:
        return None
    firsts, sizes = store.documents(split)
    return firsts, sizes + int(manifest.windows.get("end_of_text_is_target", False))


def find_documents(path: Path | str, manifest: Manifest, window: Shown, store: TokenStore | None) -> list[str]:
    """Return the documents of a window: source, row, and which of their tokens.

    The data set's own table tells; one written by a release without such a table needs its token store.
    """
    split = window.split
    if manifest.splits[split].documents is not None:
        (spans,) = locate(path, [window.window], split)
        rows = [span.line - 1 if span.line else span.row or 0 for span in spans]
        named = [(name_document(span.file, row), span) for span, row in zip(spans, rows, strict=True)]
        return [f"{name}, {describe_span('token', span.first, span.stop)}" for name, span in named]
    if store is None or window.segments:
        return []
    return find_stored_documents(store, split, window.start, window.start + window.length)


def find_stored_documents(store: TokenStore, split: str, start: int, stop: int) -> list[str]:
    """Return the documents that contain the tokens [start, stop) of a split: source, row, and which of their tokens."""
    is_cut = store.num_documents == 1 and store.validation > 0  # one document: its last part is the validation split
    base = -len(store.stream("train")) if is_cut and split == "validation" else 0
    found: list[str] = []
    carried = 0  # tokens of a document in the previous chunks
    for chunk, names, documents in zip(store.chunks, store.names, store.tables(), strict=True):
        table = documents if is_cut else documents[documents["split"] == SPLITS.index(split)]
        for index in np.flatnonzero((table["first"] + base < stop) & (table["first"] + table["count"] + base > start)):
            entry = table[index]
            first, count = int(entry["first"]) + base, int(entry["count"])
            offset = (carried if chunk.continued and index == 0 else 0) - first
            source = name_document(names[int(entry["source"])], int(entry["row"]))
            found.append(
                f"{source}, {describe_span('token', max(start, first) + offset, min(stop, first + count) + offset)}"
            )
        if len(table):
            last = int(table["count"][-1])
            carried = last + (carried if chunk.continued and len(table) == 1 else 0)
        base += sum(chunk.tokens.values()) if is_cut else chunk.tokens[split]
    return found


def name_document(source: str, row: int) -> str:
    """Name a document by its file and its line or row, as errors and the quarantine file do."""
    name = source.lower()
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    kind = "text" if name.endswith(TEXT_SUFFIXES) else "jsonl" if name.endswith(JSONL_SUFFIXES) else "other"
    location = describe_location("delimited" if kind == "text" and row else kind, row)
    return f"{source}, {location}" if location else source


def find_tokenizer(manifest: Manifest, given: TokenizerConfig) -> Tokenizer | None:
    """Return the data set's tokenizer, or None if neither the config nor the package has it.

    A path that the data set records is not opened: the data set may come from elsewhere.
    """
    sections = [replace(given, engine="auto", special_text="literal")]
    if manifest.tokenizer["name"] in PACKAGED:
        sections.insert(0, TokenizerConfig(name=manifest.tokenizer["name"]))
    for section in sections:
        tokenizer = load_tokenizer(section)
        if tokenizer.hash == manifest.tokenizer["hash"]:
            return tokenizer
    return None


def show_pieces(ids: Sequence[int], tokenizer: Tokenizer | None) -> list[str]:
    r"""Return each token's text as one would type it: \n for a line feed, \xNN for a part of a character."""
    if tokenizer is None:
        return [str(token) for token in ids]
    return list(map(typed, tokenizer.decode_pieces(ids)))


def show_pairs(window: Shown, tokenizer: Tokenizer | None) -> list[tuple[str, str, str, str]]:
    """Return for each position the input's text, its ID, the target's text (-100 if ignored), and a key of MARKS."""
    pieces = show_pieces([*window.input_ids, *(max(target, 0) for target in window.target_ids)], tokenizer)
    size = len(window.input_ids)
    targets = [
        piece if target >= 0 else str(target) for piece, target in zip(pieces[size:], window.target_ids, strict=True)
    ]
    marks = [overlap_mark(window, position) for position in range(size)]
    return list(zip(pieces[:size], map(str, window.input_ids), targets, marks, strict=True))


def describe_marks(window: Shown, marks: dict[str, str]) -> list[str]:
    """Return the overlap, the padding and the ignored targets in words, with the marks that show them."""
    lines = ["overlap   none: no other window has these tokens as inputs"]
    if window.before or window.after:
        previous = f"{counted(window.before, 'token')} with the previous window ({marks['before']})"
        lines = [f"overlap   {previous}, {window.after:,} with the next ({marks['after']}); {marks['both']} marks both"]
    if window.segments:
        sizes = " + ".join(f"{size:,}" for size in window.segments)
        lines = [f"packed    {counted(len(window.segments), 'document')}: {sizes} tokens"]
    padding, ignored = len(window.input_ids) - window.length, sum(target < 0 for target in window.target_ids)
    if padding:
        lines.append(f"padding   {counted(padding, 'position')} ({marks['padding']})")
    if ignored:
        lines.append(f"ignored   {counted(ignored, 'target')} (-100), which do not count in the loss")
    return lines


def overlap_mark(window: Shown, position: int) -> str:
    """Return the key of MARKS for a position, or an empty text."""
    if position >= window.length:
        return "padding"
    before, after = position < window.before, position >= window.length - window.after
    return "both" if before and after else "before" if before else "after" if after else ""


def describe_span(noun: str, start: int, stop: int) -> str:
    """Return a range of numbers in words, the last one included."""
    return f"{noun} {start:,}" if stop == start + 1 else f"{noun}s {start:,}-{stop - 1:,}"


def name_window(window: Shown) -> str:
    """Return a window's number and, in a mixture, its data set."""
    return f"window {window.window}{f' of {window.path}' if window.path else ''}"


def describe_place(window: Shown) -> str:
    """Return which tokens of its split a window has: if packed, where the first document is."""
    return describe_span("token", window.start, window.start + (window.segments or [window.length])[0])
