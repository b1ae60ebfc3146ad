"""What a command answers without running: `--help` and `--version`, which need neither Hydra nor numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.cli.config import Config

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def answer(
    arguments: Sequence[str],
    *,
    program: str,
    config_name: str = "config",
    kind: type[Config] = Config,
    conf: Sequence[Path] = (),
) -> bool:
    """Print what `--help` or `--version` asks for. Return whether one of them is there."""
    if "--version" in arguments:
        from pipeline.base.version import find_version

        print(f"stridemill {find_version()}")
        return True
    if {"--help", "-h"} & set(arguments):
        from pipeline.cli.compose import find_conf
        from pipeline.cli.help import describe_keys

        print(describe_keys(program, kind, [*conf, find_conf()], config_name))
        return True
    return False
