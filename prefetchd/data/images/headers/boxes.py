"""Headers of formats that are boxes within boxes (ISO base media): AVIF and JPEG 2000. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from prefetchd.data.images.headers.header import ImageHeader

_AVIF_CONTAINERS = frozenset((b"meta", b"iprp", b"ipco"))
_MAX_BOXES = 4096
_CODESTREAM = b"\xff\x4f\xff\x51"  # its start, and the marker of its size

_u32be = struct.Struct(">I").unpack_from


def read_avif(data: memoryview) -> ImageHeader | None:
    """Return the largest extent in the meta box: the primary image is never smaller than its tiles or thumbnails.

    Rotation boxes (irot, imir) are not reported, since OpenCV ignores them when it decodes.
    """
    (n_brands,) = _u32be(data, 0)
    brands = bytes(data[8 : min(n_brands, 512)])
    if b"avif" not in brands and b"avis" not in brands:
        return None
    width = height = 0
    channels, bits = 3, 8
    for name, body in _boxes(data, _AVIF_CONTAINERS):
        if name == b"ispe":
            across, down = struct.unpack_from(">II", data, body + 4)
            if across * down > width * height:
                width, height = across, down
        elif name == b"pixi":
            bits = max(bits, *data[body + 5 : body + 5 + data[body + 4]], 8)
        elif name == b"auxC":
            channels = 4
    return ImageHeader("avif", width, height, channels, bits, samples_per_px=3.0, animated=b"avis" in brands)


def read_jp2(data: memoryview) -> ImageHeader | None:
    """Read the codestream in a JP2 file, which decides the size."""
    for name, body in _boxes(data, frozenset()):
        if name == b"jp2c":
            return read_codestream(data[body:])
    return None


def read_codestream(data: memoryview) -> ImageHeader | None:
    """Read the size marker that begins a JPEG 2000 codestream (ITU-T T.800, A.5.1)."""
    if bytes(data[:4]) != _CODESTREAM:
        return None
    right, bottom, left, top, tile_width, tile_height, tiles_left, tiles_top = struct.unpack_from(">8I", data, 8)
    (channels,) = struct.unpack_from(">H", data, 40)
    if right <= left or bottom <= top or not tile_width or not tile_height or not channels:
        return None
    sizes = bytes(data[42 : 42 + 3 * channels])
    if len(sizes) < 3 * channels:
        return None
    bits = max(size & 0x7F for size in sizes[::3]) + 1
    width, height = right - left, bottom - top
    n_tiles = -(-max(right - tiles_left, 0) // tile_width) * -(-max(bottom - tiles_top, 0) // tile_height)
    return ImageHeader(
        "jpeg2000",
        width,
        height,
        channels,
        bits,
        samples_per_px=float(channels),
        is_signed=any(size & 0x80 for size in sizes[::3]),
        n_tiles=n_tiles,
    )


def _boxes(data: memoryview, containers: frozenset[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield (name, where its body starts) of each box, those within `containers` too; ends where a length is wrong."""
    position = 0
    for _ in range(_MAX_BOXES):
        if position + 8 > len(data):
            return
        (length,) = _u32be(data, position)
        name = bytes(data[position + 4 : position + 8])
        body = position + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, body)
            body += 8
        stop = len(data) if length == 0 else position + length
        if stop < body:
            return
        if name in containers:
            position = body + (4 if name == b"meta" else 0)  # meta begins with its version and flags
            continue
        yield name, body
        position = stop
