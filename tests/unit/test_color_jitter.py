"""Colour jitter: the formulas that its docstring promises, to one level a step."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from prefetchd.config.augment import canonical, parameters
from prefetchd.data.images.color_jitter import ColorJitter
from tests.images import photograph

WEIGHTS = np.array([0.299, 0.587, 0.114])


def jitter(color: str, spec: str = "color_jitter") -> ColorJitter:
    return ColorJitter(parameters(canonical(spec))["color_jitter"], color)


def keep(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255)


def reference(rgb: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    values = keep(rgb.astype(np.float64) * brightness)
    values = keep(values * contrast + (1 - contrast) * (values @ WEIGHTS).mean())
    return keep(values * saturation + (1 - saturation) * (values @ WEIGHTS)[..., None])


@pytest.mark.parametrize(
    "factors", [(1.4, 1, 1), (0, 1, 1), (1, 1.7, 1), (1, 0, 1), (1, 1, 1.6), (1, 1, 0), (0.7, 1.3, 0.8), (9, 1, 1)]
)
def test_brightness_contrast_and_saturation_are_the_formulas(factors: tuple[float, float, float]):
    rgb = photograph(61, 45, 1)
    expected = reference(rgb, *factors)
    pixels = rgb.copy()
    jitter("rgb").adjust(pixels, *factors, 0)
    steps = sum(factor != 1 for factor in factors)
    assert np.abs(pixels - expected).max() <= (1 if steps == 1 else 3)
    bgr = rgb[..., ::-1].copy()
    jitter("bgr").adjust(bgr, *factors, 0)
    assert np.abs(bgr[..., ::-1].astype(int) - pixels).max() <= 1


def test_hue_turns_the_circle():
    """Red by a third of the circle is green; a photograph keeps its saturation and value, in 8-bit steps."""
    red = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    jitter("rgb").adjust(red, 1, 1, 1, 1 / 3)
    assert red[0, 0, 1] == 255
    assert red[0, 0, 0] <= 6
    rgb = photograph(20, 20, 3)
    turned = rgb.copy()
    jitter("rgb").adjust(turned, 1, 1, 1, 0.25)
    for before, after in zip((rgb / 255).reshape(-1, 3), (turned / 255).reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        expected = colorsys.hsv_to_rgb((hue + 0.25) % 1, saturation, value)
        assert np.abs(np.array(expected) - after).max() < 0.03


def test_gray_has_neither_saturation_nor_hue():
    gray = photograph(30, 40, 2)[..., 0].copy()
    pixels = gray.copy()
    jitter("gray").adjust(pixels, 1, 1, 0.2, 0.3)
    assert np.array_equal(pixels, gray)
    jitter("gray").adjust(pixels, 1.2, 0.5, 0.2, 0.3)
    bright = keep(gray * 1.2)
    assert np.abs(pixels - keep(bright * 0.5 + 0.5 * bright.mean())).max() <= 1


def test_gray_pixels_of_a_colour_image_stay_gray():
    pixels = np.repeat(photograph(30, 40, 2)[..., :1], 3, axis=2)
    before = pixels.copy()
    jitter("rgb").adjust(pixels, 1, 1, 1.5, 0.3)
    assert np.abs(pixels.astype(int) - before).max() <= 1


def test_each_factor_is_drawn_from_its_own_range():
    spec = "color_jitter(brightness=(2, 2), contrast=0, saturation=0, hue=0)"
    pixels = np.full((3, 3, 3), 50, np.uint8)
    jitter("rgb", spec).apply(pixels, [0.3] * 192)
    assert (pixels == 100).all()


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_other_types_follow_the_same_formulas_with_more_numbers(dtype: str):
    """16 bits are rounded and clipped to their own range, float32 is not."""
    rgb = photograph(30, 20, 2).astype(np.float64) * 257
    pixels = rgb.astype(dtype)
    jitter("rgb").adjust(pixels, 1.3, 0.7, 1.2, 0.2)
    values = rgb * 1.3 if dtype == "float32" else np.clip(np.rint(rgb * 1.3), 0, 65535)
    values = values * 0.7 + 0.3 * (values @ WEIGHTS).mean()
    values = values * 1.2 - 0.2 * (values @ WEIGHTS)[..., None]
    values = values if dtype == "float32" else np.clip(np.rint(values), 0, 65535)
    for got, before in zip(pixels.reshape(-1, 3), (values / 65535).reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        expected = colorsys.hsv_to_rgb((hue + 0.2) % 1, saturation, value)
        np.testing.assert_allclose(got / 65535, np.clip(expected, 0, None if dtype == "float32" else 1), atol=2e-4)


def test_alpha_is_left_alone_and_colours_are_as_without_it():
    rgb = photograph(30, 20, 2)
    alpha = np.dstack([rgb, rgb[..., 0]])
    given = parameters(canonical("color_jitter"))["color_jitter"]
    for color in ("rgb", "bgr"):
        plain, both = rgb.copy(), alpha.copy()
        ColorJitter(given, color).adjust(plain, 1.2, 0.8, 1.3, 0.1)
        ColorJitter(given, color, 4).adjust(both, 1.2, 0.8, 1.3, 0.1)
        np.testing.assert_array_equal(both, np.dstack([plain, rgb[..., 0]]))


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_channels_that_are_no_colours_share_one_mean(channels: int):
    given = parameters(canonical("color_jitter(saturation=0, hue=0)"))["color_jitter"]
    bands = np.random.default_rng(1).integers(0, 60000, (9, 8, channels)).astype(np.uint16)
    pixels = bands.copy()
    ColorJitter(given, "unchanged", channels).adjust(pixels, 1.2, 0.5, 1, 0)
    bright = np.clip(np.rint(bands * 1.2), 0, 65535)
    np.testing.assert_allclose(pixels, bright * 0.5 + 0.5 * bright.mean(), atol=1)
