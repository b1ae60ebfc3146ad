"""A small GPT on top of the project's embedding: from token IDs to scores of the next token.

Blocks as in GPT-2 (Radford et al. 2019): layer norm before causal self-attention and before a 4-fold wider MLP, each
added to its input. The output layer is the embedding's own table (weight tying: Press and Wolf 2017, arXiv 1608.05859).
It has no dropout, so a run depends only on its seed and its data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from pipeline import TokenEmbedding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.loader.batch import Batch

IGNORED = -100  # a target that counts in no loss
STD = 0.02  # of initial weights, GPT-2's


class GPT(nn.Module):
    """Map int64 [B, T] to float scores [B, T, V]. `seed` decides all initial weights."""

    def __init__(
        self, vocab_size: int, max_length: int, *, dim: int, layers: int, heads: int, positions: str, seed: int
    ) -> None:
        super().__init__()
        self.embedding = TokenEmbedding(vocab_size, dim, max_length, positions=positions, seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
            self.norm = nn.LayerNorm(dim)
            for name, weight in self.blocks.named_parameters():
                if weight.dim() == 2:
                    deep = name.endswith(("out.weight", "shrink.weight"))  # they add to the residual stream
                    nn.init.normal_(weight, std=STD / (2 * layers) ** 0.5 if deep else STD)

    def forward(
        self, ids_BT: torch.Tensor, document_ids: torch.Tensor | None = None, position_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the score of every token of the vocabulary as the next one, at each position.

        With `document_ids`, each token sees the tokens of its own document alone.
        """
        sees_B1TT = None
        if document_ids is not None:
            sees_B1TT = (document_ids[:, None, :, None] == document_ids[:, None, None, :]).tril()
        vectors_BTD = self.embedding(ids_BT, position_ids)
        for block in self.blocks:
            vectors_BTD = block(vectors_BTD, sees_B1TT)
        return functional.linear(self.norm(vectors_BTD), self.embedding.weight)


class Block(nn.Module):
    """Attention, then an MLP, over vectors [B, T, D]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.widen, self.shrink = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, vectors_BTD: torch.Tensor, sees_B1TT: torch.Tensor | None = None) -> torch.Tensor:
        """Add to each position what it takes from itself and the positions before it, or those that it sees."""
        B, T, D = vectors_BTD.shape
        parts = self.qkv(self.norm_attention(vectors_BTD)).view(B, T, 3, self.heads, D // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=sees_B1TT, is_causal=sees_B1TT is None
        )
        vectors_BTD = vectors_BTD + self.out(mixed.transpose(1, 2).reshape(B, T, D))
        wide = functional.gelu(self.widen(self.norm_mlp(vectors_BTD)))
        added: torch.Tensor = self.shrink(wide)
        return vectors_BTD + added


def summed_loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
    """Return the cross-entropy in nats, summed over a batch's scored targets, and their number.

    If the batch says where its documents are, the model is told so.
    """
    documents = {}
    if batch.documents is not None:
        documents = {"document_ids": batch.document_ids, "position_ids": batch.position_ids}
    scores = model(batch.input_ids, **documents).flatten(0, 1).float()
    loss = functional.cross_entropy(scores, batch.target_ids.flatten(), ignore_index=IGNORED, reduction="sum")
    return loss, batch.num_targets


def unigram_loss(counts_V: torch.Tensor, targets: Sequence[torch.Tensor]) -> float:
    """Mean cross-entropy in nats of targets under the token frequencies `counts_V`, int64 [V], with no context.

    A constant is added to every count, for tokens that were never seen. It is the best of four for these targets, so
    that the baseline is not made too weak.
    """
    seen = torch.cat([batch[batch != IGNORED] for batch in targets])
    losses = []
    for extra in (1.0, 0.1, 0.01, 0.001):
        logs_V = torch.log((counts_V + extra) / (counts_V.sum() + extra * len(counts_V)))
        losses.append(float(-logs_V[seen].mean()))
    return min(losses)
