"""Exact pixels: the numbers and channels of the file, or a reason that names what differs."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from prefetchd.config.validate import make_config
from prefetchd.data.faults import RefusedImage, UndecodableImage
from prefetchd.data.images import decode
from prefetchd.data.images.decode import identify
from prefetchd.data.images.exact import Wanted
from tests.images import exif, photograph, write_kinds
from tests.tiffs import DEFLATE, PACKBITS, UNCOMPRESSED, encode_tiff


@pytest.fixture(scope="module", autouse=True)
def quiet() -> None:
    cv2.setNumThreads(0)
    decode.silence_decoders()


def wanted(channels: int | None = None, dtype: str = "uint8", **options: Any) -> Wanted:
    given = {} if channels is None else {"channels": channels}
    return Wanted.of(make_config(source="m", dtype=dtype, **given, **options))


def load(data: bytes, want: Wanted) -> NDArray[Any]:
    header = identify(data)
    want.check(header)
    image = want.decode(memoryview(bytearray(data)), header)
    assert image.shape == want.shape(*header.oriented_size)
    assert image.dtype == want.dtype
    return image


def encoded(suffix: str, pixels: NDArray[Any], *options: int) -> bytes:
    ok, data = cv2.imencode(suffix, pixels, options)
    assert ok
    return data.tobytes()


def numbers(seed: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Return any bits: NaN, infinities and both zeros of floating-point numbers too."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (*shape, np.dtype(dtype).itemsize), dtype=np.uint8)
    return raw.view(dtype)[..., 0]


def same_bits(found: NDArray[Any], made: NDArray[Any]) -> bool:
    made = made[..., 0] if made.shape[-1] == 1 else made
    return found.shape == made.shape and np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(made).tobytes()


@settings(max_examples=150, deadline=None)
@given(
    st.data(),
    st.sampled_from([1, 2, 3, 4, 5, 13]),
    st.sampled_from(["uint8", "uint16", "float32"]),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_a_tiffs_numbers_are_kept_bit_for_bit(
    data: st.DataObject, channels: int, dtype: str, height: int, width: int
) -> None:
    pixels = numbers(height * width, (height, width, channels), dtype)
    predictor = data.draw(st.sampled_from([1, 3] if dtype == "float32" else [1, 2]))
    file = encode_tiff(
        pixels,
        predictor=predictor,
        # libtiff takes predictors with its compressions of strings alone.
        compression=DEFLATE if predictor > 1 else data.draw(st.sampled_from([UNCOMPRESSED, DEFLATE, PACKBITS])),
        planar=data.draw(st.booleans()),
        tile=data.draw(st.sampled_from([None, (16, 16), (32, 16)])),
        rows_per_strip=data.draw(st.sampled_from([None, 1, 7])),
        order=data.draw(st.sampled_from("<>")),
        big=data.draw(st.booleans()),
        photometric=2 if channels >= 3 and data.draw(st.booleans()) else 1,
    )
    assert same_bits(load(file, wanted(channels, dtype)), pixels)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(".png", 1), (".png", 3), (".png", 4), (".pgm", 1), (".ppm", 3), (".jp2", 1), (".jp2", 3)]),
    st.sampled_from(["uint8", "uint16"]),
    st.integers(32, 60),
    st.integers(32, 60),
)
def test_the_numbers_of_other_formats_are_those_of_cv2_imread_unchanged(
    kind: tuple[str, int], dtype: str, height: int, width: int
) -> None:
    suffix, channels = kind
    pixels = numbers(height + width, (height, width, channels), dtype)
    lossless = (cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000) if suffix == ".jp2" else ()
    file = encoded(suffix, pixels, *lossless)
    expected = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    found = load(file, wanted(channels, dtype))
    assert found.dtype == dtype
    if channels > 1:
        expected = cv2.cvtColor(expected, cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_BGRA2RGBA)
    np.testing.assert_array_equal(found, expected)
    if channels >= 3 and channels != 3:
        np.testing.assert_array_equal(load(file, wanted(4, dtype, color="bgr")), pixels)
    # float32 holds all of them.
    np.testing.assert_array_equal(load(file, wanted(channels, "float32")), expected.astype(np.float32))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
@pytest.mark.parametrize("format", ["png", "tiff", "webp"])
def test_the_channels_are_those_of_pillow(mode: str, channels: int, format: str) -> None:
    if format == "webp" and channels < 3:
        pytest.skip("WebP has colours only")
    pixels = numbers(1, (20, 31, channels), "uint8")
    file = io.BytesIO()
    options = {"lossless": True, "exact": True} if format == "webp" else {}
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    assert image.mode == mode
    image.save(file, format, **options)
    assert same_bits(load(file.getvalue(), wanted(channels)), pixels)
    for other in {1, 2, 3, 4} - {channels}:
        with pytest.raises(RefusedImage, match=f"has {channels} channels?, and channels={other}"):
            load(file.getvalue(), wanted(other))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied(orientation: int) -> None:
    pixels = np.ascontiguousarray(photograph(20, 31, 3)[..., ::-1])
    upright = Image.fromarray(pixels)
    upright.getexif()[0x112] = orientation
    from PIL import ImageOps

    expected = np.asarray(ImageOps.exif_transpose(upright))
    for format in ("png", "webp"):
        file = io.BytesIO()
        options = {"lossless": True} if format == "webp" else {}
        Image.fromarray(pixels).save(file, format, exif=exif(orientation), **options)
        np.testing.assert_array_equal(load(file.getvalue(), wanted(3)), expected, err_msg=format)
    deep = encode_tiff(pixels.astype(np.uint16) * 250, orientation=orientation, photometric=2)
    np.testing.assert_array_equal(load(deep, wanted(3, "uint16")), expected.astype(np.uint16) * 250)


def test_what_every_kind_gives_is_what_conversion_gives_where_nothing_is_converted(tmp_path: Path) -> None:
    """The exact way and the usual one agree on 8-bit grey and colours, reductions and orientation included."""
    compared, differing = [], []
    for name, path in write_kinds(tmp_path).items():
        data = path.read_bytes()
        header = identify(data)
        if header.channels not in (1, 3) or header.bits != 8 or header.is_float:
            continue
        usual = decode.decode_image(data, header, color="gray" if header.channels == 1 else "rgb", reduction=1)
        try:
            found = load(data, wanted(header.channels))
        except UndecodableImage as fault:
            differing.append((name, fault.reason))
            continue
        # OpenCV scales plain text, and takes the colours of a PAM as blue, green, red.
        if header.format != "pam" and not header.scaled_from:
            np.testing.assert_array_equal(found, usual, err_msg=name)
        compared.append(name)
    assert {"baseline.jpg", "exif6.jpg", "grey.jpg", "palette.png", "exif6.tiff", "rgb.bmp", "grey.pgm"} <= {*compared}
    assert all(reason.endswith("channels=3") for _, reason in differing), differing


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pfms_numbers_are_kept_with_any_scale(channels: int) -> None:
    pixels = numbers(5, (6, 7, channels), "float32")
    for scale, order in (("-1.0", "<"), ("2.5", ">")):
        head = f"P{'f' if channels == 1 else 'F'}\n7 6\n{scale}\n".encode()
        file = head + pixels[::-1].astype(f"{order}f4").tobytes()
        assert same_bits(load(file, wanted(channels, "float32")), pixels)


@pytest.mark.parametrize(("channels", "kind"), [(1, "GRAYSCALE"), (2, "GRAYSCALE_ALPHA"), (3, "RGB"), (4, "RGB_ALPHA")])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_pams_numbers_are_kept_in_their_order(channels: int, kind: str, dtype: str) -> None:
    pixels = numbers(5, (6, 7, channels), dtype)
    head = f"P7\nWIDTH 7\nHEIGHT 6\nDEPTH {channels}\nMAXVAL {np.iinfo(dtype).max}\nTUPLTYPE {kind}\nENDHDR\n"
    file = head.encode() + pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    assert same_bits(load(file, wanted(channels, dtype)), pixels)


def test_a_jpeg_of_ink_is_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(photograph(9, 9)).convert("CMYK").save(file, "jpeg")
    for channels in (3, 4):
        with pytest.raises(RefusedImage, match="the JPEG has 4 channels"):
            load(file.getvalue(), wanted(channels))


def test_a_signed_tiff_is_kept_in_float32() -> None:
    heights = np.arange(-3000, 3000, dtype=np.int16).reshape(60, 100, 1)
    file = encode_tiff(heights, compression=DEFLATE, predictor=2)
    np.testing.assert_array_equal(load(file, wanted(1, "float32")), heights[..., 0].astype(np.float32))
    with pytest.raises(RefusedImage, match="signed integers of 16 bits, and dtype='uint16' keeps 16 bits exactly"):
        load(file, wanted(1, "uint16"))


DEEP_GREY = encoded(".png", np.full((9, 9), 40000, np.uint16))
DEEP_RGB = encoded(".png", np.full((9, 9, 3), 40000, np.uint16))
JPEG = encoded(".jpg", photograph(16, 16))
FLOATS = encode_tiff(np.ones((9, 9, 1), np.float32))


@pytest.mark.parametrize(
    ("file", "want", "says"),
    [
        (JPEG, wanted(dtype="uint16"), "the JPEG has 8 bits, and dtype='uint16' keeps 16 bits exactly; give dtype="),
        (JPEG, wanted(1), "the JPEG has 3 channels, and channels=1"),
        (DEEP_GREY, wanted(1), "the PNG has 16 bits, and dtype='uint8' keeps 8 bits exactly; give dtype='uint16'"),
        (DEEP_GREY, wanted(1, "float16"), "the PNG has 16 bits, and dtype='float16' keeps 8 bits"),
        (DEEP_GREY, wanted(3, "uint16"), "the PNG has 1 channel, and channels=3"),
        (FLOATS, wanted(dtype="uint16"), "floating-point numbers of 32 bits, and dtype='uint16'"),
        (FLOATS, wanted(1), "floating-point numbers of 32 bits, and dtype='uint8'"),
        (encode_tiff(np.ones((9, 9, 1), np.float64)), wanted(1, "float32"), "floating-point numbers of 64 bits"),
        (encode_tiff(np.ones((9, 9, 1), np.float16)), wanted(1, "float32"), "of 16 bits, and dtype='float32'"),
        (encode_tiff(np.ones((9, 9, 1), np.int32)), wanted(1, "float32"), "signed integers of 32 bits"),
        (encode_tiff(np.ones((9, 9, 1), np.uint32)), wanted(1, "float32"), "the TIFF has 32 bits"),
        (encode_tiff(np.ones((9, 9, 5), np.uint8)), wanted(4), "the TIFF has 5 channels, and channels=4"),
        (encode_tiff(np.ones((9, 9, 1), np.uint16), photometric=0), wanted(1, "uint16"), "cannot be kept as it is"),
        (encode_tiff(np.ones((9, 9, 1), np.uint8), photometric=0), wanted(1), "cannot be kept as it is"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_in_words(file: bytes, want: Wanted, says: str) -> None:
    with pytest.raises(RefusedImage) as caught:
        load(file, want)
    assert says in caught.value.reason
    assert "\n" not in caught.value.reason


def test_uint16_converts_colours_and_keeps_the_bits() -> None:
    pixels = numbers(3, (12, 15, 3), "uint16")
    file = encoded(".png", pixels)
    np.testing.assert_array_equal(load(file, wanted(dtype="uint16", color="bgr")), pixels)
    np.testing.assert_array_equal(load(file, wanted(dtype="uint16")), pixels[..., ::-1])
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH
    expected = cv2.imdecode(np.frombuffer(file, np.uint8), flags)
    np.testing.assert_array_equal(load(file, wanted(dtype="uint16", color="gray")), expected)
    np.testing.assert_array_equal(load(DEEP_GREY, wanted(dtype="uint16")), np.full((9, 9, 3), 40000))


@pytest.mark.parametrize("name", ["deflate", "tiles", "planes"])
def test_a_damaged_tiff_is_a_bad_sample(name: str) -> None:
    options: dict[str, Any] = {"deflate": {}, "tiles": {"tile": (16, 16)}, "planes": {"planar": True}}[name]
    good = encode_tiff(numbers(1, (40, 40, 5), "uint16"), compression=DEFLATE, **options)
    want = wanted(5, "uint16")
    load(good, want)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        bad = bytearray(good)
        for at in rng.integers(0, len(bad), 4):
            bad[at] = rng.integers(256)
        cut = bytes(bad[: rng.integers(8, len(bad) + 1)])
        try:
            load(cut, want)
        except UndecodableImage:
            refused += 1
    assert refused > 200


def test_a_tiff_whose_planes_do_not_divide_is_refused() -> None:
    file = bytearray(encode_tiff(numbers(1, (8, 8, 5), "uint8"), planar=True))
    at = file.rindex(struct.pack("<HHI", 273, 4, 5))
    file[at + 4 : at + 8] = struct.pack("<I", 4)
    with pytest.raises(RefusedImage, match="do not divide into 5 planes"):
        load(bytes(file), wanted(5))


def test_the_estimate_is_above_the_peak(tmp_path: Path) -> None:
    """Each in a process forked for it, so that none finds memory that another has taken before."""
    script = textwrap.dedent("""
        import os, sys, cv2
        from prefetchd.config.validate import make_config
        from prefetchd.data.images.decode import *
        from prefetchd.data.images.exact import Wanted
        cv2.setNumThreads(0)
        silence_decoders()
        def status(key):
            return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))
        for path in sys.argv[1:]:
            channels, dtype = os.path.basename(path).split("-")[:2]
            options = {} if channels == "c" else {"channels": channels}
            want = Wanted.of(make_config(source="m", dtype=dtype, **options))
            if child := os.fork():
                assert os.waitpid(child, 0)[1] == 0, path
                continue
            data = bytearray(open(path, "rb").read())
            header = identify(data)
            small = bytearray(open(path.replace("/large/", "/small/"), "rb").read())
            want.decode(memoryview(small), identify(small))  # what a codec takes once is not the image's
            open("/proc/self/clear_refs", "w").write("5")
            before = status("VmRSS")
            want.decode(memoryview(data), header)
            peak = status("VmHWM") - before
            print(path, peak, want.working_bytes(header, len(data), 1), flush=True)
            os._exit(0)
    """)
    lossless = (cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000)
    for folder, (height, width) in (("large", (900, 1100)), ("small", (40, 50))):
        (tmp_path / folder).mkdir()
        files = {
            "1-uint16-g.png": encoded(".png", numbers(0, (height, width), "uint16")),
            "4-uint16-a.png": encoded(".png", numbers(0, (height, width, 4), "uint16")),
            "4-float32-a.png": encoded(".png", numbers(0, (height, width, 4), "uint8")),
            "c-uint16-rgb.png": encoded(".png", numbers(0, (height, width, 3), "uint16")),
            "c-uint16-rgb.tiff": encode_tiff(numbers(0, (height, width, 3), "uint16"), photometric=2),
            "1-uint16-g.pgm": encoded(".pgm", numbers(0, (height, width), "uint16")),
            "3-uint16-rgb.jp2": encoded(".jp2", numbers(0, (height, width, 3), "uint16"), *lossless),
            "5-uint16-chunky.tiff": encode_tiff(numbers(0, (height, width, 5), "uint16")),
            "5-uint16-sums.tiff": encode_tiff(
                numbers(0, (height, width, 5), "uint16"), compression=DEFLATE, predictor=2, rows_per_strip=16
            ),
            "5-float32-planes.tiff": encode_tiff(numbers(0, (height, width, 5), "float32"), planar=True),
            "5-float32-bytes.tiff": encode_tiff(
                numbers(0, (height, width, 5), "float32"), compression=DEFLATE, predictor=3, tile=(64, 64)
            ),
            "5-float32-small.tiff": encode_tiff(numbers(0, (height, width, 5), "uint8"), orientation=6),
            "1-float32-g.pfm": b"Pf\n%d %d\n-1\n" % (width, height) + bytes(4 * height * width),
        }
        for name, file in files.items():
            (tmp_path / folder / name).write_bytes(file)
    done = subprocess.run(
        [sys.executable, "-c", script, *(str(tmp_path / "large" / name) for name in files)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OPENBLAS_NUM_THREADS": "1"},
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(files)
    for line in lines:
        peak, estimate = map(int, line.split()[1:])
        assert estimate >= peak > 0, line
        assert estimate <= 4 * peak + (10 << 20), line


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
def test_16_bits_are_those_that_8_bits_were_cut_from(tmp_path: Path, color: Any) -> None:
    """The files hold a photograph's 8 bits times 257."""
    compared = 0
    for name, path in write_kinds(tmp_path).items():
        data = path.read_bytes()
        header = identify(data)
        if header.bits != 16 or header.is_float:
            continue
        deep = load(data, wanted(dtype="uint16", color=color))
        usual = decode.decode_image(data, header, color=color, reduction=1)
        assert np.abs(deep.astype(int) - usual.astype(int) * 257).max() <= 257, name
        compared += 1
    assert compared >= 5
