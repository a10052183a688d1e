"""What an encoded image says of itself in its first bytes: format, size, channels, orientation. Pure.

Owns the parsing of headers, and nothing of the pixels. `decode` calls it before any pixel is decoded, so that the pixel
limit, the memory budget and the reduction are settled from numbers, and no memory is taken for an image that lies.
Nothing here raises on garbage, and nothing is allocated in proportion to what a header claims.

JPEG segments are walked, not searched: thumbnails contain start-of-frame markers of their own.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prefetchd.data.images.exif import exif_orientation, tiff_tags

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Format = Literal["jpeg", "png", "webp", "bmp", "gif", "tiff", "avif"]

FORMATS: tuple[Format, ...] = ("jpeg", "png", "webp", "bmp", "gif", "tiff", "avif")

_JPEG_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_JPEG_SEQUENTIAL = frozenset((0xC0, 0xC1))  # and Huffman coded
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_AVIF_CONTAINERS = frozenset((b"meta", b"iprp", b"ipco"))
_MAX_BOXES = 4096

_u32be = struct.Struct(">I").unpack_from
_u32le = struct.Struct("<I").unpack_from


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the first bytes of an encoded image say.

    Attributes:
        format: the container.
        width_px: columns as stored, before any orientation.
        height_px: rows as stored, before any orientation.
        channels: components of a stored pixel (4 for CMYK and for alpha; 3 for a palette).
        bits: bits of one component (8 for a palette).
        progressive: the pixels come in several passes: progressive or multi-scan JPEG, interlaced PNG.
        orientation: EXIF orientation, 1 to 8; 1 is as stored. From 5 the sides are swapped when shown.
        samples_per_px: stored samples a pixel, less than `channels` where a JPEG's colour is subsampled.
        animated: it has, or may have, more than one frame; the first is the image.
        scan_at: offset of a JPEG's first scan, behind its thumbnails.
        rows_at: offset of the two bytes that say how many rows a JPEG has, where its rows are coded from top to bottom
            in one scan, so that a decoder may be told of fewer; 0 otherwise.
        unit_rows: rows that such a JPEG codes together.
    """

    format: Format
    width_px: int
    height_px: int
    channels: int
    bits: int = 8
    progressive: bool = False
    orientation: int = 1
    samples_per_px: float = 3.0
    animated: bool = False
    scan_at: int = 0
    rows_at: int = 0
    unit_rows: int = 8

    @property
    def pixels(self) -> int:
        """Pixels of the image."""
        return self.width_px * self.height_px

    @property
    def oriented_size(self) -> tuple[int, int]:
        """(height, width) of the image as shown, which is how it is decoded."""
        if self.orientation >= 5:
            return self.width_px, self.height_px
        return self.height_px, self.width_px


def read_header(data: bytes | bytearray | memoryview | NDArray[np.uint8]) -> ImageHeader | None:
    """Return what the header of the encoded image in `data` (bytes; an array of uint8) says.

    `None` if the format is none of `FORMATS`, the header is cut short, or its numbers are impossible. Never
    raises, whatever the bytes.
    """
    view = memoryview(data)  # type: ignore[arg-type, unused-ignore]
    if len(view) < 12:
        return None
    try:
        if view[0] == 0xFF and view[1] == 0xD8:
            header = _jpeg(view)
        else:
            start = bytes(view[:12])
            if start.startswith(_PNG_SIGNATURE):
                header = _png(view)
            elif start.startswith(b"RIFF") and start.endswith(b"WEBP"):
                header = _webp(view)
            elif start.startswith((b"GIF87a", b"GIF89a")):
                header = _gif(view)
            elif start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
                header = _tiff(view)
            elif start[4:8] == b"ftyp":
                header = _avif(view)
            elif start.startswith(b"BM"):
                header = _bmp(view)
            else:
                return None
    except (struct.error, IndexError):
        return None
    return header if header and header.width_px > 0 and header.height_px > 0 else None


def _jpeg(data: memoryview) -> ImageHeader | None:
    """Walk the segments as far as the first scan (ITU-T T.81, annex B)."""
    end = len(data)
    position = 2
    orientation = 0
    frame: tuple[int, int, int, int, int, float, int] | None = None
    rows_at = 0
    while position < end - 3:
        marker = data[position + 1]
        if data[position] != 0xFF or marker in (0x00, 0xFF):
            position += 1  # fill bytes, and garbage between segments, which libjpeg passes over too
            continue
        if marker in _JPEG_WITHOUT_LENGTH:
            position += 2
            continue
        if marker == 0xD9:
            return None
        body = position + 4
        length = (data[position + 2] << 8) | data[position + 3]
        if length < 2:
            return None
        if marker in _JPEG_FRAMES:
            frame, rows_at = (marker, *_jpeg_frame(data, body)), body + 1
        elif marker == 0xE1 and not orientation and bytes(data[body : body + 6]) == b"Exif\0\0":
            orientation = exif_orientation(data[body + 6 : position + 2 + length])
        elif marker == 0xDA:
            if frame is None:
                return None
            kind, bits, height, width, channels, samples, unit_rows = frame
            if not samples:
                return None
            several = kind in _JPEG_PROGRESSIVE or data[body] < channels
            return ImageHeader(
                "jpeg",
                width,
                height,
                channels,
                bits,
                several,
                orientation or 1,
                samples,
                scan_at=position,
                rows_at=0 if several or kind not in _JPEG_SEQUENTIAL else rows_at,
                unit_rows=unit_rows,
            )
        position += 2 + length
    return None


def _jpeg_frame(data: memoryview, body: int) -> tuple[int, int, int, int, float, int]:
    """(bits, height, width, components, samples a pixel, rows a unit) of a frame header; 0 samples if impossible."""
    bits, channels = data[body], data[body + 5]
    height = (data[body + 1] << 8) | data[body + 2]
    width = (data[body + 3] << 8) | data[body + 4]
    if channels == 1:  # whose sampling factors mean nothing to the size
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


def _tiff(data: memoryview) -> ImageHeader | None:
    tags = tiff_tags(data)
    if 256 not in tags or 257 not in tags:
        return None
    orientation = tags.get(0x112, 1)
    channels = 3 if tags.get(262) == 3 else tags.get(277, 1)
    bits = 8 if tags.get(262) == 3 else tags.get(258, 1)
    return ImageHeader(
        "tiff",
        tags[256],
        tags[257],
        channels,
        bits,
        orientation=orientation if 1 <= orientation <= 8 else 1,
        samples_per_px=float(channels),
    )


def _png(data: memoryview) -> ImageHeader | None:
    """Walk all chunks: eXIf may follow the pixels (PNG third edition, 11.3.4.5)."""
    if bytes(data[12:16]) != b"IHDR":
        return None
    width, height, bits, kind, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if kind not in _PNG_CHANNELS or width >> 31 or height >> 31:
        return None
    orientation, animated = 1, False
    position = 33
    while position + 8 <= len(data):
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
        "png", width, height, channels, max(bits, 8), bool(interlace), orientation, float(channels), animated
    )


def _webp(data: memoryview) -> ImageHeader | None:
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
    if kind != b"VP8X":
        return None
    flags = data[20]
    width = 1 + (data[24] | data[25] << 8 | data[26] << 16)
    height = 1 + (data[27] | data[28] << 8 | data[29] << 16)
    orientation, samples = 1, 1.5
    position = 30
    for _ in range(_MAX_BOXES):
        if position + 8 > len(data):
            break
        name = bytes(data[position : position + 4])
        (length,) = _u32le(data, position + 4)
        if name == b"EXIF":
            block = data[position + 8 : position + 8 + length]
            orientation = exif_orientation(block[6:] if bytes(block[:6]) == b"Exif\0\0" else block)
        elif name in (b"VP8L", b"ANMF"):
            samples = 4.0
        position += 8 + length + (length & 1)
    channels = 4 if flags & 0x10 else 3
    return ImageHeader("webp", width, height, channels, 8, False, orientation, samples, animated=bool(flags & 0x02))


def _gif(data: memoryview) -> ImageHeader:
    width, height = struct.unpack_from("<HH", data, 6)
    return ImageHeader("gif", width, height, 3, animated=True)


def _bmp(data: memoryview) -> ImageHeader | None:
    (n_header,) = _u32le(data, 14)
    if n_header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    elif 16 <= n_header <= 4096:
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
    else:
        return None
    if bits not in (1, 2, 4, 8, 16, 24, 32):
        return None
    channels = 4 if bits == 32 else 3
    return ImageHeader("bmp", width, abs(height), channels, samples_per_px=bits / 8)


def _avif(data: memoryview) -> ImageHeader | None:
    """The largest extent in the meta box: the primary image is never smaller than its tiles or thumbnails.

    Rotation boxes (irot, imir) are not reported: OpenCV, which decodes, passes over them.
    """
    (n_brands,) = _u32be(data, 0)
    brands = bytes(data[8 : min(n_brands, 512)])
    if b"avif" not in brands and b"avis" not in brands:
        return None
    width = height = 0
    channels, bits = 3, 8
    position, ends, boxes = 0, [len(data)], 0
    while position + 8 <= ends[0] and boxes < _MAX_BOXES:
        boxes += 1
        (length,) = _u32be(data, position)
        name = bytes(data[position + 4 : position + 8])
        body = position + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, body)
            body += 8
        stop = len(data) if length == 0 else position + length
        if stop < body:
            return None
        if name in _AVIF_CONTAINERS:
            position = body + (4 if name == b"meta" else 0)  # meta is a full box: version and flags first
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
