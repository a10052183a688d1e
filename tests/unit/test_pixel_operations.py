"""Operations on pixels: the formulas that are promised, and torchvision's result for the same parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest

from prefetchd.config.augment import canonical
from prefetchd.data.images import pixel_operations as operations
from prefetchd.data.images.pixel_changes import PixelChanges
from prefetchd.data.images.policies import Operation
from tests.images import photograph
from tests.torchvision_v2 import transforms_v2

RGB = photograph(61, 45, 1)[..., ::-1].copy()
GRAY = RGB[..., 0].copy()
ONE_VALUE = np.full((20, 30, 3), (7, 7, 200), np.uint8)
FEW_VALUES = np.random.default_rng(3).choice(np.array([3, 40, 41, 250], np.uint8), (20, 30, 3))
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
TINY = photograph(2, 9, 5)
IMAGES = [RGB, GRAY, ONE_VALUE, FEW_VALUES, RAMP, TINY]

Change = Callable[..., None]


def changed(change: Change, image: np.ndarray, *arguments: Any) -> np.ndarray:
    pixels = image.copy()
    change(pixels, *arguments)
    return pixels


def in_colour(change: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
    """Apply a reference for one channel to each."""
    if image.ndim == 2:
        return change(image)
    return np.dstack([change(image[..., channel]) for channel in range(3)])


# --- references in plain numpy


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("threshold", [0, 1, 127.5, 128, 255])
def test_solarize_inverts_what_is_bright(image: np.ndarray, threshold: float):
    assert np.array_equal(
        changed(operations.solarize, image, threshold), np.where(image >= threshold, 255 - image, image)
    )


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("bits", range(9))
def test_posterize_keeps_the_high_bits(image: np.ndarray, bits: int):
    result = changed(operations.posterize, image, bits)
    assert np.array_equal(result, image.astype(int) >> (8 - bits) << (8 - bits))


@pytest.mark.parametrize("image", IMAGES)
def test_auto_contrast_stretches_each_channel_to_the_full_range(image: np.ndarray):
    def stretch(plane: np.ndarray) -> np.ndarray:
        low, high = int(plane.min()), int(plane.max())
        return plane if low == high else (plane.astype(float) - low) * 255 / (high - low)

    expected = in_colour(stretch, image)
    result = changed(operations.auto_contrast, image)
    assert np.abs(result - expected).max() <= 1
    for plane, before in zip(cv2.split(result), cv2.split(image), strict=True):
        if before.min() < before.max():
            assert plane.min() == 0
            assert plane.max() >= 254  # 255 as torchvision computes it, which a last bit of float32 can cut to 254


@pytest.mark.parametrize("image", IMAGES)
def test_equalize_is_pillows(image: np.ndarray):
    """Pillow is the origin of the formula: step = (pixels - those of the highest value) // 255."""
    from PIL import Image, ImageOps

    expected = in_colour(lambda plane: np.asarray(ImageOps.equalize(Image.fromarray(plane))), image)
    assert np.array_equal(changed(operations.equalize, image), expected)


def test_equalize_counts_large_images_in_strips(monkeypatch: pytest.MonkeyPatch):
    whole = changed(operations.equalize, RGB)
    monkeypatch.setattr(operations, "_COUNTED_AT_ONCE", 200)
    assert np.array_equal(changed(operations.equalize, RGB), whole)


def test_equalize_makes_values_about_as_frequent():
    dark = (photograph(200, 200, 4) // 4).astype(np.uint8)
    counts = np.histogram(changed(operations.equalize, dark), bins=8, range=(0, 256))[0]
    assert counts.min() > 0.5 * counts.max()


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("factor", [0, 0.3, 1, 2, 7])
def test_sharpness_blends_with_the_smoothed_image_within_the_rim(image: np.ndarray, factor: float):
    expected = image.astype(float)
    if min(image.shape[:2]) > 2:
        height, width = image.shape[:2]
        smooth = sum(
            (5 if (down, right) == (1, 1) else 1)
            * image[down : height - 2 + down, right : width - 2 + right].astype(float)
            for down in range(3)
            for right in range(3)
        )
        expected[1:-1, 1:-1] = factor * expected[1:-1, 1:-1] + (1 - factor) * smooth / 13
    assert np.abs(changed(operations.sharpness, image, factor) - np.clip(expected, 0, 255)).max() <= 0.51


@pytest.mark.parametrize("image", [RGB, GRAY, FEW_VALUES])
@pytest.mark.parametrize(("kernel_size", "sigma"), [((23, 23), 2.0), ((5, 9), 0.1), ((9, 5), 1.3), ((1, 1), 3.0)])
def test_gaussian_blur_is_the_sum_over_its_kernel(image: np.ndarray, kernel_size: tuple[int, int], sigma: float):
    across, down = (np.exp(-((np.arange(n) - n // 2) ** 2) / (2 * sigma**2)) for n in kernel_size)
    kernel = np.outer(down / down.sum(), across / across.sum())
    tall, wide = kernel.shape
    expected = np.zeros(image.shape)
    rim = ((tall // 2, tall // 2), (wide // 2, wide // 2), (0, 0))[: image.ndim]
    padded = np.pad(image.astype(float), rim, mode="reflect")
    for y in range(tall):
        for x in range(wide):
            expected += kernel[y, x] * padded[y : y + image.shape[0], x : x + image.shape[1]]
    # OpenCV's kernel has 8 bits: on noise of four values that is more than a level.
    most = 2 if image is FEW_VALUES else 1.5
    assert np.abs(changed(operations.gaussian_blur, image, kernel_size, sigma) - expected).max() <= most


def test_grayscale_weighs_red_green_and_blue():
    expected = np.repeat((RGB @ np.array([0.299, 0.587, 0.114]))[..., None], 3, axis=2)
    result = changed(operations.grayscale, RGB, cv2.COLOR_RGB2GRAY, cv2.COLOR_GRAY2RGB)
    assert np.abs(result - expected).max() <= 0.51
    result = changed(operations.grayscale, RGB[..., ::-1].copy(), cv2.COLOR_BGR2GRAY, cv2.COLOR_GRAY2BGR)
    assert np.abs(result - expected).max() <= 0.51


def test_a_part_of_a_larger_array_is_changed_in_place():
    """Rows of a batch are written where they are, also those that are not contiguous."""
    for change, arguments in (
        (operations.solarize, (128,)), (operations.posterize, (3,)), (operations.auto_contrast, ()),
        (operations.equalize, ()), (operations.sharpness, (2,)), (operations.gaussian_blur, ((5, 5), 1.0)),
    ):  # fmt: skip
        large = np.zeros((70, 50, 3), np.uint8)
        part = large[4:65, 2:47]
        part[...] = RGB
        change(part, *arguments)
        assert np.array_equal(part, changed(change, RGB, *arguments))
        assert not large[:4].any()
        assert not large[:, :2].any()
        assert not large[65:].any()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("n_channels", [2, 4, 7])
def test_blur_and_sharpness_take_any_dtype_and_number_of_channels_each_on_its_own(dtype: str, n_channels: int):
    rng = np.random.default_rng(n_channels)
    most = {"uint8": 256, "uint16": 65536, "float32": 1e6}[dtype]
    image = (rng.random((30, 41, n_channels)) * most).astype(dtype)
    for change, arguments in ((operations.gaussian_blur, ((5, 7), 1.2)), (operations.sharpness, (1.5,))):
        together = changed(change, image, *arguments)
        planes = [changed(change, np.ascontiguousarray(image[..., n]), *arguments) for n in range(n_channels)]
        assert together.dtype == dtype
        assert not np.array_equal(together, image)
        np.testing.assert_allclose(together, np.dstack(planes), rtol=1e-5, atol=0 if dtype != "float32" else 1)


# --- against torchvision


def torchvisions(name: str, image: np.ndarray, *arguments: Any, **keywords: Any) -> np.ndarray:
    functional = getattr(transforms_v2().functional, name)
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1)))
    return functional(tensor, *arguments, **keywords).numpy().transpose(1, 2, 0).reshape(image.shape)


@pytest.mark.parametrize("image", IMAGES)
def test_tables_are_torchvisions_to_the_bit(image: np.ndarray):
    for threshold in (0, 1, 100.3, 128, 255):
        expected = torchvisions("solarize", image, threshold)
        assert np.array_equal(changed(operations.solarize, image, threshold), expected)
    for bits in range(9):
        assert np.array_equal(changed(operations.posterize, image, bits), torchvisions("posterize", image, bits))
    assert np.array_equal(changed(operations.solarize, image, 0), torchvisions("invert", image))
    assert np.array_equal(changed(operations.equalize, image), torchvisions("equalize", image))
    assert np.array_equal(changed(operations.auto_contrast, image), torchvisions("autocontrast", image))


def test_auto_contrast_is_torchvisions_for_every_range_of_values():
    for low in range(0, 255, 37):
        for high in range(low + 1, 256):
            image = np.arange(low, high + 1, dtype=np.uint8)[None].repeat(2, axis=0)
            expected = torchvisions("autocontrast", image)
            assert np.array_equal(changed(operations.auto_contrast, image), expected), (low, high)


@pytest.mark.parametrize("image", IMAGES)
def test_filters_are_torchvisions_within_a_level(image: np.ndarray):
    for factor in (0, 0.1, 0.9, 1, 1.9, 5):
        expected = torchvisions("adjust_sharpness", image, factor)
        # It rounds the smoothed image first: that counts as often as the factor is above 1.
        most = 1 if factor <= 2 else factor
        assert np.abs(changed(operations.sharpness, image, factor).astype(int) - expected).max() <= most
    if min(image.shape[:2]) > 5:
        for kernel_size, sigma in (((9, 9), 0.1), ((11, 5), 1.0), ((11, 11), 2.0), ((3, 3), 50.0)):
            expected = torchvisions("gaussian_blur", image, list(kernel_size), sigma)
            result = changed(operations.gaussian_blur, image, kernel_size, sigma)
            assert np.abs(result.astype(int) - expected).max() <= 1
    if image.ndim == 3:
        expected = torchvisions("rgb_to_grayscale", image, num_output_channels=3)
        result = changed(operations.grayscale, image, cv2.COLOR_RGB2GRAY, cv2.COLOR_GRAY2RGB)
        assert np.abs(result.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("image", [RGB, GRAY, FEW_VALUES])
def test_operations_of_a_policy_are_torchvisions(image: np.ndarray):
    changes = PixelChanges(canonical("rand_augment"), image.shape[:2], "gray" if image.ndim == 2 else "rgb")
    for strength in (-0.9, -0.27, 0.27, 0.9):
        for operation, name in (
            ("brightness", "adjust_brightness"), ("contrast", "adjust_contrast"),
            ("saturation", "adjust_saturation"), ("sharpness", "adjust_sharpness"),
        ):  # fmt: skip
            expected = torchvisions(name, image, 1 + strength)
            result = changed(changes.operate, image, Operation(operation, strength))
            assert np.abs(result.astype(int) - expected).max() <= 2, operation
    for operation, name, strength in (
        ("posterize", "posterize", 4), ("solarize", "solarize", 178.5), ("auto_contrast", "autocontrast", None),
        ("equalize", "equalize", None),
    ):  # fmt: skip
        expected = torchvisions(name, image, *(() if strength is None else (strength,)))
        assert np.array_equal(changed(changes.operate, image, Operation(operation, strength or 0.0)), expected)
