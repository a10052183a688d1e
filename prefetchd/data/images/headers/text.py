"""Headers in text: PBM, PGM, PPM, PAM and PFM (Netpbm), and Radiance HDR. Pure.

Only the first bytes of a file are searched: a header that does not end within them is damaged.
"""

from __future__ import annotations

import re

from prefetchd.data.images.headers.header import Format, ImageHeader

_MAX_HEADER_BYTES = 1 << 16
_MAX_NUMBER = (1 << 31) - 1  # OpenCV refuses larger ones

_NETPBM: dict[int, tuple[Format, int]] = {1: ("pbm", 1), 2: ("pgm", 1), 3: ("ppm", 3)}  # and their binary kinds + 3
_GAP = rb"(?:\s|#[^\r\n]*+[\r\n])*+"
_NUMBER = _GAP + rb"(\d{1,10})\D"  # OpenCV takes any byte behind a number
_BITMAP = re.compile(rb"P[14](?=\s)" + 2 * _NUMBER)
_PIXMAP = re.compile(rb"P[2356](?=\s)" + 3 * _NUMBER)
_PAM_LINE = re.compile(rb"\s*+(?:#[^\r\n]*+|(\w{1,8})(?:[ \t]++([^\r\n]{0,255}))?)[\r\n]")
_PFM = re.compile(rb"P([fF])\n" + 2 * rb"(\d{1,10})(?!\d)\S{0,64}\s" + rb"\S{1,64}\s")
_HDR_SIZE = re.compile(rb"\n\n-Y\s*+(\d{1,10})\s*+\+X\s*+(\d{1,10})[^\n]*+\n")


def read_netpbm(data: memoryview) -> ImageHeader | None:
    """Read a PBM, PGM or PPM, plain (numbers in text) or binary."""
    start = bytes(data[:_MAX_HEADER_BYTES])
    kind = start[1] - ord("0")
    found = (_BITMAP if kind in (1, 4) else _PIXMAP).match(start)
    if found is None:
        return None
    numbers = [int(number) for number in found.groups()]
    width, height = numbers[:2]
    most = numbers[2] if len(numbers) == 3 else 1
    if max(numbers) > _MAX_NUMBER or not 0 < most < 1 << 16:
        return None
    is_binary = kind > 3
    name, channels = _NETPBM[kind - 3 * is_binary]
    bits = 16 if most > 255 else 8
    n_samples = width * height * channels
    if not is_binary:
        # A bit takes a character; a number takes a character, and one between it and the next.
        n_bytes = n_samples if name == "pbm" else 2 * n_samples - 1
    else:
        n_bytes = height * -(-width // 8) if name == "pbm" else n_samples * bits // 8
    return ImageHeader(
        name,
        width,
        height,
        channels,
        bits,
        samples_per_px=float(channels),
        compression="" if is_binary else "plain text",
        scaled_from=0 if is_binary or name == "pbm" or bits > 8 else most,
        least_bytes=found.end() + n_bytes,
    )


def read_pam(data: memoryview) -> ImageHeader | None:
    """Read a PAM: a line for each field, in any order, up to ENDHDR."""
    start = bytes(data[:_MAX_HEADER_BYTES])
    fields: dict[bytes, bytes] = {}
    position = 2
    while (line := _PAM_LINE.match(start, position)) is not None:
        position = line.end()
        if line[1] == b"ENDHDR":
            break
        if line[1] is not None:
            fields[line[1]] = (line[2] or b"").strip()
    else:
        return None
    numbers = [fields.get(name, b"") for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL")]
    if not all(number.isdigit() for number in numbers):
        return None
    width, height, channels, most = map(int, numbers)
    if max(width, height, channels) > _MAX_NUMBER or channels < 1 or not 0 < most < 1 << 16:
        return None
    bits = 16 if most > 255 else 8
    return ImageHeader(
        "pam",
        width,
        height,
        channels,
        bits,
        samples_per_px=float(channels),
        least_bytes=position + width * height * channels * bits // 8,
    )


def read_pfm(data: memoryview) -> ImageHeader | None:
    """Read a PFM: rows of 32-bit floating-point numbers."""
    found = _PFM.match(bytes(data[:256]))
    if found is None:
        return None
    channels = 3 if found[1] == b"F" else 1
    width, height = int(found[2]), int(found[3])
    if max(width, height) > _MAX_NUMBER:
        return None
    return ImageHeader(
        "pfm",
        width,
        height,
        channels,
        32,
        samples_per_px=float(channels),
        is_float=True,
        least_bytes=found.end() + 4 * width * height * channels,
    )


def read_hdr(data: memoryview) -> ImageHeader | None:
    """Read a Radiance HDR: the size follows the first empty line."""
    start = bytes(data[:_MAX_HEADER_BYTES])
    at = start.find(b"\n\n")
    found = _HDR_SIZE.match(start, at) if at >= 0 else None
    if found is None:
        return None
    height, width = int(found[1]), int(found[2])
    if max(width, height) > _MAX_NUMBER:
        return None
    # A run of up to 127 bytes takes two.
    return ImageHeader(
        "hdr", width, height, 3, 32, is_float=True, least_bytes=found.end() + height * (8 * width // 127 or 1)
    )
