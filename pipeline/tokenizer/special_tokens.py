"""Control tokens: which tokens of a vocabulary they are, and which of them start and end a document.

A control token never comes out of a text under `special_text=literal`. Of the tokens that a vocabulary adds to its
model, these are control tokens: all that it flags as special, and all others but those of letters, digits and white
space. A token of white space alone is always text.
"""

import difflib
import unicodedata
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pipeline.rules import ConfigError

END_OF_TEXT = "<|endoftext|>"
# What published vocabularies call the token that ends a document, for those that do not say.
END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]")
SHOWN_NAMES = 5


class DocumentToken(NamedTuple):
    """The token that starts or ends each document, and where that was read."""

    id: int
    name: str
    source: str

    def describe(self) -> dict[str, int | str]:
        """Return it as the manifest records it."""
        return {"id": self.id, "name": self.name, "source": self.source}


def is_control(text: str, *, flagged: bool) -> bool:
    """Tell whether an added token is a control token; `flagged`: the vocabulary says that it is special.

    >>> is_control("<|user|>", flagged=False), is_control("   ", flagged=True), is_control("word", flagged=False)
    (True, False, False)
    """
    text = text.replace("\u2581", " ")  # SentencePiece's sign for a space
    if text.isspace():
        return False
    return flagged or not all(c.isalnum() or c.isspace() or unicodedata.category(c)[0] == "M" for c in text)


def choose_token(
    key: str,
    wanted: str | int,
    *,
    special_tokens: dict[str, int],
    names: Callable[[], Iterable[str]],
    find: Callable[[str], int | None],
    name_of: Callable[[int], str | None],
) -> DocumentToken:
    """Return the token that the config asks for by name or ID.

    Args:
        key: the config's key.
        wanted: a name, which must be a token's, or an ID, which may be beyond the vocabulary.
        special_tokens: the control tokens; their names come first.
        names: lists all tokens' names, for a hint.
        find: finds any token's ID by its name.
        name_of: finds any token's name by its ID.

    Raises:
        ConfigError: no token has the name.

    """
    if isinstance(wanted, int):
        name = next((name for name, token in special_tokens.items() if token == wanted), None) or name_of(wanted)
        if name is None:
            free = key == "tokenizer.eos" and find(END_OF_TEXT) is None and END_OF_TEXT not in special_tokens
            name = END_OF_TEXT if free else f"<|token_{wanted}|>"
        return DocumentToken(wanted, name, key)
    token = special_tokens.get(wanted, find(wanted))
    if token is None:
        raise ConfigError(f"{key}: no token has this name; {_suggest(wanted, special_tokens, names)}; got {wanted!r}")
    return DocumentToken(token, wanted, key)


def usual_end_of_text(special_tokens: dict[str, int], source: str) -> DocumentToken | None:
    """Return the one special token with a usual end-of-text name; None if there are several or none."""
    found = [name for name in END_OF_TEXT_NAMES if name in special_tokens]
    return DocumentToken(special_tokens[found[0]], found[0], source) if len(found) == 1 else None


def list_names(names: Iterable[str]) -> str:
    """List the first few of many names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(name if len(name) <= 40 else f"{name[:37]}..." for name in names[:SHOWN_NAMES]) + more


def _suggest(wanted: str, special_tokens: dict[str, int], names: Callable[[], Iterable[str]]) -> str:
    near = difflib.get_close_matches(wanted, special_tokens, n=3, cutoff=0.4)
    near = near or difflib.get_close_matches(wanted, [name for name in names() if name[:1] == wanted[:1]], n=3)
    if near:
        return f"the nearest are {', '.join(map(repr, near))}"
    return f"the special tokens are {list_names(special_tokens) or 'none at all'}; an ID is possible too"
