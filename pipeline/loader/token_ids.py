"""What a data set says of its token IDs: their type, which one ends documents, and which tokenizer made them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.loader.row_group import StartAndEnd
from pipeline.rules import reject

if TYPE_CHECKING:
    from pipeline.loader.readers import Reader

END_OF_TEXT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]")


def check_tokenizer(found: Mapping[str, Any], expected: Mapping[str, Any], path: object) -> None:
    """Raise ValueError, with both names, if two tokenizers differ by their hash."""
    if not isinstance(expected, Mapping) or not isinstance(expected.get("hash"), str):
        reject("tokenizer", "must be a mapping with `name` and `hash`, as a manifest's `tokenizer` is", expected)
    if found["hash"] != expected["hash"]:
        raise ValueError(
            f"{path} was made by the tokenizer {found['name']!r} (hash {found['hash'][:12]}), but "
            f"{expected.get('name', 'unnamed')!r} (hash {expected['hash'][:12]}) is expected: the IDs mean other tokens"
        )


def compact_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smaller of the two types that numpy and torch handle well, if every ID fits into it."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


def end_of_text_id(reader: Reader) -> int:
    """Return the ID that separates documents: the recorded one or, in older data sets, that of a token's usual name.

    Raises:
        ValueError: none was recorded, and the tokenizer has no such token.

    """
    if reader.end_of_text is not None:
        bos = reader.tokenizer.get("bos") or {}
        return StartAndEnd(reader.end_of_text) if bos.get("id") == reader.end_of_text else reader.end_of_text
    special: dict[str, int] = reader.tokenizer["special_tokens"]
    for name in END_OF_TEXT_NAMES:
        if name in special:
            return special[name]
    raise ValueError(
        f"the tokenizer {reader.tokenizer['name']!r} has no end-of-text token; it has {', '.join(special)}"
    )
