"""What is in a batch? `python scripts/show.py <data set> 12`, or `--step 3` for a whole batch of the loader.

Shows each window's input above its target, token by token with their IDs; marks the tokens that the windows before and
after it have too; gives the decoded text, and the documents that it comes from with their places. `--html` writes a
page that needs no network. Only what is shown is read: the row groups of these windows, and the token store's document
tables.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.base.atomic import write_text
from pipeline.cli.html import ICON, POLICY
from pipeline.corpus.compression import SUFFIXES
from pipeline.corpus.documents import describe_location
from pipeline.corpus.files import JSONL_SUFFIXES, TEXT_SUFFIXES
from pipeline.loader.order import Order, default_block, rank_positions, resolve_shuffle
from pipeline.loader.readers import open_split
from pipeline.loader.row_group import view_windows
from pipeline.loader.row_group_cache import count_tokens
from pipeline.settings import SPLITS
from pipeline.shards.manifest import read_manifest
from pipeline.tokenizer.load import load_tokenizer
from pipeline.tokens.store import TokenStore, open_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.loader.readers import ShardReader, StoreReader
    from pipeline.shards.manifest import Manifest
    from pipeline.tokenizer.tokenizer import Tokenizer

BACKGROUNDS = (153, 223, 183, 217)  # of the 256 colours of a terminal; a token's turn, so that neighbours differ
SHADES = ("#9fd8c2", "#f2cdb0", "#d2c7f0", "#f3c6d6")
STYLE = """
body { font: 15px/1.5 sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; background: #fff; color: #111; }
.tokens { display: flex; flex-wrap: wrap; gap: 4px 2px; font: 13px monospace; }
.pair { display: inline-flex; flex-direction: column; align-items: center; border-top: 4px solid transparent; }
.pair span { white-space: pre; padding: 0 2px; }
.before { border-top-color: #0072b2; } .after { border-top-color: #d55e00; } .both { border-top-color: #009e73; }
small { color: #666; } pre { white-space: pre-wrap; background: #eee; padding: .5rem; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One window."""

    window: int
    start: int  # its first token in its split's token stream
    length: int  # real tokens; the rest is padding
    ids: list[int]  # inputs, and the one target beyond them
    before: int  # its first tokens that the window before it has too
    after: int  # its last tokens that the window after it has too
    documents: list[str]


def main() -> None:
    """Read the command line, find the windows, and show them."""
    parser = argparse.ArgumentParser(description="Show what is in a window or a batch of a data set.")
    parser.add_argument("path", help="the data set's folder")
    parser.add_argument("window", type=int, nargs="?", help="a window's number, from 0")
    parser.add_argument("--split", default="train", choices=SPLITS)
    parser.add_argument("--step", type=int, help="show the batch of this step instead, from 0")
    parser.add_argument("--epoch", type=int, default=0)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world-size", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8, help="of each rank, as the loader has it")
    parser.add_argument("--shuffle", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--cache", default="outputs/cache", help="where the token store lies")
    parser.add_argument("--tokenizer-path", help="the vocabulary's file, where the tokenizer is one of a file")
    parser.add_argument("--html", metavar="FILE", help="write a page instead")
    given = parser.parse_args()
    if (given.window is None) == (given.step is None):
        parser.error("give the number of a window, or --step for a batch")
    try:
        show(given)
    except (ValueError, OSError) as error:
        print(f"show.py: {error}", file=sys.stderr)
        sys.exit(1)


def show(given: argparse.Namespace) -> None:
    """Show what the arguments ask for.

    Raises:
        ValueError: there is no such data set, split, window or step.

    """
    manifest = read_manifest(given.path)
    reader = open_split(given.path, given.split)
    numbers = [given.window] if given.step is None else batch_windows(reader, given)
    total = sum(reader.groups)
    if not all(0 <= number < total for number in numbers):
        raise ValueError(f"{given.path}: the {given.split} split has windows 0 to {total - 1}; got {given.window}")
    store_file = Path(given.cache) / "stores" / f"{manifest.store}.json"
    store = open_store(store_file) if store_file.is_file() else None
    windows = [find_window(manifest, reader, number, store, given.split) for number in numbers]
    tokenizer = own_tokenizer(manifest, given.tokenizer_path)
    what = f"step {given.step} of epoch {given.epoch}, rank {given.rank} of {given.world_size}"
    title = f"{given.path}, {given.split}: {'window ' + str(given.window) if given.step is None else what}"
    if given.html:
        write_text(Path(given.html).absolute(), page(title, windows, tokenizer))
        print(f"in {given.html}")
        return
    print(title)
    if store is None:
        print(f"(where a window comes from is not known: there is no {store_file}; --cache names another place)")
    for window in windows:
        print("\n" + describe(window, tokenizer, coloured=sys.stdout.isatty()))


def batch_windows(reader: ShardReader | StoreReader, given: argparse.Namespace) -> list[int]:
    """The windows that the loader hands a rank at a step, by the same arithmetic."""
    kind = resolve_shuffle(given.shuffle, num_windows=sum(reader.groups), max_length=reader.max_length)
    block = default_block(reader.groups, max_length=reader.max_length)
    order = Order(groups=reader.groups, shuffle=kind, seed=given.seed, lanes=given.lanes, block=block)
    order.check_world_size(given.world_size)
    if not 0 <= given.rank < given.world_size or given.batch_size < 1 or given.epoch < 0:
        raise ValueError("--rank must be from 0 to world size - 1, --batch-size at least 1, --epoch at least 0")
    consumed = given.step * given.batch_size * given.world_size
    if not 0 <= consumed < len(order):
        last = (len(order) - 1) // (given.batch_size * given.world_size)
        raise ValueError(f"{given.path}: an epoch has the steps 0 to {last}; got --step {given.step}")
    positions = rank_positions(
        consumed, given.batch_size, rank=given.rank, world_size=given.world_size, stop=len(order)
    )
    numbers: list[int] = order.windows(positions, given.epoch).tolist()
    return numbers


def find_window(
    manifest: Manifest, reader: ShardReader | StoreReader, number: int, store: TokenStore | None, split: str
) -> Shown:
    """A window's tokens, its overlap with its neighbours, and its documents."""
    ends = np.cumsum(reader.groups)
    group = int(np.searchsorted(ends, number, side="right"))
    tokens = np.empty(count_tokens(reader, group), reader.dtype)
    rows = reader.read_group(group, tokens)
    ids_BT1 = view_windows(tokens, step=int(reader.steps[group]), max_length=reader.max_length)
    row = number - int(ends[group] - reader.groups[group])
    start, length = int(rows.starts[row]), int(rows.lengths[row])
    first, size = find_segment(manifest, store, split, start)
    text_end = first + size
    padded = manifest.windows["tail"] == "pad"
    goes_on = start + length < text_end - 1 if padded else start + reader.stride + reader.max_length < text_end
    return Shown(
        window=number,
        start=start,
        length=length,
        ids=ids_BT1[row].tolist(),
        before=max(0, reader.max_length - reader.stride) if start > first else 0,
        after=max(0, length - reader.stride) if goes_on else 0,
        documents=find_documents(store, split, start, start + length) if store is not None else [],
    )


def find_segment(manifest: Manifest, store: TokenStore | None, split: str, start: int) -> tuple[int, int]:
    """The text that the window at `start` is cut from, its first token and its size: a document, or the whole split."""
    if manifest.windows["documents"] == "join":
        return 0, manifest.splits[split].num_tokens
    if store is None:
        raise ValueError("windows of separate documents need the token store to be shown; --cache names its place")
    firsts, sizes = store.documents(split)
    at = int(np.searchsorted(firsts, start, side="right")) - 1
    return int(firsts[at]), int(sizes[at])


def find_documents(store: TokenStore, split: str, start: int, stop: int) -> list[str]:
    """The documents that hold the tokens [start, stop) of a split: their sources, rows, and which of their tokens."""
    is_cut = store.num_documents == 1 and store.validation > 0  # one document: its last part is the validation split
    base = -len(store.stream("train")) if is_cut and split == "validation" else 0
    found: list[str] = []
    carried = 0  # tokens of a document in the chunks before
    for chunk in store.chunks:
        table = np.load(store.cache / "chunks" / chunk.id / "documents.npy", mmap_mode="r", allow_pickle=False)
        if not is_cut:
            table = table[table["split"] == SPLITS.index(split)]
        for index in np.flatnonzero((table["first"] + base < stop) & (table["first"] + table["count"] + base > start)):
            entry = table[index]
            first, count = int(entry["first"]) + base, int(entry["count"])
            offset = (carried if chunk.continued and index == 0 else 0) - first
            source = chunk.sources[int(entry["source"])]
            here = f"tokens {max(start, first) + offset:,} to {min(stop, first + count) + offset - 1:,} of it"
            found.append(f"{name_document(source, int(entry['row']))}: {here}")
        if len(table):
            last = int(table["count"][-1])
            carried = last + (carried if chunk.continued and len(table) == 1 else 0)
        base += sum(chunk.tokens.values()) if is_cut else chunk.tokens[split]
    return found


def name_document(source: str, row: int) -> str:
    """A document by its file and its place in it, as errors and the quarantine name it."""
    name = source.lower()
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    kind = "text" if name.endswith(TEXT_SUFFIXES) else "jsonl" if name.endswith(JSONL_SUFFIXES) else "other"
    place = describe_location(kind, row)
    return f"{source}, {place}" if place else source


def own_tokenizer(manifest: Manifest, path: str | None) -> Tokenizer:
    """The data set's tokenizer, to turn IDs into text.

    Raises:
        ValueError: the tokenizer of that name is another one here than the data set's.

    """
    settings = manifest.config.get("tokenizer", {})
    name = settings.get("name") or manifest.tokenizer["name"].partition(":")[0]  # a file's follows the colon
    tokenizer = load_tokenizer(
        name,
        path=path or settings.get("path"),
        pattern=settings.get("pattern"),
        engine="auto"
        if name in ("bytes", "huggingface")
        else "tiktoken",  # to decode, any will do: the fastest to load
        special_text="literal",
    )
    if tokenizer.hash != manifest.tokenizer["hash"]:
        raise ValueError(f"the data set was made by another tokenizer {manifest.tokenizer['name']!r} than the one here")
    return tokenizer


def show_pieces(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    r"""Each token as one would type it: a line's end is \n, a byte that is no character by itself \xNN."""
    return [repr(piece)[1:-1].replace("\\\\x", "\\x") for piece in tokenizer.decode_pieces(ids)]


def describe(window: Shown, tokenizer: Tokenizer, *, coloured: bool, width: int = 110) -> str:
    """A window for a terminal: pieces and IDs, input above target, then the overlap, the text and the documents."""
    lines = [f"window {window.window}: {window.length} tokens from token {window.start:,} of the split"]
    cells: list[tuple[str, str, str, str]] = []
    pieces = show_pieces(window.ids[: window.length + 1], tokenizer)
    for place, (piece, target) in enumerate(pairwise(pieces)):
        mark = overlap_mark(window, place, ("<", ">", "="))
        cells.append((piece, str(window.ids[place]), target, mark))
    while cells:
        used, count = 9, 0
        while count < len(cells) and (count == 0 or used + max(map(len, cells[count])) + 1 <= width):
            used += max(map(len, cells[count])) + 1
            count += 1
        shown, cells = cells[:count], cells[count:]
        for row, name in enumerate(("input", "id", "target", "overlap")):
            if row == 3 and not any(cell[3].strip() for cell in shown):
                continue
            parts = []
            for index, cell in enumerate(shown):
                size = max(map(len, cell))
                text = (cell[row] * size if row == 3 else cell[row]).ljust(size)
                turn = BACKGROUNDS[(index + (row == 2)) % len(BACKGROUNDS)]  # a token has one colour in both rows
                parts.append(f"\x1b[30;48;5;{turn}m{text}\x1b[0m" if coloured and row in (0, 2) else text)
            lines.append(f"  {name:<8}{' '.join(parts)}".rstrip())
        lines.append("")
    lines.append(describe_overlap(window, "<", ">", "="))
    lines.append(f"  text    {tokenizer.decode(window.ids[: window.length])!r}")
    lines += [f"  from    {document}" for document in window.documents]
    return "\n".join(lines)


def describe_overlap(window: Shown, before: str, after: str, both: str) -> str:
    """How many tokens the neighbours have too, and the marks that say which."""
    if not window.before and not window.after:
        return "  overlap none: no other window has these tokens as inputs"
    return (
        f"  overlap {window.before} tokens with the window before ({before}), "
        f"{window.after} with the one after ({after}); {both} marks both"
    )


def overlap_mark(window: Shown, place: int, marks: tuple[str, str, str]) -> str:
    """Which neighbour has a token too: the mark for the window before, the one after, or both; a space for none."""
    before, after = place < window.before, place >= window.length - window.after
    return marks[2] if before and after else marks[0] if before else marks[1] if after else " "


def page(title: str, windows: list[Shown], tokenizer: Tokenizer) -> str:
    """The windows as an HTML page that fetches nothing."""
    body = [f"<h1>{escape(title)}</h1>", "<p>Each column: an input token, its ID, and its target, the next token.</p>"]
    for window in windows:
        body.append(
            f"<h2>Window {window.window}</h2><p>{window.length} tokens from token {window.start:,} of the split."
        )
        body.append(f"{escape(describe_overlap(window, 'blue', 'orange', 'green').strip())}.</p><div class='tokens'>")
        pieces = [escape(piece) for piece in show_pieces(window.ids[: window.length + 1], tokenizer)]
        for place, (piece, target) in enumerate(pairwise(pieces)):
            shades = [SHADES[(place + later) % len(SHADES)] for later in (0, 1)]
            kind = overlap_mark(window, place, ("before", "after", "both")).strip()
            body.append(
                f'<span class="pair {kind}"><span style="background:{shades[0]}">{piece}</span>'
                f'<small>{window.ids[place]}</small><span style="background:{shades[1]}">{target}</span></span>'
            )
        body.append(f"</div><pre>{escape(tokenizer.decode(window.ids[: window.length]))}</pre>")
        body += [f"<p>{escape(document)}</p>" for document in window.documents]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title>{ICON}<style>{STYLE}</style>'
    head += f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    text = "\n".join(body)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{text}\n</body></html>\n'


if __name__ == "__main__":
    main()
