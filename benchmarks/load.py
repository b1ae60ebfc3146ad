"""Compare stridemill's loader with those of its peers: shuffled batches, interleaved runs, no worker processes.

    python benchmarks/load.py --python peers/bin/python --file corpus.jsonl --megabytes 60

Each first writes the text in its own format, as in run.py. In every round each then loads for some seconds, in a
process of its own: inputs and targets as int64 [batch_size, max_length], shuffled. The first batches are not counted.
stridemill, LitData and MosaicML Streaming can resume by themselves. `datasets`, datatrove and the Megatron style are
indexed by torch's sampler, whose position the caller has to keep. A peer that is not installed or fails is left out
with its reason. `--peers` without names measures stridemill alone.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from run import FAILED, HERE, OURS, cut, make_parser, run

if TYPE_CHECKING:
    import argparse

LOAD = """
import sys, time
from itertools import islice
import torch, pyarrow.parquet
from pipeline import ShardLoader
folder, batch_size, max_length, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
def epochs():
    while True:
        yield from loader
loader = ShardLoader(folder + "/shards", batch_size=batch_size, shuffle="auto")
batches = epochs()
for batch in islice(batches, 20):
    assert batch.input_ids.shape == batch.target_ids.shape == (batch_size, max_length)
started, count = time.perf_counter(), 0
while (taken := time.perf_counter() - started) < seconds:
    next(batches)
    count += 1
print("RESULT", taken, count * batch_size * max_length)
batches.close()
"""


def main() -> None:
    """Write with all, load in interleaved runs, and print a table for each text."""
    parser = make_parser(__doc__, megabytes=60, rounds=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    given = parser.parse_args()
    for file in given.file:
        compare(file, given)


def compare(file: Path, given: argparse.Namespace) -> None:
    """Compare all on one text and print a table."""
    shape = [str(given.batch_size), str(given.max_length)]
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = cut(file, folder / "text", megabytes=given.megabytes, parts=1)
        writers = {"stridemill": [sys.executable, "-c", OURS]}
        writers |= {peer: [given.python, str(HERE / f"peer_{peer}.py")] for peer in given.peers}
        for peer, writer in writers.items():
            (folder / peer).mkdir()
            if run([*writer, str(folder / "text"), str(folder / peer), "1", shape[1]], f"{peer} writes"):
                rates[peer] = []
        if "stridemill" not in rates:
            sys.exit(FAILED)
        for _ in range(given.rounds):
            for peer in list(rates):
                code = [sys.executable, "-c", LOAD]
                if peer != "stridemill":
                    code = [given.python, str(HERE / "load_peers.py"), peer]
                result = run([*code, str(folder / peer), *shape, str(given.seconds)], peer)
                if result:
                    rates[peer].append(result[1] / result[0])
                else:
                    del rates[peer]
        if "stridemill" not in rates:
            sys.exit(FAILED)
    how = f"batches of {' x '.join(shape)}, {given.rounds} rounds of {given.seconds:g} s"
    print(f"{size / 1e6:.0f} MB of {file.name}, {how}")
    ours = statistics.median(rates["stridemill"])
    for peer, values in sorted(rates.items(), key=lambda item: -statistics.median(item[1])):
        median, spread = statistics.median(values), f"({min(values) / 1e6:.1f} to {max(values) / 1e6:.1f})"
        print(f"  {peer:<12}{median / 1e6:8.1f} Mtok/s  {spread:<18} stridemill is {ours / median:5.1f} times as fast")


if __name__ == "__main__":
    main()
