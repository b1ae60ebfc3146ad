"""The config's sections: one dataclass each, which are also the arguments of the Python API.

The command line fills them from what Hydra composed (`cli/compose.py`); Python users pass them to `write_shards` and
`plan_shards`. Each field has its default and its rule in one place. A value is checked when its section is made, so
both ways refuse the same values in the same words: the key's full path, the rule, the value and, for a misspelled
name, the closest valid one.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.rules import (
    MAX_COUNT,
    StrideError,
    check_batch_size,
    check_bool,
    check_choice,
    check_exclude,
    check_fraction,
    check_limit,
    check_part,
    check_path,
    check_paths,
    check_place,
    check_range,
    check_sources,
    check_special_tokens,
    check_text,
    check_token,
    conflict,
    has_scheme,
    reject,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CORPORA = ("python_docs", "the_verdict", "text", "jsonl", "parquet", "huggingface")
TOKENIZERS = ("gpt2", "r50k_base", "cl100k_base", "o200k_base", "tiktoken_file", "huggingface", "bytes")
PACKAGED = ("gpt2", "r50k_base", "cl100k_base", "o200k_base", "bytes")  # their names alone say which vocabulary
ENGINES = ("auto", "tiktoken", "gigatoken")
SPECIAL_TEXTS = ("literal", "control", "error")
SPLITS = ("train", "validation")
SCORES = ("all", "new")
TAILS = ("drop", "pad")
DOCUMENTS = ("join", "separate", "pack")
ORDERS = ("sequential", "shuffled")
SHUFFLES = ("auto", "none", "full", "lanes")
POSITIONS = ("learned", "sinusoidal", "none")
EXECUTORS = ("local", "ray")

MAX_SEED = 2**63 - 1
MAX_EPOCH = 2**64 - 1  # of epochs and seeds of the loader
MAX_LENGTH = 2**24  # tokens of a window: its IDs alone are 64 MiB
MAX_DIM = 2**16
MAX_WORKERS = 1024
MEMORY_BUDGET = 1 << 29  # 512 MiB: what `loader.shuffle=auto` needs fits, whatever the windows and the vocabulary
CACHE_LIMIT = 1 << 36  # 64 GiB of row groups on a local disk


def checked(default: Any, check: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Declare a field that a function of `rules.py` checks."""
    return field(default=default, metadata={"check": lambda key, value: check(key, value, *arguments, **options)})


def choice(*valid: str) -> Any:
    """Declare a field that takes one of some names; the first is the default."""
    return checked(valid[0], check_choice, valid)


number = partial(checked, check=check_range)


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
        path: a file, folder, glob, URI (`s3://`, `gs://`, `az://`), or a list of them; for huggingface one folder or
            hub name.
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
        trust_mtime: for text and jsonl, use the hashes of an earlier run for files whose names, sizes and times have
            not changed, instead of reading them.

    """

    section: ClassVar[str] = "corpus"

    name: str = choice(*CORPORA)
    path: Any = checked(None, check_paths, partial(check_place, glob=True))  # noqa: RUF009 - it makes a field
    text_field: str = checked("text", check_text, empty=False)
    delimiter: str | None = checked(None, check_text, empty=False)
    subset: str | None = checked(None, check_text)
    part: str = checked("train", check_text, empty=False)
    url: str | None = checked(None, check_text)
    sha256: str | None = checked(None, check_text)
    on_bad: str = choice("quarantine", "raise")
    max_bad_fraction: float = checked(0.01, check_fraction)
    max_document_bytes: int | None = checked(None, check_range, 1, MAX_COUNT)
    trust_mtime: bool = checked(False, check_bool)

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
        if self.name in ("the_verdict", "huggingface") and any(map(has_scheme, self.paths)):
            conflict("corpus.path", f"corpus={self.name} reads no URI of an object store", self.path)
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

    name: str = choice(*TOKENIZERS)
    path: str | None = checked(None, check_path, "must be a file, a folder or a hub name")
    pattern: str | None = checked(None, check_text)
    engine: str = choice(*ENGINES)
    special_text: str = choice(*SPECIAL_TEXTS)
    audit: float = checked(0.001, check_fraction)
    eos: Any = checked("auto", check_token)  # noqa: RUF009 - it makes a field
    bos: Any = checked(None, check_token)  # noqa: RUF009 - it makes a field
    special_tokens: Any = checked(None, check_special_tokens)  # noqa: RUF009 - it makes a field

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
        tail: `drop` or `pad` the last tokens, too few for a window. With `documents=pack` it is always `pad`.
        documents: `join` lets windows cross documents; `separate` does not; `pack` puts several whole documents into a
            window, by best fit (`pipeline/packing.py`), and has no stride.
        score: for loading, `new` turns targets that an earlier window has scored into -100.

    """

    section: ClassVar[str] = "window"

    max_length: int = number(256, least=1, most=MAX_LENGTH)
    stride: int | None = number(None, least=1, most=MAX_COUNT)
    allow_gaps: bool = checked(False, check_bool)
    tail: str = choice(*TAILS)
    documents: str = choice(*DOCUMENTS)
    score: str = choice(*SCORES)

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        if self.stride is None:
            self.stride = self.max_length
        if self.documents == "pack":
            self.tail = "pad"
            if self.stride != self.max_length:
                rule = f"has no meaning with window.documents=pack: leave it out, or make it {self.max_length}"
                conflict("window.stride", rule, self.stride)
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

    validation: float = checked(0.0, check_fraction, below_1=True)
    seed: int = number(0, least=-MAX_SEED, most=MAX_SEED)


@dataclass(kw_only=True, slots=True)
class ShardsConfig(Section):
    """Where windows are written, and in what layout.

    Args:
        path: the data set's folder or URI. `write_shards` has its own argument for it.
        windows_per_shard: at most; rounded down to a multiple of a row group. None means by size, see
            `shards/layout.py`.
        windows_per_group: windows of a row group; None means by size.
        compression: the codec of the Parquet pages.
        order: `sequential` as in the text, or `shuffled`, an exact shuffle of all windows of a split.
        seed: of a shuffled order.
        documents: write the documents' table of each split, which `locate` needs.
        overwrite: replace another data set in the folder.

    """

    section: ClassVar[str] = "shards"

    path: str | None = checked(None, check_place)
    windows_per_shard: int | None = number(None, least=1, most=MAX_COUNT)
    windows_per_group: int | None = number(None, least=1, most=MAX_COUNT)
    compression: str = choice("zstd", "lz4", "snappy", "none")
    order: str = choice(*ORDERS)
    seed: int = number(0, least=0, most=MAX_SEED)
    documents: bool = checked(True, check_bool)
    overwrite: bool = checked(False, check_bool)

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        if self.windows_per_shard and self.windows_per_group and self.windows_per_shard % self.windows_per_group:
            rule = f"must be a multiple of windows_per_group={self.windows_per_group}, or row groups would be cut"
            conflict("shards.windows_per_shard", rule, self.windows_per_shard)


@dataclass(kw_only=True, slots=True)
class LoaderConfig(Section):
    """How windows become batches; `ShardLoader` says what each value means. Here `batch_size` may also be `all`.

    Args:
        sources: of a mixture, each with `path` and `weight` (a number, or a schedule `[[0, 0.9], [10000, 0.5]]`), which
            the stages load, show and prove read instead of the folder of `shards.path`.

    """

    section: ClassVar[str] = "loader"

    split: str = choice(*SPLITS)
    batch_size: int | str = checked(8, check_batch_size)
    shuffle: str = choice(*SHUFFLES)
    seed: int = number(0, least=0, most=MAX_EPOCH)
    lanes: int = number(64, least=1, most=MAX_DIM)
    limit: Any = checked(None, check_limit)  # noqa: RUF009 - it makes a field
    exclude: Any = checked(None, check_exclude)  # noqa: RUF009 - it makes a field
    drop_last: bool = checked(True, check_bool)
    step_size: int | None = number(None, least=1, most=MAX_COUNT)
    document_ids: bool = checked(False, check_bool)
    score_document_starts: bool = checked(True, check_bool)
    threads: int | None = number(None, least=1, most=MAX_WORKERS)
    memory_budget: int = number(MEMORY_BUDGET, least=1, most=MAX_COUNT)
    cache_dir: str | None = checked(None, check_path)
    cache_limit: int = number(CACHE_LIMIT, least=1, most=MAX_COUNT)
    on_bad: str = choice("raise", "fill")
    sources: Any = checked(None, check_sources)  # noqa: RUF009 - it makes a field


@dataclass(kw_only=True, slots=True)
class EmbeddingConfig(Section):
    """The layer that turns token IDs into vectors; see `TokenEmbedding`."""

    section: ClassVar[str] = "embedding"

    dim: int = number(256, least=1, most=MAX_DIM)
    positions: str = choice(*POSITIONS)
    seed: int = number(0, least=0, most=MAX_SEED)


def count_cores() -> int:
    """Return how many cores this process may use: those of the machine, or fewer if it is bound to some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(kw_only=True, slots=True)
class ExecutorConfig(Section):
    """Where the write stage's tasks run.

    Args:
        name: `local` runs threads of this process, `ray` the workers of a Ray cluster.
        workers: how many tasks run at once; None means one for each core, of the cluster with `ray`.
        address: for ray, a running cluster's address; None means `RAY_ADDRESS` or else a new cluster on this machine.
        part: for local, which part of the tasks this process does: `3/16` is the fourth of sixteen, counted from 0.

    """

    section: ClassVar[str] = "executor"

    name: str = choice(*EXECUTORS)
    workers: int | None = number(None, least=1, most=MAX_WORKERS)
    address: str | None = checked(None, check_text, empty=False)
    part: str | None = checked(None, check_part)

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        if self.address is not None and self.name != "ray":
            conflict("executor.address", f"is for executor=ray, not {self.name}: leave it out", self.address)
        if self.part is not None and self.name == "ray":
            rule = "is for executor=local: a Ray cluster divides the tasks itself, so leave one of the two out"
            conflict("executor.part", rule, self.part)
        if self.workers is None and self.name == "local":
            self.workers = self.num_workers

    @property
    def num_workers(self) -> int:
        """Threads of this process: `workers` with `local` if it was given, else the cores that it may use."""
        return count_cores() if self.workers is None or self.name == "ray" else self.workers

    @property
    def has_all_cores(self) -> bool:
        """Whether this process may use all of its cores at any time."""
        return self.name == "local" and self.num_workers >= count_cores()

    @property
    def share(self) -> tuple[int, int]:
        """`part` as two numbers: which part, and of how many; the only one if it was left out."""
        part, _, parts = (self.part or "0/1").partition("/")
        return int(part), int(parts)


@dataclass(kw_only=True, slots=True)
class CacheConfig(Section):
    """The folder or URI of token stores, shared by runs and sweeps, and of downloads."""

    section: ClassVar[str] = "cache"

    path: str = checked("outputs/cache", check_place)


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
