"""`ImageHeader`: what the first bytes of an encoded image say, in the same terms for every format. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Format = Literal[
    "jpeg", "png", "webp", "bmp", "gif", "tiff", "avif",
    "jpeg2000", "pbm", "pgm", "ppm", "pam", "pfm", "hdr", "sunraster",
]  # fmt: skip

FORMATS: tuple[Format, ...] = (
    "jpeg", "png", "webp", "bmp", "gif", "tiff", "avif",
    "jpeg2000", "pbm", "pgm", "ppm", "pam", "pfm", "hdr", "sunraster",
)  # fmt: skip


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
        orientation: EXIF orientation, 1 to 8; 1 is as stored. From 5 on the sides are swapped when shown.
        samples_per_px: stored samples a pixel, fewer than `channels` where a JPEG's colour is subsampled.
        animated: it has, or may have, more than one frame; the first one is the image.
        scan_at: offset of a JPEG's first scan, which follows its thumbnails.
        rows_at: offset of a JPEG's two bytes for the number of rows, if one scan codes them from top to bottom, so
            that a decoder may be given a smaller number; 0 otherwise.
        unit_rows: rows that such a JPEG codes together.
        is_float: its components are floating-point numbers.
        is_signed: its components are integers with a sign.
        has_palette: its pixels are places in a table of colours.
        compression: how its pixels are compressed, in words, where a format has several ways; empty otherwise.
        scaled_from: the largest number of a plain-text PGM or PPM of 8 bits, which OpenCV scales to 255; 0 elsewhere.
        block_px: pixels of the largest strip or tile that a TIFF is decoded by.
        tile_width_px: columns of the tiles that a TIFF is divided into; 0 for strips.
        n_tiles: tiles that a JPEG 2000 is divided into.
        least_bytes: a file with these pixels cannot be shorter; 0 if nothing is known.
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
    is_float: bool = False
    is_signed: bool = False
    has_palette: bool = False
    compression: str = ""
    scaled_from: int = 0
    block_px: int = 0
    tile_width_px: int = 0
    n_tiles: int = 1
    least_bytes: int = 0

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

    def describe(self) -> str:
        """Return size, channels, bits and compression in words."""
        channels = f"{self.channels} channels" if self.channels != 1 else "1 channel"
        of_bits = f" of {self.bits} bit{'s' if self.bits != 1 else ''}" + (
            " (floating point)" if self.is_float else " (signed)" if self.is_signed else ""
        )
        compression = f", {self.compression}" if self.compression else ""
        return f"{self.width_px} x {self.height_px} px, {channels}{of_bits}{compression}"
