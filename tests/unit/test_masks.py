"""Masks give class numbers, whatever kind of file they are in; what has none is refused."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from prefetchd.data.faults import UndecodableImage
from prefetchd.data.images import decode
from prefetchd.data.images.masks import decode_mask

RNG = np.random.default_rng(0)
SIZE = (37, 53)


def decoded(data: bytes) -> np.ndarray:
    view = memoryview(data)
    return decode_mask(view, decode.identify(view))


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("options", [{}, {"transparency": 1}])
def test_palette_png_gives_its_indices(bits: int, options: dict[str, int]):
    indices = RNG.integers(0, 2**bits, SIZE).astype(np.uint8)
    image = Image.new("P", SIZE[::-1])
    image.putdata(indices.reshape(-1).tolist())
    image.putpalette(RNG.integers(0, 256, 768).tolist())
    data = saved(image, bits=bits, **options)
    assert (data[24], data[25]) == (bits, 3)
    mask = decoded(data)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, indices)


def test_gray_of_8_and_16_bits_is_as_stored():
    pixels = RNG.integers(0, 256, SIZE).astype(np.uint8)
    for form in ("PNG", "BMP", "TIFF"):
        assert np.array_equal(decoded(saved(Image.fromarray(pixels), form)), pixels), form
    deep = pixels.astype(np.uint16) * 257
    for form in (".png", ".tiff"):
        mask = decoded(cv2.imencode(form, deep)[1].tobytes())
        assert mask.dtype == np.uint16
        assert np.array_equal(mask, deep), form


def test_netpbm_jpeg_2000_and_sun_rasters_are_as_stored():
    pixels = RNG.integers(0, 21, SIZE).astype(np.uint8)
    height, width = SIZE
    text = " ".join(map(str, pixels.reshape(-1).tolist()))
    colours = " ".join(f"{number} {number} {number}" for number in pixels.reshape(-1).tolist())
    files = {
        "plain PGM": f"P2 {width} {height} 20\n{text}\n".encode(),
        "plain PPM": f"P3 {width} {height} 20\n{colours}\n".encode(),
        "PGM": b"P5 %d %d 20\n" % (width, height) + pixels.tobytes(),
        "PAM": cv2.imencode(".pam", pixels)[1].tobytes(),
        "Sun": cv2.imencode(".ras", pixels)[1].tobytes(),
        "JPEG 2000": saved(Image.fromarray(pixels), "JPEG2000"),
    }
    for name, data in files.items():
        mask = decoded(data)
        assert mask.dtype == np.uint8, name
        assert np.array_equal(mask, pixels), name
    deep = pixels.astype(np.uint16) * 999
    for data in (cv2.imencode(".pgm", deep)[1].tobytes(), saved(Image.fromarray(deep), "JPEG2000")):
        assert np.array_equal(decoded(data), deep)


def test_floating_point_is_refused():
    for suffix in (".pfm", ".hdr"):
        with pytest.raises(UndecodableImage, match="floating-point"):
            decoded(cv2.imencode(suffix, np.ones((*SIZE, 3), np.float32))[1].tobytes())


def test_one_bit_is_0_and_255_as_opencv_reads_it():
    bits = RNG.integers(0, 2, SIZE).astype(bool)
    assert np.array_equal(decoded(saved(Image.fromarray(bits))), bits * np.uint8(255))


def test_gray_with_alpha_and_gray_written_as_colour_are_taken():
    pixels = RNG.integers(0, 256, SIZE).astype(np.uint8)
    assert np.array_equal(decoded(saved(Image.fromarray(np.dstack([pixels] * 3)))), pixels)
    assert np.array_equal(decoded(saved(Image.fromarray(np.dstack([pixels] * 2)))), pixels)


def test_colour_is_refused():
    colour = RNG.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    with pytest.raises(UndecodableImage, match="in colour"):
        decoded(saved(Image.fromarray(colour)))


@pytest.mark.parametrize("form", [".png", ".tiff", ".ppm"])
def test_gray_of_16_bits_written_as_colour_keeps_its_numbers(form: str):
    pixels = RNG.integers(0, 2**16, SIZE).astype(np.uint16)
    mask = decoded(cv2.imencode(form, np.dstack([pixels] * 3))[1].tobytes())
    assert mask.dtype == np.uint16
    assert np.array_equal(mask, pixels)
    almost = np.dstack([pixels, pixels, pixels ^ 1])  # equal in the high bytes
    with pytest.raises(UndecodableImage, match="in colour"):
        decoded(cv2.imencode(form, almost)[1].tobytes())


def test_jpeg_is_gray():
    pixels = np.full(SIZE, 90, np.uint8)
    assert np.abs(decoded(saved(Image.fromarray(pixels), "JPEG")).astype(int) - 90).max() <= 1


def test_palette_png_that_is_cut_short_is_refused():
    image = Image.new("P", (200, 200))
    image.putdata(RNG.integers(0, 256, 40000).tolist())
    image.putpalette(list(range(256)) * 3)
    data = saved(image)
    for cut in (len(data) // 2, len(data) - 5):
        with pytest.raises(UndecodableImage):
            decoded(data[:cut])
