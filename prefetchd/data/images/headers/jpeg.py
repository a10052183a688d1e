"""The header of a JPEG (ITU-T T.81, annex B). Pure.

Segments are walked, not searched: thumbnails contain start-of-frame markers of their own. The walk is bounded, so that
a file of millions of empty segments, or of zeros, costs milliseconds.
"""

from __future__ import annotations

import re

from prefetchd.data.images.headers.header import ImageHeader
from prefetchd.data.images.headers.tiff import exif_orientation

_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_SEQUENTIAL = frozenset((0xC0, 0xC1))  # and Huffman coded
_END_OF_IMAGE, _START_OF_SCAN, _APP1 = 0xD9, 0xDA, 0xE1
_CODINGS = {
    0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive", 0xC3: "lossless",
    0xC9: "arithmetic coding", 0xCA: "progressive arithmetic coding", 0xCB: "lossless arithmetic coding",
}  # fmt: skip
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_MAX_SEGMENTS = 1 << 16
_MAX_GARBAGE_BYTES = 1 << 20


def read_jpeg(data: memoryview) -> ImageHeader | None:
    """Walk the segments as far as the first scan."""
    end = len(data)
    position = 2
    orientation = 0
    frame: tuple[int, int, int, int, int, float, int] | None = None
    rows_at = n_garbage = 0
    for _ in range(_MAX_SEGMENTS):
        if position >= end - 3:
            return None
        marker = data[position + 1]
        if data[position] != 0xFF or marker in (0x00, 0xFF):
            # Fill bytes, and garbage between segments, which libjpeg skips too.
            found = _MARKER.search(data, position, position + _MAX_GARBAGE_BYTES - n_garbage + 2)
            if found is None:
                return None
            n_garbage += found.start() - position
            position = found.start()
            continue
        if marker in _WITHOUT_LENGTH:
            position += 2
            continue
        if marker == _END_OF_IMAGE:
            return None
        body = position + 4
        length = (data[position + 2] << 8) | data[position + 3]
        if length < 2:
            return None
        if marker in _FRAMES:
            frame, rows_at = (marker, *_read_frame(data, body)), body + 1
        elif marker == _APP1 and not orientation and bytes(data[body : body + 6]) == b"Exif\0\0":
            orientation = exif_orientation(data[body + 6 : position + 2 + length])
        elif marker == _START_OF_SCAN:
            if frame is None:
                return None
            kind, bits, height, width, channels, samples, unit_rows = frame
            if not samples:
                return None
            several_scans = kind in _PROGRESSIVE or data[body] < channels
            return ImageHeader(
                "jpeg",
                width,
                height,
                channels,
                bits,
                several_scans,
                orientation or 1,
                samples,
                scan_at=position,
                rows_at=0 if several_scans or kind not in _SEQUENTIAL else rows_at,
                unit_rows=unit_rows,
                compression=_CODINGS.get(kind, "hierarchical"),
            )
        position += 2 + length
    return None


def _read_frame(data: memoryview, body: int) -> tuple[int, int, int, int, float, int]:
    """Return (bits, height, width, components, samples a pixel, rows a unit) of a frame header.

    The samples are 0 if the frame is impossible.
    """
    bits, channels = data[body], data[body + 5]
    height = (data[body + 1] << 8) | data[body + 2]
    width = (data[body + 3] << 8) | data[body + 4]
    if channels == 1:  # whose sampling factors do not change the size
        return bits, height, width, 1, 1.0, 32
    total = across_max = down_max = 0
    for at in range(body + 7, body + 7 + 3 * channels, 3):
        across, down = data[at] >> 4, data[at] & 15
        if not (1 <= across <= 4 and 1 <= down <= 4):
            return bits, height, width, channels, 0.0, 8
        total += across * down
        across_max, down_max = max(across_max, across), max(down_max, down)
    samples = total / (across_max * down_max) if total else 0.0
    return bits, height, width, channels, samples, 8 * down_max
