"""Turn token IDs into vectors: a trainable lookup table, to which position vectors are added.

A token embedding is a matrix with one row for each ID. Looking up a row gives what multiplying a one-hot vector with
the matrix gives, without the zeros. The gradient reaches exactly the rows that were looked up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from pipeline.loader.batch import Batch
from pipeline.rules import MAX_COUNT, check_choice, check_range, names_arguments, reject
from pipeline.settings import MAX_DIM, MAX_EPOCH, MAX_LENGTH, POSITIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from typing import Any, Self

INIT_STD = 0.02  # GPT-2's, from OpenAI's gpt-2/src/model.py


class TokenEmbedding(nn.Module):
    """Token embedding plus positions: int64 [B, T] in, float [B, T, D] out.

        embedding = TokenEmbedding(vocab_size=50257, dim=256, max_length=1024)
        vectors = embedding(batch.input_ids)  # float32 [B, T, 256]

    Args:
        vocab_size: rows of the table, V.
        dim: numbers per vector, D.
        max_length: the longest window, T at most. Without positions it sets no limit.
        positions: `learned` adds a trainable vector for each position, as GPT-2 does; `sinusoidal` adds the fixed waves
            of Vaswani et al. 2017 (arXiv 1706.03762, section 3.5); `none` adds nothing.
        seed: of the initial weights; the same seed gives the same weights on every machine.
        weight: float [V, D], a saved table to start from instead.

    """

    @names_arguments
    def __init__(
        self,
        vocab_size: int,
        dim: int,
        max_length: int,
        *,
        positions: str = "learned",
        seed: int = 0,
        weight: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        vocab_size, dim = check_range("vocab_size", vocab_size, 1, MAX_COUNT), check_range("dim", dim, 1, MAX_DIM)
        max_length, seed = check_range("max_length", max_length, 1, MAX_LENGTH), check_range("seed", seed, 0, MAX_EPOCH)
        check_choice("positions", positions, POSITIONS)
        if weight is not None and (not isinstance(weight, torch.Tensor) or tuple(weight.shape) != (vocab_size, dim)):
            found = list(weight.shape) if isinstance(weight, torch.Tensor) else weight
            raise ValueError(f"weight: must be a tensor of [{vocab_size}, {dim}]; got {found}")
        self.max_length, self.positions = max_length, positions
        generator = torch.Generator().manual_seed(seed)
        drawn_VD = torch.empty(vocab_size, dim).normal_(0.0, INIT_STD, generator=generator)
        self.token = nn.Embedding(vocab_size, dim, _weight=drawn_VD if weight is None else weight.detach().clone())
        self.position = None
        if positions == "learned":
            rows_TD = torch.empty(max_length, dim).normal_(0.0, INIT_STD, generator=generator)
            self.position = nn.Embedding(max_length, dim, _weight=rows_TD.to(self.token.weight))
        waves = sinusoids(max_length, dim).to(self.token.weight) if positions == "sinusoidal" else None
        self.waves: torch.Tensor | None
        self.register_buffer("waves", waves, persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """The token table, [V, D]. Assigning another layer's parameter ties the two layers."""
        return self.token.weight

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "weight":
            super().__setattr__(name, value)
            return
        if not isinstance(value, nn.Parameter) or value.shape != self.token.weight.shape:
            found = list(value.shape) if isinstance(value, torch.Tensor) else value
            kind = type(value).__name__
            raise ValueError(f"weight: must be an nn.Parameter of {list(self.token.weight.shape)}; got {kind} {found}")
        self.token.weight = value

    def extra_repr(self) -> str:
        """Return what the layer's `repr` says of itself."""
        return f"max_length={self.max_length}, positions={self.positions}"

    def forward(self, ids_BT: torch.Tensor, positions_BT: torch.Tensor | None = None) -> torch.Tensor:
        """Return vectors [B, T, D] for token IDs [B, T], in the layer's dtype and on its device.

        `positions_BT`, int64 [B, T], is each token's position; left out, they are 0 .. T - 1.

        Raises:
            ValueError: T is above `max_length`, and the layer adds positions.

        """
        vectors_BTD: torch.Tensor = self.token(ids_BT)
        length = ids_BT.shape[-1]
        table = self.waves if self.position is None else self.position.weight
        if table is None:
            return vectors_BTD
        if length > self.max_length:
            raise ValueError(
                f"windows of {length} tokens, but the embedding has positions for max_length={self.max_length}"
            )
        return vectors_BTD + (table[:length] if positions_BT is None else table[positions_BT])


def sinusoids(max_length: int, dim: int) -> torch.Tensor:
    """Return fixed position vectors, float32 [max_length, dim]: sines in the even columns, cosines in the odd ones.

    Wavelengths run from 2 pi to 10,000 times 2 pi (Vaswani et al. 2017, arXiv 1706.03762, section 3.5).
    """
    positions_T1 = torch.arange(max_length, dtype=torch.float64)[:, None]
    rates_K = torch.exp(-math.log(10_000.0) / dim * torch.arange(0, dim, 2, dtype=torch.float64))
    waves_TD = torch.empty(max_length, dim, dtype=torch.float64)
    waves_TD[:, 0::2] = torch.sin(positions_T1 * rates_K)
    waves_TD[:, 1::2] = torch.cos(positions_T1 * rates_K[: dim // 2])
    return waves_TD.to(torch.float32)


@dataclass(frozen=True, kw_only=True, repr=False)
class EmbeddedBatch(Batch):
    """A batch and its vectors.

    The vectors are computed when `embeddings` is first looked at. So a reader that fetches batches ahead of the
    optimizer's step still gets vectors of the current weights.
    """

    embed: Callable[[], torch.Tensor]

    @cached_property
    def embeddings(self) -> torch.Tensor:
        """The vectors, [B, T, D], with the gradient's path to the layer."""
        return self.embed()

    def keys(self) -> list[str]:
        """Return the names of the fields that are set, and `embeddings`."""
        return [*super().keys(), "embeddings"]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Return the batch with every tensor on `device` except those that name samples, as `Batch.to` does."""
        moved = super().to(device, non_blocking=non_blocking)
        return replace(moved, embed=lambda: self.embeddings.to(device, non_blocking=non_blocking))


def look_up(embedding: nn.Module, *given: torch.Tensor) -> torch.Tensor:
    """Return the vectors of token IDs.

    Raises:
        ValueError: a module around the embedding has sharded its weights, and gathers them in its own `forward` alone.

    """
    try:
        vectors_BTD: torch.Tensor = embedding(*given)
    except RuntimeError as error:
        if "DTensor" not in str(error):
            raise
        raise ValueError(
            "embedding: its weights are sharded over processes, and gathered in the forward of the model alone; call "
            "it there: self.embedding(batch.input_ids, batch.position_ids)"
        ) from error
    return vectors_BTD


def embed_batches(batches: Iterable[Batch], embedding: nn.Module) -> Generator[EmbeddedBatch, None, None]:
    """Yield each batch with `embeddings` [B, T, D], computed by `embedding` on the device of its weights.

    `embedding` is called with the token IDs and, if the batches have `position_ids`, with these too, unless it is a
    plain `nn.Embedding`, which knows no positions. A module without weights is called on the batches' device.
    """
    if not isinstance(embedding, nn.Module):
        reject("embedding", "must be an nn.Module, such as TokenEmbedding", embedding)
    weight = next(embedding.parameters(), None)
    takes_positions = not isinstance(embedding, nn.Embedding)

    def add_vectors(batch: Batch) -> EmbeddedBatch:
        moved = batch if weight is None else batch.to(weight.device, non_blocking=True)
        given = [moved.input_ids]
        if takes_positions and moved.position_ids is not None:
            given.append(moved.position_ids)
        tensors = {field.name: getattr(moved, field.name) for field in fields(Batch)}
        return EmbeddedBatch(**tensors, embed=partial(look_up, embedding, *given))

    iterate = getattr(batches, "iterate", None)  # a ShardLoader's batch counts once it has its vectors
    return iterate(add_vectors) if iterate is not None else (add_vectors(batch) for batch in batches)
