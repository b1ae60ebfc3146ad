"""MosaicML Streaming: MDS shards of windows, zstd, a process for each worker, their indexes merged."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from common import arguments, documents, encode, forget_vision, report

forget_vision()
from streaming import MDSWriter  # noqa: E402 - after the call that lets it be imported
from streaming.base.util import merge_index  # noqa: E402


def convert(file: str, *, output: Path, max_length: int) -> int:
    """Convert one part to a folder of MDS shards; return its number of tokens."""
    held: list[int] = []
    tokens = 0
    columns = {"tokens": "ndarray:uint16"}
    with MDSWriter(out=str(output / Path(file).stem), columns=columns, compression="zstd") as writer:
        for text in documents(file):
            held += encode(text)
            while len(held) > max_length:
                writer.write({"tokens": np.array(held[: max_length + 1], np.uint16)})
                held = held[max_length:]
                tokens += max_length
    return tokens


def main() -> None:
    """Tokenize all parts."""
    files, output, workers, max_length = arguments()
    started = time.perf_counter()
    with ProcessPoolExecutor(workers) as pool:
        tokens = sum(pool.map(partial(convert, output=output, max_length=max_length), files))
    merge_index(str(output))
    report(time.perf_counter() - started, tokens)


if __name__ == "__main__":
    main()
