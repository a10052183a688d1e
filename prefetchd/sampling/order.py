"""The order of samples: a pure function from (seed, epoch, position) to sample id.

Shuffling is a keyed permutation of the positions (`permutation`), or one by blocks (`blocks`). What stands at a place
of the order is the sample of that number, or a chosen or drawn one (`places`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from prefetchd.sampling.blocks import places_by_blocks
from prefetchd.sampling.permutation import Permutation
from prefetchd.sampling.places import DRAWN_POSITIONS, Places, drawn_block

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.sampling.mixture import Mixture

_BLOCK_POSITIONS = 1 << 13


@lru_cache(maxsize=8)
def _shuffled_block(n: int, shuffle_block: int, seed: int, epoch: int, number: int) -> NDArray[np.int64]:
    """Return the places at some positions of an epoch, read-only: (up to `_BLOCK_POSITIONS`,) int64.

    A batch needs a few dozen ids, and numpy takes as long for those as for some thousands.
    """
    first = number * _BLOCK_POSITIONS
    positions = np.arange(first, min(n, first + _BLOCK_POSITIONS), dtype=np.int64)
    if shuffle_block:
        ids = places_by_blocks(positions, n, shuffle_block, seed, epoch)
    else:
        ids = Permutation(n, seed, epoch)(positions)
    ids.flags.writeable = False
    return ids


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
    """

    n_samples: int
    batch_size: int
    drop_last: bool
    shuffle: bool
    seed: int
    places: Places | None = None
    shuffle_block: int = 0
    mixture: Mixture | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Batches in an epoch over the whole data set; 0 only with `drop_last` and too few samples."""
        if self.drop_last:
            return self.n_samples // self.batch_size
        return -(-self.n_samples // self.batch_size)

    def rows(self, batch: int) -> int:
        """Return the samples in batch number `batch`, before bad ones are skipped."""
        return min(self.batch_size, self.n_samples - batch * self.batch_size)

    def sample_ids(self, epoch: int, batch: int, first_row: int, n_rows: int) -> NDArray[np.int64]:
        """Return the ids, shape (n_rows,), int64, of rows `first_row` onwards of a batch."""
        start = batch * self.batch_size + first_row
        places = self.places
        if self.mixture is not None:
            from prefetchd.sampling.mixture import MIXED_POSITIONS, mixed_block

            return _part(partial(mixed_block, self.mixture, epoch), MIXED_POSITIONS, start, n_rows)
        if places is not None and places.until is not None:
            blocks = partial(drawn_block, places, self.seed, epoch)
            return places.sample_ids(_part(blocks, DRAWN_POSITIONS, start, n_rows))
        found = np.arange(start, start + n_rows, dtype=np.int64)
        if self.shuffle:
            blocks = partial(_shuffled_block, self.n_samples, self.shuffle_block, self.seed, epoch)
            found = _part(blocks, _BLOCK_POSITIONS, start, n_rows)
        return found if places is None else places.sample_ids(found)

    def following(self, sample_id: int) -> Iterator[int]:
        """Yield the samples that can stand in for `sample_id`, the nearest first, over and over."""
        if self.mixture is not None:
            return self.mixture.following(sample_id)
        if self.places is not None:
            return self.places.following(sample_id)
        return ((sample_id + step) % self.n_samples for step in count(1))


def _part(
    block: Callable[[int], NDArray[np.int64]], block_positions: int, start: int, n_rows: int
) -> NDArray[np.int64]:
    """Return `n_rows` places from the position `start` on, of blocks that `block` makes by number."""
    parts = [np.empty(0, np.int64)] if not n_rows else []
    for number in range(start // block_positions, -(-(start + n_rows) // block_positions)):
        first = number * block_positions
        parts.append(block(number)[max(0, start - first) : start + n_rows - first])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
