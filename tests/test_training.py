"""The training job on a tiny model: exact resume, several processes, a loss below that of a model without context."""

import csv
import dataclasses
import json
import math
import re
import shutil

import pytest
import torch
from gpt import GPT, summed_loss, unigram_loss
from support import ROOT, run_program, run_ranks, sections
from torch.nn import functional
from train import NO_EFFECT, refuse_no_effect, register_configs
from training import CHECKPOINT, Settings, learning_rate, train, unigram
from training_config import TrainConfig
from training_hooks import load_function

from pipeline import ConfigError, ShardLoader, WindowConfig, write_shards
from pipeline.cli.compose import check_command_line, read_config, register_schema, schema_keys

pytestmark = pytest.mark.slow
TINY = Settings(layers=1, heads=2, dim=16, steps=12, warmup=2, learning_rate=1e-2)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Equal sums need an equal order of addition; one thread gives it at once for small tensors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    write_shards(
        folder / "shards",
        **sections(tokenizer="bytes", max_length=32, stride=32, validation=0.1, cache_path=folder / "cache"),
    )
    return folder / "shards"


def loaders(path, **options):
    held_out = {"split": "validation", "shuffle": "none", "drop_last": False, "batch_size": 512}
    return ShardLoader(path, batch_size=8, **options), ShardLoader(path, **held_out)


@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_resumed_run_equals_the_undisturbed_one(shards, tmp_path, stop):
    every = {"validate_every": 4, "checkpoint_every": 1, "progress": False}
    whole, metrics = train(loaders(shards)[0], None, TINY, **every)

    class StoppedError(Exception):
        pass

    def stop_here(step, _model):
        if step >= stop:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(
            loaders(shards)[0],
            None,
            TINY,
            folder=tmp_path,
            observe=stop_here,
            validate_every=stop + 1,
            checkpoint_every=1,
            progress=False,
        )
    resumed, again = train(loaders(shards)[0], None, TINY, resume=tmp_path / CHECKPOINT, **every)
    for (name, mine), other in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, other), name
    assert again[-1].step == metrics[-1].step


def test_a_resume_keeps_the_metrics_and_refuses_another_run(shards, tmp_path):
    every = {"validate_every": 4, "checkpoint_every": 4, "progress": False}
    _, metrics = train(*loaders(shards), TINY, folder=tmp_path, **every)
    _, again = train(*loaders(shards), TINY, resume=tmp_path / CHECKPOINT, **every)
    assert again == metrics, "a run that is over has nothing to add"
    rows = csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines())
    assert [row["step"] for row in rows] == ["4", "8", "12"]
    assert (tmp_path / "loss.svg").read_text().count('class="point"') == 6
    with pytest.raises(ValueError, match=r"its run had other settings: embedding\.dim was 16, here it is 32"):
        train(*loaders(shards), dataclasses.replace(TINY, dim=32), resume=tmp_path / CHECKPOINT, **every)
    with pytest.raises(ValueError, match="no such checkpoint"):
        train(*loaders(shards), TINY, resume=tmp_path / "none.pt", **every)
    with pytest.raises(ValueError, match=r"loader\.seed was 0, here it is 1"):
        train(*loaders(shards, seed=1), TINY, resume=tmp_path / CHECKPOINT, **every)


def test_a_finished_run_goes_on_for_more_steps_and_says_what_that_means(shards, tmp_path, capsys):
    few = dataclasses.replace(TINY, steps=4)
    trained, _ = train(*loaders(shards), few, folder=tmp_path, progress=False)
    path = tmp_path / CHECKPOINT
    seen = []
    model, metrics = train(
        *loaders(shards), TINY, resume=path, validate_every=4, progress=False, observe=lambda step, _: seen.append(step)
    )
    said = capsys.readouterr().err
    assert said.startswith(f"{path}: train.steps was 4, here it is 12. The run goes on from step 4")
    assert seen == [8, 12]
    assert metrics[-1].tokens == 12 * 8 * 32
    assert metrics[-1].validation_loss < metrics[0].validation_loss
    assert not all(torch.equal(a, b) for a, b in zip(trained.parameters(), model.parameters(), strict=True))
    with pytest.raises(
        ValueError, match=r"train\.steps was 4, here it is 3\. Resume with the settings of the checkpoint"
    ):
        train(*loaders(shards), dataclasses.replace(TINY, steps=3), resume=path, progress=False)
    both = dataclasses.replace(TINY, dim=32, clip=2.0)
    with pytest.raises(
        ValueError, match=r"embedding\.dim was 16, here it is 32; train\.steps was 4, .*; train\.clip was"
    ):
        train(*loaders(shards), both, resume=path, progress=False)


def test_a_resume_with_another_batch_says_so_and_adds_to_the_tokens(shards, tmp_path, capsys):
    every = {"validate_every": 4, "checkpoint_every": 4, "progress": False}
    path, half = tmp_path / CHECKPOINT, dataclasses.replace(TINY, steps=4)
    train(loaders(shards)[0], None, half, folder=tmp_path, **every)
    state = torch.load(path, weights_only=True)
    torch.save({**state, "settings": dataclasses.asdict(TINY)}, path)  # as if the run was stopped at step 4
    loader = ShardLoader(shards, batch_size=4)
    _, metrics = train(loader, None, TINY, resume=path, **every)
    assert [metric.tokens for metric in metrics] == [4 * 8 * 32, 4 * 8 * 32 + 4 * 4 * 32, 4 * 8 * 32 + 8 * 4 * 32]
    assert (
        capsys.readouterr().err
        == f"{path}: its run had 8 windows per step, this one has 4, so the resumed run is not exact\n"
    )


def test_a_damaged_or_foreign_checkpoint_is_refused_with_its_name(shards, tmp_path):
    settings = dataclasses.replace(TINY, steps=1)
    train(loaders(shards)[0], None, settings, folder=tmp_path, progress=False)
    path = tmp_path / CHECKPOINT
    whole = path.read_bytes()
    for data in (b"", b"\x80", b"not a checkpoint", whole[:100], whole[:-1000], whole[:5000] + whole[6000:]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=re.escape(f"{path}: ")):
            train(loaders(shards)[0], None, settings, resume=path, progress=False)
    for foreign in ({"model": {}}, [1, 2], torch.zeros(2)):
        torch.save(foreign, path)
        with pytest.raises(ValueError, match="not a checkpoint of this program"):
            train(loaders(shards)[0], None, settings, resume=path, progress=False)


def test_a_diverging_run_stops_with_its_step_and_the_remedy(shards):
    settings = dataclasses.replace(TINY, learning_rate=1e30, warmup=0)
    with pytest.raises(ValueError, match=r"not finite at step \d+. Lower train.learning_rate"):
        train(loaders(shards)[0], None, settings, progress=False)


def test_held_out_loss_falls_below_that_of_a_unigram_model(shards):
    settings = dataclasses.replace(TINY, dim=32, steps=150)
    baseline = unigram(*loaders(shards))
    _, metrics = train(*loaders(shards), settings, validate_every=150, progress=False)
    assert 3.0 < baseline < math.log(257)
    assert metrics[-1].validation_loss < baseline - 0.2


def test_a_unigram_model_by_hand():
    counts = torch.tensor([3, 1, 0])
    targets = [torch.tensor([[0, 0], [1, -100]])]
    tiny = unigram_loss(counts, targets)
    assert tiny == pytest.approx(-(2 * math.log(3 / 4) + math.log(1 / 4)) / 3, abs=1e-2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
@pytest.mark.parametrize("option", ["bf16", "compiled"])
def test_rounded_and_compiled_training_stay_close_to_the_plain_one(shards, option):
    if option == "compiled" and not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler on a processor")
    plain, metrics = train(*loaders(shards), TINY, validate_every=12, progress=False)
    other, others = train(*loaders(shards), TINY, validate_every=12, progress=False, **{option: True})
    assert others[-1].validation_loss == pytest.approx(metrics[-1].validation_loss, rel=1e-2)
    same = [torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True)]
    assert not all(same), "the option changes at least how sums are rounded"


def test_no_place_sees_what_follows_it():
    model = GPT(11, 8, dim=16, layers=2, heads=4, positions="learned", seed=0)
    ids_BT = torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(0))
    changed_BT = ids_BT.clone()
    changed_BT[:, 5:] = (changed_BT[:, 5:] + 1) % 11
    with torch.no_grad():
        before, after = model(ids_BT), model(changed_BT)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-6)


def test_the_loss_of_a_document_in_a_window_is_that_of_the_document_alone(tmp_path):
    window = WindowConfig(max_length=48, documents="pack")
    written = write_shards(
        tmp_path / "a", corpus=["one text", "another text", "more"], tokenizer="bytes", window=window
    )
    (batch,) = ShardLoader(written.path, batch_size=1, shuffle="none", document_ids=True)
    model = GPT(257, 48, dim=16, layers=2, heads=4, positions="learned", seed=0)
    alone = 0.0
    for document in range(3):
        here = batch.document_ids == document
        scores = model(batch.input_ids[here][None])[0]
        alone += functional.cross_entropy(scores, batch.target_ids[here], ignore_index=-100, reduction="sum")
    loss, targets = summed_loss(model, batch)
    assert targets == (batch.target_ids != -100).sum()
    assert loss.item() == pytest.approx(alone.item(), rel=1e-5)


def test_the_learning_rate_rises_in_a_line_and_falls_to_a_tenth():
    rates = [learning_rate(step, TINY) for step in range(1, 13)]
    assert rates[:2] == pytest.approx([0.005, 0.01])
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(0.001)


def command(tmp_path, *arguments):
    return run_program(ROOT / "scripts/train.py", *arguments, cwd=tmp_path, OMP_NUM_THREADS="1")


@pytest.mark.slow
def test_a_users_function_gets_each_row_of_metrics_and_another_makes_the_model(tmp_path, monkeypatch):
    (tmp_path / "own_training.py").write_text(OWN)
    found = command(
        tmp_path,
        *TINY_RUN,
        "train.validate_every=3",
        "train.on_metrics=own_training.report",
        "train.tensorboard=true",
        "model.build=own_training.build",
        "hydra.run.dir=run",
    )
    assert found.returncode == 0, found.stderr
    rows = [json.loads(line) for line in (tmp_path / "run/rows.jsonl").read_text().splitlines()]
    with (tmp_path / "run/metrics.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [{name: str(value) for name, value in row.items()} for row in rows] == written
    assert [row["step"] for row in rows] == [3, 6]
    assert (tmp_path / "run/built").read_text() == "257 32 16"

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    losses = [(one.step, one.value) for one in events.Scalars("validation_loss")]
    assert losses == [(row["step"], pytest.approx(row["validation_loss"])) for row in rows]


OWN = """
import json
from pathlib import Path
from torch import nn

def report(row, folder):
    with open(folder / "rows.jsonl", "a") as file:
        file.write(json.dumps(row) + "\\n")

def build(vocab_size, max_length, settings):
    Path("run/built").write_text(f"{vocab_size} {max_length} {settings.dim}")
    return nn.Sequential(nn.Embedding(vocab_size, settings.dim), nn.Linear(settings.dim, vocab_size))
"""


@pytest.mark.parametrize("name", ["nothing.such", "math.nothing", "math", "math.pi", ".x", ""])
def test_a_function_that_cannot_be_found_is_refused_by_its_key(name):
    with pytest.raises(ConfigError, match=r"^train\.on_metrics: "):
        load_function("train.on_metrics", name)


TINY_RUN = ["embedding.dim=16", "model.layers=1", "window.max_length=32", "train.steps=6", "train.warmup=2"]


def test_the_command_trains_and_goes_on_from_its_checkpoint(tmp_path):
    done = command(tmp_path, *TINY_RUN, "train.validate_every=3", "train.checkpoint_every=3")
    assert done.returncode == 0, done.stderr
    assert "unigram baseline (token frequencies only): validation loss 3." in done.stdout
    (checkpoint,) = tmp_path.rglob(CHECKPOINT)
    assert {path.name for path in checkpoint.parent.iterdir()} >= {"metrics.csv", "loss.svg"}
    wrong = command(tmp_path, *TINY_RUN, "embedding.dim=32", f"train.resume={checkpoint}")
    assert wrong.returncode == 1
    assert "embedding.dim was 16, here it is 32" in wrong.stderr.splitlines()[-1]
    assert "Error executing job" not in wrong.stderr


def test_a_mixture_is_trained_on_within_documents(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"{k} text of a document"}) + "\n" for k in range(99))
    )
    for name, length in (("one", 32), ("two", 32), ("long", 48)):
        options = {"tokenizer": "bytes", "corpus": "jsonl", "corpus_path": str(tmp_path / "a.jsonl")}
        given = sections(**options, max_length=length, stride=length, cache_path=tmp_path / "cache")
        write_shards(tmp_path / name, **given)
    own = ["corpus=jsonl", "corpus.path=a.jsonl", "tokenizer=bytes", "split.validation=0.2", "loader.batch_size=4"]
    run = [*TINY_RUN, *own, "loader.document_ids=true", "loader.score_document_starts=false", "loader.threads=1"]
    sources = "loader.sources=[{path: one, weight: 3}, {path: %s, weight: 1}]"
    done = command(tmp_path, *run, sources % "two")
    assert done.returncode == 0, done.stderr
    (checkpoint,) = tmp_path.rglob(CHECKPOINT)
    state = torch.load(checkpoint, weights_only=True)["loader"]
    assert state["weights"] == [[0, [3, 1]]]
    assert state["consumed"] == 6 * 4
    wrong = command(tmp_path, *TINY_RUN, *own, "loader.sources=[{path: long, weight: 1}]")
    assert wrong.returncode == 2
    assert "window.max_length: must be that of loader.sources" in wrong.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=3", "train.step: no such key; did you mean 'train.steps'?"),
        ("model.heads=5", "model.heads: must divide embedding.dim=64; got 5"),
        ("train.device=tpu", "train.device: must be auto, cpu, cuda or cuda:<number>; got 'tpu'"),
        ("train.warmup=-1", "train.warmup: must be at least 0; got -1"),
        ("split.validation=0", "split.validation: training needs a validation split; got 0"),
    ],
)
def test_a_wrong_training_config_is_refused_in_one_line(override, message):
    register_configs()
    register_schema(TrainConfig)
    try:
        with pytest.raises(ConfigError) as refusal:
            check_command_line([override], kind=TrainConfig, config_name="train")
    finally:
        register_schema()
    assert str(refusal.value) == message


@pytest.mark.parametrize("windows", [[], ["window.tail=pad", "window.documents=separate"]], ids=["full", "padded"])
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path, windows):
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"text": "ab c" * n}) + "\n" for n in range(1, 60)))
    run = [*TINY_RUN, *windows]
    if windows:  # documents shorter and longer than a window: the ranks' targets are unequal
        run += ["corpus=jsonl", "corpus.path=lines.jsonl", "tokenizer=bytes", "split.validation=0.2", "train.clip=100"]
    for done in run_ranks(ROOT / "scripts/train.py", *run, "loader.batch_size=4", cwd=tmp_path, ranks=2):
        assert done.returncode == 0, done.stderr
    (checkpoint,) = tmp_path.rglob(CHECKPOINT)
    double = torch.load(checkpoint, weights_only=True)
    one = command(tmp_path, *run, "loader.batch_size=8")
    assert one.returncode == 0, one.stderr
    (other,) = (path for path in tmp_path.rglob(CHECKPOINT) if path != checkpoint)
    single = torch.load(other, weights_only=True)
    assert double["loader"] == single["loader"]
    for name, weight in single["model"].items():
        assert torch.allclose(weight, double["model"][name], atol=1e-4), name


def test_a_sweep_of_trainings_keeps_what_is_finished_and_compares_its_points(tmp_path):
    keys = ["window.stride=32,64", "window.max_length=64", "train.steps=4", "train.checkpoint_every=2"]
    run = ["-m", "hydra.sweep.dir=D", *keys, "train.validate_every=2", "embedding.dim=8", "model.heads=1"]
    first = command(tmp_path, *run)
    assert first.returncode == 0, first.stderr
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("D/*/checkpoint.pt")}
    assert len(before) == 2

    def compared():
        return list(csv.DictReader((tmp_path / "D/compare.csv").read_text().splitlines()))

    rows = compared()
    assert [(row["window.stride"], row["step"], row["tokens"]) for row in rows] == [
        ("32", "4", "2048"),
        ("64", "4", "2048"),
    ]
    assert [row["status"] for row in rows] == ["done", "done"]
    windows = []
    for row in rows:
        folder = tmp_path / "D" / row["folder"]
        metrics = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
        record = json.loads((folder / "point.json").read_text())
        assert metrics[-1]["validation_loss"] == row["validation_loss"] == str(record["number"]), "what a sweeper gets"
        said = (folder / "output.txt").read_text()
        windows.append(re.search(r"([\d,]+ windows) of 64 tokens, end to end", said)[1])
        assert "the model continues the validation split: " in said
    assert windows[0] == windows[1], "the loss is of the same tokens whatever the stride"
    assert (tmp_path / "D/compare.svg").read_text().count('class="point"') == 4
    record = tmp_path / "D/1/point.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "status": "running"}))  # as after kill -9
    again = command(tmp_path, *run[:2], "window.stride=32,64", *run[3:])
    assert again.returncode == 0, again.stderr
    assert "point 1  train  4 of 4 steps (100 %)  starts" in again.stderr, "it goes on from its checkpoint"
    assert "point 0  train" not in again.stderr, "it is kept"
    assert compared()[0] == rows[0]


PROGRAMS = {
    "train": ["train.steps=2", "train.warmup=1", "embedding.dim=8", "model.heads=1", "model.layers=1"],
    "study": [
        "experiment=stride_study_quick",
        "train.steps=2",
        "study.seeds=[0]",
        "study.strides=[32]",
        "study.passes=1",
    ],
    "neighbors": ["experiment=neighbors_quick", "tokenizer=gpt2", "train.steps=2", "train.validate_every=2"],
}
SMALL_TEXT = " ".join(["the is are a class list int for if can may one two three"] * 80)
SET_BEFORE_THE_JOB = {"train.threads", "progress.every"}
READ_BY_THE_WRITE_STAGE = ("corpus", "tokenizer", "split", "shards", "executor", "cache")


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_key_of_a_program_is_read_or_refused(program, tmp_path, monkeypatch):
    """A key that a program takes and never looks at would be a setting without effect."""
    from importlib import import_module

    from hydra import compose, initialize_config_dir

    from pipeline.cli.compose import find_conf, hydra_options

    module = import_module(program)
    refused = (*NO_EFFECT, *module.UNUSED_KEYS)
    register_configs()
    register_schema(TrainConfig)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"{k} {SMALL_TEXT}"}) + "\n" for k in range(12)))
    monkeypatch.chdir(tmp_path)
    own = [*PROGRAMS[program], "corpus=jsonl", "corpus.path=a.jsonl", "split.validation=0.3"]
    with initialize_config_dir(config_dir=str(find_conf()), **hydra_options()):
        config = read_config(compose("train", overrides=own), TrainConfig)
    refuse_no_effect(config, refused, program)
    read = set()
    for section in ("window", "loader", "embedding", "model", "train", "study"):
        spy_on(getattr(config, section), section, read)
    module.run(config, tmp_path)
    for key in schema_keys(TrainConfig):
        section = key.partition(".")[0]
        if "." in key and section not in READ_BY_THE_WRITE_STAGE and not {key, section} & set(refused):
            assert key in read | SET_BEFORE_THE_JOB, f"{key} has no effect on {program}"


def spy_on(section, name, read):
    """Make a section note which of its fields are asked for."""

    def watch(self, field):
        read.add(f"{name}.{field}")
        return object.__getattribute__(self, field)

    section.__class__ = type("Spy", (type(section),), {"__slots__": (), "__getattribute__": watch})


@pytest.mark.parametrize("program", ["train.py", "study.py", "neighbors.py"])
@pytest.mark.parametrize(
    "override",
    ["stages=plan", "window.score=new", "loader.split=validation", "show.window=1"],
)
def test_a_key_that_would_do_nothing_is_refused(program, override):
    register_configs()
    register_schema(TrainConfig)
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^{key}: has no effect on {program}; leave it out$"):
        check_command_line(
            [override],
            kind=TrainConfig,
            config_name="train",
            check=lambda config: refuse_no_effect(config, NO_EFFECT, program),
        )
