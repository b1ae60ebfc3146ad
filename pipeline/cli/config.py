"""One run's complete config: the sections of `settings.py`, and those that only the command line has."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from pipeline.rules import (
    MAX_COUNT,
    check_choice,
    check_list,
    check_path,
    check_paths,
    check_range,
    check_seconds,
    check_windows,
    conflict,
    reject,
)
from pipeline.settings import (
    MAX_DIM,
    MAX_EPOCH,
    SHUFFLES,
    CacheConfig,
    CorpusConfig,
    EmbeddingConfig,
    ExecutorConfig,
    LoaderConfig,
    Section,
    ShardsConfig,
    SplitConfig,
    TokenizerConfig,
    WindowConfig,
    checked,
    choice,
    number,
)

STAGES = ("plan", "write", "verify", "load", "show", "prove", "report")


@dataclass(kw_only=True, slots=True)
class SweepConfig(Section):
    """What concerns many runs together.

    Args:
        bad_points: `fail` or `skip` points whose values conflict with each other.
        path: a sweep's folder, or a list of several, for the stage `report`.

    """

    section: ClassVar[str] = "sweep"

    bad_points: str = choice("fail", "skip")
    path: Any = checked(None, check_paths)  # noqa: RUF009 - it makes a field


@dataclass(kw_only=True, slots=True)
class ProgressConfig(Section):
    """How long stages report their progress.

    Args:
        every: seconds between two lines, where standard error is no terminal and in the run's log file.

    """

    section: ClassVar[str] = "progress"

    every: float = checked(30.0, check_seconds)


@dataclass(kw_only=True, slots=True)
class ShowConfig(Section):
    """What the stage `show` shows.

    Args:
        window: the number of a window of `loader.split`; several, as a list, are shown aligned by their place in the
            text.
        step: the batch of this step instead, in the order that `loader` describes.
        epoch: of the step.
        rank: of the step.
        world_size: of the step.
        html: write a page to this file instead of printing.

    """

    section: ClassVar[str] = "show"

    window: Any = checked(0, check_windows)  # noqa: RUF009 - it makes a field
    step: int | None = number(None, least=0, most=MAX_COUNT)
    epoch: int = number(0, least=0, most=MAX_EPOCH)
    rank: int = number(0, least=0, most=MAX_DIM)
    world_size: int = number(1, least=1, most=MAX_DIM)
    html: str | None = checked(None, check_path, "must name a file")

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        if self.rank >= self.world_size:
            conflict("show.rank", f"must be below show.world_size={self.world_size}", self.rank)

    @property
    def windows(self) -> list[int]:
        """The numbers in `window`, be it one or several."""
        return self.window if isinstance(self.window, list) else [self.window]


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

    shuffles: list[str] | None = checked(None, check_list, check_choice, SHUFFLES)  # noqa: RUF009 - it makes a field
    epoch: int = number(0, least=0, most=MAX_EPOCH)
    world_sizes: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8],
        metadata={"check": partial(check_list, one=check_range, least=1, most=MAX_DIM)},
    )
    stops: int = number(5, least=1, most=MAX_DIM)


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
    progress: ProgressConfig = field(default_factory=ProgressConfig)
    show: ShowConfig = field(default_factory=ShowConfig)
    prove: ProveConfig = field(default_factory=ProveConfig)

    def __post_init__(self) -> None:
        self.stages = [self.stages] if isinstance(self.stages, str) else self.stages
        if not isinstance(self.stages, list) or not self.stages:
            reject("stages", f"must name at least one of {', '.join(STAGES)}", self.stages)
        if self.executor.part is not None and self.stages != ["write"]:
            rule = "a part of an array job only writes: set stages=write"
            conflict("executor.part", rule, self.executor.part)
        if "report" in self.stages and not self.sweep.path:
            reject("sweep.path", "the stage report needs the folder of a sweep", self.sweep.path)
        for stage in self.stages:
            check_choice("stages", stage, STAGES)
        if (
            {"write", "load"} <= set(self.stages)
            and self.loader.split == "validation"
            and not self.split.validation
            and self.loader.sources is None
        ):
            rule = "there is no validation split, because split.validation is 0"
            conflict("loader.split", rule, self.loader.split)

    @property
    def shards_path(self) -> str:
        """The data set's folder."""
        if self.shards.path is None:
            reject("shards.path", "must name a folder", self.shards.path)
        return self.shards.path
