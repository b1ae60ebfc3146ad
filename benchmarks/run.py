"""Compare stridemill with its peers: the same JSONL to train-ready files, in interleaved runs.

    python benchmarks/run.py --python peers/bin/python --file corpus.jsonl --megabytes 20 [--tokenizer tiktoken]

`--python` has benchmarks/requirements.txt installed; stridemill runs under the Python that runs this. Each script
reports its own time, without imports. The outputs differ: stridemill writes inputs and targets, hashed, flushed and
listed; datatrove, LitData and the Megatron style write each ID once. The peers encode with Hugging Face's tokenizers,
as their own scripts and guides do; `--tokenizer tiktoken` makes them use tiktoken instead, except datatrove, which
cannot. A peer that is not installed or fails is left out with its reason. `--peers` without names measures stridemill
alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = ("datatrove", "litdata", "datasets", "streaming", "megatron")
FAILED = "stridemill failed, so there is nothing to compare with"

OURS = """
import sys, time
import awkward, gigatoken.gigatoken_rs, pyarrow.json, pyarrow.parquet, tiktoken, pipeline.shards.write
from pipeline import CorpusConfig, ExecutorConfig, WindowConfig, write_shards
pyarrow.array([0]) # imports pandas, where it is installed
folder, output, workers, max_length = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
started = time.perf_counter()
report = write_shards(output + "/shards", cache=output + "/cache", corpus=CorpusConfig(name="jsonl", path=folder),
                      window=WindowConfig(max_length=max_length), executor=ExecutorConfig(workers=workers))
print("RESULT", time.perf_counter() - started, report.manifest.splits["train"].num_tokens)
"""


def main() -> None:
    """Run all scripts in turn, several times, and print a table."""
    parser = make_parser(__doc__, megabytes=20, rounds=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tokenizer", choices=["huggingface", "tiktoken"], default="huggingface", help="the peers'")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        parts = cut(given.file, Path(folder), megabytes=given.megabytes, parts=given.workers)
        commands = {"stridemill": [sys.executable, "-c", OURS]}
        commands |= {name: [given.python, str(HERE / f"peer_{name}.py")] for name in given.peers}
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(given.rounds):
            for name, command in commands.items():
                with tempfile.TemporaryDirectory() as output:
                    result = run(
                        [*command, folder, output, str(given.workers), str(given.max_length)], name, given.tokenizer
                    )
                if result:
                    taken[name].append(result[0])
    if not taken["stridemill"]:
        sys.exit(FAILED)
    ours = statistics.median(taken["stridemill"])
    how = f"{given.workers} workers, max_length {given.max_length}, {given.rounds} rounds"
    print(f"{parts / 1e6:.0f} MB, {how}, the peers with {given.tokenizer}")
    for name, times in taken.items():
        if times:
            median = statistics.median(times)
            print(f"  {name:<12}{parts / 1e6 / median:8.1f} MB/s   stridemill is {median / ours:6.1f} times as fast")


def make_parser(description: str | None, *, megabytes: int, rounds: int) -> argparse.ArgumentParser:
    """Return a parser of the options that all comparisons have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the Python that has the peers installed")
    parser.add_argument("--file", type=readable_file, required=True, help="a JSONL file with the fields text and id")
    parser.add_argument("--megabytes", type=int, default=megabytes, help="how much of the file to use")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS, help="compare with these; none: no peers")
    return parser


def readable_file(name: str) -> Path:
    """Return the path of a file that exists; argparse shows the error."""
    path = Path(name)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{name} is not a file")
    return path


def cut(file: Path, folder: Path, *, megabytes: int, parts: int) -> int:
    """Copy the first megabytes of a JSONL file into this many files of equal size; return their bytes."""
    limit, size = megabytes * 1_000_000, 0
    with file.open("rb") as lines:
        for part in range(parts):
            with (folder / f"part-{part}.jsonl").open("wb") as out:
                while size < limit * (part + 1) // parts and (line := lines.readline()):
                    size += out.write(line)
    return size


def run(command: list[str], name: str, tokenizer: str = "huggingface") -> tuple[float, int] | None:
    """Run a script; return the seconds and tokens that it reports, or None if it failed."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PEER_TOKENIZER": tokenizer}
    try:
        done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:  # `--python` names no program
        print(f"  {name}: left out: {error}", file=sys.stderr)
        return None
    results = [line.split() for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if done.returncode or not results:
        reason = (done.stderr.strip().splitlines() or ["nothing was printed"])[-1]
        print(f"  {name}: left out: {reason}", file=sys.stderr)
        return None
    seconds, tokens = float(results[-1][1]), int(results[-1][2])
    print(f"  {name}: {seconds:.2f} s, {tokens:,} tokens", flush=True)
    return seconds, tokens


if __name__ == "__main__":
    main()
