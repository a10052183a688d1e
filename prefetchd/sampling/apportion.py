"""Apportionment: which of several sources has each position, so that no prefix is more than one off its share. Pure.

One period has as many positions as the shares' common denominator, and is repeated. Item j of a source has a first and
a last position, between which the source is at most 1 - 1/(2n - 2) off, for n sources. Such an order always exists
(Tijdeman, "The chairman assignment problem", Discrete Mathematics 32, 1980); taking what is due earliest finds it
(Steiner and Yeomans, "Level schedules for mixed-model, just-in-time processes", Management Science 39, 1993).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_POSITIONS = 1 << 16  # of a period; other shares are taken to this precision


def whole_shares(shares: Sequence[Fraction | float]) -> tuple[tuple[int, ...], bool]:
    """Return whole numbers in the ratio of `shares`, and whether the ratio is exact.

    Where their sum would be above `MOST_POSITIONS` it is that, by largest remainders. A share above 0 stays above it.
    """
    exact = [Fraction(share) for share in shares]
    total = sum(exact, Fraction())
    ratios = [share / total for share in exact]
    common = math.lcm(*(ratio.denominator for ratio in ratios))
    if common <= MOST_POSITIONS:
        return tuple(int(ratio * common) for ratio in ratios), True
    scaled = [ratio * MOST_POSITIONS for ratio in ratios]
    whole = [max(math.floor(each), 1) if each else 0 for each in scaled]
    order = sorted(range(len(whole)), key=lambda number: (whole[number] - scaled[number], number))
    missing = MOST_POSITIONS - sum(whole)
    for number in order[: max(0, missing)]:
        whole[number] += 1
    if missing < 0:  # shares below one position had to be one
        whole[max(range(len(whole)), key=whole.__getitem__)] += missing
    return tuple(whole), False


def apportion(weights: Sequence[int]) -> NDArray[np.uint8]:
    """Return the source at each position of one period, (sum of `weights`,) uint8.

    Args:
        weights: whole shares, at most 256 of them, 0 or more each and one above it.
    """
    total = sum(weights)
    n_sources = sum(weight > 0 for weight in weights)
    if n_sources == 1:
        return np.full(total, next(number for number, weight in enumerate(weights) if weight), np.uint8)
    parts = 2 * n_sources - 2

    def first(source: int, item: int) -> int:
        return -(-(item * parts + 1) * total // (weights[source] * parts)) - 1

    def last(source: int, item: int) -> int:
        return (item * parts + parts - 1) * total // (weights[source] * parts)

    waiting = [(first(source, 0), source, 0) for source, weight in enumerate(weights) if weight]
    heapq.heapify(waiting)
    ready: list[tuple[int, int, int]] = []
    found = np.empty(total, np.uint8)
    for position in range(total):
        while waiting and waiting[0][0] <= position:
            _, source, item = heapq.heappop(waiting)
            heapq.heappush(ready, (last(source, item), source, item))
        _, source, item = heapq.heappop(ready)
        found[position] = source
        if item + 1 < weights[source]:
            heapq.heappush(waiting, (first(source, item + 1), source, item + 1))
    return found
