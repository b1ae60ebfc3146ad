"""The code points that tiktoken and gigatoken put into different classes, and the documents that contain one.

Each library has its own Unicode tables. Where one knows a code point as a letter and the other does not, they split the
text differently and give other IDs. Such documents are encoded by tiktoken, so the IDs do not depend on the engine.

Algorithm: both libraries encode with a vocabulary whose merges show every split: one for each pair of a byte that ends
a character and a byte that starts one. Blocks of 256 code points of one class are compared as a whole, the others one
by one, next to letters, digits, signs, spaces and apostrophes.

Cost: seconds for two releases that are new here; the results for known ones come with the package
(`python -m pipeline.tokenizer.unicode_differences` writes them). A search takes 1 to 3 ms for 8 MB of text.
"""

import functools
import json
from collections.abc import Iterable
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.base.arrow import flags_array
from pipeline.tokenizer.engines import Counts, Encode, Ids, gigatoken_encoder, string_buffers, tiktoken_encoder
from pipeline.tokenizer.rank_files import PATTERNS, Ranks, canonical_rank_file

Ranges = list[list[int]]  # first and last code point

KNOWN = Path(__file__).with_name("unicode_differences.json")
BLOCK = 256
SEARCHED_BYTES = 256 << 10  # at once: they stay in the processor's cache
CODE_POINTS = range(0x80, 0xD800), range(0xE000, 0x110000)  # without surrogates
# What surrounds a block: letters, digits and signs that join with one of their own class; a capital does not join with
# small letters before it, which o200k tells apart.
LETTER, DIGIT, SIGN, CAPITAL = "a{}a", "1{}1", "!{}!", "{}Aa"
AROUND_BLOCKS = (LETTER, DIGIT, SIGN, CAPITAL, "A{}", " {} ")
AROUND_CODE_POINT = "a{0}a1{0}1!{0}!A{0}A {0} a's{0}'s '{0} {0}Aa"


def same_ids_encoder(gigatoken: Encode, tiktoken: Encode, pattern: str) -> Encode:
    """Encode with gigatoken, and with tiktoken the documents that gigatoken would split differently."""

    def encode(texts: pa.Array) -> tuple[Ids, Counts]:
        by_tiktoken_D = find_documents(texts, pattern)
        if not by_tiktoken_D.any():
            return gigatoken(texts)
        if by_tiktoken_D.all():
            return tiktoken(texts)
        counts_D = np.empty(len(texts), np.int64)
        ids, counts_D[~by_tiktoken_D] = gigatoken(texts.filter(flags_array(~by_tiktoken_D)))
        exact_ids, counts_D[by_tiktoken_D] = tiktoken(texts.filter(flags_array(by_tiktoken_D)))
        is_exact = np.repeat(by_tiktoken_D, counts_D)
        merged = np.empty(len(is_exact), np.uint32)
        merged[~is_exact], merged[is_exact] = ids, exact_ids
        return merged, counts_D

    return encode


def find_documents(texts: pa.Array, pattern: str) -> npt.NDArray[np.bool_]:
    """Find the documents of a nonempty batch that the two libraries split differently under a pattern: bool [D]."""
    offsets_D1, data = string_buffers(texts)
    first = int(offsets_D1[0])
    data = data[first : offsets_D1[-1]]
    found = np.zeros(len(texts), np.bool_)
    if not len(data) or data.max() < 0x80:
        return found
    ranges = differing_ranges(pattern)
    bounds = np.array(ranges, np.int64).reshape(-1, 2)
    is_prefix, leads = _prefixes(tuple((low, high) for low, high in ranges))
    for start in range(0, len(data), SEARCHED_BYTES):
        part = data[start : start + SEARCHED_BYTES]
        if part.max() < leads[0]:
            continue
        at = np.flatnonzero(functools.reduce(np.bitwise_or, (part == lead for lead in leads))) + start
        at = at[is_prefix[data[at], data[at + 1]]]
        for lead in set(data[at].tolist()):
            of_lead = at[data[at] == lead]
            points = _decode(data, of_lead, lead)
            below = np.searchsorted(bounds[:, 0], points, "right") - 1
            of_lead = of_lead[(below >= 0) & (points <= bounds[below, 1])]
            found[np.searchsorted(offsets_D1, of_lead + first, "right") - 1] = True
    return found


@functools.cache
def differing_ranges(pattern: str) -> Ranges:
    """Return the code points that the two installed libraries treat differently under a pattern, as ranges."""
    known: dict[str, dict[str, Ranges]] = json.loads(KNOWN.read_text(encoding="utf-8"))
    return known[releases()][pattern] if releases() in known else find_differences(pattern)


def find_differences(pattern: str) -> Ranges:
    """Compare the two libraries on all code points."""
    both = revealing_engines(pattern)
    letters = "".join(map(chr, chain(*CODE_POINTS)))
    blocks = [letters[at : at + BLOCK] for at in range(0, len(letters), BLOCK)]
    same, joined = np.ones(len(blocks), np.bool_), {}
    for around in AROUND_BLOCKS:
        texts = [around.format(block) for block in blocks]
        is_same, counts = compare(both, texts)
        same &= is_same
        # Neighbours in one pretoken are merged, so there are fewer tokens than bytes.
        merges = np.array([len(text.encode()) for text in texts]) - counts
        joined[around] = merges == np.array(list(map(len, blocks))) + (around != CAPITAL)
    of_one_class = joined[SIGN] | joined[DIGIT] | (joined[LETTER] & (joined[CAPITAL] | (pattern != "o200k")))
    clean = same & of_one_class
    points = [letter for block, is_clean in zip(blocks, clean, strict=True) if not is_clean for letter in block]
    is_same, _ = compare(both, [AROUND_CODE_POINT.format(point) for point in points])
    return _as_ranges(ord(point) for point, one in zip(points, is_same, strict=True) if not one)


def revealing_engines(pattern: str) -> tuple[Encode, Encode]:
    """Return both engines with the vocabulary that shows every split."""
    import tiktoken

    ranks = _revealing_ranks()
    core = tiktoken.Encoding("revealing", pat_str=PATTERNS[pattern], mergeable_ranks=ranks, special_tokens={})
    rank_file = canonical_rank_file(ranks)
    return (
        gigatoken_encoder(rank_file=rank_file, pattern=pattern, special_tokens={}),
        tiktoken_encoder(core, control=False),
    )


def releases() -> str:
    """Name the two installed releases."""
    return f"tiktoken {version('tiktoken')}, gigatoken {version('gigatoken')}"


def _revealing_ranks() -> Ranks:
    """Make ranks that merge each byte that ends a character with each one that starts one."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    tails, leads, letters = range(0x80, 0xC0), range(0xC2, 0xF5), b"aA1! 's"
    pairs = [(tail, start) for tail in tails for start in (*leads, *letters)]
    pairs += [(letter, lead) for letter in letters for lead in leads]
    return ranks | {bytes(pair): 256 + number for number, pair in enumerate(pairs)}


def compare(both: tuple[Encode, Encode], texts: list[str]) -> tuple[npt.NDArray[np.bool_], Counts]:
    """Encode texts by both engines. Return which have the same IDs, and how many tokens the first makes of each."""
    array = pa.array(texts, pa.large_string())
    (ids, counts), (other_ids, other_counts) = (encode(array) for encode in both)
    is_same = counts == other_counts
    ours, theirs = ids[np.repeat(is_same, counts)], other_ids[np.repeat(is_same, other_counts)]
    differs = np.zeros(len(ours) + 1, np.int64)
    np.cumsum(ours != theirs, out=differs[1:])
    ends = np.cumsum(counts[is_same])
    is_same[is_same] = differs[ends] == differs[ends - counts[is_same]]
    return is_same, counts


def _as_ranges(points: Iterable[int]) -> Ranges:
    ranges: Ranges = []
    for point in points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return ranges


@functools.cache
def _prefixes(ranges: tuple[tuple[int, int], ...]) -> tuple[npt.NDArray[np.bool_], list[int]]:
    """Return which two bytes start code points of the ranges, bool [256, 256], and all that come first, sorted."""
    is_prefix = np.zeros((256, 256), np.bool_)
    for first, last in ranges:
        for point in {*range(first, last + 1, 64), last}:
            lead, second = chr(point).encode()[:2]
            is_prefix[lead, second] = True
    return is_prefix, np.flatnonzero(is_prefix.any(axis=1)).tolist()


def _decode(data: npt.NDArray[np.uint8], at: npt.NDArray[np.intp], lead: int) -> npt.NDArray[np.int64]:
    """Return the code points whose first byte in UTF-8, `lead`, is at these positions."""
    length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    points = np.full(len(at), lead & (0x7F >> length), np.int64)
    for index in range(1, length):
        points = points << 6 | (data[at + index] & 0x3F)
    return points


if __name__ == "__main__":
    table = json.loads(KNOWN.read_text(encoding="utf-8")) if KNOWN.exists() else {}
    table[releases()] = {pattern: find_differences(pattern) for pattern in PATTERNS}
    KNOWN.write_text(json.dumps(table) + "\n", encoding="utf-8")
