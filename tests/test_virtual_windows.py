"""A token store read directly gives the batches that shards of the same windows give, with nothing written."""

import itertools
import os
import pickle
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import sections, store_windows

from pipeline import ShardLoader, WindowDataset, write_shards
from pipeline.loader.readers import open_split


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("virtual")
    (folder / "texts").mkdir()
    for number in range(7):
        text = " ".join(f"{word} of {number}" for word in range(17 * number + 3))
        (folder / "texts" / f"{number}.txt").write_text(text)
    return folder


def write(corpus, **options):
    name = "-".join(str(value) for value in options.values())
    report = write_shards(
        corpus / name,
        **sections(
            corpus="text", corpus_path=str(corpus / "texts"), cache_path=corpus / "cache", tokenizer="bytes", **options
        ),
    )
    return report.path


def store_of(corpus, validation=0.0):
    import json

    stores = (corpus / "cache" / "stores").glob("*.json")
    return next(path for path in stores if json.loads(path.read_text())["validation"] == validation)


def contents(loader):
    return [(b.window_ids.tolist(), b.input_ids.tolist(), b.target_ids.tolist()) for b in loader]


@pytest.mark.slow
@given(
    max_length=st.integers(2, 40),
    data=st.data(),
    tail=st.sampled_from(["drop", "pad"]),
    documents=st.sampled_from(["join", "separate"]),
    shuffle=st.sampled_from(["none", "full", "lanes"]),
    score=st.sampled_from(["all", "new"]),
    group=st.sampled_from([None, 3, 10]),
)
@settings(max_examples=20)
def test_batches_from_a_store_equal_those_from_shards(corpus, max_length, data, tail, documents, shuffle, score, group):
    stride = data.draw(st.integers(1, max_length))
    window = {"max_length": max_length, "stride": stride, "tail": tail, "documents": documents}
    layout = {"windows_per_group": group, "windows_per_shard": group and 4 * group}
    path = write(corpus, **window, **layout)
    order = {"shuffle": shuffle, "seed": 3, "lanes": 4, "batch_size": 5, "drop_last": False, "score": score}
    shards, virtual = (
        ShardLoader(path, **order),
        ShardLoader(store_windows(store_of(corpus), **window, **layout), **order),
    )
    assert virtual.reader.groups == shards.reader.groups
    assert contents(virtual) == contents(shards)
    datasets = (
        WindowDataset(path, score=score),
        WindowDataset(store_windows(store_of(corpus), **window, **layout), score=score),
    )
    for window_id in (0, len(datasets[0]) - 1):
        one, other = (dataset[window_id] for dataset in datasets)
        assert {name: ids.tolist() for name, ids in one.items()} == {name: ids.tolist() for name, ids in other.items()}


def test_a_resume_from_a_store_goes_on_on_another_world_size(corpus):
    path = store_of(corpus) if list((corpus / "cache").glob("stores/*")) else None
    if path is None:
        write(corpus, max_length=8)
        path = store_of(corpus)
    windows = store_windows(path, max_length=8, stride=4)
    options = {"shuffle": "lanes", "lanes": 4}
    whole = [batch.window_ids.tolist() for batch in ShardLoader(windows, **options)]
    loader = ShardLoader(windows, **options)
    for _ in itertools.islice(loader, 5):
        state = loader.state_dict()
    rest = []
    for rank in (0, 1):
        other = pickle.loads(pickle.dumps(ShardLoader(windows, **options, batch_size=4, rank=rank, world_size=2)))
        other.load_state_dict(state)
        rest.append([batch.window_ids.tolist() for batch in other])
    assert rest == [[batch[rank::2] for batch in whole[5:]] for rank in (0, 1)]
    another = ShardLoader(store_windows(path, max_length=8), **options)
    with pytest.raises(
        ValueError, match=r"this state belongs to another data set .* window.stride was 4, here it is 8"
    ):
        another.load_state_dict(state)


def test_validation_splits_of_a_store_are_those_of_the_shards(corpus):
    path = write(corpus, max_length=8, validation=0.4, split_seed=1)
    store = store_of(corpus, validation=0.4)
    for split in ("train", "validation"):
        virtual = ShardLoader(store_windows(store, max_length=8), split=split)
        assert contents(virtual) == contents(ShardLoader(path, split=split))


def test_a_store_without_windows_is_refused(corpus, tmp_path):
    write(corpus, max_length=8)
    with pytest.raises(ValueError, match="is a token store, which has no windows of its own: pass StoreWindows"):
        ShardLoader(store_of(corpus))
    with pytest.raises(ValueError, match="has no split 'validation'; it has train"):
        ShardLoader(store_windows(store_of(corpus), max_length=8), split="validation")
    with pytest.raises(OSError, match=r"none.json"):
        ShardLoader(store_windows(tmp_path / "none.json", max_length=8))


def test_a_changed_token_store_is_made_again_as_its_refusal_says(tmp_path):
    options = sections(tokenizer="bytes", max_length=4, cache_path=tmp_path / "cache")
    texts = ["The kettle sang."]
    write_shards(tmp_path / "ds", corpus=texts, **options)
    (store,) = (tmp_path / "cache" / "stores").glob("*.json")
    intact = store.read_bytes()
    store.write_bytes(intact.replace(b"0.0", b"0.5"))
    for folder in ("ds", "new"):
        with pytest.raises(ValueError, match=r"run the write stage with a new shards\.path"):
            ShardLoader(store_windows(store, max_length=4), batch_size=1)
        write_shards(tmp_path / folder, corpus=texts, **options)
    assert store.read_bytes() == intact
    assert len(ShardLoader(store_windows(store, max_length=4), batch_size=1)) == 3


def test_windows_of_a_damaged_store_are_refused(corpus, tmp_path):
    report = write_shards(
        tmp_path / "shards",
        **sections(
            corpus="text",
            corpus_path=str(corpus / "texts"),
            cache_path=tmp_path / "cache",
            tokenizer="bytes",
            max_length=8,
        ),
    )
    (chunk,) = (tmp_path / "cache" / "chunks").iterdir()
    content = bytearray((chunk / "train.npy").read_bytes())
    content[700] ^= 1
    (chunk / "train.npy").write_bytes(content)
    loader = ShardLoader(store_windows(tmp_path / "cache" / "stores" / f"{report.manifest.store}.json", max_length=8))
    with pytest.raises(OSError, match=r"its train.npy has the checksum .*; remove this folder"):
        list(loader)


def test_a_store_that_becomes_shorter_while_it_is_read_is_an_error(corpus, tmp_path):
    shutil.copytree(corpus / "texts", tmp_path / "texts")
    write(tmp_path, max_length=8)
    source = open_split(store_windows(store_of(tmp_path), max_length=8, windows_per_group=10), "train")
    tokens = np.empty(10 * 8 + 1, source.dtype)
    source.read_group(0, tokens)
    for file in (tmp_path / "cache").rglob("train.npy"):
        os.truncate(file, 150)
    with pytest.raises(OSError, match=r"its train.npy became shorter while it was read"):
        source.read_group(1, tokens)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_length": 0}, "window.max_length: must be at least 1; got 0"),
        ({"stride": 0}, "window.stride: must be at least 1; got 0"),
        ({"stride": -1}, "window.stride: must be at least 1; got -1"),
        ({"tail": "padd"}, "did you mean 'pad'"),
        ({"documents": "seperate"}, "did you mean 'separate'"),
        ({"windows_per_group": -2}, "shards.windows_per_group: must be at least 1; got -2"),
        ({"windows_per_group": 3, "windows_per_shard": 10}, "must be a multiple of windows_per_group=3"),
    ],
)
@pytest.mark.parametrize("kind", [ShardLoader, WindowDataset])
def test_windows_of_a_store_are_refused_for_what_a_config_is_refused_for(corpus, kind, options, words):
    write(corpus, max_length=8)
    with pytest.raises(ValueError, match=words):
        kind(store_windows(store_of(corpus), **{"max_length": 8, **options}))
