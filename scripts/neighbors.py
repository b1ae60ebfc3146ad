"""Do embeddings learn meaning? `python scripts/neighbors.py experiment=neighbors`, or `..._quick`.

It trains a small GPT and examines its token table: the nearest neighbours of some words by cosine, before and after
training; the mean cosine of related and of random pairs over the course of training; and the words in two dimensions.
The pairs are fixed below, before any run. Only words that are one token and occur in the training text count. Each
random pair corresponds to a related one: its two tokens occur about as often, because frequency alone moves embeddings
together.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from train import main, open_evaluation, open_loader, settings_of
from training import train

from pipeline.base.atomic import write_text
from pipeline.base.wording import counted
from pipeline.cli.report import csv_text
from pipeline.cli.stages import run_write
from pipeline.cli.svg import Series, chart, scatter
from pipeline.tokenizer.load import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gpt import GPT
    from training import Metric
    from training_config import TrainConfig

    from pipeline.tokenizer.tokenizer import Tokenizer

UNUSED_KEYS = (
    "study",
    *("model.build", "loader.sources", "loader.document_ids"),
    *(
        f"train.{name}"
        for name in ("checkpoint_every", "resume", "device", "bf16", "compile", "on_metrics", "tensorboard")
    ),
)
GROUPS = {
    "numbers": " one two three four five six",
    "verbs": " is are was has have does returns raises calls",
    "small words": " a an the this that these",
    "types": " int string list tuple dictionary object class",
    "keywords": " for while if else try except",
    "modal verbs": " can may must should will",
}
SHOWN = (" the", " is", " class", " list", " can", " for")
RANDOM_PAIRS = 2000
NEIGHBOURS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A line of `similarity.csv`: the mean cosines after a step."""

    step: int
    tokens: int
    related: float
    random: float


def run(config: TrainConfig, output: Path) -> None:
    """Train, measure cosines on the way, and print and draw them."""
    run_write(config)
    loader = open_loader(config)
    tokenizer = load_tokenizer(dataclasses.replace(config.tokenizer, engine="auto", special_text="literal"))
    counts_V = count_tokens(config.shards_path, loader.reader.tokenizer["vocab_size"])
    words = known_words(tokenizer, counts_V)
    related = related_pairs(words)
    if len(related) == 0:
        raise ValueError(
            "none of the words is a single token of the training text. Use tokenizer=gpt2 and English text"
        )
    random = random_pairs(counts_V, related, seed=config.embedding.seed)
    moments: list[Moment] = []
    tables: list[torch.Tensor] = []

    def observe(step: int, model: GPT) -> None:
        table_VD = model.embedding.weight.detach().cpu().clone()
        tables[1:] = [table_VD] if tables else []
        if not tables:
            tables.append(table_VD)
        tokens = step * loader.batch_size * loader.reader.max_length
        means = [float(cosines(table_VD, pairs).mean()) for pairs in (related, random)]
        moments.append(Moment(step=step, tokens=tokens, related=means[0], random=means[1]))

    _, metrics = train(loader, None, settings_of(config), validate_every=config.train.validate_every, observe=observe)
    candidates = np.flatnonzero(counts_V.numpy() >= 5)  # rarer ones are trained mostly as wrong answers
    before, after = tables[0], tables[-1]
    print(f"\nneighbours by cosine, among the {counted(len(candidates), 'token')} with at least 5 occurrences")
    for word in SHOWN:
        if word in words:
            for when, table_VD in (("before", before), ("after", after)):
                found = nearest(table_VD, words[word][0], candidates)
                listed = "  ".join(f"{tokenizer.decode([token])!r} {cosine:.2f}" for token, cosine in found)
                print(f"  {word!r:<9} {when:<7} {listed}")
    pairs = f"{counted(len(related), 'related pair')} and {counted(len(random), 'random pair')} of the same frequency"
    print(f"\nmean cosine of {pairs}")
    for moment in moments:
        print(f"  step {moment.step:<5} {moment.tokens:>9,} tokens   {moment.related:+.3f}   {moment.random:+.3f}")
    print(describe_groups(words, counts_V, before, after, metrics[-1]))
    write_files(output, moments, words, before, after)
    print(f"\n  in {output}: similarity.csv, similarity.svg, before.svg, after.svg")


def describe_groups(
    words: dict[str, tuple[int, int]], counts_V: torch.Tensor, before: torch.Tensor, after: torch.Tensor, last: Metric
) -> str:
    """Return each group's mean cosine next to that of random pairs, and that of tokens which never occur."""

    def line(name: str, pairs: np.ndarray, control: np.ndarray | None, what: str) -> str:
        then, now = (f"{float(cosines(table_VD, pairs).mean()):+.3f}" for table_VD in (before, after))
        chance = "" if control is None else f"{float(cosines(after, control).mean()):+.3f}"
        return f"  {name:<12} {then}   {now}   {chance:<6}   {what}"

    trained = f"{counted(last.tokens, 'token')}, training loss {last.train_loss:.3f}"
    columns = "before, after, and after for random pairs of the same frequency"
    lines = [f"\nmean cosine within a group: {columns} ({trained})"]
    for group, name in enumerate(GROUPS):
        mine = {word: found for word, found in words.items() if found[1] == group}
        if len(mine) > 1:
            counts = [int(counts_V[token]) for token, _ in mine.values()]
            pairs = related_pairs(mine)
            occur = f"{counted(len(mine), 'word')}, each {min(counts):,} to {max(counts):,} times in the text"
            lines.append(line(name, pairs, random_pairs(counts_V, pairs, seed=group), occur))
    unseen = np.flatnonzero(counts_V.numpy() == 0)
    if len(unseen) > 1:
        drawn = np.random.default_rng(0).choice(unseen, (RANDOM_PAIRS, 2))
        apart = drawn[drawn[:, 0] != drawn[:, 1]]
        lines.append(
            line(
                "never seen",
                apart,
                None,
                f"pairs of the {counted(len(unseen), 'token')} that the text does not contain",
            )
        )
    return "\n".join(lines)


def count_tokens(path: str, vocab_size: int) -> torch.Tensor:
    """Count how often each token is a target of the training windows, int64 [V]."""
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for batch in open_evaluation(path, split="train"):
        counts += torch.bincount(batch.target_ids[batch.target_ids >= 0], minlength=vocab_size)
    return counts


def known_words(tokenizer: Tokenizer, counts_V: torch.Tensor) -> dict[str, tuple[int, int]]:
    """Return the words of `GROUPS` that are one token and occur: word -> its token and its group's number."""
    found = {}
    for group, text in enumerate(GROUPS.values()):
        for word in text.split():
            ids = tokenizer.encode_batch([f" {word}"])[0].tolist()
            if len(ids) == 1 and counts_V[ids[0]] > 0:
                found[f" {word}"] = (ids[0], group)
    return found


def related_pairs(words: dict[str, tuple[int, int]]) -> np.ndarray:
    """Return every two words of one group: token IDs, int64 [pairs, 2]."""
    listed = list(words.values())
    pairs = [(one[0], two[0]) for at, one in enumerate(listed) for two in listed[at + 1 :] if one[1] == two[1]]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def random_pairs(counts_V: torch.Tensor, like: np.ndarray, *, seed: int) -> np.ndarray:
    """Draw pairs of tokens, [pairs, 2], each about as frequent as one of `like`: within 20 ranks of it."""
    rng = np.random.default_rng(seed)
    ranked = np.argsort(-counts_V.numpy(), kind="stable")
    rank = np.empty_like(ranked)
    rank[ranked] = np.arange(len(ranked))
    drawn = rank[rng.choice(like, RANDOM_PAIRS)] + rng.integers(-20, 21, (RANDOM_PAIRS, 2))
    pairs: np.ndarray = ranked[np.clip(drawn, 0, len(ranked) - 1)]
    apart: np.ndarray = pairs[pairs[:, 0] != pairs[:, 1]]
    return apart


def cosines(table_VD: torch.Tensor, pairs: np.ndarray) -> torch.Tensor:
    """Return the cosine of each pair's vectors, float [pairs]."""
    return torch.cosine_similarity(table_VD[pairs[:, 0]], table_VD[pairs[:, 1]])


def nearest(table_VD: torch.Tensor, token: int, candidates: np.ndarray) -> list[tuple[int, float]]:
    """Return the candidates with the largest cosine to the token, without the token itself."""
    others = candidates[candidates != token]
    found = torch.cosine_similarity(table_VD[others], table_VD[token][None])
    best = torch.argsort(found, descending=True)[:NEIGHBOURS]
    return [(int(others[index]), float(found[index])) for index in best.tolist()]


def flatten(table_VD: torch.Tensor, tokens: Sequence[int]) -> np.ndarray:
    """Project the tokens' unit vectors on their two directions of largest variance (PCA by SVD), [tokens, 2]."""
    vectors = torch.nn.functional.normalize(table_VD[list(tokens)], dim=1)
    centred = vectors - vectors.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    flat: np.ndarray = (centred @ axes.T).numpy()
    return flat


def write_files(
    output: Path,
    moments: list[Moment],
    words: dict[str, tuple[int, int]],
    before: torch.Tensor,
    after: torch.Tensor,
) -> None:
    """Write the table and the pictures."""
    write_text(output / "similarity.csv", csv_text(moments))
    lines = {
        "related pairs": [(float(one.tokens), one.related) for one in moments],
        "random pairs": [(float(one.tokens), one.random) for one in moments],
    }
    series = [Series(name=name, points=points, line=points) for name, points in lines.items()]
    picture = chart(series, title="Mean cosine", x_label="tokens trained on", y_label="cosine")
    write_text(output / "similarity.svg", picture)
    for name, table_VD in (("before", before), ("after", after)):
        flat = flatten(table_VD, [token for token, _ in words.values()])
        points = [
            (float(x), float(y), word.strip(), group)
            for (x, y), (word, (_, group)) in zip(flat, words.items(), strict=True)
        ]
        title = f"Embeddings {name} training, coloured by group"
        write_text(output / f"{name}.svg", scatter(points, title=title, groups=list(GROUPS)))


if __name__ == "__main__":
    main(run, ignored=UNUSED_KEYS)
