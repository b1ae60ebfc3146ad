"""The config's sections: one dataclass each, which are also the arguments of the Python API.

The command line fills them from what Hydra composed (`cli/compose.py`); Python users pass them to `write_shards` and
`plan_shards`. Each field has its default and its rule in one place. A value is checked when its section is made, so
both ways refuse the same values in the same words: the key's full path, the rule, the value and, for a misspelled
name, the closest valid one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import json
import operator
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

STAGES = ("plan", "write", "verify", "load", "show", "prove", "report")
CORPORA = ("python_docs", "the_verdict", "text", "jsonl", "parquet", "huggingface")
TOKENIZERS = ("gpt2", "r50k_base", "cl100k_base", "o200k_base", "tiktoken_file", "huggingface", "bytes")
PACKAGED = ("gpt2", "r50k_base", "cl100k_base", "o200k_base", "bytes")  # their names alone say which vocabulary
ENGINES = ("auto", "tiktoken", "gigatoken")
SPECIAL_TEXTS = ("literal", "control", "error")
SPLITS = ("train", "validation")
SCORES = ("all", "new")
TAILS = ("drop", "pad")
DOCUMENTS = ("join", "separate")
ORDERS = ("sequential", "shuffled")
SHUFFLES = ("auto", "none", "full", "lanes")
POSITIONS = ("learned", "sinusoidal", "none")

MAX_COUNT = 2**62  # numbers of windows and documents
MAX_SEED = 2**63 - 1
MAX_EPOCH = 2**64 - 1  # of epochs and seeds of the loader
MAX_LENGTH = 2**24  # tokens of a window: its IDs alone are 64 MiB
MAX_DIM = 2**16
MAX_TOKEN_ID = 2**31 - 2  # IDs are stored as int32, and so is their number
MAX_WORKERS = 1024
MEMORY_BUDGET = 1 << 29  # 512 MiB: what `loader.shuffle=auto` needs fits, whatever the windows and the vocabulary
PATHS = "must be a file, folder or glob, or a list of them"


Function = TypeVar("Function", bound="Callable[..., Any]")


class ConfigError(ValueError):
    """A config that is refused before any work starts, in one line with the key, the rule and the value."""


class ConflictError(ConfigError):
    """Values that are each valid but conflict with each other, as points of a sweep over both may."""


class StrideError(ConflictError):
    """A stride above `max_length`, which loses tokens."""


def strip_secrets(url: str) -> str:
    """Return a URL without user name, password, query and fragment."""
    scheme, _, rest = url.partition("://")
    head = re.split(r"[?#]", rest, maxsplit=1)[0]
    first = head.partition("/")[0]
    is_login = "@" in first or re.search(r":(?!\d*$)", first) is not None  # a password may contain / ? and #
    if is_login and "@" in rest:
        rest = rest.rpartition("@")[2] if "@" not in first else f"{first.rpartition('@')[2]}{rest[len(first) :]}"
    return f"{scheme}://{re.split(r'[?#]', rest, maxsplit=1)[0]}"


def hide_secrets(text: str) -> str:
    """Strip the secrets of all URLs in a text."""
    return re.sub(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]+", lambda found: strip_secrets(found[0]), text)


def shorten(text: str, limit: int = 600) -> str:
    """Cut a long text in the middle."""
    return text if len(text) <= limit else f"{text[: limit // 2 - 3]} ... {text[-(limit // 2 - 2) :]}"


def closest(name: str, valid: Iterable[str]) -> str:
    """Suggest the valid name that is most like a given one: 'did you mean ...?', or nothing if none is close."""
    names = list(valid)
    near = [one for one in names if name and one.startswith(name)] or difflib.get_close_matches(name, names, 1, 0.6)
    return f"did you mean {near[0]!r}?" if near else ""


def names_arguments(function: Function) -> Function:
    """Let a public call name the closest argument when it is given one that it does not have."""
    valid = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        for name in options:
            if name not in valid:
                owner = function.__qualname__.removesuffix(".__init__")
                raise TypeError(
                    f"{owner}: no argument {name!r}; {closest(name, valid) or 'it has ' + ', '.join(valid)}"
                )
        return function(*arguments, **options)

    return cast("Function", call)


def reject(key: str, rule: str, value: object) -> NoReturn:
    """Refuse a value that breaks a rule."""
    raise ConfigError(f"{key}: {rule}; got {_show(value)}")


def conflict(key: str, rule: str, value: object) -> NoReturn:
    """Refuse a value that another key forbids."""
    raise ConflictError(f"{key}: {rule}; got {_show(value)}")


def _show(value: object) -> str:
    return shorten(hide_secrets(repr(value)).replace("\n", " "), 200)  # the repr of an array has line feeds


def check_bool(key: str, value: object) -> bool:
    """Refuse anything but true and false: a text such as "false" is true in Python."""
    if not isinstance(value, bool):
        reject(key, "must be true or false", value)
    return value


def check_choice(key: str, value: object, valid: Iterable[str]) -> str:
    """Refuse a value that is not one of the valid ones."""
    if not isinstance(value, str) or value not in valid:
        hint = closest(value, valid) if isinstance(value, str) else ""
        reject(key, f"must be one of {', '.join(valid)}{f' ({hint})' if hint else ''}", value)
    return value


def check_text(key: str, value: object, *, empty: bool = True) -> str:
    """Refuse anything but text; also the empty one unless `empty`."""
    if not isinstance(value, str):
        reject(key, "must be text", value)
    if not value and not empty:
        reject(key, "must not be empty", value)
    return value


def check_range(key: str, value: Any, least: int, most: int) -> int:
    """Return a whole number (numpy's becomes Python's); refuse anything outside least .. most, both included."""
    if isinstance(value, bool) or getattr(getattr(value, "dtype", None), "kind", "") == "b":  # or numpy's
        reject(key, "must be a whole number", value)
    try:
        number = operator.index(value)
    except TypeError:
        reject(key, "must be a whole number", value)
    if number < least:
        reject(key, f"must be at least {least}", number)
    if number > most:
        reject(key, f"must be at most {most}", number)
    return number


def check_batch_size(key: str, value: Any) -> int | str:
    """Return a number of windows, or `all`, which means the whole split in one batch."""
    if value == "all":
        return "all"
    if isinstance(value, bool) or not hasattr(value, "__index__") or not 1 <= value <= MAX_COUNT:
        reject(key, "must be a whole number of at least 1, or 'all'", value)
    return operator.index(value)


def check_fraction(key: str, value: float, *, below_1: bool = False) -> float:
    """Refuse anything but a number from 0 to 1, which itself is allowed unless `below_1`."""
    if not is_number(value) or not 0 <= value <= 1 or (below_1 and value == 1):
        reject(key, f"must be a fraction from 0 to {'below ' * below_1}1", value)
    return float(value)


def check_path(key: str, path: object, rule: str = "must name a folder") -> str:
    """Return a path as text; refuse anything else, and URIs: `s3://bucket/x` would be a local folder of that name."""
    name = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(name, str) or not name:
        reject(key, rule, path)
    if "\0" in name:
        reject(key, "must not contain the character NUL, which no path has", name)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name):
        reject(key, "must be a path on this machine (mount or copy data that is elsewhere)", name)
    return name


def check_paths(key: str, path: object) -> str | list[str]:
    """Return a path as text or several as a list of texts; refuse anything else."""
    if isinstance(path, str | os.PathLike):
        return check_path(key, path, PATHS)
    paths = list(path) if hasattr(path, "__iter__") else [path]
    if not paths or not all(isinstance(one, str | os.PathLike) for one in paths):
        has_number = not isinstance(path, bytes) and any(map(is_number, paths))
        hint = " (a name that is a number needs quotes)" if has_number else ""
        reject(key, PATHS + hint, path)
    return [check_path(key, one, PATHS) for one in paths]


def check_list(key: str, values: object, one: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
    """Check each value of a list, which must not be empty."""
    if not isinstance(values, list | tuple) or not values:
        reject(key, "must be a list of at least one value", values)
    return [one(key, value, *arguments, **options) for value in values]


def check_token(key: str, value: object) -> str | int:
    """Return a token's name or ID; refuse anything else."""
    if isinstance(value, str):
        return check_text(key, value, empty=False)
    if not is_number(value) and not hasattr(value, "__index__"):
        reject(key, "must be a token's name or ID", value)
    return check_range(key, value, 0, MAX_TOKEN_ID)


def check_special_tokens(key: str, value: object) -> dict[str, int]:
    """Return a map of names to different IDs; refuse anything else. Text is JSON: Hydra's maps take few names."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if not isinstance(value, Mapping) or not value:
        reject(key, "must map names to IDs, such as {'<|endoftext|>': 50256}", value)
    tokens = {
        check_text(key, name, empty=False): check_range(f"{key}.{name}", token, 0, MAX_TOKEN_ID)
        for name, token in value.items()
    }
    if len(set(tokens.values())) < len(tokens):
        reject(key, "must give each name an ID of its own", value)
    for name in tokens:
        if longer := next((other for other in tokens if other != name and other.startswith(name)), None):
            reject(key, f"must not have a name that another one, {longer!r}, starts with", name)
    return tokens


def is_number(value: object) -> bool:
    """Tell whether a value is a number; true and false, which Python counts as numbers, are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _checked(default: Any, check: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return field(default=default, metadata={"check": lambda key, value: check(key, value, *arguments, **options)})


def _choice(*valid: str) -> Any:
    """Declare a field that takes one of some names; the first is the default."""
    return _checked(valid[0], check_choice, valid)


_number = partial(_checked, check=check_range)


@dataclass(kw_only=True, slots=True)
class Section:
    """What all sections share: each field is checked by its own rule, and None is left alone."""

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            value, check = getattr(self, one.name), one.metadata.get("check")
            if check is not None and (value is not None or one.default is not None):
                setattr(self, one.name, check(f"{self.section}.{one.name}", value))


@dataclass(kw_only=True, slots=True)
class CorpusConfig(Section):
    r"""Where the text comes from.

    Args:
        name: one of `CORPORA`.
        path: a file, folder, glob, or a list of them; for huggingface one folder or hub name.
        text_field: the field or column that holds the text, for jsonl, parquet and huggingface; a dotted path reaches
            nested ones.
        delimiter: for text, what separates the documents of a file, such as `<|endoftext|>`. `\n` means a line feed.
            None means one document per file.
        subset: for huggingface, the configuration of the data set.
        part: for huggingface, the part of the data set.
        url: for the_verdict, where to fetch the text.
        sha256: for the_verdict, the hash of the text.
        on_bad: `quarantine` leaves out and lists a document that cannot be used; `raise` stops.
        max_bad_fraction: stop if more than this fraction of the documents is rejected.
        max_document_bytes: reject longer documents; None means 64 MiB, and no limit for text files that can be read
            in segments.

    """

    section: ClassVar[str] = "corpus"

    name: str = _choice(*CORPORA)
    path: Any = _checked(None, check_paths)  # noqa: RUF009 - it makes a field
    text_field: str = _checked("text", check_text, empty=False)
    delimiter: str | None = _checked(None, check_text, empty=False)
    subset: str | None = _checked(None, check_text)
    part: str = _checked("train", check_text, empty=False)
    url: str | None = _checked(None, check_text)
    sha256: str | None = _checked(None, check_text)
    on_bad: str = _choice("quarantine", "raise")
    max_bad_fraction: float = _checked(0.01, check_fraction)
    max_document_bytes: int | None = _checked(None, check_range, 1, MAX_COUNT)

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        if self.name == "python_docs" and self.path is not None:
            conflict(
                "corpus.path", "corpus=python_docs is built in and takes no path; use corpus=text for files", self.path
            )
        if self.name in ("text", "jsonl", "parquet") and self.path is None:
            conflict("corpus.path", f"corpus={self.name} needs a file, a folder, a glob, or a list of them", self.path)
        if self.delimiter is not None:
            if self.name != "text":
                conflict("corpus.delimiter", f"is for corpus=text, not {self.name}", self.delimiter)
            self.delimiter = self.delimiter.replace("\\n", "\n")
        if self.name == "huggingface" and len(self.paths) != 1:
            conflict("corpus.path", "corpus=huggingface needs one folder or hub name", self.path)
        if self.name == "the_verdict" and len(self.paths) > 1:
            conflict("corpus.path", "corpus=the_verdict is a single file", self.path)

    @property
    def paths(self) -> list[str]:
        """`path` as a list, empty if it is None."""
        return self.path if isinstance(self.path, list) else [] if self.path is None else [self.path]


@dataclass(kw_only=True, slots=True)
class TokenizerConfig(Section):
    """How text becomes token IDs.

    Args:
        name: one of `TOKENIZERS`.
        path: for tiktoken_file a rank file; for huggingface a tokenizer.json, a folder with one, or a hub name.
        pattern: for tiktoken_file, how text is cut before merging: a published encoding's name or a regular expression.
        engine: the library that encodes; it never changes the IDs.
        special_text: what a control token's name inside the text means: `literal` text, the `control` token, or an
            `error`.
        audit: fraction of the documents that a second engine re-encodes, to compare the IDs.
        eos: the token after each document, by name or ID; `auto` is the vocabulary's own end-of-text token.
        bos: a token before each document, by name or ID; None adds none.
        special_tokens: for rank files, which name no special tokens: a map of names to IDs.

    """

    section: ClassVar[str] = "tokenizer"

    name: str = _choice(*TOKENIZERS)
    path: str | None = _checked(None, check_path, "must be a file, a folder or a hub name")
    pattern: str | None = _checked(None, check_text)
    engine: str = _choice(*ENGINES)
    special_text: str = _choice(*SPECIAL_TEXTS)
    audit: float = _checked(0.001, check_fraction)
    eos: Any = _checked("auto", check_token)  # noqa: RUF009 - it makes a field
    bos: Any = _checked(None, check_token)  # noqa: RUF009 - it makes a field
    special_tokens: Any = _checked(None, check_special_tokens)  # noqa: RUF009 - it makes a field

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        has_file = self.name in ("tiktoken_file", "huggingface")
        if has_file and self.path is None:
            conflict("tokenizer.path", f"tokenizer={self.name} needs the path of its vocabulary", self.path)
        if not has_file and self.path is not None:
            conflict("tokenizer.path", f"tokenizer={self.name} has its own vocabulary and takes no path", self.path)
        if self.name != "tiktoken_file" and self.pattern is not None:
            conflict("tokenizer.pattern", f"is for tokenizer=tiktoken_file, not {self.name}", self.pattern)
        if self.name in ("huggingface", "bytes"):
            if self.engine != "auto":
                conflict("tokenizer.engine", f"tokenizer={self.name} is its own engine: leave it auto", self.engine)
            if self.special_tokens is not None:
                rule = f"is for rank files; tokenizer={self.name} has its own: leave it out"
                conflict("tokenizer.special_tokens", rule, self.special_tokens)


@dataclass(kw_only=True, slots=True)
class WindowConfig(Section):
    """How token IDs become windows.

    Args:
        max_length: tokens per window.
        stride: tokens between the starts of two windows; `max_length` if left out. Below it windows overlap.
        allow_gaps: accept a stride above `max_length`, which skips tokens.
        tail: `drop` or `pad` the last tokens, too few for a window.
        documents: `join` lets windows cross documents; `separate` does not.
        score: for loading, `new` turns targets that an earlier window has scored into -100.

    """

    section: ClassVar[str] = "window"

    max_length: int = _number(256, least=1, most=MAX_LENGTH)
    stride: int | None = _number(None, least=1, most=MAX_COUNT)
    allow_gaps: bool = _checked(False, check_bool)
    tail: str = _choice(*TAILS)
    documents: str = _choice(*DOCUMENTS)
    score: str = _choice(*SCORES)

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        if self.stride is None:
            self.stride = self.max_length
        if self.stride > self.max_length and not self.allow_gaps:
            rule = f"must be at most window.max_length={self.max_length}, or tokens between two windows would be lost"
            raise StrideError(f"window.stride: {rule} (window.allow_gaps=true allows it); got {self.stride}")

    @property
    def stride_tokens(self) -> int:
        """`stride` as a number: `max_length` if it was left out."""
        return self.max_length if self.stride is None else self.stride


@dataclass(kw_only=True, slots=True)
class SplitConfig(Section):
    """What is held out before windows are cut.

    Args:
        validation: fraction of the documents in the validation split.
        seed: picks which documents.

    """

    section: ClassVar[str] = "split"

    validation: float = _checked(0.0, check_fraction, below_1=True)
    seed: int = _number(0, least=-MAX_SEED, most=MAX_SEED)


@dataclass(kw_only=True, slots=True)
class ShardsConfig(Section):
    """Where windows are written, and in what layout.

    Args:
        path: the data set's folder. `write_shards` has its own argument for it.
        windows_per_shard: None means by size, see `shards/layout.py`.
        windows_per_group: windows of a row group; None means by size.
        compression: the codec of the Parquet pages.
        order: `sequential` as in the text, or `shuffled`, an exact shuffle of all windows of a split.
        seed: of a shuffled order.
        overwrite: replace another data set in the folder.

    """

    section: ClassVar[str] = "shards"

    path: str | None = _checked(None, check_path)
    windows_per_shard: int | None = _number(None, least=1, most=MAX_COUNT)
    windows_per_group: int | None = _number(None, least=1, most=MAX_COUNT)
    compression: str = _choice("zstd", "lz4", "snappy", "none")
    order: str = _choice(*ORDERS)
    seed: int = _number(0, least=0, most=MAX_SEED)
    overwrite: bool = _checked(False, check_bool)

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        if self.windows_per_shard and self.windows_per_group and self.windows_per_shard % self.windows_per_group:
            rule = f"must be a multiple of windows_per_group={self.windows_per_group}, or row groups would be cut"
            conflict("shards.windows_per_shard", rule, self.windows_per_shard)


@dataclass(kw_only=True, slots=True)
class LoaderConfig(Section):
    """How windows become batches; `ShardLoader` says what each value means. Here `batch_size` may also be `all`."""

    section: ClassVar[str] = "loader"

    split: str = _choice(*SPLITS)
    batch_size: int | str = _checked(8, check_batch_size)
    shuffle: str = _choice(*SHUFFLES)
    seed: int = _number(0, least=0, most=MAX_EPOCH)
    lanes: int = _number(64, least=1, most=MAX_DIM)
    drop_last: bool = _checked(True, check_bool)
    document_ids: bool = _checked(False, check_bool)
    threads: int | None = _number(None, least=1, most=MAX_WORKERS)
    memory_budget: int = _number(MEMORY_BUDGET, least=1, most=MAX_COUNT)


@dataclass(kw_only=True, slots=True)
class EmbeddingConfig(Section):
    """The layer that turns token IDs into vectors; see `TokenEmbedding`."""

    section: ClassVar[str] = "embedding"

    dim: int = _number(256, least=1, most=MAX_DIM)
    positions: str = _choice(*POSITIONS)
    seed: int = _number(0, least=0, most=MAX_SEED)


@dataclass(kw_only=True, slots=True)
class ExecutorConfig(Section):
    """Where the write stage's tasks run.

    Args:
        name: `local` runs threads of this process.
        workers: how many tasks run at once; None means one for each core.

    """

    section: ClassVar[str] = "executor"

    name: str = _choice("local")
    workers: int | None = _number(None, least=1, most=MAX_WORKERS)

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        if self.workers is None:
            self.workers = self.num_workers

    @property
    def num_workers(self) -> int:
        """`workers` as a number: the cores that this process may use if it was left out."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cores if self.workers is None else self.workers


@dataclass(kw_only=True, slots=True)
class CacheConfig(Section):
    """The folder of token stores and downloads, shared by runs and sweeps."""

    section: ClassVar[str] = "cache"

    path: str = _checked("outputs/cache", check_path)


@dataclass(kw_only=True, slots=True)
class SweepConfig(Section):
    """What concerns many runs together.

    Args:
        bad_points: `fail` or `skip` points whose values conflict with each other.
        path: a sweep's folder, or a list of several, for the stage `report`.

    """

    section: ClassVar[str] = "sweep"

    bad_points: str = _choice("fail", "skip")
    path: Any = _checked(None, check_paths)  # noqa: RUF009 - it makes a field


@dataclass(kw_only=True, slots=True)
class ShowConfig(Section):
    """What the stage `show` shows.

    Args:
        window: the number of a window of `loader.split`.
        step: the batch of this step instead, in the order that `loader` describes.
        epoch: of the step.
        rank: of the step.
        world_size: of the step.
        html: write a page to this file instead of printing.

    """

    section: ClassVar[str] = "show"

    window: int = _number(0, least=0, most=MAX_COUNT)
    step: int | None = _number(None, least=0, most=MAX_COUNT)
    epoch: int = _number(0, least=0, most=MAX_EPOCH)
    rank: int = _number(0, least=0, most=MAX_DIM)
    world_size: int = _number(1, least=1, most=MAX_DIM)
    html: str | None = _checked(None, check_path, "must name a file")

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        if self.rank >= self.world_size:
            conflict("show.rank", f"must be below show.world_size={self.world_size}", self.rank)


@dataclass(kw_only=True, slots=True)
class ProveConfig(Section):
    """What the stage `prove` tries; seed, lanes and split are the loader's.

    Args:
        shuffles: the orders; None means those that `loader.memory_budget` allows.
        epoch: the epoch that is read.
        world_sizes: numbers of ranks.
        stops: how many positions of the epoch to resume at.

    """

    section: ClassVar[str] = "prove"

    shuffles: list[str] | None = _checked(None, check_list, check_choice, SHUFFLES)  # noqa: RUF009 - it makes a field
    epoch: int = _number(0, least=0, most=MAX_EPOCH)
    world_sizes: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8],
        metadata={"check": partial(check_list, one=check_range, least=1, most=MAX_DIM)},
    )
    stops: int = _number(5, least=1, most=MAX_DIM)


@dataclass(kw_only=True, slots=True)
class Config:
    """One run."""

    stages: Any = field(default_factory=lambda: ["write", "load"])
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    shards: ShardsConfig = field(default_factory=ShardsConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    show: ShowConfig = field(default_factory=ShowConfig)
    prove: ProveConfig = field(default_factory=ProveConfig)

    def __post_init__(self) -> None:
        self.stages = [self.stages] if isinstance(self.stages, str) else self.stages
        if not isinstance(self.stages, list) or not self.stages:
            reject("stages", f"must name at least one of {', '.join(STAGES)}", self.stages)
        if "report" in self.stages and not self.sweep.path:
            reject("sweep.path", "the stage report needs the folder of a sweep", self.sweep.path)
        for stage in self.stages:
            check_choice("stages", stage, STAGES)
        if {"write", "load"} <= set(self.stages) and self.loader.split == "validation" and not self.split.validation:
            rule = "there is no validation split, because split.validation is 0"
            conflict("loader.split", rule, self.loader.split)

    @property
    def shards_path(self) -> str:
        """The data set's folder."""
        if self.shards.path is None:
            reject("shards.path", "must name a folder", self.shards.path)
        return self.shards.path


def as_corpus(corpus: CorpusConfig | str | Sequence[str]) -> tuple[CorpusConfig, list[str] | None]:
    """Return the section of a corpus that is given as a section, a name, or texts; of the latter also the texts."""
    if isinstance(corpus, CorpusConfig):
        return corpus, None
    if isinstance(corpus, str):
        return CorpusConfig(name=corpus), None
    texts: list[Any] = list(corpus) if hasattr(corpus, "__iter__") else [corpus]
    wrong = next((at for at, text in enumerate(texts) if not isinstance(text, str)), None)
    if not texts or wrong is not None:
        shown = texts[wrong] if wrong is not None else corpus
        reject("corpus", "must be a CorpusConfig, a corpus's name, or a list of texts", shown)
    return CorpusConfig(), texts


def as_tokenizer(tokenizer: TokenizerConfig | str) -> TokenizerConfig:
    """Return the section of a tokenizer that is given as a section or by its name."""
    return tokenizer if isinstance(tokenizer, TokenizerConfig) else TokenizerConfig(name=tokenizer)
