"""What a user adds to a training run: a model of their own, and a function that gets each row of metrics.

Both are functions of the user's, named in the config by a dotted path. They are found in the folder where the command
runs, or wherever Python finds modules. A path that the config names is the user's own code, like the command itself; no
data set and no checkpoint can name one.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.rules import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from training import Metric
    from training_config import TrainConfig


def load_function(key: str, name: str) -> Callable[..., Any]:
    """Return the function that a key names, as `my_module.my_function`.

    Raises:
        ConfigError: there is no such module or function.

    """
    module, _, function = name.rpartition(".")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function) if module else None
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}: {name} cannot be loaded: {error}. It is found from the current folder") from error
    if not callable(found):
        raise ConfigError(f"{key}: must name a function as my_module.my_function; got {name!r}")
    loaded: Callable[..., Any] = found
    return loaded


def metric_reporter(config: TrainConfig, folder: Path) -> Callable[[Metric], object]:
    """Return what is called with each row of metrics: it calls the user's function and writes for TensorBoard."""
    reporters: list[Callable[[Metric], object]] = []
    if config.train.on_metrics is not None:
        report = load_function("train.on_metrics", config.train.on_metrics)
        reporters.append(lambda row: report(asdict(row), folder))
    if config.train.tensorboard:
        reporters.append(write_to_tensorboard(folder))
    return lambda row: [report(row) for report in reporters]


def write_to_tensorboard(folder: Path) -> Callable[[Metric], object]:
    """Return a function that writes a row into the run's folder, for `tensorboard --logdir outputs/train`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("train.tensorboard: needs the package: pip install tensorboard") from error
    writer = SummaryWriter(str(folder))

    def write(row: Metric) -> None:
        values = asdict(row)
        step = values.pop("step")
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write
