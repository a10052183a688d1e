"""Headers at fixed offsets: GIF and BMP. Pure."""

from __future__ import annotations

import struct

from prefetchd.data.images.headers.header import ImageHeader


def read_gif(data: memoryview) -> ImageHeader:
    """Return the canvas, which the first frame is drawn on."""
    width, height = struct.unpack_from("<HH", data, 6)
    return ImageHeader("gif", width, height, 3, animated=True)


def read_bmp(data: memoryview) -> ImageHeader | None:
    """Read the information header; a negative height means that the rows go from top to bottom."""
    (n_header,) = struct.unpack_from("<I", data, 14)
    if n_header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    elif 16 <= n_header <= 4096:
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
    else:
        return None
    if bits not in (1, 2, 4, 8, 16, 24, 32):
        return None
    channels = 4 if bits == 32 else 3
    return ImageHeader("bmp", width, abs(height), channels, samples_per_px=bits / 8)
