"""Batches equal the stored windows, in an order that world size, batch size and interruption do not change."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline import ShardLoader, TokenEmbedding, WindowDataset, embed_batches, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A data set of 97 windows in 4 shards of 3 row groups."""
    folder = tmp_path_factory.mktemp("loader")
    text = " ".join(f"{number} and" for number in range(600))
    (folder / "text.txt").write_text(text)
    options = {"windows_per_group": 10, "windows_per_shard": 30, "max_length": 16, "stride": 12}
    report = write_shards(
        folder / "shards", corpus="text", corpus_path=str(folder / "text.txt"), cache_path=folder / "cache", **options
    )
    return report.path


def stored(folder):
    tables = [pq.read_table(file) for file in sorted((folder / "data").glob("train-*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


def rows_of(loader):
    return [
        (window, inputs, targets)
        for batch in loader
        for window, inputs, targets in zip(
            batch.window_ids.tolist(), batch.input_ids.tolist(), batch.target_ids.tolist(), strict=True
        )
    ]


def test_in_stored_order_batches_are_the_files_rows(shards):
    loader = ShardLoader(shards, batch_size=8, shuffle="none", drop_last=False)
    found = [row for row in rows_of(loader) if row[0] >= 0]
    assert found == [(k, row["input_ids"], row["target_ids"]) for k, row in enumerate(stored(shards))]


@pytest.mark.parametrize("shuffle", ["none", "full", "lanes", "auto"])
def test_every_window_comes_once_with_its_own_tokens(shards, shuffle):
    rows = stored(shards)
    loader = ShardLoader(shards, batch_size=7, shuffle=shuffle, lanes=4, drop_last=False)
    found = [row for row in rows_of(loader) if row[0] >= 0]
    assert sorted(window for window, _, _ in found) == list(range(len(rows)))
    assert all((inputs, targets) == (rows[k]["input_ids"], rows[k]["target_ids"]) for k, inputs, targets in found)


def test_epochs_and_seeds_have_orders_of_their_own_and_equal_ones_repeat(shards):
    loader = ShardLoader(shards, shuffle="full", seed=1)
    first, second = ([row[0] for row in rows_of(loader)] for _ in range(2))
    assert first != second
    again = ShardLoader(shards, shuffle="full", seed=1)
    again.set_epoch(1)
    assert [row[0] for row in rows_of(again)] == second
    assert [row[0] for row in rows_of(ShardLoader(shards, shuffle="full", seed=2))] != first


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("shuffle", ["none", "full", "lanes"])
def test_all_ranks_together_read_the_same_global_sequence(shards, shuffle, world_size):
    def global_sequence(world_size, batch_size):
        loaders = [
            ShardLoader(shards, shuffle=shuffle, lanes=4, batch_size=batch_size, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        per_rank = [[row[0] for row in rows_of(loader)] for loader in loaders]
        assert len({len(windows) for windows in per_rank}) == 1
        return [window for step in zip(*per_rank, strict=True) for window in step]

    assert global_sequence(world_size, 8 // world_size) == global_sequence(1, 8)


def test_a_loader_stopped_at_any_step_goes_on_with_what_was_left(shards):
    whole = [batch.window_ids.tolist() for batch in ShardLoader(shards, batch_size=8, shuffle="full")]
    for step in range(len(whole)):
        loader = ShardLoader(shards, batch_size=8, shuffle="full")
        seen = [batch.window_ids.tolist() for batch, _ in zip(loader, range(step), strict=False)]
        state = json.loads(json.dumps(loader.state_dict()))
        assert seen == whole[:step]
        state["consumed"] = step * 8  # `zip` has drawn one batch more than it handed over
        fresh = ShardLoader(shards, batch_size=4, shuffle="full", rank=0, world_size=2)
        fresh.load_state_dict(state)
        rest = [batch.window_ids.tolist() for batch in fresh]
        assert rest == [batch[0::2] for batch in whole[step:]]


def test_a_state_of_another_order_is_refused_by_name(shards):
    state = ShardLoader(shards, seed=1).state_dict()
    with pytest.raises(ValueError, match=r"the state has seed=1, this loader has 2"):
        ShardLoader(shards, seed=2).load_state_dict(state)


def test_the_last_batch_is_dropped_or_filled_with_rows_that_do_not_count(shards):
    windows = len(stored(shards))
    kept = ShardLoader(shards, batch_size=8, drop_last=True)
    filled = ShardLoader(shards, batch_size=8, drop_last=False)
    assert (len(kept), len(filled)) == (windows // 8, -(-windows // 8))
    last = list(filled)[-1]
    assert last.input_ids.shape == (8, 16)
    filler = last.window_ids < 0
    assert int(filler.sum()) == 8 - windows % 8
    assert bool((last.target_ids[filler] == -100).all())


def test_embedded_batches_carry_the_gradient_to_the_rows_of_their_ids(shards):
    embedding = TokenEmbedding(50257, 8, 16)
    batch = next(iter(embed_batches(ShardLoader(shards), embedding)))
    assert batch.embeddings.shape == (8, 16, 8)
    assert (batch.input_ids.dtype, batch.target_ids.dtype) == (torch.int64, torch.int64)
    batch.embeddings.sum().backward()
    reached = torch.nonzero(embedding.weight.grad.abs().sum(dim=1)).flatten()
    assert torch.equal(reached, batch.input_ids.unique())


def test_a_dataset_gives_any_window_by_its_number(shards):
    rows = stored(shards)
    dataset = WindowDataset(shards)
    assert len(dataset) == len(rows)
    for window in (0, 5, len(rows) - 1, -1):
        assert dataset[window]["input_ids"].tolist() == rows[window]["input_ids"]
        assert dataset[window]["target_ids"].tolist() == rows[window]["target_ids"]
    several = dataset.__getitems__([40, 3, 40])
    assert [item["input_ids"].tolist() for item in several] == [rows[k]["input_ids"] for k in (40, 3, 40)]
    with pytest.raises(IndexError):
        dataset[len(rows)]


def test_a_folder_without_a_manifest_is_refused(tmp_path, shards):
    with pytest.raises(ValueError, match=r"does not exist: it is not a data set"):
        ShardLoader(tmp_path / "none")
    with pytest.raises(ValueError, match=r"holds no manifest.json: it is not a data set"):
        ShardLoader(tmp_path)
    with pytest.raises(ValueError, match=r"has no split 'validation'; it has train"):
        ShardLoader(shards, split="validation")


def test_a_flipped_bit_in_a_page_is_an_error_not_a_wrong_id(tmp_path, shards):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    file = copy / "data" / "train-00000-of-00004.parquet"
    content = bytearray(file.read_bytes())
    start = pq.read_metadata(file).row_group(0).column(0).data_page_offset
    caught = 0
    for place in range(start + 60, start + 90):
        content[place] ^= 1
        file.write_bytes(content)
        with pytest.raises(OSError, match=r"CRC|checksum|[Cc]orrupt|[Dd]ecompress"):
            list(ShardLoader(copy, shuffle="none"))
        content[place] ^= 1
        caught += 1
    assert caught == 30
    assert (
        np.frombuffer(content, np.uint8).sum()
        == np.frombuffer((shards / "data" / file.name).read_bytes(), np.uint8).sum()
    )
