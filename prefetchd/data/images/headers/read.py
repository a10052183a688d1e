"""Choosing the parser of an encoded image by its first bytes. Pure.

Called before any pixel is decoded: the pixel limit, the memory budget and the JPEG reduction follow from the header's
numbers alone. No parser raises on garbage, or allocates in proportion to what a header claims.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from prefetchd.data.images.headers.boxes import read_avif, read_codestream, read_jp2
from prefetchd.data.images.headers.chunks import read_png, read_webp
from prefetchd.data.images.headers.header import ImageHeader
from prefetchd.data.images.headers.jpeg import read_jpeg
from prefetchd.data.images.headers.raster import read_bmp, read_gif, read_sunraster
from prefetchd.data.images.headers.text import read_hdr, read_netpbm, read_pam, read_pfm
from prefetchd.data.images.headers.tiff import read_tiff

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Parser = Callable[[memoryview], ImageHeader | None]
_SMALLEST_BYTES = 8  # of a PBM with one pixel
_START_BYTES = 12
# The first bytes of each format, the most frequent formats first.
_SIGNATURES: tuple[tuple[bytes, Parser], ...] = (
    (rb"\xff\xd8\xff", read_jpeg),
    (rb"\x89PNG\r\n\x1a\n", read_png),
    (rb"RIFF....WEBP", read_webp),
    (rb"GIF8[79]a", read_gif),
    (rb"II[*+]\0|MM\0[*+]", read_tiff),
    (rb"....ftyp", read_avif),
    (rb"BM", read_bmp),
    (rb"P[1-6]\s", read_netpbm),
    (rb"P7[\r\n]", read_pam),
    (rb"P[fF]\n", read_pfm),
    (rb"\0\0\0\x0cjP  \r\n\x87\n", read_jp2),
    (rb"\xff\x4f\xff\x51", read_codestream),
    (rb"#\?R(GBE|ADIANCE)", read_hdr),
    (rb"\x59\xa6\x6a\x95", read_sunraster),
)
_PARSERS = tuple((re.compile(start, re.DOTALL).match, parse) for start, parse in _SIGNATURES)


def read_header(data: bytes | bytearray | memoryview | NDArray[np.uint8]) -> ImageHeader | None:
    """Return what the header of the encoded image in `data` says; `data` is bytes, or an array of uint8.

    `None` if the format is none of `FORMATS`, the header is cut short, or its numbers are impossible. Never raises.
    """
    view = memoryview(data)  # type: ignore[arg-type, unused-ignore]
    if len(view) < _SMALLEST_BYTES:
        return None
    parse = parser_of(bytes(view[:_START_BYTES]))
    if parse is None:
        return None
    try:
        header = parse(view)
    except (struct.error, IndexError):
        return None
    return header if header and header.width_px > 0 and header.height_px > 0 else None


def parser_of(start: bytes) -> Parser | None:
    """Return the parser for a file that begins with `start`; `None` if it is of no known format."""
    return next((parse for matches, parse in _PARSERS if matches(start)), None)
