"""How much memory a decode takes, from the image's header alone. Pure.

Called by the pipeline before each decode, so that memory is reserved before it is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefetchd.data.images.headers.header import ImageHeader

if TYPE_CHECKING:
    from prefetchd.config.options import Color

_CONSTANT_BYTES = 1 << 20
_AVIF_CONSTANT_BYTES = 8 << 20


def decode_working_bytes(header: ImageHeader, n_encoded_bytes: int, *, color: Color, reduced: int) -> int:
    """Return an upper estimate of the private memory at the peak of a decode, in bytes.

    The encoded file in its buffer (`n_encoded_bytes`) and the returned pixels are part of it.

    The factors were measured with OpenCV 5.0, each kind in a process of its own. Every decode ends with two copies of
    the pixels, since OpenCV's matrix is copied into numpy's memory. For large images the estimate is 1.01 to 1.75 times
    the peak, except for TIFF in small strips (up to 11 times): only the directory's strip sizes could say more.
    """
    n_out_channels = 1 if color == "gray" else 3
    n_delivered = -(-header.width_px // reduced) * -(-header.height_px // reduced) * n_out_channels
    codec = _codec_bytes(header, n_encoded_bytes, n_out_channels)
    return int(n_encoded_bytes + n_delivered + max(n_delivered, codec) + _CONSTANT_BYTES)


def _codec_bytes(header: ImageHeader, n_encoded_bytes: int, n_out_channels: int) -> float:
    """Return what the codec takes besides the delivered pixels while it works."""
    n_pixels = header.pixels
    match header.format:
        case "jpeg":
            if not header.progressive:
                return 0.0
            # All coefficients, 16 bits each, in blocks of up to 4 x 8 pixels a side.
            padded = (header.width_px + 32) * (header.height_px + 32)
            return 2 * header.samples_per_px * padded
        case "png":
            if header.animated:
                return n_pixels * 16 * header.bits / 8
            # Interlaced: libpng keeps all rows as stored.
            return n_pixels * header.channels * header.bits / 8 if header.progressive else 0.0
        case "webp":
            lossless_or_alpha = header.channels == 4 or header.samples_per_px == 4.0
            return n_pixels * (header.channels + 4 * lossless_or_alpha + 4 * header.animated)
        case "gif":
            return n_pixels * 6
        case "tiff":
            # libtiff holds a strip or tile as stored, and as RGBA: either can be the whole image.
            stored = max(header.channels * header.bits / 8, 1)
            widened = max(header.channels - n_out_channels, 0)
            whole = n_pixels * (stored + widened + 4 * max(1, header.bits // 8))
            return whole + min(n_encoded_bytes, 2 * n_pixels * stored)  # a compressed strip is copied
        case "avif":
            planes = 20 + 16 * (header.channels == 4)
            return n_pixels * planes * (1.25 if header.bits > 8 else 1) + _AVIF_CONSTANT_BYTES
        case "bmp":
            return 0.0
