"""Tokenizers: text to token IDs, and back.

Algorithm: `load_tokenizer` finds the vocabulary (ranks, pattern, special tokens), checks it, and picks the engine that
encodes with it (`engines.py`). GPT-2's ranks are packaged, so the default works offline.

Guarantee: a `Tokenizer` is known by its `hash`, over all that decides its IDs: two with one hash give the same IDs,
whatever their names and engines. A vocabulary that was changed or truncated is refused. A special token's name inside
a document is plain text unless `special_text` says otherwise, and `count_special` counts it either way.

Cost: loading GPT-2 takes 0.1 s. A loaded tokenizer is kept for the process, and all its threads share it. It cannot be
pickled: another process calls `load_tokenizer` with the same arguments.
"""

import difflib
import functools
import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.write import engines
from pipeline.write.audit import BEGIN_BYTES
from pipeline.write.engines import END_OF_TEXT, PATTERNS, PUBLISHED, Counts, DocumentError, Encode, Ids
from pipeline.write.places import safe_cuts

NAMES = ("gpt2", "r50k_base", "cl100k_base", "o200k_base", "tiktoken_file", "huggingface", "bytes")
ENGINES = ("auto", "tiktoken", "gigatoken")
SPECIAL_TEXTS = ("literal", "control", "error")

# One piece of every kind of character: a pattern of the user's own must match them all.
PROBE = "Word words 12345 ,.;!?'s\t\r\n  \u00e9 e\u0301 \u6f22\u5b57 \U0001f642\u200d \u0660 \u20ac \x00\x7f\u00a0 "


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """A vocabulary and the engine that encodes with it. Made by `load_tokenizer`; may be used by many threads at once.

    >>> tokenizer = load_tokenizer(name="gpt2")
    >>> ids, counts = tokenizer.encode_batch(["hello world", ""])
    >>> ids.tolist(), counts.tolist(), tokenizer.decode(ids)
    ([31373, 995], [2, 0], 'hello world')
    """

    name: str
    hash: str  # sha256, in hex; `special_text` is a rule about documents and no part of it
    vocab_size: int  # the largest ID plus one, so that an embedding of this many rows holds every ID
    special_tokens: dict[str, int]
    end_of_text: int  # the ID that separates documents; encode_batch never adds it
    engine: str  # the one in use: tiktoken, gigatoken, huggingface or bytes
    special_text: str
    cut_safe: bool  # text may be cut before an ASCII space that follows a character that is not white space
    _encode: Encode = field(repr=False)
    _pieces: Callable[[list[int]], list[bytes]] = field(repr=False)
    _encode_reference: Encode | None = field(repr=False, default=None)
    _decode: Callable[[list[int]], str] | None = field(repr=False, default=None)  # None: the pieces joined

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """The smallest of uint16 and uint32 that holds every ID."""
        return np.dtype(np.uint16 if self.vocab_size <= 65536 else np.uint32)

    @property
    def audited(self) -> bool:
        """Whether `audit` compares anything: true for gigatoken, whose reference is tiktoken."""
        return self._encode_reference is not None

    def encode_batch(self, texts: Sequence[str] | pa.Array) -> tuple[Ids, Counts]:
        """Encode D documents: their IDs one after the other in `dtype`, and how many each has, int64 `[D]`.

        `texts` is a list of str or, faster, a pyarrow string or large_string array without nulls, *whose bytes the
        caller has verified to be UTF-8*. ValueError for a lone surrogate in a str, and with `special_text="error"`
        for a special token's name, with the document's index in the batch and the place in it.
        """
        array = _as_arrow(texts)
        if self.special_text == "error":
            self._refuse_special(array)
        if not len(array):
            return np.empty(0, self.dtype), np.empty(0, np.int64)
        ids, counts_D = self._encode(array)
        return ids.astype(self.dtype, copy=False), counts_D

    def count_special(self, texts: Sequence[str] | pa.Array) -> Counts:
        """How many names of special tokens the text of each of D documents holds, int64 `[D]`."""
        import pyarrow.compute as pc

        # One pass for all names; the longest first, so that a name is not taken for another that it begins with.
        names = sorted(self.special_tokens, key=len, reverse=True)
        counts = pc.count_substring_regex(_as_arrow(texts), "|".join(map(re.escape, names)))
        return np.asarray(counts.to_numpy(zero_copy_only=False), np.int64)

    def _refuse_special(self, array: pa.Array) -> None:
        found_D = self.count_special(array)
        if not found_D.any():
            return
        document = int(np.flatnonzero(found_D)[0])
        text = array[document].as_py()
        place, name = min((text.find(name), name) for name in self.special_tokens if name in text)
        raise DocumentError(
            document,
            f"holds the special token {name} at character {place}, and tokenizer.special_text=error refuses that. "
            "tokenizer.special_text=literal encodes it as plain text, control as the token "
            f"{self.special_tokens[name]}.",
        )

    def audit(
        self, texts: Sequence[str] | pa.Array, ids: Ids, counts: Counts, sample: Iterable[int], *, begin: bool = False
    ) -> int:
        """Encode the documents `sample` of a batch with the reference, tiktoken, and compare. Returns how many.

        `ids` and `counts` are what `encode_batch(texts)` gave. With `begin` the first `BEGIN_BYTES` or more of each are
        compared, up to a place where a text may be cut. ValueError at the first difference. An engine that has no other
        reference than itself (tiktoken, huggingface, bytes) has nothing to compare: then the answer is 0. A sample
        proves nothing about the documents outside it.
        """
        if self._encode_reference is None:
            return 0
        array, ends_D = _as_arrow(texts), np.cumsum(counts)
        assert len(array) == len(counts), f"{len(array)} documents, but {len(counts)} counts"
        compared = 0
        for document in sample:
            got = ids[ends_D[document] - counts[document] : ends_D[document]]
            text, is_whole = array.slice(document, 1), True
            if begin and (part := _begin(text)) is not None:
                text, is_whole = part, False
            expected, _ = self._encode_reference(text)
            got = got if is_whole else got[: len(expected)]
            if not np.array_equal(got, expected):
                raise DocumentError(
                    document,
                    f"is encoded otherwise by tiktoken: {_first_difference(got, expected)}. The engines must agree, "
                    f"so no ID by {self.engine} can be trusted: use tokenizer.engine=tiktoken, and report the text "
                    "to gigatoken's authors.",
                )
            compared += 1
        return compared

    def decode(self, ids: Iterable[int]) -> str:
        """The text of IDs. Bytes that are not UTF-8, as at the edges of a window, become U+FFFD."""
        known = [int(token) for token in ids]
        pieces = self._pieces(known)
        return b"".join(pieces).decode("utf-8", "replace") if self._decode is None else self._decode(known)

    def decode_pieces(self, ids: Iterable[int]) -> list[str]:
        r"""The text of each ID by itself, for showing tokens; bytes that are not UTF-8 appear as \xNN."""
        return [piece.decode("utf-8", "backslashreplace") for piece in self._pieces([int(token) for token in ids])]


def load_tokenizer(
    *,
    name: str,
    path: str | None = None,
    engine: str = "auto",
    special_text: str = "literal",
    pattern: str | None = None,
) -> Tokenizer:
    """The tokenizer of one of `NAMES`; the same object again for the same arguments and an unchanged file.

    `path` is for `tiktoken_file` (a rank file) and `huggingface` (a tokenizer.json, a folder with one, or a hub name).
    `pattern` is for `tiktoken_file`: one of `PATTERNS` or a regular expression; a published rank file brings its own.
    `engine` and `special_text` are of `ENGINES` and `SPECIAL_TEXTS`. ValueError for whatever cannot be loaded.
    """
    _check_choice("tokenizer", name, NAMES)
    _check_choice("tokenizer.engine", engine, ENGINES)
    _check_choice("tokenizer.special_text", special_text, SPECIAL_TEXTS)
    if (path is not None) != (name in ("tiktoken_file", "huggingface")):
        needs = "needs tokenizer.path=<file>" if path is None else f"takes no tokenizer.path (here {path!r})"
        raise ValueError(f"tokenizer={name} {needs}; only tiktoken_file and huggingface are loaded from a path")
    if pattern is not None and name != "tiktoken_file":
        raise ValueError(f"tokenizer={name} has its own pattern; tokenizer.pattern is for tiktoken_file alone")
    if engine != "auto" and name in ("huggingface", "bytes"):
        raise ValueError(f"tokenizer={name} is its own engine; leave tokenizer.engine={engine} out")
    return load_cached(name, path, _stamp(path), engine, special_text, pattern)


@functools.lru_cache(maxsize=16)
def load_cached(
    name: str, path: str | None, _: object, engine: str, special_text: str, pattern: str | None
) -> Tokenizer:
    """`load_tokenizer` after its checks; the third argument is the `_stamp` of `path`."""
    if name == "bytes":
        return _load_bytes(special_text)
    if name == "huggingface":
        assert path is not None, "load_tokenizer refuses huggingface without a path"
        from pipeline.write.tokenizer_huggingface import load_huggingface

        return load_huggingface(path, special_text)
    return _load_ranks(name, path, engine, special_text, pattern)


def _load_ranks(name: str, path: str | None, engine: str, special_text: str, pattern: str | None) -> Tokenizer:
    import tiktoken

    encoding: str | None = name
    rank_file = b""
    if name in ("gpt2", "r50k_base"):
        encoding, (ranks, rank_file) = "r50k_base", engines.packaged_ranks()
    elif path is None:
        ranks = engines.downloaded_ranks(name)
    else:
        ranks, encoding, digest = engines.file_ranks(path)
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
        raise ValueError(f"tokenizer.path={path}: {END_OF_TEXT} must be a special token, but is a ranked one here")
    engine = _choose_engine(engine, name, published is not None and published.gigatoken)

    control = special_text == "control"
    core = tiktoken.Encoding(name, pat_str=regex, mergeable_ranks=ranks, special_tokens=special_tokens)
    tokens = {rank: token for token, rank in ranks.items()}
    tokens |= {token: special.encode() for special, token in special_tokens.items()}
    rank_file = rank_file or engines.canonical_rank_file(ranks)  # the packaged one is canonical
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
        _pieces=functools.partial(_look_up, name, tokens),
    )


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
        _pieces=functools.partial(_look_up, "bytes", tokens),
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
    """The regular expression of a pattern's name, or a user's own after a trial."""
    import regex

    if pattern in PATTERNS:
        return PATTERNS[pattern]
    if re.fullmatch(r"[\w-]*", pattern):
        _check_choice("tokenizer.pattern", pattern, tuple(PATTERNS), more=", or a regular expression")
    try:
        pieces = [match.group() for match in regex.finditer(pattern, PROBE)]
    except regex.error as error:
        raise ValueError(f"tokenizer.pattern={pattern!r} is not a regular expression: {error}") from error
    if "" in pieces or "".join(pieces) != PROBE:
        raise ValueError(
            f"tokenizer.pattern={pattern!r} must match every character and never the empty text, or text is lost; "
            f"tried on {PROBE!r}. End it with an alternative that takes the rest, such as |[\\s\\S]"
        )
    return pattern


def _check_choice(key: str, value: str, choices: tuple[str, ...], more: str = "") -> None:
    if value not in choices:
        close = difflib.get_close_matches(value, choices, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(f"{key} must be one of {', '.join(choices)}{more}, not {value!r}.{hint}")


def _stamp(path: str | None) -> tuple[tuple[int, int], ...]:
    """Size and time of the files a tokenizer is loaded from, so that a changed file is loaded again."""
    if path is None:
        return ()
    given, config = Path(path).expanduser(), "tokenizer_config.json"
    files = (given, given.parent / config, given / "tokenizer.json", given / config)
    return tuple((file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file())


def identity_of(**facts: Any) -> str:
    """sha256 over named facts; bytes count by their own sha256."""
    plain = {key: hashlib.sha256(fact).hexdigest() if isinstance(fact, bytes) else fact for key, fact in facts.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _look_up(name: str, tokens: dict[int, bytes], ids: list[int]) -> list[bytes]:
    try:
        return [tokens[token] for token in ids]
    except KeyError as error:
        raise unknown_id(error.args[0], name) from None


def unknown_id(token: int, name: str) -> ValueError:
    """The refusal to decode what is no ID."""
    return ValueError(f"the ID {token} is not in the vocabulary of the tokenizer {name}")


def _first_difference(got: Ids, expected: Ids) -> str:
    shared = min(len(got), len(expected))
    differing = np.flatnonzero(got[:shared] != expected[:shared])
    index = int(differing[0]) if len(differing) else shared
    theirs, ours = (str(ids[index]) if index < len(ids) else "missing" for ids in (expected, got))
    return f"token {index} is {ours}, and {theirs} by tiktoken"


def _begin(text: pa.Array) -> pa.Array | None:
    """The begin of the one text, up to the first safe cut behind `BEGIN_BYTES`; None if it has none."""
    buffer = text[0].as_buffer()
    if buffer.size <= BEGIN_BYTES:
        return None
    head = buffer.slice(0, min(buffer.size, 2 * BEGIN_BYTES)).to_pybytes()
    place = next(safe_cuts(head, BEGIN_BYTES - 4), None)
    return None if place is None else pa.array([head[:place].decode()], pa.large_string())


def _as_arrow(texts: Sequence[str] | pa.Array) -> pa.Array:
    """A string array as it is; a list of str as one."""
    if isinstance(texts, pa.Array):
        assert pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type), f"no string array: {texts.type}"
        assert not texts.null_count, f"{texts.null_count} of {len(texts)} documents are null"
        return texts
    try:
        return pa.array(texts, pa.large_string())
    except UnicodeEncodeError:
        document, place = next(
            (document, match.start())
            for document, text in enumerate(texts)
            if (match := re.search("[\ud800-\udfff]", text))
        )
        raise DocumentError(
            document,
            f"holds half a surrogate pair at character {place}, which is no valid Unicode and has no UTF-8; decode its "
            "bytes strictly before",
        ) from None
