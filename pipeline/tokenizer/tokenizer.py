"""A vocabulary and the engine that encodes with it: text to token IDs, and back.

Guarantee: tokenizers with equal hashes give equal IDs, whatever their names and engines: the hash covers everything
that affects the IDs. A special token's name inside a document is plain text unless `special_text` says otherwise, and
`count_special` counts it either way.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.base.arrow import binary_array, numbers_of
from pipeline.base.cut_points import safe_cuts
from pipeline.base.display import MOST_ROWS, MOST_TOKENS, Token, TokenView, find_rows
from pipeline.base.hashing import hash_json
from pipeline.rules import check_range
from pipeline.tokenizer.audit import START_BYTES
from pipeline.tokenizer.engines import Counts, DocumentError, Encode, Ids
from pipeline.tokenizer.special_tokens import DocumentToken


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Tokenizer:
    """A vocabulary and the engine that encodes with it. Made by `load_tokenizer`; many threads may use it at once.

    Pickled, it is only how to load it: another process loads the vocabulary once and keeps it.
    """

    name: str
    hash: str  # sha256, in hex; `special_text` is a rule about documents and not part of it
    vocab_size: int  # the largest ID plus one, so that an embedding with this many rows has one for every ID
    special_tokens: dict[str, int]
    end_token: DocumentToken  # between documents; encode_batch never adds it
    engine: str  # the one in use: tiktoken, gigatoken, huggingface or bytes
    special_text: str
    cut_safe: bool  # text may be cut before an ASCII space that follows a character that is not white space
    start_token: DocumentToken | None = None  # before each document; encode_batch never adds it
    max_document_bytes: int | None = None  # the default limit, where encoding takes much memory
    notes: tuple[str, ...] = ()  # what the vocabulary asks for and is not done, for the summary
    _encode: Encode
    _token_texts: Callable[[list[int]], list[bytes]]
    _encode_reference: Encode | None = None
    _encode_on_all_cores: Encode | None = None
    _decode: Callable[[list[int]], str] | None = None  # None: join the token texts
    _only_engine: str = ""  # the user asked for this one: tokens that another one made are not used
    _never_from_text: frozenset[int] = frozenset()  # control tokens that the engine could make out of a text
    _load: "Callable[[], Tokenizer] | None" = None  # loads it in another process

    def __reduce__(self) -> "tuple[Callable[[], Tokenizer], tuple[()]]":
        assert self._load is not None, "load_tokenizer sets it"
        return self._load, ()

    def __repr__(self) -> str:
        return f"<Tokenizer {self.name}: {self.vocab_size:,} IDs, eos {self.eos}, encoded by {self.engine}>"

    @property
    def eos(self) -> int:
        """The ID of the end-of-text token, which separates documents."""
        return self.end_token.id

    @property
    def bos(self) -> int | None:
        """The ID of the token before each document, if there is one."""
        return self.start_token.id if self.start_token else None

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """The smaller of uint16 and uint32 that can store every ID."""
        return np.dtype(np.uint16 if self.vocab_size <= 65536 else np.uint32)

    def accepts(self, engine: str) -> bool:
        """Tell whether cached tokens may be used that an engine has made."""
        return self._only_engine in ("", engine)

    @property
    def audited(self) -> bool:
        """Whether `audit` compares anything: true for gigatoken, whose reference is tiktoken."""
        return self._encode_reference is not None

    def by_reference(self) -> "Tokenizer":
        """Return the same tokenizer, encoding with tiktoken alone: the same IDs, a quicker start and a lower speed."""
        if self._encode_reference is None:
            return self
        return replace(
            self, engine="tiktoken", _encode=self._encode_reference, _encode_reference=None, _encode_on_all_cores=None
        )

    def on_all_cores(self) -> "Tokenizer":
        """Return the same tokenizer, which encodes each batch on every core of this process, if its engine can."""
        return self if self._encode_on_all_cores is None else replace(self, _encode=self._encode_on_all_cores)

    def encode(self, text: str) -> list[int]:
        """Encode one text; no token is added. See `encode_batch` for what is refused."""
        ids, _ = self.encode_batch([text])
        return [int(token) for token in ids]

    def encode_batch(self, texts: Sequence[str] | pa.Array) -> tuple[Ids, Counts]:
        """Encode D documents. Returns their IDs, concatenated, in `dtype`, and each one's count, int64 `[D]`.

        `texts` is a list of str or, faster, a pyarrow string or large_string array without nulls, *whose bytes the
        caller has verified to be UTF-8*.

        Raises:
            ValueError: a str has a lone surrogate or, with `special_text="error"`, a special token's name; or a text
                can be encoded only with a control token. The message has the document's index in the batch.

        """
        array = _as_arrow(texts)
        if self.special_text == "error":
            self._refuse_special(array)
        if not len(array):
            return np.empty(0, self.dtype), np.empty(0, np.int64)
        ids, counts_D = self._encode(array)
        if self._never_from_text and self.special_text != "control":
            self._refuse_control(ids, counts_D)
        return ids.astype(self.dtype, copy=False), counts_D

    def count_special(self, texts: Sequence[str] | pa.Array) -> Counts:
        """Count the names of special tokens in the text of each of D documents, int64 `[D]`."""
        import pyarrow.compute as pc

        if not self.special_tokens:
            return np.zeros(len(texts), np.int64)
        # One pass for all names, the longest first: one name may be the start of another.
        names = sorted(self.special_tokens, key=len, reverse=True)
        counts = pc.count_substring_regex(_as_arrow(texts), "|".join(map(re.escape, names)))
        return numbers_of(counts).astype(np.int64)

    def _refuse_control(self, ids: Ids, counts_D: Counts) -> None:
        found = np.flatnonzero(np.isin(ids, np.fromiter(self._never_from_text, np.int64)))
        if not len(found):
            return
        token = int(ids[found[0]])
        name = next((name for name, other in self.special_tokens.items() if other == token), None)
        name = name or self.decode_pieces([token])[0]
        raise DocumentError(
            int(np.searchsorted(np.cumsum(counts_D), found[0], "right")),
            f"contains text that {self.name} encodes only as its control token {name!r} ({token}). Choose another "
            "tokenizer.eos or tokenizer.bos if it is one of them, set tokenizer.special_text=control, or remove the "
            "document from the corpus.",
        )

    def _refuse_special(self, array: pa.Array) -> None:
        found_D = self.count_special(array)
        if not found_D.any():
            return
        document = int(np.flatnonzero(found_D)[0])
        text = array[document].as_py()
        position, name = min((text.find(name), name) for name in self.special_tokens if name in text)
        raise DocumentError(
            document,
            f"contains the special token {name} at character {position}, which tokenizer.special_text=error refuses. "
            "tokenizer.special_text=literal encodes it as plain text, control as the token "
            f"{self.special_tokens[name]}.",
        )

    def audit(
        self, texts: Sequence[str] | pa.Array, ids: Ids, counts: Counts, sample: Iterable[int], *, start: bool = False
    ) -> int:
        """Re-encode the documents `sample` of a batch with tiktoken and compare the IDs. Returns how many.

        A sample proves nothing about the documents outside it. Engines that are their own reference (tiktoken,
        huggingface, bytes) have nothing to compare with: the answer is 0.

        Args:
            texts: the batch.
            ids: what `encode_batch(texts)` returned.
            counts: likewise.
            sample: indices of the documents to compare.
            start: compare only the first `START_BYTES` or a little more, up to a position where a text may be cut.

        Raises:
            ValueError: the engines differ.

        """
        if self._encode_reference is None:
            return 0
        array, ends_D = _as_arrow(texts), np.cumsum(counts)
        assert len(array) == len(counts), f"{len(array)} documents, but {len(counts)} counts"
        compared = 0
        for document in sample:
            got = ids[ends_D[document] - counts[document] : ends_D[document]]
            text, is_complete = array.slice(document, 1), True
            if start and (part := _start(text)) is not None:
                text, is_complete = part, False
            expected, _ = self._encode_reference(text)
            got = got if is_complete else got[: len(expected)]
            if not np.array_equal(got, expected):
                raise DocumentError(
                    document,
                    f"is encoded differently by tiktoken: {_first_difference(got, expected)}. The engines must agree, "
                    f"so no ID by {self.engine} can be trusted: use tokenizer.engine=tiktoken, which also replaces "
                    "cached tokens, and report the text to gigatoken's authors.",
                )
            compared += 1
        return compared

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of IDs. Bytes that are not UTF-8, as at the edges of a window, become U+FFFD."""
        known = [int(token) for token in ids]
        texts = self._token_texts(known)
        return b"".join(texts).decode("utf-8", "replace") if self._decode is None else self._decode(known)

    def decode_pieces(self, ids: Iterable[int]) -> list[str]:
        r"""Return the text of each ID by itself, for showing tokens; bytes that are not UTF-8 appear as \xNN."""
        return [text.decode("utf-8", "backslashreplace") for text in self._token_texts([int(token) for token in ids])]

    def show(self, tokens: object) -> TokenView:
        """Return tokens as a notebook and a terminal show them: each text with its ID and, in a window, its target.

            tokenizer.show("The kettle sang.")
            tokenizer.show(batch)  # or one window of a `WindowDataset`, or a list of IDs

        Args:
            tokens: a text; IDs, as a list, array or tensor of one or two dimensions; or anything with `input_ids` and
                `target_ids`, or the two as a pair.

        Raises:
            ConfigError: an ID is not in the vocabulary, or there are no IDs.

        """
        inputs, *targets = find_rows(self.encode(tokens) if isinstance(tokens, str) else tokens)
        for token in chain(*inputs, *([max(one, 0) for one in row] for row in chain(*targets))):
            check_range("tokens", token, 0, self.vocab_size - 1)
        cut = [[row[:MOST_TOKENS] for row in rows[:MOST_ROWS]] for rows in (inputs, *targets)]
        below = (
            [list(map(self._show_target, row)) for row in cut[1]] if targets else [[""] * len(ids) for ids in cut[0]]
        )
        shown = [
            list(map(Token, self.decode_pieces(ids), ids, texts)) for ids, texts in zip(cut[0], below, strict=True)
        ]
        return TokenView(shown, num_rows=len(inputs), num_tokens=max(map(len, inputs), default=0))

    def _show_target(self, target: int) -> str:
        return str(target) if target < 0 else self.decode_pieces([target])[0]


def identity_of(**facts: Any) -> str:
    """Hash named facts (sha256); bytes count by their own sha256."""
    plain = {key: hashlib.sha256(fact).hexdigest() if isinstance(fact, bytes) else fact for key, fact in facts.items()}
    return hash_json(plain)


def _first_difference(got: Ids, expected: Ids) -> str:
    shared = min(len(got), len(expected))
    differing = np.flatnonzero(got[:shared] != expected[:shared])
    index = int(differing[0]) if len(differing) else shared
    theirs, ours = (str(ids[index]) if index < len(ids) else "missing" for ids in (expected, got))
    return f"token {index} is {ours}, and {theirs} by tiktoken"


def _start(text: pa.Array) -> pa.Array | None:
    """Return the start of the one text, up to the first safe cut after `START_BYTES`; None if it has none."""
    buffer = text[0].as_buffer()
    if buffer.size <= START_BYTES:
        return None
    head = buffer.slice(0, min(buffer.size, 2 * START_BYTES)).to_pybytes()
    cut = next(safe_cuts(head, START_BYTES - 4), None)
    return None if cut is None else binary_array([head[:cut]], pa.large_string())


def _as_arrow(texts: Sequence[str] | pa.Array) -> pa.Array:
    """Return a string array as it is, and a list of str as one."""
    if isinstance(texts, pa.Array):
        assert pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type), f"no string array: {texts.type}"
        assert not texts.null_count, f"{texts.null_count} of {len(texts)} documents are null"
        return texts
    try:
        return pa.array(texts, pa.large_string())
    except UnicodeEncodeError:
        document, position = next(
            (document, match.start())
            for document, text in enumerate(texts)
            if (match := re.search("[\ud800-\udfff]", text))
        )
        raise DocumentError(
            document,
            f"contains half a surrogate pair at character {position}, which is not valid Unicode and has no UTF-8 "
            "form; decode its bytes strictly",
        ) from None
