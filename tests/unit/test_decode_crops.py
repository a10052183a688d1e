"""Decoding a part of a JPEG: rows left out below a crop, and reductions of tiny images."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from prefetchd.config.options import Color
from prefetchd.data.faults import (
    UndecodableImage,
)
from prefetchd.data.images.decode import (
    decode_image,
    identify,
    rows_to_decode,
)
from tests.decoding import quiet  # noqa: F401
from tests.images import exif, photograph


def jpeg_ways() -> dict[str, bytes]:
    """JPEGs that code their rows in different units, (203, 171) pixels."""
    picture, ways = Image.fromarray(photograph(203, 171, 5)), {}
    for subsampling in ("4:4:4", "4:2:2", "4:2:0", "4:1:1"):
        ways[subsampling] = saved(picture, subsampling=subsampling)
    factors = cv2.IMWRITE_JPEG_SAMPLING_FACTOR
    tall = cv2.imencode(".jpg", photograph(203, 171, 6), [factors, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440])[1]
    ways |= {"4:4:0": tall.tobytes(), "grey": saved(picture.convert("L")), "cmyk": saved(picture.convert("CMYK"))}
    restarts = cv2.imencode(".jpg", photograph(203, 171, 7), [cv2.IMWRITE_JPEG_RST_INTERVAL, 3])[1]
    ways |= {"restarts": restarts.tobytes(), "progressive": saved(picture, progressive=True)}
    return ways | {f"exif{number}": saved(picture, exif=exif(number)) for number in (2, 3, 6)}


def saved(picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=88, **options)
    return file.getvalue()


@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("way", jpeg_ways())
def test_rows_left_out_below_a_crop_change_no_pixel_above(way: str, color: Color) -> None:
    data = jpeg_ways()[way]
    header = identify(data)
    buffer = np.frombuffer(bytearray(data), np.uint8)
    for reduction in (1, 2, 4, 8):
        whole = decode_image(data, header, color=color, reduction=reduction)
        for bottom in range(1, whole.shape[0] + 1, 3):
            n_rows = rows_to_decode(header, reduction, bottom)
            part = decode_image(buffer, header, color=color, reduction=reduction, n_rows=n_rows)
            assert part.shape[0] >= bottom
            assert np.array_equal(part[:bottom], whole[:bottom]), (reduction, bottom)
    assert buffer.tobytes() == data
    spares = way not in ("progressive", "exif3", "exif6")
    assert (rows_to_decode(header, 1, 50) < 110) is spares
    if spares:
        assert decode_image(buffer, header, color=color, reduction=1, n_rows=96).shape[0] == 96


def test_a_jpeg_that_may_not_be_written_to_is_decoded_whole() -> None:
    data = jpeg_ways()["4:2:0"]
    assert decode_image(data, identify(data), color="rgb", reduction=1, n_rows=64).shape[0] == 203


def test_what_is_wrong_below_a_crop_is_judged_as_in_the_whole_image() -> None:
    """An image with wrong bytes is good or bad, and the same for each part that is wanted of it."""
    rng = np.random.default_rng(11)
    verdicts = set()
    for way in ("4:2:0", "restarts", "grey"):
        data = jpeg_ways()[way]
        for _ in range(60):
            broken = np.frombuffer(bytearray(data), np.uint8)
            at = int(rng.integers(2, len(data) - 2))
            broken[at : at + 40] = rng.integers(0, 256, len(broken[at : at + 40]))
            broken[-2:] = 0xFF, 0xD9
            try:
                header = identify(broken)
            except UndecodableImage:
                continue
            if header.pixels > 1_000_000:
                continue
            seen = set()
            for bottom in (40, 120, header.height_px):
                n_rows = rows_to_decode(header, 1, min(bottom, header.height_px))
                try:
                    seen.add(decode_image(broken, header, color="rgb", reduction=1, n_rows=n_rows).shape[1])
                except UndecodableImage:
                    seen.add(0)
            assert len(seen) == 1, (way, at)
            verdicts |= {min(1, *seen)}
    assert verdicts == {0, 1}


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (3, 7), (1, 40), (40, 1), (17, 16)])
def test_tiny_jpegs_decode_at_every_reduction(size: tuple[int, int]) -> None:
    data = bytearray(cv2.imencode(".jpg", photograph(*size, 1))[1].tobytes())
    header = identify(data)
    assert np.array_equal(
        decode_image(data, header, color="bgr", reduction=1), cv2.imdecode(np.frombuffer(data, np.uint8), 1)
    )
    for reduction in (1, 2, 4, 8):
        n_rows = rows_to_decode(header, reduction, 1)
        image = decode_image(data, header, color="rgb", reduction=reduction, n_rows=n_rows)
        assert image.shape == (-(-n_rows // reduction), -(-size[1] // reduction), 3)
