"""`Buckets`: samples by shape, so that every batch holds samples of one bucket. Pure.

    batch number -> place of the batch (permuted) -> bucket, by cumulative counts -> its samples (permuted)

The batches of bucket 0 have the first places, then those of bucket 1, and so on. With `shuffle` each epoch puts the
batches in a new order, and the samples within each bucket. Without it batches follow one another by their first sample.
The last batch of each bucket is shorter, or left out with `drop_last`.

Any batch of any epoch is known at once, to every process alike. There is no table but that of the samples by bucket,
and without `shuffle` that of the batches.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from prefetchd.sampling.permutation import Permutation, mix
from prefetchd.sampling.shuffled import shuffled_places

if TYPE_CHECKING:
    from numpy.typing import NDArray

# One has up to 32 KiB; those of many buckets take turns.
_permutation = lru_cache(maxsize=64)(Permutation)


class Buckets:
    """Which samples are in which batch, where each batch has samples of one bucket.

    Args:
        ids: (samples,) whole numbers: the samples that are served, those of each bucket after those of the one before.
        counts: how many of them each bucket has.
        batch_size: samples in a full batch.
        drop_last: whether shorter batches are left out.
        seed: decides the shuffled orders; `None` without `shuffle`.
        in_order: (batches,) whole numbers: without `shuffle`, the place of each batch (see `places_in_order`).

    Attributes:
        counts: as given.
        n_batches: batches in an epoch.
    """

    def __init__(
        self,
        ids: NDArray[np.integer],
        counts: Sequence[int],
        batch_size: int,
        *,
        drop_last: bool,
        seed: int | None,
        in_order: NDArray[np.integer] | None = None,
    ) -> None:
        self._ids = ids
        self.counts = tuple(counts)
        self._batch_size = batch_size
        self._seed = seed
        self._in_order = in_order
        self._firsts = [0, *accumulate(counts)]
        self.batch_counts = batch_counts(counts, batch_size, drop_last=drop_last)
        self._first_places = [0, *accumulate(self.batch_counts)]
        self.n_batches = self._first_places[-1]

    def place(self, epoch: int, batch: int) -> int:
        """Return the place of batch number `batch` of `epoch`."""
        if self._seed is not None:
            return int(shuffled_places(self.n_batches, 0, self._seed, epoch, batch, 1)[0])
        assert self._in_order is not None
        return int(self._in_order[batch])

    def number(self, place: int) -> int:
        """Return the bucket of the batch at `place`."""
        return bisect_right(self._first_places, place) - 1

    def rows(self, place: int) -> int:
        """Return how many samples the batch at `place` has."""
        number = self.number(place)
        start = (place - self._first_places[number]) * self._batch_size
        return min(self._batch_size, self.counts[number] - start)

    def sample_ids(self, epoch: int, place: int, first_row: int, n_rows: int) -> NDArray[np.int64]:
        """Return the samples, (n_rows,) int64, in rows `first_row` onwards of the batch at `place`."""
        number = self.number(place)
        start = (place - self._first_places[number]) * self._batch_size + first_row
        places = np.arange(start, start + n_rows, dtype=np.int64)
        if self._seed is not None and n_rows:
            # Buckets of one size would else have the same order.
            places = _permutation(self.counts[number], mix(self._seed + 1 + number), epoch)(places)
        return self._ids[self._firsts[number] + places].astype(np.int64)

    def following(self, sample_id: int) -> Iterator[int]:
        """Yield the other samples of the same bucket, from the first place of `sample_id` on, each once."""
        at = int((self._ids == sample_id).argmax())
        number = bisect_right(self._firsts, at) - 1
        first, n = self._firsts[number], self.counts[number]
        return (int(self._ids[first + (at - first + step) % n]) for step in range(1, n))


def batch_counts(counts: Sequence[int], batch_size: int, *, drop_last: bool) -> list[int]:
    """Return how many batches each bucket has in an epoch, where it has `counts` samples."""
    return [each // batch_size if drop_last else -(-each // batch_size) for each in counts]


def sorted_by_bucket(numbers: NDArray[np.integer], n_buckets: int) -> tuple[NDArray[np.int64], list[int]]:
    """Return the positions of `numbers`, by their bucket and within it in order, and how many each bucket has."""
    positions = np.argsort(numbers, kind="stable")
    return positions, np.bincount(numbers, minlength=n_buckets).tolist()


def places_in_order(
    positions: NDArray[np.int64], counts: Sequence[int], batch_size: int, *, drop_last: bool
) -> NDArray[np.int64]:
    """Return the place of each batch, (batches,), where batches follow one another by their first sample.

    `positions` and `counts` are those of `sorted_by_bucket`.
    """
    firsts = []
    start = 0
    for n, n_batches in zip(counts, batch_counts(counts, batch_size, drop_last=drop_last), strict=True):
        firsts.append(positions[start : start + n_batches * batch_size : batch_size])
        start += n
    return np.argsort(np.concatenate(firsts), kind="stable")
