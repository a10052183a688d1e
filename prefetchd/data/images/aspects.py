"""Which bucket an image belongs to: that of the nearest aspect. Pure; the daemon calls it as a data set is opened.

Two aspects are as far apart as the quotient of the larger and the smaller: 3:4 is as far from a square as 4:3. Of two
buckets that are as near, the first is taken, and for an image without a readable header, the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.buckets import Size, largest

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK = 1 << 16


def bucket_numbers(heights: NDArray[Any], widths: NDArray[Any], sizes: Sequence[Size]) -> NDArray[np.uint8]:
    """Return the bucket of each image, (images,), by its height and width in pixels, upright; 0 is an unknown size."""
    numbers = np.full(len(heights), sizes.index(largest(sizes)), np.uint8)
    shapes = np.array(sizes, np.float64)
    for first in range(0, len(heights), _BLOCK):
        block = slice(first, first + _BLOCK)
        height, width = heights[block].astype(np.float64), widths[block].astype(np.float64)
        known = (height > 0) & (width > 0)
        distances = _distances(height[known], width[known], shapes)
        numbers[block][known] = np.argmin(distances, axis=1)
    return numbers


def _distances(height: NDArray[Any], width: NDArray[Any], shapes: NDArray[Any]) -> NDArray[Any]:
    """Return how far each image's aspect is from that of each of `shapes`, (images, shapes), 1 and more."""
    # Products of 32 and 16 bits are exact, and equal quotients are rounded alike: ties are ties.
    one = width[:, None] * shapes[None, :, 0]
    other = height[:, None] * shapes[None, :, 1]
    found: NDArray[Any] = np.maximum(one, other) / np.minimum(one, other)
    return found


def lost_share(
    heights: NDArray[Any], widths: NDArray[Any], numbers: NDArray[Any], sizes: Sequence[Size]
) -> float | None:
    """Return what is lost where each image goes to the size of its number, averaged over images; 0 to 1.

    It is the part of an image that `resize="crop"` leaves out, which is the part of the target that `resize="pad"`
    fills with black. `None` without an image of known size.
    """
    known = (heights > 0) & (widths > 0)
    if not known.any():
        return None
    target = np.array(sizes, np.float64)[numbers[known]]
    one, other = widths[known] * target[:, 0], heights[known] * target[:, 1]
    return float(1 - np.mean(np.minimum(one, other) / np.maximum(one, other)))


LOST = {"crop": "cropped away", "pad": "padding", "stretch": "stretched"}  # what `resize` does with another aspect
