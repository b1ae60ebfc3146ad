"""Compare tokenizing with the bare engines: `python scripts/bench.py tokenize [speed] [memory] [formats]`.

`speed`: a JSONL file to a finished token store (files found, hashed and checked, IDs cross-checked, chunks flushed to
the disk, an empty cache, the vocabulary loaded again), compared with what the engines reach without any of that:

* encode_files: gigatoken's own reader on the same file, without special tokens, same threads, IDs kept in memory.
* encode_ordinary_batch: tiktoken on texts in memory as Python strings; only the encoding is timed.
* encode_to_numpy: the same with tiktoken's faster function, from a thread pool.

tiktoken takes ten times as long, so runs with it use the first `--tiktoken-megabytes` of the file. Rates are in MB of
text, so that those of a part and of the complete file can be compared.

`memory`: the peak memory of tokenizing a large JSONL file and a single large text file, and how soon windowing starts
when everything is cached.

`formats`: how much time of one core reading each format takes: decompressing, parsing, and checking every document.

Each run is a separate process, except for `formats`; imports are not timed. Figures are medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import lzma
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from bench_corpus import make_jsonl
from bench_rounds import PEAK, ROOT, print_ratio, run_interleaved, run_program

from pipeline.corpus.corpora import find_partitions
from pipeline.corpus.reader import read_partition
from pipeline.settings import CorpusConfig

if TYPE_CHECKING:
    from collections.abc import Callable

OURS = (
    PEAK
    + """
import sys, time
from pathlib import Path
import awkward, gigatoken.gigatoken_rs, pyarrow.json, pyarrow.parquet, tiktoken
from pipeline.corpus.corpora import find_partitions
from pipeline.executor.local import LocalExecutor
from pipeline.settings import CorpusConfig, SplitConfig
from pipeline.tokenizer.load import load_tokenizer
from pipeline.tokens.encode import tokenize
pyarrow.array([0]) # imports pandas, where it is installed
file, cache, workers, corpus, engine = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
started = time.perf_counter()
encoder, corpus = load_tokenizer("gpt2", engine=engine), CorpusConfig(name=corpus, path=file)
partitions = find_partitions(corpus, cache=cache, cut_safe=encoder.cut_safe, workers=workers).partitions
store, made = tokenize(partitions, cache=cache, tokenizer=encoder, corpus=corpus, split=SplitConfig(), audit=0.001,
                       executor=LocalExecutor(workers), advance=lambda _: None)
seconds = time.perf_counter() - started
size = sum(chunk.bytes for chunk in store.chunks)
print(seconds, size, len(store.stream("train")) - store.num_documents + 1, peak()) # end-of-text is between documents
"""
)

ENCODE_FILES = """
import os, sys, time
os.environ["RAYON_NUM_THREADS"] = sys.argv[2]
import awkward, numpy as np
from gigatoken.gigatoken_rs import BPETokenizer
started = time.perf_counter()
encoder = BPETokenizer.from_tiktoken(sys.argv[3], "gpt2", {})
lists = encoder.encode_files(sys.argv[1], parallel=True).layout
seconds = time.perf_counter() - started
starts = np.asarray(lists.offsets.data)
print(seconds, starts[-1] - starts[0])
"""

TIKTOKEN = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
import numpy, tiktoken # tiktoken imports numpy when it first needs it
from pipeline.tokenizer.rank_files import PATTERNS, PUBLISHED, packaged_ranks
file, workers, way = sys.argv[1], int(sys.argv[2]), sys.argv[3]
special_tokens = PUBLISHED["r50k_base"].special_tokens
encoding = tiktoken.Encoding(
    "gpt2", pat_str=PATTERNS["gpt2"], mergeable_ranks=packaged_ranks()[0], special_tokens=special_tokens
)
with open(file, encoding="utf-8") as lines:
    texts = [json.loads(line)["text"] for line in lines]
texts = [text for text in texts if text]
started = time.perf_counter()
if way == "encode_ordinary_batch":
    ids = encoding.encode_ordinary_batch(texts, num_threads=workers)
else:
    with ThreadPoolExecutor(workers) as pool:
        ids = list(pool.map(partial(encoding.encode_to_numpy, disallowed_special=()), texts))
seconds = time.perf_counter() - started
print(seconds, sum(len(text.encode()) for text in texts), sum(map(len, ids)))
"""


class Run(NamedTuple):
    """What one process measured."""

    seconds: float
    bytes: int  # of text
    tokens: int  # without end-of-text
    peak: int  # resident bytes


def main(arguments: list[str]) -> None:
    """Run the parts that the command line names; all by default."""
    parser = argparse.ArgumentParser(
        prog="bench.py tokenize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--file", type=Path, help="a JSONL file with a field `text`; default: one is made")
    parser.add_argument("--megabytes", type=int, default=287, help="size of the file made for speed and formats")
    parser.add_argument("--large-megabytes", type=int, default=1000, help="size of the file made for memory")
    parser.add_argument("--tiktoken-megabytes", type=float, default=200, help="how much of the file tiktoken encodes")
    parser.add_argument("--format-megabytes", type=float, default=32, help="how much of the file is used for formats")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    for part in given.parts:
        file = given.file or make_jsonl(given.large_megabytes if part == "memory" else given.megabytes)
        PARTS[part](file.resolve(), given)


def bench_speed(file: Path, given: argparse.Namespace) -> None:
    """Measure text to a finished store, and the bare engines."""
    sizes: dict[str, set[tuple[int, int]]] = {"complete": set(), "start": set()}
    ranks = ROOT / "pipeline" / "tokenizer" / "gpt2.tiktoken"

    def ours(source: Path, engine: str, which: str) -> float:
        with tempfile.TemporaryDirectory() as cache:
            run = tokenize_once(source, cache, workers=given.workers, engine=engine)
        sizes[which].add((run.bytes, run.tokens))
        return run.seconds / run.bytes * 1e6

    def encode_files() -> float:
        seconds, tokens = run_program(ENCODE_FILES, file, given.workers, ranks)
        ((size, expected),) = sizes["complete"]
        # gigatoken also encodes documents that stridemill rejects, such as an archive in a field of text.
        assert abs(int(tokens) - expected) < expected / 100, f"gigatoken finds {tokens} tokens, and we {expected}"
        return float(seconds) / size * 1e6

    def tiktoken(way: str) -> float:
        seconds, size, tokens = run_program(TIKTOKEN, start, given.workers, way)
        sizes["start"].add((int(size), int(tokens)))
        return float(seconds) / int(size) * 1e6

    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder, "start.jsonl")
        cut_start(file, start, megabytes=given.tiktoken_megabytes)
        runs = {
            "stridemill": lambda: ours(file, "gigatoken", "complete"),
            "encode_files": encode_files,
            "stridemill engine=tiktoken": lambda: ours(start, "tiktoken", "start"),
            "encode_ordinary_batch": lambda: tiktoken("encode_ordinary_batch"),
            "encode_to_numpy": lambda: tiktoken("encode_to_numpy"),
        }
        print(f"speed: {file.name}, {given.workers} workers, {given.rounds} rounds; MB of text")
        taken = run_interleaved(runs, given.rounds)
    assert len(sizes["start"]) == 1, f"all encode the same texts to as many tokens: {sizes['start']}"
    ((complete, tokens),), ((part, _),) = sizes["complete"], sizes["start"]
    print(f"  {complete / 1e6:.0f} MB, {tokens:,} tokens; runs with tiktoken use the first {part / 1e6:.0f} MB")
    for name, times in taken.items():
        spread = f"({1 / max(times):.1f} to {1 / min(times):.1f})"
        print(f"  {name:<28}{1 / statistics.median(times):8.1f} MB/s   {spread}")
    print_ratio(taken, "stridemill", "encode_ordinary_batch", target="8")
    print_ratio(taken, "stridemill", "encode_files", target="0.80")
    print_ratio(taken, "stridemill engine=tiktoken", "encode_to_numpy", target="0.90")


def bench_memory(file: Path, given: argparse.Namespace) -> None:
    """Measure the same text as JSON lines and as one text file: memory, and time to windowing from a full cache."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        text = Path(folder, "corpus.txt")
        with file.open(encoding="utf-8") as lines, text.open("w", encoding="utf-8") as out:
            out.writelines(json.loads(line)["text"] + "\n" for line in lines)
        print(f"memory: {file.name} and its text in one file, {given.workers} workers")
        for corpus, source in (("jsonl", file), ("text", text)):
            cache = Path(folder, corpus)
            first = tokenize_once(source, cache, workers=given.workers, corpus=corpus)
            again = [tokenize_once(source, cache, workers=given.workers, corpus=corpus) for _ in range(given.rounds)]
            warm = statistics.median(run.seconds for run in again)
            print(
                f"  {corpus:<6}{first.bytes / 1e6:6.0f} MB at {first.bytes / first.seconds / 1e6:.0f} MB/s   "
                f"peak {first.peak / 1e9:.2f} GB (target below 1.5)   "
                f"windowing starts {warm:.2f} s after the start of a second run (target below 2)"
            )


def bench_formats(file: Path, given: argparse.Namespace) -> None:
    """Measure reading alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cut_start(file, folder / "corpus.jsonl", megabytes=given.format_megabytes)
        lines = (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        (folder / "corpus.txt").write_text("\n".join(texts), encoding="utf-8")
        pq.write_table(pa.table({"text": texts}), folder / "corpus.parquet", row_group_size=1000, compression="zstd")
        for at, one in enumerate(texts):
            place = folder / "files" / f"{at // 100}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{at}.txt").write_text(one, encoding="utf-8")
        sources = [("text", folder / "files"), ("parquet", folder / "corpus.parquet")]
        for corpus, plain in (("text", folder / "corpus.txt"), ("jsonl", folder / "corpus.jsonl")):
            sources += [(corpus, plain), *((corpus, pack(plain, suffix)) for suffix in PACKERS)]
        print(f"formats: {sum(len(one.encode()) for one in texts) / 1e6:.0f} MB of text, {len(texts):,} documents")
        runs: dict[str, Callable[[], float]] = {
            f"{corpus:<9}{source.name}": partial(read_once, corpus, source) for corpus, source in sorted(sources)
        }
        for label, taken in run_interleaved(runs, given.rounds).items():
            print(f"  {label:<28}{1 / statistics.median(taken):8.0f} MB/s of one core")


def tokenize_once(
    source: Path, cache: Path | str, *, workers: int, corpus: str = "jsonl", engine: str = "gigatoken"
) -> Run:
    """Run the first half of the write stage once."""
    seconds, *counts = run_program(OURS, source, cache, workers, corpus, engine)
    return Run(float(seconds), *map(int, counts))


def read_once(corpus: str, source: Path) -> float:
    """Return the core seconds for a megabyte of text of a source that is hashed already."""
    section = CorpusConfig(name=corpus, path=source)
    partitions = find_partitions(section, cache=source, cut_safe=True, workers=1).partitions
    started, size = time.process_time(), 0
    for partition in partitions:
        for batch in read_partition(partition, max_document_bytes=None, on_bad="raise", cut_safe=True):
            size += pc.sum(pc.binary_length(batch.texts)).as_py() or 0
    return (time.process_time() - started) / size * 1e6


def cut_start(file: Path, out: Path, *, megabytes: float) -> None:
    """Copy the first megabytes of lines."""
    left = int(megabytes * 1e6)
    with file.open("rb") as lines, out.open("wb") as start:
        while left > 0 and (line := lines.readline()):
            left -= start.write(line)


def pack(file: Path, suffix: str) -> Path:
    """Write a compressed copy next to a file and return its path."""
    packed = file.with_name(file.name + suffix)
    packed.write_bytes(PACKERS[suffix](file.read_bytes()))
    return packed


PARTS = {"speed": bench_speed, "memory": bench_memory, "formats": bench_formats}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
    ".bz2": bz2.compress,
    ".xz": lambda data: lzma.compress(data, preset=2),
}


if __name__ == "__main__":
    main(sys.argv[1:])
