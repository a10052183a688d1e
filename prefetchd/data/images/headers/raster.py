"""Headers at fixed offsets: GIF, BMP and Sun raster. Pure."""

from __future__ import annotations

import struct

from prefetchd.data.images.headers.header import ImageHeader

_GIF_EXTENSION, _GIF_TRAILER = 0x21, 0x3B
_MAX_GIF_BLOCKS = 1 << 16
_BMP_COMPRESSIONS = {0: "uncompressed", 1: "RLE8", 2: "RLE4", 3: "bit fields", 6: "bit fields"}
_RUN_LENGTHS = (1, 2)


def read_gif(data: memoryview) -> ImageHeader | None:
    """Return the canvas, which the first frame is drawn on; `None` if the file has no frame."""
    width, height = struct.unpack_from("<HH", data, 6)
    flags = data[10]
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    n_blocks = 0
    while data[position] == _GIF_EXTENSION:
        position += 2
        while data[position]:
            position += 1 + data[position]
            n_blocks += 1
            if n_blocks > _MAX_GIF_BLOCKS:
                return None
        position += 1
        n_blocks += 1
        if n_blocks > _MAX_GIF_BLOCKS:
            return None
    if data[position] == _GIF_TRAILER:
        return None
    return ImageHeader("gif", width, height, 3, animated=True)


def read_bmp(data: memoryview) -> ImageHeader | None:
    """Read the information header; a negative height means that the rows go from top to bottom."""
    pixels_at, n_header = struct.unpack_from("<II", data, 10)
    compression = 0
    if n_header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    elif 16 <= n_header < 1 << 31:
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
        if n_header >= 40:
            (compression,) = struct.unpack_from("<I", data, 30)
    else:
        return None
    if bits not in (1, 2, 4, 8, 16, 24, 32):
        return None
    # Runs may leave out all rows but for the code that ends the image.
    n_bytes = 2 if compression in _RUN_LENGTHS else abs(height) * ((width * bits + 31) // 32 * 4)
    return ImageHeader(
        "bmp",
        width,
        abs(height),
        4 if bits == 32 else 3,
        samples_per_px=bits / 8,
        compression=_BMP_COMPRESSIONS.get(compression, f"compression {compression}"),
        least_bytes=pixels_at + n_bytes,
    )


def read_sunraster(data: memoryview) -> ImageHeader | None:
    """Read the eight words of the header; the rows follow a colour map."""
    width, height, bits, _, encoding, _, n_map = struct.unpack_from(">7I", data, 4)
    if bits not in (1, 8, 24, 32) or max(width, height) >> 31:
        return None
    n_row = (width * bits + 15) // 16 * 2
    return ImageHeader(
        "sunraster",
        width,
        height,
        {24: 3, 32: 4}.get(bits, 3 if n_map else 1),
        samples_per_px=bits / 8,
        compression="run lengths" if encoding == 2 else "uncompressed",
        least_bytes=0 if encoding == 2 else 32 + n_map + height * n_row,
    )
