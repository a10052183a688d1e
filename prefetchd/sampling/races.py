"""Weighted draws without replacement, by position: exponential races. Pure.

Each place of the order gets an exponential random number in each epoch, divided by its weight: its arrival. The places
in the order of their arrivals are weighted draws without replacement (Efraimidis and Spirakis, "Weighted random
sampling with a reservoir", Information Processing Letters 97, 2006).

No table is made of an epoch. The arrivals are a function of (seed, epoch, place), so a first pass over them only counts
how many lie in each small range, and a second one collects and sorts those of one group of ranges, some 131,072
positions that follow one another. Both passes go through blocks that fit the processor's caches, and a process keeps
the last two groups. The logarithm is written out here: that of a mathematical library is not the same on every machine.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.random import Philox

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.sampling.places import Places

GROUP_POSITIONS = 1 << 17
_BLOCK = 1 << 15
_NO_SAMPLE = (1 << 64) - 1  # as in `places`
_RACE = 1
_RANGE_BITS = 44  # arrivals whose upper 20 bits are the same are in one range: 256 ranges from x to 2x
_FIRST_RANGE = int(np.array(2.0**-54).view(np.int64)) >> _RANGE_BITS  # before the earliest arrival
_HALF_ROOT = 0x3FE6A09E667F3BCD  # the bits of 2**-0.5
_LN2 = 0.6931471805599453


class _Groups(NamedTuple):
    """The groups of an epoch: the first position of each, and its ranges from `lows` up to the next one's."""

    starts: list[int]
    lows: list[int]


def raced(places: Places, seed: int, epoch: int, start: int, n_rows: int) -> NDArray[np.int64]:
    """Return the places drawn at `n_rows` positions of an epoch from `start` on, (n_rows,) int64."""
    groups = _groups(places, seed, epoch)
    number = bisect_right(groups.starts, start) - 1
    parts = [np.empty(0, np.int64)]
    while n_rows > 0:
        group = _group(places, seed, epoch, number)
        first = start - groups.starts[number]
        parts.append(group[first : first + n_rows].astype(np.int64))
        start, n_rows, number = start + len(parts[-1]), n_rows - len(parts[-1]), number + 1
    return np.concatenate(parts)


@lru_cache(maxsize=4)
def _groups(places: Places, seed: int, epoch: int) -> _Groups:
    assert places.weights is not None
    if len(places.weights) <= GROUP_POSITIONS:
        return _Groups([0, len(places.weights)], [_FIRST_RANGE, 1 << 20])
    counts = np.zeros(0, np.int64)
    for _, arrivals in _arrivals(places.weights, seed, epoch):
        found = np.bincount((arrivals.view(np.int64) >> _RANGE_BITS) - _FIRST_RANGE, minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    before = np.cumsum(counts) - counts
    group = before // GROUP_POSITIONS
    firsts = np.flatnonzero(np.diff(group, prepend=-1))
    starts, lows = before[firsts].tolist(), (firsts + _FIRST_RANGE).tolist()
    return _Groups([*starts, len(places.weights)], [*lows, 1 << 20])


@lru_cache(maxsize=2)
def _group(places: Places, seed: int, epoch: int, number: int) -> NDArray[np.integer]:
    """Return the places of a group, in the order of their arrivals: (positions,) whole numbers, read-only."""
    assert places.weights is not None
    groups = _groups(places, seed, epoch)
    low, high = groups.lows[number], groups.lows[number + 1]
    found, times = [], []
    for first, arrivals in _arrivals(places.weights, seed, epoch):
        ranges = arrivals.view(np.int64) >> _RANGE_BITS
        inside = np.flatnonzero((ranges >= low) & (ranges < high))
        found.append(inside + first)
        times.append(arrivals[inside])
    numbers = np.concatenate(found)[np.argsort(np.concatenate(times), kind="stable")]
    if len(places.weights) <= 1 << 32:
        numbers = numbers.astype(np.uint32)
    numbers.flags.writeable = False
    return numbers


def _arrivals(weights: NDArray[np.float64], seed: int, epoch: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield the first place of each block, and the arrivals of its places, which the next block overwrites."""
    random = Philox(key=np.array([seed, _NO_SAMPLE], np.uint64), counter=np.array([0, _RACE, epoch, 0], np.uint64))
    for first in range(0, len(weights), _BLOCK):
        own = weights[first : first + _BLOCK]
        words = random.random_raw(_BLOCK)[: len(own)]
        yield first, exponentials(words) / own


def exponentials(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return random numbers of the exponential distribution of mean 1, one for each random word: the same everywhere.

    Of a uniform number u it is -ln(u), by sums, products and quotients alone, which are exact in IEEE 754; the series
    is good to eleven digits.
    """
    uniform = (words >> np.uint64(12)) + 0.5
    uniform *= 2.0**-52
    bits = uniform.view(np.int64)
    octaves = (bits - _HALF_ROOT) >> 52
    mantissa = (bits - (octaves << 52)).view(np.float64)  # from 2**-0.5 to 2**0.5
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    square = ratio * ratio
    series = square * (2 / 11)
    for divisor in (9, 7, 5, 3):
        series += 2 / divisor
        series *= square
    series += 2.0
    series *= ratio
    series += octaves * _LN2
    return np.negative(series, out=series)
