"""The stage `show`: what is in a window, or in a batch of the loader.

It shows every position of a window: the input token with its ID, and the target. It marks the tokens that the previous
and the next window contain too, padding, and targets that do not count in the loss. Below are the decoded text and the
documents that it comes from. `show.html` writes a page that needs no network. Only the shown row groups and the token
store's document tables are read.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.atomic import write_text
from pipeline.base.wording import counted, visible
from pipeline.cli.explorer import explorer
from pipeline.cli.show_page import page
from pipeline.cli.shown import (
    MARKS,
    Shown,
    describe_marks,
    describe_place,
    find_segments,
    find_store,
    find_tokenizer,
    find_windows,
    name_window,
    show_pairs,
    show_pieces,
)
from pipeline.cli.sources import open_loader, source_paths, source_places
from pipeline.loader.readers import open_split
from pipeline.rules import reject
from pipeline.shards.manifest import read_manifest

if TYPE_CHECKING:
    from pipeline.cli.config import Config
    from pipeline.tokenizer.tokenizer import Tokenizer

BACKGROUNDS = (153, 223, 183, 217)  # of a terminal's 256 colours; neighbouring tokens take different ones


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
    paths = source_places(config.shards_path, config.loader)
    name = f"mixture of {counted(len(paths), 'data set')}" if config.loader.sources else str(paths[0])
    samples, title = choose_samples(config, paths[0], name)
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
        first = shown[0].path or paths[0]
        manifest = read_manifest(first)
        slide = explorer(
            manifest,
            open_split(first, split),
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
    coloured = sys.stdout.isatty()
    if show.step is None and len(shown) > 1:
        print("\n" + describe_aligned(shown, tokenizer, coloured=coloured, width=width))
        return ShowReport(windows=shown, html=None)
    for one in shown:
        print("\n" + describe(one, tokenizer, coloured=coloured, width=width))
    return ShowReport(windows=shown, html=None)


def choose_samples(config: Config, path: Path | str, name: str) -> tuple[list[tuple[int, int]], str]:
    """Return the samples to show, as source and window, and what they are in words."""
    show = config.show
    if show.step is not None:
        title = f"step {show.step} of epoch {show.epoch}, rank {show.rank} of {show.world_size}, of {name}"
        return batch_samples(config), title
    if config.loader.sources:
        reject("show.step", "must be set with loader.sources: a mixture has batches, and no windows by number", None)
    num_windows = open_split(path, config.loader.split).groups.num_windows
    for number in show.windows:
        if number >= num_windows:
            raise ValueError(
                f"show.window: {name}: the {config.loader.split} split has the windows 0 to {num_windows - 1}; "
                f"got {number}"
            )
    samples = [(0, number) for number in show.windows]
    return samples, f"window{'s' * (len(samples) > 1)} {', '.join(map(str, show.windows))} of {name}"


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


def describe(window: Shown, tokenizer: Tokenizer | None, *, coloured: bool, width: int = 110) -> str:
    """Return a window for a terminal: texts and IDs, inputs above targets, then overlap, text and sources."""
    lines = [f"{name_window(window)}: {describe_place(window)} of the {window.split} split"]
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


def describe_aligned(
    windows: list[Shown], tokenizer: Tokenizer | None, *, coloured: bool = False, width: int = 110
) -> str:
    """Return windows below each other for a terminal, each token in the column of its place in the text.

    So the stride is seen as a shift, and the target of a token is the token to its right. Text that is in none of the
    windows takes no column. Padding has no place in the text and is counted below.
    """
    cells: list[dict[int, str]] = []  # of each window, its tokens by their place in the split
    for window in windows:
        pieces = [pair[0] for pair in show_pairs(window, tokenizer)][: window.length]
        cells.append(dict(zip(find_places(window), pieces, strict=True)))
    sizes = {place: max(len(cell.get(place, "")) for cell in cells) for place in sorted(set().union(*cells))}
    labels = [name_window(window) for window in windows]
    margin = max(map(len, labels)) + 4
    lines, places = [], list(sizes)
    while places:
        used, count = margin, 0
        while count < len(places) and (count == 0 or used + sizes[places[count]] + 1 <= width):
            used += sizes[places[count]] + 1
            count += 1
        here, places = places[:count], places[count:]
        for label, cell in zip(labels, cells, strict=True):
            if any(place in cell for place in here):
                texts = [(place, cell.get(place, "").ljust(sizes[place])) for place in here]
                parts = [
                    f"\x1b[30;48;5;{BACKGROUNDS[place % len(BACKGROUNDS)]}m{text}\x1b[0m"
                    if coloured and place in cell
                    else text
                    for place, text in texts
                ]
                lines.append(f"  {label:<{margin - 2}}{' '.join(parts)}".rstrip())
        lines.append("")
    lines.append("The target of a token is the token after it in the text. Overlapping windows share columns.")
    for label, window in zip(labels, windows, strict=True):
        lines += ["", f"{label}: {describe_place(window)} of the {window.split} split"]
        lines += [f"  {line}" for line in describe_marks(window, MARKS)]
        lines += [f"  source    {visible(document)}" for document in window.documents]
    return "\n".join(lines)


def find_places(window: Shown) -> range:
    """Return each real token's place in its split; the documents of a packed window are laid end to end."""
    return range(window.start, window.start + window.length)
