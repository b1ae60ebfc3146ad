"""The engines that turn text into token IDs, and the rank files that tiktoken and gigatoken work from.

Algorithm: an encoder takes an Arrow array of D strings and gives flat IDs and D counts. `tiktoken` encodes one document
after the other. `gigatoken` takes the Arrow buffers as they are, with no Python string for a document. `bytes`
reads the text itself as IDs.

Guarantee: tiktoken and gigatoken give the same IDs for every valid UTF-8 text, which `Tokenizer.audit` checks on a
sample in every run. Any number of threads may call an encoder at once; tiktoken and gigatoken release the
GIL while they encode. A rank file is used only if all its lines can be read and its hash, where one is known, is right.

Cost on one core of an AMD EPYC, in MB of technical English per second: tiktoken 13, gigatoken 200 to 400, bytes 8,000.

Patterns, special tokens and hashes of the published encodings are facts taken from tiktoken 0.14,
`tiktoken_ext/openai_public.py` (MIT licence); a test compares them with the tiktoken that is installed.
"""

import base64
import binascii
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.base.paths import expand_user

Ids = npt.NDArray[np.unsignedinteger[Any]]
Counts = npt.NDArray[np.int64]
Encode = Callable[[pa.Array], tuple[Ids, Counts]]
Ranks = dict[bytes, int]

END_OF_TEXT = "<|endoftext|>"
PACKAGED_RANKS = Path(__file__).with_name("gpt2.tiktoken")
RANKS_URL = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"

# In all three, no pretoken holds an ASCII space after a character that is not white space. Therefore a text may be cut
# before such a space, and the two parts encode to the IDs of the whole.
PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


class DocumentError(ValueError):
    """One document of a batch cannot be encoded; whoever knows where it comes from says so in place of its number."""

    def __init__(self, document: int, what: str) -> None:
        super().__init__(f"document {document} of this batch {what}")
        self.document, self.what = document, what


class Published(NamedTuple):
    """What tiktoken knows of an encoding besides its ranks; `sha256` is of the rank file."""

    sha256: str
    pattern: str
    special_tokens: dict[str, int]
    gigatoken: bool  # gigatoken wants ranks without gaps, and p50k has one


PUBLISHED = {
    "r50k_base": Published(
        "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930", "gpt2", {END_OF_TEXT: 50256}, True
    ),
    "p50k_base": Published(
        "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069", "gpt2", {END_OF_TEXT: 50256}, False
    ),
    "cl100k_base": Published(
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        "cl100k",
        {
            END_OF_TEXT: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
        True,
    ),
    "o200k_base": Published(
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        "o200k",
        {END_OF_TEXT: 199999, "<|endofprompt|>": 200018},
        True,
    ),
}

# gigatoken 0.10 caches every pretoken it meets and never forgets one, so an encoder is replaced by a fresh one after
# this much CPU time. Time bounds the cache better than bytes of text do: it grows by misses, and misses take the time.
# Measured growth for a megabyte of text: 0.3 MB on documentation and code, 6 to 12 MB on random words, digits, base64
# or CJK; for a second of CPU time, 60 to 240 MB on all of them. So 2 s hold a thread's cache under 500 MB (two threads
# on random words and CJK peaked at 970 MB together) and let it read 500 MB of documentation; a fresh encoder's 0.05 s
# to load and 0.2 s to warm up cost about a tenth.
ENCODER_CPU_SECONDS = 2.0


def packaged_ranks() -> tuple[Ranks, bytes]:
    """GPT-2's ranks, and the rank file that comes with the package."""
    data, expected = PACKAGED_RANKS.read_bytes(), PUBLISHED["r50k_base"].sha256
    if (found := hashlib.sha256(data).hexdigest()) != expected:
        raise ValueError(
            f"{PACKAGED_RANKS} is truncated or changed: its sha256 is {found}, and {expected} was expected. "
            "Install stridemill again."
        )
    words = data.split()  # the hash says what is in it, so the checks of `parse_ranks` would cost time and find nothing
    return dict(zip(map(binascii.a2b_base64, words[::2]), map(int, words[1::2]), strict=True)), data


def downloaded_ranks(encoding: str) -> Ranks:
    """The ranks of a published encoding, from tiktoken's cache folder or, the first time, from its server."""
    from tiktoken.load import load_tiktoken_bpe

    url = RANKS_URL.format(encoding)
    try:
        return load_tiktoken_bpe(url, expected_hash=PUBLISHED[encoding].sha256)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        cache = os.environ.get("TIKTOKEN_CACHE_DIR", "not set")
        cached_name = hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
        raise ValueError(
            f"tokenizer={encoding}: its rank file is not in tiktoken's cache folder (TIKTOKEN_CACHE_DIR is {cache}), "
            f"and downloading {url} failed: {error}. Fetch that file where there is a network; then give it as "
            f"tokenizer=tiktoken_file tokenizer.path=<file>, or name it {cached_name} and set TIKTOKEN_CACHE_DIR to "
            "its folder."
        ) from error


def file_ranks(path: str) -> tuple[Ranks, str | None, str]:
    """The ranks in a rank file, the name of the published encoding that it is (or None), and its sha256."""
    try:
        data = expand_user(path).read_bytes()
    except OSError as error:
        raise ValueError(f"tokenizer.path={path} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(data).hexdigest()
    encoding = next((name for name, known in PUBLISHED.items() if known.sha256 == digest), None)
    return parse_ranks(data, path), encoding, digest


def parse_ranks(data: bytes, source: object) -> Ranks:
    """Read a rank file: on each line a token in base64, a space, and its rank. ValueError with the line number."""
    ranks: Ranks = {}
    token_by_rank: dict[int, bytes] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line:
            continue
        try:
            encoded, digits = line.split()
            token, rank = binascii.a2b_base64(encoded, strict_mode=True), int(digits)
        except ValueError as error:
            raise ValueError(
                f"{source}, line {number}: expected a token in base64, a space and its rank, found {line[:60]!r}"
                f" ({error})"
            ) from error
        if not 0 <= rank < 2**31 - 1:
            raise ValueError(f"{source}, line {number}: a rank must lie between 0 and 2**31 - 2 (int32), found {rank}")
        if token in ranks:
            raise ValueError(f"{source}, line {number}: the token {token!r} has a rank already, {ranks[token]}")
        if rank in token_by_rank:
            raise ValueError(f"{source}, line {number}: the rank {rank} is taken by {token_by_rank[rank]!r}")
        ranks[token] = rank
        token_by_rank[rank] = token
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(
            f"{source}: every single byte must be a token, or some text cannot be encoded; {len(missing)} are missing, "
            f"the first is {bytes([missing[0]])!r}. Is the file truncated?"
        )
    return ranks


def canonical_rank_file(ranks: Ranks) -> bytes:
    """A rank file with these ranks in order: the same bytes for the same ranks. A published file comes out as it is."""
    return b"".join(
        b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in sorted(ranks.items(), key=lambda item: item[1])
    )


def string_buffers(texts: pa.Array) -> tuple[npt.NDArray[np.signedinteger[Any]], npt.NDArray[np.uint8]]:
    """The offsets `[D + 1]` and UTF-8 bytes of an Arrow string array with at least one entry, without a copy."""
    _, offsets, data = texts.buffers()
    width = np.dtype(np.int64 if pa.types.is_large_string(texts.type) else np.int32)
    offsets_D1 = np.frombuffer(offsets, width, count=len(texts) + 1, offset=texts.offset * width.itemsize)
    return offsets_D1, np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)


def flat(ids: list[Any]) -> tuple[Ids, Counts]:
    """D sequences of IDs as one array and the D lengths."""
    counts_D = np.fromiter(map(len, ids), np.int64, len(ids))
    return np.concatenate(ids, dtype=np.uint32, casting="unsafe"), counts_D


def tiktoken_encoder(encoding: Any, *, control: bool) -> Encode:
    """Encode with a `tiktoken.Encoding`; `control` makes the names of special tokens found in the text special tokens.

    `encode_to_numpy` gives the IDs of `encode_ordinary` (or of `encode(allowed_special="all")`) without a Python
    integer for each.
    """
    allowed = "all" if control else frozenset()

    def encode(texts: pa.Array) -> tuple[Ids, Counts]:
        return flat(
            [
                encoding.encode_to_numpy(text, allowed_special=allowed, disallowed_special=())
                for text in texts.to_pylist()
            ]
        )

    return encode


def refuse_lost_text(encode: Encode, token_lengths: dict[int, int], pattern: str) -> Encode:
    """Wrap an encoder: ValueError where the tokens are not as long as the text.

    tiktoken drops whatever its pattern does not match, without a word. The published patterns match everything, so
    only a pattern of the user's own needs this check.
    """
    lengths = np.zeros(max(token_lengths) + 1, np.int64)
    lengths[list(token_lengths)] = list(token_lengths.values())

    def encode_checked(texts: pa.Array) -> tuple[Ids, Counts]:
        ids, counts_D = encode(texts)
        encoded = np.concatenate([[0], np.cumsum(lengths[ids])])[np.concatenate([[0], np.cumsum(counts_D)])]
        lost_D = np.diff(string_buffers(texts)[0].astype(np.int64)) - np.diff(encoded)
        if lost_D.any():
            document = int(np.flatnonzero(lost_D)[0])
            raise DocumentError(
                document,
                f"would lose {lost_D[document]} bytes: tokenizer.pattern must match every character, and {pattern!r} "
                r"does not. End the pattern with an alternative that takes the rest, such as |[\s\S].",
            )
        return ids, counts_D

    return encode_checked


def gigatoken_encoder(*, rank_file: bytes, pattern: str, special_tokens: dict[str, int]) -> Encode:
    """Encode with gigatoken, one encoder for each thread (a shared one makes threads wait for each other).

    `pattern` is one of gigatoken's names: gpt2, cl100k, o200k. `special_tokens` become control tokens where the text
    holds their names; with none of them the IDs are those of tiktoken's `encode_ordinary`.
    """
    import awkward
    from gigatoken.gigatoken_rs import BPETokenizer

    local = threading.local()

    def fresh_encoder() -> BPETokenizer:
        # It loads from a path alone. Our own copy cannot have changed since its hash was checked.
        with tempfile.TemporaryDirectory(prefix="stridemill-") as folder:
            path = Path(folder, "ranks.tiktoken")
            path.write_bytes(rank_file)
            return BPETokenizer.from_tiktoken(path, pattern, special_tokens)

    def encode(texts: pa.Array) -> tuple[Ids, Counts]:
        if getattr(local, "seconds_left", 0.0) <= 0.0:
            local.encoder = None  # the old cache must go before the new encoder comes
            local.encoder, local.seconds_left = fresh_encoder(), ENCODER_CPU_SECONDS
        offsets_D1, data = string_buffers(texts)
        characters = awkward.contents.NumpyArray(data, parameters={"__array__": "char"})
        index = awkward.index.Index64(offsets_D1.astype(np.int64, copy=False))  # it refuses 32-bit offsets
        strings = awkward.contents.ListOffsetArray(index, characters, parameters={"__array__": "string"})
        start = time.thread_time()
        # parallel=False encodes on this thread: the threads of the write stage are the parallelism.
        lists = local.encoder.encode_batch(awkward.Array(strings), parallel=False).layout
        local.seconds_left -= time.thread_time() - start
        starts_D1 = np.asarray(lists.offsets.data)
        ids = np.asarray(lists.content.data)[starts_D1[0] : starts_D1[-1]]
        return ids, np.diff(starts_D1).astype(np.int64, copy=False)

    return encode


def bytes_encoder(special_tokens: dict[str, int], *, control: bool) -> Encode:
    """Each UTF-8 byte is its own ID."""

    def encode(texts: pa.Array) -> tuple[Ids, Counts]:
        offsets_D1, data = string_buffers(texts)
        return data[offsets_D1[0] : offsets_D1[-1]].astype(np.uint16), np.diff(offsets_D1).astype(np.int64)

    def encode_control(texts: pa.Array) -> tuple[Ids, Counts]:
        ((name, token),) = special_tokens.items()
        documents = []
        for text in texts.to_pylist():
            ids: list[int] = []
            for part in text.encode().split(name.encode()):
                ids += [*part, token]
            documents.append(ids[:-1])
        return flat(documents)

    return encode_control if control else encode
