"""From encoded bytes to pixels, with OpenCV.

Owns the choice of the JPEG reduction, the decode itself, and the verdict on bytes that do not decode. The pipeline
calls it in readers, after it has checked the header's limits and reserved the working memory. One thread only: the
caller sets `cv2.setNumThreads(0)`. A decoder that crashes ends the process, and the daemon's pool replaces the reader.

Pixels are those of `cv2.imread(path, IMREAD_COLOR)`: EXIF orientation applied, alpha dropped, 16 bits cut to 8, grey
and palettes made colour. One difference: an image that is cut short is an error here, and not grey below.
"""

# Why OpenCV alone, and no second library for JPEG: three quarters of a photograph's decode are the entropy decoding,
# which libjpeg-turbo does in all of them, and others save 1 to 4 % of the rest (docs/performance.md). Decoding no rows
# below a crop saves more: see `rows_to_decode`.

from __future__ import annotations

import contextlib
import mmap
import os
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from prefetchd.data.faults import RefusedImage, UndecodableImage
from prefetchd.data.images.headers.header import ImageHeader
from prefetchd.data.images.headers.read import parser_of, read_header
from prefetchd.data.images.working_memory import decode_working_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Color, Resize

# Formats that OpenCV decodes in RGB order itself, from 4.11 on. Not AVIF: with alpha, OpenCV 5.0 leaves it in BGR.
_RGB_FORMATS = frozenset(("jpeg", "png", "webp")) if hasattr(cv2, "IMREAD_COLOR_RGB") else frozenset()
_REDUCED_BITS = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
_NO_MEMORY_WORDS = ("insufficient memory", "failed to allocate", "bad_alloc", "out of memory")
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_OTHER_FORMATS = {
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself (git lfs pull)",
    b"<svg": "SVG", b"<": "HTML or XML, as a failed download leaves", b"{": "JSON or the like",
    b"\0\0\0\x0cJXL ": "JPEG XL", b"\xff\x0a": "JPEG XL", b"8BPS": "a Photoshop file",
    b"\0\0\1\0": "an icon", b"%PDF": "a PDF", b"\x1f\x8b": "compressed (gzip)",
    b"PK\3\4": "a zip archive", b"\x93NUMPY": "an array (.npy)",
}  # fmt: skip
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_SEARCH_BYTES = 1 << 16


def silence_decoders() -> None:
    """Stop OpenCV from logging each bad image. Call once in a reader.

    Its codecs (libpng, libjpeg) write to descriptor 2 themselves, and no option stops them: see
    `detach_native_stderr`.
    """
    with contextlib.suppress(AttributeError):
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def detach_native_stderr() -> int:
    """Send what C libraries write to descriptor 2 to /dev/null and return a new descriptor of the real one.

    Call once in a reader, and give the result to `sys.stderr` and `faulthandler`.
    """
    # Swapping the descriptor around each decode would cost four system calls an image and lose a crash's trace.
    real = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 2)
    os.close(null)
    return real


def identify(data: memoryview | NDArray[np.uint8] | bytes) -> ImageHeader:
    """Return the header of the image in `data`.

    Raises:
        RefusedImage: if it is not an image of a known format, or is cut short, as far as the header tells.
    """
    header = read_header(data)
    if header is None:
        start = bytes(data[:64])
        other = _other_format(start)
        if not other and (parser_of(start) is not None or start.startswith(b"RIFF")):
            raise RefusedImage(f"the image is cut short, or its header damaged ({len(data)} bytes)")
        raise RefusedImage(f"not an image of a known format{other} (it starts with {start[:8]!r})")
    if len(data) < header.least_bytes:
        raise RefusedImage(
            f"the {header.format.upper()} file is cut short ({len(data)} bytes, and {header.describe()} take at least "
            f"{header.least_bytes})"
        )
    return header


def _other_format(start: bytes) -> str:
    """Return a name for what is often found in place of an image; empty if it is not known."""
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS:
        return ", but HEIC, which OpenCV does not read: convert it"
    if not start.strip(b"\0"):
        return ", but zeros: it was never written"
    names = [name for magic, name in _OTHER_FORMATS.items() if start.lstrip().startswith(magic)]
    return f", but {names[0]}" if names else ""


def choose_reduction(
    header: ImageHeader, target_h: int, target_w: int, resize: Resize, crop: tuple[int, int] | None = None
) -> int:
    """Return the largest JPEG reduction (1, 2, 4 or 8) after which the resize enlarges nothing.

    Args:
        header: the image's. Formats other than JPEG cannot be reduced: 1.
        target_h: rows of the delivered image.
        target_w: columns of the delivered image.
        resize: with `stretch` and `crop` both sides stay at least the target's. With `pad` one side is enough, since
            the side that fits exactly decides the scale.
        crop: (height, width) of a box in the full image that is taken in place of `resize`. Then the box stays at
            least the target, wherever it lies, so its sides over the reduction are rounded down.
    """
    if header.format != "jpeg":
        return 1
    if crop is not None:
        return next((r for r in (8, 4, 2) if crop[0] // r >= target_h and crop[1] // r >= target_w), 1)
    height, width = header.oriented_size
    for reduction in (8, 4, 2):
        # libjpeg rounds up: 401 rows become 201
        tall = -(-height // reduction) >= target_h
        wide = -(-width // reduction) >= target_w
        if (tall or wide) if resize == "pad" else (tall and wide):
            return reduction
    return 1


def rows_to_decode(header: ImageHeader, reduction: int, bottom: int) -> int:
    """Return how many stored rows to decode for the first `bottom` rows of the image reduced by `reduction`.

    All of them, unless the header lets a decoder stop early. The pixels of the first rows are the same in every bit.
    """
    # libjpeg reads at most one row of colour ahead, to smooth the last row but one of a unit.
    if not header.rows_at or header.orientation > 2:
        return header.height_px
    wanted = (bottom + 1) * reduction
    return min(header.height_px, -(-wanted // header.unit_rows) * header.unit_rows)


def decode_image(
    data: memoryview | NDArray[np.uint8] | bytes,
    header: ImageHeader,
    *,
    color: Color,
    reduction: int,
    n_rows: int | None = None,
    is_deep: bool = False,
) -> NDArray[Any]:
    """Return the pixels of the encoded image in `data`: (H, W, 3), or (H, W) for `gray`; uint8.

    Args:
        data: the whole file. With `n_rows` its buffer is changed during the decode, and restored.
        header: what `identify(data)` returned.
        color: the order of the channels; not `unchanged`.
        reduction: 1, or what `choose_reduction` chose: H and W are the stored sides over it, rounded up.
        n_rows: what `rows_to_decode` returned, if not all rows are wanted. H is then smaller, if `data` is writable.
        is_deep: keep 16 bits: the pixels are uint16 where the file has as many.

    Raises:
        RefusedImage: the image is cut short.
        UndecodableImage: OpenCV refuses it.
        MemoryError: there was not enough memory, which is no fault of the image.
    """
    check_whole(data, header)
    encoded = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    swap = color == "rgb" and header.format not in _RGB_FORMATS
    if color == "gray" and (header.format, header.channels) != ("sunraster", 1):  # which OpenCV decodes to black
        flags = cv2.IMREAD_GRAYSCALE
    elif color != "rgb" or swap:
        flags = cv2.IMREAD_COLOR
    else:
        flags = cv2.IMREAD_COLOR_RGB
    # The reduction's bits alone: IMREAD_REDUCED_COLOR_2 contains IMREAD_COLOR, which excludes IMREAD_COLOR_RGB.
    flags |= _REDUCED_BITS[reduction] | (cv2.IMREAD_ANYDEPTH if is_deep else 0)
    reason = "OpenCV refuses it"
    image: Any = None
    wanted = header.height_px if n_rows is None else n_rows
    is_partial = wanted < header.height_px and encoded.flags.writeable
    try:
        if is_partial:
            _write_rows(encoded, header, wanted)
        image = imdecode(encoded, header, flags)
    except cv2.error as error:
        reason = " ".join(str(error.err or error).split()) or reason
    finally:
        if is_partial:
            _write_rows(encoded, header, header.height_px)
    if is_partial and (image is None or image.shape[0] != -(-wanted // reduction)):
        # The whole image decides the verdict, and the sides, if OpenCV reads another orientation than we do.
        return decode_image(data, header, color=color, reduction=reduction, is_deep=is_deep)
    if image is not None and image.size:
        return _in_order(image, color, swap=swap)
    raise undecodable(header, decode_working_bytes(header, 0, color=color, reduced=reduction), reason)


def check_whole(data: memoryview | NDArray[np.uint8] | bytes, header: ImageHeader) -> None:
    """Raise `RefusedImage` if the end of the image is missing, for formats that mark it."""
    if _is_cut_short(data, header):
        raise RefusedImage(f"the {header.format.upper()} file is cut short ({len(data)} bytes, no end marker)")


def imdecode(encoded: NDArray[np.uint8], header: ImageHeader, flags: int) -> Any:
    """Return what OpenCV decodes: an array, or `None` for most of what it refuses.

    Raises:
        MemoryError: there was not enough memory.
        cv2.error: OpenCV refuses it.
    """
    try:
        return _decode_from_memory_file(encoded, flags) if header.format == "hdr" else cv2.imdecode(encoded, flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem or any(words in str(error).lower() for words in _NO_MEMORY_WORDS):
            raise MemoryError(f"no memory to decode {header.pixels} pixels") from None
        raise
    except MemoryError:
        raise MemoryError(f"no memory to decode {header.pixels} pixels") from None


def undecodable(header: ImageHeader, working_bytes: int, reason: str) -> UndecodableImage:
    """Return the fault for an image that OpenCV refuses.

    Raises:
        MemoryError: if `working_bytes` cannot be taken now.
    """
    # OpenCV also returns None for a good image when memory runs out, so check that before the file is blamed.
    _check_memory(working_bytes)
    return UndecodableImage(
        f"the {header.format.upper()} data ({header.describe()}) does not decode: {reason}"
        + ("; convert it to 8 or 16 bits" if header.bits > 8 and header.bits != 16 else "")
    )


def _in_order(image: Any, color: Color, *, swap: bool) -> NDArray[Any]:
    """Return the pixels of a decoded image with the channels of `color`."""
    if color == "gray":
        pixels = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    elif image.ndim == 2:  # a PFM keeps the channels that it has
        pixels = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    else:
        pixels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image) if swap else image
    return pixels  # type: ignore[no-any-return]


def _decode_from_memory_file(encoded: NDArray[np.uint8], flags: int) -> Any:
    """Decode a format that OpenCV reads from files only."""
    # `imdecode` would write a temporary file, which a reader that is killed leaves behind.
    fd = os.memfd_create("prefetchd-image", os.MFD_CLOEXEC)
    try:
        view = memoryview(encoded)  # type: ignore[arg-type, unused-ignore]
        while view:
            view = view[os.write(fd, view) :]
        return cv2.imread(f"/proc/self/fd/{fd}", flags)
    finally:
        os.close(fd)


def _write_rows(encoded: NDArray[np.uint8], header: ImageHeader, n_rows: int) -> None:
    """Write `n_rows` into the JPEG's header: the decoder stops after them and ignores the rest."""
    # Neither OpenCV nor any library that is installed as a wheel can decode a part of a JPEG.
    encoded[header.rows_at : header.rows_at + 2] = divmod(n_rows, 256)


def _check_memory(n_bytes: int) -> None:
    """Raise `MemoryError` if `n_bytes` of private memory cannot be mapped now (RLIMIT_DATA, overcommit)."""
    try:
        # Private, since only private pages count under RLIMIT_DATA; never touched, so it costs nothing.
        mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        raise MemoryError(f"no memory for a decode that takes up to {n_bytes} bytes") from None


def _is_cut_short(data: memoryview | NDArray[np.uint8] | bytes, header: ImageHeader) -> bool:
    """Return whether the end of the image is missing, for formats that mark it. Bytes after the end are common."""
    # Decoders, and versions of OpenCV, differ in whether they fill the missing rows with grey.
    if header.format == "jpeg":
        # No scan or table can hold FF D9, but a thumbnail before the first scan ends with it.
        return (data[-2] != 0xFF or data[-1] != 0xD9) and not _has_end_of_image(data, header.scan_at)
    if header.format == "png":
        return bytes(data[-12:]) != _PNG_END and not _has_end_chunk(data)
    if header.format == "webp":
        return int.from_bytes(bytes(data[4:8]), "little") + 8 > len(data) + 1  # the last pad byte may be missing
    return False


def _has_end_of_image(data: memoryview | NDArray[np.uint8] | bytes, start: int) -> bool:
    """Return whether FF D9 occurs at or after `start`; searches from the end, in pieces that overlap by a byte."""
    stop = len(data)
    while stop > start:
        at = max(start, stop - _SEARCH_BYTES)
        if b"\xff\xd9" in bytes(data[at : stop + 1]):
            return True
        stop = at
    return False


def _has_end_chunk(data: memoryview | NDArray[np.uint8] | bytes) -> bool:
    """Return whether the chain of PNG chunks reaches a whole IEND."""
    position = 8
    while position + 12 <= len(data):
        if bytes(data[position + 4 : position + 8]) == b"IEND":
            return True
        position += 12 + int.from_bytes(bytes(data[position : position + 4]), "big")
    return False
