"""`--help`: one line for each key, made from the comments in `conf/`, so that the two cannot differ."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any, get_type_hints

from omegaconf import OmegaConf

from pipeline.cli.compose import schema_keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pipeline.cli.config import Config

LINE = re.compile(r"^( *)(\w+):(?: +(.*?))?(?: *# *(.*))?$")
OPTIONS = """
Options:
  -m              run each combination of values: window.stride=64,128
  --version       print stridemill's release
  --cfg job       print the composed config
  --config-dir    a folder with groups or experiments of your own
  --hydra-help    Hydra's own options
"""


def describe_keys(program: str, kind: type[Config], folders: Sequence[Path], config_name: str) -> str:
    """Return every key with its default, its values and its meaning."""
    meanings, defaults = read_comments(folders, config_name)
    groups = {path.name for folder in folders for path in folder.iterdir() if path.is_dir()}
    lines = [f"{program} [key=value ...]", "", "Keys with their defaults:"]
    for key in schema_keys(kind):
        section, _, name = key.partition(".")
        if name == "name":  # what the group's line says
            continue
        if name or not dataclasses.is_dataclass(get_type_hints(kind)[key]):
            default = defaults.get(key) or _default_of(get_type_hints(kind)[section], name)
            lines.append(_line(f"{'  ' * bool(name)}{key}={default}", meanings.get(key, "")))
        elif section in groups:
            found = sorted({file.stem for folder in folders for file in (folder / section).glob("*.yaml")})
            lines += ["", _line(f"{section}={defaults[section]}", f"one of {', '.join(found)}")]
        else:
            lines.append("")
    return "\n".join([*lines, OPTIONS])


def read_comments(folders: Sequence[Path], config_name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return each key's comment, and its default as text where the main file or a default choice has one.

    Where the choices of a group have different comments for a key, each is named.
    """
    main = next(folder / f"{config_name}.yaml" for folder in folders if (folder / f"{config_name}.yaml").is_file())
    choices: Any = OmegaConf.to_container(OmegaConf.load(main), resolve=False)["defaults"]  # type: ignore[index,call-overload]
    chosen = {group: choice for entry in choices if isinstance(entry, dict) for group, choice in entry.items()}
    defaults = {group: "null" if choice is None else str(choice) for group, choice in chosen.items()}
    comments: dict[str, dict[str, list[str]]] = {}  # key -> comment -> the choices that have it
    for prefix, choice, file in [("", "", main), *_group_files(folders, chosen)]:
        for key, value, comment in read_lines(file.read_text(encoding="utf-8")):
            if value and choice == chosen.get(prefix.rstrip("."), ""):
                defaults[prefix + key] = value
            if comment:
                comments.setdefault(prefix + key, {}).setdefault(comment, []).append(choice)
    meanings = {
        key: next(iter(found))
        if len(found) == 1
        else "; ".join(f"with {', '.join(names)}: {comment}" for comment, names in found.items())
        for key, found in comments.items()
    }
    return meanings, defaults


def _group_files(folders: Sequence[Path], chosen: dict[str, str | None]) -> Iterable[tuple[str, str, Path]]:
    for group in chosen:
        if group != "experiment":
            for folder in folders:
                for file in sorted((folder / group).glob("*.yaml")):
                    yield f"{group}.", file.stem, file


def read_lines(text: str) -> Iterable[tuple[str, str, str]]:
    """Yield each key of a YAML file of ours by its path, with its value as written and its comment."""
    outer = ""
    for line in text.splitlines():
        found = LINE.match(line)
        if found:
            indent, name, value, comment = found.groups(default="")
            outer = outer if indent else name
            yield (f"{outer}.{name}" if indent else name), value.strip(), comment


def _default_of(section: type, name: str) -> str:
    found = {field.name: field.default for field in dataclasses.fields(section)}[name]
    return "null" if found is None else str(found)


def _line(key: str, meaning: str) -> str:
    return f"  {key:<38} {meaning}"
