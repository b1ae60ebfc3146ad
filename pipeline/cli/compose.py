"""The way from a command line to plain dataclasses.

Hydra composes `conf/` under the schema (`pipeline.settings`), and `read_config` turns the result into its dataclasses
once. Below the command line no code sees an omegaconf object. Every refusal is a `ConfigError` of one line: the key's
full path, the rule, the value and, where a name was meant, the closest valid one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from pipeline.settings import PATHS, Config, ConfigError, ConflictError, check_choice, closest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


def find_conf() -> Path:
    """The folder of the config groups: inside the installed package, else at the repository's root."""
    package = Path(__file__).resolve().parents[1]
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
        ConfigError: a misspelt key (behind `+` too), an unknown choice, a wrong type or an impossible value, or what
            Hydra's grammar cannot parse.

    """
    from hydra import compose
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path, get_args_parser
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    given = get_args_parser().parse_args(list(arguments))
    if given.help or given.hydra_help or given.info or given.shell_completion:
        return
    folders = create_config_search_path(str(find_conf()))
    if given.config_dir:
        if not Path(given.config_dir).is_dir():
            raise ConfigError(f"--config-dir: no such folder; got {given.config_dir!r}")
        own = f"file://{Path(given.config_dir).resolve()}"
        folders.prepend("command-line", own, anchor=SearchPathQuery(provider="schema"))  # Hydra wants the schema last
    try:
        parser = OverridesParser.create()
        overrides = [_parse_override(line, parser) for line in given.overrides]
        loader = Hydra.create_main_hydra2("stridemill", folders).config_loader
        for override in overrides:
            _check_override(override, loader, kind=kind, multirun=given.multirun)
        fixed = [
            override.input_line for override in overrides if override.input_line and not override.is_sweep_override()
        ]
        composed = compose(given.config_name or config_name, overrides=fixed)
        with contextlib.suppress(*[ConflictError] * given.multirun):  # the other value may be one of those swept
            read_config(composed, kind)
    except HydraException as error:
        raise one_line(error) from error
    finally:
        GlobalHydra.instance().clear()


def _parse_override(line: str, parser: OverridesParser) -> Override:
    from hydra.errors import HydraException

    try:
        return parser.parse_override(line)
    except HydraException as error:
        key, equals, value = line.partition("=")
        hint = "an override is key=value"
        if equals:
            quoted, as_typed = _quote_value(key, value)
            with contextlib.suppress(HydraException):  # it is the key that is wrong
                parser.parse_override(quoted)
                several = re.search(r"[\[\]{},]", value)  # each of them has its own quotes
                hint = f"quotes keep a text as it is{'' if several else f': {as_typed}'}"
        words = " ".join(str(error).split()).strip('"')
        raise ConfigError(f"{key or 'an override'}: cannot be parsed ({words}); {hint}; got {line!r}") from error


def _quote_value(key: str, value: str) -> tuple[str, str]:
    """An override whose value is in quotes, as Hydra is to get it, and as it is typed in a shell."""
    from hydra.core.override_parser.types import Quote, QuotedString

    inner, outer = (Quote.double, "'") if re.search(r'["$`\\!]', value) else (Quote.single, '"')
    quoted = f"{key}={QuotedString(text=value, quote=inner).with_quotes()}"
    return quoted, shlex.quote(quoted) if outer in quoted else f"{outer}{quoted}{outer}"


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
    if key == "corpus.path" and isinstance(override.value(), int | float):
        given = (override.input_line or "").partition("=")[2].strip()
        kind_of_value = "a bool" if isinstance(override.value(), bool) else "a number"
        raise ConfigError(
            f"{key}: {PATHS}; got {given}, read as {kind_of_value}: quotes keep it a text, {key}='\"{given}\"'"
        )
    if key in groups and override.value() is not None:
        choices = override.sweep_string_iterator() if override.is_sweep_override() else [override.value()]
        for choice in choices:
            check_choice(key, str(choice), loader.get_group_options(key))


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


def one_line(error: BaseException) -> ConfigError:
    """The innermost cause of Hydra's or omegaconf's refusal, in one line that starts with the key."""
    while error.__cause__ is not None:
        error = error.__cause__
    key = getattr(error, "full_key", None)
    lines = [line.strip() for line in str(error).splitlines()]
    message = "; ".join(
        line for line in lines if line and not line.startswith(("full_key", "reference_type", "object_type"))
    )
    alien = re.match(r"In '(\w+)/(\w+)': ConfigKeyError.*; Key '\w+' not in", message)
    if alien:  # a file of conf/ sets what this command's schema does not have
        group, choice = alien.groups()
        name = next((line.split()[-1] for line in lines if line.startswith("full_key:")), "a key")
        of_training = name.split(".")[0] in ("train", "model", "study")
        hint = "; it belongs to scripts/train.py, study.py or neighbors.py" if of_training else ""
        return ConfigError(f"{group}={choice}: sets {name}, which is no key here{hint}")
    return ConfigError(f"{key}: {message}" if key else message)


def _keys_of(tree: Any, prefix: str = "") -> Iterable[str]:
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict) and not prefix:  # a map inside a section is one value
            yield from _keys_of(value, f"{name}.")
