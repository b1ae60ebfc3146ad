"""Batches made on a device from narrow copies are those that are made in memory."""

import contextlib

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from pipeline import ShardLoader, TokenEmbedding, WindowConfig, embed_batches, write_shards
from pipeline.loader.batch import DeviceRows
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
        for name in ("input_ids", "target_ids", "document_ids", "position_ids", "cu_seqlens", "window_ids"):
            tensor = getattr(other, name)
            assert tensor.is_contiguous()
            assert tensor.cpu().equal(getattr(one, name))
            assert tensor is getattr(other, name), "made once"
        assert (other.max_seqlen, other.num_targets) == (one.max_seqlen, one.num_targets)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_the_largest_ids_survive_the_narrow_copy(device, dtype):
    highest = 65_535 if dtype == np.uint16 else 2**31 - 1
    ids = np.array([[0, 32_767, 32_768, highest]], dtype)
    batch = DeviceRows(RowBatch(ids, None), torch.device(device)).to_int64(
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


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """A batch on the GPU: windows that start inside documents, padding, and rows that fill."""
    folder = tmp_path_factory.mktemp("documents")
    path = write_shards(
        folder / "shards",
        corpus=["".join(f"{number} " for number in range(size)) for size in (40, 1, 90, 7, 200, 64, 3)],
        tokenizer="bytes",
        window=WindowConfig(max_length=128, stride=96, tail="pad"),
        cache=folder / "cache",
    ).path
    options = {"batch_size": 32, "shuffle": "none", "drop_last": False, "document_ids": True, "device": "cuda"}
    return next(iter(ShardLoader(path, **options)))


def kernels():
    """What computes attention of [B * T, heads, D] within pieces, where this machine has it; each is causal."""
    found = {}
    with contextlib.suppress(ImportError):
        from torch.nn.attention.varlen import varlen_attn

        found["varlen_attn of torch"] = lambda q, k, v, bounds, longest: varlen_attn(
            q, k, v, cu_seq_q=bounds, cu_seq_k=bounds, max_q=longest, max_k=longest, window_size=(-1, 0)
        )
    with contextlib.suppress(ImportError):
        from flash_attn import flash_attn_varlen_func

        found["flash-attn"] = lambda q, k, v, bounds, longest: flash_attn_varlen_func(
            q,
            k,
            v,
            cu_seqlens_q=bounds,
            cu_seqlens_k=bounds,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            causal=True,
        )
    return found


@CUDA
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernels_with_our_cu_seqlens_give_what_the_mask_gives(documents, dtype):
    batch, found = documents, kernels()
    if not found:
        pytest.skip("neither varlen_attn nor flash-attn is installed")
    rows, length = batch.input_ids.shape
    torch.manual_seed(0)
    given = torch.randn(3, rows, 4, length, 64, device="cuda").to(dtype)
    mask = batch.document_ids[:, None, :, None] == batch.document_ids[:, None, None, :]
    expected, wanted = attention(
        given.float(), lambda q, k, v: sdpa(q, k, v, attn_mask=mask & torch.ones_like(mask).tril())
    )

    def flat(attend):
        def run(q, k, v):
            tokens = [one.transpose(1, 2).flatten(0, 1) for one in (q, k, v)]
            return attend(*tokens, batch.cu_seqlens, batch.max_seqlen).unflatten(0, (rows, length)).transpose(1, 2)

        return run

    for name, attend in found.items():
        output, gradient = attention(given, flat(attend))
        torch.testing.assert_close(
            output.float(), expected, rtol=2e-2, atol=2e-2, msg=lambda said, of=name: f"{of}: {said}"
        )
        torch.testing.assert_close(
            gradient.float(), wanted, rtol=5e-2, atol=5e-2, msg=lambda said, of=name: f"{of}: {said}"
        )


@CUDA
def test_compiled_flex_attention_gives_what_the_mask_gives(documents):
    """In float32, with its gradient, which FlexAttention computes on a GPU alone."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    ids = documents.document_ids
    rows, length = ids.shape
    torch.manual_seed(0)
    given = torch.randn(3, rows, 4, length, 64, device="cuda")
    same = ids[:, None, :, None] == ids[:, None, None, :]
    expected, wanted = attention(given, lambda q, k, v: sdpa(q, k, v, attn_mask=same & torch.ones_like(same).tril()))
    blocks = create_block_mask(
        lambda b, h, q, k: (ids[b, q] == ids[b, k]) & (q >= k), rows, None, length, length, device="cuda"
    )
    flex = torch.compile(flex_attention)
    output, gradient = attention(given, lambda q, k, v: flex(q, k, v, block_mask=blocks))
    torch.testing.assert_close(output, expected, rtol=1e-2, atol=1e-2)  # TF32 may multiply
    torch.testing.assert_close(gradient, wanted, rtol=2e-2, atol=2e-2)


def attention(given, attend):
    """Attention's output and the gradient of its inputs, [3, B, H, T, D]."""
    inputs = given.clone().requires_grad_()
    output = attend(*inputs)
    (gradient,) = torch.autograd.grad(output.float().square().sum(), inputs)
    return output.detach(), gradient
