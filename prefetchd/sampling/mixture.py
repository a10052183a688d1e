"""`Mixture`: several sources in one order, each with its share, its own permutation and its own pass number. Pure.

    position of the epoch -> source, and its samples before in this epoch     (`Period`, by a table that repeats)
                          -> its samples before in all epochs = pass x size + place
                          -> place, permuted by (seed, source, pass)          -> sample

The counts of a source go on over the epochs. So a large source is seen whole over several epochs, and a small one
several times in an epoch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Literal

import numpy as np

from prefetchd.sampling.blocks import places_by_blocks
from prefetchd.sampling.permutation import Permutation, mix

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIXED_POSITIONS = 1 << 12  # mixed at once
_MIXED = 3  # what a key is for; see `blocks`


@dataclass(frozen=True, slots=True, eq=False)
class Period:
    """The sources at the positions of one period, which is repeated over an epoch.

    Attributes:
        weights: how many positions of a period each source has.
        sources: (positions,) uint8: the source at each.
        grouped: (positions,) uint32: the positions of the first source, then those of the second, and so on.
    """

    weights: tuple[int, ...]
    sources: NDArray[np.uint8]
    grouped: NDArray[np.uint32]
    _firsts: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_firsts", tuple(sum(self.weights[:number]) for number in range(len(self.weights))))

    def before(self, source: int, position: int) -> int:
        """Return how many positions before `position` are the source's."""
        periods, place = divmod(position, len(self.sources))
        own = self._own(source)
        return periods * len(own) + int(np.searchsorted(own, place))

    def position(self, source: int, item: int) -> int:
        """Return the position of a source's item, from 0; its weight is above 0."""
        own = self._own(source)
        periods, place = divmod(item, len(own))
        return periods * len(self.sources) + int(own[place])

    def _own(self, source: int) -> NDArray[np.uint32]:
        first = self._firsts[source]
        return self.grouped[first : first + self.weights[source]]

    def epoch_samples(self, sizes: Sequence[int], stop: Literal["first", "last"]) -> int:
        """Return the samples of an epoch that ends as its first, or its last, source is exhausted."""
        mixed = [(source, size) for source, size in enumerate(sizes) if self.weights[source]]
        if stop == "first":
            return min(self.position(source, size) for source, size in mixed)
        return max(self.position(source, size - 1) + 1 for source, size in mixed)


def make_period(weights: Sequence[int], sources: NDArray[np.uint8]) -> Period:
    """Return the period of an apportionment."""
    return Period(tuple(weights), sources, np.argsort(sources, kind="stable").astype(np.uint32))


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """An order over several sources, whose samples have numbers one after another. Tables may be shared memory.

    Attributes:
        firsts: the number of each source's first sample.
        sizes: the samples of each source that are served.
        periods: of the first epochs, one each; the last holds on.
        n_samples: of an epoch.
        seed: decides the permutations.
        shuffle: whether samples of a source come in a new order each pass.
        shuffle_block: how many places stay near one another then; 0 for a full shuffle.
        ids: (samples served,) whole numbers, rising: the samples that are served; `None` for all.
    """

    firsts: tuple[int, ...]
    sizes: tuple[int, ...]
    periods: tuple[Period, ...]
    n_samples: int
    seed: int
    shuffle: bool
    shuffle_block: int = 0
    ids: NDArray[np.integer] | None = None

    def period(self, epoch: int) -> Period:
        """Return the period of an epoch."""
        return self.periods[min(epoch, len(self.periods) - 1)]

    def counts(self, epoch: int) -> list[int]:
        """Return how many samples of each source an epoch has."""
        return [self.period(epoch).before(source, self.n_samples) for source in range(len(self.sizes))]

    def served_before(self, epoch: int, source: int) -> int:
        """Return how many samples of a source all epochs before this one have."""
        n_own = min(epoch, len(self.periods) - 1)
        own = sum(period.before(source, self.n_samples) for period in self.periods[:n_own])
        return own + (epoch - n_own) * self.periods[-1].before(source, self.n_samples)

    def block(self, epoch: int, number: int) -> NDArray[np.int64]:
        """Return the samples at block `number` of the positions of an epoch: (up to `MIXED_POSITIONS`,) int64."""
        start = number * MIXED_POSITIONS
        positions = np.arange(start, min(self.n_samples, start + MIXED_POSITIONS), dtype=np.int64)
        period = self.period(epoch)
        sources = period.sources[positions % len(period.sources)]
        found = np.empty(len(positions), np.int64)
        for source in np.unique(sources).tolist():
            rows = np.flatnonzero(sources == source)
            before = self.served_before(epoch, source) + period.before(source, start)
            found[rows] = self._samples(source, before, len(rows))
        return found

    def _samples(self, source: int, before: int, n: int) -> NDArray[np.int64]:
        """Return the next `n` samples of a source of which `before` were served."""
        size = self.sizes[source]
        first_pass, place = divmod(before, size)
        passes, places = np.divmod(place + np.arange(n, dtype=np.int64), size)
        if self.shuffle and size > 1:
            for number in range(int(passes[-1]) + 1):
                low, high = np.searchsorted(passes, (number, number + 1)).tolist()
                places[low:high] = self._permuted(source, first_pass + number, places[low:high])
        if self.ids is None:
            return places + self.firsts[source]
        found: NDArray[np.int64] = self.ids[places + sum(self.sizes[:source])].astype(np.int64)
        return found

    def _permuted(self, source: int, number: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return what stands at some places, which rise, of pass `number` of a source."""
        size, seed = self.sizes[source], mix(mix(self.seed) + _MIXED) + source
        if self.shuffle_block:
            return places_by_blocks(places, size, self.shuffle_block, seed, number)
        return _permutation(size, seed, number)(places)

    def following(self, sample_id: int) -> Iterator[int]:
        """Yield the samples after `sample_id` in its source, over and over."""
        source = bisect_right(self.firsts, sample_id) - 1
        first, size = self.firsts[source], self.sizes[source]
        ids = self.ids
        if ids is None:
            return (first + (sample_id - first + step) % size for step in count(1))
        start = sum(self.sizes[:source])
        at = int(np.searchsorted(ids[start : start + size], sample_id))
        return (int(ids[start + (at + step) % size]) for step in count(1))


@lru_cache(maxsize=64)
def _permutation(n: int, seed: int, number: int) -> Permutation:
    return Permutation(n, seed, number)


@lru_cache(maxsize=8)
def mixed_block(mixture: Mixture, epoch: int, number: int) -> NDArray[np.int64]:
    """Return `Mixture.block`, read-only, and keep it: a batch needs a few dozen samples of it."""
    found = mixture.block(epoch, number)
    found.flags.writeable = False
    return found
