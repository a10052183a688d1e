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
from numpy.random import Philox

if TYPE_CHECKING:
    from numpy.typing import NDArray

DRAWN_POSITIONS = 1 << 10  # drawn at once: a few dozen cost as much as some hundreds
_NO_SAMPLE = (1 << 64) - 1  # in the key of Philox, where the randomness of samples has their numbers
_DRAW = 0
_WORDS = 4  # of a value of Philox's counter
_TO_UNIT = 2.0**-53


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """A table of samples by place. Its arrays may lie in memory that processes share.

    Attributes:
        ids: (places,) whole numbers: the sample at each place; `None` where it is the place itself.
        until: (places,) float64: the sum of the weights up to each place, that one too; `None` without weights.
    """

    ids: NDArray[np.integer] | None = None
    until: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        table = self.until if self.ids is None else self.ids
        return 0 if table is None else len(table)

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
    assert places.until is not None
    counter = np.array([number * (DRAWN_POSITIONS // _WORDS), _DRAW, epoch, 0], np.uint64)
    words = Philox(key=np.array([seed, _NO_SAMPLE], np.uint64), counter=counter).random_raw(DRAWN_POSITIONS)
    points = (words >> np.uint64(11)) * _TO_UNIT * places.until[-1]
    # A product may be rounded up to the sum of all weights, behind the last place.
    found: NDArray[np.int64] = np.minimum(np.searchsorted(places.until, points, "right"), len(places) - 1)
    found.flags.writeable = False
    return found
