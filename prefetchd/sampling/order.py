"""The order of samples: a pure function from (seed, epoch, position) to sample id.

Shuffling is a keyed permutation of the positions (`permutation`), or one by blocks (`blocks`). What stands at a place
of the order is the sample of that number, or a chosen or drawn one (`places`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from prefetchd.sampling.blocks import positions_by_blocks
from prefetchd.sampling.permutation import Permutation
from prefetchd.sampling.places import DRAWN_POSITIONS, Places, drawn_block
from prefetchd.sampling.shuffled import of_blocks, shuffled_places

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.sampling.buckets import Buckets
    from prefetchd.sampling.mixture import Mixture


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> Permutation:
    return Permutation(n, seed, epoch)


@dataclass(frozen=True, slots=True)
class Order:
    """Which samples are in which batch of which epoch.

    Attributes:
        n_samples: samples in an epoch.
        batch_size: samples in a full batch.
        drop_last: whether a shorter last batch is left out.
        shuffle: whether each epoch has an order of its own.
        seed: decides the shuffled orders.
        places: the samples that are served; `None` for the first `n_samples` of the data set.
        shuffle_block: how many places stay near one another in a shuffled order; 0 for a full shuffle.
        mixture: the sources that are mixed, and their shares, which decide all but the batches; `None` for one source.
        buckets: the samples by shape, which decide batches and order; `None` where all have one shape.
    """

    n_samples: int
    batch_size: int
    drop_last: bool
    shuffle: bool
    seed: int
    places: Places | None = None
    shuffle_block: int = 0
    mixture: Mixture | None = None
    buckets: Buckets | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Batches in an epoch over the whole data set; 0 only with `drop_last` and too few samples."""
        if self.buckets is not None:
            return self.buckets.n_batches
        if self.drop_last:
            return self.n_samples // self.batch_size
        return -(-self.n_samples // self.batch_size)

    def rows(self, epoch: int, batch: int) -> int:
        """Return the samples in batch number `batch` of `epoch`, before bad ones are skipped."""
        if self.buckets is not None:
            return self.buckets.rows(self.buckets.place(epoch, batch))
        return min(self.batch_size, self.n_samples - batch * self.batch_size)

    def bucket(self, epoch: int, batch: int) -> int:
        """Return the bucket, which is the number of the layout, of a batch; 0 without buckets."""
        return 0 if self.buckets is None else self.buckets.number(self.buckets.place(epoch, batch))

    def sample_ids(self, epoch: int, batch: int, first_row: int, n_rows: int) -> NDArray[np.int64]:
        """Return the ids, shape (n_rows,), int64, of rows `first_row` onwards of a batch."""
        if self.buckets is not None:
            return self.buckets.sample_ids(epoch, self.buckets.place(epoch, batch), first_row, n_rows)
        start = batch * self.batch_size + first_row
        places = self.places
        if self.mixture is not None:
            from prefetchd.sampling.mixture import MIXED_POSITIONS, mixed_block

            return of_blocks(partial(mixed_block, self.mixture, epoch), MIXED_POSITIONS, start, n_rows)
        if places is not None and places.until is not None:
            blocks = partial(drawn_block, places, self.seed, epoch)
            return places.sample_ids(of_blocks(blocks, DRAWN_POSITIONS, start, n_rows))
        if places is not None and places.weights is not None:
            from prefetchd.sampling.races import raced

            return places.sample_ids(raced(places, self.seed, epoch, start, n_rows))
        found = np.arange(start, start + n_rows, dtype=np.int64)
        if self.shuffle:
            found = shuffled_places(self.n_samples, self.shuffle_block, self.seed, epoch, start, n_rows)
        return found if places is None else places.sample_ids(found)

    def positions(self, epoch: int, sample_ids: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Return the positions of an epoch, shape as `sample_ids`, int64, at which these samples stand.

        `None` where that is not known: with a mixture, weights, buckets, a subset or an order of one's own.
        """
        if self.mixture is not None or self.places is not None or self.buckets is not None:
            return None
        if not self.shuffle:
            return sample_ids
        if self.shuffle_block:
            return positions_by_blocks(sample_ids, self.n_samples, self.shuffle_block, self.seed, epoch)
        return _permutation(self.n_samples, self.seed, epoch).inverse(sample_ids)

    def following(self, sample_id: int) -> Iterator[int]:
        """Yield the samples that can stand in for `sample_id`, the nearest first, over and over; with buckets once."""
        if self.buckets is not None:
            return self.buckets.following(sample_id)
        if self.mixture is not None:
            return self.mixture.following(sample_id)
        if self.places is not None:
            return self.places.following(sample_id)
        return ((sample_id + step) % self.n_samples for step in count(1))
