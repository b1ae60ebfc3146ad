"""`python scripts/bench.py ranks`: what a rank decodes at any world size, compared with one of as many ranks as lanes.

Row groups are counted along `Order.spans`, which is what a loader decodes in an epoch, so the figures are the same on
every machine. The baseline is a rank that has one lane for itself, in the same run.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

from pipeline.loader.division import divide
from pipeline.loader.order import Order


class Decoding(NamedTuple):
    """What the ranks of a job decode in an epoch."""

    lanes: int  # of the rank that reads most of them
    most: int  # row groups of the rank that decodes most of them
    total: int  # row groups of all ranks together


def main(arguments: list[str]) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="bench.py ranks", description=__doc__)
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--row-groups", type=int, default=6000)
    parser.add_argument("--windows", type=int, default=256, help="of a row group")
    parser.add_argument("--ranks", type=int, nargs="+", default=[3, 7, 8, 28, 48, 56, 64, 128])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 64])
    options = parser.parse_args(arguments)
    order = Order(groups=[options.windows] * options.row_groups, shuffle="lanes", lanes=options.lanes)
    baseline = measure(order, world_size=options.lanes, batch_size=1)
    print(f"{options.row_groups:,} row groups in {options.lanes} lanes; a rank with a lane of its own: {baseline.most}")
    print("ranks  batch size  lanes of a rank  row groups of a rank  ratio  all ranks together")
    for world_size in options.ranks:
        for batch_size in options.batch_sizes:
            found = measure(order, world_size=world_size, batch_size=batch_size)
            print(
                f"{world_size:5}  {batch_size:10}  {found.lanes:15}  {found.most:20,}  "
                f"{found.most / baseline.most:5.2f}  {found.total / options.row_groups:17.2f}x"
            )


def measure(order: Order, *, world_size: int, batch_size: int) -> Decoding:
    """Return what the ranks decode in the first epoch."""
    found = []
    for rank in range(world_size):
        part = divide(rank=rank, world_size=world_size, batch_size=batch_size, lanes=order.num_rows)
        lanes = part.lanes_read(0).tolist()
        found.append((len(lanes), len({(span.group, span.first) for span in order.spans(0, 0, lanes)})))
    return Decoding(
        max(lanes for lanes, _ in found), max(count for _, count in found), sum(count for _, count in found)
    )
