"""Permutations of integers that are never stored: keyed bijections, a Feistel network with cycle walking.

`permute(x, n, key)` returns the image of item x of 0 .. n-1 under the permutation that `key` picks, for one x or many
at once. So a shuffle of any size costs no memory and can start anywhere. The definition is our own, and golden values
in the tests pin it: no release of a library can change it, and a change of one bit would break every resume.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Int64: TypeAlias = npt.NDArray[np.int64]
UInt64: TypeAlias = npt.NDArray[np.uint64]

# Found by trial: with 4 rounds, or 3 bits, a chi-square test over a million keys tells permutations of n <= 16 from
# random ones, by 5 standard deviations and more. With 5 rounds and 4 bits it does not, for any n tried.
_ROUNDS = 5
_MIN_BITS = 4
_ONE, _TWO = np.uint64(1), np.uint64(2)
_POWERS_OF_TWO = np.left_shift(_ONE, np.arange(64, dtype=np.uint64))
_ALL_BITS = (1 << 64) - 1
_MIX_FIRST, _MIX_SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_GOLDEN_INT = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, SplitMix64's increment: odd, so all 2**64 sums differ
# As arrays: numpy converts a plain number anew for each operation, which takes longer than the operation on 100 items.
_GOLDEN, _MIX_1, _MIX_2 = (np.array(number, np.uint64) for number in (_GOLDEN_INT, _MIX_FIRST, _MIX_SECOND))
_27, _30, _31 = (np.array(number, np.uint64) for number in (27, 30, 31))


def _mix(x: UInt64) -> UInt64:
    """Scramble 64 bits, in place: the finaliser of SplitMix64 (Steele, Lea and Flood 2014), a bijection."""
    x ^= x >> _30
    x *= _MIX_1
    x ^= x >> _27
    x *= _MIX_2
    x ^= x >> _31
    return x


def _mix_one(x: int) -> int:
    x = (x ^ x >> 30) * _MIX_FIRST & _ALL_BITS
    x = (x ^ x >> 27) * _MIX_SECOND & _ALL_BITS
    return x ^ x >> 31


def make_key(*parts: int | Int64) -> UInt64:
    """Return a key for each combination of parts, integers below 2**64 or arrays [P] of them: uint64 [1], or [P]."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = extend_key(key, part)
    return key


def extend_key(key: UInt64, part: int | Int64) -> UInt64:
    """Return what `make_key` returns for one more part."""
    return _mix(key + _GOLDEN + np.asarray(part).astype(np.uint64))


def permute(x: Int64, n: int | Int64, key: UInt64) -> Int64:
    """Return the image of each x [P] under the permutation of 0 .. n-1 that `key` picks.

    n is up to 2**62; n and key may be arrays [P]. A Feistel network (Luby and Rackoff 1988) splits a number's bits into
    two halves and in turn adds a scramble of one half to the other. Each round can be undone, so the network is a
    bijection of 0 .. 2**bits - 1 for any scramble. Images outside 0 .. n-1 are mapped again until they are inside
    ("cycle walking", Black and Rogaway 2002), which makes it a bijection of 0 .. n-1. For n > 8 this takes less than
    one repeat on average, because 2**bits < 2 n.
    """
    return _walk(_feistel, x, np.atleast_1d(np.asarray(n, dtype=np.uint64)), key)


def _walk(network: Callable[[UInt64, UInt64, UInt64], UInt64], x: Int64, size: UInt64, key: UInt64) -> Int64:
    assert (x.view(np.uint64) < size).all(), "numbers to permute must be in 0 .. n-1: outside, the walk may never end"
    if not (size > _TWO).all():
        return _walk_few(network, x, size, key)
    bits = np.maximum(np.searchsorted(_POWERS_OF_TWO, size), _MIN_BITS).astype(np.uint64)
    return _walk_until(network, x.astype(np.uint64), size, bits, key).astype(np.int64)


def _walk_few(network: Callable[[UInt64, UInt64, UInt64], UInt64], x: Int64, size: UInt64, key: UInt64) -> Int64:
    """Do as `_walk` where sizes may be one or two, of which a walk among 2**4 takes 16 or 8 steps on average.

    One number has only one image. Of two, the image of the first says that of the second.
    """
    found = np.zeros(len(x), np.int64)
    size, key = (np.broadcast_to(array, x.shape) for array in (size, key))
    if len(many := np.flatnonzero(size > _TWO)):
        found[many] = _walk(network, x[many], size[many], key[many])
    if len(two := np.flatnonzero(size == _TWO)):
        keys, which = np.unique(key[two], return_inverse=True)
        bits = np.full(1, _MIN_BITS, np.uint64)
        first = _walk_until(network, np.zeros(len(keys), np.uint64), np.full(1, _TWO), bits, keys)
        found[two] = x[two] ^ first[which].astype(np.int64)
    return found


def _walk_until(
    network: Callable[[UInt64, UInt64, UInt64], UInt64], x: UInt64, size: UInt64, bits: UInt64, key: UInt64
) -> UInt64:
    """Walk from each x [P] to the first number below its size. The others are arrays [P], or [1] for all."""
    y = network(x, bits, key)
    again = np.flatnonzero(y >= size)
    while again.size:
        inner = [one[again] if len(one) > 1 else one for one in (bits, key)]
        y[again] = network(y[again], *inner)
        again = again[y[again] >= (size[again] if len(size) > 1 else size)]
    return y


def permute_one(x: int, n: int, key: int) -> int:
    """Return what `permute` returns for one number. Plain integers take a tenth of the time of an array of one."""
    bits = max((n - 1).bit_length(), _MIN_BITS)
    low_bits = bits >> 1
    low_mask, high_mask = (1 << low_bits) - 1, (1 << bits - low_bits) - 1
    assert 0 <= x < n, "numbers to permute must be in 0 .. n-1: outside, the walk may never end"
    while True:
        low, high, scramble = x & low_mask, x >> low_bits, key
        for _ in range(_ROUNDS):
            scramble = scramble + _GOLDEN_INT & _ALL_BITS
            high = high + _mix_one(low + scramble & _ALL_BITS) & high_mask
            scramble = scramble + _GOLDEN_INT & _ALL_BITS
            low = low + _mix_one(high + scramble & _ALL_BITS) & low_mask
        x = high << low_bits | low
        if x < n:
            return x


def invert(y: Int64, n: int | Int64, key: UInt64) -> Int64:
    """Return the number that `permute` maps to each y [P]: the rounds backwards, and the walk back."""
    return _walk(_unfeistel, y, np.atleast_1d(np.asarray(n, dtype=np.uint64)), key)


def _feistel(x: UInt64, bits: UInt64, key: UInt64) -> UInt64:
    low_bits = bits >> np.uint64(1)
    low_mask, high_mask = _POWERS_OF_TWO[low_bits] - _ONE, _POWERS_OF_TWO[bits - low_bits] - _ONE
    low, high = x & low_mask, x >> low_bits
    for _ in range(_ROUNDS):
        key = key + _GOLDEN  # another scramble in each round
        high += _mix(low + key)
        high &= high_mask
        key = key + _GOLDEN
        low += _mix(high + key)
        low &= low_mask
    joined: UInt64 = high << low_bits | low
    return joined


def _unfeistel(y: UInt64, bits: UInt64, key: UInt64) -> UInt64:
    low_bits = bits >> np.uint64(1)
    low_mask, high_mask = _POWERS_OF_TWO[low_bits] - _ONE, _POWERS_OF_TWO[bits - low_bits] - _ONE
    low, high = y & low_mask, y >> low_bits
    for _ in range(2 * _ROUNDS):
        key = key + _GOLDEN  # the last round's
    for _ in range(_ROUNDS):
        low -= _mix(high + key)
        low &= low_mask
        key = key - _GOLDEN
        high -= _mix(low + key)
        high &= high_mask
        key = key - _GOLDEN
    joined: UInt64 = high << low_bits | low
    return joined
