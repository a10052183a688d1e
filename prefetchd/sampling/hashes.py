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


def hash_keys(keys: Iterable[bytes]) -> Iterator[NDArray[np.uint64]]:
    """Yield the hashes of the keys, in order, some thousands at a time."""
    left = iter(keys)
    while chunk := list(islice(left, _CHUNK_KEYS)):
        ends = np.cumsum(np.fromiter(map(len, chunk), np.int64, len(chunk)))
        starts = np.concatenate(([0], ends[:-1]))
        yield hash_spans(b"".join(chunk), starts, ends)


def hash_spans(block: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the hash of each key `block[start:end]`, (keys,) uint64, the same wherever the key lies in a block."""
    codes = np.frombuffer(block, np.uint8).astype(np.uint64) + np.uint64(1)  # a leading zero byte counts too
    length = 1 << max(12, len(block).bit_length())  # few different ones, so that the powers are made seldom
    sums = np.zeros(len(block) + 1, np.uint64)
    np.cumsum(codes * _powers(_BASE, length)[: len(block)], out=sums[1:])
    return mix_array((sums[ends] - sums[starts]) * _powers(_INVERSE, length)[starts])


@lru_cache(maxsize=4)
def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """Return base**0, base**1, ... modulo 2**64, (count,)."""
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    powers: NDArray[np.uint64] = np.multiply.accumulate(factors)
    powers.flags.writeable = False
    return powers
