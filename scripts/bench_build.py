"""`python scripts/bench.py build`: corpus, cache and shards in an object store, compared with local folders.

A JSONL file to finished shards by the threads of one process, once with everything in folders and once with everything
in a bucket. Each run has an empty cache and no local copy of one. The server is on this machine and takes its cores:
SeaweedFS (`--server seaweed`), which is fast, or moto, which is Python in one process. CPU time is that of this
program, without the server; what the server took is printed on a line of its own. Runs are interleaved; figures are
medians, and a ratio is the median of the rounds' ratios. The requests are counted in a run of their own, through the
proxy, which is slow itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench_corpus import make_jsonl
from bench_rounds import print_ratio, run_interleaved
from fault_proxy import FaultProxy
from local_s3 import run_moto, run_seaweed

from pipeline import CorpusConfig, WindowConfig, write_shards
from pipeline.storage.open import open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from local_s3 import Server

SERVERS = ("seaweed", "moto")


def main(arguments: list[str]) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        prog="bench.py build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", type=Path, help="a JSONL file with a field `text`; default: one is made")
    parser.add_argument("--megabytes", type=int, default=100, help="size of the file that is made")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--server", choices=SERVERS, action="append", help="may be repeated; default: both")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    file = given.file or make_jsonl(given.megabytes)
    megabytes = file.stat().st_size / 1e6
    print(f"{file.name}, {megabytes:.0f} MB, {given.rounds} rounds")
    for name in given.server or SERVERS:
        with tempfile.TemporaryDirectory() as folder, run_server(name, Path(folder)) as server:
            os.environ |= server.environment
            bucket = server.make_bucket("bench")
            open_storage(f"{bucket}/corpus").put("text.jsonl", file)
            cpu: dict[str, list[float]] = {"folders": [], name: [], "server": []}
            runs: dict[str, Callable[[], float]] = {
                "folders": partial(build_locally, file, given.max_length),
                name: partial(build_remotely, bucket, given.max_length, cpu["server"]),
            }
            times = run_interleaved(
                {shown: partial(count_cpu, run, cpu[shown]) for shown, run in runs.items()}, given.rounds
            )
            for shown, taken in times.items():
                middle, used = statistics.median(taken), statistics.median(cpu[shown])
                print(f"  {shown:<10}{megabytes / middle:8.1f} MB/s   median {middle:.2f} s, CPU time {used:.2f} s")
            print_ratio(times, name, "folders", target="0.60")
            print_alone(times["folders"], times[name], cpu["server"][-given.rounds :])
            count_requests(server, bucket, given.max_length)


@contextmanager
def run_server(name: str, folder: Path) -> Iterator[Server]:
    """Run one of the servers."""
    with run_moto() if name == "moto" else run_seaweed(folder) as server:
        yield server


def count_cpu(run: Callable[[], float], used: list[float]) -> float:
    """Run, append the CPU seconds that this process used for it, and return what the run returns."""
    before = time.process_time()
    taken = run()
    used.append(time.process_time() - before)
    return taken


def read_children_cpu() -> float:
    """Return the CPU seconds of the running processes that this one has started; 0 on a system without /proc."""
    ticks, parent = 0, str(os.getpid())
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            fields = path.read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12]) if fields[1] == parent else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def print_alone(local: list[float], remote: list[float], server: list[float]) -> None:
    """Print what the ratio would be by arithmetic if the server had not taken this machine's cores."""
    cores = os.cpu_count() or 1
    ratios = [one / (other - taken / cores) for one, other, taken in zip(local, remote, server, strict=True)]
    print(
        f"  the server took {statistics.median(server):.2f} s of CPU time: without that, divided by {cores} cores, the "
        f"ratio would be {statistics.median(ratios):.2f} (arithmetic, not measured)"
    )


def build_locally(file: Path, max_length: int) -> float:
    """Write a data set in a new folder; return the seconds, the hashing of the input included."""
    with tempfile.TemporaryDirectory() as folder:
        return build(str(file), folder, max_length)


def build_remotely(bucket: str, max_length: int, server: list[float] | None = None) -> float:
    """Write a data set at a new URI, without a local copy of its cache; then remove it.

    The CPU seconds of the server are appended to `server`.
    """
    before = read_children_cpu()
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            taken = build(f"{bucket}/corpus/text.jsonl", f"{bucket}/built", max_length)
        finally:
            tempfile.tempdir = None
    if server is not None:
        server.append(read_children_cpu() - before)
    storage = open_storage(f"{bucket}/built")
    storage.delete([entry.name for entry in storage.list()])
    return taken


def build(corpus: str, place: str, max_length: int) -> float:
    """Write a data set and its cache below a folder or a URI."""
    started = time.perf_counter()
    write_shards(
        f"{place}/shards",
        corpus=CorpusConfig(name="jsonl", path=corpus),
        window=WindowConfig(max_length=max_length),
        cache=f"{place}/cache",
    )
    return time.perf_counter() - started


def count_requests(server: Server, bucket: str, max_length: int) -> None:
    """Print the requests and bytes of one build."""
    with FaultProxy(server.endpoint) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
        build_remotely(bucket, max_length)
        log = proxy.log()
        os.environ["AWS_ENDPOINT_URL"] = server.endpoint
    counts = Counter(one.method for one in log)
    print(
        f"  {len(log)} requests ({', '.join(f'{count} {method}' for method, count in counts.most_common())}), "
        f"{sum(one.sent for one in log) / 1e6:.0f} MB read, {sum(one.received for one in log) / 1e6:.0f} MB written"
    )
