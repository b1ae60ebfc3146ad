"""The embedding is a one-hot product, and its gradient reaches the rows that were looked up."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.embedding import TokenEmbedding, embed_batches, sinusoids
from pipeline.loader.batch import Batch

id_grids = st.integers(1, 6).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, 10), min_size=width, max_size=width), min_size=1, max_size=4)
)


def batch_of(ids):
    ids_BT = torch.tensor(ids)
    return Batch(input_ids=ids_BT, target_ids=ids_BT, window_ids=torch.arange(len(ids)))


@given(id_grids)
def test_a_lookup_equals_a_one_hot_matrix_times_the_weight(ids):
    embedding = TokenEmbedding(11, 5, 6, positions="none")
    one_hot_BTV = torch.nn.functional.one_hot(torch.tensor(ids), 11).float()
    assert torch.equal(embedding(torch.tensor(ids)), one_hot_BTV @ embedding.weight)


@given(id_grids, st.sampled_from(["learned", "sinusoidal", "none"]))
def test_the_gradient_of_a_batch_reaches_exactly_the_rows_of_its_ids(ids, positions):
    embedding = TokenEmbedding(11, 4, 6, positions=positions)
    (embedded,) = embed_batches([batch_of(ids)], embedding)
    embedded.embeddings.square().sum().backward()
    reached = set(torch.nonzero(embedding.weight.grad.abs().sum(dim=1)).flatten().tolist())
    assert reached == {token for row in ids for token in row}


def test_shapes_are_batch_by_time_by_dimension():
    (embedded,) = embed_batches([batch_of([[1, 2, 3], [4, 5, 6]])], TokenEmbedding(7, 16, 3))
    assert embedded.input_ids.shape == (2, 3)
    assert embedded.target_ids.shape == (2, 3)
    assert embedded.embeddings.shape == (2, 3, 16)


def test_learned_positions_add_the_row_of_each_place():
    embedding = TokenEmbedding(7, 4, 5, positions="learned")
    vectors_BTD = embedding(torch.tensor([[2, 2]]))
    expected_TD = embedding.token.weight[2] + embedding.position.weight[:2]
    assert torch.equal(vectors_BTD[0], expected_TD)


def test_sinusoidal_positions_equal_the_formula_written_out():
    waves_TD = sinusoids(9, 6)
    for place in range(9):
        for pair in range(3):
            angle = place / 10_000 ** (2 * pair / 6)
            assert waves_TD[place, 2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert waves_TD[place, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize("dim", [1, 3])
def test_sinusoids_of_an_odd_dimension_end_with_a_sine(dim):
    assert sinusoids(4, dim).shape == (4, dim)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, same, other = (TokenEmbedding(50, 8, 4, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.weight, same.weight)
    assert torch.equal(first.position.weight, same.position.weight)
    assert not torch.equal(first.weight, other.weight)


def test_making_an_embedding_leaves_torchs_own_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    TokenEmbedding(50, 8, 4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(torch.rand(3), expected)


def test_a_saved_weight_is_the_start():
    weight = torch.arange(12.0).reshape(4, 3)
    assert torch.equal(TokenEmbedding(4, 3, 2, weight=weight).weight, weight)
    with pytest.raises(ValueError, match=r"weight: must be a tensor of \[5, 3\]; got \[4, 3\]"):
        TokenEmbedding(5, 3, 2, weight=weight)


def test_a_window_longer_than_the_positions_is_refused():
    with pytest.raises(ValueError, match="windows of 3 tokens, but the embedding has positions for max_length=2"):
        TokenEmbedding(4, 3, 2)(torch.tensor([[1, 2, 3]]))
    assert TokenEmbedding(4, 3, 2, positions="none")(torch.tensor([[1, 2, 3]])).shape == (1, 3, 3)


def test_an_unknown_kind_of_positions_is_refused():
    with pytest.raises(ValueError, match="positions: must be one of learned, sinusoidal, none; got 'rotary'"):
        TokenEmbedding(4, 3, 2, positions="rotary")


def test_vectors_follow_the_layers_dtype():
    embedding = TokenEmbedding(4, 3, 2, positions="sinusoidal").to(torch.bfloat16)
    assert embedding(torch.tensor([[1, 2]])).dtype == torch.bfloat16


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "none"])
def test_vectors_have_the_dtype_of_the_saved_weight(positions):
    weight = torch.zeros(5, 4, dtype=torch.bfloat16)
    layer = TokenEmbedding(5, 4, 3, positions=positions, weight=weight)
    assert layer(torch.zeros(1, 3, dtype=torch.int64)).dtype == torch.bfloat16


def test_a_plain_layer_and_one_without_weights_embed_batches_too():
    ids = torch.tensor([[1, 2]])
    documents = SimpleNamespace(document_ids=ids, position_ids=ids, to=lambda _: documents)
    batch = Batch(input_ids=ids, target_ids=ids, window_ids=torch.tensor([0]), documents=documents)
    (embedded,) = embed_batches([batch], torch.nn.Embedding(5, 4))
    assert embedded.embeddings.shape == (1, 2, 4)

    class OneHot(torch.nn.Module):
        def forward(self, ids, positions):
            return torch.nn.functional.one_hot(ids, 5) + positions[..., None]

    (embedded,) = embed_batches([batch], OneHot())
    assert embedded.embeddings.tolist() == [[[1, 2, 1, 1, 1], [2, 2, 3, 2, 2]]]


def test_a_layer_is_tied_to_another_in_either_way():
    embedding, head = TokenEmbedding(7, 4, 5), torch.nn.Linear(4, 7, bias=False)
    embedding.weight = head.weight
    assert embedding.weight is head.weight
    assert [name for name, _ in embedding.named_parameters()] == ["token.weight", "position.weight"]
    other = torch.nn.Linear(4, 7, bias=False)
    other.weight = embedding.weight
    assert other.weight is embedding.weight
    embedding(torch.tensor([[1]])).sum().backward()
    assert head.weight.grad is not None
    for wrong in (torch.nn.Parameter(torch.zeros(6, 4)), torch.zeros(7, 4), None):
        with pytest.raises(ValueError, match=r"weight: must be an nn.Parameter of \[7, 4\]; got"):
            embedding.weight = wrong
    assert embedding.weight is head.weight


def test_a_reader_that_is_a_batch_ahead_gets_vectors_of_the_current_weights():
    embedding = TokenEmbedding(7, 4, 5)
    first, second = embed_batches([batch_of([[1, 2]]), batch_of([[3, 4]])], embedding)
    moved = second.to("cpu")
    first.embeddings.sum().backward()
    with torch.no_grad():
        embedding.weight.add_(1)
    for one in (second, moved):
        assert torch.equal(one.embeddings, embedding(one.input_ids))
    assert second.embeddings is second.embeddings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, "vocab_size: must be at least 1"),
        ({"dim": 2.5}, "dim: must be a whole number"),
        ({"max_length": "4"}, "max_length: must be a whole number"),
        ({"seed": -1}, "seed: must be at least 0"),
        ({"weight": [[1]]}, r"weight: must be a tensor of \[4, 3\]"),
    ],
)
def test_each_argument_of_a_layer_is_refused_by_its_name(options, message):
    with pytest.raises(ValueError, match=message):
        TokenEmbedding(**{"vocab_size": 4, "dim": 3, "max_length": 2, **options})


def test_a_wrong_name_or_kind_of_layer_is_refused():
    with pytest.raises(TypeError, match=r"TokenEmbedding: no argument 'position'; did you mean 'positions'\?"):
        TokenEmbedding(4, 3, 2, position="none")
    with pytest.raises(ValueError, match=r"embedding: must be an nn.Module"):
        embed_batches([], torch.zeros(3, 3))
