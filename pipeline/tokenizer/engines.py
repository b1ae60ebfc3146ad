"""The engines that encode text: tiktoken, gigatoken and bytes.

Algorithm: an encoder takes an Arrow array of D strings and returns flat IDs and D counts. tiktoken encodes one document
after the other. gigatoken reads the Arrow buffers directly, without a Python string for each document. The engine
`bytes` uses the text itself as IDs.

Guarantee: tiktoken and gigatoken give the same IDs for every valid UTF-8 text, except where their Unicode tables differ
(`unicode_differences.py` sends such documents to tiktoken). `Tokenizer.audit` checks a sample in every run. Any number
of threads may call an encoder at once; tiktoken and gigatoken release the GIL while they encode.

Cost on one core of an AMD EPYC, in MB of technical English per second: tiktoken 13, gigatoken 200 to 400, bytes 8,000.
"""

import math
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.base.memory import anonymous_memory
from pipeline.rules import shorten
from pipeline.settings import count_cores
from pipeline.tokenizer.formats import is_library_error, reason

Ids = npt.NDArray[np.unsignedinteger[Any]]
Counts = npt.NDArray[np.int64]
Encode = Callable[[pa.Array], tuple[Ids, Counts]]

# gigatoken 0.10 caches every pretoken that it meets and never drops one, so its encoder is replaced after this much CPU
# time. Time bounds the cache better than bytes of text do: it grows with misses, and misses take the time.
# Measured growth for a megabyte of text: 0.3 MB on documentation and code, 6 to 12 MB on random words, digits, base64
# or CJK; for a second of CPU time, 60 to 240 MB on all of them. So 2 s keep a thread's cache under 500 MB (two threads
# on random words and CJK peaked at 970 MB together), enough for 500 MB of documentation. A new encoder takes 0.05 s
# to load and 0.2 s to warm up: about a tenth.
ENCODER_CPU_SECONDS = 2.0
SMALL_CACHE_BYTES = 64 << 20  # for each core: an encoder that all threads share stays while memory grows by less
CACHE_BYTES = 256 << 20  # of a thread's encoder, in releases of gigatoken that bound the cache themselves


class DocumentError(ValueError):
    """A document of a batch that cannot be encoded. The caller replaces its number by its file and line."""

    def __init__(self, document: int, what: str) -> None:
        super().__init__(f"document {document} of this batch {what}")
        self.document, self.what = document, what


def string_buffers(texts: pa.Array) -> tuple[npt.NDArray[np.signedinteger[Any]], npt.NDArray[np.uint8]]:
    """Return the offsets `[D + 1]` and UTF-8 bytes of a nonempty Arrow string array, without a copy."""
    _, offsets, data = texts.buffers()
    width = np.dtype(np.int64 if pa.types.is_large_string(texts.type) else np.int32)
    offsets_D1 = np.frombuffer(offsets, width, count=len(texts) + 1, offset=texts.offset * width.itemsize)
    return offsets_D1, np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)


def flat(ids: list[Any]) -> tuple[Ids, Counts]:
    """Return D sequences of IDs as one array, and their D lengths."""
    counts_D = np.fromiter(map(len, ids), np.int64, len(ids))
    return np.concatenate(ids, dtype=np.uint32, casting="unsafe"), counts_D


def tiktoken_encoder(encoding: Any, *, control: bool) -> Encode:
    """Encode with a `tiktoken.Encoding`; with `control` the names of special tokens in the text become special tokens.

    `encode_to_numpy` gives the IDs of `encode_ordinary` (or of `encode(allowed_special="all")`) without a Python
    integer for each.
    """
    allowed = "all" if control else frozenset()

    def encode(texts: pa.Array) -> tuple[Ids, Counts]:
        documents: list[Ids] = []
        try:
            documents.extend(
                encoding.encode_to_numpy(text, allowed_special=allowed, disallowed_special=())
                for text in texts.to_pylist()
            )
        except BaseException as error:
            if not is_library_error(error):
                raise
            raise DocumentError(
                len(documents),
                f"cannot be encoded by tiktoken: {reason(error)}. If tokenizer.pattern is your own, make it simpler; "
                "else remove the document from the corpus.",
            ) from error
        return flat(documents)

    return encode


def made_when_used(make: Callable[[], Encode]) -> Encode:
    """Return an encoder that is made for its first text: until then its library is not imported."""
    made: list[Encode] = []
    lock = threading.Lock()

    def encode(texts: pa.Array) -> tuple[Ids, Counts]:
        with lock:
            if not made:
                made.append(make())
        return made[0](texts)

    return encode


def refuse_lost_text(encode: Encode, token_lengths: dict[int, int], pattern: str) -> Encode:
    """Wrap an encoder: ValueError where the tokens together are not as long as the text.

    tiktoken silently drops what its pattern does not match. The published patterns match everything, so only a user's
    own pattern needs this check.
    """
    tokens = np.array(sorted(token_lengths), np.int64)
    lengths = np.array([token_lengths[token] for token in tokens.tolist()], np.int64)

    def encode_checked(texts: pa.Array) -> tuple[Ids, Counts]:
        ids, counts_D = encode(texts)
        encoded = np.concatenate([[0], np.cumsum(lengths[np.searchsorted(tokens, ids)])])[
            np.concatenate([[0], np.cumsum(counts_D)])
        ]
        lost_D = np.diff(string_buffers(texts)[0].astype(np.int64)) - np.diff(encoded)
        if lost_D.any():
            document = int(np.flatnonzero(lost_D)[0])
            raise DocumentError(
                document,
                f"would lose {lost_D[document]} bytes: tokenizer.pattern={shorten(repr(pattern), 100)} must match "
                r"every character. End the pattern with an alternative that matches the rest, such as |[\s\S].",
            )
        return ids, counts_D

    return encode_checked


def gigatoken_encoder(
    *, rank_file: bytes, pattern: str, special_tokens: dict[str, int], on_all_cores: bool = False
) -> Encode:
    """Encode with gigatoken: each thread with an encoder of its own, or all with one that uses every core.

    `pattern` is one of gigatoken's names: gpt2, cl100k, o200k. The names of `special_tokens` in the text become control
    tokens; without any the IDs are those of tiktoken's `encode_ordinary`.
    """
    import awkward
    from gigatoken.gigatoken_rs import BPETokenizer

    bounds_itself = hasattr(BPETokenizer, "set_max_cache_bytes")  # merged there after release 0.10
    life = math.inf if bounds_itself else ENCODER_CPU_SECONDS

    def new_encoder() -> BPETokenizer:
        # It loads only from a path. Our own copy cannot have changed since its hash was checked.
        with tempfile.TemporaryDirectory(prefix="stridemill-") as folder:
            path = Path(folder, "ranks.tiktoken")
            path.write_bytes(rank_file)
            encoder = BPETokenizer.from_tiktoken(path, pattern, special_tokens)
        if set_limit := getattr(encoder, "set_max_cache_bytes", None):
            set_limit(CACHE_BYTES)
        return encoder

    own = OwnEncoders(new_encoder, life=life)
    shared = SharedEncoder(new_encoder, life=life)

    def encode(texts: pa.Array) -> tuple[Ids, Counts]:
        offsets_D1, data = string_buffers(texts)
        characters = awkward.contents.NumpyArray(data, parameters={"__array__": "char"})
        index = awkward.index.Index64(offsets_D1.astype(np.int64, copy=False))  # it refuses 32-bit offsets
        strings = awkward.contents.ListOffsetArray(index, characters, parameters={"__array__": "string"})
        encoders = shared if on_all_cores and not shared.is_forked else own
        lists = encoders.encode(awkward.Array(strings)).layout
        starts_D1 = np.asarray(lists.offsets.data)
        ids = np.asarray(lists.content.data)[starts_D1[0] : starts_D1[-1]]
        return ids, np.diff(starts_D1).astype(np.int64, copy=False)

    return encode


class OwnEncoders(threading.local):
    """An encoder for each thread, which encodes on that thread; threads that share one would wait for each other."""

    def __init__(self, make: Callable[[], Any], *, life: float) -> None:
        self._make, self._life, self._left = make, life, 0.0
        self._encoder: Any = None

    def encode(self, strings: Any) -> Any:
        """Encode with an encoder that has used less than its life's CPU seconds."""
        if self._left <= 0.0:
            self._encoder = None  # free the old cache before the new encoder is made
            self._encoder, self._left = self._make(), self._life
        start = time.thread_time()
        lists = self._encoder.encode_batch(strings, parallel=False)
        self._left -= time.thread_time() - start
        return lists


class SharedEncoder:
    """One encoder for all threads. It encodes on gigatoken's own threads, one for each core, one batch after the other.

    So it is loaded once, which keeps the interpreter's lock for 0.1 s, and not once for each thread; and a batch has
    all cores while other threads read, join and write theirs.
    """

    def __init__(self, make: Callable[[], Any], *, life: float) -> None:
        self._make, self._cores = make, count_cores()
        self._life = life * self._cores
        self._lock, self._process = threading.Lock(), os.getpid()
        self._encoder: Any = None
        self._ends, self._memory = 0.0, 0

    @property
    def is_forked(self) -> bool:
        """Whether this process is a fork: gigatoken's threads have stayed behind."""
        return os.getpid() != self._process

    def encode(self, strings: Any) -> Any:
        """Encode with an encoder of which the process has used less than its life's CPU seconds, for whatever.

        Another life follows where the process's memory tells that its cache is still small, as on most real text.
        """
        with self._lock:
            if self._encoder is None or (time.process_time() > self._ends and not self._is_small()):
                self._encoder = None
                self._encoder, self._memory = self._make(), anonymous_memory() or 0
                self._ends = time.process_time() + self._life
            encoder = self._encoder
        return encoder.encode_batch(strings, parallel=True)

    def _is_small(self) -> bool:
        now = anonymous_memory()
        if now is None or now - self._memory > SMALL_CACHE_BYTES * self._cores:
            return False
        self._ends = time.process_time() + self._life
        return True


def bytes_encoder(special_tokens: dict[str, int], *, control: bool) -> Encode:
    """Encode each UTF-8 byte as its own ID."""

    def encode(texts: pa.Array) -> tuple[Ids, Counts]:
        offsets_D1, data = string_buffers(texts)
        return data[offsets_D1[0] : offsets_D1[-1]].astype(np.uint16), np.diff(offsets_D1).astype(np.int64)

    names = sorted(special_tokens, key=len, reverse=True)
    pattern = re.compile(b"(" + b"|".join(re.escape(name.encode()) for name in names) + b")")

    def encode_control(texts: pa.Array) -> tuple[Ids, Counts]:
        documents = []
        for text in texts.to_pylist():
            parts = pattern.split(text.encode())  # text and names alternate
            ids: list[int] = []
            for number, part in enumerate(parts):
                ids += [special_tokens[part.decode()]] if number % 2 else part
            documents.append(ids)
        return flat(documents)

    return encode_control if control else encode
