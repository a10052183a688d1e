"""What `augment` does to pixels: chances, ranges, order, words of its own for each, and nothing from other samples."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from prefetchd.config.augment import AUGMENTATIONS, canonical
from prefetchd.config.validate import make_config
from prefetchd.data.images import pixel_operations as operations
from prefetchd.data.images.geometry import FIRST_WORD, Geometry, GeometryDraws
from prefetchd.data.images.pixel_changes import PixelChanges
from prefetchd.errors import ConfigError
from prefetchd.sampling.randomness import BLOCK_WORDS, SampleRandomness
from tests.images import photograph

RNG = SampleRandomness(5)
N_WORDS = len(AUGMENTATIONS) * BLOCK_WORDS
RGB = (photograph(24, 20, 1)[..., ::-1] // 2 + 40).astype(np.uint8)
OF_BYTES = {
    "rand_augment", "trivial_augment_wide", "grayscale", "solarize", "posterize", "auto_contrast", "equalize",
}  # fmt: skip
CHANCES = [
    "color_jitter",
    "grayscale",
    "gaussian_blur",
    "solarize",
    "posterize",
    "sharpness",
    "auto_contrast",
    "equalize",
]


def apply(spec: Any, sample_id: int = 0, epoch: int = 0, color: str = "rgb", image: np.ndarray = RGB) -> np.ndarray:
    pixels = image.copy()
    changes = PixelChanges(canonical(spec), image.shape[:2], color)
    changes.apply(pixels, RNG.units(epoch, sample_id, N_WORDS))
    return pixels


def test_the_blocks_of_words_and_what_they_give_never_change():
    """Golden: another order or size of the blocks would change every augmented pixel of those who train today."""
    assert list(FIRST_WORD.items()) == [
        ("random_resized_crop", 0), ("hflip", 32), ("vflip", 64), ("rotate", 96), ("affine", 128),
        ("color_jitter", 160), ("rand_augment", 192), ("trivial_augment_wide", 224), ("grayscale", 256),
        ("gaussian_blur", 288), ("solarize", 320), ("posterize", 352), ("sharpness", 384), ("auto_contrast", 416),
        ("equalize", 448), ("random_erasing", 480),
    ]  # fmt: skip
    texts = canonical("random_resized_crop, hflip, vflip(p=0.3), rotate, affine, color_jitter")
    assert texts == (
        "random_resized_crop(scale=(0.08, 1.0), ratio=(0.75, 1.3333333333333333))",
        "hflip(p=0.5)",
        "vflip(p=0.3)",
        "rotate(degrees=(-15.0, 15.0))",
        "affine(degrees=(-10.0, 10.0), translate=(0.1, 0.1), scale=(0.9, 1.1), shear=(0.0, 0.0))",
        "color_jitter(brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.6, 1.4), hue=(-0.1, 0.1))",
    )
    units = SampleRandomness(7).units(2, 11, N_WORDS)
    geometry = GeometryDraws(texts, (32, 40)).draw(units, (300, 400))
    assert geometry.turn == pytest.approx(
        (0.9239440888, 0.0580885026, -1.0425937817, -0.0580885026, 0.9239440889, 1.3643964509),
        abs=1e-9,
    )
    assert geometry == Geometry((300, 400), (48, 53, 232, 268), hflip=True, vflip=False, turn=geometry.turn)
    assert units[160:164] == [0.6096687829711389, 0.9422142758370136, 0.36602277415112816, 0.11931406145860912]


@pytest.mark.parametrize("name", CHANCES)
def test_p_is_the_chance_of_each_and_0_and_1_are_never_and_always(name: str):
    def part(p: float, n: int) -> float:
        spec = f"{name}(p={p}, sigma=1)" if name == "gaussian_blur" else f"{name}(p={p})"
        return float(np.mean([not np.array_equal(apply(spec, sample_id), RGB) for sample_id in range(n)]))

    assert part(0, 40) == 0
    assert part(1, 40) == 1
    assert abs(part(0.3, 1500) - 0.3) < 0.05


@pytest.mark.parametrize("name", [*CHANCES, "rand_augment", "trivial_augment_wide"])
def test_a_sample_in_an_epoch_is_the_same_again_and_changes_with_the_epoch(name: str):
    epochs = [[apply(name, sample_id, epoch).tobytes() for sample_id in range(40)] for epoch in (0, 1, 0)]
    assert epochs[0] == epochs[2]
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "random_erasing"])
def test_adding_one_changes_nothing_that_another_draws(name: str):
    """An augmentation that is added, and changes no pixel, shifts no draw of the one that was there."""
    others = [other for other in CHANCES if other != name]
    for sample_id in range(6):
        units = RNG.units(0, sample_id, N_WORDS)
        for other in others:
            alone, image = apply(f"{other}(p=0.5)", sample_id), RGB.copy()
            both = PixelChanges(canonical([f"{other}(p=0.5)", neutral(name)]), image.shape[:2], "rgb")
            both.apply(image, units)
            assert np.array_equal(image, alone), other


def neutral(name: str) -> str:
    """The augmentation, so weak that it changes no pixel."""
    if "p" in AUGMENTATIONS[name]:
        return f"{name}(p=0)"
    if name == "trivial_augment_wide":
        return "hflip"  # it always does something; test_policies looks at its draws
    return name


def test_order_is_the_one_that_is_documented():
    spec = (
        "equalize(p=1), auto_contrast(p=1), sharpness(p=1), posterize(p=1, bits=5), solarize(p=1, threshold=150), "
        "gaussian_blur(kernel_size=3, sigma=1), grayscale(p=1), color_jitter(brightness=(1.2, 1.2), contrast=0, "
        "saturation=0, hue=0)"
    )
    expected = apply("color_jitter(brightness=(1.2, 1.2), contrast=0, saturation=0, hue=0)")
    operations.grayscale(expected, cv2.COLOR_RGB2GRAY, cv2.COLOR_GRAY2RGB)
    operations.gaussian_blur(expected, (3, 3), 1.0)
    operations.solarize(expected, 150)
    operations.posterize(expected, 5)
    operations.sharpness(expected, 2)
    operations.auto_contrast(expected)
    operations.equalize(expected)
    assert np.array_equal(apply(spec), expected)


def test_sigma_is_drawn_evenly_from_its_range():
    line = np.zeros((41, 41), np.uint8)
    line[:, 20] = 255
    spread = []
    for sample_id in range(2000):
        blurred = apply("gaussian_blur(kernel_size=33, sigma=(1, 3))", sample_id, color="gray", image=line)
        spread.append(int(blurred[20, 20]))
    peak = {
        sigma: apply(f"gaussian_blur(kernel_size=33, sigma={sigma})", color="gray", image=line)[20, 20]
        for sigma in (1, 2, 3)
    }
    assert peak[3] <= min(spread) < peak[3] + 3
    assert peak[1] - 5 < max(spread) <= peak[1]
    above, equal = (np.array(spread) > peak[2]).mean(), (np.array(spread) == peak[2]).mean()
    assert abs(above + equal / 2 - 0.5) < 0.05


def test_bgr_is_rgb_with_its_channels_exchanged():
    spec = "rand_augment(num_ops=8, magnitude=15), grayscale(p=0.5), equalize, solarize, sharpness"
    for sample_id in range(20):
        rgb = apply(spec, sample_id)
        bgr = apply(spec, sample_id, color="bgr", image=RGB[..., ::-1].copy())
        difference = np.abs(bgr[..., ::-1].astype(int) - rgb)
        assert np.quantile(difference, 0.9) <= 8  # a level of rounding, which equalize spreads
        assert difference.mean() < 3


def test_gray_images_take_all_of_them():
    gray = RGB[..., 1].copy()
    assert np.array_equal(apply("grayscale(p=1)", color="gray", image=gray), gray)
    assert np.array_equal(apply("solarize(p=1, threshold=0)", color="gray", image=gray), 255 - gray)
    every = [name for name in AUGMENTATIONS if name != "random_erasing"]
    seen = {apply(every, sample_id, color="gray", image=gray).tobytes() for sample_id in range(20)}
    assert len(seen) == 20


def test_nothing_is_done_where_only_geometry_is_asked_for():
    assert not PixelChanges(canonical("random_resized_crop, hflip, rotate, affine, random_erasing"), (8, 8), "rgb")
    assert PixelChanges(canonical("equalize"), (8, 8), "rgb")


@pytest.mark.parametrize(
    "options",
    [{"dtype": "uint16"}, {"channels": 4, "color": "rgb"}, {"channels": 2}, {"channels": 1, "dtype": "float32"}],
)
def test_what_is_for_8_bits_is_refused_for_other_pixels_and_the_rest_is_taken(options: dict[str, Any]):
    for name in AUGMENTATIONS:
        if name in OF_BYTES:
            with pytest.raises(ConfigError, match=f"cannot use the augmentation {name} with"):
                make_config(source="m", augment=name, **options)
        else:
            make_config(
                source="m", augment="color_jitter(saturation=0, hue=0)" if "jitter" in name else name, **options
            )
    image = (np.random.default_rng(0).random((20, 24, 4)) * 60000).astype(np.uint16)
    changes = PixelChanges(canonical("gaussian_blur, sharpness(p=1)"), (20, 24), "unchanged", 4)
    pixels = image.copy()
    changes.apply(pixels, RNG.units(0, 0, N_WORDS))
    assert not np.array_equal(pixels, image)


def test_a_later_parameter_at_its_default_changes_no_digest():
    plain = make_config(source="m", augment="color_jitter")
    assert make_config(source="m", augment="color_jitter(p=1)").digest() == plain.digest()
    assert make_config(source="m", augment="color_jitter(p=1.0)").augment == plain.augment
    assert make_config(source="m", augment="color_jitter(p=0.8)").digest() != plain.digest()
