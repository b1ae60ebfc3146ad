"""From a command line to the config's sections.

Hydra composes `conf/` under the schema (`pipeline.settings`), and `read_config` converts the result to dataclasses
once. No code below the command line sees an omegaconf object. Every refusal is a `ConfigError` of one line: the key's
full path, the rule, the value and, for a misspelled name, the closest valid one.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

from pipeline.base.atomic import write_text
from pipeline.base.hashing import hash_json
from pipeline.cli.config import Config
from pipeline.cli.log import HYDRA_LOGGING, JOB_LOGGING
from pipeline.cli.plain import jsonable
from pipeline.rules import PATHS, ConfigError, ConflictError, check_choice, closest
from pipeline.shards.entries import MANIFEST_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override
    from hydra.types import RunMode
    from omegaconf import DictConfig

TRAINING = {"train": "train.py", "model": "train.py", "study": "study.py"}  # sections of the programs in scripts/
TRAINING_EXPERIMENTS = {
    "small": "train.py",
    "stride_study": "study.py",
    "stride_study_quick": "study.py",
    "neighbors": "neighbors.py",
    "neighbors_quick": "neighbors.py",
}
WITHOUT_EFFECT_ON_DATA = {
    *("corpus.on_bad", "corpus.max_bad_fraction", "corpus.trust_mtime", "tokenizer.engine", "tokenizer.audit"),
    *("window.score", "window.allow_gaps", "shards.path", "shards.overwrite"),
}
TAKES_LIST = {"corpus.path", "show.window", "sweep.path"}
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"  # Hydra's own, which wants no number
SWEEPER = {"_target_": "hydra._internal.core_plugins.stridemill.PointSweeper", "max_batch_size": None, "params": None}


def find_conf() -> Path:
    """Return the folder of the config groups: inside the installed package, else at the repository's root."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def hydra_options() -> dict[str, str]:
    """Return what Hydra 1.3 wants to be told and Hydra 1.4 does not: which defaults to use."""
    import hydra

    return {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}


def register_schema(kind: type[Config] = Config) -> None:
    """Register with Hydra what `conf/` refers to: the schema, the log, and the sweeper."""
    from hydra.core.config_store import ConfigStore

    options: dict[str, Any] = {} if hydra_options() else {"replace": True}  # Hydra 1.4 asks for it
    ConfigStore.instance().store(name="schema", node=kind, **options)
    ConfigStore.instance().store(group="hydra/sweeper", name="points", node=SWEEPER, **options)
    ConfigStore.instance().store(group="hydra/job_logging", name="stridemill", node=JOB_LOGGING, **options)
    ConfigStore.instance().store(group="hydra/hydra_logging", name="stridemill", node=HYDRA_LOGGING, **options)


def read_config(composed: DictConfig, kind: type[Config] = Config) -> Config:
    """Convert the composed config to dataclasses, with every value checked; raises `ConfigError`."""
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
    assert isinstance(config, kind), "the schema is the first entry of the defaults list in conf/config.yaml"
    if config.shards.path is None:
        corpus, tokenizer, window = config.corpus, config.tokenizer, config.window
        name = f"{corpus.name}-{tokenizer.name}-L{window.max_length}-S{window.stride}"
        config.shards.path = str(find_shards(config, name))
    return config


def find_shards(config: Config, name: str) -> Path:
    """Return the folder of a data set without a path: in `outputs/shards`, or in the sweep's folder.

    Points of a sweep share a data set if all keys that decide it are equal, which a hash in its name says.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return Path("outputs/shards", name)
    own = Path(HydraConfig.get().runtime.output_dir, "shards", name)
    if (own / MANIFEST_NAME).is_file():  # of a sweep that started before points shared data sets
        return own
    return Path(HydraConfig.get().sweep.dir, "shards", f"{name}-{hash_data_set_keys(config)[:8]}").absolute()


def hash_data_set_keys(config: Config) -> str:
    """Hash the values of all keys that can change what the write stage writes."""
    values = {
        section: {
            key: value
            for key, value in dataclasses.asdict(getattr(config, section)).items()
            if f"{section}.{key}" not in WITHOUT_EFFECT_ON_DATA
        }
        for section in ("corpus", "tokenizer", "window", "split", "shards")
    }
    return hash_json(values)


def save_config(composed: DictConfig, folder: Path) -> None:
    """Write what Hydra would write into `.hydra`: the config, the overrides and Hydra's own config, without secrets."""
    from hydra.core.hydra_config import HydraConfig

    (folder / ".hydra").mkdir(exist_ok=True)
    own = HydraConfig.get()
    for name, node in {"config": composed, "overrides": own.overrides.task, "hydra": {"hydra": own}}.items():
        save_yaml(node, folder / ".hydra" / f"{name}.yaml")


def save_yaml(node: Any, path: Path) -> None:
    """Write an omegaconf object as YAML, with interpolations as they are and without the secrets of URLs."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(OmegaConf.create(node), resolve=False, enum_to_str=True)
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(jsonable(plain))))


def hide_secrets_in_configs() -> None:
    """Let omegaconf save configs without the secrets of URLs: a sweeper of others writes the whole config."""
    from omegaconf import OmegaConf

    save = OmegaConf.save
    if getattr(save, "hides_secrets", False):
        return

    def save_safe(config: Any, f: Any, resolve: bool = False) -> None:
        node = config if OmegaConf.is_config(config) else OmegaConf.create(config)
        plain = OmegaConf.to_container(node, resolve=resolve, enum_to_str=True)
        save(OmegaConf.create(jsonable(plain)), f)

    save_safe.hides_secrets = True  # type: ignore[attr-defined]
    OmegaConf.save = save_safe  # type: ignore[method-assign]


class CheckedCommand(NamedTuple):
    """What a command line asks for."""

    config: Config | None  # of a single run
    composed: DictConfig | None  # the same as Hydra composes it, with Hydra's own part
    mode: RunMode | None  # whether it is a sweep, as far as the config says so


def check_command_line(
    arguments: Sequence[str],
    *,
    kind: type[Config] = Config,
    config_name: str = "config",
    check: Callable[[Any], None] = lambda _: None,
    check_number: Callable[[Any], None] = lambda _: None,
) -> CheckedCommand:
    """Compose and check what a command line asks for, before Hydra makes a folder or a log for it.

    The values of a sweep are checked when their point runs, because one bad point does not stop the others. `check`
    refuses what a command cannot use, and `check_number` what gives a sweeper of others no number.

    Raises:
        ConfigError: a misspelled key (after `+` too), an unknown choice, a wrong type or an impossible value, or what
            Hydra's grammar cannot parse.

    """
    from hydra import compose, version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path, get_args_parser
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    known = set(schema_keys(kind))
    parser_of_options = get_args_parser()
    for argument in arguments:
        option, _, value = argument.partition("=")
        if option.startswith("--") and option not in parser_of_options._option_string_actions:  # noqa: SLF001 - public API has no list
            raise _unknown_option(option, value, known)
    given = parser_of_options.parse_args(list(arguments))
    if given.help or given.hydra_help or given.info or given.shell_completion:
        return CheckedCommand(None, None, None)
    folders = create_config_search_path(str(find_conf()))
    if given.config_dir:
        if not Path(given.config_dir).is_dir():
            raise ConfigError(f"--config-dir: no such folder; got {given.config_dir!r}")
        own = f"file://{Path(given.config_dir).resolve()}"
        folders.prepend("command-line", own, anchor=SearchPathQuery(provider="schema"))  # Hydra wants the schema last
    if options := hydra_options():
        version.setbase(options["version_base"])  # as `hydra.main` does
    try:
        loader = Hydra.create_main_hydra2("stridemill", folders).config_loader
        parser = OverridesParser.create(config_loader=loader)
        overrides = [_parse_override(line, parser) for line in given.overrides]
        groups = [group for group in loader.list_groups("") if group != "hydra"]  # reads all folders each time
        for override in overrides:
            _check_override(override, loader, groups, kind=kind, multirun=given.multirun)
        fixed = [
            override.input_line for override in overrides if override.input_line and not override.is_sweep_override()
        ]
        composed = compose(given.config_name or config_name, overrides=fixed, return_hydra_config=True)
        checked = _check_composed(composed, kind, check, check_number, multirun=given.multirun)
        is_all = len(fixed) == len(overrides) and not given.config_path
        return checked if is_all else checked._replace(composed=None)
    except HydraException as error:
        raise one_line(error) from error
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None


def _check_composed(
    composed: DictConfig,
    kind: type[Config],
    check: Callable[[Any], None],
    check_number: Callable[[Any], None],
    *,
    multirun: bool,
) -> CheckedCommand:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import open_dict

    mode = composed.hydra.mode  # None unless the config or the command line sets it
    is_foreign = multirun and composed.hydra.sweeper._target_ not in (SWEEPER["_target_"], BASIC_SWEEPER)
    sections = copy.deepcopy(composed)
    with open_dict(sections):
        sections.hydra.job.num, sections.hydra.job.id = 0, "0"  # as interpolations of a sweep may ask for them
    HydraConfig.instance().set_config(sections)
    with open_dict(sections):
        del sections["hydra"]
    with contextlib.suppress(*[ConflictError] * multirun):  # the other value may be one of those swept
        config = read_config(sections, kind)
        check(config)
        if is_foreign:
            check_number(config)
        if not multirun and mode != RunMode.MULTIRUN:
            return CheckedCommand(config, composed, RunMode.RUN)
    return CheckedCommand(None, None, mode)


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
    """Return an override with its value in quotes: as Hydra gets it, and as it is typed in a shell."""
    from hydra.core.override_parser.types import Quote, QuotedString

    inner, outer = (Quote.double, "'") if re.search(r'["$`\\!]', value) else (Quote.single, '"')
    quoted = f"{key}={QuotedString(text=value, quote=inner).with_quotes()}"
    return quoted, shlex.quote(quoted) if outer in quoted else f"{outer}{quoted}{outer}"


def _check_override(
    override: Override, loader: ConfigLoader, groups: Sequence[str], *, kind: type[Config], multirun: bool
) -> None:
    key = override.key_or_group
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return
    if not key:
        raise ConfigError(f"an override is key=value, and this one has no key; got {override.input_line!r}")
    known = {*schema_keys(kind), *groups}
    line = override.input_line or ""
    if key not in known:
        raise unknown_key(key, known)
    if override.is_delete():
        raise ConfigError(f"{key}: cannot be removed; got {line!r}")
    if override.is_sweep_override() and not multirun:
        if key == "stages":
            quoted = f"'stages=[{line.partition('=')[2]}]'"
            raise ConfigError(
                f"stages: several stages are a list, which a shell wants in quotes: {quoted}; got {line!r}"
            )
        quoted = f"'{key}=[{line.partition('=')[2]}]'"
        hint = f"; a list is one value: {quoted}" if key in TAKES_LIST else ""
        raise ConfigError(f"{key}: several values need -m, which runs each{hint}; got {line!r}")
    if key == "corpus.path" and isinstance(override.value(), int | float):
        given = line.partition("=")[2].strip()
        kind_of_value = "a bool" if isinstance(override.value(), bool) else "a number"
        raise ConfigError(
            f"{key}: {PATHS}; got {given}, read as {kind_of_value}: quotes keep it a text, {key}='\"{given}\"'"
        )
    if key in groups:
        choices = override.sweep_string_iterator() if override.is_sweep_override() else [override.value()]
        for choice in choices:
            _check_choice_of_group(key, choice, loader.get_group_options(key))


def _check_choice_of_group(group: str, choice: Any, options: Sequence[str]) -> None:
    if group == "experiment":
        if choice is None or str(choice) == "null":
            return
        if choice in TRAINING_EXPERIMENTS and choice not in options:
            program = TRAINING_EXPERIMENTS[str(choice)]
            raise ConfigError(f"experiment={choice}: belongs to scripts/{program} of the repository")
    check_choice(group, choice if choice is None else str(choice), options)


def schema_keys(schema: type[Config] = Config) -> Iterable[str]:
    """Yield every key of the schema by its full path, including sections: `window`, `window.stride`, ..."""
    for name, kind in get_type_hints(schema).items():
        yield name
        if dataclasses.is_dataclass(kind):
            yield from (f"{name}.{inner.name}" for inner in dataclasses.fields(kind))


def unknown_key(key: str, known: Iterable[str]) -> ConfigError:
    """Return the refusal of an unknown key: with the closest known ones, or the script that has it."""
    known = set(known)
    section, _, name = key.rpartition(".")
    top = key.partition(".")[0]
    if top in TRAINING and top not in known:
        return ConfigError(f"{key}: no such key; it belongs to scripts/{TRAINING[top]} of the repository")
    names = sorted(inner for outer, _, inner in (one.rpartition(".") for one in known) if outer == section)
    prefix = f"{section}." if section else ""
    near = [f"{prefix}{one}" for one in difflib.get_close_matches(name, names, n=1, cutoff=0.8)]
    if not near:  # the last part in any section
        inner = {one.rpartition(".")[2] for one in known if "." in one}
        same = [name] if name in inner else difflib.get_close_matches(name, sorted(inner), n=1, cutoff=0.8)
        near = sorted(one for one in known if "." in one and same and one.endswith(f".{same[0]}"))
    near = near or [f"{prefix}{one}" for one in difflib.get_close_matches(name, names, n=1)]
    if near:
        hint = f"did you mean {' or '.join(map(repr, near))}?"
    elif names:
        hint = f"the keys are {', '.join(prefix + one for one in names)}"
    else:
        hint = closest(key, known) or f"{section} has no keys below it"
    return ConfigError(f"{key}: no such key; {hint}")


def _unknown_option(option: str, value: str, known: Iterable[str]) -> ConfigError:
    name = option.removeprefix("--").replace("-", "_")
    keys = sorted(one for one in known if one == name or one.endswith(f".{name}"))
    hint = f"a key has no dashes: {' or '.join(keys)}={value or '<value>'}" if keys else "--help lists the keys"
    return ConfigError(f"{option}: no such option; {hint}")


def one_line(error: BaseException) -> ConfigError:
    """Return the innermost cause of Hydra's or omegaconf's refusal in one line that starts with the key."""
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
        program = TRAINING.get(name.split(".")[0])
        hint = f"; it belongs to scripts/{program} of the repository" if program else ""
        return ConfigError(f"{group}={choice}: sets {name}, which is not a key here{hint}")
    return ConfigError(f"{key}: {message}" if key else message)


def _keys_of(tree: Any, prefix: str = "") -> Iterable[str]:
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict) and not prefix:  # a map inside a section is one value
            yield from _keys_of(value, f"{name}.")
