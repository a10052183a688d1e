"""`Places`: the samples that an order has, each at a place from 0 on; a part of the data set, or all of it. Pure.

Where all samples of the data set are served as they are, a place is the sample's number, and there is no table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """A table of samples by place. Its array may lie in memory that processes share.

    Attributes:
        ids: (places,) whole numbers: the sample at each place.
    """

    ids: NDArray[np.integer]

    def __len__(self) -> int:
        return len(self.ids)

    def sample_ids(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the samples at these places, shape as `places`, int64."""
        return self.ids[places].astype(np.int64)

    def following(self, sample_id: int) -> Iterator[int]:
        """Yield the samples after the first place of `sample_id`, over and over."""
        first = int((self.ids == sample_id).argmax())
        return (int(self.ids[(first + step) % len(self.ids)]) for step in count(1))
