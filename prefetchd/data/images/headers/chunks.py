"""Headers of formats that are a chain of chunks: PNG and WebP. Pure."""

from __future__ import annotations

import struct

from prefetchd.data.images.headers.header import ImageHeader
from prefetchd.data.images.headers.tiff import exif_orientation

_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_PALETTE = 3
_MAX_PNG_CHUNKS = 1 << 18  # as many as 2 GiB in the smallest pieces that encoders write
_MAX_RIFF_CHUNKS = 4096

_u32be = struct.Struct(">I").unpack_from
_u32le = struct.Struct("<I").unpack_from


def read_png(data: memoryview) -> ImageHeader | None:
    """Walk all chunks: eXIf may follow the pixels (PNG third edition, 11.3.4.5)."""
    if bytes(data[12:16]) != b"IHDR":
        return None
    width, height, bits, kind, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if kind not in _PNG_CHANNELS or width >> 31 or height >> 31:
        return None
    orientation, animated = 1, False
    position = 33
    for _ in range(_MAX_PNG_CHUNKS):
        if position + 8 > len(data):
            break
        (length,) = _u32be(data, position)
        name = bytes(data[position + 4 : position + 8])
        if name == b"eXIf":
            orientation = exif_orientation(data[position + 8 : position + 8 + length])
        elif name == b"acTL":
            animated = True
        elif name == b"IEND":
            break
        position += 12 + length
    channels = _PNG_CHANNELS[kind]
    return ImageHeader(
        "png",
        width,
        height,
        channels,
        max(bits, 8),
        bool(interlace),
        orientation,
        float(channels),
        animated,
        has_palette=kind == _PALETTE,
    )


def read_webp(data: memoryview) -> ImageHeader | None:
    """Read a simple file's bitstream header, or the chunks of an extended one."""
    kind = bytes(data[12:16])
    if kind == b"VP8 ":
        if bytes(data[23:26]) != b"\x9d\x01\x2a":
            return None
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageHeader("webp", width & 0x3FFF, height & 0x3FFF, 3, samples_per_px=1.5)
    if kind == b"VP8L":
        if data[20] != 0x2F:
            return None
        (word,) = _u32le(data, 21)
        channels = 4 if word >> 28 & 1 else 3
        return ImageHeader("webp", (word & 0x3FFF) + 1, (word >> 14 & 0x3FFF) + 1, channels, samples_per_px=4.0)
    return _read_extended_webp(data) if kind == b"VP8X" else None


def _read_extended_webp(data: memoryview) -> ImageHeader | None:
    flags = data[20]
    width = 1 + (data[24] | data[25] << 8 | data[26] << 16)
    height = 1 + (data[27] | data[28] << 8 | data[29] << 16)
    orientation, samples = 1, 1.5
    has_pixels = False
    position = 30
    for _ in range(_MAX_RIFF_CHUNKS):
        if position + 8 > len(data):
            break
        name = bytes(data[position : position + 4])
        (length,) = _u32le(data, position + 4)
        if name == b"EXIF":
            block = data[position + 8 : position + 8 + length]
            orientation = exif_orientation(block[6:] if bytes(block[:6]) == b"Exif\0\0" else block)
        elif name in (b"VP8 ", b"VP8L", b"ANMF"):
            has_pixels = True
            samples = samples if name == b"VP8 " else 4.0
        position += 8 + length + (length & 1)
    if not has_pixels:
        return None
    channels = 4 if flags & 0x10 else 3
    return ImageHeader("webp", width, height, channels, 8, False, orientation, samples, animated=bool(flags & 0x02))
