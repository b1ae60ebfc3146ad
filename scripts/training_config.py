"""The config of the training jobs: the pipeline's, with the model, the training and the study added."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from pipeline.cli.config import Config
from pipeline.rules import ConfigError


@dataclass(kw_only=True, slots=True)
class Model:
    """A small GPT, whose width is embedding.dim, or the model that `build` makes."""

    layers: int = 2
    heads: int = 4
    build: str | None = None

    def __post_init__(self) -> None:
        for key in ("layers", "heads"):
            if getattr(self, key) < 1:
                raise ConfigError(f"model.{key}: must be at least 1; got {getattr(self, key)}")


@dataclass(kw_only=True, slots=True)
class Train:
    """How it is trained."""

    steps: int = 300
    learning_rate: float = 3e-3
    warmup: int = 20
    weight_decay: float = 0.1
    clip: float = 1.0
    validate_every: int = 50
    checkpoint_every: int = 100
    resume: str | None = None
    device: str = "auto"
    threads: int | None = 1
    bf16: bool = False
    compile: bool = False
    on_metrics: str | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for key in ("steps", "validate_every", "checkpoint_every", "threads"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ConfigError(f"train.{key}: must be at least 1; got {getattr(self, key)}")
        for key in ("learning_rate", "clip"):
            if not (math.isfinite(getattr(self, key)) and getattr(self, key) > 0):
                raise ConfigError(f"train.{key}: must be above 0; got {getattr(self, key)}")
        if self.warmup < 0:
            raise ConfigError(f"train.warmup: must be at least 0; got {self.warmup}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"train.device: must be auto, cpu, cuda or cuda:<number>; got {self.device!r}")


@dataclass(kw_only=True, slots=True)
class Study:
    """What the stride study varies."""

    strides: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    passes: int = 2
    evaluation_strides: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise ConfigError(f"study.passes: must be at least 1; got {self.passes}")
        if not self.seeds:
            raise ConfigError("study.seeds: must name at least one; got []")


@dataclass(kw_only=True, slots=True)
class TrainConfig(Config):
    """One training run."""

    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    study: Study = field(default_factory=Study)

    def __post_init__(self) -> None:
        Config.__post_init__(self)
        if self.embedding.dim % self.model.heads:
            raise ConfigError(f"model.heads: must divide embedding.dim={self.embedding.dim}; got {self.model.heads}")
        if self.split.validation == 0:
            raise ConfigError("split.validation: training needs a validation split; got 0")
        if self.loader.batch_size == "all":
            raise ConfigError("loader.batch_size: training needs a whole number; got 'all'")
