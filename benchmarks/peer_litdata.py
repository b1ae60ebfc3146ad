"""LitData: `optimize` with a TokensLoader, chunks of 64 MB, IDs of 4 bytes as its guide has them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from common import arguments, documents, encode, report
from litdata import TokensLoader, optimize

if TYPE_CHECKING:
    from collections.abc import Iterator


def tokenize(file: str) -> Iterator[torch.Tensor]:
    """Yield a tensor for each document."""
    for text in documents(file):
        yield torch.tensor(encode(text), dtype=torch.int32)


def main() -> None:
    """Tokenize all parts."""
    files, output, workers, max_length = arguments()
    started = time.perf_counter()
    optimize(
        fn=tokenize,
        inputs=files,
        output_dir=str(output / "chunks"),
        num_workers=workers,
        chunk_bytes="64MB",
        item_loader=TokensLoader(block_size=max_length + 1),
    )
    seconds = time.perf_counter() - started
    report(seconds, sum(file.stat().st_size for file in (output / "chunks").glob("*.bin")) // 4)


if __name__ == "__main__":
    main()
