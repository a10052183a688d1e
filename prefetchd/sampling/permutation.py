"""A keyed permutation of 0..n-1, computed per position: the base of every shuffled order. Pure.

It is a Feistel network on pairs of numbers, the first below a, the second below b, with a * b barely over n, and cycle
walking for the few positions that fall outside (the "generalized Feistel" of Black and Rogaway, "Ciphers with Arbitrary
Finite Domains", CT-RSA 2002). It takes O(1) memory and any position at once, for ten thousand samples as for a billion.

A few rounds on a small square are not a fair shuffle: on two by two they reach some orders more often than others, with
any round function. So up to `SORTED_UP_TO` samples are sorted by a keyed hash of their numbers, once an epoch.

The hash, and the model of the round function, is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SORTED_UP_TO = 1 << 12

_ROUNDS = 6  # even, so that each half ends on its own side
_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST_FACTOR = 0xBF58476D1CE4E5B9
_SECOND_FACTOR = 0x94D049BB133111EB

# Made once: making a scalar costs as much as computing with it.
_FIRST, _SECOND = np.uint64(_FIRST_FACTOR), np.uint64(_SECOND_FACTOR)
_BY_20, _BY_27, _BY_30, _BY_31, _BY_32 = map(np.uint64, (20, 27, 30, 31, 32))


def mix(value: int) -> int:
    """SplitMix64's next output: its finaliser after a step, on one Python integer."""
    value = (value + _GOLDEN) & _MASK64
    value = ((value ^ (value >> 30)) * _FIRST_FACTOR) & _MASK64
    value = ((value ^ (value >> 27)) * _SECOND_FACTOR) & _MASK64
    return value ^ (value >> 31)


def mix_array(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, elementwise."""
    values = (values ^ (values >> _BY_30)) * _FIRST
    values = (values ^ (values >> _BY_27)) * _SECOND
    return values ^ (values >> _BY_31)


def _reduce(values: NDArray[np.uint64], modulus: np.uint64) -> None:
    """Take `values` modulo `modulus`, in place, in two thirds of the time of `%=`: numpy only divides by one fast."""
    whole = values // modulus
    whole *= modulus
    values -= whole


class Permutation:
    """A bijection of 0..n-1 keyed by (seed, epoch, n), computed per position."""

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        if not 1 <= n <= 1 << 62:
            raise ValueError(f"n={n} is not from 1 to 2**62")
        self._n = n
        # The key includes n, since sizes that differ by little would else have nearly the same order.
        key = mix(mix(mix(seed & _MASK64) + epoch) + n)
        self._sorted: NDArray[np.int64] | None = None
        self._places: NDArray[np.int64] | None = None
        if n <= SORTED_UP_TO:
            # Distinct numbers have distinct hashes, so there are no ties.
            self._sorted = np.argsort(mix_array(np.arange(n, dtype=np.uint64) + np.uint64(key)))
            return
        width = isqrt(n - 1) + 1
        height = -(-n // width)
        self._width = np.uint64(width)
        self._rounds = [
            (np.uint64(mix(key + number)), np.uint64(width if number % 2 else height)) for number in range(_ROUNDS)
        ]

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sample ids, shape as `positions`, int64, at `positions` (each from 0 to n-1)."""
        if self._sorted is not None:
            return self._sorted[positions]
        values = self._network(positions.astype(np.uint64))
        while int(values.max(initial=0)) >= self._n:
            outside = values >= self._n
            values[outside] = self._network(values[outside])
        return values.view(np.int64)

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left = values // self._width
        right = values - left * self._width
        for key, modulus in self._rounds:
            mixed = right + key
            mixed *= _FIRST
            mixed ^= mixed >> _BY_32
            mixed *= _SECOND
            mixed >>= _BY_20  # the high bits are the good ones; 44 are plenty more than a modulus has
            mixed += left
            _reduce(mixed, modulus)
            left, right = right, mixed
        left *= self._width
        left += right
        return left

    def inverse(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions, shape as `ids`, int64, at which these sample ids (each from 0 to n-1) stand."""
        if self._sorted is not None:
            if self._places is None:
                self._places = np.argsort(self._sorted)
            return self._places[ids]
        values = self._network_back(ids.astype(np.uint64))
        while int(values.max(initial=0)) >= self._n:
            outside = values >= self._n
            values[outside] = self._network_back(values[outside])
        return values.view(np.int64)

    def _network_back(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left = values // self._width
        right = values - left * self._width
        for key, modulus in reversed(self._rounds):
            mixed = left + key
            mixed *= _FIRST
            mixed ^= mixed >> _BY_32
            mixed *= _SECOND
            mixed >>= _BY_20
            _reduce(mixed, modulus)
            before = right + modulus - mixed
            _reduce(before, modulus)
            left, right = before, left
        left *= self._width
        left += right
        return left
