"""Measure the settings that the layout's defaults were chosen from: `python scripts/bench.py layout [--megabytes 60]`.

The same windows are written and read back with one setting changed at a time: encoding and codec, or the size of a row
group. For each setting: bytes of the complete file per token of text, and the speed of writing and of reading
`input_ids` alone, as the loader does, on one thread with page checksums. Medians over several interleaved rounds.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_corpus import make_jsonl
from bench_write import default_layout, encode_text

from pipeline.shards.format import PAGE_BYTES, ZSTD_LEVEL, group_table
from pipeline.shards.shard_writer import ShardWriter

START = {"start": "DELTA_BINARY_PACKED"}
DEFAULT: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": ZSTD_LEVEL,
    "use_dictionary": False,
    "column_encoding": START,
}
LISTS = ("input_ids.list.element", "target_ids.list.element")
OURS: dict[str, Any] = {}  # stridemill's own writer; all others are pyarrow's
ENCODINGS: dict[str, dict[str, Any]] = {
    "stridemill (PLAIN, zstd 1)": OURS,
    "PLAIN, zstd 1": DEFAULT,
    "PLAIN, zstd 3": {**DEFAULT, "compression_level": 3},
    "PLAIN, lz4": {**DEFAULT, "compression": "lz4", "compression_level": None},
    "PLAIN, snappy": {**DEFAULT, "compression": "snappy", "compression_level": None},
    "dictionary, zstd 1": {**DEFAULT, "use_dictionary": list(LISTS)},
    "dictionary, snappy (pyarrow's own)": {"compression": "snappy", "use_dictionary": True},
    "BYTE_STREAM_SPLIT, zstd 1": {**DEFAULT, "column_encoding": START | dict.fromkeys(LISTS, "BYTE_STREAM_SPLIT")},
    "DELTA_BINARY_PACKED, zstd 1": {**DEFAULT, "column_encoding": START | dict.fromkeys(LISTS, "DELTA_BINARY_PACKED")},
}
GROUPS = [1 << bits for bits in range(16, 23)]


def main(arguments: list[str]) -> None:
    """Print both tables for disjoint windows and for windows with stride 1."""
    parser = argparse.ArgumentParser(prog="bench.py layout", description=__doc__)
    parser.add_argument("--file", type=Path, help="a JSONL file with a field `text`; default: one is made")
    parser.add_argument("--megabytes", type=int, default=20, help="size of the file that is made")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    ids = encode_text(given.file or make_jsonl(given.megabytes), megabytes=given.megabytes)
    for max_length, stride, tokens in [(1024, 1024, len(ids)), (256, 1, 100_000)]:
        used = ids[:tokens].astype(np.int32)
        windows = np.lib.stride_tricks.sliding_window_view(used, max_length + 1)[::stride]
        print(f"max_length {max_length}, stride {stride}, {len(windows):,} windows, {given.rounds} rounds")
        layout = default_layout(max_length, stride)
        shapes = {name: (settings, layout.windows_per_group * max_length) for name, settings in ENCODINGS.items()}
        compare(windows, stride, shapes, given.rounds)
        shapes = {f"{size:>9,} tokens in a row group": (DEFAULT, size) for size in GROUPS}
        compare(windows, stride, shapes, given.rounds)


def compare(windows: np.ndarray, stride: int, shapes: dict[str, tuple[dict[str, Any], int]], rounds: int) -> None:
    """Write and read the windows with each setting in turn, and print a line for each."""
    figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in shapes}
    for _ in range(rounds):
        for name, (settings, group) in shapes.items():
            figures[name].append(measure(windows, stride, settings, group))
    for name, found in figures.items():
        size, writing, reading = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"  {name:<36}{size:8.3f} B/token   writes {writing:7.1f}   reads {reading:7.1f} Mtok/s")
    print()


def measure(windows: np.ndarray, stride: int, settings: dict[str, Any], group: int) -> tuple[float, float, float]:
    """Return bytes per token of text, and millions of window tokens a second, written and read."""
    max_length = windows.shape[1] - 1
    rows = max(1, group // max_length)
    tables = []
    for first in range(0, len(windows), rows):
        part = windows[first : first + rows]
        starts = np.arange(first, first + len(part), dtype=np.int64) * stride
        tables.append(group_table(part, starts, np.full(len(part), max_length, np.int32), padded=False))
    sink = io.BytesIO()
    started = time.perf_counter()
    with open_writer(sink, tables[0].schema, settings) as writer:
        for table in tables:
            writer.write_table(table)
    writing = time.perf_counter() - started
    content = sink.getbuffer()
    started = time.perf_counter()
    file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    for number in range(file.num_row_groups):
        file.read_row_group(number, columns=["input_ids"], use_threads=False)
    reading = time.perf_counter() - started
    tokens = windows.shape[0] * max_length
    return len(content) / (len(windows) * stride), tokens / writing / 1e6, tokens / reading / 1e6


def open_writer(sink: io.BytesIO, schema: pa.Schema, settings: dict[str, Any]) -> ShardWriter | pq.ParquetWriter:
    """Open a writer with these settings."""
    if settings is OURS:
        return ShardWriter(sink, schema, compression="zstd")
    fixed = {"data_page_size": PAGE_BYTES, "write_statistics": ["start"], "write_page_checksum": True}
    return pq.ParquetWriter(sink, schema, **fixed, **settings)


if __name__ == "__main__":
    main(sys.argv[1:])
