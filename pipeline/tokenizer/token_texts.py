r"""The text of each token by itself, for tokenizers of the Hugging Face kind.

What a token stands for is decided by the tokenizer's decoder: a byte-level token is bytes, `\u2581the` is a space and a
word, `##s` continues a word, and `<0xE4>` is one byte. The texts of a document's tokens, joined, are its text; where a
decoder adds or removes a space at the start, the joined text has it.
"""

import functools
import re
from collections.abc import Iterable
from typing import Any

from pipeline.tokenizer.special_tokens import DocumentToken

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
# How byte-level vocabularies write each byte as a letter (GPT-2's table).
BYTE_LETTERS = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}


def unknown_id(token: int, name: str) -> ValueError:
    """Make the error for an ID that cannot be decoded."""
    return ValueError(f"the ID {token} is not in the vocabulary of the tokenizer {name}")


class TokenTexts:
    """Decode the tokens of a `tokenizers.Tokenizer`.

    Args:
        core: the tokenizer.
        document: its tokenizer.json.
        name: of the tokenizer, for errors.
        extra: the tokens that start and end a document; their IDs may be beyond the vocabulary.

    """

    def __init__(
        self, core: Any, document: dict[str, Any], name: str, extra: Iterable[DocumentToken | None] = ()
    ) -> None:
        self._core, self._tokenizer = core, name
        self._kinds = set(_types(document.get("decoder")))
        self._beyond = {one.id: one.name for one in extra if one and _name(core, one.id) is None}
        self._added = {token: one.content for token, one in core.get_added_tokens_decoder().items()} | self._beyond
        self._anchor = next(
            (token for token in range(4096) if token not in self._added and _is_word(core, token)), None
        )
        self._text = functools.lru_cache(maxsize=1 << 16)(self._find_text)

    def __call__(self, ids: list[int]) -> list[bytes]:
        """Return the text of each token, as bytes: a token may be part of a character."""
        texts: list[bytes] = [self._text(token) for token in ids]
        return texts

    def decode(self, ids: list[int]) -> str:
        """Return the text of IDs as the library decodes them."""
        for token in ids:
            if token not in self._added and _name(self._core, token) is None:
                raise unknown_id(token, self._tokenizer)
        parts, start = [], 0
        for at in [at for at, token in enumerate(ids) if token in self._beyond]:
            parts += [_decode(self._core, ids[start:at]), self._beyond[ids[at]]]
            start = at + 1
        return "".join([*parts, _decode(self._core, ids[start:])])

    def _find_text(self, token: int) -> bytes:
        if token in self._added:
            return str(self._added[token]).encode()
        written = _name(self._core, token)
        if written is None:
            raise unknown_id(token, self._tokenizer)
        if "ByteLevel" in self._kinds and all(letter in BYTE_LETTERS for letter in written):
            return bytes(BYTE_LETTERS[letter] for letter in written)
        if "ByteFallback" in self._kinds and re.fullmatch("<0x[0-9A-Fa-f]{2}>", written):
            return bytes([int(written[3:5], 16)])
        if self._anchor is None:
            return _decode(self._core, [token]).encode()
        # A decoder may treat the first token differently, so the token is decoded after another one.
        after = _decode(self._core, [self._anchor, token])
        return after.removeprefix(_decode(self._core, [self._anchor])).encode()


def _name(core: Any, token: int) -> str | None:
    """Return a token as its vocabulary writes it; None for an ID that is none."""
    name: str | None = core.id_to_token(token) if 0 <= token < 2**32 else None
    return name


def _decode(core: Any, ids: list[int]) -> str:
    text: str = core.decode(ids, skip_special_tokens=False)
    return text


def _types(part: Any) -> list[str]:
    """List the types of a decoder and of those inside it."""
    if not isinstance(part, dict):
        return []
    return [str(part.get("type")), *(kind for inner in part.get("decoders") or [] for kind in _types(inner))]


def _is_word(core: Any, token: int) -> bool:
    text = "" if _name(core, token) is None else _decode(core, [token])
    return text.isascii() and text.isalpha()
