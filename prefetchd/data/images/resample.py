"""Placing a decoded image or mask into its target: crop, resize, flip and turn, each pixel computed once if possible.

Called in readers, with the same `Geometry` for an image and its mask. A crop is a slice and one `cv2.resize`; a flip
one pass over the small result; with rotate or affine everything is one `cv2.warpAffine` straight from the crop, by the
composed map. Only `area` (which no warp can do) and sides beyond `warpAffine`'s limit are resized first, then turned.

What lies outside of the crop is `border`. At the rim of a turned image the pixels fade into it over one source pixel,
as OpenCV interpolates them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from prefetchd.data.images.geometry import Box, Geometry, Map, compose
from prefetchd.data.images.normalize import INTERPOLATIONS, crop_box, fit_box

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Interpolation, Resize

_WARP_LIMIT_PX = 32767  # a side that OpenCV's warps refuse


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
        """Return one that makes no new values: nearest neighbour, by the pixels' centres as `linear` goes."""
        placer = cls(size, resize, "nearest", border)
        placer._interpolation = cv2.INTER_NEAREST_EXACT
        return placer

    def place(self, image: NDArray[Any], geometry: Geometry, crop: Box | None, target: NDArray[Any]) -> None:
        """Write `image` into `target` as `geometry` says.

        Args:
            image: (H, W) or (H, W, 3).
            geometry: flips and turn.
            crop: the geometry's crop in the coordinates of `image`, or `None` for the option `resize`.
            target: (height, width), with as many dimensions, of the same dtype.
        """
        region: Box = (0, 0, self._height, self._width)
        if crop is None and self._resize == "crop":
            crop = crop_box(image.shape[0], image.shape[1], self._height, self._width)
        elif crop is None and self._resize == "pad":
            region = fit_box(image.shape[0], image.shape[1], self._height, self._width)
        if crop is not None:
            top, left, tall, wide = crop
            image = image[top : top + tall, left : left + wide]
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

    def _resize_and_flip(self, image: NDArray[Any], region: Box, geometry: Geometry, target: NDArray[Any]) -> None:
        if not (geometry.hflip or geometry.vflip):
            self._resize_into(image, region, target)
            return
        scratch = self._scratch_like(target)
        self._resize_into(image, region, scratch)
        code = -1 if geometry.hflip and geometry.vflip else 1 if geometry.hflip else 0
        _keep(cv2.flip(scratch, code, dst=target), target)

    def _resize_into(self, image: NDArray[Any], region: Box, target: NDArray[Any]) -> None:
        top, left, tall, wide = region
        if (tall, wide) != (self._height, self._width):
            target[...] = self._border
            target = target[top : top + tall, left : left + wide]
        _keep(cv2.resize(image, (wide, tall), dst=target, interpolation=self._interpolation), target)

    def _turn(self, image: NDArray[Any], back: Map, target: NDArray[Any]) -> None:
        """Write into `target` what `back` leads to, a map from the target to `image`, by pixel centres."""
        a, b, c, d, e, f = back
        matrix = np.array(((a, b, c + (a + b) / 2 - 0.5), (d, e, f + (d + e) / 2 - 0.5)))
        result = cv2.warpAffine(
            image,
            matrix,
            (self._width, self._height),
            dst=target,
            flags=self._warp | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(self._border,) * 3,
        )
        _keep(result, target)

    def _scratch_like(self, target: NDArray[Any]) -> NDArray[Any]:
        if self._scratch is None or self._scratch.shape != target.shape or self._scratch.dtype != target.dtype:
            self._scratch = np.empty(target.shape, target.dtype)
        return self._scratch


def _keep(result: NDArray[Any], target: NDArray[Any]) -> None:
    """OpenCV takes other memory, silently, where `dst` does not suit it."""
    if result is not target:
        target[...] = result.reshape(target.shape)
