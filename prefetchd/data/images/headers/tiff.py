"""The first directory of a TIFF file, and the orientation in an EXIF block, which has the layout of such a file. Pure.

Used for TIFF, and by the parsers of formats that carry EXIF. Nothing is allocated in proportion to what a directory
claims.
"""

from __future__ import annotations

import struct

from prefetchd.data.images.headers.header import ImageHeader

_MAX_ENTRIES = 4096
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES = 256, 257, 258, 262, 274, 277
_PALETTE = 3


def read_tiff(data: memoryview) -> ImageHeader | None:
    """Read the first directory, whose image is the one that OpenCV decodes."""
    tags = tiff_tags(data)
    if _WIDTH not in tags or _HEIGHT not in tags:
        return None
    orientation = tags.get(_ORIENTATION, 1)
    has_palette = tags.get(_PHOTOMETRIC) == _PALETTE
    channels = 3 if has_palette else tags.get(_SAMPLES, 1)
    return ImageHeader(
        "tiff",
        tags[_WIDTH],
        tags[_HEIGHT],
        channels,
        8 if has_palette else tags.get(_BITS, 1),
        orientation=orientation if 1 <= orientation <= 8 else 1,
        samples_per_px=float(channels),
    )


def tiff_tags(data: memoryview) -> dict[int, int]:
    """Return the first value of each whole-number tag in the first directory of a TIFF (classic or Big).

    Raises:
        struct.error: if the header is cut short.
    """
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None:
        return {}
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    offset_code, n_offset, n_entry = ("Q", 8, 20) if big else ("I", 4, 12)
    (directory,) = struct.unpack_from(order + offset_code, data, 8 if big else 4)
    count_code, n_count = ("Q", 8) if big else ("H", 2)
    if directory > len(data):
        return {}
    (count,) = struct.unpack_from(order + count_code, data, directory)
    tags: dict[int, int] = {}
    for number in range(min(count, _MAX_ENTRIES)):
        at = directory + n_count + number * n_entry
        if at + n_entry > len(data):
            break
        tag, kind = struct.unpack_from(order + "HH", data, at)
        code = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
        if code is None:
            continue
        (values,) = struct.unpack_from(order + offset_code, data, at + 4)
        where = at + 4 + n_offset
        if values * struct.calcsize(code) > n_offset:
            (where,) = struct.unpack_from(order + offset_code, data, where)
        if where + struct.calcsize(code) <= len(data):
            (tags[tag],) = struct.unpack_from(order + code, data, where)
    return tags


def exif_orientation(exif: memoryview) -> int:
    """Return the orientation in an EXIF block that starts at its TIFF header; 1 if it has none."""
    try:
        value = tiff_tags(exif).get(_ORIENTATION, 1)
    except struct.error:
        return 1
    return value if 1 <= value <= 8 else 1
