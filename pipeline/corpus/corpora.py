"""Divide a corpus into partitions, which are read independently of each other.

`find_partitions` lists a corpus's partitions in a stable order. A partition is a value: its files, its range in them,
and the hash of their content, by which finished work is found again. `reader.read_partition` turns one into documents.
"""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.base.atomic import replace_file
from pipeline.base.paths import translate_os_errors
from pipeline.corpus.documents import Partition, hash_parts
from pipeline.corpus.files import JSONL_SUFFIXES, PARQUET_SUFFIXES, TEXT_SUFFIXES, find_files
from pipeline.corpus.huggingface import partition_huggingface
from pipeline.corpus.parquet import partition_parquet
from pipeline.corpus.partitions import PARTITION_BYTES, partition_jsonl, partition_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.settings import CorpusConfig


# "The Verdict" (1908): public domain, the file next to the notebook of LLMs-from-scratch.
VERDICT_URL = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch02/01_main-chapter-code/the-verdict.txt"
VERDICT_SHA256 = "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"


class Context(NamedTuple):
    """What partitioning needs besides the corpus's own section."""

    cache: Path  # where downloads are kept
    cut_safe: bool  # the tokenizer allows cutting a long text before an ASCII space that follows a non-space character
    workers: int  # threads that hash the input


def find_partitions(
    corpus: CorpusConfig, *, texts: Sequence[str] | None = None, cache: Path, cut_safe: bool, workers: int
) -> list[Partition]:
    """List a corpus's partitions in a stable order, their content hashed; `texts` in memory replace the corpus.

    Raises:
        ValueError: there is nothing to read, a file is not what it should be, or a download failed.

    """
    if texts is not None:
        return partition_texts(texts)
    return FINDERS[corpus.name](corpus, Context(cache, cut_safe, workers))


def _python_docs(_: CorpusConfig, __: Context) -> list[Partition]:
    from pydoc_data.topics import topics

    texts = [topics[name].encode() for name in sorted(topics)]
    size = sum(map(len, texts))
    name = "pydoc_data.topics"
    return [
        Partition(reader="python_docs", paths=(), names=(name,), fingerprint=hash_parts([name, *texts]), num_bytes=size)
    ]


def partition_texts(texts: Sequence[str]) -> list[Partition]:
    """Divide texts in memory into partitions of up to `PARTITION_BYTES`."""
    partitions: list[Partition] = []
    batch: list[bytes] = []
    first = size = 0
    for row, text in enumerate(texts):
        try:
            content = text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"corpus: text {row} has half a surrogate pair at character {error.start}") from None
        if batch and size + len(content) > PARTITION_BYTES:
            partitions.append(_of_texts(batch, first, size))
            batch, first, size = [], row, 0
        batch.append(content)
        size += len(content)
    return [*partitions, _of_texts(batch, first, size)]


def _of_texts(texts: list[bytes], first_row: int, size: int) -> Partition:
    return Partition(
        reader="texts",
        paths=(),
        names=("texts",),
        fingerprint=hash_parts(["texts", first_row, *texts]),
        num_bytes=size,
        first_row=first_row,
        texts=tuple(texts),
    )


def _the_verdict(corpus: CorpusConfig, context: Context) -> list[Partition]:
    path = Path(corpus.paths[0]) if corpus.paths else context.cache / "downloads" / "the-verdict.txt"
    expected = corpus.sha256 or VERDICT_SHA256
    if not corpus.paths and not path.is_file():
        _fetch(corpus.url or VERDICT_URL, expected, path)
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    if found != expected:
        raise ValueError(
            f"{path}: sha256 is {found}, but corpus=the_verdict is the text with {expected}; "
            "set corpus.path to its own file, or use corpus=text for another text"
        )
    return partition_text([(path, "the-verdict.txt")], cut_safe=context.cut_safe, workers=1)


def _text(corpus: CorpusConfig, context: Context) -> list[Partition]:
    files = find_files(corpus.paths, TEXT_SUFFIXES)
    return partition_text(files, cut_safe=context.cut_safe, workers=context.workers)


def _jsonl(corpus: CorpusConfig, context: Context) -> list[Partition]:
    files = find_files(corpus.paths, JSONL_SUFFIXES)
    return partition_jsonl(files, field=corpus.text_field, workers=context.workers)


def _parquet(corpus: CorpusConfig, context: Context) -> list[Partition]:
    files = find_files(corpus.paths, PARQUET_SUFFIXES, packed=False)
    return partition_parquet(files, field=corpus.text_field, workers=context.workers)


def _huggingface(corpus: CorpusConfig, context: Context) -> list[Partition]:
    (path,) = corpus.paths
    return partition_huggingface(
        path, subset=corpus.subset, part=corpus.part, field=corpus.text_field, workers=context.workers
    )


def _fetch(url: str, sha256: str, path: Path) -> None:
    """Download a file, and check its hash before it gets its name."""
    remedy = f"save the text yourself and set corpus.path=the-verdict.txt (sha256 {sha256})"
    if not url.startswith("https://"):
        raise ValueError(f"corpus.url={url!r}: must start with https://")
    try:
        with urllib.request.urlopen(url, timeout=20) as response:  # noqa: S310 - only https, checked above
            content: bytes = response.read()
    except (OSError, urllib.error.URLError) as error:
        raise ValueError(f"{url}: the download failed: {error}; {remedy}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{url}: the download has sha256 {found}, not {sha256}; {remedy}")
    with translate_os_errors(path.parent, "cache.path"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as file:
            file.write(content)


FINDERS: dict[str, Callable[[CorpusConfig, Context], list[Partition]]] = {
    "python_docs": _python_docs,
    "the_verdict": _the_verdict,
    "text": _text,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "huggingface": _huggingface,
}
