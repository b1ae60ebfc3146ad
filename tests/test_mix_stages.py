"""A mixture in the config: `loader.sources`, which the stages load, show and prove read."""

import itertools
import json

import pytest
from support import run_program, sections

from pipeline import ConfigError, ShardLoader, read_manifest, write_shards
from pipeline.cli import prove, show
from pipeline.cli.config import Config, ProveConfig, ShowConfig
from pipeline.cli.epoch import load_batches
from pipeline.loader.weights import merge_weights
from pipeline.settings import CacheConfig, EmbeddingConfig, LoaderConfig, TokenizerConfig

SIZES = {"a": 90, "b": 41, "c": 3}  # windows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mix")
    for name, windows in SIZES.items():
        text = "".join(f"{name}{k:05} " for k in range(windows * 3))[: 12 * windows + 1]
        write_shards(folder / name, corpus=[text], cache=folder / "cache", **sections(tokenizer="bytes", max_length=12))
    return folder


def mixture(folder, weights=(5, 4, 1), **options):
    sources = [{"path": str(folder / name), "weight": weight} for name, weight in zip(SIZES, weights, strict=True)]
    return LoaderConfig(sources=sources, **options)


def test_the_load_stage_reads_the_mixture_and_not_the_folder_of_the_shards(folder):
    for weights in ((5, 4, 1), (None, None, None), ([[0, 1], [6, 0]], 1, [[0, 0], [10, 1]])):
        section = mixture(folder, weights, batch_size=8, shuffle="full")
        report = load_batches(folder / "nothing", loader=section, embedding=EmbeddingConfig(dim=4))
        loader = ShardLoader(
            [folder / name for name in SIZES], weights=merge_weights(weights), batch_size=8, shuffle="full"
        )
        batches = list(loader)
        assert report.batches == len(batches)
        assert report.source_samples == dict(
            zip((str(folder / name) for name in SIZES), loader.source_samples, strict=True)
        )
        assert report.input_ids == batches[0].input_ids[0].tolist()
        assert report.bytes_decoded >= 2 * 12 * sum(SIZES.values())
    everything = load_batches("", loader=mixture(folder, batch_size="all"), embedding=EmbeddingConfig(dim=4))
    assert everything.windows == sum(SIZES.values())


def test_schedules_of_the_sources_become_one():
    assert merge_weights([None, None]) is None
    assert merge_weights([1, 2.5]) == [1, 2.5]
    assert merge_weights([[(0, 1)], 2]) == [1, 2]
    merged = merge_weights([[(0, 1), (5, 2)], 7, [(0, 3), (4, 0), (5, 9)]])
    assert merged == [(0, [1, 7, 3]), (4, [1, 7, 0]), (5, [2, 7, 9])]


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ([], "must be a list of sources"),
        ("a", "must be a list of sources"),
        ([{"weight": 1}], "must be a list of sources"),
        ([{"path": "a", "wieght": 1}], "must be a list of sources"),
        ([{"path": "", "weight": 1}], "path: must name a folder"),
        ([{"path": "a", "weight": "1"}], "weight: must be a number from 0"),
        ([{"path": "a", "weight": -1}], "weight: must be a number from 0"),
        ([{"path": "a", "weight": float("nan")}], "weight: must be a number from 0"),
        ([{"path": "a", "weight": []}], "weight: must be a number, or a schedule"),
        ([{"path": "a", "weight": [[0, 1], 2]}], "weight: must be a number, or a schedule"),
        ([{"path": "a", "weight": [[1, 1]]}], "weight: the steps of a schedule must start with 0 and rise"),
        ([{"path": "a", "weight": [[0, 1], [0, 2]]}], "weight: the steps of a schedule must start with 0 and rise"),
        ([{"path": "a", "weight": [[0, 1], [2.5, 2]]}], "weight: a step: must be a whole number"),
        ([{"path": "a", "weight": [[0, True]]}], "weight: must be a number from 0"),
        ([{"path": "a", "weight": 1}, {"path": "b"}], "must have a weight for each source, or for none"),
    ],
)
def test_sources_that_break_their_rule_are_refused(sources, words):
    with pytest.raises(ConfigError, match=rf"^loader\.sources: {words}"):
        LoaderConfig(sources=sources)


@pytest.mark.parametrize("shuffle", ["none", "full", "lanes"])
def test_a_step_of_a_mixture_shows_the_windows_that_the_loader_hands_over(folder, shuffle):
    options = {"batch_size": 3, "shuffle": shuffle, "seed": 5, "lanes": 4}
    for rank in (0, 1):
        loader = ShardLoader([folder / name for name in SIZES], weights=[5, 4, 1], rank=rank, world_size=2, **options)
        for epoch in range(2):
            assert loader.epoch == epoch
            for step, batch in enumerate(loader):
                if step not in (0, 1, 7):
                    continue
                config = Config(
                    loader=mixture(folder, **options),
                    show=ShowConfig(step=step, epoch=epoch, rank=rank, world_size=2),
                    cache=CacheConfig(path=str(folder / "cache")),
                    tokenizer=TokenizerConfig(name="bytes"),
                )
                config.shards.path = "nothing"
                shown = show.show_windows(config).windows
                expected = [
                    (str(folder / "abc"[source]), window)
                    for source, window in zip(batch.source_ids.tolist(), batch.window_ids.tolist(), strict=True)
                ]
                assert [(one.path, one.window) for one in shown] == expected
                assert [one.input_ids for one in shown] == batch.input_ids.tolist()
                assert all(one.documents for one in shown)


def test_a_mixture_has_no_window_by_number(folder):
    config = Config(loader=mixture(folder))
    config.shards.path = "nothing"
    with pytest.raises(ConfigError, match=r"show\.step: must be set with loader\.sources"):
        show.show_windows(config)


@pytest.mark.slow
def test_a_mixture_of_parts_of_its_sources_is_proven(folder):
    section = mixture(folder, (20, 1, 1), lanes=4, limit=[0.1, None, None], exclude=[None, list(range(20)), None])
    report = prove.prove_loader("", loader=section, prove=ProveConfig(stops=2, world_sizes=[2]))
    assert report.windows == 9 + 21 + 3
    assert report.unproven == []
    assert all(report.compared.values())


@pytest.mark.slow
def test_a_mixture_is_proven(folder, capsys, monkeypatch):
    proven = ProveConfig(epoch=1, stops=3, world_sizes=[1, 2, 4])
    section = mixture(folder, ([[0, 5], [9, 1]], 4, 1), lanes=4)
    report = prove.prove_loader("nothing", loader=section, prove=proven)
    assert report.unproven == []
    assert set(report.compared) == {"none", "full", "lanes"}
    assert all(report.compared.values())
    said = capsys.readouterr().out
    assert said.count("epoch 1 has 1") == 3
    real = prove.read_batches
    for broken in (
        lambda loader, count: real(loader, count)[::-1],
        lambda loader, count: real(loader, count) * 0,
    ):
        monkeypatch.setattr(prove, "read_batches", broken)
        assert prove.prove_loader("nothing", loader=section, prove=proven).unproven


@pytest.mark.slow
def test_the_command_line_takes_a_mixture(folder, tmp_path):
    given = ", ".join(
        f"{{path: {folder / name}, weight: {weight}}}" for name, weight in (("a", "[[0, 1], [5, 3]]"), ("b", 2))
    )
    done = run_program(
        "-m",
        "pipeline",
        "stages=[load,prove]",
        f"loader.sources=[{given}]",
        "tokenizer=bytes",
        f"hydra.run.dir={tmp_path}",
        "prove.shuffles=[full]",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert f"samples of {folder / 'a'}" in done.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["load"]["source_samples"]) == {str(folder / "a"), str(folder / "b")}
    assert sum(summary["load"]["source_samples"].values()) == summary["load"]["windows"]
    assert list(itertools.chain(summary["prove"]["unproven"])) == []
    assert read_manifest(folder / "a").splits["train"].num_windows == SIZES["a"]
