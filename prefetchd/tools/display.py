"""Delivered batches turned back into pictures: normalisation undone, layout and colours as files have them. Pure."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.options import Config

if TYPE_CHECKING:
    from numpy.typing import NDArray


def to_display(x: NDArray[Any], config: Config) -> NDArray[np.uint8]:
    """Return one delivered sample as (height, width, 3) uint8 in BGR, as OpenCV writes it.

    Args:
        x: the sample, (height, width, channels) or (channels, height, width), as `config.layout` says.
        config: what it was delivered by: scale, mean, std, layout and colour order are undone.
    """
    pixels = x if config.layout == "nhwc" else np.moveaxis(x, 0, -1)
    if x.dtype != np.uint8:
        values = pixels.astype(np.float64)
        if config.std is not None:
            values = values * np.asarray(config.std)
        if config.mean is not None:
            values = values + np.asarray(config.mean)
        if config.scale:
            values = values / config.scale
        pixels = np.clip(np.nan_to_num(values) + 0.5, 0, 255).astype(np.uint8)
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    elif config.color == "rgb":
        pixels = pixels[..., ::-1]
    return np.ascontiguousarray(pixels)


def mask_to_display(mask: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a mask of class numbers as (height, width, 3) uint8: 0 is black, neighbours have unlike colours."""
    colours = np.array(
        [(0, 0, 0)] + [[255 * c for c in colorsys.hsv_to_rgb(n * 0.618 % 1, 0.75, 1)] for n in range(255)]
    ).astype(np.uint8)
    numbers = np.asarray(mask).astype(np.int64)
    return colours[np.where(numbers == 0, 0, (numbers - 1) % 255 + 1)]
