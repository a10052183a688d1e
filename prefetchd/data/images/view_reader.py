"""Several views of a sample: its image is read and decoded once, then each view is placed and changed by itself.

Loaded in readers, by `views.ViewsSource`. The geometry of all views is drawn first: the most demanding one decides how
far a JPEG may be reduced, and the lowest crop how many rows are decoded. The view's number enters the counter of its
random numbers, and view 0 has those of a sample without views.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.augment import parameters
from prefetchd.config.views import Group, groups
from prefetchd.data.images.erasing import Erasing
from prefetchd.data.images.geometry import Box, Geometry, GeometryDraws, n_words
from prefetchd.data.images.normalize import Normalizer
from prefetchd.data.images.pipeline import ImageReader
from prefetchd.data.images.pixel_changes import PixelChanges
from prefetchd.data.images.resample import Placer
from prefetchd.data.images.user_functions import UserFunctions
from prefetchd.sampling.randomness import SampleRandomness

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config
    from prefetchd.data.cache.reader_side import CacheInReader
    from prefetchd.data.read_ahead import ReadAhead
    from prefetchd.data.records import Records, Sample
    from prefetchd.data.source import ReserveMemory


class _GroupWriter:
    """Draws, places and writes the views of one group. One thread; borrows the samples' randomness."""

    def __init__(self, config: Config, group: Group, rng: SampleRandomness) -> None:
        config = dataclasses.replace(config, image_size=group.size, augment=group.augment, views=())
        given = parameters(config.augment)
        self._rng = rng
        self._draws = GeometryDraws(config.augment, config.image_size)
        self._n_words = n_words(given)
        self._placer = Placer(config.image_size, config.resize, config.interpolation)
        self._changes = PixelChanges(config.augment, config.image_size, config.color, config.n_channels)
        self._erasing = Erasing(config, rng) if "random_erasing" in given else None
        self._functions = UserFunctions(config, rng)
        self._normalizer = Normalizer(config)
        self._size = group.size

    def draw(
        self, epoch: int, sample_id: int, view: int, full_size: tuple[int, int]
    ) -> tuple[Sequence[float], Geometry, tuple[int, int]]:
        """Return the random numbers of a view, its geometry in an image of `full_size`, and its delivered size."""
        units = self._rng.units(epoch, sample_id, self._n_words, view) if self._n_words else ()
        return units, self._draws.draw(units, full_size), self._size

    def write(
        self,
        image: NDArray[Any],
        geometry: Geometry,
        crop: Box | None,
        units: Sequence[float],
        key: tuple[int, int, int],
        row: NDArray[Any],
        mask: NDArray[Any] | None,
    ) -> NDArray[Any] | None:
        """Write one view of `image` into `row`; `key` is (epoch, sample id, view). Return its mask if it has one.

        Raises:
            TransformFault, EnvironmentFault: if the user's function fails.
        """
        epoch, sample_id, view = key
        pixels = self._normalizer.canvas(row)
        self._placer.place(image, geometry, crop, pixels)
        if self._changes:
            self._changes.apply(pixels, units)
        if not self._functions.has_transform:
            self._normalizer.deliver(pixels, row)
        else:
            seen = mask if self._functions.takes_masks else None
            values, turned = self._functions.transform(pixels, epoch, sample_id, seen, view)
            mask = mask if turned is None else turned
            if values.dtype == pixels.dtype:
                self._normalizer.deliver(values.reshape(pixels.shape), row)
            else:
                self._normalizer.deliver_floats(values, row)
        if self._erasing is not None:
            self._erasing.apply(row, units, epoch, sample_id, view)
        return mask


class ViewsReader(ImageReader):
    """Loads samples with views: its `x` is a tuple, each group's row (count, ...); see `ImageReader`."""

    def __init__(
        self, config: Config, records: Records, ahead: ReadAhead | None = None, cache: CacheInReader | None = None
    ) -> None:
        super().__init__(config, records, ahead, cache)
        # Each view: its group, its place in the group's row, its number among all, and what writes it.
        self._views: list[tuple[int, int, int, _GroupWriter]] = []
        for number, group in enumerate(groups(config)):
            writer = _GroupWriter(config, group, self._rng)
            self._views += [(number, place, group.first + place, writer) for place in range(group.count or 1)]

    def _empty_x(self) -> Any:
        return tuple(np.empty(group.shape(self._config), self._config.dtype) for group in groups(self._config))

    def _load(self, sample: Sample, sample_id: int, epoch: int, x: Any, reserve: ReserveMemory) -> Any:
        """Write all views into `x`, a row for each group; return the label, or the masks of the views."""
        drawn: list[Sequence[float]] = []

        def draw(full_size: tuple[int, int]) -> list[tuple[Geometry, tuple[int, int]]]:
            placed = []
            for _, _, view, writer in self._views:
                units, geometry, size = writer.draw(epoch, sample_id, view, full_size)
                drawn.append(units)
                placed.append((geometry, size))
            return placed

        image, placed = self._read_once(sample, sample_id, draw, reserve)
        masks: list[NDArray[Any] | None] = [None] * len(placed)
        if self._masks is not None:
            geometries = [geometry for geometry, _ in placed]

            def reserve_beside(n_bytes: int) -> None:  # the image is still needed
                reserve(n_bytes + image.nbytes)

            masks[:] = self._masks.read_all(sample, sample_id, geometries, reserve_beside, str(sample.label))
        for number, (group, place, view, writer) in enumerate(self._views):
            geometry, crop = placed[number]
            row, key = x[group][place], (epoch, sample_id, view)
            masks[number] = writer.write(image, geometry, crop, drawn[number], key, row, masks[number])
        return self._label(sample, sample_id) if self._masks is None else np.stack(masks)  # type: ignore[arg-type]
