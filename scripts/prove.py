"""Show, by running it, what the loader promises of a data set: `python scripts/prove.py PATH [options]`.

1. Each window comes exactly once in an epoch, for every order.
2. All world sizes, batch sizes and resume points give one sequence of windows.
3. How well the windows are mixed, beside a true random order of the same windows.

The first part reads a whole epoch for each order. The second reads two batches of every rank behind each stop, and
compares them with what the whole epoch had there. Exit code 1, and the first difference, where a promise does not hold;
and where no order could be tried.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from typing import NoReturn

import numpy as np

from pipeline import ShardLoader

BATCH = 8


def main() -> None:
    """Check one data set, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="a data set's folder")
    parser.add_argument("--split", default="train")
    parser.add_argument("--shuffle", nargs="+", default=["none", "full", "lanes"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epoch", type=int, default=0)
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--world-sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--stops", type=int, default=5, help="places of the epoch to stop and resume at")
    options = parser.parse_args()
    try:
        ShardLoader(options.path, split=options.split, shuffle="none")
    except (ValueError, OSError) as error:
        sys.exit(f"prove.py: {error}")
    tried = 0
    for shuffle in options.shuffle:
        order = {"split": options.split, "shuffle": shuffle, "seed": options.seed, "lanes": options.lanes}
        try:
            whole = prove_once(options.path, order, options.epoch)
            prove_resume(
                options.path, order, options.epoch, whole=whole, world_sizes=options.world_sizes, stops=options.stops
            )
        except ValueError as error:  # an order that this data set or the memory budget does not allow
            print(f"{shuffle}: not tried: {error}")
            continue
        tried += 1
        show_quality(shuffle, whole, ShardLoader(options.path, **order))
    if not tried:
        sys.exit("prove.py: no order was tried")


def prove_once(path: str, order: dict[str, object], epoch: int) -> np.ndarray:
    """Read an epoch, check that each window comes once, and return the windows in the order they came."""
    loader = open_loader(path, order, epoch, drop_last=False)
    whole = np.concatenate([np.empty(0, np.int64), *(batch.window_ids.numpy() for batch in loader)])
    whole = whole[whole >= 0]
    counts = np.bincount(whole, minlength=len(loader.order))
    wrong = np.flatnonzero(counts != 1)
    if len(wrong) or len(counts) != len(loader.order):
        fail(order, f"window {wrong[0]} came {counts[wrong[0]]} times in epoch {epoch}")
    print(f"{order['shuffle']}: each of {len(whole):,} windows came once in epoch {epoch}")
    return whole


def prove_resume(
    path: str, order: dict[str, object], epoch: int, *, whole: np.ndarray, world_sizes: list[int], stops: int
) -> None:
    """Stop at several places, go on with every world size, and compare what comes with the one sequence."""
    allowed = [w for w in world_sizes if order["shuffle"] != "lanes" or int(str(order["lanes"])) % w == 0]
    places = np.linspace(0, max(0, len(whole) - 1), stops, dtype=int)
    compared = 0
    for place, world_size, batch_size in itertools.product(places, allowed, (1, BATCH)):
        state = {**open_loader(path, order, epoch).state_dict(), "consumed": int(place)}
        for rank in range(world_size):
            loader = open_loader(path, order, epoch, rank=rank, world_size=world_size, batch_size=batch_size)
            loader.load_state_dict(state)
            left = max(0, len(whole) - int(place)) // (batch_size * world_size)
            found = [batch.window_ids.numpy() for batch in itertools.islice(loader, min(2, left))]
            first = place + (rank - place) % world_size
            expected = whole[first::world_size][: len(found) * batch_size]
            if found and not np.array_equal(np.concatenate(found), expected):
                fail(order, f"rank {rank} of {world_size}, resumed at sample {place}, got other windows than were due")
            compared += len(expected)
    if not compared:
        print(f"{order['shuffle']}: nothing to resume was compared: too few windows, or no world size that lanes allow")
        return
    print(
        f"{order['shuffle']}: world sizes {', '.join(map(str, allowed))}, batches of 1 and {BATCH}, resumed at "
        f"{len(places)} places: one sequence ({compared:,} samples compared)"
    )


def show_quality(shuffle: str, whole: np.ndarray, loader: ShardLoader) -> None:
    """Print two figures of how well the windows are mixed, beside those of a true random order."""
    if len(whole) < 2:
        print(f"{shuffle}: {len(whole)} windows have nothing to be mixed with")
        return
    generator = np.random.default_rng(0)
    rows: list[tuple[float, float]] = []
    for windows in (whole, generator.permutation(len(whole))):
        distance = float(np.abs(np.diff(windows)).mean()) / max(1.0, len(windows) / 3)
        batches = windows[: len(windows) // BATCH * BATCH].reshape(-1, BATCH)
        reach = -(-loader.reader.max_length // loader.reader.part(0)[0].stride)
        pairs = sum(int((np.abs(batches[:, a] - batches[:, b]) < reach).sum()) for a in range(BATCH) for b in range(a))
        rows.append((distance, pairs / max(1, len(batches))))
    (mixed, near), (random_distance, random_near) = rows
    print(
        f"{shuffle}: distance between neighbours {mixed:.2f} of what chance gives (random order: "
        f"{random_distance:.2f}); overlapping pairs in a batch of {BATCH}: {near:.3f} (random order: {random_near:.3f})"
    )


def open_loader(path: str, order: dict[str, object], epoch: int, **options: object) -> ShardLoader:
    """A loader at the start of an epoch."""
    loader = ShardLoader(path, **order, **options)  # type: ignore[arg-type]  # options of several types
    loader.set_epoch(epoch)
    return loader


def fail(order: dict[str, object], what: str) -> NoReturn:
    """Say what does not hold, and end."""
    sys.exit(f"{order['shuffle']}: FAILED: {what}")


if __name__ == "__main__":
    main()
