"""Make a copy of a tokenizer.json whose control tokens no text can spell.

The package `tokenizers` can be told to take the names of special tokens in the text for text. But a name that the
model's own vocabulary contains still becomes its token, and so does the name of an added token that is not flagged
special. So `special_text=literal` encodes with a copy of the tokenizer in which each control token has a private name.
Its IDs stay; the name's letters are encoded like any other text, as if the vocabulary lacked the token.

A name that is a single symbol stays, if a BPE model would drop the symbol without it; `Tokenizer` refuses the document.
"""

import copy
from typing import Any

from pipeline.tokenizer.formats import library_errors

# Both are noncharacters: no text that is meant to be exchanged contains them.
PRIVATE_NAME = "\U0010fffe{}\U0010ffff"


def without_control(document: dict[str, Any], control: dict[str, int]) -> tuple[dict[str, Any] | None, bool]:
    """Rename the control tokens of a tokenizer.json.

    Returns:
        The copy, or None if the original never makes a control token of text; and whether a control token's name
        reached the model's vocabulary, so that earlier releases could make the token of a text.

    """
    model = document.get("model") or {}
    vocab = model.get("vocab") or {}
    names = [entry[0] for entry in vocab] if isinstance(vocab, list) else list(vocab)
    in_model = control.keys() & set(names)
    unflagged = {one["content"] for one in document.get("added_tokens") or [] if not one.get("special")}
    if not in_model and not control.keys() & unflagged:
        return None, False
    is_bpe = "merges" in model
    kept = {name for name in in_model if is_bpe and _is_symbol(name, model) and _drops_unknown(model)}
    private = {name: PRIVATE_NAME.format(token) for name, token in control.items() if name not in kept}
    document = copy.copy(document)
    document["added_tokens"] = [
        {**one, "content": private.get(one["content"], one["content"])} for one in document.get("added_tokens") or []
    ]
    renamed = {**model}
    if isinstance(vocab, list):
        renamed["vocab"] = [[private.get(name, name), *rest] for name, *rest in vocab]
    else:
        renamed["vocab"] = {private.get(name, name): token for name, token in vocab.items()}
    if model.get("unk_token") in private:
        renamed["unk_token"] = private[model["unk_token"]]
    if is_bpe:
        renamed["merges"] = [merge for merge in model["merges"] if not _spell(merge, model) & private.keys()]
    document["model"] = renamed
    fewer = is_bpe and len(renamed["merges"]) < len(model["merges"])
    reached = not is_bpe or fewer or bool(model.get("ignore_merges"))
    return document, bool(in_model) and (reached or any(_is_symbol(name, model) for name in in_model))


def load_literal(document: dict[str, Any], control: dict[str, int], dumped: Any, core: Any, what: str) -> Any:
    """Load the renamed copy, and check that each token kept its ID.

    Args:
        document: from `without_control`.
        control: the control tokens.
        dumped: makes text of a document.
        core: the tokenizer itself.
        what: the start of an error.

    """
    from tokenizers import Tokenizer

    with library_errors(what):
        literal = Tokenizer.from_str(dumped(document))
    private = {PRIVATE_NAME.format(token): name for name, token in control.items()}
    vocab = literal.get_vocab(with_added_tokens=True)
    if {private.get(name, name): token for name, token in vocab.items()} != core.get_vocab(with_added_tokens=True):
        raise ValueError(
            f"{what}: its control tokens cannot be told from text, because its added tokens have no IDs of their own; "
            "set tokenizer.special_text=control, or save the tokenizer again with a newer release of tokenizers"
        )
    return literal


def _is_symbol(name: str, model: dict[str, Any]) -> bool:
    """Tell whether a BPE model starts from this token: a single character, with the model's prefix and suffix."""
    core = name.removeprefix(model.get("continuing_subword_prefix") or "")
    return len(core.removesuffix(model.get("end_of_word_suffix") or "")) == 1


def _drops_unknown(model: dict[str, Any]) -> bool:
    return model.get("unk_token") is None and not model.get("byte_fallback")


def _spell(merge: str | list[str], model: dict[str, Any]) -> set[str]:
    """Return the two tokens of a merge and the one that it makes."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return {left, right, left + right.removeprefix(model.get("continuing_subword_prefix") or "")}
