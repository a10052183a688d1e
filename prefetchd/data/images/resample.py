"""Placing a decoded image or mask into its target: crop, resize, flip and turn, in as few passes as possible.

Owns the options `resize` and `interpolation`. Called in readers, with the same `Geometry` for an image and its mask.
A crop is a slice and one `cv2.resize`; a flip is one pass over the small result; rotate and affine are one
`cv2.warpAffine` straight from the crop, by the composed map. Only `area` (which no warp can do) and sides beyond
`warpAffine`'s limit are resized first and turned afterwards.

Pixels outside the crop are `border`. At the rim of a turned image they fade into it over one source pixel, since
OpenCV interpolates them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from prefetchd.data.images.geometry import Box, Geometry, Map, compose

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Interpolation, Resize

INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}
_WARP_LIMIT_PX = 32767  # OpenCV's warps refuse longer sides
_MOST_TOGETHER = 4  # channels: OpenCV refuses more with some interpolations, and borders


def crop_box(height: int, width: int, target_h: int, target_w: int) -> Box:
    """Return (top, left, height, width) of the largest centred box with the target's aspect, to a pixel."""
    if width * target_h >= height * target_w:
        tall, wide = height, min(width, max(1, (2 * height * target_w + target_h) // (2 * target_h)))
    else:
        tall, wide = min(height, max(1, (2 * width * target_h + target_w) // (2 * target_w))), width
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def fit_box(height: int, width: int, target_h: int, target_w: int) -> Box:
    """Return (top, left, height, width) of the image in the target: centred, as large as it fits."""
    if width * target_h >= height * target_w:
        tall, wide = min(target_h, max(1, (2 * height * target_w + width) // (2 * width))), target_w
    else:
        tall, wide = target_h, min(target_w, max(1, (2 * width * target_h + height) // (2 * height)))
    return (target_h - tall) // 2, (target_w - wide) // 2, tall, wide


class Placer:
    """Places images of any size into targets of one size; keeps one target-sized scratch array. One thread."""

    def __init__(self, size: tuple[int, int], resize: Resize, interpolation: Interpolation, border: int = 0) -> None:
        self._height, self._width = size
        self._resize = resize
        self._border = border
        self._interpolation = self._warp = INTERPOLATIONS[interpolation]
        if interpolation == "area":
            self._warp = cv2.INTER_LINEAR
        self._warps_at_once = interpolation != "area"
        self._scratch: NDArray[Any] | None = None

    @classmethod
    def for_masks(cls, size: tuple[int, int], resize: Resize, border: int) -> Placer:
        """Return one that makes no new values: nearest neighbour by the pixels' centres, as `linear` places them."""
        placer = cls(size, resize, "nearest", border)
        placer._interpolation = cv2.INTER_NEAREST_EXACT
        return placer

    def resize(self, image: NDArray[Any], target: NDArray[Any]) -> None:
        """Write `image` into `target` as the option `resize` says; shapes as for `place`."""
        self._resize_into(*self._cropped(image, None), target)

    def place(self, image: NDArray[Any], geometry: Geometry, crop: Box | None, target: NDArray[Any]) -> None:
        """Write `image` into `target` as `geometry` says.

        Args:
            image: (H, W) or (H, W, channels).
            geometry: its flips and turn.
            crop: the geometry's crop in the coordinates of `image`; `None` for what the option `resize` takes.
            target: (height, width), with as many dimensions and the same dtype.
        """
        image, region = self._cropped(image, crop)
        if geometry.turn is None:
            self._resize_and_flip(image, region, geometry, target)
            return
        back = geometry.target_map(self._height, self._width)
        if not self._warps_at_once or max(image.shape[:2]) >= _WARP_LIMIT_PX:
            scratch = self._scratch_like(target)
            self._resize_into(image, region, scratch)
            image, region = scratch, (0, 0, self._height, self._width)
        top, left, tall, wide = region
        across, down = image.shape[1] / wide, image.shape[0] / tall
        self._turn(image, compose((across, 0.0, -left * across, 0.0, down, -top * down), back), target)

    def shown(self, height: int, width: int, crop: Box | None) -> tuple[Box, Box]:
        """Return the part of an image of `height` and `width` that is shown, and the box of the target it fills."""
        region: Box = (0, 0, self._height, self._width)
        if crop is None and self._resize == "crop":
            crop = crop_box(height, width, self._height, self._width)
        elif crop is None and self._resize == "pad":
            region = fit_box(height, width, self._height, self._width)
        return crop or (0, 0, height, width), region

    def _cropped(self, image: NDArray[Any], crop: Box | None) -> tuple[NDArray[Any], Box]:
        (top, left, tall, wide), region = self.shown(image.shape[0], image.shape[1], crop)
        return image[top : top + tall, left : left + wide], region

    def _resize_and_flip(self, image: NDArray[Any], region: Box, geometry: Geometry, target: NDArray[Any]) -> None:
        if not (geometry.hflip or geometry.vflip):
            self._resize_into(image, region, target)
            return
        if _n_channels(image) > _MOST_TOGETHER:  # more than 128 are no image to OpenCV
            self._resize_into(image, region, target)
            rows, columns = (slice(None, None, -1 if flip else 1) for flip in (geometry.vflip, geometry.hflip))
            target[...] = target[rows, columns].copy()
            return
        scratch = self._scratch_like(target)
        self._resize_into(image, region, scratch)
        code = -1 if geometry.hflip and geometry.vflip else 1 if geometry.hflip else 0
        keep(cv2.flip(scratch, code, dst=target), target)

    def _resize_into(self, image: NDArray[Any], region: Box, target: NDArray[Any]) -> None:
        top, left, tall, wide = region
        if (tall, wide) != (self._height, self._width):
            target[:top] = self._border
            target[top + tall :] = self._border
            target[:, :left] = self._border
            target[:, left + wide :] = self._border
            target = target[top : top + tall, left : left + wide]
        resized(image, (tall, wide), self._interpolation, target)

    def _turn(self, image: NDArray[Any], back: Map, target: NDArray[Any]) -> None:
        """Write `image` into `target`; `back` maps the target's pixel centres to those of `image`."""
        a, b, c, d, e, f = back
        matrix = np.array(((a, b, c + (a + b) / 2 - 0.5), (d, e, f + (d + e) / 2 - 0.5)))
        size = self._width, self._height
        flags = self._warp | cv2.WARP_INVERSE_MAP
        border = (self._border,) * _MOST_TOGETHER

        def warp(part: NDArray[Any], goal: NDArray[Any]) -> Any:
            return cv2.warpAffine(part, matrix, size, goal, flags, cv2.BORDER_CONSTANT, border)

        _few_channels_at_a_time(warp, image, target)

    def _scratch_like(self, target: NDArray[Any]) -> NDArray[Any]:
        if self._scratch is None or self._scratch.shape != target.shape or self._scratch.dtype != target.dtype:
            self._scratch = np.empty(target.shape, target.dtype)
        return self._scratch


def resized(
    image: NDArray[Any], size: tuple[int, int], interpolation: int, target: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Return `image` in `size` (height, width), in `target` if given; any number of channels."""
    if target is None:
        target = np.empty((*size, *image.shape[2:]), image.dtype)

    def resize(part: NDArray[Any], goal: NDArray[Any]) -> Any:
        return cv2.resize(part, size[::-1], dst=goal, interpolation=interpolation)

    _few_channels_at_a_time(resize, image, target)
    return target


def _n_channels(image: NDArray[Any]) -> int:
    return 1 if image.ndim == 2 else int(image.shape[2])


def _few_channels_at_a_time(
    work: Callable[[NDArray[Any], NDArray[Any]], Any], image: NDArray[Any], target: NDArray[Any]
) -> None:
    """Write `work(image, target)` into `target`: OpenCV's result for all channels, or for a few of many at a time."""
    n_channels = _n_channels(image)
    if n_channels <= _MOST_TOGETHER:
        keep(work(image, target), target)
        return
    for first in range(0, n_channels, _MOST_TOGETHER):
        some = slice(first, first + _MOST_TOGETHER)
        part = np.ascontiguousarray(image[..., some])
        goal = np.empty((*target.shape[:2], part.shape[2]), target.dtype)
        target[..., some] = work(part, goal).reshape(goal.shape)


def keep(result: NDArray[Any], target: NDArray[Any]) -> None:
    """Copy `result` into `target` if OpenCV did not write there: it silently ignores a `dst` that does not suit it."""
    if result is not target:
        target[...] = result.reshape(target.shape)
