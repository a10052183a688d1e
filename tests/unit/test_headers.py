"""Headers: what they say agrees with what decodes, and no garbage raises."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from prefetchd.data.images.headers.header import FORMATS
from prefetchd.data.images.headers.read import read_header
from prefetchd.data.images.working_memory import claimed_bytes, limit_bytes
from tests.images import claims, photograph, write_jpeg, write_kinds


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_kinds(tmp_path_factory.mktemp("kinds"), (60, 83))


def test_every_kind_has_the_size_it_decodes_to(kinds: dict[str, Path]) -> None:
    for name, path in kinds.items():
        header = read_header(path.read_bytes())
        assert header is not None, name
        assert (header.height_px, header.width_px) == (60, 83), name
        decoded = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None, name
        assert header.oriented_size == decoded.shape[:2], name
    assert {read_header(path.read_bytes()).format for path in kinds.values()} <= set(FORMATS)  # type: ignore[union-attr]


def test_attributes_tell_kinds_apart(kinds: dict[str, Path]) -> None:
    def of(name: str) -> tuple[object, ...]:
        header = read_header(kinds[name].read_bytes())
        assert header is not None
        return header.channels, header.bits, header.progressive, header.orientation

    assert of("baseline.jpg") == (3, 8, False, 1)
    assert of("progressive.jpg") == (3, 8, True, 1)
    assert of("grey.jpg") == (1, 8, False, 1)
    assert of("cmyk.jpg") == (4, 8, False, 1)
    assert [of(f"exif{number}.jpg")[3] for number in range(1, 9)] == list(range(1, 9))
    assert of("alpha.png") == (4, 8, False, 1)
    assert of("deep.png") == (3, 16, False, 1)
    assert of("exif6.png") == (3, 8, False, 6)
    assert of("interlaced.png") == (3, 8, True, 1)
    assert of("deep.tiff") == (3, 16, False, 1)
    assert of("exif6.tiff") == (3, 8, False, 6)


def test_buffers_of_all_sorts_give_the_same_header(kinds: dict[str, Path]) -> None:
    for path in kinds.values():
        data = path.read_bytes()
        expected = read_header(data)
        assert read_header(memoryview(bytearray(data))) == expected
        assert read_header(np.frombuffer(data, np.uint8)) == expected


def test_a_thumbnail_in_the_exif_block_is_not_taken_for_the_image(tmp_path: Path) -> None:
    small = write_jpeg(tmp_path / "small.jpg", (16, 24)).read_bytes()
    large = write_jpeg(tmp_path / "large.jpg", (96, 128)).read_bytes()
    segment = b"\xff\xe1" + struct.pack(">H", len(small) + 8) + b"Exif\0\0" + small
    header = read_header(large[:2] + segment + large[2:])
    assert header is not None
    assert (header.height_px, header.width_px, header.orientation) == (96, 128, 1)
    assert header.scan_at > len(segment)


def test_a_baseline_jpeg_in_several_scans_counts_as_progressive(tmp_path: Path) -> None:
    data = bytearray(write_jpeg(tmp_path / "a.jpg").read_bytes())
    header = read_header(bytes(data))
    assert header is not None
    data[header.scan_at + 4] = 1  # the first scan has one of the three components
    assert read_header(bytes(data)) == dataclasses.replace(header, progressive=True, rows_at=0)


def test_no_cut_and_no_flipped_byte_raises(kinds: dict[str, Path]) -> None:
    rng = np.random.default_rng(0)
    for path in kinds.values():
        data = path.read_bytes()[:4000]
        for length in (*range(64), *rng.integers(0, len(data), 50).tolist()):
            read_header(data[:length])
        for _ in range(200):
            broken = np.frombuffer(data, np.uint8).copy()
            broken[rng.integers(0, min(len(data), 300), 8)] = rng.integers(0, 256, 8)
            header = read_header(broken)
            assert header is None or (header.width_px > 0 and header.height_px > 0 and 1 <= header.orientation <= 8)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"text, and no image at all", bytes(5000), b"\xff" * 5000])
def test_what_is_no_image_has_no_header(data: bytes) -> None:
    assert read_header(data) is None


JPEG = cv2.imencode(".jpg", photograph(24, 32))[1].tobytes()
PNG = cv2.imencode(".png", photograph(24, 32))[1].tobytes()
MIB = 1 << 20


@pytest.mark.parametrize(
    "data",
    [
        JPEG[:20] + bytes(60 * MIB),
        b"\xff\xd8" + b"\xff" * (20 * MIB),
        b"\xff\xd8" + b"\xff\xd0" * (10 * MIB),
        b"\xff\xd8" + b"\xff\xe0\0\2" * (5 * MIB),
        b"GIF89a\1\0\1\0\0\0\0" + b"\x21\xfe\1a\0" * (4 * MIB),
        b"P5 " + b"#" * (20 * MIB),
        b"P5 " + b"#\n" * (10 * MIB),
        b"P7\n" + b"\n" * (20 * MIB),
        b"#?RGBE" + b"a=b\n" * (5 * MIB),
    ],
    ids=["zeros", "fill", "markers", "segments", "blocks", "comment", "comments", "lines", "settings"],
)
@pytest.mark.timeout(60)
def test_a_header_that_never_ends_is_given_up(data: bytes) -> None:
    assert read_header(data) is None


@pytest.mark.timeout(60)
def test_a_png_of_millions_of_chunks_is_read_as_far_as_the_bound() -> None:
    header = read_header(PNG[:33] + (struct.pack(">I", 0) + b"tEXt" + bytes(4)) * MIB)
    assert header is not None
    assert (header.width_px, header.height_px) == (32, 24)


@pytest.mark.parametrize("n_bytes", [1, 100, MIB])
def test_garbage_between_the_segments_of_a_jpeg_is_skipped_as_libjpeg_does(n_bytes: int) -> None:
    data = JPEG[:20] + bytes(n_bytes) + JPEG[20:]  # behind the first segment
    header, plain = read_header(data), read_header(JPEG)
    assert header is not None
    assert plain is not None
    assert header == dataclasses.replace(plain, scan_at=plain.scan_at + n_bytes, rows_at=plain.rows_at + n_bytes)
    decoded, expected = (cv2.imdecode(np.frombuffer(each, np.uint8), cv2.IMREAD_COLOR) for each in (data, JPEG))
    assert np.array_equal(decoded, expected)


@pytest.mark.parametrize(("name", "data"), claims().items(), ids=list(claims()))
def test_a_claim_of_gigabytes_for_few_pixels_is_beyond_the_limit(name: str, data: bytes) -> None:
    header = read_header(data)
    assert header is not None, name
    assert header.pixels <= 250_000_000
    assert len(data) >= header.least_bytes or name == "samples.tiff"
    assert claimed_bytes(header, shrink_on_load=True) > limit_bytes(250_000_000) >= 1_500_000_000


def test_ordinary_images_of_max_image_pixels_are_within_the_limit(kinds: dict[str, Path]) -> None:
    for name in ("baseline.jpg", "rgb.png", "grey.png", "rgb.bmp", "lossy.webp", "rgb.ppm", "grey.pgm", "rgb.ras"):
        header = read_header(kinds[name].read_bytes())
        assert header is not None
        large = dataclasses.replace(header, width_px=20_000, height_px=10_000)
        assert claimed_bytes(large, shrink_on_load=False) <= limit_bytes(large.pixels), name
    for path in kinds.values():
        header = read_header(path.read_bytes())
        assert header is not None
        assert claimed_bytes(header, shrink_on_load=False) <= limit_bytes(1), path.name


def test_no_good_file_is_shorter_than_its_header_asks_for(kinds: dict[str, Path]) -> None:
    """Of formats whose length the header tells, one byte less is an image that OpenCV refuses too."""
    told = set()
    for name, path in kinds.items():
        data = path.read_bytes()
        header = read_header(data)
        assert header is not None
        assert len(data) >= header.least_bytes, name
        if len(data) == header.least_bytes:
            told.add(header.format)
            assert cv2.imdecode(np.frombuffer(data[:-1], np.uint8), cv2.IMREAD_COLOR) is None, name
    assert told >= {"bmp", "pbm", "pgm", "ppm", "pam", "pfm", "sunraster"}


@pytest.mark.parametrize(
    "data",
    [
        b"P5 4294967297 1 255 x",
        b"P5 -1 1 255 x",
        b"P5 1 1 0 x",
        b"P5 1 1 65536 xx",
        b"P6 1",
        b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 1\nENDHDR\nx",
        b"P7\nWIDTH 1_0\nHEIGHT 1\nDEPTH 1\nMAXVAL 255\nENDHDR\n0123456789",
        b"P7\nWIDTH " + b"9" * 5009 + b"\nHEIGHT 1\nDEPTH 1\nMAXVAL 255\nENDHDR\nx",
        b"Pf\n1 -1\n-1\n0000",
        b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n+Y 1 +X 1\n0000",
        b"\x59\xa6\x6a\x95" + struct.pack(">7I", 1, 1, 7, 0, 1, 0, 0),
        b"\xff\x4f\xff\x51" + struct.pack(">HHIIIIIIIIH", 41, 0, 9, 9, 9, 0, 9, 9, 0, 0, 1) + b"\7\1\1",
        b"\xff\x4f\xff\x51" + struct.pack(">HHIIIIIIIIH", 41, 0, 9, 9, 0, 0, 0, 9, 0, 0, 1) + b"\7\1\1",
        b"\xff\x4f\xff\x51" + struct.pack(">HHIIIIIIIIH", 41, 0, 9, 9, 0, 0, 9, 9, 0, 0, 99) + b"\7\1\1",
        b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(10),
        b"GIF89a" + struct.pack("<HH", 15800, 15800) + b"\x80\0\0" + bytes(6) + b";",
    ],
)
def test_impossible_numbers_are_no_header(data: bytes) -> None:
    assert read_header(data) is None
