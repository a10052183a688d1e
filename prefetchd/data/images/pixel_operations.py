"""Operations on the pixels of a finished image, each as torchvision's of the same name, in place.

Pure; called in readers by `pixel_changes`. An image is uint8, (H, W, 3), or (H, W) for `gray`. Sharpness and blur also
take uint16, float32 and any number of channels, alpha too. Channels of one image are treated alike, so `rgb` and `bgr`
differ only in `grayscale`.

Solarize, posterize, auto contrast and equalize give torchvision's uint8 result to the bit: each is a table of 256
values a channel. Grayscale, sharpness and blur are within one level of it on photographs: OpenCV rounds where
torchvision truncates, and blurs in whole numbers, which give the same bytes on every processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from prefetchd.data.images.resample import keep

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

_LEVELS = np.arange(256)
_COUNTED_AT_ONCE = 1 << 24


def solarize(pixels: Pixels, threshold: float) -> None:
    """Invert the pixels of `threshold` and above; all of them for 0."""
    levels = np.arange(256)
    _look_up(pixels, np.where(levels >= threshold, 255 - levels, levels))


def posterize(pixels: Pixels, bits: int) -> None:
    """Keep the `bits` highest bits of each value, 0 to 8."""
    np.bitwise_and(pixels, np.uint8(256 - (1 << (8 - bits)) if bits else 0), out=pixels)


def auto_contrast(pixels: Pixels) -> None:
    """Stretch each channel so that its darkest pixel becomes 0 and its brightest 255; one of a single value stays.

    As in torchvision, the last bit of float32 makes it 254 for some ranges.
    """
    tables = []
    for plane in _planes(pixels):
        low, high, _, _ = cv2.minMaxLoc(plane)
        if low == high:
            tables.append(_LEVELS)
            continue
        # In float32, as torchvision computes: a quotient just below a whole number is cut to the one below.
        step = np.float32(high - low) * np.float32(1 / 255)
        tables.append(np.clip((_LEVELS - low).astype(np.float32) / step, 0, 255))
    _look_up(pixels, *tables)


def equalize(pixels: Pixels) -> None:
    """Spread each channel's values so that all are about as frequent, as Pillow's `ImageOps.equalize` does."""
    tables = []
    for plane in _planes(pixels):
        counts = _histogram(plane)
        step = (plane.size - counts[counts.nonzero()[0][-1]]) // 255
        if step == 0:
            tables.append(_LEVELS)
            continue
        below = np.concatenate(([0], counts.cumsum()[:-1]))
        tables.append(np.minimum((below + step // 2) // step, 255))
    _look_up(pixels, *tables)


def sharpness(pixels: NDArray[Any], factor: float) -> None:
    """Blend each pixel with its 3 x 3 neighbourhood, which is smoother: 0 gives that, 1 the pixel, above 1 sharpens.

    Integers are rounded and clipped to their type. The outermost pixels stay as they are, and so does an image with a
    side of less than three.
    """
    if min(pixels.shape[:2]) <= 2:
        return
    smooth = np.full((3, 3), 1 / 13)
    smooth[1, 1] = 5 / 13
    kernel = (1 - factor) * smooth
    kernel[1, 1] += factor
    filtered: Any = cv2.filter2D(pixels, -1, kernel)
    pixels[1:-1, 1:-1] = filtered[1:-1, 1:-1]


def gaussian_blur(pixels: NDArray[Any], kernel_size: tuple[int, int], sigma: float) -> None:
    """Blur with a Gaussian of `sigma` pixels, cut to `kernel_size` (across, down); the image is mirrored at its rim."""
    keep(cv2.GaussianBlur(pixels, kernel_size, sigma, sigmaY=sigma, borderType=cv2.BORDER_REFLECT_101), pixels)


def grayscale(pixels: Pixels, to_gray: int, from_gray: int) -> None:
    """Give all three channels 0.299 R + 0.587 G + 0.114 B; the codes are OpenCV's, of the image's order of channels."""
    keep(cv2.cvtColor(cv2.cvtColor(pixels, to_gray), from_gray, dst=pixels), pixels)


def _planes(pixels: Pixels) -> tuple[Any, ...]:
    return (pixels,) if pixels.ndim == 2 else tuple(cv2.split(pixels))


def _histogram(plane: Pixels) -> NDArray[np.int64]:
    """Return how often each of the 256 values occurs.

    numpy's `bincount` would copy the plane to eight bytes a pixel. OpenCV counts in float32, exactly up to 2**24: so
    larger planes are counted in strips.
    """
    n_rows = max(1, _COUNTED_AT_ONCE // plane.shape[1])
    counts = np.zeros(256, np.int64)
    for top in range(0, plane.shape[0], n_rows):
        counts += cv2.calcHist([plane[top : top + n_rows]], [0], None, [256], [0, 256]).reshape(-1).astype(np.int64)
    return counts


def _look_up(pixels: Pixels, *tables: NDArray[Any]) -> None:
    """Replace each value by that of its channel's table, or of the one table; fractions are cut off."""
    joined = np.stack(tables, axis=-1).astype(np.uint8)
    keep(cv2.LUT(pixels, joined.reshape(1, 256, -1) if len(tables) > 1 else joined.reshape(1, 256), dst=pixels), pixels)
