"""Attention that stays within documents: each document has the loss and the gradient that it has alone."""

import warnings
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from pipeline import ShardLoader, ShardsConfig, WindowConfig, write_shards

pytestmark = pytest.mark.skipif(
    find_spec("transformers") is None, reason="needs transformers: pip install -e '.[examples]'"
)

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch has it since 2.10
    varlen_attn = None

LENGTH = 24
TEXTS = ["a document", "b", "another, of more than one window of tokens", "c" * 23, "d" * 24, "e" * 25, "the end"]
WINDOWS = {
    "join": {"stride": 17},
    "pad": {"stride": 24, "tail": "pad"},
    "separate": {"documents": "separate", "tail": "pad"},
    "pack": {"documents": "pack"},
}


class Model(nn.Module):
    """A small transformer of two layers, in float64, whose attention is a parameter."""

    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Embedding(257, 8), nn.Embedding(LENGTH, 8)
        self.layers = nn.ModuleList(nn.ModuleList([nn.Linear(8, 24), nn.Linear(8, 8)]) for _ in range(2))
        self.head = nn.Linear(8, 257)
        self.double()

    def forward(self, ids, positions, attend):
        hidden = self.token(ids) + self.position(positions)
        for projection, output in self.layers:
            heads = projection(hidden).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)  # 3 of [B, H, T, 4]
            hidden = hidden + output(attend(*heads).transpose(1, 2).flatten(2))
        return self.head(hidden)


def total(logits, targets):
    return cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum")


def causal(q, k, v):
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def loss_alone(run, batch):
    """The sum of the losses of all documents of a batch, each of which is a batch of its own."""
    losses = []
    for ids, targets, documents in zip(batch.input_ids, batch.target_ids, batch.document_ids, strict=True):
        for document in range(int(documents.max()) + 1):
            here = documents == document
            positions = torch.arange(int(here.sum()), device=ids.device)
            losses.append(total(run(ids[here][None], positions[None]), targets[here][None]))
    return torch.stack(losses).sum()


def check(model, together, alone, tolerance=1e-6):
    """Compare two losses, and the gradients of all weights."""
    torch.testing.assert_close(together, alone, rtol=tolerance, atol=tolerance)
    weights = list(model.parameters())
    found, expected = torch.autograd.grad(together, weights), torch.autograd.grad(alone, weights)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module", params=WINDOWS)
def batch(request, tmp_path_factory):
    """A batch with documents of one token, windows that start inside documents, padding, and a row that fills."""
    folder = tmp_path_factory.mktemp("attention")
    path = write_shards(
        folder / "shards",
        corpus=TEXTS,
        tokenizer="bytes",
        window=WindowConfig(max_length=LENGTH, **WINDOWS[request.param]),
        shards=ShardsConfig(windows_per_group=4),
        cache=folder / "cache",
    ).path
    batch_size = sum(ShardLoader(path, batch_size=1).reader.groups) + 1
    (found,) = ShardLoader(path, batch_size=batch_size, shuffle="none", drop_last=False, document_ids=True)
    assert int(found.window_ids[-1]) == -1
    return found


of_several_documents = pytest.mark.parametrize("batch", ["join", "pad", "pack"], indirect=True)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


def document_mask(document_ids):
    """The mask of SDPA: bool [B, 1, T, T]."""
    same = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    return same & torch.ones_like(same).tril()


def document_mask_mod(document_ids):
    """The mask of FlexAttention, as a function."""

    def mask_mod(batch, _, query, key):
        return (document_ids[batch, query] == document_ids[batch, key]) & (query >= key)

    return mask_mod


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *, causal):
    """Flash-attn's function of this name, in plain torch: tensors are [tokens, heads, D]."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert type(max_seqlen_q) is int
    assert (max_seqlen_q, max_seqlen_k) == (int(cu_seqlens_q.diff().max()), int(cu_seqlens_k.diff().max()))
    outputs = [
        scaled_dot_product_attention(*(x[first:last].transpose(0, 1) for x in (q, k, v)), is_causal=causal)
        for first, last in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True)
    ]
    return torch.cat(outputs, dim=1).transpose(0, 1)


def flatten(heads):
    """[B, H, T, D] to the [B * T, H, D] of kernels for documents of any length."""
    return heads.transpose(1, 2).flatten(0, 1)


def test_the_mask_of_document_ids_keeps_documents_apart(batch, model):
    mask = document_mask(batch.document_ids)
    logits = model(
        batch.input_ids, batch.position_ids, lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask)
    )
    alone = loss_alone(lambda ids, positions: model(ids, positions, causal), batch)
    check(model, total(logits, batch.target_ids), alone)


@of_several_documents
def test_without_a_mask_they_are_not_apart(batch, model):
    """So the other tests can fail."""
    alone = loss_alone(lambda ids, positions: model(ids, positions, causal), batch)
    together = total(model(batch.input_ids, batch.position_ids, causal), batch.target_ids)
    assert abs(float((together - alone).detach())) > 1e-3
    mask = document_mask(batch.document_ids)
    plain = torch.arange(LENGTH).expand_as(batch.input_ids)
    logits = model(batch.input_ids, plain, lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask))
    assert abs(float((total(logits, batch.target_ids) - alone).detach())) > 1e-3, "positions matter too"


@pytest.mark.slow
def test_a_block_mask_of_flex_attention_keeps_documents_apart(batch, model):
    """FlexAttention has no backward on CPUs: the gradient is shown with the same function as a mask of SDPA."""
    from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

    rows = len(batch.input_ids)
    given = (document_mask_mod(batch.document_ids), rows, None, LENGTH, LENGTH)
    blocks = create_block_mask(*given, device="cpu")
    alone = loss_alone(lambda ids, positions: model(ids, positions, causal), batch)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"flex_attention called without torch.compile", category=UserWarning)
        logits = model(batch.input_ids, batch.position_ids, lambda q, k, v: flex_attention(q, k, v, block_mask=blocks))
    torch.testing.assert_close(total(logits, batch.target_ids), alone.detach(), rtol=1e-6, atol=1e-6)
    mask = create_mask(*given, device="cpu")
    logits = model(
        batch.input_ids, batch.position_ids, lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask)
    )
    check(model, total(logits, batch.target_ids), alone)


def test_cu_seqlens_of_flash_attention_keep_documents_apart(batch, model):
    def attend(q, k, v):
        out = flash_attn_varlen_func(
            *map(flatten, (q, k, v)),
            cu_seqlens_q=batch.cu_seqlens,
            cu_seqlens_k=batch.cu_seqlens,
            max_seqlen_q=batch.max_seqlen,
            max_seqlen_k=batch.max_seqlen,
            causal=True,
        )
        return out.unflatten(0, (-1, LENGTH)).transpose(1, 2)

    logits = model(batch.input_ids, batch.position_ids, attend)
    alone = loss_alone(lambda ids, positions: model(ids, positions, causal), batch)
    check(model, total(logits, batch.target_ids), alone)


@pytest.mark.skipif(varlen_attn is None, reason="this torch has no varlen_attn")
def test_varlen_attn_of_torch_has_no_kernel_for_cpus_and_takes_our_names(batch):
    """With a GPU, tests/test_device.py compares it with the mask."""
    q = torch.zeros(batch.input_ids.numel(), 2, 8)
    given = {"cu_seq_q": batch.cu_seqlens, "cu_seq_k": batch.cu_seqlens}
    with pytest.raises(NotImplementedError, match="_flash_attention_forward"):
        varlen_attn(q, q, q, **given, max_q=batch.max_seqlen, max_k=batch.max_seqlen, window_size=(-1, 0))


def varlen_of_llama(module, query, key, value, attention_mask, *, scaling, **named):
    """Attention for transformers that reads the names its FlashAttention reads."""
    assert attention_mask is None
    assert scaling == query.shape[-1] ** -0.5
    assert module.is_causal
    out = flash_attn_varlen_func(
        *map(flatten, (query, key, value)),
        cu_seqlens_q=named["cu_seq_lens_q"],
        cu_seqlens_k=named["cu_seq_lens_k"],
        max_seqlen_q=named["max_length_q"],
        max_seqlen_k=named["max_length_k"],
        causal=True,
    )
    return out.unflatten(0, (len(query), -1)), None


@pytest.fixture(scope="module")
def transformers():
    """The package, imported by the process that runs these tests alone: it takes seconds."""
    import transformers

    transformers.AttentionInterface.register("stridemill_test_varlen", varlen_of_llama)
    return transformers


def llama(transformers, attention="sdpa"):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        attn_implementation=attention,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config).double()


@pytest.mark.parametrize("attention", ["sdpa", "eager", "stridemill_test_varlen"])
def test_huggingface_arguments_keep_documents_apart(batch, attention, transformers):
    model, plain = llama(transformers, attention), llama(transformers)
    plain.load_state_dict(model.state_dict())
    logits = model(batch.input_ids, **batch.huggingface_arguments(), use_cache=False).logits
    alone = loss_alone(lambda ids, positions: plain(ids, position_ids=positions).logits, batch)
    together = total(logits, batch.target_ids)
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
    found = torch.autograd.grad(together, list(model.parameters()))
    for one, other in zip(found, torch.autograd.grad(alone, list(plain.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@of_several_documents
def test_huggingface_models_leak_unless_told_twice(batch, transformers):
    """Both halves: with a release of transformers that needs less, or more, this fails and the page must change."""
    model, given = llama(transformers), batch.huggingface_arguments()
    alone = loss_alone(lambda ids, positions: model(ids, position_ids=positions).logits, batch)
    ones = torch.ones_like(batch.input_ids)
    leaks = {}
    for name, more in {
        "neither": {},
        "no cache": {"use_cache": False},
        "no cache, a mask": {"use_cache": False, "attention_mask": ones},
    }.items():
        with torch.no_grad():
            loss = total(model(batch.input_ids, **given, **more).logits, batch.target_ids)
        leaks[name] = abs(float((loss - alone).detach())) > 1e-6
    assert leaks == {"neither": True, "no cache": False, "no cache, a mask": True}


def test_the_trainer_keeps_documents_apart(batch, tmp_path, transformers):
    """With the items of examples/trainer.py, which sets `use_cache` in the model's config."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 257, "n_positions": LENGTH, "n_embd": 16, "n_layer": 2, "n_head": 2}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = transformers.GPT2Config(**sizes, **dropout, use_cache=False, bos_token_id=None, eos_token_id=None)
    model = transformers.GPT2LMHeadModel(config).double()
    options = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    items = {"input_ids": batch.input_ids, "labels": batch.target_ids, "shift_labels": batch.target_ids}
    loss = transformers.Trainer(model, options).compute_loss(model, {**items, "position_ids": batch.position_ids})
    alone = loss_alone(lambda ids, positions: model(ids, position_ids=positions).logits, batch)
    check(model, loss.double(), alone / batch.num_targets, tolerance=1e-5)  # its loss is float32


def test_a_batch_without_documents_has_no_such_arguments(batch):
    assert set(batch.huggingface_arguments()) == {
        "position_ids",
        "cu_seq_lens_q",
        "cu_seq_lens_k",
        "max_length_q",
        "max_length_k",
    }
    bare = type(batch)(input_ids=batch.input_ids, target_ids=batch.target_ids, window_ids=batch.window_ids)
    with pytest.raises(ValueError, match=r"make the loader with document_ids=True"):
        bare.huggingface_arguments()
