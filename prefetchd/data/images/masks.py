"""Masks: label images whose pixels are class numbers, decoded to those numbers and never to colours.

Called in readers. A file gives:

- PNG with a palette (as in PASCAL VOC): the *indices*. OpenCV decodes to colours only, so it gets the file as a grey
  image of the indices: another header, no palette, the same compressed rows.
- grey of 8 or 16 bits: the pixels; of 1, 2 or 4 bits: scaled to 255, as `cv2.imread` gives them.
- PGM or PPM in plain text: the numbers, which `cv2.imread` would scale to 255. PBM: 0 and 255.
- JPEG: grey, and lossy, so class numbers change. Only for pictures that are not classes.
- colour with three equal channels: that channel, of 8 or 16 bits. Any other colour image is a bad sample.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from prefetchd.data.faults import RefusedImage, SampleFault, UndecodableImage
from prefetchd.data.images import decode
from prefetchd.data.images.geometry import same_aspect
from prefetchd.data.images.limits import checked_header
from prefetchd.data.images.resample import Placer
from prefetchd.data.images.working_memory import decode_working_bytes
from prefetchd.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from prefetchd.config.options import Config
    from prefetchd.data.files import FileBuffer
    from prefetchd.data.images.geometry import Geometry
    from prefetchd.data.images.headers.header import ImageHeader
    from prefetchd.data.read_ahead import ReadAhead
    from prefetchd.data.records import Sample
    from prefetchd.data.source import ReserveMemory

_PNG_START = b"\x89PNG\r\n\x1a\n"
_HEADER_END = 33  # of the signature and the chunk IHDR
_BITS_AT, _COLOUR_AT = 24, 25
_PALETTE = 3


class MaskReader:
    """Reads, decodes and places the masks of one configuration. One thread.

    Args:
        config: the options.
        ahead: reads the files ahead; borrowed.
        buffer: takes a file's bytes; borrowed.
        part: the number of the mask among the parts of a sample, to `ahead`.
    """

    def __init__(self, config: Config, ahead: ReadAhead, buffer: FileBuffer, part: int) -> None:
        self._config = config
        self._ahead = ahead
        self._buffer = buffer
        self._part = part
        self._placer = Placer.for_masks(config.image_size, config.resize, config.mask_border)

    def read(
        self, sample: Sample, sample_id: int, geometry: Geometry, reserve: ReserveMemory, path: str
    ) -> NDArray[Any]:
        """Return the sample's mask, placed as its image was; (H, W), uint8 or uint16.

        Raises:
            SampleFault: if it is bad, or of another aspect than the image; it names `path` if that is not empty.
        """
        return self.read_all(sample, sample_id, [geometry], reserve, path)[0]

    def read_all(
        self, sample: Sample, sample_id: int, geometries: Sequence[Geometry], reserve: ReserveMemory, path: str
    ) -> list[NDArray[Any]]:
        """Return the sample's mask as each of the views of its image was placed; see `read`."""
        full_size = geometries[0].full_size
        try:
            data = self._ahead.read(sample_id, sample, self._buffer, reserve, self._part)
            header = checked_header(data, self._config)
            height, width = header.oriented_size
            if not same_aspect((height, width), full_size, are_kept=self._config.cache_image_size is not None):
                raise RefusedImage(
                    f"it is {width}x{height} and the image {full_size[1]}x{full_size[0]} (upright), which is another "
                    "aspect; cut or pad the files alike"
                )
            # As for colour: 16 bits take more than a byte, and a colour image is decoded before it is refused.
            is_deep = header.bits > 8 and header.channels > 2
            working_bytes = decode_working_bytes(header, len(data), color="rgb", reduced=1, is_deep=is_deep)
            self._ahead.make_room(working_bytes)
            reserve(working_bytes)
            mask = decode_mask(data, header)
        except SampleFault as fault:
            if path:
                fault.reason = f"its mask {one_line(path)[-200:]}: {fault.reason}"
            raise
        targets = [np.empty(self._config.image_size, mask.dtype) for _ in geometries]
        for geometry, target in zip(geometries, targets, strict=True):
            self._placer.place(mask, geometry, geometry.crop_in(height, width), target)
        return targets


def decode_mask(data: memoryview, header: ImageHeader) -> NDArray[Any]:
    """Return the mask in the encoded `data`: (H, W), uint8, or uint16 for 16 bits.

    Raises:
        UndecodableImage: if it does not decode, or is a colour image.
        MemoryError: if there is not enough memory.
    """
    if header.is_float:
        raise RefusedImage(f"the mask is a {header.format.upper()} of floating-point numbers; a mask has integers")
    if header.format == "png" and data[_COLOUR_AT] == _PALETTE:
        bits = data[_BITS_AT]
        indices = decode.decode_image(without_palette(data), header, color="gray", reduction=1)
        # OpenCV scales 1, 2 and 4 bits to the full range, so the highest index became 255.
        return indices if bits == 8 else indices // np.uint8(255 // (2**bits - 1))
    if header.format == "jpeg" or header.channels <= 2:
        if header.bits > 8:
            return _decode_deep(data, header)
        return unscaled(decode.decode_image(data, header, color="gray", reduction=1), header)
    # Cut to 8 bits, the channels would be equal where their high bytes are, and class numbers others.
    pixels = decode.decode_image(data, header, color="bgr", reduction=1, is_deep=header.bits > 8)
    blue, green, red = cv2.split(pixels)
    if not (np.array_equal(blue, green) and np.array_equal(blue, red)):
        raise UndecodableImage(
            f"the mask is a {header.format.upper()} in colour; a mask has one channel, or a palette (PNG)"
        )
    mask = _checked_numbers(np.asarray(blue))
    return mask if header.bits > 8 else unscaled(mask, header)


def unscaled(pixels: NDArray[Any], header: ImageHeader) -> NDArray[Any]:
    """Undo OpenCV's scaling of a plain-text PGM or PPM, from 0 to its largest number, to 0 to 255."""
    if header.scaled_from in (0, 255):
        return pixels
    numbers = np.arange(header.scaled_from + 1)
    table = np.zeros(256, np.uint8)
    table[numbers * 255 // header.scaled_from] = numbers
    numbers_again: NDArray[Any] = table[pixels]
    return numbers_again


def _decode_deep(data: memoryview, header: ImageHeader) -> NDArray[Any]:
    """Decode 16-bit grey. The 8-bit decode comes first, since it reports what is wrong with a bad file."""
    decode.decode_image(data, header, color="gray", reduction=1)
    image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    if image is None:
        raise MemoryError(f"no memory to decode {header.pixels} pixels of 16 bits")
    return _checked_numbers(image)


def _checked_numbers(image: NDArray[Any]) -> NDArray[Any]:
    if image.dtype not in (np.uint8, np.uint16):
        raise UndecodableImage(f"the mask's pixels are {image.dtype}; they must be integers of 8 or 16 bits")
    return image


def without_palette(data: memoryview) -> bytes:
    """Return the palette PNG in `data` as a grey PNG of its indices: the same rows under another header."""
    head = bytearray(data[12:29])  # "IHDR" and its 13 bytes
    head[_COLOUR_AT - 12] = 0
    parts = [_PNG_START, bytes(data[8:12]), bytes(head), zlib.crc32(head).to_bytes(4, "big")]
    position = _HEADER_END
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if bytes(data[position + 4 : position + 8]) in (b"IDAT", b"IEND", b"eXIf"):
            parts.append(bytes(data[position:end]))
        position = end
    return b"".join(parts)
