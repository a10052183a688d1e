"""A hash of each of many keys, such as paths, by numpy: what splits a data set. Pure.

The key's bytes are the digits of a number to an odd base, modulo 2**64: so the hashes of all keys in a block come from
one running sum. SplitMix64's finaliser (see `sampling.permutation`) then spreads it over all bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from prefetchd.sampling.permutation import mix_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BASE = 0x9E3779B97F4A7C15  # 5 modulo 8: its powers go round all numbers that are 1 modulo 4
_INVERSE = pow(_BASE, -1, 1 << 64)
_CHUNK_KEYS = 1 << 13
_PIECE_BYTES = 1 << 16
_LENGTH_STEP = 1 << 16


def hash_keys(keys: Iterable[bytes]) -> Iterator[NDArray[np.uint64]]:
    """Yield the hashes of the keys, in order, some thousands at a time."""
    left = iter(keys)
    while chunk := list(islice(left, _CHUNK_KEYS)):
        ends = np.cumsum(np.fromiter(map(len, chunk), np.int64, len(chunk)))
        starts = np.concatenate(([0], ends[:-1]))
        yield hash_spans(b"".join(chunk), starts, ends)


def hash_spans(block: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the hash of each key `block[start:end]`, (keys,) uint64, the same wherever the key lies in a block.

    The keys follow one another. They are hashed some at a time, so that all of it stays in the processor's cache.
    """
    found = np.empty(len(starts), np.uint64)
    first = 0
    while first < len(starts):
        at = int(starts[first])
        stop = max(first + 1, int(np.searchsorted(ends, at + _PIECE_BYTES, "right")))
        part = slice(first, stop)
        found[part] = _hash_piece(block[at : int(ends[stop - 1])], starts[part] - at, ends[part] - at)
        first = stop
    return found


def _hash_piece(block: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.uint64]:
    codes = np.frombuffer(block, np.uint8)
    length = len(block) // _LENGTH_STEP * _LENGTH_STEP + _LENGTH_STEP  # few different ones: powers are made seldom
    sums = np.zeros(len(block) + 1, np.uint64)
    np.multiply(codes, _powers(_BASE, length)[: len(block)], out=sums[1:])
    np.cumsum(sums[1:], out=sums[1:])
    # One more for each byte, as a leading zero byte counts too.
    ones = _power_sums(length)
    digits = sums[ends] - sums[starts] + ones[ends] - ones[starts]
    return mix_array(digits * _powers(_INVERSE, length)[starts])


@lru_cache(maxsize=4)
def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """Return base**0, base**1, ... modulo 2**64, (count,)."""
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    powers: NDArray[np.uint64] = np.multiply.accumulate(factors)
    powers.flags.writeable = False
    return powers


@lru_cache(maxsize=2)
def _power_sums(count: int) -> NDArray[np.uint64]:
    """Return the sum of the first 0, 1, ... powers of the base, modulo 2**64, (count,)."""
    sums = np.zeros(count, np.uint64)
    np.cumsum(_powers(_BASE, count)[:-1], out=sums[1:])
    sums.flags.writeable = False
    return sums
