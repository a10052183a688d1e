"""Choosing the parser of an encoded image by its first bytes. Pure.

Called before any pixel is decoded: the pixel limit, the memory budget and the JPEG reduction follow from the header's
numbers alone. No parser raises on garbage, or allocates in proportion to what a header claims.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from prefetchd.data.images.headers.boxes import read_avif
from prefetchd.data.images.headers.chunks import read_png, read_webp
from prefetchd.data.images.headers.header import ImageHeader
from prefetchd.data.images.headers.jpeg import read_jpeg
from prefetchd.data.images.headers.raster import read_bmp, read_gif
from prefetchd.data.images.headers.tiff import read_tiff

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    Parser = Callable[[memoryview], ImageHeader | None]

_SMALLEST_BYTES = 12


def read_header(data: bytes | bytearray | memoryview | NDArray[np.uint8]) -> ImageHeader | None:
    """Return what the header of the encoded image in `data` says; `data` is bytes, or an array of uint8.

    `None` if the format is none of `FORMATS`, the header is cut short, or its numbers are impossible. Never raises.
    """
    view = memoryview(data)  # type: ignore[arg-type, unused-ignore]
    if len(view) < _SMALLEST_BYTES:
        return None
    parse = _parser(bytes(view[:_SMALLEST_BYTES]))
    if parse is None:
        return None
    try:
        header = parse(view)
    except (struct.error, IndexError):
        return None
    return header if header and header.width_px > 0 and header.height_px > 0 else None


def _parser(start: bytes) -> Parser | None:
    """Return the parser for a file that begins with `start`, the most frequent formats first."""
    if start.startswith(b"\xff\xd8"):
        return read_jpeg
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return read_png
    if start.startswith(b"RIFF") and start.endswith(b"WEBP"):
        return read_webp
    if start.startswith((b"GIF87a", b"GIF89a")):
        return read_gif
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return read_tiff
    if start[4:8] == b"ftyp":
        return read_avif
    if start.startswith(b"BM"):
        return read_bmp
    return None
