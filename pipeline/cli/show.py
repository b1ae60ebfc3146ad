"""The stage `show`: what is in a window, or in a batch of the loader.

It shows every position of a window: the input token with its ID, and the target. It marks the tokens that the previous
and the next window contain too, padding, and targets that do not count in the loss. Below are the decoded text and the
documents that it comes from. `show.html` writes a page that needs no network. Only the shown row groups and the token
store's document tables are read.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.base.atomic import write_text
from pipeline.base.wording import counted, visible
from pipeline.cli.explorer import explorer, script_policy
from pipeline.cli.html import ICON, POLICY
from pipeline.cli.sources import open_loader, source_paths
from pipeline.corpus.compression import SUFFIXES
from pipeline.corpus.documents import describe_location
from pipeline.corpus.files import JSONL_SUFFIXES, TEXT_SUFFIXES
from pipeline.loader.map_dataset import WindowDataset
from pipeline.loader.row_group_cache import count_tokens
from pipeline.packing import PackedWindows
from pipeline.rules import reject
from pipeline.settings import PACKAGED, SPLITS, TokenizerConfig, WindowConfig
from pipeline.shards.manifest import read_manifest
from pipeline.tokenizer.load import load_tokenizer
from pipeline.tokens.store import TokenStore, open_store
from pipeline.windows import StoredWindows, cut_windows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.loader.readers import ShardReader, StoreReader
    from pipeline.settings import Config
    from pipeline.shards.manifest import Manifest
    from pipeline.tokenizer.tokenizer import Tokenizer
    from pipeline.windows import Documents

BACKGROUNDS = (153, 223, 183, 217)  # of a terminal's 256 colours; neighbouring tokens take different ones
SHADES = ("#9fd8c2", "#f2cdb0", "#d2c7f0", "#f3c6d6")
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
.wide { overflow-x: auto; }
.tokens { display: flex; flex-wrap: wrap; gap: 4px 2px; font: 13px monospace; }
.pair { display: inline-flex; flex-direction: column; align-items: center; border-top: 4px solid transparent; }
.pair span { white-space: pre; padding: 0 2px; color: #111; }
.before { border-top-color: #0072b2; } .after { border-top-color: #d55e00; } .both { border-top-color: #009e73; }
.padding { opacity: .5; border-top-color: #777; }
small { opacity: .7; } pre { white-space: pre-wrap; background: #8882; padding: .5rem; }
"""
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
    documents: list[str]  # their sources, and which of their tokens the window contains
    path: str | None = None  # in a mixture, its data set's folder


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowReport:
    """The windows that were shown, and the page that was written."""

    windows: list[Shown]
    html: str | None


def show_windows(config: Config) -> ShowReport:
    """Show the window or batch that `config.show` names.

    Raises:
        ValueError: there is no such data set, split, window or step.

    """
    split, show = config.loader.split, config.show
    paths = [Path(one) for one in source_paths(config.shards_path, config.loader)]
    name = f"mixture of {counted(len(paths), 'data set')}" if config.loader.sources else str(paths[0])
    if show.step is None:
        if config.loader.sources:
            reject(
                "show.step", "must be set with loader.sources: a mixture has batches, and no windows by number", None
            )
        windows = WindowDataset(paths[0], split=split)
        if show.window >= len(windows):
            raise ValueError(
                f"show.window: {name}: the {split} split has the windows 0 to {len(windows) - 1}; got {show.window}"
            )
        samples, title = [(0, show.window)], f"window {show.window} of {name}"
    else:
        samples = batch_samples(config)
        title = f"step {show.step} of epoch {show.epoch}, rank {show.rank} of {show.world_size}, of {name}"
    shown, missing = find_windows(config, paths, samples)
    manifest = read_manifest(paths[0])
    tokenizer = find_tokenizer(manifest, config.tokenizer)
    notes = []
    if missing:
        notes.append(f"sources are unknown: there is no {missing[0]} (cache.path names another cache)")
    if tokenizer is None:
        notes.append(
            f"only IDs are shown: name the tokenizer {manifest.tokenizer['name']} by tokenizer= and tokenizer.path="
        )
    if len(shown) < len(samples):
        notes.append(f"{counted(len(samples) - len(shown), 'row')} only to fill the batch")
    if show.html:
        first = Path(shown[0].path or paths[0])
        manifest = read_manifest(first)
        slide = explorer(
            manifest,
            WindowDataset(first, split=split),
            shown[0].window,
            documents=find_segments(manifest, find_store(config, manifest), split),
            show_pieces=lambda ids: show_pieces(ids, tokenizer),
        )
        write_text(Path(show.html).absolute(), page(title, shown, tokenizer, explorer=slide))
        print(f"show\n  in        {visible(show.html)}")
        return ShowReport(windows=shown, html=show.html)
    width = shutil.get_terminal_size((110, 24)).columns
    print(
        "\n".join(visible(f"show {title}" if not at else f"  note      {line}") for at, line in enumerate(["", *notes]))
    )
    for one in shown:
        print("\n" + describe(one, tokenizer, coloured=sys.stdout.isatty(), width=width))
    return ShowReport(windows=shown, html=None)


def batch_samples(config: Config) -> list[tuple[int, int]]:
    """Return the samples that the loader gives a rank at a step, as source and window; -1 where a row only fills.

    Raises:
        ValueError: an epoch has no such step.

    """
    show = config.show
    loader = open_loader(config.shards_path, config.loader, rank=show.rank, world_size=show.world_size)
    loader.set_epoch(show.epoch)
    steps = len(loader)
    if show.step is None or show.step >= steps:
        paths = source_paths(config.shards_path, config.loader)
        raise ValueError(f"show.step: {paths[0]}: an epoch has the steps 0 to {steps - 1}; got {show.step}")
    if loader.order.endless:  # the epochs of a mixture follow one another: this one starts with a complete batch
        start = -(-loader.consumed // (loader.batch_size * show.world_size))
        loader.set_epoch(0)
        loader.skip(start)
    loader.skip(show.step)
    batch = next(iter(loader))
    sources = [0] * len(batch.window_ids) if batch.source_ids is None else batch.source_ids.tolist()
    return list(zip(sources, batch.window_ids.tolist(), strict=True))


def find_windows(config: Config, paths: list[Path], samples: list[tuple[int, int]]) -> tuple[list[Shown], list[Path]]:
    """Return the windows of samples that are no filling, in their order, and the token stores that are not there."""
    split, shown, missing = config.loader.split, {}, []
    for source in sorted({source for source, number in samples if number >= 0}):
        manifest = read_manifest(paths[source])
        windows = WindowDataset(paths[source], split=split, score=config.window.score)
        store = find_store(config, manifest)
        missing += [store_file(config, manifest)] * (store is None)
        for number in {number for one, number in samples if one == source and number >= 0}:
            found = find_window(manifest, windows, number, store, split)
            shown[source, number] = replace(found, path=str(paths[source])) if config.loader.sources else found
    return [shown[one] for one in samples if one in shown], missing


def store_file(config: Config, manifest: Manifest) -> Path:
    """Return where a data set's token store is, if it is there."""
    return Path(config.cache.path) / "stores" / f"{manifest.store}.json"


def find_store(config: Config, manifest: Manifest) -> TokenStore | None:
    """Return a data set's token store, None if it is not there."""
    file = store_file(config, manifest)
    return open_store(file) if file.is_file() else None


def find_window(manifest: Manifest, windows: WindowDataset, number: int, store: TokenStore | None, split: str) -> Shown:
    """Return a window's tokens, its overlap with its neighbours, and its documents."""
    reader = windows.reader
    start, length, segments = find_row(reader, number)
    item = windows[number]
    spans = [(start, start + length)]
    if segments and store is not None:
        spans = find_spans(manifest, store, split, number)
    first, size = find_segment(manifest, store, split, start)
    text_end = first + size
    padded = manifest.windows["tail"] == "pad"
    has_next = start + length < text_end - 1 if padded else start + reader.stride + reader.max_length < text_end
    return Shown(
        window=number,
        split=split,
        start=start,
        length=length,
        input_ids=item["input_ids"].tolist(),
        target_ids=item["target_ids"].tolist(),
        before=max(0, reader.max_length - reader.stride) if start > first else 0,
        after=max(0, length - reader.stride) if has_next else 0,
        segments=segments,
        documents=[] if store is None else [name for span in spans for name in find_documents(store, split, *span)],
    )


def find_row(reader: ShardReader | StoreReader, number: int) -> tuple[int, int, list[int]]:
    """Return a window's first token in its split, its number of real tokens, and those of each document if packed."""
    ends = np.cumsum(reader.groups)
    group = int(np.searchsorted(ends, number, side="right"))
    rows = reader.read_group(group, np.empty(count_tokens(reader, group), reader.dtype))
    row = number - int(ends[group] - reader.groups[group])
    length, segments = int(rows.lengths[row]), []
    if rows.ends is not None:
        stops = np.flatnonzero(np.unpackbits(rows.ends[row], count=reader.max_length, bitorder="little")) + 1
        stops = stops if len(stops) and stops[-1] == length else np.append(stops, length)  # the last one continues
        segments = np.diff(stops, prepend=0).tolist()
    return int(rows.starts[row]), length, segments


def find_spans(manifest: Manifest, store: TokenStore, split: str, number: int) -> list[tuple[int, int]]:
    """Return the span of its split's tokens that each segment of a packed window is."""
    cut, stream = manifest.windows, store.stream(split, closed=True)
    section = WindowConfig(max_length=cut["max_length"], documents="pack")
    windows = cut_windows(
        section, num_tokens=len(stream), documents=store.documents(split), group_tokens=cut["pack_group_tokens"]
    )
    assert isinstance(windows, PackedWindows), "these are packed"
    stored = StoredWindows(stream=stream, windows=windows, order=cut["order"], seed=cut["seed"] or 0, pad_id=0)
    segments, firsts = windows.segments(stored.numbers(number, number + 1))
    return list(zip(firsts.tolist(), (firsts + segments.sizes).tolist(), strict=True))


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


def find_documents(store: TokenStore, split: str, start: int, stop: int) -> list[str]:
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
            found.append(f"{source}, {_span('token', max(start, first) + offset, min(stop, first + count) + offset)}")
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
    return [repr(piece)[1:-1].replace("\\\\x", "\\x") for piece in tokenizer.decode_pieces(ids)]


def show_pairs(window: Shown, tokenizer: Tokenizer | None) -> list[tuple[str, str, str, str]]:
    """Return for each position the input's text, its ID, the target's text (-100 if ignored), and a key of MARKS."""
    pieces = show_pieces([*window.input_ids, *(max(target, 0) for target in window.target_ids)], tokenizer)
    size = len(window.input_ids)
    targets = [
        piece if target >= 0 else str(target) for piece, target in zip(pieces[size:], window.target_ids, strict=True)
    ]
    marks = [overlap_mark(window, position) for position in range(size)]
    return list(zip(pieces[:size], map(str, window.input_ids), targets, marks, strict=True))


def describe(window: Shown, tokenizer: Tokenizer | None, *, coloured: bool, width: int = 110) -> str:
    """Return a window for a terminal: texts and IDs, inputs above targets, then overlap, text and sources."""
    lines = [f"{_name(window)}: {_describe_span(window)} of the {window.split} split"]
    cells = [(*pair[:3], MARKS.get(pair[3], " ")) for pair in show_pairs(window, tokenizer)]
    position = 0
    while cells:
        used, count = 10, 0
        while count < len(cells) and (count == 0 or used + max(map(len, cells[count])) + 1 <= width):
            used += max(map(len, cells[count])) + 1
            count += 1
        shown, cells = cells[:count], cells[count:]
        for row, name in enumerate(("input", "id", "target", "mark")):
            if (row == 3 and not any(cell[3].strip() for cell in shown)) or (row == 1 and tokenizer is None):
                continue
            parts = []
            for index, cell in enumerate(shown, position):
                size = max(map(len, cell))
                text = (cell[row] * size if row == 3 else cell[row]).ljust(size)
                turn = BACKGROUNDS[(index + (row == 2)) % len(BACKGROUNDS)]  # a token has one colour in both rows
                parts.append(f"\x1b[30;48;5;{turn}m{text}\x1b[0m" if coloured and row in (0, 2) else text)
            lines.append(f"  {name:<8}{' '.join(parts)}".rstrip())
        position += count
        lines.append("")
    lines += [f"  {line}" for line in describe_marks(window, MARKS)]
    if tokenizer is not None:
        text = repr(tokenizer.decode(window.input_ids[: window.length]))
        room = max(20, width - 12)
        lines += [f"  {'text' if not at else '':<10}{text[at : at + room]}" for at in range(0, len(text), room)]
    lines += [f"  source    {visible(document)}" for document in window.documents]
    return "\n".join(lines)


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


def page(title: str, windows: list[Shown], tokenizer: Tokenizer | None, *, explorer: str = "") -> str:
    """Return the windows as an HTML page that fetches nothing."""
    body = [
        f"<h1>{escape(title)}</h1>",
        explorer,
        "<p>Each column: an input token, its ID, and its target, the next token.</p>",
    ]
    colours = {"before": "blue", "after": "orange", "both": "green", "padding": "grey"}
    for window in windows:
        body.append(
            f"<h2>W{escape(_name(window))[1:]}</h2><p>{_describe_span(window)} of the {window.split} split.</p>"
        )
        body += [f"<p>{escape(line)}.</p>" for line in describe_marks(window, colours)]
        body.append("<div class='tokens'>")
        for position, (piece, token, target, kind) in enumerate(show_pairs(window, tokenizer)):
            shades = [SHADES[(position + later) % len(SHADES)] for later in (0, 1)]
            body.append(
                f'<span class="pair {kind}"><span style="background:{shades[0]}">{escape(piece)}</span>'
                f'<small>{token}</small><span style="background:{shades[1]}">{escape(target)}</span></span>'
            )
        body.append("</div>")
        if tokenizer is not None:
            body.append(f"<pre>{escape(tokenizer.decode(window.input_ids[: window.length]))}</pre>")
        body += [f"<p>{escape(document)}</p>" for document in window.documents]
    policy = f"{POLICY}; {script_policy()}" if explorer else POLICY
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(title)}</title>{ICON}<style>{STYLE}</style>"
    head += f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    text = "\n".join(body)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{text}\n</body></html>\n'


def _name(window: Shown) -> str:
    return f"window {window.window}{f' of {window.path}' if window.path else ''}"


def _describe_span(window: Shown) -> str:
    """Return which tokens of its split a window has: if packed, where the first document is."""
    return _span("token", window.start, window.start + (window.segments or [window.length])[0])


def _span(noun: str, start: int, stop: int) -> str:
    return f"{noun} {start:,}" if stop == start + 1 else f"{noun}s {start:,}-{stop - 1:,}"
