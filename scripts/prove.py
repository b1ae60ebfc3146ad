"""Show, by running it, what the loader promises of a data set: `python scripts/prove.py PATH [options]`.

1. Each window comes exactly once in an epoch, for every order.
2. All world sizes, batch sizes and resume points give one sequence of windows.
3. How well the windows are mixed, beside a true random order of the same windows.

The first part reads a whole epoch for each order. The second reads the next two batches of every rank from each place,
or as many as the epoch still has, and compares them with what the whole epoch had there. The third goes by where the
windows lie in the text: the windows of a data set that is stored shuffled are numbered by its shuffle.

Exit code 1 where a promise does not hold, with the first difference; where a shard cannot be read; where no world size
suits an order; and where memory does not allow an order that `--shuffle` names.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from pipeline import ShardLoader
from pipeline.shards.format import open_shard, read_columns
from pipeline.shards.manifest import read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 8
ORDERS = ("none", "full", "lanes")
MANY = 2**16  # lanes, ranks or places, at most


def main() -> None:
    """Check one data set, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="a data set's folder")
    parser.add_argument("--split", default="train")
    parser.add_argument("--shuffle", nargs="+", choices=[*ORDERS, "auto"], help="left out: those that memory allows")
    parser.add_argument("--seed", type=whole_number(0, 2**64 - 1), default=0)
    parser.add_argument("--epoch", type=whole_number(0, 2**64 - 1), default=0)
    parser.add_argument("--lanes", type=whole_number(1, MANY), default=64)
    parser.add_argument("--world-sizes", type=whole_number(1, MANY), nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--stops", type=whole_number(1, MANY), default=5, help="places of the epoch to resume at")
    options = parser.parse_args()
    try:
        ShardLoader(options.path, split=options.split, shuffle="none")
    except (ValueError, OSError) as error:
        sys.exit(f"prove.py: {one_line(error)}")
    unproven = [shuffle for shuffle in options.shuffle or ORDERS if not prove(shuffle, options)]
    if unproven:
        sys.exit(f"prove.py: not proven: {', '.join(unproven)}")


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """What makes a number from `low` to `high` of an argument; argparse refuses all others."""

    def parse(text: str) -> int:
        number = int(text) if text.removeprefix("-").isdecimal() and len(text) < 30 else low - 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} to {high}")
        return number

    return parse


def prove(shuffle: str, options: argparse.Namespace) -> bool:
    """Try one order, and say what was found. False where it could not be tried, though the command line asks for it."""
    order = {"split": options.split, "shuffle": shuffle, "seed": options.seed, "lanes": options.lanes}
    try:
        open_loader(options.path, order, options.epoch)
    except ValueError as error:  # the memory budget does not allow it
        print(f"{shuffle}: not tried: {one_line(error)}")
        return not options.shuffle
    try:
        whole = prove_once(options.path, order, options.epoch)
        compared = prove_resume(
            options.path, order, options.epoch, whole=whole, world_sizes=options.world_sizes, stops=options.stops
        )
        show_quality(shuffle, whole, resume_points(options.path, options.split))
    except (ValueError, OSError) as error:
        print(f"{shuffle}: the data set cannot be read: {one_line(error)}")
        return False
    return compared > 0


def prove_once(path: str, order: dict[str, object], epoch: int) -> np.ndarray:
    """Read an epoch, check that each window comes once, and return the windows in the order they came."""
    loader = open_loader(path, order, epoch)
    whole = read_batches(loader, len(loader))
    whole = whole[whole >= 0]
    counts = np.bincount(whole, minlength=len(loader.order))
    wrong = np.flatnonzero(counts != 1)
    if len(wrong) or len(counts) != len(loader.order):
        fail(order, f"window {wrong[0]} came {counts[wrong[0]]} times in epoch {epoch}")
    print(f"{order['shuffle']}: each of {len(whole):,} windows came once in epoch {epoch}")
    return whole


def prove_resume(
    path: str, order: dict[str, object], epoch: int, *, whole: np.ndarray, world_sizes: list[int], stops: int
) -> int:
    """Go on from several places with every world size, and compare with the one sequence; how many samples."""
    resolved = open_loader(path, order, epoch).order
    refused = [w for w in dict.fromkeys(world_sizes) if resolved.shuffle == "lanes" and resolved.lanes % w]
    allowed = [w for w in dict.fromkeys(world_sizes) if w not in refused]
    if refused:
        print(f"{order['shuffle']}: {sizes(refused)} left out: lanes={resolved.lanes} is no multiple")
    if not allowed:
        print(f"{order['shuffle']}: nothing to resume was compared: no world size is left")
        return 0
    places = np.unique(np.linspace(0, len(whole) - 1, stops, dtype=int)).tolist()
    compared = sum(
        compare_rest(path, order, epoch, whole=whole, place=place, world_size=world_size, batch_size=batch_size)
        for place, world_size, batch_size in itertools.product(places, allowed, (1, BATCH))
    )
    print(
        f"{order['shuffle']}: {sizes(allowed)}, batches of 1 and {BATCH}, resumed at "
        f"{len(places)} place{'s' * (len(places) > 1)}: one sequence ({compared:,} samples compared)"
    )
    return compared


def compare_rest(
    path: str, order: dict[str, object], epoch: int, *, whole: np.ndarray, place: int, world_size: int, batch_size: int
) -> int:
    """Go on from one place, two batches on every rank or to the epoch's end; how many samples that compared."""
    global_batch = world_size * batch_size
    batches = min(2, -(-(len(whole) - place) // global_batch))
    due = whole[place : place + batches * global_batch]
    assert len(due), "there is a sample behind each place"
    state = {**open_loader(path, order, epoch).state_dict(), "consumed": place}
    for rank in range(world_size):
        loader = open_loader(path, order, epoch, rank=rank, world_size=world_size, batch_size=batch_size)
        loader.load_state_dict(state)
        expected = np.full(batches * batch_size, -1)  # a row that only fills the epoch's last batch
        mine = due[(rank - place) % world_size :: world_size]
        expected[: len(mine)] = mine
        if not np.array_equal(read_batches(loader, batches), expected):
            fail(order, f"rank {rank} of {world_size}, resumed at sample {place}, got other windows than were due")
    return len(due)


def resume_points(path: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The stretch of its split's tokens that each window holds, from .. to, int64 [windows] each; no IDs are read."""
    manifest = read_manifest(path)
    entry = manifest.splits[split]
    if manifest.windows["documents"] == "join" and manifest.windows["order"] == "sequential":
        starts = np.arange(entry.num_windows, dtype=np.int64) * entry.stride
        return starts, np.minimum(starts + entry.max_length, entry.num_tokens - 1)  # a padded tail is shorter
    parts = []
    for shard in entry.shards:
        with open_shard(Path(path) / shard.path) as file:
            parts += [read_columns(file, group, with_ids=False)[2:] for group in range(len(shard.row_groups))]
    starts, lengths = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return starts, starts + lengths


def show_quality(shuffle: str, whole: np.ndarray, places: tuple[np.ndarray, np.ndarray]) -> None:
    """Print two figures of how well the windows are mixed, beside those of a true random order."""
    if len(whole) < BATCH:
        print(f"{shuffle}: {len(whole)} windows are no batch of {BATCH}: how well they are mixed is not measured")
        return
    mixed, near = measure(whole, *places)
    random_distance, random_near = measure(np.random.default_rng(0).permutation(len(whole)), *places)
    print(
        f"{shuffle}: distance between neighbours {mixed:.2f} of what chance gives (random order: "
        f"{random_distance:.2f}); overlapping pairs in a batch of {BATCH}: {near:.3f} (random order: {random_near:.3f})"
    )


def measure(windows: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> tuple[float, float]:
    """How far apart in the text neighbours of an order lie, 1.0 by chance; the pairs of a batch that share tokens."""
    total = len(windows)
    below = np.arange(1, total)  # windows before each gap between two starts
    across = below / total * 2 * (total - below) / (total - 1)  # what part of all pairs has the gap between them
    chance = float((np.diff(np.sort(starts)) * across).sum())
    distance = float(np.abs(np.diff(starts[windows])).mean()) / chance
    batches = windows[: total // BATCH * BATCH].reshape(-1, BATCH)
    first, behind = starts[batches], stops[batches]
    pairs = sum(
        int((np.maximum(first[:, a], first[:, b]) < np.minimum(behind[:, a], behind[:, b])).sum())
        for a, b in itertools.combinations(range(BATCH), 2)
    )
    return distance, pairs / len(batches)


def open_loader(path: str, order: dict[str, object], epoch: int, **options: object) -> ShardLoader:
    """A loader at the start of an epoch, which it reads to its last window."""
    loader = ShardLoader(path, drop_last=False, **order, **options)  # type: ignore[arg-type]  # options of several types
    loader.set_epoch(epoch)
    return loader


def read_batches(loader: ShardLoader, count: int) -> np.ndarray:
    """The windows of a loader's next batches, int64; -1 for a row that only fills a batch."""
    found = (batch.window_ids.numpy() for batch in itertools.islice(loader, count))
    return np.concatenate([np.empty(0, np.int64), *found])


def sizes(world_sizes: list[int]) -> str:
    """World sizes, in a sentence."""
    return f"world size{'s' * (len(world_sizes) > 1)} {', '.join(map(str, world_sizes))}"


def one_line(error: Exception) -> str:
    """What an error says, in one line: Arrow's may have several."""
    return " ".join(str(error).splitlines())


def fail(order: dict[str, object], what: str) -> NoReturn:
    """Say what does not hold, and end."""
    sys.exit(f"{order['shuffle']}: FAILED: {what}")


if __name__ == "__main__":
    main()
