"""The numbers of a TIFF as they are stored: any number of channels, 8, 16 or 32 bits. Called in readers by `exact`.

OpenCV decodes at most four channels, and multiplies colours by their alpha. So libtiff, within OpenCV, gets another
directory for the same strips or tiles: an image of one channel, which OpenCV does not touch.

- Channels side by side (chunky): a row of W pixels with C channels is a row of W x C pixels with one.
- A plane for each channel: an image for each plane.

All compressions without loss that OpenCV's libtiff has work so. Where each number was stored as its difference from the
one before (the predictors of TIFF 6.0 section 14 and of TIFF technical note 3), the directory does not say so, and the
sums are made here: libtiff would add up neighbours of other channels.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from prefetchd.data.faults import RefusedImage, UndecodableImage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.data.images.headers.header import ImageHeader

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES, _PLANAR, _PREDICTOR = 273, 277, 278, 279, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES, _SAMPLE_FORMAT = 322, 323, 324, 325, 339
_OFFSETS = frozenset((_STRIP_OFFSETS, _STRIP_BYTES, _TILE_OFFSETS, _TILE_BYTES))
_COPIED = (_HEIGHT, _COMPRESSION, _FILL_ORDER, _ROWS_PER_STRIP, _TILE_HEIGHT)
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE, _YCBCR = 0, 1, 3, 6
# Without loss, and of bytes: uncompressed, LZW, Deflate, PackBits, LZMA, Zstandard.
_UNCOMPRESSED = 1
_LOSSLESS = frozenset((_UNCOMPRESSED, 5, 8, 32773, 32946, 34925, 50000))
_HORIZONTAL, _FLOATING = 2, 3  # predictors
_MAX_WIDTH_PX = 1 << 20  # of OpenCV
_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}
_KIND = {"H": 3, "I": 4, "Q": 16}
_MAX_ENTRIES = 4096


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of a directory: its kind, how many values, and where the first one is."""

    kind: int
    count: int
    at: int


class TiffDirectory:
    """The first directory of a TIFF, classic or Big, whose values may be looked up.

    Raises:
        struct.error: if the directory is cut short.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.order = "<" if bytes(data[:2]) == b"II" else ">"
        self.is_big = struct.unpack_from(self.order + "H", data, 2)[0] == 43
        self.code, self.inline_bytes, entry_bytes = ("Q", 8, 20) if self.is_big else ("I", 4, 12)
        count_code = "Q" if self.is_big else "H"
        (start,) = struct.unpack_from(self.order + self.code, data, 8 if self.is_big else 4)
        (count,) = struct.unpack_from(self.order + count_code, data, start)
        self._entries: dict[int, _Entry] = {}
        for number in range(min(count, _MAX_ENTRIES)):
            at = start + struct.calcsize("=" + count_code) + number * entry_bytes
            tag, kind = struct.unpack_from(self.order + "HH", data, at)
            (n_values,) = struct.unpack_from(self.order + self.code, data, at + 4)
            where = at + entry_bytes - self.inline_bytes
            if kind in _CODES and n_values * struct.calcsize("=" + _CODES[kind]) > self.inline_bytes:
                (where,) = struct.unpack_from(self.order + self.code, data, where)
            self._entries[tag] = _Entry(kind, n_values, where)

    def __contains__(self, tag: int) -> bool:
        return tag in self._entries

    def values(self, tag: int, most: int = 1 << 12) -> tuple[int, ...]:
        """Return the values of a tag of whole numbers, at most so many; none if there is no such tag."""
        entry = self._entries.get(tag)
        if entry is None or entry.kind not in _CODES:
            return ()
        code = f"{self.order}{min(entry.count, most)}{_CODES[entry.kind]}"
        return struct.unpack_from(code, self._data, entry.at)

    def value(self, tag: int, default: int) -> int:
        """Return the first value of a tag."""
        return next(iter(self.values(tag, 1)), default)

    def part(self, tag: int, part: int, of: int) -> tuple[int, int, int] | None:
        """Return (kind, count, where) of one of `of` equal parts of a tag's values; `None` if they do not divide."""
        entry = self._entries[tag]
        if entry.kind not in _CODES or entry.count % of:
            return None
        count = entry.count // of
        return entry.kind, count, entry.at + part * count * struct.calcsize("=" + _CODES[entry.kind])


def holds_numbers(data: memoryview) -> bool:
    """Return whether `read_samples` reads this TIFF: its numbers are colours or measurements, stored without loss."""
    directory = TiffDirectory(data)
    kind = directory.value(_PHOTOMETRIC, _BLACK_IS_ZERO)
    return directory.value(_COMPRESSION, 1) in _LOSSLESS and kind not in (_WHITE_IS_ZERO, _PALETTE, _YCBCR)


def is_white_zero(data: memoryview) -> bool:
    """Return whether 0 is white: OpenCV turns 8 bits round, and leaves 16 as they are."""
    return TiffDirectory(data).value(_PHOTOMETRIC, _BLACK_IS_ZERO) == _WHITE_IS_ZERO


def read_samples(data: memoryview, header: ImageHeader) -> NDArray[Any]:
    """Return the numbers of a TIFF, (H, W, C) or (H, W) for one channel, as stored: orientation is not applied.

    The dtype is that of the file: uint8, int8, uint16, int16, uint32, int32 or float32.

    Raises:
        RefusedImage: a layout that cannot be kept.
        UndecodableImage: libtiff refuses it.
        MemoryError: there was not enough memory.
    """
    directory = TiffDirectory(data)
    n_channels, height, width = header.channels, header.height_px, header.width_px
    if _TILE_WIDTH in directory and (directory.value(_TILE_WIDTH, 0) < 1 or directory.value(_TILE_WIDTH, 0) % 2):
        raise RefusedImage(
            f"the TIFF has tiles of {directory.value(_TILE_WIDTH, 0)} columns, which must be a multiple of 16"
        )
    bits = directory.values(_BITS) or (1,)
    formats = directory.values(_SAMPLE_FORMAT) or (1,)
    dtype = {(8, 1): "u1", (16, 1): "u2", (32, 1): "u4", (8, 2): "i1", (16, 2): "i2", (32, 2): "i4", (32, 3): "f4"}.get(
        (bits[0], formats[0])
    )
    if dtype is None or len({*bits}) > 1 or len({*formats}) > 1:
        raise RefusedImage(
            f"the TIFF has channels of {', '.join(map(str, sorted({*bits})))} bits and sample formats "
            f"{', '.join(map(str, sorted({*formats})))}; all must be integers of 8 or 16 bits, or float32"
        )
    is_planar = n_channels > 1 and directory.value(_PLANAR, 1) == 2
    n_bytes = np.dtype(dtype).itemsize
    if is_planar or n_channels == 1:
        rewritten = _Rewritten(data, directory, width, 1, bits[0], formats[0])
        if not is_planar:
            return rewritten.decode(0, 1).view(dtype)
        image = np.empty((height, width, n_channels), dtype)
        for channel in range(n_channels):
            image[..., channel] = rewritten.decode(channel, n_channels).view(dtype)
        return image
    predictor = directory.value(_PREDICTOR, 1)
    if predictor == _FLOATING:  # differences of bytes, those of one place of all numbers together
        across = directory.value(_TILE_WIDTH, width)
        whole = -(-width // across) * across  # OpenCV cuts the last tile off, whose numbers are spread over all of it
        rewritten = _Rewritten(data, directory, whole, n_channels * n_bytes, 8, 1, predictor=1)
        return _joined_bytes(rewritten.decode(0, 1), whole, n_channels, dtype, across)[:, :width]
    rewritten = _Rewritten(data, directory, width, n_channels, bits[0], formats[0], predictor=1)
    image = np.ascontiguousarray(rewritten.decode(0, 1)).view(dtype).reshape(height, width, n_channels)
    if predictor == _HORIZONTAL:
        across = directory.value(_TILE_WIDTH, width)
        numbers = image.view(f"u{n_bytes}")
        for left in range(0, width, across):
            part = numbers[:, left : left + across]
            np.cumsum(part, axis=1, dtype=part.dtype, out=part)
    return image


def _joined_bytes(rows: NDArray[Any], width: int, n_channels: int, dtype: str, across: int) -> NDArray[Any]:
    """Return (H, W, C) numbers of rows of bytes in the floating-point predictor's order; it begins anew in each tile.

    The most significant bytes of all numbers of a row come first.
    """
    n_bytes = np.dtype(dtype).itemsize
    image = np.empty((len(rows), width, n_channels), f">{dtype}")
    for left in range(0, width, across):
        part = rows[:, left * n_channels * n_bytes : (left + across) * n_channels * n_bytes]
        steps = part.reshape(len(rows), -1, n_channels)
        sums = np.cumsum(steps, axis=1, dtype=np.uint8).reshape(len(rows), n_bytes, -1)
        joined = np.ascontiguousarray(sums.transpose(0, 2, 1)).view(f">{dtype}")
        image[:, left : left + across] = joined.reshape(len(rows), across, n_channels)
    return image.astype(dtype)


class _Rewritten:
    """A copy of a TIFF with room for a directory of one channel behind it, which is written anew for each plane."""

    def __init__(
        self,
        data: memoryview,
        directory: TiffDirectory,
        width: int,
        widen: int,
        bits: int,
        sample_format: int,
        *,
        predictor: int | None = None,
    ) -> None:
        across = directory.value(_TILE_WIDTH, width)
        self._columns = width * widen
        # OpenCV asks libtiff for uncompressed tiles of bytes as colours, which fails. So two bytes go as one number.
        self._in_pairs = _TILE_WIDTH in directory and bits == 8 and directory.value(_COMPRESSION, 1) == _UNCOMPRESSED
        if self._in_pairs:
            width = -(-width // across) * across
        if width * widen > _MAX_WIDTH_PX:
            raise RefusedImage(
                f"the TIFF has rows of {width * widen} numbers side by side, and OpenCV decodes {_MAX_WIDTH_PX}; "
                "write a plane for each channel"
            )
        self._directory = directory
        self._at = len(data) + len(data) % 2
        self._copy = bytearray(self._at)
        self._copy[: len(data)] = data
        self._numbers = {
            _WIDTH: width * widen,
            _BITS: bits,
            _PHOTOMETRIC: _BLACK_IS_ZERO,
            _SAMPLES: 1,
            _PLANAR: 1,
            _SAMPLE_FORMAT: sample_format,
            _PREDICTOR: directory.value(_PREDICTOR, 1) if predictor is None else predictor,
        }
        if _TILE_WIDTH in directory:
            self._numbers[_TILE_WIDTH] = across * widen
        if self._in_pairs:
            self._numbers |= {_TILE_WIDTH: across * widen // 2, _WIDTH: width * widen // 2, _BITS: 16}
        for tag in _COPIED:
            if tag in directory:
                self._numbers[tag] = directory.value(tag, 0)

    def decode(self, part: int, of: int) -> NDArray[Any]:
        """Decode one of `of` planes of strips or tiles: (H, W * widen)."""
        order, code, inline = self._directory.order, self._directory.code, self._directory.inline_bytes
        kind = _KIND[code]
        entries = {tag: (kind, 1, struct.pack(order + code, value)) for tag, value in self._numbers.items()}
        for tag in _OFFSETS:
            if tag not in self._directory:
                continue
            found = self._directory.part(tag, part, of)
            if found is None:
                raise RefusedImage(f"the TIFF's strips or tiles do not divide into {of} planes")
            its_kind, count, at = found
            size = count * struct.calcsize("=" + _CODES[its_kind])
            is_inline = size <= inline
            value = (
                bytes(self._copy[at : at + size]).ljust(inline, b"\0") if is_inline else struct.pack(order + code, at)
            )
            entries[tag] = its_kind, count, value
        directory = struct.pack(order + ("Q" if self._directory.is_big else "H"), len(entries))
        for tag, (its_kind, count, value) in sorted(entries.items()):
            directory += struct.pack(f"{order}HH{code}", tag, its_kind, count) + value
        self._copy[self._at :] = directory + bytes(inline)
        struct.pack_into(order + code, self._copy, 8 if self._directory.is_big else 4, self._at)
        image: Any = cv2.imdecode(np.frombuffer(self._copy, np.uint8), cv2.IMREAD_UNCHANGED)
        if image is None or image.shape != (self._numbers[_HEIGHT], self._numbers[_WIDTH]):
            raise UndecodableImage("the TIFF's data does not decode: OpenCV refuses it")
        if not self._in_pairs:
            return image  # type: ignore[no-any-return]
        if np.dtype(order + "u2") != np.dtype(np.uint16):
            image = image.byteswap()
        return image.view(np.uint8)[:, : self._columns]  # type: ignore[no-any-return]
