"""Decoding: cv2.imread's pixels, and a verdict on what does not decode."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import socket
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from prefetchd.config.options import Color, Resize
from prefetchd.data.faults import (
    EnvironmentFault,
    FaultKind,
    SampleFault,
    UndecodableImage,
    UnreadableFile,
    fault_of,
)
from prefetchd.data.files import FileBuffer, read_file
from prefetchd.data.images.decode import (
    choose_reduction,
    decode_image,
    identify,
)
from prefetchd.data.images.headers.header import ImageHeader
from tests.decoding import bad_files, kinds_of_files, load, quiet  # noqa: F401
from tests.images import photograph, write_jpeg

# cv2.imread refuses a TIFF that its own orientation turns on its side; cv2.imdecode, which we use, does not.
IMREAD_REFUSES = {"exif6.tiff"}
# cv2.imread returns a PFM with the channels that it has, whatever was asked for, and grey Sun rasters as black.
IMREAD_MISREADS = {("grey.pfm", "bgr"), ("rgb.pfm", "gray"), ("grey.ras", "gray")}


def test_every_kind_decodes_as_cv2_imread_does(kinds: dict[str, Path]) -> None:
    for name, path in kinds.items():
        pixels = load(path)
        assert pixels.dtype == np.uint8, name
        assert np.array_equal(load(path, "rgb"), pixels[..., ::-1]), name
        assert load(path, "gray").shape == pixels.shape[:2], name
        for color, flags in (("bgr", cv2.IMREAD_COLOR), ("gray", cv2.IMREAD_GRAYSCALE)):
            if name not in IMREAD_REFUSES and (name, color) not in IMREAD_MISREADS:
                assert np.array_equal(load(path, color), cv2.imread(str(path), flags)), (name, color)


def test_what_cv2_imread_gives_in_other_channels_has_those_asked_for(kinds: dict[str, Path]) -> None:
    grey = cv2.imread(str(kinds["grey.pgm"]), cv2.IMREAD_GRAYSCALE)
    for name in ("grey.pfm", "grey.ras"):
        assert np.array_equal(load(kinds[name], "gray"), grey), name
        assert np.array_equal(load(kinds[name], "bgr"), np.dstack([grey] * 3)), name
    expected = cv2.cvtColor(cv2.imread(str(kinds["rgb.pfm"])), cv2.COLOR_BGR2GRAY)
    assert np.array_equal(load(kinds["rgb.pfm"], "gray"), expected)


def test_hdr_leaves_no_file_and_no_descriptor(kinds: dict[str, Path]) -> None:
    def left() -> tuple[set[str], int]:
        return {name for name in os.listdir("/tmp") if "opencv" in name}, len(os.listdir("/proc/self/fd"))

    before = left()
    data = kinds["rgb.hdr"].read_bytes()
    for cut in (len(data), len(data) // 2):
        with contextlib.suppress(UndecodableImage):
            decode_image(data[:cut], identify(data), color="rgb", reduction=1)
    assert left() == before


def test_colours_are_in_the_order_asked_for(kinds: dict[str, Path]) -> None:
    # Pillow as the witness: OpenCV has delivered BGR where RGB was asked for (AVIF with alpha).
    for name in (
        "baseline.jpg",
        "alpha.png",
        "lossless.webp",
        "rgb.tiff",
        "rgb.bmp",
        "rgb.avif",
        "alpha.avif",
        "rgb.ppm",
        "rgb.jp2",
    ):
        if name in kinds:
            expected = np.asarray(Image.open(kinds[name]).convert("RGB"), np.int16)
            assert np.abs(load(kinds[name], "rgb") - expected).mean() < 6, name


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
def test_a_reduced_jpeg_has_the_sides_divided_and_rounded_up(tmp_path: Path, color: Color) -> None:
    path = write_jpeg(tmp_path / "a.jpg", (401, 643))
    for reduction in (2, 4, 8):
        shape = load(path, color, reduction).shape
        assert shape[:2] == (-(-401 // reduction), -(-643 // reduction))
        assert shape[2:] == (() if color == "gray" else (3,))
    assert np.array_equal(load(path, "rgb", 4), load(path, "bgr", 4)[..., ::-1])


@pytest.mark.parametrize(
    ("size", "orientation", "target", "resize", "expected"),
    [
        ((375, 500), 1, (224, 224), "stretch", 1),
        ((448, 448), 1, (224, 224), "stretch", 2),
        ((447, 448), 1, (224, 224), "stretch", 2),  # 447 / 2 rounds up to 224
        ((446, 448), 1, (224, 224), "stretch", 1),
        ((3000, 4000), 1, (224, 224), "stretch", 8),
        ((3000, 4000), 1, (500, 600), "crop", 4),
        ((200, 4000), 1, (100, 100), "stretch", 2),
        ((200, 4000), 1, (100, 100), "crop", 2),
        ((200, 4000), 1, (100, 100), "pad", 8),
        ((100, 400), 6, (400, 100), "stretch", 1),
        ((200, 800), 6, (400, 100), "stretch", 2),
        ((200, 800), 1, (400, 100), "stretch", 1),
        ((10, 10), 1, (224, 224), "pad", 1),
    ],
)
def test_the_reduction_leaves_nothing_to_enlarge(
    size: tuple[int, int], orientation: int, target: tuple[int, int], resize: Resize, expected: int
) -> None:
    header = ImageHeader("jpeg", size[1], size[0], 3, orientation=orientation)
    assert choose_reduction(header, *target, resize) == expected
    assert choose_reduction(ImageHeader("png", size[1], size[0], 3), *target, resize) == 1


def test_bad_files_are_faults_of_the_content_that_say_why(bad: dict[str, Path]) -> None:
    by_stat = {"missing": "No such file", "empty": "empty", "directory": "a directory", "fifo": "a FIFO"}
    by_header = {
        "truncated": "cut short",
        "truncated_progressive": "cut short",
        "truncated_png": "cut short",
        "header_only": "header damaged",
        "text": "not an image",
        "zeros": "not an image",
    }
    for name, words in (by_stat | by_header).items():
        with pytest.raises(SampleFault, match=words) as caught:
            load(bad[name])
        assert caught.value.kind is FaultKind.CONTENT, name
        assert not caught.value.needs_fresh_reader, name  # no decoder was asked
        assert "\n" not in caught.value.reason, name


def test_what_a_decoder_refuses_needs_a_fresh_reader_and_is_described(kinds: dict[str, Path]) -> None:
    twelve_bits = bytearray(kinds["baseline.jpg"].read_bytes())
    header = identify(bytes(twelve_bits))
    twelve_bits[header.rows_at - 1] = 12
    five_channels = _tiff(8, 6, channels=5, bits=16)
    floats = cv2.imencode(".tiff", photograph(6, 8).astype(np.float32))[1].tobytes()
    deep = cv2.imencode(".pam", photograph(6, 8).astype(np.uint16))[1].tobytes()
    for data, words in (
        (bytes(twelve_bits), "3 channels of 12 bits, baseline.* does not decode: .*; convert it to 8 or 16 bits"),
        (five_channels, "8 x 6 px, 5 channels of 16 bits, uncompressed"),
        (floats, r"8 x 6 px, 3 channels of 32 bits \(floating point\), .* convert it to 8 or 16 bits"),
        (deep, "PAM data .8 x 6 px, 3 channels of 16 bits"),
    ):
        with pytest.raises(UndecodableImage, match=words) as caught:
            decode_image(data, identify(data), color="rgb", reduction=1)
        assert caught.value.needs_fresh_reader


def _tiff(width: int, height: int, channels: int, bits: int) -> bytes:
    """Encode black pixels as a TIFF in one strip, which libraries do not write with so many channels."""
    n_bytes = width * height * channels * bits // 8
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: channels, 278: height, 279: n_bytes}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + n_bytes) + bytes(n_bytes) + directory


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "but HEIC, which OpenCV does not read: convert it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", r"a pointer of Git LFS: .*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "but HTML or XML, as a failed download leaves"),
        (bytes(100), "but zeros: it was never written"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "but JPEG XL"),
        (b"\1\2\3\4\5\6\7\x08 something else", r"of a known format \(it starts with"),
        (b"x", r"of a known format \(it starts with b'x'\)"),
    ],
)
def test_what_is_often_found_in_place_of_an_image_is_named(start: bytes, words: str) -> None:
    with pytest.raises(UndecodableImage, match="not an image of a known format") as caught:
        identify(start)
    assert re.search(words, caught.value.reason), caught.value.reason


@pytest.mark.not_root
def test_a_forbidden_file_is_a_fault_of_the_content(bad: dict[str, Path]) -> None:
    with pytest.raises(UnreadableFile, match="Permission denied"):
        load(bad["no_permission"])


def test_sockets_devices_loops_and_impossible_paths_are_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.jpg"))
        with pytest.raises(UnreadableFile):
            load(tmp_path / "socket.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    for path in (Path("/dev/zero"), tmp_path / "loop.jpg", Path("nul\0byte.jpg"), Path("a" * 300)):
        with pytest.raises(UnreadableFile):
            load(path)


def test_every_cut_of_every_kind_with_an_end_marker_is_found(kinds: dict[str, Path]) -> None:
    for name in ("baseline.jpg", "progressive.jpg", "cmyk.jpg", "exif6.jpg", "rgb.png", "deep.png", "lossy.webp"):
        if name not in kinds:
            continue
        data = kinds[name].read_bytes()
        step = max(1, len(data) // 97)
        for length in (len(data) - 1, len(data) - 2, *range(len(data) - 3, 0, -step)):
            if name.endswith("webp") and length == len(data) - 1:
                continue  # may be the pad byte
            cut = data[:length]
            with pytest.raises(UndecodableImage):
                decode_image(cut, identify(cut), color="rgb", reduction=1)


def test_a_jpeg_cut_short_and_filled_up_with_zeros_is_found(kinds: dict[str, Path]) -> None:
    data = kinds["baseline.jpg"].read_bytes()
    hollow = data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
    with pytest.raises(UndecodableImage, match="cut short"):
        decode_image(hollow, identify(hollow), color="rgb", reduction=1)


def test_bytes_after_the_end_are_fine(kinds: dict[str, Path]) -> None:
    for name in ("baseline.jpg", "progressive.jpg", "rgb.png"):
        data = kinds[name].read_bytes()
        for tail in (b"\0", b"\xff", bytes(200_000), b"maker's notes"):
            longer = data + tail
            pixels = decode_image(longer, identify(longer), color="bgr", reduction=1)
            assert np.array_equal(pixels, cv2.imread(str(kinds[name])))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ESTALE, errno.ETIMEDOUT, errno.ENFILE])
def test_what_the_machine_does_is_never_the_samples_fault(number: int) -> None:
    fault = fault_of(OSError(number, os.strerror(number)))
    assert isinstance(fault, EnvironmentFault)
    assert fault.kind is FaultKind.ENVIRONMENT
    assert errno.errorcode[number] in fault.reason
    assert fault_of(MemoryError()).kind is FaultKind.ENVIRONMENT


def test_no_descriptors_is_a_fault_of_the_environment_and_none_is_left_open(bad: dict[str, Path]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for name in ("missing", "empty", "directory", "fifo"):
        with pytest.raises(UnreadableFile):
            read_file(bad[name], FileBuffer())
    assert len(os.listdir("/proc/self/fd")) == before
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(EnvironmentFault, match="EMFILE"):
            read_file(bad["text"], FileBuffer())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_detached_native_stderr_keeps_the_codecs_quiet_and_the_real_one_open(kinds: dict[str, Path]) -> None:
    data = bytearray(kinds["baseline.jpg"].read_bytes())
    script = textwrap.dedent("""
        import os, sys
        from prefetchd.data.images.decode import *
        silence_decoders()
        real = detach_native_stderr()
        data = sys.stdin.buffer.read()
        decode_image(data, identify(data), color="rgb", reduction=1)
        os.write(2, b"a codec's chatter")
        os.write(real, b"a traceback")
    """)
    data[-2:-2] = b"\xff\x00" * 40  # extraneous bytes before the end: libjpeg decodes, and warns on descriptor 2
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=bytes(data),
        capture_output=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stderr == b"a traceback"
