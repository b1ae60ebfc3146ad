"""A wrong config is refused before any work, in one line that names the key, the rule and the value."""

import dataclasses
import inspect
import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.types import RunMode
from omegaconf import OmegaConf
from support import ROOT, run_program

from pipeline import load_tokenizer, plan_shards, read_manifest, verify_shards, write_shards
from pipeline.cli.compose import check_command_line, find_conf, hydra_options, read_config, register_schema, schema_keys
from pipeline.cli.config import STAGES, Config
from pipeline.corpus.corpora import VERDICT_SHA256, VERDICT_URL
from pipeline.rules import ConfigError

REFUSED = {
    "window.strid=3": "window.strid: no such key; did you mean 'window.stride'?",
    "stride=4": "stride: no such key; did you mean 'window.stride'?",
    "seed=1": "seed: no such key; did you mean 'embedding.seed' or 'loader.seed' or 'shards.seed' or 'split.seed'?",
    "corpus.strides=4": "corpus.strides: no such key; did you mean 'window.stride'?",
    "train.steps=4": "train.steps: no such key; it belongs to scripts/train.py of the repository",
    "experiment=stride_study": "experiment=stride_study: belongs to scripts/study.py of the repository",
    "--max-length": "--max-length: no such option; a key has no dashes: window.max_length=<value>",
    "--wat=3": "--wat: no such option; --help lists the keys",
    "=3": "an override is key=value, and this one has no key; got '=3'",
    "window=null": "window: must be one of default; got None",
    "embedding=": "embedding: must be one of default; got ''",
    "executor=3": "executor: must be one of local, ray; got '3'",
    "~window": "window: cannot be removed; got '~window'",
    "stages=write,load": "which a shell wants in quotes: 'stages=[write,load]'; got 'stages=write,load'",
    "+window.strid=3": "window.strid: no such key; did you mean 'window.stride'?",
    "++window.strid=3": "window.strid: no such key; did you mean 'window.stride'?",
    "+typo=1": "typo: no such key; the keys are cache, corpus, embedding, executor, experiment, loader,",
    "+window.foo=2": "window.foo: no such key; the keys are window.allow_gaps, window.documents",
    "tokenizer=gtp2": "tokenizer: must be one of bytes, cl100k_base, gpt2,",
    "tokenizer.name=gtp2": "(did you mean 'gpt2'?); got 'gtp2'",
    "corpus=python_doc": "(did you mean 'python_docs'?); got 'python_doc'",
    "experiment=notebok": "(did you mean 'notebook'?); got 'notebok'",
    "window.stride=0": "window.stride: must be at least 1; got 0",
    "window.stride=-4": "window.stride: must be at least 1; got -4",
    "window.max_length=0": "window.max_length: must be at least 1; got 0",
    "window.max_length=x": "window.max_length: Value 'x' of type 'str' could not be converted to Integer",
    "window.max_length=2.5": "window.max_length: Value '2.5' of type 'float' could not be converted to Integer",
    "window.stride=257": "window.stride: must be at most window.max_length=256",
    "window.tail=padd": "window.tail: must be one of drop, pad (did you mean 'pad'?); got 'padd'",
    "window.documents=seperate": "(did you mean 'separate'?); got 'seperate'",
    "split.validation=1": "split.validation: must be a fraction from 0 to below 1; got 1.0",
    "split.validation=nan": "split.validation: must be a fraction from 0 to below 1; got nan",
    "loader.shuffle=ful": "loader.shuffle: must be one of auto, none, full, lanes (did you mean 'full'?); got 'ful'",
    "loader.batch_size=0": "loader.batch_size: must be a whole number of at least 1, or 'all'; got 0",
    "loader.batch_size=some": "loader.batch_size: must be a whole number of at least 1, or 'all'; got 'some'",
    "loader.drop_last=maybe": "loader.drop_last: Value 'maybe' is not a valid bool (type str)",
    "shards.compression=zst": "(did you mean 'zstd'?); got 'zst'",
    "shards.windows_per_group=0": "shards.windows_per_group: must be at least 1; got 0",
    "shards.path=''": "shards.path: must name a folder or a URI; got ''",
    "embedding.dim=0": "embedding.dim: must be at least 1; got 0",
    "embedding.dim=null": "embedding.dim: field 'embedding.dim' is not Optional",
    "embedding.positions=rotary": "embedding.positions: must be one of learned, sinusoidal, none; got 'rotary'",
    "executor.workers=0": "executor.workers: must be at least 1; got 0",
    "stages=wriet": "stages: must be one of plan, write, verify, load, show, prove, report (did you mean 'write'?)",
    "stages=[]": "stages: must name at least one of plan, write, verify, load, show, prove, report; got []",
    "corpus=text": "corpus.path: corpus=text needs a file, a folder, a glob, or a list of them; got None",
    "corpus.path=[]": "corpus.path: must be a file, folder or glob, or a list of them; got []",
    "corpus.path=2024": "or a list of them; got 2024, read as a number: quotes keep it a text, corpus.path='\"2024\"'",
    "+corpus.path=1_0": "or a list of them; got 1_0, read as a number: quotes keep it a text, corpus.path='\"1_0\"'",
    "corpus.path=true": "or a list of them; got true, read as a bool: quotes keep it a text, corpus.path='\"true\"'",
    "corpus.path=[a,3]": "or a list of them (a name that is a number needs quotes); got ['a', 3]",
    "corpus.path=~": "corpus.path: cannot be parsed (token recognition error at: '~'); quotes keep a text as it is",
    "corpus.path=[é,b]": "cannot be parsed (token recognition error at: 'é'); quotes keep a text as it is; got",
    "é=3": "é: cannot be parsed (token recognition error at: 'é'); an override is key=value; got 'é=3'",
    "stride": "stride: cannot be parsed (missing EQUAL at '<EOF>'); an override is key=value; got 'stride'",
    "": "an override: cannot be parsed (mismatched input '<EOF>'",
    "corpus.max_bad_fraction=2": "corpus.max_bad_fraction: must be a fraction from 0 to 1; got 2.0",
    "tokenizer=tiktoken_file": "tokenizer.path: tokenizer=tiktoken_file needs the path of its vocabulary; got None",
    "window.stride=1,2": "window.stride: several values need -m, which runs each; got 'window.stride=1,2'",
    "sweep.path=A,B": "which runs each; a list is one value: 'sweep.path=[A,B]'; got 'sweep.path=A,B'",
    "window.stride=[": "no viable alternative at input '['",
    "window=3": "window: must be one of default; got '3'",
    "window.max_length=99999999999999999999999999": "window.max_length: must be at most 16777216; got 99999",
    "embedding.dim=99999999999": "embedding.dim: must be at most 65536; got 99999999999",
    "embedding.seed=99999999999999999999999": "embedding.seed: must be at most 9223372036854775807; got 9999",
    "split.seed=9223372036854775808": "split.seed: must be at most 9223372036854775807",
    "loader.seed=-1": "loader.seed: must be at least 0; got -1",
    "loader.split=validation": "loader.split: there is no validation split, because split.validation is 0",
    "tokenizer.path=x": "tokenizer.path: tokenizer=gpt2 has its own vocabulary and takes no path; got 'x'",
    "tokenizer.pattern=gpt2": "tokenizer.pattern: is for tokenizer=tiktoken_file, not gpt2; got 'gpt2'",
    "corpus.path=x": "corpus=python_docs is built in and takes no path; use corpus=text for files; got 'x'",
    "loader.exclude=s3://bucket/x": "loader.exclude: must be a path on this machine (mount or copy data that is else",
    "cache.path=file:///tmp/x": "cache.path: must be a path on this machine, or a URI with s3://, gs://, az://; got",
    "shards.path=s3://me:secret@bucket/x": "environment variables such as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL; got",
    "cache.path=''": "cache.path: must name a folder or a URI; got ''",
}
REFUSED_TOGETHER = {
    ("tokenizer=bytes", "tokenizer.engine=gigatoken"): "tokenizer.engine: tokenizer=bytes is its own engine",
    ("shards.windows_per_shard=10", "shards.windows_per_group=3"): "must be a multiple of windows_per_group=3",
}


@pytest.fixture(autouse=True)
def _schema():
    register_schema()


def read(*overrides):
    with initialize_config_dir(config_dir=str(find_conf()), **hydra_options()):
        return read_config(compose("config", overrides=list(overrides)))


@pytest.mark.parametrize("overrides", REFUSED_TOGETHER)
def test_values_that_do_not_go_together_are_refused_in_one_line(overrides):
    with pytest.raises(ConfigError) as refusal:
        check_command_line(overrides)
    assert REFUSED_TOGETHER[overrides] in str(refusal.value)


def test_a_config_that_is_only_shown_is_checked_too():
    with pytest.raises(ConfigError, match=r"did you mean 'window.stride'"):
        check_command_line(["--cfg", "job", "window.strid=1"])


def test_the_config_and_the_code_name_one_text_as_the_verdict():
    config = read("corpus=the_verdict")
    assert (config.corpus.url, config.corpus.sha256) == (VERDICT_URL, VERDICT_SHA256)


@pytest.mark.parametrize("override", REFUSED)
def test_a_wrong_override_is_refused_in_one_line(override):
    with pytest.raises(ConfigError) as refusal:
        check_command_line([override])
    message = str(refusal.value)
    assert REFUSED[override] in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["window.stride=3", "tokenizer=bytes"],
        ["experiment=notebook"],
        ["-m", "window.stride=1,2", "tokenizer=bytes,gpt2"],
        ["-m", "window.stride=range(1,4)"],
        ["-m", "corpus=text", "corpus.path=a.txt,b.txt"],
        ["-m", "corpus=python_docs,text"],
        ["-m", "tokenizer=huggingface", "tokenizer.path=a.json,b.json"],
        ["-m", "tokenizer=huggingface,bytes", "tokenizer.path=a.json"],
        ["window.stride=300", "window.allow_gaps=true"],
        ["corpus=text", "corpus.path=[a,b]"],
        ["loader.batch_size=all"],
        *[[f"stages={stage}"] for stage in STAGES if stage != "report"],
        ["stages=report", "sweep.path=[a,b]"],
        ["hydra.run.dir=somewhere"],
        ["--help"],
        ["--cfg", "job"],
    ],
)
def test_a_right_command_line_passes(arguments):
    check_command_line(arguments)


@pytest.mark.parametrize(
    "path",
    ["gl/é.txt", "~/v.txt", "eq=a.txt", "it's.txt", "a#$b`!.txt", 'x"#.txt', "back\\#.txt", "end#\\", "'#$", "foo(1)"],
)
def test_a_value_that_hydra_cannot_parse_is_refused_with_what_the_shell_and_hydra_take(path):
    with pytest.raises(
        ConfigError, match=r"^corpus.path: cannot be parsed \(.*; quotes keep a text as it is: "
    ) as refusal:
        check_command_line(["corpus=text", f"corpus.path={path}"])
    message = str(refusal.value)
    assert message.endswith(f"; got {f'corpus.path={path}'!r}")
    assert "\n" not in message
    [remedy] = shlex.split(re.search(r"as it is: (.*); got ", message)[1])
    check_command_line(["corpus=text", remedy])
    assert read("corpus=text", remedy).corpus.path == path


def test_the_remedy_for_the_usual_names_is_easy_to_type():
    with pytest.raises(
        ConfigError, match=re.escape("""as it is: "corpus.path='gl/é.txt'"; got 'corpus.path=gl/é.txt'""")
    ):
        check_command_line(["corpus.path=gl/é.txt"])


@pytest.mark.parametrize("path", ["2024", "1_0", "1e5", "true"])
def test_a_number_in_quotes_is_a_path(path):
    with pytest.raises(ConfigError) as refusal:
        check_command_line(["corpus=text", f"corpus.path={path}"])
    [remedy] = shlex.split(str(refusal.value).rpartition(", ")[2])
    check_command_line(["corpus=text", remedy])
    assert read("corpus=text", remedy).corpus.path == path


def test_a_wrong_choice_anywhere_in_a_sweep_is_refused():
    with pytest.raises(ConfigError, match="got 'gtp2'"):
        check_command_line(["-m", "tokenizer=bytes,gtp2"])


def test_a_key_that_a_file_of_the_user_misspells_is_refused(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nwindow: {strid: 3}\n")
    with pytest.raises(ConfigError, match=r"^experiment=mine: sets window.strid, which is not a key here$"):
        check_command_line(["--config-dir", str(tmp_path), "experiment=mine"])


def test_an_experiment_of_the_users_own_folder_is_found(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nwindow: {max_length: 8}\n")
    check_command_line(["--config-dir", str(tmp_path), "experiment=mine"])


def test_the_defaults_are_the_contracts():
    config = read()
    assert config.stages == ["write", "load"]
    assert (config.corpus.name, config.tokenizer.name) == ("python_docs", "gpt2")
    assert (config.window.max_length, config.window.stride, config.window.tail) == (256, 256, "drop")
    assert config.window.documents == "join"
    assert config.shards.path == "outputs/shards/python_docs-gpt2-L256-S256"
    assert (config.loader.batch_size, config.loader.shuffle, config.loader.lanes) == (8, "auto", 64)
    assert (config.embedding.dim, config.embedding.positions, config.embedding.seed) == (256, "learned", 0)
    assert config.cache.path == "outputs/cache"


def test_the_stride_follows_the_length_unless_it_is_given():
    assert read("window.max_length=64").window.stride == 64
    assert read("window.max_length=64", "window.stride=16").shards.path.endswith("-L64-S16")


def test_an_experiment_beats_the_files_and_the_command_line_beats_the_experiment():
    assert read("experiment=notebook").window.max_length == 4
    assert read("experiment=notebook", "window.max_length=6").window.max_length == 6
    assert read("experiment=notebook").corpus.name == "the_verdict"


@pytest.mark.slow
def test_every_file_of_a_group_composes():
    for group in ("corpus", "tokenizer", "window", "shards", "loader", "embedding", "executor", "experiment"):
        for file in sorted(Path(find_conf(), group).glob("*.yaml")):
            path = [f"{group}.path=x"] if "path: null" in file.read_text() else []
            read(f"{group}={file.stem}", *path)


def test_yaml_sections_and_signatures_agree_on_each_default():
    """The YAML that composes, the section's field, and the argument of the same name, wherever one states a default."""
    from pipeline import ShardLoader, TokenEmbedding, WindowDataset

    composed, plain = read(), Config()
    for section in dataclasses.fields(Config):
        mine, other = getattr(composed, section.name), getattr(plain, section.name)
        for field in dataclasses.fields(mine) if dataclasses.is_dataclass(mine) else []:
            if (section.name, field.name) != ("shards", "path"):  # filled in from the other sections
                assert getattr(mine, field.name) == getattr(other, field.name), f"{section.name}.{field.name}"
    assert composed.stages == plain.stages
    for function, section in ((ShardLoader, "loader"), (TokenEmbedding, "embedding"), (WindowDataset, "loader")):
        fields = {field.name: field.default for field in dataclasses.fields(getattr(plain, section))}
        for name, parameter in inspect.signature(function).parameters.items():
            if name in fields and parameter.default is not inspect.Parameter.empty and name not in OF_THEIR_OWN:
                assert parameter.default == fields[name], f"{function.__name__}: {name}"


OF_THEIR_OWN = {"memory_budget"}  # WindowDataset keeps row groups in every worker process, so its budget is smaller


@pytest.mark.parametrize("file", sorted(path.stem for path in (ROOT / "scripts/conf/experiment").iterdir()))
def test_an_experiment_of_training_composes_with_its_script(file):
    from train import register_configs
    from training_config import TrainConfig

    register_configs()
    register_schema(TrainConfig)
    check_command_line([f"experiment={file}"], kind=TrainConfig, config_name="train")


def test_the_help_has_a_line_for_each_key_with_its_default_and_its_meaning(cli):
    done = cli("--help")
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    told = {one[0].partition("=")[0]: one for one in lines if "=" in (one or [""])[0]}
    for key in schema_keys():
        if key.endswith(".name"):
            continue
        if "." in key or key == "stages":
            assert len(told[key]) == 2, f"{key} has no comment in conf/"
    assert "  window.max_length=256                tokens per window\n" in done.stdout
    assert "tokenizer=gpt2" in told["tokenizer"]
    assert "drop, pad: what happens to the last tokens" in told["window.tail"][1]
    assert "stride_study" not in done.stdout, "it offers what works"


@pytest.mark.parametrize(
    "arguments",
    [[], ["window.stride=3", "tokenizer=bytes", "hydra.run.dir=x"], ["experiment=notebook", "hydra.verbose=true"]],
)
def test_what_is_composed_to_check_a_run_is_what_hydra_composes_for_it(arguments):
    checked = check_command_line(arguments)
    assert checked.mode == RunMode.RUN
    with initialize_config_dir(config_dir=str(find_conf()), **hydra_options()):
        expected = compose("config", overrides=arguments, return_hydra_config=True)
    assert OmegaConf.to_yaml(checked.composed) == OmegaConf.to_yaml(expected)
    assert checked.config == read(*arguments)


COUNTED = """
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from pipeline.__main__ import main

composed, load = [], ConfigLoaderImpl._load_configuration_impl

def note(self, *arguments, **options):
    composed.append(options["overrides"])
    return load(self, *arguments, **options)

ConfigLoaderImpl._load_configuration_impl = note
try:
    main()
finally:
    print("composed", len(composed))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "times"),
    [
        ([], 1),
        (["-m", "window.stride=16,32,64"], 2 + 3),  # to check it, to sweep, and for each point
        (["-m", "window.stride=16", "corpus=python_docs,text"], 2 + 1 + 2 + 1),  # a choice is composed to check it
    ],
)
def test_nothing_is_composed_twice(tmp_path, arguments, times):
    given = ["stages=write", "tokenizer=bytes", "window.max_length=64"]
    done = run_program("-c", COUNTED, *arguments, *given, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == f"composed {times}", done.stderr


APP = """
import hydra
from omegaconf import OmegaConf

from pipeline import (
    CorpusConfig, EmbeddingConfig, ExecutorConfig, LoaderConfig, ShardsConfig, TokenizerConfig, WindowConfig
)

KINDS = [CorpusConfig, EmbeddingConfig, ExecutorConfig, LoaderConfig, ShardsConfig, TokenizerConfig, WindowConfig]


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(config):
    OmegaConf.resolve(config)
    for kind in KINDS:
        print(kind(**config.a.b[kind.section]))


main()
"""


@pytest.mark.slow
def test_every_group_composes_under_any_package_of_another_program(tmp_path):
    groups = {
        path.name: sorted(file.stem for file in path.iterdir()) for path in find_conf().iterdir() if path.is_dir()
    }
    del groups["experiment"]
    chosen = {group: choices[0] for group, choices in groups.items()} | {"corpus": "jsonl", "tokenizer": "gpt2"}
    (tmp_path / "conf").mkdir()
    lines = [f"  - {group}@a.b.{group}: {choice}" for group, choice in chosen.items()]
    search = f"hydra:\n  searchpath: ['file://{find_conf()}']\n  run: {{dir: out}}\n"
    (tmp_path / "conf/config.yaml").write_text("\n".join(["defaults:", *lines, "  - _self_", search]))
    (tmp_path / "app.py").write_text(APP)
    done = run_program("app.py", "a.b.corpus.path=x.jsonl", "a.b.window.max_length=8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "max_length=8, stride=8" in done.stdout
    assert "path='x.jsonl'" in done.stdout
    for group, choices in groups.items():
        for choice in choices:
            with initialize_config_dir(config_dir=str(tmp_path / "conf"), **hydra_options()):
                composed = compose("config", overrides=[f"{group}@a.b.{group}={choice}"])
            assert OmegaConf.to_container(composed.a.b[group], resolve=True), (
                f"{group}={choice} needs nothing around it"
            )


@pytest.mark.parametrize("turn", [1, 2])
def test_what_another_program_registers_is_gone_in_the_next_test(turn):
    from train import register_configs
    from training_config import TrainConfig

    with pytest.raises(ConfigError, match=r"belongs to scripts/study.py"):
        check_command_line(["experiment=stride_study"])
    register_configs()
    register_schema(TrainConfig)
    check_command_line(["experiment=stride_study"], kind=TrainConfig, config_name="train")


@pytest.mark.parametrize(
    ("function", "wrong", "right"),
    [
        (write_shards, "tokeniser", "tokenizer"),
        (write_shards, "windows", "window"),
        (plan_shards, "caches", "cache"),
        (verify_shards, "cache_paths", "cache_path"),
        (read_manifest, "folders", "folder"),
        (load_tokenizer, "patterns", "pattern"),
    ],
)
def test_a_wrong_argument_name_is_answered_with_the_closest_one(function, wrong, right):
    assert right in inspect.signature(function).parameters
    with pytest.raises(TypeError, match=f"^{function.__name__}: no argument '{wrong}'; did you mean '{right}'\\?$"):
        function(**{wrong: None})
