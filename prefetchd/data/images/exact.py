"""Pixels as a configuration wants them: of which type and channels, whether a header can give them, and the decode.

Called in readers. Two kinds of configuration:

- *Converted*: `rgb`, `bgr` or `gray` of 8 bits, or of 16 (`dtype="uint16"`). `decode` makes these of any file.
- *Exact*: `color="unchanged"`, or alpha (`channels=4`). The numbers and channels are those of the file. A file with
  other channels, or with numbers that the dtype cannot hold exactly, is a bad sample: nothing is scaled or cut.

Channels come in the order of the file: colours as red, green, blue, then alpha; those of a TIFF as stored. A palette
gives its colours. Grey of 1, 2 or 4 bits is scaled to 255, as `cv2.imread` does. EXIF orientation is applied, which
`cv2.IMREAD_UNCHANGED` does not.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from prefetchd.data.faults import RefusedImage, UndecodableImage
from prefetchd.data.images import decode, tiff_samples
from prefetchd.data.images.masks import unscaled
from prefetchd.data.images.working_memory import claimed_bytes, decode_working_bytes, exact_working_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Color, Config
    from prefetchd.data.images.headers.header import ImageHeader

# Formats whose header tells how many channels are decoded. Palettes may have alpha, and BMP and GIF are seldom exact.
_CHANNELS_KNOWN = frozenset(("jpeg", "png", "tiff", "webp", "jpeg2000", "pgm", "ppm", "pam", "pfm", "hdr"))
_BITS_TAKEN = {"jpeg2000": range(9, 17)}  # where 16 bits are wanted: OpenCV gives the numbers as they are


@dataclass(frozen=True, slots=True)
class Wanted:
    """The pixels that a configuration places.

    Attributes:
        color: their order.
        n_channels: of each; an image of one has the shape (H, W), others (H, W, n_channels).
        dtype: numpy name: uint8, uint16 or float32.
        is_exact: whether they are those of the file.
        delivered: the option `dtype`, for errors.
    """

    color: Color
    n_channels: int
    dtype: str
    is_exact: bool
    delivered: str

    @classmethod
    def of(cls, config: Config) -> Wanted:
        """Return what `config` wants."""
        return cls(config.color, config.n_channels, config.pixel_dtype, config.is_exact, config.dtype)

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of an image: OpenCV's, without a dimension for one channel."""
        return (height, width) if self.n_channels == 1 else (height, width, self.n_channels)

    def claimed_bytes(self, header: ImageHeader, *, shrink_on_load: bool) -> int:
        """Return the working memory that the header claims: see `working_memory.claimed_bytes`."""
        if not self.is_exact:
            return claimed_bytes(header, shrink_on_load=shrink_on_load, is_deep=self.dtype == "uint16")
        return self.working_bytes(header, 0, 8 if shrink_on_load and header.format == "jpeg" else 1)

    def working_bytes(self, header: ImageHeader, n_encoded_bytes: int, reduced: int) -> int:
        """Return an upper estimate of the private memory at the peak of `decode`, in bytes."""
        if self.is_exact:
            return exact_working_bytes(
                header, n_encoded_bytes, n_channels=self.n_channels, dtype=self.dtype, reduced=reduced
            )
        is_deep = self.dtype == "uint16"
        return decode_working_bytes(header, n_encoded_bytes, color=self.color, reduced=reduced, is_deep=is_deep)

    def check(self, header: ImageHeader) -> None:
        """Raise `RefusedImage` if the image cannot be made as wanted, as far as its header tells."""
        name = header.format.upper()
        if self.is_exact:
            if header.format == "jpeg" and header.channels == 4 == self.n_channels:
                raise RefusedImage(
                    "the JPEG has 4 channels of ink (CMYK), which OpenCV makes colours; convert it to TIFF"
                )
            if header.channels != self.n_channels and header.format in _CHANNELS_KNOWN and not header.has_palette:
                raise RefusedImage(self._other_channels(name, header.channels))
        elif self.dtype == "uint8":
            return  # any image is converted
        if self.dtype == "uint16":
            fits = header.bits in _BITS_TAKEN.get(header.format, (16,)) and not header.is_float
            wanted = "16 bits"
        elif self.dtype == "uint8":
            fits = header.bits == 8 or (header.bits < 8 and header.format != "tiff")
            fits, wanted = fits and not header.is_float, "8 bits"
        else:
            integers = header.bits in (8, 16) or header.bits in _BITS_TAKEN.get(header.format, ())
            fits, wanted = (header.bits == 32 if header.is_float else integers), "8 or 16 bits, or float32"
        if not fits or (header.is_signed and self.dtype != "float32"):
            signed = "signed integers of " if header.is_signed else ""
            kind = "floating-point numbers of " if header.is_float else signed
            bits = f"{kind}{header.bits} bit{'s' if header.bits != 1 else ''}"
            raise RefusedImage(
                f"the {name} has {bits}, and dtype={self.delivered!r} keeps {wanted} exactly; {self._remedy(header)}"
            )

    def _remedy(self, header: ImageHeader) -> str:
        if header.is_float or header.is_signed:
            fits = header.bits == 32 if header.is_float else header.bits <= 16
            return "give dtype='float32' and channels" if fits else "convert it to float32"
        if header.bits == 8:
            return "give dtype='uint8', or convert it to 16 bits"
        return "give dtype='uint16' or 'float32'" if header.bits == 16 else "convert it to 8 or 16 bits"

    def _other_channels(self, name: str, found: int) -> str:
        remedy = "leave channels out to convert all to one color, or convert the file"
        return f"the {name} has {_channels(found)}, and channels={self.n_channels}; {remedy}"

    def decode(
        self, data: memoryview, header: ImageHeader, *, reduction: int = 1, n_rows: int | None = None
    ) -> NDArray[Any]:
        """Return the pixels of the encoded image in `data`, upright; arguments as for `decode.decode_image`.

        Raises:
            RefusedImage, UndecodableImage: if it does not decode, or is not as wanted.
            MemoryError: there was not enough memory.
        """
        if not self.is_exact:
            return self._converted(data, header, self.color, reduction, n_rows)
        if header.format == "jpeg":
            image = self._converted(data, header, "gray" if header.channels == 1 else "rgb", reduction, n_rows)
        else:
            decode.check_whole(data, header)
            try:
                image = _stored(data, header)
            except cv2.error as error:
                raise self._undecodable(header, len(data), str(error.err or error)) from None
            except UndecodableImage as fault:
                if not fault.needs_fresh_reader:
                    raise
                raise self._undecodable(header, len(data), "OpenCV refuses it") from None
        found = 1 if image.ndim == 2 else image.shape[2]
        if found != self.n_channels:
            raise UndecodableImage(self._other_channels(header.format.upper(), found), needs_fresh_reader=False)
        if self.color == "bgr":
            image = np.ascontiguousarray(image[..., [2, 1, 0, 3]])
        if image.dtype == self.dtype:
            return image
        if self.dtype != "float32" or image.dtype not in (np.uint8, np.int8, np.uint16, np.int16):
            raise UndecodableImage(
                f"the {header.format.upper()} has numbers of {image.dtype}, which dtype={self.delivered!r} cannot hold "
                "exactly"
            )
        return image.astype(np.float32)

    def _converted(
        self, data: memoryview, header: ImageHeader, color: Color, reduction: int, n_rows: int | None
    ) -> NDArray[Any]:
        deep = self.dtype == "uint16"
        image = decode.decode_image(data, header, color=color, reduction=reduction, n_rows=n_rows, is_deep=deep)
        if deep and image.dtype != np.uint16:
            raise UndecodableImage(f"the {header.format.upper()} decodes to {image.dtype}, and dtype is uint16")
        return image

    def _undecodable(self, header: ImageHeader, n_bytes: int, reason: str) -> UndecodableImage:
        return decode.undecodable(header, self.working_bytes(header, n_bytes, 1), " ".join(reason.split()))


def _stored(data: memoryview, header: ImageHeader) -> NDArray[Any]:
    """Return the numbers of any image but a JPEG, upright, with their channels in the order of the file."""
    if header.format == "tiff":
        try:
            if tiff_samples.holds_numbers(data):
                return _upright(tiff_samples.read_samples(data, header), header.orientation)
        except (struct.error, OverflowError):
            raise RefusedImage("the TIFF is cut short, or its directory damaged") from None
        return _tiff_colours(data, header)
    if header.format == "pfm":
        return _pfm(data, header)
    if header.format == "pam":  # whose kind of tuples would decide how OpenCV changes them
        return np.array(_plain_numbers(data, header, ">u2" if header.bits > 8 else "u1"), f"u{header.bits // 8}")
    if header.format == "sunraster":  # which is black, unchanged
        return decode.decode_image(data, header, color="gray" if header.channels == 1 else "rgb", reduction=1)
    image: Any = decode.imdecode(np.frombuffer(data, np.uint8), header, cv2.IMREAD_UNCHANGED)
    if image is None or not image.size:
        raise UndecodableImage("OpenCV refuses it")
    if header.channels == 2 and image.ndim == 3 and image.shape[2] == 4:
        image = np.ascontiguousarray(image[..., [0, 3]])  # OpenCV repeats the grey three times before its alpha
    elif image.ndim == 3 and image.shape[2] in (3, 4):
        code = cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        image = cv2.cvtColor(image, code, dst=image)
    return _upright(unscaled(image, header), header.orientation)


def _tiff_colours(data: memoryview, header: ImageHeader) -> NDArray[Any]:
    """Return the colours of a TIFF whose numbers are not colours: a palette, or lossy; OpenCV turns it upright."""
    if header.bits > 8 or header.channels not in (1, 3) or tiff_samples.is_white_zero(data):
        raise RefusedImage(f"the TIFF ({header.describe()}) cannot be kept as it is; convert it to PNG")
    return decode.decode_image(data, header, color="gray" if header.channels == 1 else "rgb", reduction=1)


def _pfm(data: memoryview, header: ImageHeader) -> NDArray[Any]:
    """Return the numbers of a PFM, whose rows go from bottom to top. OpenCV would multiply them by the scale."""
    start = header.least_bytes - 4 * header.pixels * header.channels
    scale = float(bytes(data[:start]).split()[-1])
    return np.ascontiguousarray(_plain_numbers(data, header, "<f4" if scale < 0 else ">f4")[::-1], np.float32)


def _plain_numbers(data: memoryview, header: ImageHeader, dtype: str) -> NDArray[Any]:
    """Return the numbers behind a header, rows after rows, as a view of `data`."""
    n_numbers = header.pixels * header.channels
    start = header.least_bytes - np.dtype(dtype).itemsize * n_numbers
    shape = (header.height_px, header.width_px, header.channels)[: 2 if header.channels == 1 else 3]
    return np.frombuffer(data, dtype, n_numbers, start).reshape(shape)


def _upright(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return the image as shown, by its EXIF orientation (1 to 8)."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _channels(number: int) -> str:
    return f"{number} channels" if number != 1 else "1 channel"
