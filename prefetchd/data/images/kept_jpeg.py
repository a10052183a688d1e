"""Kept images as JPEG, for `cache_format="jpeg"`. Used in readers.

A kept image goes through the encoder and the decoder before anything else is done with it, with a cache or without. So
its pixels are the same in both cases. They follow from the kept image, the quality and OpenCV's version. The folder of
the cache and the digest depend on all three.
"""

# OpenCV's settings: colours at half the resolution (4:2:0), and the integer DCT, which gives the same bits with and
# without SIMD.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Color

_DECODES_RGB = hasattr(cv2, "IMREAD_COLOR_RGB")


class JpegRows:
    """Encodes and decodes the rows of one configuration. One thread.

    Args:
        color: the order of the channels: `rgb`, `bgr` or `gray`.
        quality: of the encoder, 1 to 100.
    """

    def __init__(self, color: Color, quality: int) -> None:
        self._swap = color == "rgb"
        self._encoding = (cv2.IMWRITE_JPEG_QUALITY, quality)
        flags = cv2.IMREAD_GRAYSCALE if color == "gray" else cv2.IMREAD_COLOR
        self._decodes_rgb = self._swap and _DECODES_RGB
        self._flags = cv2.IMREAD_COLOR_RGB if self._decodes_rgb else flags

    def encode(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the bytes of an image of shape (H, W, 3) or (H, W), as an array of shape (n,).

        Raises:
            MemoryError: there was not enough memory.
        """
        try:
            bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if self._swap else image
            done, row = cv2.imencode(".jpg", bgr, self._encoding)
        except cv2.error as error:
            raise MemoryError(f"no memory to encode {image.size} values as JPEG: {error.err}") from None
        if not done:
            raise MemoryError(f"no memory to encode {image.size} values as JPEG")
        return row.reshape(-1)  # type: ignore[return-value, unused-ignore]

    def decode(self, row: NDArray[np.uint8]) -> NDArray[Any] | None:
        """Return the pixels of `encode`'s bytes; `None` if OpenCV refuses them, as it does where memory is short."""
        try:
            image: Any = cv2.imdecode(row, self._flags)
        except cv2.error:
            return None
        if image is not None and self._swap and not self._decodes_rgb:
            cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
        return image  # type: ignore[no-any-return]
