"""Corpora: where documents come from, as input splits that can be read apart from each other.

`find_splits` lists a corpus's input splits in a stable order; `read_split` reads one of them into documents. A split
is a value: its sources, and the hash of their content, by which finished work is found again. Documents are strict
UTF-8; what is not usable goes to `Documents.bad` with its place and its reason, or stops the run, as `on_bad` says.
"""

from __future__ import annotations

import glob
import hashlib
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

SPLIT_BYTES = 16 << 20  # small files are grouped up to this size: large enough to amortize a chunk's four files
TEXT_SUFFIXES = (".txt", ".md", ".rst")
HEAD_BYTES = 200  # how much of a bad document its quarantine entry shows


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSplit:
    """A part of a corpus that is read, tokenized and cached on its own."""

    reader: str  # a key of READERS
    paths: tuple[str, ...]  # files to read; empty for a corpus that is embedded
    names: tuple[str, ...]  # the same relative to the corpus: equal on every machine
    identity: str  # sha256 over names and content
    bytes: int  # of text, as it lies in its files


@dataclass(frozen=True, slots=True, kw_only=True)
class BadDocument:
    """A document that cannot be used."""

    source: str
    row: int
    reason: str  # not_utf8, empty, too_long, null
    detail: str
    head: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """What one split holds."""

    texts: pa.LargeStringArray  # valid UTF-8, none empty
    sources: np.ndarray  # int32 [documents], index into the split's names
    rows: np.ndarray  # int64 [documents], the document's row or line in its source, from 0
    bad: list[BadDocument]


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusOptions:
    """Where a corpus is to be found."""

    paths: tuple[str, ...] = ()  # files, folders, globs
    url: str | None = None
    sha256: str | None = None
    cache: Path  # where downloads are kept


def find_splits(name: str, options: CorpusOptions) -> list[InputSplit]:
    """The input splits of the corpus `name`, in a stable order.

    Raises:
        ValueError: nothing is there to read, or a download failed; the message says what was looked for.

    """
    return CORPORA[name](options)


def read_split(split: InputSplit, *, max_document_bytes: int, on_bad: str) -> Documents:
    """The documents of one split.

    Raises:
        ValueError: a document is bad and `on_bad` is `raise`: its file, its place, the rule and what to do.

    """
    raw, sources, rows = READERS[split.reader](split)
    reasons = {at: _fault(raw[at].as_py(), max_document_bytes) for at in _suspects(raw, max_document_bytes)}
    bad = [
        BadDocument(source=split.names[sources[at]], row=int(rows[at]), reason=fault[0], detail=fault[1], head=fault[2])
        for at, fault in sorted(reasons.items())
        if fault
    ]
    if bad and on_bad == "raise":
        raise ValueError(f"{describe(bad[0])}. Mend or remove it, or set corpus.on_bad=quarantine to leave it out")
    good = np.setdiff1d(np.arange(len(raw)), [at for at, fault in reasons.items() if fault])
    if len(good) < len(raw):
        raw, sources, rows = raw.take(pa.array(good)), sources[good], rows[good]
    return Documents(texts=raw.cast(pa.large_string()), sources=sources, rows=rows, bad=bad)


def describe(bad: BadDocument) -> str:
    """A bad document in words: where it is and what is wrong with it."""
    return f"{bad.source}, document {bad.row}: {bad.reason}: {bad.detail}"


def _suspects(raw: pa.LargeBinaryArray, max_document_bytes: int) -> Iterable[int]:
    """The documents that need a look: all of them if the batch is not UTF-8 as a whole."""
    try:
        raw.cast(pa.large_string())
    except pa.ArrowInvalid:
        return range(len(raw))
    sizes = pc.fill_null(pc.binary_length(raw), 0).to_numpy(zero_copy_only=False)
    suspects: list[int] = np.flatnonzero((sizes == 0) | (sizes > max_document_bytes)).tolist()
    return suspects


def _fault(document: bytes | None, max_document_bytes: int) -> tuple[str, str, bytes] | None:
    if document is None:
        return "null", "the field is null", b""
    if not document:
        return "empty", "the document has no text", b""
    head = document[:HEAD_BYTES]
    if len(document) > max_document_bytes:
        return "too_long", f"{len(document)} bytes are more than corpus.max_document_bytes={max_document_bytes}", head
    try:
        document.decode()
    except UnicodeDecodeError as error:
        value = document[error.start]
        return "not_utf8", f"byte {error.start} (0x{value:02x}) is not UTF-8: {error.reason}", head
    return None


def _python_docs(options: CorpusOptions) -> list[InputSplit]:
    if options.paths:
        raise ValueError(
            f"corpus.path={options.paths[0]!r} has no meaning for corpus=python_docs; use corpus=text for files"
        )
    texts = _read_python_docs(None)[0].to_pylist()
    size = sum(map(len, texts))
    return [InputSplit(reader="python_docs", paths=(), names=("pydoc_data.topics",), identity=_hash(texts), bytes=size)]


def _the_verdict(options: CorpusOptions) -> list[InputSplit]:
    path = Path(options.paths[0]) if options.paths else options.cache / "downloads" / "the-verdict.txt"
    if not options.paths and not path.is_file():
        _fetch(options.url, options.sha256, path)
    found = hashlib.sha256(_content(path)).hexdigest()
    if found != options.sha256:
        raise ValueError(
            f"{path}: sha256 is {found}, but corpus=the_verdict is the text with {options.sha256}; "
            "give its own file as corpus.path, or use corpus=text for another text"
        )
    return _group([(path, "the-verdict.txt")])


def _text(options: CorpusOptions) -> list[InputSplit]:
    if not options.paths:
        raise ValueError("corpus.path: corpus=text needs a file, a folder, a glob, or a list of them")
    return _group(find_files(options.paths, TEXT_SUFFIXES))


def find_files(paths: Sequence[str], suffixes: tuple[str, ...]) -> list[tuple[Path, str]]:
    """The files that paths, folders and globs name, each once, with names relative to what they share, in name order.

    Raises:
        ValueError: one of `paths` names nothing that is there, or a folder with no file of the `suffixes`.

    """
    found: dict[Path, None] = {}
    for path in paths:
        place = Path(path).expanduser()
        if place.is_dir():
            matches = [file for file in _walk(place) if file.suffix in suffixes and file.is_file()]
            if not matches:
                raise ValueError(
                    f"corpus.path={path!r}: the folder holds no {', '.join(suffixes)} file; a glob names others"
                )
        elif place.exists():
            matches = [place]
        else:
            matches = [Path(match) for match in glob.iglob(str(place), recursive=True) if Path(match).is_file()]
            if not matches:
                raise ValueError(f"corpus.path={path!r}: no such file or folder, and no file matches it as a glob")
        found.update(dict.fromkeys(match.resolve() for match in matches))
    shared = os.path.commonpath([file.parent for file in found])
    return sorted(((file, file.relative_to(shared).as_posix()) for file in found), key=lambda pair: pair[1])


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder. A folder that cannot be read is an error here; a glob passes over it in silence."""

    def refuse(error: OSError) -> None:
        raise ValueError(f"corpus.path: the folder {error.filename} cannot be read: {error.strerror}") from error

    for place, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(place, name) for name in names)


def _group(files: list[tuple[Path, str]]) -> list[InputSplit]:
    groups: list[list[tuple[Path, str]]] = [[]]
    size = 0
    for path, name in files:
        bytes_ = path.stat().st_size
        if groups[-1] and size + bytes_ > SPLIT_BYTES:
            groups.append([])
            size = 0
        groups[-1].append((path, name))
        size += bytes_
    return [
        InputSplit(
            reader="text",
            paths=tuple(str(path) for path, _ in group),
            names=tuple(name for _, name in group),
            identity=_hash(part for path, name in group for part in (name, _content(path))),
            bytes=sum(path.stat().st_size for path, _ in group),
        )
        for group in groups
    ]


def _read_python_docs(_: InputSplit | None) -> tuple[pa.LargeBinaryArray, np.ndarray, np.ndarray]:
    from pydoc_data.topics import topics

    texts = [topics[name].encode() for name in sorted(topics)]
    return pa.array(texts, pa.large_binary()), np.zeros(len(texts), np.int32), np.arange(len(texts), dtype=np.int64)


def _read_text(split: InputSplit) -> tuple[pa.LargeBinaryArray, np.ndarray, np.ndarray]:
    texts = [_content(Path(path)) for path in split.paths]
    return pa.array(texts, pa.large_binary()), np.arange(len(texts), dtype=np.int32), np.zeros(len(texts), np.int64)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


def _fetch(url: str | None, sha256: str | None, path: Path) -> None:
    """Download a file once: checked against its hash before it gets its name."""
    assert url, "conf/corpus/the_verdict.yaml names it"
    assert sha256, "conf/corpus/the_verdict.yaml names it"
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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    temporary.write_bytes(content)
    temporary.rename(path)


def _hash(parts: Iterable[str | bytes]) -> str:
    """One sha256 over parts, each with its length before it, so that no two lists of parts look the same."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


CORPORA: dict[str, Callable[[CorpusOptions], list[InputSplit]]] = {
    "python_docs": _python_docs,
    "the_verdict": _the_verdict,
    "text": _text,
}
READERS: dict[str, Callable[[Any], tuple[pa.LargeBinaryArray, np.ndarray, np.ndarray]]] = {
    "python_docs": _read_python_docs,
    "text": _read_text,
}
