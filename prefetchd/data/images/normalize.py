"""From decoded pixels to a sample's row in a batch: resize, crop or pad, then normalise.

Owns the arithmetic of the options `resize`, `interpolation`, `scale`, `mean`, `std`, `dtype` and `layout`.
A reader builds one `PixelPipeline` for each data set and calls `write` for each sample (`sources/image_files`). The row
is written by the last step itself (OpenCV's `dst=`, numpy's `out=`), so no copy follows, and nothing is allocated per
image.

Numbers. A delivered value is (pixel * scale - mean) / std, channel by channel, in the order of `color`; what
is not given is left out, so without any of them a float row holds the plain 0 to 255. With `scale` alone it
is one float32 product, pixel * float32(scale). With `mean` or `std`, and for float16, it is looked up in a
table of the 256 possible values a channel, each computed in float64 and rounded once. The border of `pad` is
black: pixel 0, which is then normalised like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config

INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}


def crop_box(height: int, width: int, target_h: int, target_w: int) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of the largest centred box of the target's aspect, to a pixel."""
    if width * target_h >= height * target_w:
        tall, wide = height, min(width, max(1, (2 * height * target_w + target_h) // (2 * target_h)))
    else:
        tall, wide = min(height, max(1, (2 * width * target_h + target_w) // (2 * target_w))), width
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def fit_box(height: int, width: int, target_h: int, target_w: int) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of the image in the target, centred, as large as it fits."""
    if width * target_h >= height * target_w:
        tall, wide = min(target_h, max(1, (2 * height * target_w + width) // (2 * width))), target_w
    else:
        tall, wide = target_h, min(target_w, max(1, (2 * width * target_h + height) // (2 * height)))
    return (target_h - tall) // 2, (target_w - wide) // 2, tall, wide


def value_table(config: Config) -> NDArray[Any]:
    """Return what each pixel becomes: (256, channels) of the delivered dtype, rounded once from float64."""
    values = np.repeat(np.arange(256, dtype=np.float64)[:, None], config.channels, axis=1)
    with np.errstate(over="ignore"):  # a factor out of the type's range gives infinities, never NaN
        if config.scale is not None:
            values *= config.scale
        if config.mean is not None:
            values -= np.asarray(config.mean, np.float64)
        if config.std is not None:
            values /= np.asarray(config.std, np.float64)
        return values.astype(config.dtype)


class PixelPipeline:
    """Writes decoded images into rows of a batch, as one configuration wants them.

    Owns its scratch image (at most one delivered image of uint8, twice with `nchw`); borrows the images and
    rows. One thread at a time.
    """

    def __init__(self, config: Config) -> None:
        self._height, self._width = config.image_size
        self._channels = config.channels
        self._resize = config.resize
        self._interpolation = INTERPOLATIONS[config.interpolation]
        self._planar = config.layout == "nchw" and self._channels > 1
        self._row_shape = (
            (self._channels, self._height, self._width)
            if config.layout == "nchw"
            else (self._height, self._width, self._channels)
        )
        self._dtype = np.dtype(config.dtype)
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

        # (H, W) for one channel: given (H, W, 1), OpenCV's bindings hand back another array.
        size = config.image_size
        self._image_shape: tuple[int, ...] = size if self._channels == 1 else (*size, self._channels)
        straight = config.dtype == "uint8" and not self._planar
        self._scratch: NDArray[np.uint8] | None = None if straight else np.empty(self._image_shape, np.uint8)
        separate = self._planar and config.dtype != "uint8"
        self._planes = np.empty(self._row_shape, np.uint8) if separate else None

    def write(self, image: NDArray[np.uint8], row: NDArray[Any]) -> None:
        """Write `image` into `row`.

        Args:
            image: (H, W, 3), or (H, W) for `gray`, uint8, channels in the order of `color`.
            row: one sample of a batch: (height, width, channels), or (channels, height, width) with `nchw`,
                of the delivered dtype, C-contiguous.

        Raises:
            ValueError: if `image` or `row` is not of that shape, dtype or layout.
        """
        if image.ndim != (2 if self._channels == 1 else 3):
            raise ValueError(f"cannot write a sample: the image has shape {image.shape}")
        pixels = self.canvas(row)
        self._place(image, pixels)
        self.deliver(pixels, row)

    def canvas(self, row: NDArray[Any]) -> NDArray[np.uint8]:
        """Return where the finished pixels of `row` go: (H, W, 3) or (H, W), uint8, the row itself where it can be.

        Raises:
            ValueError: if `row` is not of the delivered shape, dtype or layout.
        """
        if row.shape != self._row_shape or row.dtype != self._dtype or not row.flags.c_contiguous:
            raise ValueError(
                f"cannot write a sample: the row is {row.dtype} {row.shape}, "
                f"not C-contiguous {self._dtype} {self._row_shape}"
            )
        return row.reshape(self._image_shape) if self._scratch is None else self._scratch

    def deliver(self, pixels: NDArray[np.uint8], row: NDArray[Any]) -> None:
        """Turn finished `pixels`, usually those of `canvas(row)`, into the values of `row`."""
        if self._scratch is None:
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

    def _place(self, image: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
        """Resize, crop or pad `image` into `target`, uint8 with as many dimensions."""
        if self._resize == "crop":
            top, left, tall, wide = crop_box(image.shape[0], image.shape[1], self._height, self._width)
            image = image[top : top + tall, left : left + wide]
        elif self._resize == "pad":
            top, left, tall, wide = fit_box(image.shape[0], image.shape[1], self._height, self._width)
            target[:top] = 0
            target[top + tall :] = 0
            target[:, :left] = 0
            target[:, left + wide :] = 0
            target = target[top : top + tall, left : left + wide]
        size = (target.shape[1], target.shape[0])
        result = cv2.resize(image, size, dst=target, interpolation=self._interpolation)
        if result is not target:  # OpenCV takes other memory, silently, where `dst` does not suit it
            target[...] = result.reshape(target.shape)

    def _prepare_values(self, config: Config) -> None:
        """Choose how pixels become values: as they are, one product, or a table a channel."""
        if config.dtype == "uint8":
            return
        if config.dtype == "float32" and config.mean is None and config.std is None:
            if config.scale is None:
                return
            if abs(config.scale) * 255 <= float(np.finfo(np.float32).max):  # else 0 * inf would be NaN
                self._multiplier = np.float32(config.scale)
                return
        # OpenCV looks up any type by its size: float16 goes as the int16 with the same bits.
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

    def _deliver(self, pixels: NDArray[np.uint8], row: NDArray[Any]) -> None:
        """Turn `pixels` into values in `row`, both in the same order."""
        if not self._tables:
            self._multiply(pixels, row)
        else:
            _look_up(pixels, self._tables[0], row)

    def _deliver_planes(self, planes: NDArray[np.uint8], row: NDArray[Any]) -> None:
        if not self._tables:
            self._multiply(planes, row)
        else:
            for plane, table, values in zip(planes, self._tables, row, strict=True):
                _look_up(plane, table, values)

    def _multiply(self, pixels: NDArray[np.uint8], row: NDArray[Any]) -> None:
        if self._multiplier is None:
            np.copyto(row, pixels)
        else:
            np.multiply(pixels, self._multiplier, out=row, dtype=np.float32)


def _split(pixels: NDArray[np.uint8], planes: NDArray[np.uint8]) -> None:
    """Copy (H, W, C) `pixels` into (C, H, W) `planes`."""
    wanted = list(planes)
    for plane, result in zip(wanted, cv2.split(pixels, wanted), strict=True):
        if result is not plane:
            plane[...] = result


def _look_up(pixels: NDArray[np.uint8], table: NDArray[Any], row: NDArray[Any]) -> None:
    """Write `table[pixels]` into `row`; `table` is (1, 256) for all channels, or (1, 256, C)."""
    target = row.view(table.dtype)
    result = cv2.LUT(pixels, table, target)
    if result is not target:
        target[...] = result
