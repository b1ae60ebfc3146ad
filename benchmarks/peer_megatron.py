"""Megatron-style: a pool encodes lines, one process writes raw uint16 IDs and an index of document ends."""

from __future__ import annotations

import json
import time
from itertools import chain
from multiprocessing import Pool
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from common import arguments, encode, report

if TYPE_CHECKING:
    from collections.abc import Iterator


def encode_line(line: str) -> np.ndarray:
    """Encode one document."""
    return np.array(encode(json.loads(line)["text"]), np.uint16)


def read_lines(file: str) -> Iterator[str]:
    """Yield the lines of a file."""
    with Path(file).open(encoding="utf-8") as lines:
        yield from lines


def main() -> None:
    """Tokenize all parts."""
    files, output, workers, _ = arguments()
    started = time.perf_counter()
    sizes = []
    lines = chain.from_iterable(map(read_lines, files))
    with Pool(workers) as pool, (output / "tokens.bin").open("wb") as out:
        for ids in pool.imap(encode_line, lines, 25):
            out.write(ids.tobytes())
            sizes.append(len(ids))
    np.save(output / "tokens.idx.npy", np.cumsum(sizes))
    report(time.perf_counter() - started, sum(sizes))


if __name__ == "__main__":
    main()
