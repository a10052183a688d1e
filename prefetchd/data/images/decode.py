"""From encoded bytes to pixels, with OpenCV.

Owns the choice of the JPEG reduction, the estimate of what a decode takes, and the verdict on bytes that do not decode.
`sources/image_files` calls it, in this order, so that each step is settled before it costs anything: `identify`, the
limits and the budget from `decode_working_bytes`, then `decode_image`. One thread only: the caller sets
`cv2.setNumThreads(0)`. When a decoder crashes the process, the pool sees it; nothing here outlives the process.

Pixels are those of `cv2.imread(path, IMREAD_COLOR)`: EXIF orientation applied, alpha dropped, 16 bits cut to
8, grey and palettes made colour. What differs: an image that is cut short is an error here and never grey
below.

Why OpenCV alone, and no second library for JPEG: of a photograph's decode three quarters are the entropy decoding,
which libjpeg-turbo does in all of them, and what the others save of the rest is 1 to 4 % (docs/performance.md).
What saves more is to decode no rows that a crop leaves out: see `rows_to_decode`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from prefetchd.data.faults import UndecodableImage
from prefetchd.data.images.header import ImageHeader, read_header

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
    b"\0\0\0\x0cjP  ": "JPEG 2000", b"\0\0\0\x0cJXL ": "JPEG XL", b"\xff\x0a": "JPEG XL", b"8BPS": "a Photoshop file",
    b"\0\0\1\0": "an icon", b"P5": "a PGM", b"P6": "a PPM", b"%PDF": "a PDF", b"\x1f\x8b": "compressed (gzip)",
    b"PK\3\4": "a zip archive", b"\x93NUMPY": "an array (.npy)",
}  # fmt: skip
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_CONSTANT_BYTES = 1 << 20
_AVIF_CONSTANT_BYTES = 8 << 20
_SEARCH_BYTES = 1 << 16


def silence_decoders() -> None:
    """Stop OpenCV from logging about each bad image. Call once in a reader.

    Its codecs (libpng, libjpeg) write to descriptor 2 themselves, and no option stops them: see
    `detach_native_stderr`.
    """
    with contextlib.suppress(AttributeError):
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def detach_native_stderr() -> int:
    """Send what C libraries write to descriptor 2 to /dev/null and return a new descriptor of the real one.

    Call once in a reader, and give the result to `sys.stderr` and `faulthandler`. (Swapping the descriptor
    around each decode would cost four system calls an image and lose a crash's trace.)
    """
    real = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 2)
    os.close(null)
    return real


def identify(data: memoryview | NDArray[np.uint8] | bytes) -> ImageHeader:
    """Return the header of the image in `data`.

    Raises:
        UndecodableImage: if it is no image of a known format, or ends within its header.
    """
    header = read_header(data)
    if header is None:
        start = bytes(data[:8])
        if start.startswith((b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"II*", b"MM\0*")):
            raise UndecodableImage(f"the image is cut short, or its header damaged ({len(data)} bytes)")
        other = _other_format(bytes(data[:64]))
        raise UndecodableImage(f"not an image of a known format{other} (it starts with {start!r})")
    return header


def _other_format(start: bytes) -> str:
    """Say what a file is that is often found where an image was meant to be; empty if that is not known."""
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS:
        return ", but HEIC, which OpenCV does not read: convert it"
    if not start.strip(b"\0"):
        return ", but zeros: it was never written"
    names = [name for magic, name in _OTHER_FORMATS.items() if start.lstrip().startswith(magic)]
    return f", but {names[0]}" if names else ""


def choose_reduction(
    header: ImageHeader, target_h: int, target_w: int, resize: Resize, crop: tuple[int, int] | None = None
) -> int:
    """Return the largest JPEG reduction (1, 2, 4 or 8) after which the resize still has nothing to enlarge.

    With `stretch` and `crop` both sides of the reduced image stay at least the target's: the crop of an image
    that covers the target covers it too. With `pad` one side is enough: the image is fitted into the target,
    and that side decides by how much. Other formats have no cheaper way to decode: 1.

    With `crop`, the (height, width) of a box in the full image that is taken in place of `resize`, it is the box that
    stays at least the target, wherever it lies: so its sides over the reduction are rounded down.
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
    """Return how many stored rows must be decoded for the first `bottom` rows of the image reduced by `reduction`.

    All of them, unless the header lets a decoder stop early. The pixels of those first rows are then the same, bit by
    bit: libjpeg looks at most one row of colour ahead, from which it smooths the last row but one of a unit's.
    """
    if not header.rows_at or header.orientation > 2:
        return header.height_px
    wanted = (bottom + 1) * reduction
    return min(header.height_px, -(-wanted // header.unit_rows) * header.unit_rows)


def decode_working_bytes(header: ImageHeader, n_encoded_bytes: int, *, color: Color, reduced: int) -> int:
    """Return an upper estimate of the private memory at the peak of decoding, the pixels returned included.

    `n_encoded_bytes`, the file in its buffer, is part of it. The factors were measured with OpenCV 5.0, each
    kind in a process of its own. Every decode ends with two copies of the pixels: OpenCV's matrix (rotated or
    not) is copied into numpy's memory. For large images it is 1.01 to 1.75 times the peak, except for TIFF in
    small strips (up to 11 times): only the directory's strip sizes would tell.
    """
    n_out_channels = 1 if color == "gray" else 3
    n_pixels = header.pixels
    n_delivered = -(-header.width_px // reduced) * -(-header.height_px // reduced) * n_out_channels
    inner = 0.0  # bytes besides the delivered pixels while the codec works
    match header.format:
        case "jpeg":
            if header.progressive:  # all coefficients, 16 bits each, in blocks of up to 4 x 8 pixels a side
                padded = (header.width_px + 32) * (header.height_px + 32)
                inner = 2 * header.samples_per_px * padded
        case "png":
            if header.progressive:  # interlaced: libpng keeps all rows, as stored
                inner = n_pixels * header.channels * header.bits / 8
            if header.animated:
                inner = n_pixels * 16 * header.bits / 8
        case "webp":
            lossless_or_alpha = header.channels == 4 or header.samples_per_px == 4.0
            inner = n_pixels * (header.channels + 4 * lossless_or_alpha + 4 * header.animated)
        case "gif":
            inner = n_pixels * 6
        case "tiff":  # libtiff holds a strip or tile as stored, and as RGBA: either can be the whole image
            stored = max(header.channels * header.bits / 8, 1)
            widened = max(header.channels - n_out_channels, 0)
            inner = n_pixels * (stored + widened + 4 * max(1, header.bits // 8))
            inner += min(n_encoded_bytes, 2 * n_pixels * stored)  # a compressed strip is copied
        case "avif":
            planes = 20 + 16 * (header.channels == 4)
            inner = n_pixels * planes * (1.25 if header.bits > 8 else 1) + _AVIF_CONSTANT_BYTES
        case "bmp":
            pass
    return int(n_encoded_bytes + n_delivered + max(n_delivered, inner) + _CONSTANT_BYTES)


def decode_image(
    data: memoryview | NDArray[np.uint8] | bytes,
    header: ImageHeader,
    *,
    color: Color,
    reduction: int,
    n_rows: int | None = None,
) -> NDArray[np.uint8]:
    """Return the pixels of the encoded image in `data`: uint8, (H, W, 3), or (H, W) for `gray`.

    Args:
        data: the whole file; its buffer is written to while `n_rows` is taken from it, and is then as before.
        header: what `identify(data)` returned.
        color: the order of the channels.
        reduction: 1, or what `choose_reduction` chose: H and W are the stored sides over it, rounded up.
        n_rows: what `rows_to_decode` returned, if not all rows are wanted. H is then less, where `data` may be written.

    Raises:
        UndecodableImage: the image is cut short, or OpenCV refuses it.
        MemoryError: the memory for it could not be had, which says nothing of the image.
    """
    if _is_cut_short(data, header):
        raise UndecodableImage(f"the {header.format.upper()} file is cut short ({len(data)} bytes, no end marker)")
    encoded = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    swap = color == "rgb" and header.format not in _RGB_FORMATS
    if color == "gray":
        flags = cv2.IMREAD_GRAYSCALE
    elif color == "bgr" or swap:
        flags = cv2.IMREAD_COLOR
    else:
        flags = cv2.IMREAD_COLOR_RGB
    # The reduction's bits alone: IMREAD_REDUCED_COLOR_2 holds IMREAD_COLOR, which may not go with IMREAD_COLOR_RGB.
    flags |= _REDUCED_BITS[reduction]
    reason = "the decoder refuses it"
    image: Any = None
    wanted = header.height_px if n_rows is None else n_rows
    is_partial = wanted < header.height_px and encoded.flags.writeable
    try:
        if is_partial:
            _write_rows(encoded, header, wanted)
        image = cv2.imdecode(encoded, flags)
    except cv2.error as error:
        reason = " ".join(str(error.err or error).split()) or reason
        if error.code == cv2.Error.StsNoMem or any(words in str(error).lower() for words in _NO_MEMORY_WORDS):
            raise MemoryError(f"no memory to decode {header.pixels} pixels") from None
    except MemoryError:
        raise MemoryError(f"no memory to decode {header.pixels} pixels") from None
    finally:
        if is_partial:
            _write_rows(encoded, header, header.height_px)
    if is_partial and (image is None or image.shape[0] != -(-wanted // reduction)):
        # The verdict is the whole image's, and so are the sides, should OpenCV read another orientation than we do.
        return decode_image(data, header, color=color, reduction=reduction)
    if image is not None and image.size:
        pixels: NDArray[np.uint8] = cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image) if swap else image
        return pixels
    # OpenCV also returns None for a good image when memory runs out: look there first, then blame the file.
    _check_memory(decode_working_bytes(header, 0, color=color, reduced=reduction))
    shape = f"{header.width_px} x {header.height_px} px"
    raise UndecodableImage(f"the {header.format.upper()} data ({shape}) does not decode: {reason}")


def _write_rows(encoded: NDArray[np.uint8], header: ImageHeader, n_rows: int) -> None:
    """Let the JPEG say that it has `n_rows` rows: the decoder ends with them, and passes over what follows.

    There is no other way: neither OpenCV nor any library that comes as a wheel can decode a part of a JPEG.
    """
    encoded[header.rows_at : header.rows_at + 2] = divmod(n_rows, 256)


def _check_memory(n_bytes: int) -> None:
    """Raise `MemoryError` if `n_bytes` of private memory cannot be had now (RLIMIT_DATA, overcommit)."""
    try:
        # Private, since only private pages count under RLIMIT_DATA; never touched, so it costs nothing.
        mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        raise MemoryError(f"no memory for a decode that takes up to {n_bytes} bytes") from None


def _is_cut_short(data: memoryview | NDArray[np.uint8] | bytes, header: ImageHeader) -> bool:
    """Whether the end of the image is missing, for the formats that mark it. Bytes after the end are common.

    Decoders differ, also between versions of OpenCV, in whether they make up the missing rows in grey.
    """
    if header.format == "jpeg":
        # No scan or table can hold FF D9, but a thumbnail before the first scan ends with it.
        return (data[-2] != 0xFF or data[-1] != 0xD9) and not _has_end_of_image(data, header.scan_at)
    if header.format == "png":
        return bytes(data[-12:]) != _PNG_END and not _has_end_chunk(data)
    if header.format == "webp":
        return int.from_bytes(bytes(data[4:8]), "little") + 8 > len(data) + 1  # the last pad byte may be missing
    return False


def _has_end_of_image(data: memoryview | NDArray[np.uint8] | bytes, start: int) -> bool:
    """Whether FF D9 occurs at or after `start`, searched from the end, in pieces that overlap by a byte."""
    stop = len(data)
    while stop > start:
        at = max(start, stop - _SEARCH_BYTES)
        if b"\xff\xd9" in bytes(data[at : stop + 1]):
            return True
        stop = at
    return False


def _has_end_chunk(data: memoryview | NDArray[np.uint8] | bytes) -> bool:
    """Whether the chain of PNG chunks arrives at a whole IEND."""
    position = 8
    while position + 12 <= len(data):
        if bytes(data[position + 4 : position + 8]) == b"IEND":
            return True
        position += 12 + int.from_bytes(bytes(data[position : position + 4]), "big")
    return False
