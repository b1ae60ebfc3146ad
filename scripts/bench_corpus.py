"""Make a corpus for benchmarks from text that every machine has: its documentation and its Python packages.

`make_jsonl(megabytes)` writes `outputs/bench/corpus-<megabytes>.jsonl`, one document per line, `{"text": ..., "id":
path}`, and reuses it the next time. Documents are ordered by a hash of their path, so that each prefix is a fair
sample. `make_small_files(number, size)` cuts the same text into small files. Machines have different files: compare
figures of one run only.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import sysconfig
from pathlib import Path

from pipeline.corpus.signatures import recognise

ROOTS = ("/usr/share/doc", "/usr/share/man", sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"])
SUFFIXES = (".txt", ".rst", ".md", ".html", ".py", ".gz")
MAX_FILE_BYTES = 1 << 20


def make_jsonl(megabytes: int, *, folder: Path = Path("outputs/bench")) -> Path:
    """Return the path of a JSONL file with about this many megabytes of text; write it if it does not exist."""
    path = folder / f"corpus-{megabytes}.jsonl"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        file.resolve() for root in ROOTS for file in Path(root).rglob("*") if file.suffix in SUFFIXES and file.is_file()
    }
    left = megabytes * 1_000_000
    temporary = path.with_suffix(".part")
    seen: set[bytes] = set()
    with temporary.open("w", encoding="utf-8") as out:
        for file in sorted(files, key=lambda file: hashlib.blake2b(str(file).encode(), digest_size=8).digest()):
            text = read_text(file)
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if not text.strip() or digest in seen:
                continue
            seen.add(digest)
            out.write(json.dumps({"text": text, "id": str(file)}, ensure_ascii=False) + "\n")
            left -= len(text.encode())
            if left <= 0:
                break
    if left > 0:
        print(f"this machine has {megabytes - left // 1_000_000} MB of text, not {megabytes}", file=sys.stderr)
    temporary.rename(path)
    return path


def make_small_files(
    number: int, size: int, source: Path | None = None, *, folder: Path = Path("outputs/bench")
) -> Path:
    """Return a folder with this many text files of about `size` bytes, a thousand in each folder below it."""
    path = folder / f"files-{number}-{size}"
    if path.exists():
        return path
    source = source or make_jsonl(number * size * 6 // 5 // 1_000_000 + 1, folder=folder)
    temporary = path.with_suffix(".part")
    made = 0
    with source.open(encoding="utf-8") as lines:
        for line in lines:
            content = json.loads(line)["text"].encode()
            for start in range(0, len(content) - size + 1, size):
                piece = content[start : start + size].decode(errors="ignore")  # a character may be cut
                if made == number or recognise(piece.encode()):  # the write stage refuses what starts like an archive
                    continue
                place = temporary / f"{made // 1000:03}" / f"{made % 1000:03}.txt"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(piece, encoding="utf-8", newline="")
                made += 1
    if made < number:
        print(f"this machine has text for {made:,} files, not {number:,}", file=sys.stderr)
    temporary.rename(path)
    return path


def read_text(file: Path) -> str:
    """Return a file's text, decompressed; empty if it is too large or not UTF-8."""
    if file.stat().st_size > MAX_FILE_BYTES:
        return ""
    content = file.read_bytes()
    try:
        return (gzip.decompress(content) if file.suffix == ".gz" else content).decode()
    except (OSError, EOFError, UnicodeDecodeError):
        return ""


if __name__ == "__main__":
    print(make_jsonl(int(sys.argv[1])))
