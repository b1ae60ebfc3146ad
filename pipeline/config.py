"""The config's schema, its checks, and the way from a command line to plain dataclasses.

Hydra composes `conf/` under the schema below, and `read_config` turns the result into these dataclasses once. Below the
command line no code sees an omegaconf object. Every refusal is a `ConfigError` of one line: the key's full path, the
rule, the value and, where a name was meant, the closest valid one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

ORDERS = ("sequential", "shuffled")
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

        _one_of("corpus.name", self.name, CORPORA)
        _one_of("corpus.on_bad", self.on_bad, ("quarantine", "raise"))
        if self.max_document_bytes is not None:
            _at_least("corpus.max_document_bytes", self.max_document_bytes, 1)
        for key in ("text_field", "part"):
            if not getattr(self, key):
                _refuse(f"corpus.{key}", "must not be empty", getattr(self, key))
        if not 0 <= self.max_bad_fraction <= 1:
            _refuse("corpus.max_bad_fraction", "must be a fraction from 0 to 1", self.max_bad_fraction)
        paths = self.path if isinstance(self.path, list) else [self.path]
        if not all(path is None or (isinstance(path, str) and path) for path in paths) or paths == []:
            _refuse("corpus.path", "must be a file, folder or glob, or a list of them", self.path)
        if self.name in ("text", "jsonl", "parquet") and self.path is None:
            _refuse("corpus.path", f"corpus={self.name} needs a file, a folder, a glob, or a list of them", self.path)
        if self.name == "huggingface" and not isinstance(self.path, str):
            _refuse("corpus.path", "corpus=huggingface needs one folder or hub name", self.path)


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

        _one_of("tokenizer.name", self.name, NAMES)
        _one_of("tokenizer.engine", self.engine, ("auto", "tiktoken", "gigatoken"))
        _one_of("tokenizer.special_text", self.special_text, ("literal", "control", "error"))
        if not 0 <= self.audit <= 1:
            _refuse("tokenizer.audit", "must be a fraction from 0 to 1", self.audit)
        if self.name in ("tiktoken_file", "huggingface") and not self.path:
            _refuse("tokenizer.path", f"tokenizer={self.name} needs the path of its vocabulary", self.path)


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
        _at_least("window.max_length", self.max_length, 1)
        _at_least("window.stride", self.stride, 1)
        _one_of("window.tail", self.tail, ("drop", "pad"))
        _one_of("window.documents", self.documents, ("join", "separate"))
        _one_of("window.score", self.score, ("all", "new"))
        if self.stride > self.max_length and not self.allow_gaps:
            rule = f"must be at most window.max_length={self.max_length}, or tokens between two windows would be lost"
            raise SenselessError(f"window.stride: {rule} (window.allow_gaps=true allows it); got {self.stride}")


@dataclass(kw_only=True, slots=True)
class Split:
    """What is held out before windows are cut."""

    validation: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            _refuse("split.validation", "must be a fraction from 0 to below 1", self.validation)


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
        _one_of("shards.compression", self.compression, ("zstd", "lz4", "snappy", "none"))
        _one_of("shards.order", self.order, ORDERS)
        if not 0 <= self.seed < 2**63:
            _refuse("shards.seed", "must lie in 0 .. 2**63 - 1", self.seed)
        for key in ("windows_per_shard", "windows_per_group"):
            if getattr(self, key) is not None:
                _at_least(f"shards.{key}", getattr(self, key), 1)
        if not self.path:
            _refuse("shards.path", "must name a folder", self.path)


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
        _one_of("loader.split", self.split, ("train", "validation"))
        _one_of("loader.shuffle", self.shuffle, ("auto", "none", "full", "lanes"))
        _at_least("loader.lanes", self.lanes, 1)
        _at_least("loader.memory_budget", self.memory_budget, 1)
        if self.threads is not None:
            _at_least("loader.threads", self.threads, 1)
        if self.batch_size != "all" and (isinstance(self.batch_size, str) or self.batch_size < 1):
            _refuse("loader.batch_size", "must be a whole number of at least 1, or 'all'", self.batch_size)


@dataclass(kw_only=True, slots=True)
class Embedding:
    """The layer that turns token IDs into vectors."""

    dim: int = 256
    positions: str = "learned"
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("embedding.dim", self.dim, 1)
        _one_of("embedding.positions", self.positions, ("learned", "sinusoidal", "none"))


@dataclass(kw_only=True, slots=True)
class Executor:
    """Who runs the write stage's tasks."""

    name: str = "local"
    workers: int | None = None

    def __post_init__(self) -> None:
        _one_of("executor.name", self.name, ("local",))
        if self.workers is None:
            self.workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        _at_least("executor.workers", self.workers, 1)


@dataclass(kw_only=True, slots=True)
class Cache:
    """Where token stores and downloads are kept."""

    path: str = "outputs/cache"


@dataclass(kw_only=True, slots=True)
class Sweep:
    """What concerns many runs together."""

    bad_points: str = "fail"
    path: str | None = None

    def __post_init__(self) -> None:
        _one_of("sweep.bad_points", self.bad_points, ("fail", "skip"))


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
            _refuse("sweep.path", "the stage report needs the folder of a sweep", self.sweep.path)
        if not self.stages:
            _refuse("stages", f"must name at least one of {', '.join(STAGES)}", self.stages)
        for stage in self.stages:
            _one_of("stages", stage, STAGES)


def find_conf() -> Path:
    """The folder of the config groups: inside the installed package, else at the repository's root."""
    package = Path(__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def register_schema(kind: type[Config] = Config) -> None:
    """Make known to Hydra what `conf/` refers to: the schema, and the place of data sets that are given none."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    ConfigStore.instance().store(name="schema", node=kind)
    OmegaConf.register_new_resolver("shards_root", _shards_root, replace=True)


def _shards_root() -> str:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return f"{HydraConfig.get().runtime.output_dir}/shards"
    return "outputs/shards"


def read_config(composed: DictConfig, kind: type[Config] = Config) -> Config:
    """The composed config as plain dataclasses, every value checked; raises `ConfigError`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = set(schema_keys(kind))
    for key in _keys_of(OmegaConf.to_container(composed, resolve=False)):
        if key not in known:
            raise unknown_key(key, known)
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise one_line(error) from error
    assert isinstance(config, kind), "the schema stands first in the defaults list of conf/config.yaml"
    return config


def check_command_line(arguments: Sequence[str], *, kind: type[Config] = Config, config_name: str = "config") -> None:
    """Compose and check what a command line asks for, before Hydra makes a folder or a log for it.

    The values of a sweep are checked when their point runs: one bad point does not stop the others.

    Raises:
        ConfigError: a misspelt key (behind `+` too), an unknown choice, a wrong type or an impossible value.

    """
    from hydra import compose
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path, get_args_parser
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    given = get_args_parser().parse_args(list(arguments))
    if given.help or given.hydra_help or given.info or given.cfg or given.shell_completion:
        return
    folders = create_config_search_path(str(find_conf()))
    if given.config_dir:
        if not Path(given.config_dir).is_dir():
            raise ConfigError(f"--config-dir: no such folder; got {given.config_dir!r}")
        own = f"file://{Path(given.config_dir).resolve()}"
        folders.prepend("command-line", own, anchor=SearchPathQuery(provider="schema"))  # Hydra wants the schema last
    try:
        overrides = OverridesParser.create().parse_overrides(overrides=given.overrides)
        loader = Hydra.create_main_hydra2("stridemill", folders).config_loader
        for override in overrides:
            _check_override(override, loader, kind=kind, multirun=given.multirun)
        fixed = [
            override.input_line for override in overrides if override.input_line and not override.is_sweep_override()
        ]
        composed = compose(given.config_name or config_name, overrides=fixed)
        with contextlib.suppress(*[SenselessError] * given.multirun):  # the other value may be one of those swept
            read_config(composed, kind)
    except HydraException as error:
        raise one_line(error) from error
    finally:
        GlobalHydra.instance().clear()


def _check_override(override: Override, loader: ConfigLoader, *, kind: type[Config], multirun: bool) -> None:
    key = override.key_or_group
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return
    groups = [group for group in loader.list_groups("") if group != "hydra"]
    known = {*schema_keys(kind), *groups}
    if key not in known:
        raise unknown_key(key, known)
    if override.is_sweep_override() and not multirun:
        raise ConfigError(f"{key}: several values need -m, which runs each; got {override.input_line!r}")
    if key in groups and override.value() is not None:
        choices = override.sweep_string_iterator() if override.is_sweep_override() else [override.value()]
        for choice in choices:
            _one_of(key, str(choice), loader.get_group_options(key))


def schema_keys(schema: type[Config] = Config) -> Iterable[str]:
    """Every key of the schema by its full path, sections included: `window`, `window.stride`, ..."""
    for name, kind in get_type_hints(schema).items():
        yield name
        if dataclasses.is_dataclass(kind):
            yield from (f"{name}.{inner.name}" for inner in dataclasses.fields(kind))


def unknown_key(key: str, known: Iterable[str]) -> ConfigError:
    """The refusal of a key that the schema does not have: the closest one that it has, or all of the section."""
    section, _, name = key.rpartition(".")
    names = sorted(
        known_name for known_section, _, known_name in (k.rpartition(".") for k in known) if known_section == section
    )
    if not names:
        return ConfigError(f"{key}: no such key; {closest(key, known) or f'{section} has no keys below it'}")
    near = difflib.get_close_matches(name, names, n=1)
    prefix = f"{section}." if section else ""
    hint = (
        f"did you mean '{prefix}{near[0]}'?" if near else f"the keys are {', '.join(prefix + name for name in names)}"
    )
    return ConfigError(f"{key}: no such key; {hint}")


def closest(name: str, valid: Iterable[str]) -> str:
    """'did you mean ...?', or nothing when no valid name is near."""
    near = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else ""


def one_line(error: BaseException) -> ConfigError:
    """The innermost cause of Hydra's or omegaconf's refusal, in one line that starts with the key."""
    while error.__cause__ is not None:
        error = error.__cause__
    key = getattr(error, "full_key", None)
    lines = [line.strip() for line in str(error).splitlines()]
    message = "; ".join(
        line for line in lines if line and not line.startswith(("full_key", "reference_type", "object_type"))
    )
    return ConfigError(f"{key}: {message}" if key else message)


def _keys_of(tree: Any, prefix: str = "") -> Iterable[str]:
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _keys_of(value, f"{prefix}{name}.")


def _refuse(key: str, rule: str, value: object) -> None:
    raise ConfigError(f"{key}: {rule}; got {value!r}")


def _one_of(key: str, value: str, valid: Iterable[str]) -> None:
    if value not in valid:
        hint = closest(value, valid)
        _refuse(key, f"must be one of {', '.join(valid)}{f' ({hint})' if hint else ''}", value)


def _at_least(key: str, value: float, least: int) -> None:
    if not math.isfinite(value) or value < least:
        _refuse(key, f"must be at least {least}", value)
