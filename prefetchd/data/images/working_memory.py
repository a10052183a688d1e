"""How much memory a decode takes, from the image's header alone, and how much it may take. Pure.

Called by the pipeline before each decode, so that memory is reserved before it is taken. A header that claims more than
the limit makes a bad sample in every budget; a decode within the limit that a stated budget cannot hold is a
`BudgetError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefetchd.data.images.headers.header import ImageHeader

if TYPE_CHECKING:
    from prefetchd.config.options import Color

_CONSTANT_BYTES = 1 << 20
_AVIF_CONSTANT_BYTES = 8 << 20
_JPEG2000_TILE_BYTES, _JPEG2000_COMPONENT_BYTES = 6 << 10, 1152
# Twice the decoded pixels, as a plain JPEG or PNG takes; other formats take up to five times as much a pixel.
LIMIT_BYTES_A_PIXEL = 6
_ALWAYS_ALLOWED_BYTES = 64 << 20


def limit_bytes(max_image_pixels: int) -> int:
    """Return how many bytes of working memory an image may claim."""
    return max(_ALWAYS_ALLOWED_BYTES, LIMIT_BYTES_A_PIXEL * max_image_pixels)


def claimed_bytes(header: ImageHeader, *, shrink_on_load: bool, is_deep: bool = False) -> int:
    """Return the working memory that the header claims, in bytes.

    It follows from the header and options alone, never from the draw of a crop, so that a sample is good or bad in
    every epoch.
    """
    reduced = 8 if shrink_on_load and header.format == "jpeg" else 1
    return _peak_bytes(header, 0, n_out_channels=3, reduced=reduced, item_bytes=2 if is_deep else 1)


def exact_working_bytes(
    header: ImageHeader, n_encoded_bytes: int, *, n_channels: int, dtype: str, reduced: int = 1
) -> int:
    """Return an upper estimate of the peak of an exact decode: as `decode_working_bytes`, for pixels as stored.

    Args:
        header: the image's.
        n_encoded_bytes: of the file; 0 leaves it out.
        n_channels: of the pixels that are wanted.
        dtype: their numpy name.
        reduced: the JPEG reduction.
    """
    stored_bytes = max(1, header.bits // 8)
    # OpenCV may decode grey with alpha, and palettes, to four channels.
    n_stored = 4 if header.format != "jpeg" and (header.channels == 2 or header.has_palette) else header.channels
    peak = _peak_bytes(header, n_encoded_bytes, n_out_channels=n_stored, reduced=reduced, item_bytes=stored_bytes)
    n_pixels = -(-header.width_px // reduced) * -(-header.height_px // reduced)
    decoded = n_pixels * n_stored * stored_bytes
    # Turned upright, or without channels that were not asked for, or in the dtype that is wanted.
    converted = n_pixels * n_channels * max(stored_bytes, {"uint8": 1, "uint16": 2}.get(dtype, 4))
    if header.format == "tiff":
        # The numbers in OpenCV and here, and a strip or tile, of bytes as colours too; or sums of differences. All that
        # beside a copy of the file with another directory.
        across = header.tile_width_px or header.width_px
        padded = -(-header.width_px // across) * across * header.height_px * n_stored * stored_bytes
        block = header.block_px * header.channels * (stored_bytes + (4 if stored_bytes == 1 else stored_bytes))
        peak = n_encoded_bytes + max(2 * padded + block + min(n_encoded_bytes, block), 3 * padded)
        converted += padded
    constant = _AVIF_CONSTANT_BYTES if header.format == "avif" else 0
    return n_encoded_bytes + max(peak, decoded + converted) + constant + _CONSTANT_BYTES


def decode_working_bytes(
    header: ImageHeader, n_encoded_bytes: int, *, color: Color, reduced: int, is_deep: bool = False
) -> int:
    """Return an upper estimate of the private memory at the peak of a decode, in bytes.

    The encoded file in its buffer (`n_encoded_bytes`) and the returned pixels are part of it.

    The factors were measured with OpenCV 5.0, each kind in a process of its own. Every decode ends with two copies of
    the pixels, since OpenCV's matrix is copied into numpy's memory. For large images the estimate is 1.01 to 1.75 times
    the peak.
    """
    n_out_channels = 1 if color == "gray" else 3
    constant = _AVIF_CONSTANT_BYTES if header.format == "avif" else 0
    item_bytes = 2 if is_deep else 1
    peak = _peak_bytes(header, n_encoded_bytes, n_out_channels=n_out_channels, reduced=reduced, item_bytes=item_bytes)
    return n_encoded_bytes + peak + constant + _CONSTANT_BYTES


def _peak_bytes(
    header: ImageHeader, n_encoded_bytes: int, *, n_out_channels: int, reduced: int, item_bytes: int
) -> int:
    n_delivered = -(-header.width_px // reduced) * -(-header.height_px // reduced) * n_out_channels * item_bytes
    return int(n_delivered + max(n_delivered, _codec_bytes(header, n_encoded_bytes, n_out_channels)))


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
            # libtiff holds a strip or tile as stored and as RGBA, and a copy of what is compressed. It can be the whole
            # image, or more.
            stored = max(header.channels * header.bits / 8, 1)
            widened = max(header.channels - n_out_channels, 0)
            block = header.block_px * (stored + widened + 4 * max(1, header.bits // 8))
            is_compressed = header.compression != "uncompressed"
            return block + is_compressed * min(n_encoded_bytes, 2 * header.block_px * stored)
        case "jpeg2000":
            # OpenJPEG holds each component in 32 bits, a copy of the codestream, and settings for each tile.
            tiles = header.n_tiles * (_JPEG2000_TILE_BYTES + _JPEG2000_COMPONENT_BYTES * header.channels)
            return n_pixels * 6 * header.channels + n_encoded_bytes + tiles
        case "pfm":
            # The numbers as stored, and a copy of colours in another order.
            return n_pixels * (24 if header.channels == 3 else 7)
        case "hdr":
            # The numbers, and their pixels before they are copied. The file is in memory once more.
            return n_pixels * 13 + n_encoded_bytes
        case "avif":
            planes = 20 + 16 * (header.channels == 4)
            return n_pixels * planes * (1.25 if header.bits > 8 else 1)
        case "sunraster":
            # Grey ones are decoded to colours first.
            return n_pixels * 6.0 if header.channels == 1 else 0.0
        case "bmp" | "pbm" | "pgm" | "ppm" | "pam":
            return 0.0
