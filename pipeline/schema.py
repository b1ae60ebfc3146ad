"""The config's schema: a dataclass for each section, whose values are checked when it is made.

The command line makes them from what Hydra has composed (`pipeline.config`), `write_shards` from its arguments, so both
refuse the same values with the same words: the key's full path, the rule, the value and, where a name was meant, the
closest valid one.
"""

from __future__ import annotations

import difflib
import operator
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterable

ORDERS = ("sequential", "shuffled")
MAX_COUNT = 2**62  # numbers of windows and documents
MAX_SEED = 2**63 - 1
MAX_LENGTH = 2**24  # tokens of a window: its ids alone are 64 MiB
MAX_DIM = 2**16
MAX_WORKERS = 1024
PATHS = "must be a file, folder or glob, or a list of them"
STAGES = ("plan", "write", "verify", "load", "report")


class ConfigError(ValueError):
    """A config that is refused before any work: one line, with the key, the rule and the value."""


class SenselessError(ConfigError):
    """Values that are right alone and make no sense together, as a sweep over both comes upon them."""


@dataclass(kw_only=True, slots=True)
class Corpus:
    """Where the text comes from."""

    name: str = "python_docs"
    path: Any = None  # a file, folder, glob, or a list of them
    text_field: str = "text"
    subset: str | None = None
    part: str = "train"
    url: str | None = None
    sha256: str | None = None
    on_bad: str = "quarantine"
    max_bad_fraction: float = 0.01
    max_document_bytes: int | None = None

    def __post_init__(self) -> None:
        from pipeline.write.corpus import CORPORA

        one_of("corpus.name", self.name, CORPORA)
        one_of("corpus.on_bad", self.on_bad, ("quarantine", "raise"))
        if self.max_document_bytes is not None:
            self.max_document_bytes = within("corpus.max_document_bytes", self.max_document_bytes, 1, MAX_COUNT)
        for key in ("text_field", "part"):
            text(f"corpus.{key}", getattr(self, key))
            if not getattr(self, key):
                refuse(f"corpus.{key}", "must not be empty", getattr(self, key))
        for key in ("subset", "url", "sha256"):
            if getattr(self, key) is not None:
                text(f"corpus.{key}", getattr(self, key))
        fraction("corpus.max_bad_fraction", self.max_bad_fraction)
        if self.path is not None:
            self.path = self._checked_path()
        if self.name == "python_docs" and self.path is not None:
            clash("corpus.path", "corpus=python_docs is embedded and has none; corpus=text reads files", self.path)
        if self.name in ("text", "jsonl", "parquet") and self.path is None:
            clash("corpus.path", f"corpus={self.name} needs a file, a folder, a glob, or a list of them", self.path)
        if self.name == "huggingface" and (self.path is None or len(self.paths) != 1):
            clash("corpus.path", "corpus=huggingface needs one folder or hub name", self.path)

    @property
    def paths(self) -> list[str]:
        """`path` as a list; empty where it is None."""
        return self.path if isinstance(self.path, list) else [] if self.path is None else [self.path]

    def _checked_path(self) -> str | list[str]:
        if not self.paths or not all(isinstance(path, str | os.PathLike) for path in self.paths):
            hint = " (a name that is a number needs quotes)" * any(map(is_number, self.paths))
            refuse("corpus.path", PATHS + hint, self.path)
        checked = [local("corpus.path", path, PATHS) for path in self.paths]
        return checked if isinstance(self.path, list) else checked[0]


@dataclass(kw_only=True, slots=True)
class Tokenizer:
    """How text becomes token IDs."""

    name: str = "gpt2"
    path: str | None = None
    pattern: str | None = None
    engine: str = "auto"
    special_text: str = "literal"
    audit: float = 0.001

    def __post_init__(self) -> None:
        from pipeline.write.tokenizer import NAMES

        one_of("tokenizer.name", self.name, NAMES)
        one_of("tokenizer.engine", self.engine, ("auto", "tiktoken", "gigatoken"))
        one_of("tokenizer.special_text", self.special_text, ("literal", "control", "error"))
        fraction("tokenizer.audit", self.audit)
        if self.name in ("tiktoken_file", "huggingface") and not self.path:
            clash("tokenizer.path", f"tokenizer={self.name} needs the path of its vocabulary", self.path)
        if self.name not in ("tiktoken_file", "huggingface") and self.path is not None:
            clash("tokenizer.path", f"tokenizer={self.name} has its own vocabulary and takes none", self.path)
        if self.name != "tiktoken_file" and self.pattern is not None:
            clash("tokenizer.pattern", f"is for tokenizer=tiktoken_file, not {self.name}", self.pattern)
        if self.path is not None:
            self.path = local("tokenizer.path", self.path, "must be a file, a folder or a hub name")
        if self.pattern is not None:
            text("tokenizer.pattern", self.pattern)
        if self.name in ("huggingface", "bytes") and self.engine != "auto":
            clash("tokenizer.engine", f"tokenizer={self.name} is its own engine: leave it auto", self.engine)


@dataclass(kw_only=True, slots=True)
class Window:
    """How token IDs become windows."""

    max_length: int = 256
    stride: int = 256
    allow_gaps: bool = False
    tail: str = "drop"
    documents: str = "join"
    score: str = "all"

    def __post_init__(self) -> None:
        self.max_length = within("window.max_length", self.max_length, 1, MAX_LENGTH)
        self.stride = within("window.stride", self.stride, 1, MAX_COUNT)
        truth("window.allow_gaps", self.allow_gaps)
        one_of("window.tail", self.tail, ("drop", "pad"))
        one_of("window.documents", self.documents, ("join", "separate"))
        one_of("window.score", self.score, ("all", "new"))
        if self.stride > self.max_length and not self.allow_gaps:
            rule = f"must be at most window.max_length={self.max_length}, or tokens between two windows would be lost"
            raise SenselessError(f"window.stride: {rule} (window.allow_gaps=true allows it); got {self.stride}")


@dataclass(kw_only=True, slots=True)
class Split:
    """What is held out before windows are cut."""

    validation: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not is_number(self.validation) or not 0 <= self.validation < 1:
            refuse("split.validation", "must be a fraction from 0 to below 1", self.validation)
        self.seed = within("split.seed", self.seed, -MAX_SEED, MAX_SEED)


@dataclass(kw_only=True, slots=True)
class Shards:
    """Where windows are written, and in what layout."""

    path: str = "outputs/shards/data"
    windows_per_shard: int | None = None
    windows_per_group: int | None = None
    compression: str = "zstd"
    order: str = "sequential"
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        one_of("shards.compression", self.compression, ("zstd", "lz4", "snappy", "none"))
        one_of("shards.order", self.order, ORDERS)
        self.seed = within("shards.seed", self.seed, 0, MAX_SEED)
        for key in ("windows_per_shard", "windows_per_group"):
            if getattr(self, key) is not None:
                setattr(self, key, within(f"shards.{key}", getattr(self, key), 1, MAX_COUNT))
        if self.windows_per_shard and self.windows_per_group and self.windows_per_shard % self.windows_per_group:
            rule = f"must be a multiple of windows_per_group={self.windows_per_group}, or row groups would be cut"
            clash("shards.windows_per_shard", rule, self.windows_per_shard)
        self.path = local("shards.path", self.path)


@dataclass(kw_only=True, slots=True)
class Loader:
    """How windows become batches."""

    split: str = "train"
    batch_size: int | str = 8
    shuffle: str = "auto"
    seed: int = 0
    lanes: int = 64
    drop_last: bool = True
    document_ids: bool = False
    threads: int | None = None
    memory_budget: int = 1 << 29

    def __post_init__(self) -> None:
        one_of("loader.split", self.split, ("train", "validation"))
        one_of("loader.shuffle", self.shuffle, ("auto", "none", "full", "lanes"))
        within("loader.seed", self.seed, 0, MAX_SEED)
        within("loader.lanes", self.lanes, 1, MAX_DIM)
        within("loader.memory_budget", self.memory_budget, 1, MAX_COUNT)
        if self.threads is not None:
            within("loader.threads", self.threads, 1, 1024)
        if self.batch_size != "all" and (isinstance(self.batch_size, str) or self.batch_size < 1):
            refuse("loader.batch_size", "must be a whole number of at least 1, or 'all'", self.batch_size)


@dataclass(kw_only=True, slots=True)
class Embedding:
    """The layer that turns token IDs into vectors."""

    dim: int = 256
    positions: str = "learned"
    seed: int = 0

    def __post_init__(self) -> None:
        within("embedding.dim", self.dim, 1, MAX_DIM)
        within("embedding.seed", self.seed, 0, MAX_SEED)
        one_of("embedding.positions", self.positions, ("learned", "sinusoidal", "none"))


@dataclass(kw_only=True, slots=True)
class Executor:
    """Who runs the write stage's tasks."""

    name: str = "local"
    workers: int | None = None

    def __post_init__(self) -> None:
        one_of("executor.name", self.name, ("local",))
        if self.workers is None:
            self.workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.workers = within("executor.workers", self.workers, 1, MAX_WORKERS)


@dataclass(kw_only=True, slots=True)
class Cache:
    """Where token stores and downloads are kept."""

    path: str = "outputs/cache"

    def __post_init__(self) -> None:
        self.path = local("cache.path", self.path)


@dataclass(kw_only=True, slots=True)
class Sweep:
    """What concerns many runs together."""

    bad_points: str = "fail"
    path: str | None = None

    def __post_init__(self) -> None:
        one_of("sweep.bad_points", self.bad_points, ("fail", "skip"))


@dataclass(kw_only=True, slots=True)
class Config:
    """One run."""

    stages: list[str] = field(default_factory=lambda: ["write", "load"])
    corpus: Corpus = field(default_factory=Corpus)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    window: Window = field(default_factory=Window)
    split: Split = field(default_factory=Split)
    shards: Shards = field(default_factory=Shards)
    loader: Loader = field(default_factory=Loader)
    embedding: Embedding = field(default_factory=Embedding)
    executor: Executor = field(default_factory=Executor)
    cache: Cache = field(default_factory=Cache)
    sweep: Sweep = field(default_factory=Sweep)

    def __post_init__(self) -> None:
        if "report" in self.stages and not self.sweep.path:
            refuse("sweep.path", "the stage report needs the folder of a sweep", self.sweep.path)
        if not self.stages:
            refuse("stages", f"must name at least one of {', '.join(STAGES)}", self.stages)
        for stage in self.stages:
            one_of("stages", stage, STAGES)
        if {"write", "load"} <= set(self.stages) and self.loader.split == "validation" and not self.split.validation:
            clash("loader.split", "split.validation=0 holds nothing out, so there is no such split", self.loader.split)


def closest(name: str, valid: Iterable[str]) -> str:
    """'did you mean ...?', or nothing when no valid name is near."""
    near = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else ""


def refuse(key: str, rule: str, value: object) -> NoReturn:
    """Raise the refusal of a value."""
    shown = repr(value).replace("\n", " ")  # an array's has line feeds
    raise ConfigError(f"{key}: {rule}; got {shown}")


def clash(key: str, rule: str, value: object) -> NoReturn:
    """Raise the refusal of a value that another key forbids."""
    raise SenselessError(f"{key}: {rule}; got {value!r}")


def truth(key: str, value: object) -> None:
    """Refuse what is neither true nor false: a text such as "false" counts as true in Python."""
    if not isinstance(value, bool):
        refuse(key, "must be true or false", value)


def one_of(key: str, value: object, valid: Iterable[str]) -> None:
    """Refuse a value that is not among the valid ones."""
    if not isinstance(value, str) or value not in valid:
        hint = closest(value, valid) if isinstance(value, str) else ""
        refuse(key, f"must be one of {', '.join(valid)}{f' ({hint})' if hint else ''}", value)


def text(key: str, value: object) -> None:
    """Refuse what is no text."""
    if not isinstance(value, str):
        refuse(key, "must be text", value)


def within(key: str, value: Any, least: int, most: int) -> int:
    """The whole number, numpy's as Python's; refuses what is none or lies outside least .. most, both included."""
    try:
        number = operator.index(value)
    except TypeError:
        refuse(key, "must be a whole number", value)
    if isinstance(value, bool):
        refuse(key, "must be a whole number", value)
    if number < least:
        refuse(key, f"must be at least {least}", number)
    if number > most:
        refuse(key, f"must be at most {most}", number)
    return number


def is_number(value: object) -> bool:
    """Whether a value is a number and no truth value, which Python counts as one."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def fraction(key: str, value: float) -> None:
    """Refuse what is no number from 0 to 1."""
    if not is_number(value) or not 0 <= value <= 1:
        refuse(key, "must be a fraction from 0 to 1", value)


def local(key: str, path: object, rule: str = "must name a folder") -> str:
    """The path as a text; refuses what is none.

    A URI is refused too: taken for a path, `s3://bucket/x` would be a folder of that name here.
    """
    name = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(name, str) or not name:
        refuse(key, rule, path)
    if "\0" in name:
        refuse(key, "must not contain the character NUL, which no path has", name)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name):
        refuse(key, "must be a path on this machine (mount or copy what lies elsewhere)", name)
    return name
