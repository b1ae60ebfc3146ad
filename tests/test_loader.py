"""Batches equal the stored windows, in an order that world size, batch size and interruption do not change."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
from support import sections, store_windows
from tokenizers import models, pre_tokenizers

from pipeline import ShardLoader, TokenEmbedding, WindowDataset, embed_batches, read_manifest, write_shards
from pipeline.loader import row_group as row_group_module


@pytest.fixture(scope="module")
def shards(write_text):
    """A data set of 97 windows in 4 shards of 3 row groups."""
    text = " ".join(f"{number} and" for number in range(600))
    return write_text(text, windows_per_group=10, windows_per_shard=30, max_length=16, stride=12)


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


@pytest.mark.parametrize("int64_tokens", [1, 5 * 7 * 16, 1 << 16])
def test_batches_are_the_same_however_many_are_converted_together_and_changing_one_changes_no_other(
    shards, int64_tokens, monkeypatch
):
    rows = {k: (row["input_ids"], row["target_ids"]) for k, row in enumerate(stored(shards))}
    monkeypatch.setattr(row_group_module, "INT64_TOKENS", int64_tokens)
    for batch in ShardLoader(shards, batch_size=7, shuffle="full"):
        assert [rows[k] for k in batch.window_ids.tolist()] == list(
            zip(batch.input_ids.tolist(), batch.target_ids.tolist(), strict=True)
        )
        for tensor in (batch.input_ids, batch.target_ids, batch.window_ids):
            tensor.fill_(-1)


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


def test_a_state_of_another_order_is_refused_by_name(shards):
    state = ShardLoader(shards, seed=1).state_dict()
    with pytest.raises(ValueError, match=r"another order: loader.seed was 1, here it is 2"):
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


def test_a_data_set_of_another_tokenizer_is_refused_with_both_names(shards):
    mine = read_manifest(shards).tokenizer
    assert len(ShardLoader(shards, tokenizer=mine)) == len(ShardLoader(shards))
    other = {"name": "bytes", "hash": "0" * 64}
    for reader in (ShardLoader, WindowDataset):
        with pytest.raises(ValueError, match=r"made by the tokenizer 'gpt2' .* but 'bytes' \(hash 000000000000\)"):
            reader(shards, tokenizer=other)


def test_documents_are_numbered_and_positions_restart_after_each_end_of_text(tmp_path):
    for number, text in enumerate(["abc", "d", "efghij"]):
        (tmp_path / f"{number}.txt").write_text(text)
    report = write_shards(
        tmp_path / "shards",
        **sections(
            corpus="text",
            corpus_path=str(tmp_path),
            cache_path=tmp_path / "cache",
            tokenizer="bytes",
            max_length=9,
            stride=2,
        ),
    )
    batch = next(iter(ShardLoader(report.path, batch_size=2, shuffle="none", document_ids=True)))
    assert batch.input_ids.tolist() == [[*b"abc", 256, *b"d", 256, *b"efg"], [*b"c", 256, *b"d", 256, *b"efghi"]]
    assert batch.document_ids.tolist() == [[0, 0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 1, 1, 2, 2, 2, 2, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 0, 1, 2], [0, 1, 0, 1, 0, 1, 2, 3, 4]]
    plain = next(iter(ShardLoader(report.path, batch_size=2, shuffle="none")))
    assert plain.document_ids is None
    embedding = TokenEmbedding(257, 4, 9)
    (embedded,) = embed_batches([batch], embedding)
    expected = embedding.token(batch.input_ids) + embedding.position(batch.position_ids)
    assert torch.equal(embedded.embeddings, expected)
    assert torch.equal(embedded.document_ids, batch.document_ids)


def test_a_dataset_keeps_few_row_groups_and_can_be_pickled_and_sampled(shards):
    whole = WindowDataset(shards)
    small = WindowDataset(shards, memory_budget=1)
    order = np.random.default_rng(0).permutation(len(whole)).tolist()
    for start in range(0, len(order), 9):
        some = order[start : start + 9]
        pairs = zip(small.__getitems__(some), whole.__getitems__(some), strict=True)
        assert all(torch.equal(one["target_ids"], other["target_ids"]) for one, other in pairs)
    assert len(pickle.dumps(whole)) < 20_000, "what is kept in memory does not travel"
    again = pickle.loads(pickle.dumps(whole))
    assert torch.equal(again[3]["input_ids"], whole[3]["input_ids"])
    generator = torch.Generator().manual_seed(1)
    loader = torch.utils.data.DataLoader(again, batch_size=10, shuffle=True, generator=generator)
    seen = torch.cat([batch["input_ids"] for batch in loader])
    assert sorted(map(tuple, seen.tolist())) == sorted(tuple(row["input_ids"]) for row in stored(shards))


def test_a_dataset_that_threads_share_stays_within_its_memory(shards):
    dataset = WindowDataset(shards, memory_budget=1)
    with ThreadPoolExecutor(6) as threads:
        rows = list(threads.map(lambda window: dataset[window % len(dataset)]["input_ids"].tolist(), range(300)))
    assert len(vars(dataset)["_cached"]) == 1
    assert rows[:5] == [dataset[window]["input_ids"].tolist() for window in range(5)]
    with pytest.raises(TypeError):
        dataset[1.5]


def test_numbers_of_numpy_give_a_state_of_plain_ones(shards):
    loader = ShardLoader(shards, batch_size=np.int64(2), seed=np.int64(3), lanes=np.int64(4))
    next(iter(loader))
    state = json.loads(json.dumps(loader.state_dict()))
    loader.load_state_dict(state)
    loader.set_epoch(np.int64(1))
    json.dumps(loader.state_dict())
    with pytest.raises(ValueError, match=r"epoch: must be a whole number; got 1\.5"):
        loader.set_epoch(1.5)
    with pytest.raises(ValueError, match="the state's epoch: must be a whole number; got None"):
        loader.load_state_dict({key: value for key, value in state.items() if key != "epoch"})


@pytest.mark.parametrize("others", [["<|endoftext|>", "<|im_start|>"], []])
def test_documents_end_where_the_tokenizers_own_config_says(tmp_path, others):
    """A chat model's layout: another special token has the usual name, or none has."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = tokenizers.Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.add_special_tokens([*others, "<|im_end|>"])
    (tmp_path / "model").mkdir()
    core.save(str(tmp_path / "model" / "tokenizer.json"))
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    (tmp_path / "texts").mkdir()
    for name in "abc":
        (tmp_path / "texts" / f"{name}.txt").write_text(name * 9)
    manifest = write_shards(
        tmp_path / "shards",
        **sections(
            corpus="text",
            corpus_path=str(tmp_path / "texts"),
            cache_path=tmp_path / "cache",
            tokenizer="huggingface",
            tokenizer_path=str(tmp_path / "model"),
            max_length=16,
            tail="pad",
        ),
    ).manifest
    order = {"shuffle": "none", "document_ids": True, "drop_last": False}
    (batch,) = ShardLoader(tmp_path / "shards", **order)
    assert batch.document_ids[0].tolist() == [0] * 10 + [1] * 6
    (other,) = ShardLoader(
        store_windows(tmp_path / f"cache/stores/{manifest.store}.json", max_length=16, tail="pad"), **order
    )
    assert other.input_ids.equal(batch.input_ids)
    assert other.document_ids.equal(batch.document_ids)
    assert batch.input_ids[1, -1] == core.token_to_id("<|im_end|>")


def test_what_batches_depend_on_is_read_only_and_the_refusal_names_the_way(shards):
    loader = ShardLoader(shards, batch_size=8)
    next(iter(loader))
    public = [name for name in vars(loader) if not name.startswith("_")]
    assert {"batch_size", "rank", "world_size", "drop_last", "reader", "workers"} <= set(public)
    for name in public:
        with pytest.raises(AttributeError, match=rf"ShardLoader.{name} is read-only.* a new ShardLoader with another"):
            setattr(loader, name, 2)
    for name, way in (("epoch", r"set_epoch\(epoch\)"), ("consumed", "load_state_dict"), ("order", "new ShardLoader")):
        with pytest.raises(AttributeError, match=rf"ShardLoader.{name} is read-only.*{way}"):
            setattr(loader, name, 2)
    assert len(list(loader)) == len(loader) - 1
    dataset = WindowDataset(shards)
    for name in ("reader", "pairs"):
        with pytest.raises(AttributeError, match=f"WindowDataset.{name} is read-only"):
            setattr(dataset, name, True)
    with pytest.raises(AttributeError):
        next(iter(loader)).input_ids = None


def test_a_batch_is_a_pair_and_a_mapping(shards):
    def collect(**named):
        return named

    for batch in (
        next(iter(ShardLoader(shards, document_ids=True))),
        next(iter(embed_batches(ShardLoader(shards, document_ids=True), TokenEmbedding(50257, 8, 16)))),
        next(iter(ShardLoader([shards, shards]))),
    ):
        x, y = batch
        assert x is batch.input_ids
        assert y is batch.target_ids
        fields = dict(batch)
        assert list(fields) == list(batch.keys())
        assert all(fields[name] is getattr(batch, name) is batch[name] for name in fields)
        assert set(collect(**batch)) == set(fields)
        with pytest.raises(KeyError, match=r"no 'labels'; this one has input_ids, target_ids, window_ids"):
            batch["labels"]
    assert "document_ids" not in next(iter(ShardLoader(shards))).keys()  # noqa: SIM118 - it is no dict
    assert "embeddings" in next(iter(embed_batches(ShardLoader(shards), TokenEmbedding(50257, 8, 16)))).keys()  # noqa: SIM118


def test_a_batch_counts_the_targets_that_are_not_ignored(shards):
    total = 0
    for batch in ShardLoader(shards, batch_size=7, drop_last=False, score="new"):
        (embedded,) = embed_batches([batch], TokenEmbedding(50257, 8, 16))
        count = sum(target != -100 for row in batch.target_ids.tolist() for target in row)
        assert batch.num_targets == embedded.num_targets == count
        assert type(batch.num_targets) is int
        total += count
    assert total == sum(row["target_ids"].ne(-100).sum() for row in WindowDataset(shards, score="new"))


def test_one_loop_of_pairs_serves_a_loader_and_a_dataset(shards):
    def pairs(batches):
        return [(x.tolist(), y.tolist()) for x, y in batches]

    dataset = WindowDataset(shards, pairs=True)
    mapped = torch.utils.data.DataLoader(dataset, batch_size=8, drop_last=True)
    assert pairs(mapped) == pairs(ShardLoader(shards, batch_size=8, shuffle="none"))
    assert WindowDataset(shards)[0].keys() == {"input_ids", "target_ids"}


@pytest.mark.parametrize("size", [1, 200])
def test_objects_describe_themselves_in_one_line_without_reading_a_shard(shards, tmp_path, monkeypatch, size):
    batch = next(iter(ShardLoader(shards, drop_last=False)))
    embedded = next(iter(embed_batches([batch], TokenEmbedding(50257, 8, 16))))
    loader, dataset = ShardLoader([shards] * size if size > 1 else shards), WindowDataset(shards)
    monkeypatch.setattr("pipeline.loader.shard_files.open_shard", lambda *_, **__: pytest.fail("a shard was read"))
    windows = len(dataset)
    for one, words in (
        (loader, (f"{windows * size:,} windows", "16 tokens", "stride 12", "gpt2", "rank 0 of 1", "epoch 0")),
        (dataset, (f"{windows:,} windows", "16 tokens", "stride 12", "gpt2")),
        (batch, ("8 windows", "16 tokens", "128 of 128 targets count", "int64 on cpu")),
        (embedded, ("EmbeddedBatch", "embeddings")),
    ):
        text = repr(one)
        assert len(text) < 300
        assert "\n" not in text
        assert all(word in text for word in words), text
    assert loader._repr_html_().startswith("<p>ShardLoader</p><table>")
    assert "int64 [8, 16]" in batch._repr_html_()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": "all"}, "batch_size: must be a whole number; got 'all'"),
        ({"batch_size": 0}, "batch_size: must be at least 1; got 0"),
        ({"batch_size": 9999}, r"batch_size: the train split has \d+ windows, fewer than a batch of 9999"),
        ({"seed": 1.5}, "seed: must be a whole number"),
        ({"seed": -1}, "seed: must be at least 0"),
        ({"drop_last": "false"}, "drop_last: must be true or false; got 'false'"),
        ({"document_ids": 1}, "document_ids: must be true or false"),
        ({"split": "val"}, r"split: must be one of train, validation \(did you mean 'validation'\?\)"),
        ({"shuffle": "fulll"}, r"shuffle: .*did you mean 'full'"),
        ({"lanes": "4"}, "lanes: must be a whole number"),
        ({"rank": "0", "world_size": 1}, "rank: must be a whole number"),
        ({"rank": 2, "world_size": 2}, "rank: must be at most 1; got 2"),
        ({"score": "old"}, "score: must be one of all, new"),
        ({"tokenizer": "gpt2"}, "tokenizer: must be a mapping with `name` and `hash`"),
        ({"threads": True}, "threads: must be a whole number"),
        ({"memory_budget": "1G"}, "memory_budget: must be a whole number"),
        ({"device": "gpu"}, "device: must name a device of torch"),
        ({"workers": 1.0}, "workers: must be a whole number"),
        ({"worker_context": "thread"}, "worker_context: must be one of fork"),
        ({"weights": [1]}, "weights: belong to a mixture"),
    ],
)
def test_each_argument_is_refused_by_its_name_rule_and_value(shards, options, message):
    with pytest.raises(ValueError, match=message):
        ShardLoader(shards, **options)


def test_paths_indices_and_unknown_names_are_refused_with_what_to_do(shards):
    for reader in (ShardLoader, WindowDataset):
        with pytest.raises(
            ValueError, match=r"path: must be a path on this machine, or a URI .*; got 'ftp://bucket/x'"
        ):
            reader("ftp://bucket/x")
        with pytest.raises(ValueError, match="path: must be"):
            reader(3)
    with pytest.raises(TypeError, match=r"ShardLoader: no argument 'num_workers'; did you mean 'workers'\?"):
        ShardLoader(shards, num_workers=2)
    with pytest.raises(TypeError, match=r"WindowDataset: no argument 'tokeniser'; did you mean 'tokenizer'\?"):
        WindowDataset(shards, tokeniser={})
    with pytest.raises(TypeError, match=r"no window 0: iterate over it, or use WindowDataset\(path\)\[0\]"):
        ShardLoader(shards)[0]
    with pytest.raises(ValueError, match="batch_size=None"):
        next(iter(torch.utils.data.DataLoader(ShardLoader(shards), batch_size=4)))
    dataset = WindowDataset(shards)
    size = len(dataset)
    for wrong in (size, -size - 1):
        with pytest.raises(IndexError, match=f"window {wrong}: this is a split of {size} windows, 0 to {size - 1}"):
            dataset[wrong]
    assert [item["input_ids"].tolist() for item in dataset[-2:]] == [dataset[k]["input_ids"].tolist() for k in (-2, -1)]
    with pytest.raises(TypeError, match=r"a whole number, or a slice of them; got '3'"):
        dataset["3"]


def test_relative_paths_are_those_of_the_folder_where_the_loader_was_made(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(shards.parent)
    store = next((shards.parent / "cache/stores").glob("*.json")).relative_to(shards.parent)
    made = [ShardLoader("shards"), WindowDataset("shards"), ShardLoader(["shards"]), ShardLoader("./shards")]
    made.append(ShardLoader(store_windows(store, max_length=16, stride=12), workers=0))
    carried = [pickle.dumps(one) for one in made]
    monkeypatch.chdir(tmp_path)
    for one in [*made, *map(pickle.loads, carried)]:
        assert len(list(one)) == len(one)


@pytest.fixture
def replaced(tmp_path):
    """A data set of numbers, and what replaces it by other numbers whose files have the same sizes."""

    def write(first):
        (tmp_path / "text.txt").write_text("".join(f"{first + number:04} " for number in range(400)))
        layout = {"windows_per_group": 60, "windows_per_shard": 60, "compression": "none", "overwrite": True}
        corpus = {"corpus": "text", "corpus_path": str(tmp_path / "text.txt"), "cache_path": tmp_path / "cache"}
        path = write_shards(tmp_path / "shards", **sections(**corpus, tokenizer="bytes", max_length=16, **layout)).path
        return path, [file.stat().st_size for file in sorted((path / "data").iterdir())]

    path, sizes = write(0)

    def replace():
        assert any(write(first)[1] == sizes for first in range(400, 9600, 400)), "no other numbers take as many bytes"

    return path, replace


def test_a_data_set_that_is_replaced_under_a_reader_is_an_error_and_never_other_text(replaced):
    path, replace = replaced
    expected = [row["input_ids"].tolist() for row in WindowDataset(path)]
    unread, opened, loader = WindowDataset(path), WindowDataset(path, memory_budget=1), ShardLoader(path)
    assert opened[0]["input_ids"].tolist() == expected[0]
    carried = pickle.dumps(loader)
    replace()
    for reader in (unread, opened):
        for window in range(60, len(expected)):
            with pytest.raises(OSError, match=r"was replaced by another data set while it was read; open it again"):
                reader[window]
    for one in (loader, pickle.loads(carried)):
        with pytest.raises(OSError, match="was replaced by another data set"):
            list(one)
    assert len(list(ShardLoader(path))) == len(loader)


def test_a_data_set_that_is_written_again_as_it_was_is_read_on_and_a_strange_file_is_not(replaced):
    path, _ = replaced
    dataset = WindowDataset(path, memory_budget=1)
    expected = [row["input_ids"].tolist() for row in dataset]
    files = sorted((path / "data").iterdir())
    for file in [*files, path / "manifest.json"]:
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    assert [row["input_ids"].tolist() for row in dataset] == expected
    files[0].write_bytes(files[0].read_bytes()[::-1])
    with pytest.raises(OSError, match=r"train-00000.* cannot be read: its footer does not have the sha256"):
        dataset[0]
    (path / "manifest.json").unlink()
    with pytest.raises(OSError, match="was replaced or removed while it was read"):
        dataset[len(dataset) - 1]
