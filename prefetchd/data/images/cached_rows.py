"""The short way of rows that a cache knows: no manifest line, no file, no decoder. Used in readers, by `images`.

Where a row of the batch is the kept image itself (uint8, channels last, nothing random after it), all of a task's known
rows are read straight into the slot. Elsewhere a known sample is only named by its number and label, and goes the way
of all others from its kept image on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.options import Config
from prefetchd.data.cache.reader_side import CacheInReader
from prefetchd.data.records import Records, Sample

if TYPE_CHECKING:
    from numpy.typing import NDArray


class CachedRows:
    """What is left to do for a task once its known rows are served. Borrows cache and records."""

    def __init__(self, config: Config, cache: CacheInReader, records: Records) -> None:
        self._cache = cache
        self._records = records
        self._straight = (
            config.dtype == "uint8"
            and (config.layout == "nhwc" or config.channels == 1)
            and config.cache_image_size is None
            and not (config.augment or config.transform or config.target_transform)
        )

    def unknown(self, sample_ids: Iterable[int]) -> list[int]:
        """Return those of the samples that are not known to be in the cache."""
        ids = np.fromiter(sample_ids, np.int64)
        return [int(sample_id) for sample_id, known in zip(ids, self._cache.known(ids), strict=True) if not known]

    def fill(
        self, sample_ids: NDArray[np.int64], rows: Sequence[int], x: NDArray[Any], y: NDArray[Any]
    ) -> tuple[NDArray[np.int64], Sequence[int], list[Sample]]:
        """Write the rows that can be read straight into the batch; return ids, rows and samples of the others."""
        sample_ids = np.asarray(sample_ids)
        if self._straight:
            left = self._cache.fill_rows(sample_ids, rows[0], x, y)
            if not left:
                return sample_ids[:0], (), []
            sample_ids, rows = sample_ids[left], [rows[place] for place in left]
            return sample_ids, rows, self._records.samples(sample_ids)
        known = self._cache.known(sample_ids)
        unknown = iter(self._records.samples(sample_ids[[not each for each in known]]) if not all(known) else ())
        samples = [
            Sample("", self._cache.label(int(sample_id))) if is_known else next(unknown)
            for sample_id, is_known in zip(sample_ids, known, strict=True)
        ]
        return sample_ids, rows, samples
