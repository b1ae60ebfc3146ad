"""Hugging Face datasets: `map` to IDs, `map` to windows, `to_parquet`, as the language-modelling examples do."""

from __future__ import annotations

import time
from itertools import chain

from common import END_OF_TEXT, arguments, encoder, report
from datasets import load_dataset


def tokenize(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
    """Encode each document, with end-of-text after it."""
    return {"ids": [[*ids, END_OF_TEXT] for ids in encoder()(batch["text"])]}


def cut(batch: dict[str, list[list[int]]], max_length: int) -> dict[str, list[list[int]]]:
    """Cut the joined documents of a batch into windows."""
    ids = list(chain.from_iterable(batch["ids"]))
    starts = range(0, len(ids) - max_length, max_length)
    return {
        "input_ids": [ids[start : start + max_length] for start in starts],
        "target_ids": [ids[start + 1 : start + max_length + 1] for start in starts],
    }


def main() -> None:
    """Tokenize all parts."""
    files, output, workers, max_length = arguments()
    started = time.perf_counter()
    texts = load_dataset("json", data_files=files, split="train", cache_dir=str(output / "cache"))
    ids = texts.map(tokenize, batched=True, num_proc=workers, remove_columns=texts.column_names)
    windows = ids.map(cut, batched=True, num_proc=workers, remove_columns=["ids"], fn_kwargs={"max_length": max_length})
    windows.to_parquet(str(output / "windows.parquet"))
    report(time.perf_counter() - started, windows.num_rows * max_length)


if __name__ == "__main__":
    main()
