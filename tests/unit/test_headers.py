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
from tests.images import write_jpeg, write_kinds


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
