"""Compare stridemill with its peers: the same JSONL to train-ready files, in interleaved runs.

    python benchmarks/run.py --python peers/bin/python --file corpus.jsonl --megabytes 20 [--tokenizer tiktoken]

`--python` has benchmarks/requirements.txt installed; stridemill runs under the Python that runs this. Each script
reports its own time, without imports. The outputs differ: stridemill writes inputs and targets, hashed, flushed and
listed; datatrove, LitData and the Megatron style write each ID once. The peers encode with Hugging Face's tokenizers,
as their own scripts and guides do; `--tokenizer tiktoken` makes them use tiktoken instead, except datatrove, which
cannot. A peer that is not installed or fails is left out with its reason. `--peers` without names measures stridemill
alone. `--file` takes several texts. `--peer-megabytes` gives the peers a smaller part, since they take long; rates are
compared then.
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
    """Run all scripts in turn, several times, and print a table for each text."""
    parser = make_parser(__doc__, megabytes=20, rounds=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peer-megabytes", type=int, help="how much of the file the peers get; default: as much")
    parser.add_argument("--tokenizer", choices=["huggingface", "tiktoken"], default="huggingface", help="the peers'")
    given = parser.parse_args()
    for file in given.file:
        compare(file, given)


def compare(file: Path, given: argparse.Namespace) -> None:
    """Run all scripts on one text and print a table."""
    amounts = {"ours": given.megabytes, "peers": given.peer_megabytes or given.megabytes}
    commands = {"stridemill": [sys.executable, "-c", OURS]}
    commands |= {name: [given.python, str(HERE / f"peer_{name}.py")] for name in given.peers}
    rates: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as name:
        folders = {whose: Path(name, whose) for whose in amounts}
        sizes = {whose: cut(file, folders[whose], megabytes=amounts[whose], parts=given.workers) for whose in amounts}
        for _ in range(given.rounds):
            for peer, command in commands.items():
                whose = "ours" if peer == "stridemill" else "peers"
                with tempfile.TemporaryDirectory() as output:
                    options = [str(folders[whose]), output, str(given.workers), str(given.max_length)]
                    result = run([*command, *options], peer, given.tokenizer)
                if result:
                    rates[peer].append(sizes[whose] / 1e6 / result[0])
    if not rates["stridemill"]:
        sys.exit(FAILED)
    ours = statistics.median(rates["stridemill"])
    size = f"{sizes['ours'] / 1e6:.0f} MB of {file.name}"
    if given.peer_megabytes:
        size += f" (the peers: {sizes['peers'] / 1e6:.0f} MB)"
    how = f"{given.workers} workers, max_length {given.max_length}, {given.rounds} rounds"
    print(f"{size}, {how}, the peers with {given.tokenizer}")
    for name, found in rates.items():
        if found:
            rate = statistics.median(found)
            print(f"  {name:<12}{rate:8.1f} MB/s   stridemill is {ours / rate:6.1f} times as fast")


def make_parser(description: str | None, *, megabytes: int, rounds: int) -> argparse.ArgumentParser:
    """Return a parser of the options that all comparisons have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--python", type=program, default=sys.executable, help="the Python that has the peers installed"
    )
    parser.add_argument(
        "--file", type=readable_file, nargs="+", required=True, help="JSONL files with the fields text and id"
    )
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


def program(name: str) -> str:
    """Return a program's path in full, since it runs in another folder; a name alone is looked for in PATH."""
    return str(Path.cwd() / name) if os.sep in name else name


def cut(file: Path, folder: Path, *, megabytes: int, parts: int) -> int:
    """Copy the first megabytes of a JSONL file into this many files of equal size; return their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
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
