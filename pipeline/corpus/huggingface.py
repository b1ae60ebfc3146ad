"""Read data sets with the package `datasets`: a local folder, one saved by `save_to_disk`, or a name on the hub.

`datasets` maps its Arrow files into memory. A range of rows is a partition, and its text is hashed as it is read. No
code that comes with a data set is run: `datasets` cannot do that from release 4 on, which the extra requires.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.base.paths import expand_user
from pipeline.corpus.documents import BATCH_BYTES, DocumentBatch, Partition, hash_parts
from pipeline.corpus.fields import as_binary, find_text, list_some, pick_column
from pipeline.corpus.partitions import PARTITION_BYTES
from pipeline.executor.local import run_tasks
from pipeline.rules import shorten

if TYPE_CHECKING:
    from collections.abc import Iterator


def partition_huggingface(path: str, *, subset: str | None, part: str, field: str, workers: int) -> list[Partition]:
    """Divide a data set into partitions: ranges of rows with about `PARTITION_BYTES` of text.

    Raises:
        ValueError: the package is not installed, the data set cannot be loaded, or it has no text column `field`.

    """
    load.cache_clear()  # the data set may have changed since the last run of this process
    data = load(path, subset, part)
    find_text(data.features.arrow_schema, field, f"corpus.path={path}")
    rows = len(data)
    step = _power_of_two(PARTITION_BYTES * rows // max(1, data.data.nbytes))
    draft = partial(_hash_rows, data, (path, subset or "", part), field, step)
    return list(run_tasks(draft, range(0, rows, step), workers=workers))


def read_huggingface(partition: Partition) -> Iterator[DocumentBatch]:
    """Yield the documents of a range of rows."""
    path, subset, part = partition.paths
    assert partition.stop is not None, "a partition of a data set names its rows"
    data = load(path, subset or None, part)
    for row, texts in _texts(data, partition.field, partition.start, partition.stop):
        numbers = np.arange(row, row + len(texts), dtype=np.int64)
        yield DocumentBatch(texts=texts, sources=np.zeros(len(texts), np.int32), rows=numbers)


@lru_cache(maxsize=1)
def load(path: str, subset: str | None, part: str) -> Any:
    """Load a part of the data set, `train` for instance, as a `datasets.Dataset`."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError("corpus=huggingface needs the package datasets: pip install datasets") from error
    folder = expand_user(path)
    if folder.is_file():
        raise ValueError(
            f"corpus.path={path}: is a file, and corpus=huggingface reads a data set; use corpus=jsonl, parquet or text"
        )
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            found = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(str(folder) if folder.exists() else path, subset)
    except Exception as error:  # datasets raises its own, the hub's, pyarrow's and many more
        what = shorten(f"{type(error).__name__}: {error}", 300)
        raise ValueError(f"corpus.path={path}: datasets cannot load it: {what}") from error
    if isinstance(found, datasets.Dataset):
        return found  # it was saved alone, without a name
    if part not in found:
        raise ValueError(f"corpus.path={path}: there is no corpus.part={part}; the parts are {list_some(found)}")
    return found[part]


def _texts(data: Any, field: str, start: int, stop: int) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a range, in batches of about `BATCH_BYTES`, each with its first row's number."""
    names, _ = find_text(data.features.arrow_schema, field, "the data set")
    rows = data.select_columns([names[0]]).with_format("arrow")
    step = max(1, min(4096, (stop - start) * BATCH_BYTES // PARTITION_BYTES))
    for row in range(start, stop, step):
        batches = rows[row : min(stop, row + step)].to_batches()
        yield row, pa.concat_arrays([as_binary(pick_column(batch, names)) for batch in batches])


def _hash_rows(data: Any, names: tuple[str, str, str], field: str, step: int, start: int) -> Partition:
    stop = min(len(data), start + step)
    digest, size = hashlib.sha256(), 0
    for _, texts in _texts(data, field, start, stop):
        lengths = pa.compute.binary_length(texts).fill_null(-1).to_numpy(zero_copy_only=False).astype("<i8")
        digest.update(lengths.tobytes())
        offsets = np.frombuffer(texts.buffers()[1], np.int64, len(texts) + 1, texts.offset * 8)
        data_buffer = texts.buffers()[2]
        if data_buffer is not None:
            digest.update(memoryview(data_buffer)[offsets[0] : offsets[-1]])
        size += int(offsets[-1] - offsets[0])
    name = Path(names[0]).name + (f"/{names[1]}" if names[1] else "") + f"/{names[2]}"
    return Partition(
        reader="huggingface",
        paths=names,
        names=(name,),
        keys=(hash_parts(["huggingface", field, start, digest.hexdigest()]),),
        num_bytes=size,
        start=start,
        stop=stop,
        first_row=start,
        field=field,
    )


def _power_of_two(count: int) -> int:
    return 1 << max(0, count.bit_length() - 1)
