"""Batches made on a device from narrow copies are those that are made in memory."""

import numpy as np
import pytest
import torch

from pipeline import ShardLoader, TokenEmbedding, embed_batches
from pipeline.loader.batch import DeviceBlock
from pipeline.loader.row_group import RowBatch, SampleIds

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
    ),
]


@pytest.fixture(scope="module")
def shards(write_text):
    text = "".join(f"{number} naïve " for number in range(500))
    return write_text(text, max_length=12, stride=5, tail="pad", windows_per_group=16)


@pytest.mark.parametrize("device", DEVICES)
def test_batches_on_a_device_are_those_in_memory(shards, device):
    options = {"batch_size": 7, "drop_last": False, "score": "new", "document_ids": True}
    here, there = list(ShardLoader(shards, **options)), list(ShardLoader(shards, **options, device=device))
    assert len(here) == len(there)
    for one, other in zip(here, there, strict=True):
        assert other.input_ids.device.type == device
        assert other.window_ids.device.type == "cpu"
        for name in ("input_ids", "target_ids", "document_ids", "position_ids", "window_ids"):
            tensor = getattr(other, name)
            assert tensor.is_contiguous()
            assert tensor.cpu().equal(getattr(one, name))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_the_largest_ids_survive_the_narrow_copy(device, dtype):
    highest = 65_535 if dtype == np.uint16 else 2**31 - 1
    ids = np.array([[0, 32_767, 32_768, highest]], dtype)
    batch = DeviceBlock(RowBatch(ids, None), torch.device(device)).to_int64(
        slice(0, 1), samples=SampleIds(np.zeros(1, np.int64))
    )
    assert batch.input_ids.tolist() == [[0, 32_767, 32_768]]
    assert batch.target_ids.tolist() == [[32_767, 32_768, highest]]


@pytest.mark.parametrize("device", DEVICES)
def test_embedded_batches_lie_where_the_layer_is(shards, device):
    embedding = TokenEmbedding(50257, 4, 12).to(device)
    embedded = next(iter(embed_batches(ShardLoader(shards, device=device), embedding)))
    assert embedded.embeddings.device.type == device
    embedded.embeddings.sum().backward()
    assert embedding.weight.grad is not None


def test_a_batch_moves_with_all_its_tensors_but_the_names_of_its_windows(shards):
    embedding = TokenEmbedding(50257, 8, 12)
    (batch, *_) = embed_batches(ShardLoader(shards, document_ids=True), embedding)
    moved = batch.to("meta")
    assert type(moved) is type(batch)
    for name in ("input_ids", "target_ids", "document_ids", "position_ids", "embeddings"):
        assert getattr(moved, name).is_meta
    assert moved.window_ids is batch.window_ids
    assert next(iter(ShardLoader(shards))).to("meta").document_ids is None
