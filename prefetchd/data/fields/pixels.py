"""Fields of pixels in a reader: images and masks, all placed by the geometry of the first image of their sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.fields import image_config
from prefetchd.data.faults import RefusedImage
from prefetchd.data.fields.parts import BadValue, Draw, Rows
from prefetchd.data.images.geometry import Geometry, GeometryDraws, compose, same_aspect
from prefetchd.data.images.masks import MaskReader
from prefetchd.data.images.pipeline import ImageReader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.fields import Field
    from prefetchd.config.options import Config
    from prefetchd.data.cache.reader_side import CacheInReader
    from prefetchd.data.files import FileBuffer
    from prefetchd.data.read_ahead import ReadAhead
    from prefetchd.data.records import Records, Sample
    from prefetchd.data.source import ReserveMemory


class SharedGeometry:
    """The geometry of the sample at hand, which its first image draws and the others get.

    Args:
        augment: the option.
        size: (height, width) of the first image as it is delivered.
    """

    def __init__(self, augment: tuple[str, ...], size: tuple[int, int]) -> None:
        self._draws = GeometryDraws(augment, size)
        self._size = size
        self.first: Geometry | None = None  # until the first image has been read

    def draw(self, units: Sequence[float], full_size: tuple[int, int]) -> Geometry:
        """Draw it, for the first image."""
        self.first = self._draws.draw(units, full_size)
        return self.first

    def for_target(self, size: tuple[int, int]) -> Geometry:
        """Return it for another delivered size; the crop is still that of the first image."""
        assert self.first is not None
        turn = self.first.turn
        if turn is None or size == self._size:
            return self.first
        down, across = size[0] / self._size[0], size[1] / self._size[1]
        there, back = (across, 0.0, 0.0, 0.0, down, 0.0), (1 / across, 0.0, 0.0, 0.0, 1 / down, 0.0)
        return dataclasses.replace(self.first, turn=compose(there, compose(turn, back)))


class _Following:
    """The draws of an image that is not the first: it follows the first one's geometry, in its own pixels."""

    def __init__(self, shared: SharedGeometry, config: Config) -> None:
        self._shared = shared
        self._size = config.image_size
        self._is_stretched = config.resize == "stretch"
        self._are_kept = config.cache_image_size is not None

    def draw(self, units: Sequence[float], full_size: tuple[int, int]) -> Geometry:
        """Return the geometry in an image of `full_size`, which must have the aspect of the first one."""
        first = self._shared.for_target(self._size)
        is_free = first.crop is None and self._is_stretched
        if not is_free and not same_aspect(full_size, first.full_size, are_kept=self._are_kept):
            raise RefusedImage(
                f"it is {full_size[1]}x{full_size[0]} and the first image {first.full_size[1]}x{first.full_size[0]} "
                "(upright), which is another aspect; cut or pad the files alike"
            )
        return dataclasses.replace(first, full_size=full_size, crop=first.crop_in(*full_size))


class ImagePart:
    """An image."""

    def __init__(
        self,
        field: Field,
        number: int,
        config: Config,
        records: Records,
        ahead: ReadAhead,
        buffer: FileBuffer,
        shared: SharedGeometry,
        cache: CacheInReader | None,
        *,
        is_first: bool,
    ) -> None:
        own = image_config(config, field)
        draws = shared if is_first else _Following(shared, own)
        self.reader = ImageReader(own, records, ahead, cache, part=number, draws=draws, buffer=buffer)
        self._shape = (*own.image_size, own.n_channels)
        self._takes_floats = own.dtype.startswith("float")
        self._pixels: NDArray[Any]
        self._row: NDArray[Any]
        self._draw: Draw

    def load(self, sample: Sample, draw: Draw, rows: Rows, reserve: ReserveMemory) -> None:
        """Read, decode, place and jitter the image."""
        self._row = rows[0]
        self._draw = draw
        self._pixels, _ = self.reader.place(sample, draw.sample_id, draw.units, self._row, reserve)

    def shown(self) -> NDArray[Any]:
        """Return the pixels, (H, W, C), before they are normalised."""
        return self._pixels.reshape(self._shape).copy()

    def take(self, value: Any) -> None:
        """Take pixels, or floating numbers where the field delivers such."""
        shapes = (self._shape, self._shape[:2]) if self._shape[2] == 1 else (self._shape,)
        is_good = isinstance(value, np.ndarray) and value.shape in shapes
        if is_good and (value.dtype == self._pixels.dtype or (self._takes_floats and value.dtype.kind == "f")):
            same = value.dtype == self._pixels.dtype
            self._pixels = value.reshape(self._pixels.shape if same else self._shape)
            return
        what = (
            f"an array of {value.shape} {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        )
        floats = " or floating point" if self._takes_floats else ""
        raise BadValue(f"{what}, and it must be an array of {self._shape} {self._pixels.dtype}{floats}")

    def finish(self) -> None:
        """Normalise the pixels into the row."""
        self.reader.deliver(self._pixels, self._row)
        self.reader.erase(self._row, self._draw.units, self._draw.epoch, self._draw.sample_id)


class MaskPart:
    """A mask: class numbers a pixel, placed as the first image and never interpolated."""

    def __init__(
        self, field: Field, number: int, config: Config, ahead: ReadAhead, buffer: FileBuffer, shared: SharedGeometry
    ) -> None:
        own = image_config(config, field)
        self._size = own.image_size
        self._shared = shared
        self._reader = MaskReader(own, ahead, buffer, number)
        self._row: NDArray[Any]

    def load(self, sample: Sample, draw: Draw, rows: Rows, reserve: ReserveMemory) -> None:
        """Read, decode and place the mask."""
        self._row = rows[0]
        mask = self._reader.read(sample, draw.sample_id, self._shared.for_target(self._size), reserve, "")
        if not np.can_cast(mask.dtype, self._row.dtype):
            raise RefusedImage(f'the mask has 16 bits, and the field 8; give it dtype="{mask.dtype}"')
        self._row[...] = mask

    def shown(self) -> NDArray[Any]:
        """Return the mask, (H, W)."""
        return self._row.copy()

    def take(self, value: Any) -> None:
        """Take a mask of the same size."""
        dtype = self._row.dtype
        if isinstance(value, np.ndarray) and value.shape == self._size and np.can_cast(value.dtype, dtype):
            self._row[...] = value
            return
        what = (
            f"an array of {value.shape} {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        )
        raise BadValue(f"{what}, and it must be an array of {self._size} {dtype}")

    def finish(self) -> None:
        """Do nothing: the row is written."""
