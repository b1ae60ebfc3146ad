"""Divide a corpus into partitions, which are read independently of each other.

`find_partitions` lists a corpus's partitions in a stable order. A partition is a value: its files, its range in them,
and the hash of their content, by which finished work is found again. `reader.read_partition` turns one into documents.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.corpus.compression import is_packed
from pipeline.corpus.documents import MAX_BUFFERED_BYTES, Partition, hash_parts
from pipeline.corpus.download import download
from pipeline.corpus.files import JSONL_SUFFIXES, PARQUET_SUFFIXES, TEXT_SUFFIXES, find_files, found_file
from pipeline.corpus.huggingface import partition_huggingface
from pipeline.corpus.jsonl import has_json_lines
from pipeline.corpus.known_hashes import KnownHashes, open_hashes
from pipeline.corpus.parquet import partition_parquet
from pipeline.corpus.partitions import (
    PARTITION_BYTES,
    Hashing,
    partition_delimited,
    partition_jsonl,
    partition_text,
)
from pipeline.corpus.remote_files import find_objects
from pipeline.rules import conflict
from pipeline.storage.names import is_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.corpus.files import FoundFile, FoundFiles, PassedOver
    from pipeline.corpus.spool import Spool
    from pipeline.settings import CorpusConfig


# "The Verdict" (1908): public domain, the file next to the notebook of LLMs-from-scratch.
VERDICT_URL = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch02/01_main-chapter-code/the-verdict.txt"
VERDICT_SHA256 = "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"


class Context(NamedTuple):
    """What partitioning needs besides the corpus's own section."""

    cache: Path  # where downloads are kept
    cut_safe: bool  # the tokenizer allows cutting a long text before an ASCII space that follows a non-space character
    hashing: Hashing


class FoundInput(NamedTuple):
    """The input of a write job."""

    partitions: list[Partition]
    passed_over: dict[str, PassedOver]  # files of its folders that the corpus does not take, by kind


def find_partitions(
    corpus: CorpusConfig,
    *,
    texts: Sequence[str] | None = None,
    cache: Path,
    cut_safe: bool,
    workers: int,
    hold: int = 0,
    spool: Spool | None = None,
) -> FoundInput:
    """List a corpus's partitions in a stable order, their content hashed; `texts` in memory replace the corpus.

    Up to `hold` bytes of small files are kept in memory for their tokenizing, which then does not read them again; and
    ranges of larger objects in the `spool`.

    Raises:
        ValueError: there is nothing to read, a file is not what it should be, or a download failed.

    """
    known = open_hashes(cache, corpus.paths) if corpus.trust_mtime else KnownHashes()
    context = Context(cache, cut_safe, Hashing(workers, hold, known, None if corpus.trust_mtime else spool))
    if texts is not None:
        return FoundInput(partition_texts(texts), {})
    if corpus.name in WITHOUT_FILES:
        return FoundInput(WITHOUT_FILES[corpus.name](corpus, context), {})
    suffixes, packed, divide = WITH_FILES[corpus.name]
    files, passed_over = _find(corpus)(
        corpus.paths, suffixes, packed=packed, is_meant=lambda file: _is_meant(file, corpus.text_field)
    )
    partitions = divide(files, corpus, context)
    known.save(cache)
    return FoundInput(partitions, passed_over)


def _find(corpus: CorpusConfig) -> Callable[..., FoundFiles]:
    remote = [path for path in corpus.paths if is_uri(path)]
    if remote and len(remote) < len(corpus.paths):
        conflict("corpus.path", "must be URIs, or paths on this machine, not both", corpus.path)
    return find_objects if remote else find_files


def _is_meant(file: str, field: str) -> bool:
    """Tell whether a folder's file is input: one that ends in `.json` may be anything, so its first line decides."""
    name = Path(file).with_suffix("").name if is_packed(file) else file
    return not name.lower().endswith(".json") or has_json_lines(file, field)


def _python_docs(_: CorpusConfig, __: Context) -> list[Partition]:
    from pydoc_data.topics import topics

    texts = [topics[name].encode() for name in sorted(topics)]
    size = sum(map(len, texts))
    name = "pydoc_data.topics"
    return [
        Partition(reader="python_docs", paths=(), names=(name,), keys=(hash_parts([name, *texts]),), num_bytes=size)
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
        keys=(hash_parts(["texts", first_row, *texts]),),
        num_bytes=size,
        first_row=first_row,
        texts=tuple(texts),
    )


def _the_verdict(corpus: CorpusConfig, context: Context) -> list[Partition]:
    path = Path(corpus.paths[0]) if corpus.paths else context.cache / "downloads" / "the-verdict.txt"
    expected = corpus.sha256 or VERDICT_SHA256
    if not corpus.paths and not path.is_file():
        limit = corpus.max_document_bytes or MAX_BUFFERED_BYTES
        download(corpus.url or VERDICT_URL, expected, path, limit=limit)
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    if found != expected:
        raise ValueError(
            f"{path}: sha256 is {found}, but corpus=the_verdict is the text with {expected}; "
            "set corpus.path to its own file, or use corpus=text for another text"
        )
    return partition_text([found_file(path, "the-verdict.txt")], cut_safe=context.cut_safe, hashing=Hashing(1))


def _text(files: Sequence[FoundFile], corpus: CorpusConfig, context: Context) -> list[Partition]:
    if corpus.delimiter is not None:
        return partition_delimited(files, delimiter=corpus.delimiter, hashing=context.hashing)
    return partition_text(files, cut_safe=context.cut_safe, hashing=context.hashing)


def _jsonl(files: Sequence[FoundFile], corpus: CorpusConfig, context: Context) -> list[Partition]:
    return partition_jsonl(files, field=corpus.text_field, hashing=context.hashing)


def _parquet(files: Sequence[FoundFile], corpus: CorpusConfig, context: Context) -> list[Partition]:
    return partition_parquet(files, field=corpus.text_field, workers=context.hashing.workers)


def _huggingface(corpus: CorpusConfig, context: Context) -> list[Partition]:
    (path,) = corpus.paths
    return partition_huggingface(
        path, subset=corpus.subset, part=corpus.part, field=corpus.text_field, workers=context.hashing.workers
    )


WITHOUT_FILES: dict[str, Callable[[CorpusConfig, Context], list[Partition]]] = {
    "python_docs": _python_docs,
    "the_verdict": _the_verdict,
    "huggingface": _huggingface,
}
# Name -> the suffixes of its files in a folder, whether they may be packed, and how they are divided.
WITH_FILES: dict[
    str, tuple[tuple[str, ...], bool, Callable[[Sequence[FoundFile], CorpusConfig, Context], list[Partition]]]
] = {
    "text": (TEXT_SUFFIXES, True, _text),
    "jsonl": (JSONL_SUFFIXES, True, _jsonl),
    "parquet": (PARQUET_SUFFIXES, False, _parquet),
}
