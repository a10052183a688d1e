"""The image between a file and the random part of its pipeline: made where a cache keeps it, or where a size is given.

With `cache_image_size` it is the file fitted into that size at its own aspect, never enlarged; without, it is resized
to the target as `resize` says, after which only flips, colours and users' functions follow. `cache.rules` has why.
Used in readers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from prefetchd.data.images import decode
from prefetchd.data.images.geometry import Geometry
from prefetchd.data.images.normalize import INTERPOLATIONS, fit_box
from prefetchd.data.images.resample import Placer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config
    from prefetchd.data.images.headers.header import ImageHeader


class KeptImages:
    """Makes kept images as one configuration wants them. One thread."""

    def __init__(self, config: Config) -> None:
        self._fitted = config.cache_image_size is not None
        self.size = config.cache_image_size or config.image_size
        self._channels = config.channels
        self._resize = config.resize
        self._interpolation = INTERPOLATIONS[config.interpolation]
        self._placer = Placer(self.size, config.resize, config.interpolation)

    @property
    def n_bytes(self) -> int:
        """Of the largest kept image."""
        return self.size[0] * self.size[1] * self._channels

    def reduction(self, header: ImageHeader) -> int:
        """The largest JPEG reduction that leaves enough pixels."""
        return decode.choose_reduction(header, *self.size, "pad" if self._fitted else self._resize)

    def make(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the kept image of a decoded one; it may be the same array."""
        if not self._fitted:
            kept = np.empty((*self.size, *image.shape[2:]), np.uint8)
            self._placer.place(image, Geometry(image.shape[:2]), None, kept)
            return kept
        height, width = image.shape[:2]
        if height <= self.size[0] and width <= self.size[1]:
            return image
        _, _, tall, wide = fit_box(height, width, *self.size)
        kept = np.empty((tall, wide, *image.shape[2:]), np.uint8)
        cv2.resize(image, (wide, tall), dst=kept, interpolation=self._interpolation)
        return kept
