"""What the peers' scripts share: their command line, GPT-2's tokenizer, and the last line of their output.

transformers' fast tokenizer encodes, as in the peers' own scripts and guides, unless PEER_TOKENIZER is `tiktoken`,
which is faster.
"""

from __future__ import annotations

import json
import os
import sys
import types
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import tiktoken
from tiktoken.load import load_tiktoken_bpe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenizers import Tokenizer

RANKS = Path(__file__).resolve().parents[1] / "pipeline" / "tokenizer" / "gpt2.tiktoken"
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
END_OF_TEXT = 50256


def arguments() -> tuple[list[str], Path, int, int]:
    """Return the JSONL files of the input folder (one for each worker), the output folder, workers and max_length."""
    folder, output, workers, max_length = sys.argv[1:5]
    return sorted(str(file) for file in Path(folder).glob("*.jsonl")), Path(output), int(workers), int(max_length)


@cache
def gpt2() -> tiktoken.Encoding:
    """Load GPT-2's encoding from the packaged ranks, without the network."""
    ranks = load_tiktoken_bpe(str(RANKS))
    return tiktoken.Encoding(
        "gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": END_OF_TEXT}
    )


def converted() -> Tokenizer:
    """Convert it for Hugging Face's tokenizers."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    pattern = PATTERN.replace("++", "+")
    return TikTokenConverter(
        vocab_file=str(RANKS), pattern=pattern, additional_special_tokens=["<|endoftext|>"]
    ).converted()


@cache
def encoder() -> Callable[[list[str]], list[list[int]]]:
    """Return the function that encodes texts to IDs on one core."""
    if os.environ.get("PEER_TOKENIZER") == "tiktoken":
        return lambda texts: gpt2().encode_ordinary_batch(texts, num_threads=1)
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=converted())
    return lambda texts: tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]


def encode(text: str) -> list[int]:
    """Encode one document, with end-of-text after it."""
    return [*encoder()([text])[0], END_OF_TEXT]


def documents(file: str) -> Iterator[str]:
    """Yield the texts of one JSONL file."""
    with Path(file).open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def forget_vision() -> None:
    """Let `import streaming` work without its module for images.

    That module imports torchvision, whose wheel in the package index is built for CUDA and fails next to a CPU build of
    torch. Nothing here reads an image.
    """
    sys.modules["streaming.vision"] = types.ModuleType("streaming.vision")


def report(seconds: float, tokens: int) -> None:
    """Print a script's last line, which run.py reads."""
    print(f"RESULT {seconds} {tokens}", flush=True)
