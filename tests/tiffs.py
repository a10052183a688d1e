"""TIFFs as programs for remote sensing write them: any channels, strips or tiles, planes, predictors, both orders.

No library of the test environment writes these. The layout follows TIFF 6.0 and the technical notes of its predictors.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FORMATS = {"u": 1, "i": 2, "f": 3}
UNCOMPRESSED, DEFLATE, PACKBITS = 1, 8, 32773


def encode_tiff(
    pixels: NDArray[Any],
    *,
    compression: int = UNCOMPRESSED,
    predictor: int = 1,
    planar: bool = False,
    tile: tuple[int, int] | None = None,
    rows_per_strip: int | None = None,
    order: str = "<",
    big: bool = False,
    photometric: int = 1,
    orientation: int = 1,
) -> bytes:
    """Return (H, W, C) `pixels` as a TIFF."""
    height, width, n_channels = pixels.shape
    tall, wide = tile or (rows_per_strip or height, width)
    planes = [pixels[..., c : c + 1] for c in range(n_channels)] if planar else [pixels]
    blocks = [
        _block(plane[top : top + tall, left : left + wide], (tall, wide) if tile else None, predictor, order)
        for plane in planes
        for top in range(0, height, tall)
        for left in range(0, width, wide)
    ]
    bodies = [_compressed(block, compression) for block in blocks]
    bits, kind = pixels.dtype.itemsize * 8, _FORMATS[pixels.dtype.kind]
    tags: dict[int, list[int]] = {
        256: [width], 257: [height], 258: [bits] * n_channels, 259: [compression], 262: [photometric],
        274: [orientation], 277: [n_channels], 284: [2 if planar else 1], 317: [predictor], 339: [kind] * n_channels,
    }  # fmt: skip
    if n_channels > (3 if photometric == 2 else 1):
        tags[338] = [0] * (n_channels - (3 if photometric == 2 else 1))
    start = 16 if big else 8
    offsets = (start + np.cumsum([0, *map(len, bodies)][:-1])).tolist()
    sizes = [len(body) for body in bodies]
    if tile:
        tags |= {322: [wide], 323: [tall], 324: offsets, 325: sizes}
    else:
        tags |= {273: offsets, 278: [tall], 279: sizes}
    data = b"".join(bodies)
    return _with_directory(data, tags, order, big=big)


def _block(part: NDArray[Any], size: tuple[int, int] | None, predictor: int, order: str) -> bytes:
    if size is not None:
        part = np.pad(part, ((0, size[0] - part.shape[0]), (0, size[1] - part.shape[1]), (0, 0)))
    part = np.ascontiguousarray(part)
    n_bytes = part.dtype.itemsize
    if predictor == 2:
        numbers = part.view(f"u{n_bytes}")
        part = np.concatenate([numbers[:, :1], numbers[:, 1:] - numbers[:, :-1]], axis=1)
    if predictor == 3:
        rows, _, n_channels = part.shape
        planes = part.astype(f">f{n_bytes}").view(np.uint8).reshape(rows, -1, n_bytes).transpose(0, 2, 1)
        steps = np.ascontiguousarray(planes).reshape(rows, -1, n_channels)
        return np.concatenate([steps[:, :1], steps[:, 1:] - steps[:, :-1]], axis=1).tobytes()
    return part.astype(part.dtype.newbyteorder(order)).tobytes()


def _compressed(block: bytes, compression: int) -> bytes:
    if compression == DEFLATE:
        return zlib.compress(block)
    if compression == PACKBITS:
        return b"".join(
            bytes([len(piece) - 1]) + piece for piece in (block[at : at + 128] for at in range(0, len(block), 128))
        )
    return block


def _with_directory(data: bytes, tags: dict[int, list[int]], order: str, *, big: bool) -> bytes:
    code, start, inline = ("Q", 16, 8) if big else ("I", 8, 4)
    body = data + b"\0" * (len(data) % 2)
    entries = []
    for tag, values in sorted(tags.items()):
        kind, item = (3, "H") if max(values) < 1 << 16 and tag not in (273, 279, 324, 325) else (4, "I")
        packed = struct.pack(f"{order}{len(values)}{item}", *values)
        if len(packed) > inline:
            at = start + len(body)
            body += packed + b"\0" * (len(packed) % 2)
            packed = struct.pack(order + code, at)
        entries.append(struct.pack(f"{order}HH{code}", tag, kind, len(values)) + packed.ljust(inline, b"\0"))
    directory = struct.pack(order + ("Q" if big else "H"), len(entries)) + b"".join(entries) + bytes(inline)
    mark = b"II" if order == "<" else b"MM"
    head = struct.pack(order + "H", 43) + struct.pack(order + "HHQ", 8, 0, start + len(body)) if big else b""
    if not big:
        head = struct.pack(order + "HI", 42, start + len(body))
    return mark + head + body + directory
