"""Compare writing with a minimal script: `python scripts/bench.py write [end] [windows] [pack] [--megabytes 60]`.

`end`: a JSONL file to finished shards. stridemill, with all guarantees on, is compared with a bare script of gigatoken,
numpy and `write_table` that has none: no check of the text, no cross-check, no hash, no flush to the disk, no manifest,
no resume, everything in memory. Each run is a separate process with an empty cache; imports are not timed.

`windows`: only the pass from token store to shards, compared with `write_table` of the same prepared tables with the
same settings and the same number of threads.

`pack`: token store to shards of packed windows, compared with windows that cross documents (`join`), as whole calls of
`write_shards` that find all tokens in the cache; then packing alone, in documents per second of one core, and the
padding at several lengths.

Runs are interleaved; figures are medians, and the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_corpus import make_jsonl
from bench_rounds import ROOT, print_ratio, run_interleaved, run_program

from pipeline import write_shards
from pipeline.executor.local import LocalExecutor
from pipeline.packing import choose_group_tokens, pack_documents
from pipeline.settings import CorpusConfig, ExecutorConfig, ShardsConfig, WindowConfig
from pipeline.shards.folder import FolderLock
from pipeline.shards.format import PAGE_BYTES, ZSTD_LEVEL, group_table
from pipeline.shards.layout import Layout, choose_layout
from pipeline.shards.shard import write_split
from pipeline.tokenizer.load import load_tokenizer
from pipeline.tokens.store import TokenStream, open_store
from pipeline.windows import StoredWindows, Windows, read_windows

OURS = """
import sys, time
import awkward, gigatoken.gigatoken_rs, pyarrow.json, pyarrow.parquet, tiktoken, pipeline.shards.write
from pipeline import CorpusConfig, ExecutorConfig, WindowConfig, write_shards
pyarrow.array([0]) # imports pandas, where it is installed
file, folder, workers, max_length = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
started = time.perf_counter()
report = write_shards(folder + "/shards", cache=folder + "/cache", corpus=CorpusConfig(name="jsonl", path=file),
                      window=WindowConfig(max_length=max_length), executor=ExecutorConfig(workers=workers))
print(time.perf_counter() - started, report.manifest.splits["train"].num_windows)
"""

BARE = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
import awkward, numpy as np, pyarrow as pa, pyarrow.json, pyarrow.parquet as pq
from gigatoken.gigatoken_rs import BPETokenizer
pa.array([0])
file, folder, workers, L = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
started = time.perf_counter()
pa.set_cpu_count(workers)
encoder = BPETokenizer.from_tiktoken(sys.argv[5], "gpt2", {})
table = pyarrow.json.read_json(file, read_options=pyarrow.json.ReadOptions(block_size=16 << 20))
lists = encoder.encode_batch(awkward.from_arrow(table["text"].cast(pa.large_string())), parallel=workers > 1).layout
starts, flat = np.asarray(lists.offsets.data), np.asarray(lists.content.data)
ends = np.cumsum(np.diff(starts) + 1)
ids = np.full(ends[-1], 50256, np.int32)
is_text = np.ones(len(ids), bool)
is_text[ends - 1] = False
ids[is_text] = flat[starts[0] : starts[-1]]
n = -(-(len(ids) - 1 - L) // L)
def column(shift):
    return pa.FixedSizeListArray.from_arrays(pa.array(ids[shift : shift + n * L]), L)
table = pa.table({"input_ids": column(0), "target_ids": column(1)})
def write(part):
    rows = -(-n // (4 * workers))
    pq.write_table(table.slice(part * rows, rows), f"{folder}/{part}.parquet", row_group_size=max(1, (1 << 19) // L),
                   compression="zstd", compression_level=1, use_dictionary=False, write_statistics=False)
list(ThreadPoolExecutor(workers).map(write, range(4 * workers)))
print(time.perf_counter() - started, n)
"""


def main(arguments: list[str]) -> None:
    """Run the parts that the command line names; both by default."""
    parser = argparse.ArgumentParser(prog="bench.py write", description=__doc__)
    parser.add_argument("parts", nargs="*", default=["end", "windows", "pack"], help="end, windows, pack")
    parser.add_argument("--file", type=Path, help="a JSONL file with a field `text`; default: one is made")
    parser.add_argument("--megabytes", type=int, default=60, help="size of the file that is made")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    file = given.file or make_jsonl(given.megabytes)
    if "end" in given.parts:
        bench_end(file, max_length=given.max_length, workers=given.workers, rounds=given.rounds)
    if "windows" in given.parts:
        bench_windows(file, workers=given.workers, rounds=given.rounds)
    if "pack" in given.parts:
        bench_pack(file, max_length=given.max_length, workers=given.workers, rounds=given.rounds)


def bench_end(file: Path, *, max_length: int, workers: int, rounds: int) -> None:
    """Measure text to finished shards."""
    megabytes = file.stat().st_size / 1e6
    ranks = ROOT / "pipeline" / "tokenizer" / "gpt2.tiktoken"

    def run(code: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            seconds, windows = run_program(code, file.resolve(), folder, workers, max_length, ranks)
            counts.add(int(windows))
            return float(seconds)

    counts: set[int] = set()
    print(f"end to end: {file.name}, {megabytes:.0f} MB, max_length {max_length}, {workers} workers, {rounds} rounds")
    times = run_interleaved({"stridemill": lambda: run(OURS), "bare script": lambda: run(BARE)}, rounds)
    assert len(counts) == 1, f"both write the same windows: {counts}"
    for name, taken in times.items():
        print(f"  {name:<14}{megabytes / statistics.median(taken):8.1f} MB/s   median {statistics.median(taken):.2f} s")
    print_ratio(times, "stridemill", "bare script")


def bench_pack(file: Path, *, max_length: int, workers: int, rounds: int) -> None:
    """Measure packed windows: writing them next to windows that cross documents, packing alone, and padding."""
    pa.array([0])  # imports pandas, where it is installed
    with tempfile.TemporaryDirectory() as folder:

        def run(documents: str) -> float:
            with tempfile.TemporaryDirectory() as shards:
                report = write_shards(
                    f"{shards}/shards",
                    corpus=CorpusConfig(name="jsonl", path=str(file)),
                    window=WindowConfig(max_length=max_length, documents=documents),
                    executor=ExecutorConfig(workers=workers),
                    cache=folder,
                )
                tokens[documents] = report.manifest.splits["train"].num_tokens
                return report.write_seconds

        tokens: dict[str, int] = {}
        run("join")  # fills the cache
        print(f"pack: {file.name}, max_length {max_length}, {workers} workers, {rounds} rounds")
        times = run_interleaved({"pack": lambda: run("pack"), "join": lambda: run("join")}, rounds)
        for name, taken in times.items():
            print(f"  {name:<14}{tokens[name] / statistics.median(taken) / 1e6:8.1f} Mtokens/s")
        print_ratio(times, "pack", "join")
        (path,) = Path(folder, "stores").glob("*.json")
        store = open_store(path)
        firsts, counts = store.documents("train")
    many = np.random.default_rng(0).choice(counts + 1, 200_000)  # lengths of this corpus: enough to fill groups
    for length in (1024, 2048, 4096, 8192):
        padding = pack_all(firsts, counts + 1, length)[1]
        rate = statistics.median(pack_all(np.cumsum(many) - many, many, length)[0] for _ in range(rounds))
        print(
            f"  packing {length:<6}{rate / 1e6:8.2f} Mdocuments/s   padding {padding:.3%} of {len(counts):,} documents"
        )


def pack_all(firsts: np.ndarray, sizes: np.ndarray, max_length: int) -> tuple[float, float]:
    """Pack documents without writing them: return the documents per second, and the share of padding."""
    started = time.process_time()
    packed = pack_documents(firsts, sizes, max_length=max_length, group_tokens=choose_group_tokens(max_length))
    rate = len(sizes) / (time.process_time() - started)
    return rate, packed.count_padding() / (len(packed) * max_length)


def bench_windows(file: Path, *, workers: int, rounds: int) -> None:
    """Measure token store to shards: disjoint windows of 1,024 and windows of 256 with stride 1."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ids = encode_text(file, megabytes=20)
        np.save(folder / "ids.npy", ids)
        for max_length, stride, tokens in [(1024, 1024, len(ids)), (256, 1, 300_000)]:
            bench_split(folder, ids[:tokens], max_length, stride, workers=workers, rounds=rounds)


def bench_split(folder: Path, ids: np.ndarray, max_length: int, stride: int, *, workers: int, rounds: int) -> None:
    """Compare `write_split` with `write_table` for one shape of windows."""
    stream = TokenStream([folder / "ids.npy"], [len(ids)])
    firsts, sizes = np.zeros(1, np.int64), np.array([len(ids)], np.int64)
    windows = Windows(firsts=firsts, sizes=sizes, max_length=max_length, stride=stride)
    stored_windows = StoredWindows(stream=stream, windows=windows, order="sequential", seed=0, pad_id=0)
    layout = default_layout(max_length, stride)
    size, group = layout.shard_size(len(windows)), layout.windows_per_group
    tables = [
        group_table(*read_windows(stream, windows, first, min(first + size, len(windows)), pad_id=0), padded=False)
        for first in range(0, len(windows), size)
    ]

    def ours() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            (Path(place) / "data").mkdir()
            (Path(place) / ".writing").mkdir()
            started = time.perf_counter()
            lock = FolderLock(folder=Path(place), identity="", recorded={})
            entries = write_split(
                lock,
                "train",
                stored=stored_windows,
                layout=layout,
                executor=LocalExecutor(workers),
                advance=lambda _: None,
            )
            taken = time.perf_counter() - started
        stored.append(sum(entry.bytes for entry in entries))
        return taken

    def bare() -> float:
        def write(at: int) -> None:
            pq.write_table(
                tables[at],
                f"{place}/{at}.parquet",
                row_group_size=group,
                compression="zstd",
                compression_level=ZSTD_LEVEL,
                use_dictionary=False,
                column_encoding={"start": "DELTA_BINARY_PACKED"},
                data_page_size=PAGE_BYTES,
                write_statistics=["start"],
                write_page_checksum=True,
            )

        with tempfile.TemporaryDirectory(dir=folder) as place, ThreadPoolExecutor(workers) as pool:
            started = time.perf_counter()
            list(pool.map(write, range(len(tables))))
            return time.perf_counter() - started

    stored: list[int] = []
    print(f"windows: max_length {max_length}, stride {stride}, {len(windows):,} windows, {workers} workers")
    times = run_interleaved({"stridemill": ours, "write_table": bare}, rounds)
    for name, taken in times.items():
        median = statistics.median(taken)
        rate = len(windows) / median
        print(f"  {name:<14}{rate / 1e3:8.1f} kwindows/s   {rate * max_length / 1e6:7.1f} Mtokens/s")
    print(f"  {'on disk':<14}{stored[0] / len(windows) / stride:8.2f} bytes per token of text")
    print_ratio(times, "stridemill", "write_table")


def default_layout(max_length: int, stride: int) -> Layout:
    """Return the layout that stridemill chooses where the config does not set one."""
    return choose_layout(WindowConfig(max_length=max_length, stride=stride), ShardsConfig())


def encode_text(file: Path, *, megabytes: int) -> np.ndarray:
    """Return the IDs of the first megabytes of a JSONL file as uint16, with end-of-text after each document."""
    tokenizer = load_tokenizer("gpt2")
    texts, left = [], megabytes * 1_000_000
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            texts.append(json.loads(line)["text"])
            left -= len(line)
            if left < 0:
                break
    ids, counts = tokenizer.encode_batch(pa.array(texts, pa.large_string()))
    joined = np.full(len(ids) + len(counts), tokenizer.eos, np.uint16)
    is_text = np.ones(len(joined), bool)
    is_text[np.cumsum(counts + 1) - 1] = False
    joined[is_text] = ids
    return joined


if __name__ == "__main__":
    main(sys.argv[1:])
