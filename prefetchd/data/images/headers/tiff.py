"""The first directory of a TIFF file, and the orientation in an EXIF block, which has the layout of such a file. Pure.

Used for TIFF, and by the parsers of formats that carry EXIF. Nothing is allocated in proportion to what a directory
claims.
"""

from __future__ import annotations

import struct

from prefetchd.data.images.headers.header import ImageHeader

_MAX_ENTRIES = 4096
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES = 256, 257, 258, 259, 262, 274, 277
_ROWS_PER_STRIP, _TILE_WIDTH, _TILE_HEIGHT, _SAMPLE_FORMAT = 278, 322, 323, 339
_PALETTE, _YCBCR = 3, 6  # photometric interpretations
_UNCOMPRESSED = 1
_SIGNED = 2  # of the sample formats
_FLOATS = (3, 6)
_COMPRESSIONS = {
    _UNCOMPRESSED: "uncompressed", 2: "CCITT", 3: "CCITT fax 3", 4: "CCITT fax 4", 5: "LZW", 6: "old-style JPEG",
    7: "JPEG", 8: "Deflate", 32773: "PackBits", 32946: "Deflate", 33003: "JPEG 2000", 34712: "JPEG 2000",
    34887: "LERC", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip


def read_tiff(data: memoryview) -> ImageHeader | None:
    """Read the first directory, whose image is the one that OpenCV decodes."""
    tags = tiff_tags(data)
    if _WIDTH not in tags or _HEIGHT not in tags:
        return None
    width, height = tags[_WIDTH], tags[_HEIGHT]
    orientation = tags.get(_ORIENTATION, 1)
    photometric = tags.get(_PHOTOMETRIC)
    stored_channels, stored_bits = tags.get(_SAMPLES, 1), tags.get(_BITS, 1)
    has_palette = photometric == _PALETTE
    channels = 3 if has_palette else stored_channels
    compression = tags.get(_COMPRESSION, _UNCOMPRESSED)
    if _TILE_WIDTH in tags and _TILE_HEIGHT in tags:
        block_px = tags[_TILE_WIDTH] * tags[_TILE_HEIGHT]
    else:
        block_px = width * (min(height, tags.get(_ROWS_PER_STRIP, height)) or height)
    least_bytes = 0
    if compression == _UNCOMPRESSED and photometric != _YCBCR:  # which may be subsampled
        least_bytes = height * -(-width * stored_channels * stored_bits // 8)
    return ImageHeader(
        "tiff",
        width,
        height,
        channels,
        8 if has_palette else stored_bits,
        orientation=orientation if 1 <= orientation <= 8 else 1,
        samples_per_px=float(channels),
        is_float=tags.get(_SAMPLE_FORMAT, 1) in _FLOATS,
        is_signed=tags.get(_SAMPLE_FORMAT, 1) == _SIGNED,
        has_palette=has_palette,
        compression=_COMPRESSIONS.get(compression, f"compression {compression}"),
        least_bytes=least_bytes,
        block_px=block_px,
        tile_width_px=tags.get(_TILE_WIDTH, 0),
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
