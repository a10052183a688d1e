"""`Places`: the samples that an order has, each at a place from 0 on, and their weights where they are drawn. Pure.

Where all samples of the data set are served as they are, a place is the sample's number, and there is no table.

With weights each position of an epoch draws a place of its own, with replacement: a random number picks a place in the
cumulative weights. The number is a word of Philox-4x64-10 (see `sampling.randomness`) whose counter is (position,
purpose, epoch). So any position is known at once, to every process alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DRAWN_POSITIONS = 1 << 12  # drawn at once: a few dozen cost as much as some thousands
RACE_BYTES = 12 << 20  # that `races` take in a process: blocks, two groups, and a sort
_FEW = 1 << 15  # a table that fits the processor's caches
_NO_SAMPLE = (1 << 64) - 1  # in the key of Philox, where the randomness of samples has their numbers
_DRAW = 0
_WORDS = 4  # of a value of Philox's counter
_TO_UNIT = 2.0**-53


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """A table of samples by place. Its arrays may lie in memory that processes share.

    Attributes:
        ids: (places,) whole numbers: the sample at each place; `None` where it is the place itself.
        until: (places,) float64: the sum of the weights up to each place, that one too, for draws with replacement.
        guide: (places,) uint32: about how many of `until` lie below each of as many steps to their last; see `sought`.
        weights: (places,) float64, from 1e-300 to 1: for draws without replacement (`races`).
    """

    ids: NDArray[np.integer] | None = None
    until: NDArray[np.float64] | None = None
    guide: NDArray[np.uint32] | None = None
    weights: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return next((len(table) for table in (self.ids, self.until, self.weights) if table is not None), 0)

    def sample_ids(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the samples at these places, shape as `places`, int64."""
        return places if self.ids is None else self.ids[places].astype(np.int64)

    def following(self, sample_id: int) -> Iterator[int]:
        """Yield the samples after the first place of `sample_id`, over and over."""
        n = len(self)
        if self.ids is None:
            return ((sample_id + step) % n for step in count(1))
        ids, first = self.ids, int((self.ids == sample_id).argmax())
        return (int(ids[(first + step) % n]) for step in count(1))


@lru_cache(maxsize=8)
def drawn_block(places: Places, seed: int, epoch: int, number: int) -> NDArray[np.int64]:
    """Return the places drawn by block `number` of the positions of an epoch, read-only: (`DRAWN_POSITIONS`,) int64."""
    from numpy.random import Philox  # takes milliseconds to load, and few orders draw

    assert places.until is not None
    counter = np.array([number * (DRAWN_POSITIONS // _WORDS), _DRAW, epoch, 0], np.uint64)
    words = Philox(key=np.array([seed, _NO_SAMPLE], np.uint64), counter=counter).random_raw(DRAWN_POSITIONS)
    points = (words >> np.uint64(11)) * _TO_UNIT * places.until[-1]
    found = sought(places.until, places.guide, points)
    np.minimum(found, len(places) - 1, out=found)  # a product may be rounded up to the sum of all weights
    found.flags.writeable = False
    return found


def make_guide(until: NDArray[np.float64]) -> NDArray[np.uint32] | None:
    """Return for each of as many equal steps as there are sums how many sums lie in the steps before it.

    It is for `sought`; `None` for few sums, which need none, and for more than fit it.
    """
    n = len(until)
    if n <= _FEW or n >= 1 << 32:
        return None
    steps = np.minimum((until * (n / until[-1])).astype(np.int64), n - 1)
    counts = np.bincount(steps, minlength=n)
    return (np.cumsum(counts) - counts).astype(np.uint32)


def sought(
    until: NDArray[np.float64], guide: NDArray[np.uint32] | None, points: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return how many of `until`, which rise, are at most each point: as `searchsorted` with `side="right"`.

    The guide says between which few of them. So there are few steps, each over all points at once, and their waits for
    memory overlap; those of a search in a table of millions follow one another.
    """
    if guide is None:
        found: NDArray[np.int64] = np.searchsorted(until, points, "right")
        return found
    n = len(until)
    steps = np.minimum((points * (n / until[-1])).astype(np.int64), n - 1)
    # Sums and points are rounded alike, so none is in the step beside.
    low: NDArray[np.int64] = guide[steps].astype(np.int64)
    steps += 1
    high = guide[np.minimum(steps, n - 1)].astype(np.int64)
    high[steps == n] = n
    left = np.flatnonzero(low < high)
    while len(left):
        first, end = low[left], high[left]
        middle = (first + end) >> 1
        is_below = until[middle] <= points[left]
        first, end = np.where(is_below, middle + 1, first), np.where(is_below, end, middle)
        low[left], high[left] = first, end
        left = left[first < end]
    return low
