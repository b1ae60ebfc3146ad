"""Load tokenizers by name.

`load_tokenizer` finds the vocabulary (ranks, pattern, special tokens), checks it, and picks the engine that encodes
with it (`engines.py`). GPT-2's ranks come with the package, so the default works offline. A changed or truncated
vocabulary is refused.

Cost: loading GPT-2 takes 0.1 s. A loaded tokenizer is kept, and all threads of the process share it. Pickled, it is
only its section and its hash, from which another process loads it (`load_same`).
"""

import dataclasses
import functools
import importlib.util
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.paths import expand_user
from pipeline.rules import closest, names_arguments, reject, shorten
from pipeline.settings import TokenizerConfig
from pipeline.tokenizer import engines, rank_files
from pipeline.tokenizer.formats import reason
from pipeline.tokenizer.huggingface import load_huggingface
from pipeline.tokenizer.rank_files import PATTERNS, PUBLISHED, Published, Ranks
from pipeline.tokenizer.special_tokens import END_OF_TEXT, DocumentToken, choose_token, usual_end_of_text
from pipeline.tokenizer.token_texts import unknown_id
from pipeline.tokenizer.tokenizer import Tokenizer, identity_of
from pipeline.tokenizer.unicode_differences import same_ids_encoder

if TYPE_CHECKING:
    import tiktoken

# Every kind of character: a user's own pattern must match them all.
PROBE = "Word words 12345 ,.;!?'s\t\r\n  \u00e9 e\u0301 \u6f22\u5b57 \U0001f642\u200d \u0660 \u20ac \x00\x7f\u00a0 "


@names_arguments
def load_tokenizer(
    tokenizer: TokenizerConfig | str = "gpt2",
    *,
    path: str | os.PathLike[str] | None = None,
    pattern: str | None = None,
    engine: str = "auto",
    special_text: str = "literal",
    eos: str | int = "auto",
    bos: str | int | None = None,
    special_tokens: Mapping[str, int] | None = None,
) -> Tokenizer:
    """Load a tokenizer by its name, or the one that a section describes.

    The same arguments and an unchanged file return the same object again. The other arguments are the section's fields
    of these names: `path` for `tiktoken_file` (a rank file) and `huggingface` (a tokenizer.json, a folder with one, or
    a hub name); `pattern` for `tiktoken_file`.

    Raises:
        ConfigError: a value is refused.
        ValueError: the vocabulary cannot be loaded, or does not say which token ends a document.

    >>> tokenizer = load_tokenizer("gpt2")
    >>> tokenizer.encode("hello world")
    [31373, 995]
    >>> tokenizer.decode([31373, 995])
    'hello world'
    >>> tokenizer.vocab_size, tokenizer.eos
    (50257, 50256)

    """
    if not isinstance(tokenizer, TokenizerConfig):
        tokenizer = TokenizerConfig(
            name=tokenizer,
            path=None if path is None else os.fspath(path),
            pattern=pattern,
            engine=engine,
            special_text=special_text,
            eos=eos,
            bos=bos,
            special_tokens=special_tokens,
        )
    values = dataclasses.asdict(tokenizer) | {"audit": 0.0}  # it does not affect the tokenizer
    values["special_tokens"] = values["special_tokens"] and tuple(values["special_tokens"].items())
    return load_cached(tuple(values.items()), _stamp(tokenizer.path))


@functools.lru_cache(maxsize=16)
def load_cached(fields: tuple[tuple[str, Any], ...], _: object) -> Tokenizer:
    """Load a tokenizer by the fields of its section; the second argument is the `_stamp` of its path."""
    values = dict(fields)
    values["special_tokens"] = values["special_tokens"] and dict(values["special_tokens"])
    section = TokenizerConfig(**values)
    load = {"bytes": _load_bytes, "huggingface": load_huggingface}.get(section.name, _load_ranks)
    tokenizer = load(section)
    return dataclasses.replace(tokenizer, _load=functools.partial(load_same, section, tokenizer.hash))


def load_same(section: TokenizerConfig, expected: str) -> Tokenizer:
    """Load the tokenizer of a section, and refuse another one than the process had that sent the section."""
    tokenizer = load_tokenizer(section)
    if tokenizer.hash != expected:
        raise ValueError(
            f"tokenizer.path={section.path}: on {socket.gethostname()} it is another vocabulary than where the run was "
            "started; give it by a path that all machines see"
        )
    return tokenizer


def _load_ranks(section: TokenizerConfig) -> Tokenizer:
    name, path, pattern = section.name, section.path, section.pattern
    encoding: str | None = name
    rank_file = b""
    if name in ("gpt2", "r50k_base"):
        encoding, (ranks, rank_file) = "r50k_base", rank_files.packaged_ranks()
    elif path is None:
        ranks = rank_files.downloaded_ranks(name)
    else:
        ranks, encoding, digest = rank_files.file_ranks(path)
        name = encoding or f"{name}:{Path(path).name}"
        if encoding is None and pattern is None:
            raise ValueError(
                f"tokenizer.pattern: give {', '.join(PATTERNS)} or a regular expression: a rank file has no pattern, "
                f"and tokenizer.path={path} is not a published one (its sha256 is {digest}). If it should be one of "
                f"{', '.join(PUBLISHED)}, it is truncated or changed; fetch it again."
            )

    published = PUBLISHED[encoding] if encoding else None
    if published and pattern in (None, published.pattern):
        regex, gigatoken_pattern = PATTERNS[published.pattern], published.pattern if published.gigatoken else None
    else:  # published ranks with another pattern are another encoding
        assert pattern is not None, "a rank file without a pattern is refused above"
        regex, gigatoken_pattern = _checked_pattern(pattern), None
        name = section.name if path is None else f"{section.name}:{Path(path).name}"
    special_tokens = _special_tokens(section, ranks, published)
    default = _usual_end(section, encoding, special_tokens)
    end_token, start_token = _document_tokens(section, default, special_tokens, ranks)
    engine = _choose_engine(section.engine, name, gigatoken_pattern is not None)

    control = section.special_text == "control"
    core = functools.partial(_make_core, name, regex, ranks, special_tokens)
    tokens = {rank: token for token, rank in ranks.items()}
    never_from_text = frozenset({end_token.id, start_token.id if start_token else end_token.id} & tokens.keys())
    tokens |= {token: special.encode() for special, token in special_tokens.items()}
    rank_file = rank_file or rank_files.canonical_rank_file(ranks)  # the packaged one is canonical
    if encoding and regex in PATTERNS.values():
        by_tiktoken = engines.made_when_used(lambda: engines.tiktoken_encoder(core(), control=control))
    else:  # at once, since tiktoken may refuse a user's own
        by_tiktoken = engines.tiktoken_encoder(core(), control=control)
    encode, on_all_cores = by_tiktoken, None
    if engine == "gigatoken":
        assert gigatoken_pattern is not None, "gigatoken is chosen for published encodings only"
        gigatoken = functools.partial(
            engines.gigatoken_encoder,
            rank_file=rank_file,
            pattern=gigatoken_pattern,
            special_tokens=special_tokens if control else {},
        )
        encode, on_all_cores = (
            same_ids_encoder(
                engines.made_when_used(functools.partial(gigatoken, on_all_cores=shared)),
                by_tiktoken,
                gigatoken_pattern,
            )
            for shared in (False, True)
        )
    elif regex not in PATTERNS.values():
        encode = engines.refuse_lost_text(encode, {token: len(text) for token, text in tokens.items()}, regex)
    vocab_size = max(tokens) + 1
    return Tokenizer(
        name=name,
        hash=identity_of(
            ranks=rank_file,
            pattern=regex,
            special_tokens=special_tokens,
            vocab_size=vocab_size,
            **_chosen(end_token, start_token, special_tokens),
        ),
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        end_token=end_token,
        start_token=start_token,
        engine=engine,
        special_text=section.special_text,
        cut_safe=regex in PATTERNS.values(),
        _encode=encode,
        _encode_reference=by_tiktoken if engine == "gigatoken" else None,
        _encode_on_all_cores=on_all_cores,
        _token_texts=functools.partial(_look_up, name, tokens),
        _only_engine="tiktoken" if section.engine == "tiktoken" and gigatoken_pattern else "",
        _never_from_text=never_from_text,
    )


def _special_tokens(section: TokenizerConfig, ranks: Ranks, published: Published | None) -> dict[str, int]:
    """Return the special tokens of a rank file: the published ones and the user's."""
    known = dict(published.special_tokens) if published else {}
    taken = {token: name for name, token in known.items()}
    by_rank = {rank: token for token, rank in ranks.items()}
    for name, token in (section.special_tokens or {}).items():
        if known.get(name, token) != token or taken.get(token, name) != name or token in by_rank:
            other = known.get(name) if name in known else repr(taken.get(token) or by_rank.get(token))
            reject("tokenizer.special_tokens", f"contradicts the vocabulary, which has {other} there", {name: token})
        known[name] = token
    ranked = next((name for name in [*known, END_OF_TEXT] if name.encode() in ranks), None)
    if ranked:
        raise ValueError(
            f"tokenizer.path={section.path}: {ranked} must be a special token, but has a rank in this file"
        )
    return known


def _usual_end(section: TokenizerConfig, encoding: str | None, special_tokens: dict[str, int]) -> DocumentToken | None:
    source = f"the published encoding {encoding}" if encoding else "the only usual name in tokenizer.special_tokens"
    return usual_end_of_text(special_tokens, source) if section.eos == "auto" else None


def _document_tokens(
    section: TokenizerConfig, default: DocumentToken | None, special_tokens: dict[str, int], ranks: Ranks
) -> tuple[DocumentToken, DocumentToken | None]:
    """Return the tokens that end and start a document; a new one becomes a special token of the vocabulary."""
    by_rank = {rank: token for token, rank in ranks.items()}

    def find(name: str) -> int | None:
        return ranks.get(name.encode("utf-8", "surrogatepass"))

    def name_of(token: int) -> str | None:
        return by_rank[token].decode("utf-8", "backslashreplace") if token in by_rank else None

    def choose(key: str, wanted: str | int) -> DocumentToken:
        names = (token.decode("utf-8", "replace") for token in ranks)
        chosen = choose_token(
            key, wanted, special_tokens=special_tokens, names=lambda: names, find=find, name_of=name_of
        )
        if chosen.id not in by_rank:
            special_tokens.setdefault(chosen.name, chosen.id)
        return chosen

    if section.eos == "auto" and default is None:
        free = max([*ranks.values(), *special_tokens.values()]) + 1
        raise ValueError(
            f"tokenizer.eos: give the ID of the token that ends a document; {free} is the first free one. A rank file "
            f"does not say which it is, and tokenizer.path={section.path} is not a published one. "
            "tokenizer.special_tokens names the others"
        )
    end_token = choose("tokenizer.eos", section.eos) if default is None else default
    return end_token, None if section.bos is None else choose("tokenizer.bos", section.bos)


def _chosen(
    end_token: DocumentToken, start_token: DocumentToken | None, special_tokens: dict[str, int]
) -> dict[str, int]:
    """Return what a tokenizer's hash must cover besides its vocabulary: document tokens that are not its own."""
    own = usual_end_of_text(special_tokens, "")
    chosen = {} if own and own.id == end_token.id else {"eos": end_token.id}
    return chosen | ({"bos": start_token.id} if start_token else {})


def _make_core(name: str, regex: str, ranks: dict[bytes, int], special_tokens: dict[str, int]) -> "tiktoken.Encoding":
    import tiktoken

    try:
        return tiktoken.Encoding(name, pat_str=regex, mergeable_ranks=ranks, special_tokens=special_tokens)
    except ValueError as error:
        if regex in PATTERNS.values():
            raise
        raise ValueError(
            f"tokenizer.pattern={shorten(repr(regex), 100)} is not a regular expression for tiktoken, which uses the "
            f"syntax of Rust's fancy-regex: {reason(error)}"
        ) from error


def _load_bytes(section: TokenizerConfig) -> Tokenizer:
    special_tokens = {END_OF_TEXT: 256}
    default = usual_end_of_text(special_tokens, "the tokenizer bytes") if section.eos == "auto" else None
    ranks = {bytes([byte]): byte for byte in range(256)}
    end_token, start_token = _document_tokens(section, default, special_tokens, ranks)
    tokens = {byte: bytes([byte]) for byte in range(256)}
    never_from_text = frozenset({end_token.id, start_token.id if start_token else end_token.id} & tokens.keys())
    tokens |= {token: name.encode() for name, token in special_tokens.items()}
    vocab_size = max(tokens) + 1
    return Tokenizer(
        name="bytes",
        hash=identity_of(
            ranks=bytes(range(256)),
            pattern="",
            special_tokens=special_tokens,
            vocab_size=vocab_size,
            **_chosen(end_token, start_token, special_tokens),
        ),
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        end_token=end_token,
        start_token=start_token,
        engine="bytes",
        special_text=section.special_text,
        cut_safe=True,
        _encode=engines.bytes_encoder(special_tokens, control=section.special_text == "control"),
        _token_texts=functools.partial(_look_up, "bytes", tokens),
        _never_from_text=never_from_text,
    )


def _choose_engine(engine: str, name: str, gigatoken_knows: bool) -> str:
    if engine == "auto":
        return "gigatoken" if gigatoken_knows and importlib.util.find_spec("gigatoken") else "tiktoken"
    if engine == "gigatoken" and not gigatoken_knows:
        raise ValueError(
            f"tokenizer.engine=gigatoken encodes r50k_base (gpt2), cl100k_base and o200k_base, not {name}; "
            "use tokenizer.engine=auto or tiktoken"
        )
    if engine == "gigatoken" and not importlib.util.find_spec("gigatoken"):
        raise ValueError("tokenizer.engine=gigatoken needs the package gigatoken: pip install 'gigatoken>=0.10,<0.11'")
    return engine


def _checked_pattern(pattern: str) -> str:
    """Return a named pattern's regular expression, or a user's own after a trial."""
    import regex

    if pattern in PATTERNS:
        return PATTERNS[pattern]
    if re.fullmatch(r"[\w-]*", pattern):
        hint = closest(pattern, PATTERNS)
        rule = f"must be one of {', '.join(PATTERNS)}, or a regular expression"
        reject("tokenizer.pattern", rule + (f" ({hint})" if hint else ""), pattern)
    try:
        matches = [match.group() for match in regex.finditer(pattern, PROBE)]
    except regex.error as error:
        raise ValueError(
            f"tokenizer.pattern={shorten(repr(pattern), 100)} is not a regular expression: {reason(error)}"
        ) from error
    if "" in matches or "".join(matches) != PROBE:
        raise ValueError(
            f"tokenizer.pattern={shorten(repr(pattern), 100)} must match every character and never the empty text, or "
            f"text is lost. End it with an alternative that matches the rest, such as |[\\s\\S]. Tried on {PROBE!r}"
        )
    return pattern


def _stamp(path: str | None) -> tuple[tuple[int, int], ...]:
    """Return size and time of the files that a tokenizer is loaded from, so that a changed file is loaded again."""
    if path is None:
        return ()
    given, config = expand_user(path), "tokenizer_config.json"
    files = (given, given.parent / config, given / "tokenizer.json", given / config)
    return tuple((file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file())


def _look_up(name: str, tokens: dict[int, bytes], ids: list[int]) -> list[bytes]:
    try:
        return [tokens[token] for token in ids]
    except KeyError as error:
        raise unknown_id(error.args[0], name) from None
