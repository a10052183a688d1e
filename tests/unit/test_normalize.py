"""The pixel pipeline: exactly OpenCV's resize, then exactly the arithmetic that the options say."""

from __future__ import annotations

from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.files import FileBuffer, read_file
from prefetchd.data.images.decode import decode_image, identify
from prefetchd.data.images.normalize import Normalizer, value_table
from prefetchd.data.images.resample import Placer, crop_box, fit_box
from tests.images import photograph, write_kinds

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CODES = {"nearest": 0, "linear": 1, "cubic": 2, "area": 3, "lanczos": 4}


class Pipeline:
    """The plain way of an image into its row: resized onto the row's canvas, then made into values."""

    def __init__(self, **options: Any) -> None:
        config = make_config(source="x", **options)
        self._placer = Placer(config.image_size, config.resize, config.interpolation)
        self._normalizer = Normalizer(config)

    def write(self, image: np.ndarray, row: np.ndarray) -> None:
        pixels = self._normalizer.canvas(row)
        self._placer.resize(image, pixels)
        self._normalizer.deliver(pixels, row)


def write(image: np.ndarray, **options: Any) -> np.ndarray:
    """One sample in the middle of a batch filled with a marker; checks that its neighbours stay untouched."""
    config = make_config(source="x", **options)
    height, width = config.image_size
    shape = (config.n_channels, height, width) if config.layout == "nchw" else (height, width, config.n_channels)
    batch = np.full((3, *shape), 77, config.dtype)
    pipeline = Pipeline(**options)
    for _ in range(2):  # kept scratch must not show
        pipeline.write(np.full_like(image, 255), batch[1])
        pipeline.write(image, batch[1])
    assert (batch[[0, 2]] == 77).all()
    return batch[1]


def test_uint8_is_cv2_resize_of_cv2_imread_byte_for_byte_for_every_kind(tmp_path: Path) -> None:
    for name, path in write_kinds(tmp_path).items():
        expected = cv2.imread(str(path))
        if expected is None:  # cv2.imread's own failing with rotated TIFF
            continue
        data = read_file(path, FileBuffer())
        image = decode_image(data, identify(data), color="bgr", reduction=1)
        for size in ((32, 48), (83, 60), (60, 83)):
            row = write(image, image_size=size, color="bgr", shrink_on_load=False)
            assert np.array_equal(row, cv2.resize(expected, size[::-1])), (name, size)


@pytest.mark.parametrize("interpolation", list(CODES))
@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_every_interpolation_and_layout_is_cv2_resize(interpolation: str, color: str, layout: str) -> None:
    image = photograph(75, 101, 1)
    image = image if color == "rgb" else np.ascontiguousarray(image[..., 0])
    for size in ((40, 30), (150, 202), (75, 101), (1, 1), (1, 50)):
        row = write(image, image_size=size, color=color, layout=layout, interpolation=interpolation)
        expected = cv2.resize(image, size[::-1], interpolation=CODES[interpolation]).reshape(*size, -1)
        assert np.array_equal(row if layout == "nhwc" else row.transpose(1, 2, 0), expected), size


def test_rows_in_shared_memory_are_written_in_place() -> None:
    memory = SharedMemory(create=True, size=2 * 24 * 32 * 3)
    try:
        batch = np.ndarray((2, 24, 32, 3), np.uint8, memory.buf)
        image = photograph(50, 70)
        Pipeline(image_size=(24, 32)).write(image, batch[1])
        copied = np.frombuffer(bytes(memory.buf[24 * 32 * 3 : 2 * 24 * 32 * 3]), np.uint8).reshape(24, 32, 3)
        assert np.array_equal(copied, cv2.resize(image, (32, 24)))
        del batch
    finally:
        memory.close()
        memory.unlink()


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_float32_with_scale_is_img_over_255_within_rounding(layout: str) -> None:
    image = photograph(64, 64)
    row = write(image, image_size=(32, 32), dtype="float32", scale=1 / 255, layout=layout)
    pixels = cv2.resize(image, (32, 32))
    expected = pixels if layout == "nhwc" else pixels.transpose(2, 0, 1)
    np.testing.assert_allclose(row, expected.astype(np.float32) / np.float32(255), rtol=2e-7, atol=0)
    assert np.isfinite(row).all()


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("scale", [None, 1 / 255])
@pytest.mark.parametrize("mean", [None, (0.5,), MEAN])
@pytest.mark.parametrize("std", [None, (0.25,), STD])
def test_values_are_the_float64_result_rounded_once(layout: str, dtype: str, scale: Any, mean: Any, std: Any) -> None:
    image = photograph(40, 50, 3)
    options = {"dtype": dtype, "scale": scale, "mean": mean, "std": std, "layout": layout}
    row = write(image, image_size=(24, 20), **options)
    values = cv2.resize(image, (20, 24)).astype(np.float64)
    values = values * (scale or 1)
    values = (values - (mean or 0)) / (std or 1)
    expected = values.astype(dtype) if layout == "nhwc" else values.astype(dtype).transpose(2, 0, 1)
    if dtype == "float32" and mean is None and std is None:
        np.testing.assert_array_max_ulp(row, np.ascontiguousarray(expected), maxulp=1)
    else:
        assert np.array_equal(row, expected)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_gray_floats(layout: str, dtype: str) -> None:
    image = np.ascontiguousarray(photograph(40, 50)[..., 1])
    row = write(image, image_size=(24, 20), dtype=dtype, color="gray", layout=layout, scale=1 / 255, mean=0.5, std=0.2)
    assert row.shape == ((24, 20, 1) if layout == "nhwc" else (1, 24, 20))
    expected = ((cv2.resize(image, (20, 24)) * (1 / 255) - 0.5) / 0.2).astype(dtype)
    assert np.array_equal(row.reshape(24, 20), expected)


def test_no_scale_delivers_0_to_255_and_no_scale_gives_nan() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    for dtype in ("float32", "float16"):
        assert np.array_equal(write(image, image_size=16, dtype=dtype), image.astype(dtype))
        for scale in (1e30, 1e39, 1e308, 0.0, -1e-45):
            row = write(image, image_size=16, dtype=dtype, scale=scale)
            assert not np.isnan(row).any()
            assert (row[0, 0] == 0).all()


def test_crop_takes_the_centre_at_the_targets_aspect() -> None:
    image = photograph(100, 300, 5)
    row = write(image, image_size=(50, 50), resize="crop")
    assert np.array_equal(row, cv2.resize(np.ascontiguousarray(image[:, 100:200]), (50, 50)))
    row = write(image, image_size=(60, 20), resize="crop")
    assert np.array_equal(row, cv2.resize(np.ascontiguousarray(image[:, 133:166]), (20, 60)))
    row = write(image.transpose(1, 0, 2).copy(), image_size=(50, 50), resize="crop")
    assert row.shape == (50, 50, 3)


def test_pad_fits_the_image_and_leaves_black_around_it() -> None:
    image = photograph(100, 300, 6) | 1
    row = write(image, image_size=(60, 60), resize="pad")
    assert np.array_equal(row[20:40], cv2.resize(image, (60, 20)))
    assert not row[:20].any()
    assert not row[40:].any()
    tall = np.ascontiguousarray(image.transpose(1, 0, 2))
    row = write(tall, image_size=(60, 60), resize="pad", dtype="float32", scale=1 / 255, mean=MEAN, std=STD)
    black = ((0 - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    assert (row[:, :20] == black).all()
    assert (row[:, 40:] == black).all()
    wide = write(image, image_size=(60, 60), resize="pad", layout="nchw", color="rgb")
    assert not wide[:, :20].any()


def test_scratch_of_one_image_does_not_show_in_the_next() -> None:
    pipeline, row = Pipeline(image_size=(40, 40), resize="pad", dtype="float32"), np.empty((40, 40, 3), np.float32)
    pipeline.write(np.full((100, 50, 3), 255, np.uint8), row)
    pipeline.write(np.full((50, 100, 3), 255, np.uint8), row)
    assert row[:10].max() == 0
    assert row[10:30].min() == 255


def test_boxes_stay_inside_for_all_shapes() -> None:
    rng = np.random.default_rng(0)
    for height, width, target_h, target_w in rng.integers(1, 400, (3000, 4)).tolist():
        top, left, tall, wide = crop_box(height, width, target_h, target_w)
        assert top >= 0
        assert left >= 0
        assert 1 <= tall <= height - top
        assert 1 <= wide <= width - left
        assert tall == height or wide == width
        top, left, tall, wide = fit_box(height, width, target_h, target_w)
        assert top >= 0
        assert left >= 0
        assert 1 <= tall <= target_h - top
        assert 1 <= wide <= target_w - left
        assert tall == target_h or wide == target_w


def test_extreme_shapes_are_resized_in_every_mode() -> None:
    for shape in ((1, 1, 3), (1, 5000, 3), (5000, 1, 3)):
        for resize in ("stretch", "crop", "pad"):
            row = write(np.full(shape, 9, np.uint8), image_size=(7, 9), resize=resize)
            assert set(np.unique(row)) <= {0, 9}


def test_a_row_of_another_shape_or_layout_is_refused() -> None:
    pipeline = Pipeline(image_size=(8, 8))
    image = photograph(20, 20)
    for row in (
        np.empty((8, 9, 3), np.uint8),
        np.empty((8, 8, 3), np.float32),
        np.empty((8, 8, 6), np.uint8)[..., ::2],
    ):
        with pytest.raises(ValueError, match="cannot write a sample"):
            pipeline.write(image, row)


def test_the_table_has_a_column_a_channel() -> None:
    table = value_table(make_config(source="x", dtype="float32", scale=1 / 255, mean=MEAN, std=STD))
    assert table.shape == (256, 3)
    assert table[255, 0] == np.float32((1 - 0.485) / 0.229)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [2, 4, 6, 130])
@pytest.mark.parametrize("interpolation", ["linear", "cubic", "area", "lanczos", "nearest"])
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_many_channels_are_each_placed_as_one(dtype: str, channels: int, interpolation: str, layout: str) -> None:
    options = {"channels": channels, "dtype": dtype, "interpolation": interpolation, "layout": layout}
    image = np.random.default_rng(channels).integers(0, 256, (40, 31, channels)).astype(dtype)
    if dtype == "uint16":
        image *= 256
    found = write(image, image_size=(16, 20), resize="pad", **options)
    options["channels"] = 1
    alone = [write(image[..., c], image_size=(16, 20), resize="pad", **options) for c in range(channels)]
    axis = 0 if layout == "nchw" else -1
    expected = np.concatenate(alone, axis)
    # OpenCV's vector instructions round differently by the number of channels.
    atol = {"uint8": 1, "uint16": 1, "float32": 1e-3}[dtype]
    np.testing.assert_allclose(found.astype(float), expected.astype(float), atol=atol)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("channels", [2, 6])
def test_bands_of_bytes_in_float16_are_from_a_table_each(layout: str, channels: int) -> None:
    mean = np.linspace(3, 90, channels)
    image = np.random.default_rng(channels).integers(0, 256, (9, 7, channels), np.uint8)
    options = {"channels": channels, "dtype": "float16", "scale": 0.5, "mean": mean, "layout": layout}
    found = write(image, image_size=(9, 7), **options)
    expected = (image * 0.5 - mean).astype(np.float16)
    np.testing.assert_array_equal(found, expected.transpose(2, 0, 1) if layout == "nchw" else expected)
