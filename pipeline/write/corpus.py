"""Corpora: where documents come from, as input splits that can be read apart from each other.

`find_splits` lists a corpus's input splits in a stable order. A split is a value: its sources, its place in them, and
the hash of their content, by which finished work is found again. `readers.read_split` reads one into documents.
"""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.atomic import replace_file
from pipeline.write.documents import InputSplit, hash_parts
from pipeline.write.files import JSONL_SUFFIXES, PARQUET_SUFFIXES, TEXT_SUFFIXES, find_files
from pipeline.write.folder import explained
from pipeline.write.hub import plan_huggingface
from pipeline.write.parquet import plan_parquet
from pipeline.write.splits import plan_jsonl, plan_text

if TYPE_CHECKING:
    from collections.abc import Callable


# "The Verdict" (1908): public domain, as it lies beside the notebook of LLMs-from-scratch.
VERDICT_URL = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch02/01_main-chapter-code/the-verdict.txt"
VERDICT_SHA256 = "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusOptions:
    """Where a corpus is to be found, and how its text lies there."""

    paths: tuple[str, ...] = ()  # files, folders, globs; for huggingface one local folder or hub name
    text_field: str = "text"
    subset: str | None = None  # huggingface: which configuration of the data set
    part: str = "train"  # huggingface: which of its parts
    url: str | None = None
    sha256: str | None = None
    cache: Path  # where downloads are kept
    cut_safe: bool  # the tokenizer allows to cut a long text before an ASCII space behind a character that is none
    workers: int = 1  # who hash the input


def find_splits(name: str, options: CorpusOptions) -> list[InputSplit]:
    """The input splits of the corpus `name`, in a stable order, their content hashed.

    Raises:
        ValueError: nothing is there to read, it is not what it should be, or a download failed; the message says what
            was looked for.

    """
    return CORPORA[name](options)


def _python_docs(_: CorpusOptions) -> list[InputSplit]:
    from pydoc_data.topics import topics

    texts = [topics[name].encode() for name in sorted(topics)]
    size = sum(map(len, texts))
    name = "pydoc_data.topics"
    return [
        InputSplit(reader="python_docs", paths=(), names=(name,), identity=hash_parts([name, *texts]), num_bytes=size)
    ]


def _the_verdict(options: CorpusOptions) -> list[InputSplit]:
    if len(options.paths) > 1:
        raise ValueError(f"corpus.path: corpus=the_verdict is one file, not {len(options.paths)}")
    path = Path(options.paths[0]) if options.paths else options.cache / "downloads" / "the-verdict.txt"
    expected = options.sha256 or VERDICT_SHA256
    if not options.paths and not path.is_file():
        _fetch(options.url or VERDICT_URL, expected, path)
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    if found != expected:
        raise ValueError(
            f"{path}: sha256 is {found}, but corpus=the_verdict is the text with {expected}; "
            "give its own file as corpus.path, or use corpus=text for another text"
        )
    return plan_text([(path, "the-verdict.txt")], cut_safe=options.cut_safe, workers=1)


def _text(options: CorpusOptions) -> list[InputSplit]:
    files = find_files(_paths("text", options), TEXT_SUFFIXES)
    return plan_text(files, cut_safe=options.cut_safe, workers=options.workers)


def _jsonl(options: CorpusOptions) -> list[InputSplit]:
    files = find_files(_paths("jsonl", options), JSONL_SUFFIXES)
    return plan_jsonl(files, field=options.text_field, workers=options.workers)


def _parquet(options: CorpusOptions) -> list[InputSplit]:
    files = find_files(_paths("parquet", options), PARQUET_SUFFIXES, packed=False)
    return plan_parquet(files, field=options.text_field, workers=options.workers)


def _huggingface(options: CorpusOptions) -> list[InputSplit]:
    paths = _paths("huggingface", options)
    if len(paths) > 1:
        raise ValueError(f"corpus.path: corpus=huggingface takes one folder or hub name, not {len(paths)}")
    return plan_huggingface(
        paths[0], subset=options.subset, part=options.part, field=options.text_field, workers=options.workers
    )


def _paths(name: str, options: CorpusOptions) -> tuple[str, ...]:
    if not options.paths:
        what = "a folder or a hub name" if name == "huggingface" else "a file, a folder, a glob, or a list of them"
        raise ValueError(f"corpus.path: corpus={name} needs {what}")
    return options.paths


def _fetch(url: str, sha256: str, path: Path) -> None:
    """Download a file once: checked against its hash before it gets its name."""
    remedy = f"save the text yourself and give its place: corpus.path=the-verdict.txt (sha256 {sha256})"
    if not url.startswith("https://"):
        raise ValueError(f"corpus.url={url!r}: must start with https://")
    try:
        with urllib.request.urlopen(url, timeout=20) as response:  # noqa: S310 - https alone, checked above
            content: bytes = response.read()
    except (OSError, urllib.error.URLError) as error:
        raise ValueError(f"{url}: the download failed: {error}; {remedy}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{url}: the download has sha256 {found}, not {sha256}; {remedy}")
    with explained(path.parent, "cache.path"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as file:
            file.write(content)


CORPORA: dict[str, Callable[[CorpusOptions], list[InputSplit]]] = {
    "python_docs": _python_docs,
    "the_verdict": _the_verdict,
    "text": _text,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "huggingface": _huggingface,
}
