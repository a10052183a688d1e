"""Headers of formats that are boxes within boxes (ISO base media): AVIF. Pure."""

from __future__ import annotations

import struct

from prefetchd.data.images.headers.header import ImageHeader

_CONTAINERS = frozenset((b"meta", b"iprp", b"ipco"))
_MAX_BOXES = 4096

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
    position, n_boxes = 0, 0
    while position + 8 <= len(data) and n_boxes < _MAX_BOXES:
        n_boxes += 1
        (length,) = _u32be(data, position)
        name = bytes(data[position + 4 : position + 8])
        body = position + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, body)
            body += 8
        stop = len(data) if length == 0 else position + length
        if stop < body:
            return None
        if name in _CONTAINERS:
            position = body + (4 if name == b"meta" else 0)  # meta begins with its version and flags
            continue
        if name == b"ispe":
            across, down = struct.unpack_from(">II", data, body + 4)
            if across * down > width * height:
                width, height = across, down
        elif name == b"pixi":
            bits = max(bits, *data[body + 5 : body + 5 + data[body + 4]], 8)
        elif name == b"auxC":
            channels = 4
        position = stop
    return ImageHeader("avif", width, height, channels, bits, samples_per_px=3.0, animated=b"avis" in brands)
