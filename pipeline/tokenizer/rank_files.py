"""Rank files: the vocabularies that tiktoken and gigatoken encode with, and what is known about published ones.

A rank file has a token in base64, a space and the token's rank on each line. It is used only if every line can be read
and its hash, where one is known, is right.

Patterns, special tokens and hashes of the published encodings are taken from tiktoken 0.14,
`tiktoken_ext/openai_public.py` (MIT licence). A test compares them with the installed tiktoken. Those of Meta's files
are taken from its package llama-models 0.3.0, `llama3/tokenizer.py` and `llama4/tokenizer.py`.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipeline.base.paths import expand_user
from pipeline.rules import shorten
from pipeline.tokenizer.formats import RANK_FILE, reason, recognise
from pipeline.tokenizer.special_tokens import END_OF_TEXT

Ranks = dict[bytes, int]

PACKAGED_RANKS = Path(__file__).with_name("gpt2.tiktoken")
RANKS_URL = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"

# In all three, no pretoken has an ASCII space after a character that is not white space. So a text may be cut before
# such a space without changing its IDs.
PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


class Published(NamedTuple):
    """What is known about an encoding besides its ranks."""

    sha256: str  # of the rank file
    pattern: str
    special_tokens: dict[str, int]
    gigatoken: bool  # gigatoken needs ranks without gaps, and p50k has one


def _number(first: int, names: Iterable[str]) -> dict[str, int]:
    return {name: first + index for index, name in enumerate(names)}


def _reserved(name: str, first: int, last: int) -> list[str]:
    return [f"<|{name}_{index}|>" for index in range(first, last + 1)]


_LLAMA3 = [
    *("<|begin_of_text|>", "<|end_of_text|>", *_reserved("reserved_special_token", 0, 1)),
    *("<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>", "<|image|>", *_reserved("reserved_special_token", 2, 245)),
]
_LLAMA4 = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>"),
    *_reserved("text_post_train_reserved_special_token", 0, 5),
    *("<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>"),
    *_reserved("text_post_train_reserved_special_token", 8, 68),
    *("<|image_start|>", "<|image_end|>", *_reserved("vision_reserved_special_token", 0, 1)),
    *("<|tile_x_separator|>", "<|tile_y_separator|>", *_reserved("vision_reserved_special_token", 2, 5)),
    *("<|image|>", *_reserved("vision_reserved_special_token", 6, 6), "<|patch|>"),
    *_reserved("vision_reserved_special_token", 7, 1047),
    *_reserved("reasoning_reserved_special_token", 0, 7),
    *("<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>", *_reserved("reserved_special_token", 0, 903)),
]

PUBLISHED = {
    "r50k_base": Published(
        "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930", "gpt2", {END_OF_TEXT: 50256}, True
    ),
    "p50k_base": Published(
        "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069", "gpt2", {END_OF_TEXT: 50256}, False
    ),
    "cl100k_base": Published(
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        "cl100k",
        {
            END_OF_TEXT: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
        True,
    ),
    "o200k_base": Published(
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        "o200k",
        {END_OF_TEXT: 199999, "<|endofprompt|>": 200018},
        True,
    ),
    "llama3": Published(
        "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55", "cl100k", _number(128000, _LLAMA3), True
    ),
    "llama4": Published(
        "d0bdbaf59b0762c8c807617e2d8ea51420eb1b1de266df2495be755c8e0ed6ed", "o200k", _number(200000, _LLAMA4), True
    ),
}


def packaged_ranks() -> tuple[Ranks, bytes]:
    """Return GPT-2's ranks and the rank file that comes with the package."""
    data, expected = PACKAGED_RANKS.read_bytes(), PUBLISHED["r50k_base"].sha256
    if (found := hashlib.sha256(data).hexdigest()) != expected:
        raise ValueError(
            f"{PACKAGED_RANKS} is truncated or changed: its sha256 is {found} instead of {expected}. "
            "Install stridemill again."
        )
    words = data.split()  # the hash has proved the content, so the checks of `parse_ranks` would only cost time
    return dict(zip(map(binascii.a2b_base64, words[::2]), map(int, words[1::2]), strict=True)), data


def downloaded_ranks(encoding: str) -> Ranks:
    """Return the ranks of a published encoding, from tiktoken's cache folder or, the first time, from its server."""
    from tiktoken.load import load_tiktoken_bpe

    url = RANKS_URL.format(encoding)
    try:
        return load_tiktoken_bpe(url, expected_hash=PUBLISHED[encoding].sha256)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        cache = os.environ.get("TIKTOKEN_CACHE_DIR", "not set")
        cached_name = hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
        raise ValueError(
            f"tokenizer={encoding}: its rank file is not in tiktoken's cache folder (TIKTOKEN_CACHE_DIR is {cache}), "
            f"and downloading {url} failed: {reason(error)}. Download the file on a machine with a network. Then set "
            f"tokenizer=tiktoken_file tokenizer.path=<file>, or name it {cached_name} and set TIKTOKEN_CACHE_DIR to "
            "its folder."
        ) from error


def file_ranks(path: str) -> tuple[Ranks, str | None, str]:
    """Read a rank file: its ranks, the name of the published encoding that it is (or None), and its sha256."""
    try:
        data = expand_user(path).read_bytes()
    except OSError as error:
        raise ValueError(f"tokenizer.path={path} cannot be read: {error.strerror}") from error
    known_format = recognise(data)
    if known_format not in (None, RANK_FILE):
        raise ValueError(f"tokenizer.path={path}: {known_format.remedy}. It is {known_format.what}, not a rank file")
    digest = hashlib.sha256(data).hexdigest()
    encoding = next((name for name, known in PUBLISHED.items() if known.sha256 == digest), None)
    return parse_ranks(data, path), encoding, digest


def parse_ranks(data: bytes, source: object) -> Ranks:
    """Parse a rank file; a ValueError names the line."""
    ranks: Ranks = {}
    token_by_rank: dict[int, bytes] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line:
            continue
        try:
            encoded, digits = line.split()
            token, rank = binascii.a2b_base64(encoded, strict_mode=True), int(digits)
        except ValueError as error:
            raise ValueError(
                f"{source}, line {number}: expected a token in base64, a space and its rank, found {line[:60]!r}"
                f" ({error})"
            ) from error
        if not 0 <= rank < 2**31 - 1:
            raise ValueError(f"{source}, line {number}: a rank must be from 0 to 2**31 - 2 (int32), found {rank}")
        if token in ranks:
            raise ValueError(
                f"{source}, line {number}: the token {shorten(repr(token), 60)} already has the rank {ranks[token]}"
            )
        if rank in token_by_rank:
            raise ValueError(
                f"{source}, line {number}: the rank {rank} already belongs to {shorten(repr(token_by_rank[rank]), 60)}"
            )
        ranks[token] = rank
        token_by_rank[rank] = token
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(
            f"{source}: every single byte must be a token, or some text cannot be encoded; {len(missing)} are missing, "
            f"the first is {bytes([missing[0]])!r}. Is the file truncated?"
        )
    return ranks


def canonical_rank_file(ranks: Ranks) -> bytes:
    """Write ranks as a rank file, in order: equal ranks give equal bytes, and a published file its own bytes."""
    return b"".join(
        b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in sorted(ranks.items(), key=lambda item: item[1])
    )
