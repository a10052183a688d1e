"""What the cache of decoded images keeps, and how a task is served from it. Used in readers.

The kept image lies between a file and the random part of its pipeline. With `cache_image_size` it is the file
fitted into that size at its own aspect, never enlarged; without, it is resized to the target as `resize` says, and only
flips, colours and users' functions follow. `cache.keys` says why.

A *row* is what a cache stores of it: its pixels, or with `cache_format="jpeg"` their JPEG, of shape (bytes,).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.data.images import decode
from prefetchd.data.images.resample import INTERPOLATIONS, Placer, fit_box, resized
from prefetchd.data.records import Records, Sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config
    from prefetchd.data.cache.reader_side import CacheInReader
    from prefetchd.data.images.headers.header import ImageHeader


class KeptImages:
    """Makes the kept images of one configuration. One thread."""

    def __init__(self, config: Config) -> None:
        self._fitted = config.cache_image_size is not None
        self._jpeg = None
        if config.cache_format == "jpeg":
            from prefetchd.data.images.kept_jpeg import JpegRows

            self._jpeg = JpegRows(config.color, config.cache_quality)
        self.size = config.cache_image_size or config.image_size
        self._item_bytes = config.n_channels * np.dtype(config.pixel_dtype).itemsize
        self._resize = config.resize
        self._interpolation = INTERPOLATIONS[config.interpolation]
        self._placer = Placer(self.size, config.resize, config.interpolation)

    @property
    def one_size(self) -> tuple[int, int] | None:
        """The (height, width) of all that are made here; `None` where each has its own aspect."""
        return None if self._fitted else self.size

    @property
    def n_bytes(self) -> int:
        """Memory that the largest one takes while it is made or read, in bytes."""
        n_bytes = self.size[0] * self.size[1] * self._item_bytes
        return n_bytes if self._jpeg is None else 3 * n_bytes  # a copy in the encoder's order, and a row of noise

    def reduction(self, header: ImageHeader) -> int:
        """Return the largest JPEG reduction that leaves enough pixels."""
        return decode.choose_reduction(header, *self.size, "pad" if self._fitted else self._resize)

    def make(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return the kept image of a decoded one; it may be the same array."""
        if not self._fitted:
            made = np.empty((*self.size, *image.shape[2:]), image.dtype)
            self._placer.resize(image, made)
            return made
        height, width = image.shape[:2]
        if height <= self.size[0] and width <= self.size[1]:
            return image
        _, _, tall, wide = fit_box(height, width, *self.size)
        return resized(image, (tall, wide), self._interpolation)

    def row(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return the row of a kept image."""
        return image if self._jpeg is None else self._jpeg.encode(image)

    def pixels(self, row: NDArray[Any]) -> NDArray[Any] | None:
        """Return what all later steps go on from; `None` if the row is damaged, or memory is short."""
        return row if self._jpeg is None else self._jpeg.decode(row)


class CachedRows:
    """Serves what the cache knows, without a manifest line, a file or a decoder. Borrows cache and records.

    If a row of the batch is the kept image itself (its numbers, channels last, nothing random after it), all known rows
    of a task are read straight into the slot. Otherwise a known sample has only its number and label, and passes
    through the pipeline from its kept image on.
    """

    def __init__(self, config: Config, cache: CacheInReader, records: Records) -> None:
        self._cache = cache
        self._records = records
        self._first_side = 1 if config.layout == "nhwc" else 2  # the axis of x
        self._straight = (
            config.dtype == config.pixel_dtype
            and (config.scale, config.mean, config.std) == (None, None, None)
            and (config.layout == "nhwc" or config.n_channels == 1)
            and config.cache_image_size is None
            and not (config.augment or config.views or config.transform or config.target_transform)
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
            samples = self._records.samples(sample_ids)
            height, width = x.shape[self._first_side : self._first_side + 2]
            left = self._cache.find_rows(sample_ids, rows, samples, x, y, (height, width))
            return sample_ids[left], [rows[place] for place in left], [samples[place] for place in left]
        known = self._cache.known(sample_ids)
        unknown = iter(self._records.samples(sample_ids[[not each for each in known]]) if not all(known) else ())
        samples = [
            Sample("", self._cache.label(int(sample_id))) if is_known else next(unknown)
            for sample_id, is_known in zip(sample_ids, known, strict=True)
        ]
        return sample_ids, rows, samples
