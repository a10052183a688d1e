"""Delivered samples turned back into pictures: for contact sheets, and for notebooks.

Turning back undoes the normalisation and restores the layout and the colours of files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config


def to_display(x: NDArray[Any], config: Config) -> NDArray[np.uint8]:
    """Return one delivered sample as (height, width, 3) uint8 in BGR, as OpenCV writes it.

    Args:
        x: the sample, (height, width, channels) or (channels, height, width), as `config.layout` says.
        config: the options it was delivered with; scale, mean, std, layout and colour order are undone.

    Of channels that are no colours the first one is shown, or the first three. 16 bits and float32 that were kept are
    stretched from their least to their greatest number: depths and measurements have no white.
    """
    pixels = x if config.layout == "nhwc" else np.moveaxis(x, 0, -1)
    pixels = pixels[..., : 3 if pixels.shape[-1] > 2 else 1]
    if config.pixel_dtype != "uint8":
        values = np.nan_to_num(pixels.astype(np.float64))
        low, high = values.min(), values.max()
        pixels = ((values - low) * (255 / ((high - low) or 1))).astype(np.uint8)
    elif x.dtype != np.uint8:
        values = pixels.astype(np.float64)
        if config.std is not None:
            values = values * np.asarray(config.std)[: pixels.shape[-1]]
        if config.mean is not None:
            values = values + np.asarray(config.mean)[: pixels.shape[-1]]
        if config.scale:
            values = values / config.scale
        pixels = np.clip(np.nan_to_num(values) + 0.5, 0, 255).astype(np.uint8)
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    elif config.color != "bgr":
        pixels = pixels[..., ::-1]
    return np.ascontiguousarray(pixels)
