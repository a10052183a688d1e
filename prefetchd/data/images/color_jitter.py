"""Colour jitter of a finished image: brightness, contrast, saturation, hue, in this fixed order.

Called in readers after the resize, when the image is smallest. Each step is torchvision's, rounded to uint8 or uint16;
float32 is neither rounded nor clipped:

- brightness: pixel * factor;
- contrast: pixel * factor + (1 - factor) * m, where m is the image's mean of 0.299 R + 0.587 G + 0.114 B;
- saturation: pixel * factor + (1 - factor) * its own 0.299 R + 0.587 G + 0.114 B;
- hue: the hue turned by a fraction of the circle, in 8-bit HSV, as Pillow does it; in float32 for other types.

A grey image has neither saturation nor hue, so these steps leave it as it is. Alpha stays as it is. Channels that are
no colours (`unchanged`, other than 1 or 3) have brightness and contrast, where m is the mean of all; `validate` refuses
the other two. It takes 0.4 ms at 224 x 224.
"""

# A table of 256 values would be exact for brightness and contrast, but OpenCV's `LUT` takes 0.1 ms a pass and
# `transform` 0.035 ms. The fixed-point arithmetic of `transform` is within one level of the formula.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from prefetchd.data.images.geometry import FIRST_WORD
from prefetchd.data.images.resample import keep
from prefetchd.sampling.randomness import between

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from prefetchd.config.options import Color

_RGB_WEIGHTS = (0.299, 0.587, 0.114)


class ColorJitter:
    """Applies one configuration's `color_jitter`; keeps one image of scratch memory. One thread."""

    def __init__(self, given: Mapping[str, Any], color: Color, n_channels: int | None = None) -> None:
        self._given = given
        n_channels = n_channels or (1 if color == "gray" else 3)
        self._has_alpha = n_channels == 4 and color != "unchanged"
        self._has_colors = n_channels == 3 or self._has_alpha
        weights = _RGB_WEIGHTS[::-1] if color == "bgr" else _RGB_WEIGHTS
        self._weights = weights if self._has_colors else (1.0,)
        self._to_hsv = cv2.COLOR_BGR2HSV_FULL if color == "bgr" else cv2.COLOR_RGB2HSV_FULL
        self._from_hsv = cv2.COLOR_HSV2BGR_FULL if color == "bgr" else cv2.COLOR_HSV2RGB_FULL
        self._hsv: NDArray[np.uint8] | None = None

    def apply(self, pixels: NDArray[Any], units: Sequence[float]) -> None:
        """Change `pixels`, (H, W, C) or (H, W), in place, by the sample's random numbers `units`."""
        at = FIRST_WORD["color_jitter"]
        if units[at + 4] >= self._given["p"]:
            return
        factors = [
            between(units[at + place], self._given[name])
            for place, name in enumerate(("brightness", "contrast", "saturation", "hue"))
        ]
        self.adjust(pixels, *factors)

    def adjust(self, pixels: NDArray[Any], brightness: float, contrast: float, saturation: float, hue: float) -> None:
        """Apply the four steps with these factors; 1, 1, 1 and 0 change nothing."""
        if self._has_alpha:
            colors = np.ascontiguousarray(pixels[..., :3])
            self._adjust_colors(colors, brightness, contrast, saturation, hue)
            pixels[..., :3] = colors
        elif self._has_colors or pixels.ndim == 2:
            self._adjust_colors(pixels, brightness, contrast, saturation, hue)
        else:
            # A plane at a time: OpenCV's `transform` takes four channels at most.
            planes = [np.ascontiguousarray(pixels[..., channel]) for channel in range(pixels.shape[2])]
            for plane in planes:
                _transform(plane, np.array([[brightness, 0.0]]))
            offset = (1 - contrast) * float(np.mean([cv2.mean(plane)[0] for plane in planes]))
            for channel, plane in enumerate(planes):
                _transform(plane, np.array([[contrast, offset]]))
                pixels[..., channel] = plane

    def _adjust_colors(
        self, pixels: NDArray[Any], brightness: float, contrast: float, saturation: float, hue: float
    ) -> None:
        """Apply the steps to (H, W, 3), or to (H, W), which has the first two."""
        n_channels = 1 if pixels.ndim == 2 else 3
        if brightness != 1:
            _transform(pixels, brightness * np.eye(n_channels, n_channels + 1))
        if contrast != 1:
            gray = sum(w * m for w, m in zip(self._weights, cv2.mean(pixels), strict=False))
            matrix = contrast * np.eye(n_channels, n_channels + 1)
            matrix[:, -1] = (1 - contrast) * gray
            _transform(pixels, matrix)
        if n_channels == 1:
            return
        if saturation != 1:
            matrix = np.zeros((3, 4))
            matrix[:, :3] = saturation * np.eye(3) + (1 - saturation) * np.array(self._weights)
            _transform(pixels, matrix)
        if pixels.dtype != np.uint8:
            if hue:
                self._turn_floats(pixels, hue)
        elif turn := round(hue * 256) % 256:
            if self._hsv is None or self._hsv.shape != pixels.shape:
                self._hsv = np.empty(pixels.shape, np.uint8)
            hsv = cv2.cvtColor(pixels, self._to_hsv, dst=self._hsv)
            hsv[..., 0] += np.uint8(turn)  # the circle has 256 steps: it wraps round as uint8 does
            keep(cv2.cvtColor(hsv, self._from_hsv, dst=pixels), pixels)

    def _turn_floats(self, pixels: NDArray[Any], hue: float) -> None:
        """Turn the hue of uint16 or float32 pixels, in degrees of float32: OpenCV has no HSV of 16 bits."""
        hsv = cv2.cvtColor(pixels.astype(np.float32), self._to_hsv)
        hsv[..., 0] = (hsv[..., 0] + np.float32(360 * hue)) % np.float32(360)
        turned = cv2.cvtColor(hsv, self._from_hsv)
        pixels[...] = np.clip(np.rint(turned), 0, 65535) if pixels.dtype == np.uint16 else turned


def _transform(pixels: NDArray[Any], matrix: NDArray[np.float64]) -> None:
    """Replace each pixel by `matrix` times (channels, 1), rounded and clipped to what an integer type holds."""
    keep(cv2.transform(pixels, matrix.astype(np.float32), dst=pixels), pixels)
