"""The numbers in the first directory of a TIFF file, and the orientation in EXIF, which is such a file inside another.

Used by `image_header` for TIFF and for all formats that carry EXIF. Pure; what is cut short is `struct.error` or has no
tags, and nothing is allocated in proportion to what a directory claims.
"""

from __future__ import annotations

import struct

_MAX_ENTRIES = 4096


def tiff_tags(data: memoryview) -> dict[int, int]:
    """The first value of each whole-number tag in the first directory of a TIFF (classic or Big)."""
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
    """The orientation in an EXIF block that starts at its TIFF header; 1 if it has none."""
    try:
        value = tiff_tags(exif).get(0x112, 1)
    except struct.error:
        return 1
    return value if 1 <= value <= 8 else 1
