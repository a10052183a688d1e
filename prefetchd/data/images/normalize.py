"""From placed pixels to the values of a sample's row: scale, mean, std, dtype and layout.

A reader has one `Normalizer` for each data set. The last step writes the row itself (OpenCV's `dst=`, numpy's `out=`):
nothing is copied afterwards, and nothing is allocated per image.

A delivered value is (pixel * scale - mean) / std, channel by channel, in the order of `color`. Options that are not
given are left out, so a float row without them holds 0 to 255. `scale` alone is one float32 product,
pixel * float32(scale). With `mean` or `std`, and for float16, values come from a table of 256 a channel, each computed
in float64 and rounded once.

Exact pixels are of uint16 or float32 (`Config.pixel_dtype`): delivered as they are, or for float32 with the same
arithmetic in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from prefetchd.data.images.resample import keep

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config


_MOST_TOGETHER = 4  # channels; of more, OpenCV makes no image


def value_table(config: Config) -> NDArray[Any]:
    """Return the value of each pixel: (256, channels) of the delivered dtype, rounded once from float64."""
    values = np.repeat(np.arange(256, dtype=np.float64)[:, None], config.n_channels, axis=1)
    with np.errstate(over="ignore"):  # a factor beyond the dtype's range gives infinities, never NaN
        if config.scale is not None:
            values *= config.scale
        if config.mean is not None:
            values -= np.asarray(config.mean, np.float64)
        if config.std is not None:
            values /= np.asarray(config.std, np.float64)
        return values.astype(config.dtype)


class Normalizer:
    """Turns placed pixels into rows of a batch, as one configuration says. One thread.

    Owns its scratch image: at most one delivered image of the pixels' type, two with `nchw`. Borrows pixels and rows.
    """

    def __init__(self, config: Config) -> None:
        self._height, self._width = config.image_size
        self._channels = config.n_channels
        self._planar = config.layout == "nchw" and self._channels > 1
        self._row_shape = (
            (self._channels, self._height, self._width)
            if config.layout == "nchw"
            else (self._height, self._width, self._channels)
        )
        self._dtype = np.dtype(config.dtype)
        self._is_float = config.pixel_dtype == "float32"
        self._layout = config.layout
        given = (config.scale, config.mean, config.std)
        self._factors: tuple[NDArray[Any], ...] | None = None
        if any(factor is not None for factor in given):
            self._factors = tuple(
                np.array(f if f is not None else n, np.float64) for f, n in zip(given, (1, 0, 1), strict=True)
            )
        self._multiplier: np.float32 | None = None
        self._tables: list[NDArray[Any]] = []
        self._prepare_values(config)

        # (H, W) for one channel: for (H, W, 1) OpenCV's bindings return another array.
        size = config.image_size
        self._image_shape: tuple[int, ...] = size if self._channels == 1 else (*size, self._channels)
        straight = config.dtype == config.pixel_dtype and not self._planar
        self._scratch: NDArray[Any] | None = None if straight else np.empty(self._image_shape, config.pixel_dtype)
        separate = self._planar and config.dtype != config.pixel_dtype
        self._planes = np.empty(self._row_shape, np.uint8) if separate else None

    def canvas(self, row: NDArray[Any]) -> NDArray[Any]:
        """Return the array for the finished pixels of `row`: (H, W, C) or (H, W); the row itself where possible.

        Raises:
            ValueError: if `row` is not of the delivered shape, dtype or layout.
        """
        if row.shape != self._row_shape or row.dtype != self._dtype or not row.flags.c_contiguous:
            raise ValueError(
                f"cannot write a sample: the row is {row.dtype} {row.shape}, "
                f"not C-contiguous {self._dtype} {self._row_shape}"
            )
        return row.reshape(self._image_shape) if self._scratch is None else self._scratch

    def deliver(self, pixels: NDArray[Any], row: NDArray[Any]) -> None:
        """Turn finished `pixels`, usually those of `canvas(row)`, into the values of `row`."""
        if self._is_float:
            self._compute(pixels.reshape(self._height, self._width, self._channels), row)
        elif self._scratch is None:
            target = row.reshape(self._image_shape)
            if not np.may_share_memory(pixels, target):
                target[...] = pixels
        elif not self._planar:
            self._deliver(pixels, row.reshape(self._image_shape))
        elif self._planes is None:
            _split(pixels, row)
        else:
            _split(pixels, self._planes)
            self._deliver_planes(self._planes, row)

    def deliver_floats(self, values: NDArray[Any], row: NDArray[Any]) -> None:
        """Write (value * scale - mean) / std of floating `values`, (H, W, C), into `row`, which is floating too."""
        if self._factors is not None:
            scale, mean, std = (factor.astype(values.dtype) for factor in self._factors)
            values = (values * scale - mean) / std
        row[...] = values.transpose(2, 0, 1) if self._layout == "nchw" else values

    def _compute(self, values: NDArray[np.float32], row: NDArray[np.float32]) -> None:
        """Do as `deliver_floats` does, without memory of its own; `values` may be the memory of `row`."""
        target = row.transpose(1, 2, 0) if self._layout == "nchw" else row
        if self._factors is None:
            if not np.may_share_memory(values, target):
                target[...] = values
            return
        scale, mean, std = (factor.astype(np.float32) for factor in self._factors)
        np.multiply(values, scale, out=target)
        np.subtract(target, mean, out=target)
        np.divide(target, std, out=target)

    def _prepare_values(self, config: Config) -> None:
        """Choose how pixels become values: unchanged, one product, or a table a channel."""
        if config.dtype == config.pixel_dtype:
            return
        if config.dtype == "float32" and config.mean is None and config.std is None:
            if config.scale is None:
                return
            if abs(config.scale) * 255 <= float(np.finfo(np.float32).max):  # else 0 * inf would be NaN
                self._multiplier = np.float32(config.scale)
                return
        # OpenCV looks up any dtype by its size, so float16 goes as int16 with the same bits.
        table = value_table(config)
        table = table.view(np.int16) if config.dtype == "float16" else table
        columns = [np.ascontiguousarray(table[:, channel]).reshape(1, 256) for channel in range(self._channels)]
        same = all(np.array_equal(column, columns[0]) for column in columns)
        if self._planar:
            self._tables = columns
        elif same:
            self._tables = columns[:1]
        else:
            self._tables = [table.reshape(1, 256, self._channels)]

    def _deliver(self, pixels: NDArray[Any], row: NDArray[Any]) -> None:
        """Turn `pixels` into values in `row`, both in the same order."""
        if not self._tables:
            self._multiply(pixels, row)
        else:
            _look_up(pixels, self._tables[0], row)

    def _deliver_planes(self, planes: NDArray[Any], row: NDArray[Any]) -> None:
        if not self._tables:
            self._multiply(planes, row)
        else:
            for plane, table, values in zip(planes, self._tables, row, strict=True):
                _look_up(plane, table, values)

    def _multiply(self, pixels: NDArray[Any], row: NDArray[Any]) -> None:
        if self._multiplier is None:
            np.copyto(row, pixels)
        else:
            np.multiply(pixels, self._multiplier, out=row, dtype=np.float32)


def _split(pixels: NDArray[Any], planes: NDArray[Any]) -> None:
    """Copy (H, W, C) `pixels` into (C, H, W) `planes`."""
    if len(planes) > _MOST_TOGETHER:
        planes[...] = pixels.transpose(2, 0, 1)
        return
    wanted = list(planes)
    for plane, result in zip(wanted, cv2.split(pixels, wanted), strict=True):
        keep(result, plane)


def _look_up(pixels: NDArray[Any], table: NDArray[Any], row: NDArray[Any]) -> None:
    """Write `table[pixels]` into `row`; `table` is (1, 256) for all channels, or (1, 256, C)."""
    target = row.view(table.dtype)
    if pixels.ndim == 3 and pixels.shape[2] > _MOST_TOGETHER:
        columns = np.broadcast_to(table.reshape(256, -1), (256, pixels.shape[2]))
        for channel in range(pixels.shape[2]):
            target[..., channel] = columns[pixels[..., channel], channel]
        return
    keep(cv2.LUT(pixels, table, target), target)
