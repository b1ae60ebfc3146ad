"""Load tokenizers by name.

`load_tokenizer` finds the vocabulary (ranks, pattern, special tokens), checks it, and picks the engine that encodes
with it (`engines.py`). GPT-2's ranks come with the package, so the default works offline. A changed or truncated
vocabulary is refused.

Cost: loading GPT-2 takes 0.1 s. A loaded tokenizer is kept, and all threads of the process share it. It cannot be
pickled: another process calls `load_tokenizer` with the same arguments.
"""

import functools
import importlib.util
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.paths import expand_user
from pipeline.settings import TokenizerConfig, closest, reject
from pipeline.tokenizer import engines, rank_files
from pipeline.tokenizer.huggingface import load_huggingface
from pipeline.tokenizer.rank_files import END_OF_TEXT, PATTERNS, PUBLISHED
from pipeline.tokenizer.tokenizer import Tokenizer, identity_of, unknown_id

if TYPE_CHECKING:
    import tiktoken

# Every kind of character: a user's own pattern must match them all.
PROBE = "Word words 12345 ,.;!?'s\t\r\n  \u00e9 e\u0301 \u6f22\u5b57 \U0001f642\u200d \u0660 \u20ac \x00\x7f\u00a0 "


def load_tokenizer(
    tokenizer: TokenizerConfig | str = "gpt2",
    *,
    path: str | os.PathLike[str] | None = None,
    pattern: str | None = None,
    engine: str = "auto",
    special_text: str = "literal",
) -> Tokenizer:
    """Load a tokenizer by its name, or the one that a section describes.

    The same arguments and an unchanged file return the same object again. The other arguments are the section's fields
    of these names: `path` for `tiktoken_file` (a rank file) and `huggingface` (a tokenizer.json, a folder with one, or
    a hub name); `pattern` for `tiktoken_file`.

    Raises:
        ConfigError: a value is refused.
        ValueError: the vocabulary cannot be loaded.

    >>> tokenizer = load_tokenizer("gpt2")
    >>> tokenizer.encode("hello world")
    [31373, 995]
    >>> tokenizer.decode([31373, 995])
    'hello world'
    >>> tokenizer.vocab_size, tokenizer.eos
    (50257, 50256)

    """
    if not isinstance(tokenizer, TokenizerConfig):
        given = None if path is None else os.fspath(path)
        tokenizer = TokenizerConfig(
            name=tokenizer, path=given, pattern=pattern, engine=engine, special_text=special_text
        )
    return load_cached(
        tokenizer.name,
        tokenizer.path,
        _stamp(tokenizer.path),
        tokenizer.engine,
        tokenizer.special_text,
        tokenizer.pattern,
    )


@functools.lru_cache(maxsize=16)
def load_cached(
    name: str, path: str | None, _: object, engine: str, special_text: str, pattern: str | None
) -> Tokenizer:
    """Load a tokenizer; the third argument is the `_stamp` of `path`."""
    if name == "bytes":
        return _load_bytes(special_text)
    if name == "huggingface":
        assert path is not None, "load_tokenizer refuses huggingface without a path"
        return load_huggingface(path, special_text)
    return _load_ranks(name, path, engine, special_text, pattern)


def _load_ranks(name: str, path: str | None, engine: str, special_text: str, pattern: str | None) -> Tokenizer:
    encoding: str | None = name
    rank_file = b""
    if name in ("gpt2", "r50k_base"):
        encoding, (ranks, rank_file) = "r50k_base", rank_files.packaged_ranks()
    elif path is None:
        ranks = rank_files.downloaded_ranks(name)
    else:
        ranks, encoding, digest = rank_files.file_ranks(path)
        if encoding is not None and pattern not in (None, PUBLISHED[encoding].pattern):
            encoding = None  # published ranks under another pattern are another encoding
        name = encoding or f"{name}:{Path(path).name}"
        if encoding is None and pattern is None:
            raise ValueError(
                f"tokenizer.path={path}: a rank file has no pattern, and this one is not a published encoding (its "
                f"sha256 is {digest}), so give tokenizer.pattern: {', '.join(PATTERNS)}, or a regular expression. "
                f"If it should be one of {', '.join(PUBLISHED)}, it is truncated or changed; fetch it again."
            )

    published = PUBLISHED[encoding] if encoding else None
    if published:
        regex, special_tokens = PATTERNS[published.pattern], dict(published.special_tokens)
    else:
        assert pattern is not None, "a rank file without a pattern is refused above"
        regex, special_tokens = _checked_pattern(pattern), {END_OF_TEXT: max(ranks.values()) + 1}
    if not published and END_OF_TEXT.encode() in ranks:
        raise ValueError(f"tokenizer.path={path}: {END_OF_TEXT} must be a special token, but has a rank in this file")
    engine = _choose_engine(engine, name, published is not None and published.gigatoken)

    control = special_text == "control"
    core = _make_core(name, regex, ranks, special_tokens)
    tokens = {rank: token for token, rank in ranks.items()}
    tokens |= {token: special.encode() for special, token in special_tokens.items()}
    rank_file = rank_file or rank_files.canonical_rank_file(ranks)  # the packaged one is canonical
    encode = by_tiktoken = engines.tiktoken_encoder(core, control=control)
    if engine == "gigatoken":
        assert published is not None, "gigatoken is chosen for published encodings only"
        encode = engines.gigatoken_encoder(
            rank_file=rank_file, pattern=published.pattern, special_tokens=special_tokens if control else {}
        )
    elif regex not in PATTERNS.values():
        encode = engines.refuse_lost_text(encode, {token: len(text) for token, text in tokens.items()}, regex)
    return Tokenizer(
        name=name,
        hash=identity_of(ranks=rank_file, pattern=regex, special_tokens=special_tokens, vocab_size=max(tokens) + 1),
        vocab_size=max(tokens) + 1,
        special_tokens=special_tokens,
        end_of_text=special_tokens[END_OF_TEXT],
        engine=engine,
        special_text=special_text,
        cut_safe=regex in PATTERNS.values(),
        _encode=encode,
        _encode_reference=by_tiktoken if engine == "gigatoken" else None,
        _token_texts=functools.partial(_look_up, name, tokens),
    )


def _make_core(name: str, regex: str, ranks: dict[bytes, int], special_tokens: dict[str, int]) -> "tiktoken.Encoding":
    import tiktoken

    try:
        return tiktoken.Encoding(name, pat_str=regex, mergeable_ranks=ranks, special_tokens=special_tokens)
    except ValueError as error:
        if regex in PATTERNS.values():
            raise
        raise ValueError(
            f"tokenizer.pattern={regex!r} is not a regular expression for tiktoken, which uses the syntax of Rust's "
            f"fancy-regex: {error}"
        ) from error


def _load_bytes(special_text: str) -> Tokenizer:
    special_tokens = {END_OF_TEXT: 256}
    tokens = {byte: bytes([byte]) for byte in range(256)} | {256: END_OF_TEXT.encode()}
    return Tokenizer(
        name="bytes",
        hash=identity_of(ranks=bytes(range(256)), pattern="", special_tokens=special_tokens, vocab_size=257),
        vocab_size=257,
        special_tokens=special_tokens,
        end_of_text=256,
        engine="bytes",
        special_text=special_text,
        cut_safe=True,
        _encode=engines.bytes_encoder(special_tokens, control=special_text == "control"),
        _token_texts=functools.partial(_look_up, "bytes", tokens),
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
        raise ValueError("tokenizer.engine=gigatoken needs the package gigatoken: pip install 'stridemill[fast]'")
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
        raise ValueError(f"tokenizer.pattern={pattern!r} is not a regular expression: {error}") from error
    if "" in matches or "".join(matches) != PROBE:
        raise ValueError(
            f"tokenizer.pattern={pattern!r} must match every character and never the empty text, or text is lost. "
            f"End it with an alternative that matches the rest, such as |[\\s\\S]. It was tried on {PROBE!r}"
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
