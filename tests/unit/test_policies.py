"""Policies: which operations are drawn, how strong they are, where they move pixels, and that masks follow."""

from __future__ import annotations

from collections import Counter
from typing import Any

import cv2
import numpy as np
import pytest

from prefetchd.config.augment import canonical
from prefetchd.data.images.boxes import move_keypoints, placement
from prefetchd.data.images.geometry import GeometryDraws, PolicyDraws, inverse_of
from prefetchd.data.images.policies import Operation
from prefetchd.data.images.resample import Placer
from prefetchd.sampling.randomness import SampleRandomness
from tests.images import photograph
from tests.torchvision_v2 import transforms_v2

N_WORDS = 16 * 32
RNG = SampleRandomness(5)
NAMES = {
    "Identity": "identity", "ShearX": "shear_x", "ShearY": "shear_y", "TranslateX": "translate_x",
    "TranslateY": "translate_y", "Rotate": "rotate", "Brightness": "brightness", "Color": "saturation",
    "Contrast": "contrast", "Sharpness": "sharpness", "Posterize": "posterize", "Solarize": "solarize",
    "AutoContrast": "auto_contrast", "Equalize": "equalize",
}  # fmt: skip
SIGNED = {
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "saturation",
    "contrast",
    "sharpness",
}


def drawn(spec: str, n: int, target: tuple[int, int] = (224, 224)) -> list[list[Operation]]:
    draws = PolicyDraws(canonical(spec), target)
    return [draws.draw(RNG.units(0, sample_id, N_WORDS)) for sample_id in range(n)]


def test_every_operation_comes_about_as_often_and_half_of_the_signed_ones_are_negated():
    for spec, each in (("rand_augment", 2), ("trivial_augment_wide", 1), ("rand_augment(num_ops=8)", 8)):
        samples = drawn(spec, 3000)
        assert {len(found) for found in samples} == {each}
        flat = [operation for found in samples for operation in found]
        counts = Counter(name for name, _ in flat)
        assert set(counts) == set(NAMES.values())
        expected = len(flat) / len(NAMES)
        assert all(0.75 * expected < count < 1.25 * expected for count in counts.values())
        signed = [strength for name, strength in flat if name in SIGNED and strength]
        assert 0.46 < np.mean(np.array(signed) < 0) < 0.54
        assert all(strength >= 0 for name, strength in flat if name not in SIGNED)


def test_operations_of_one_sample_are_drawn_independently():
    samples = drawn("rand_augment", 6000)
    same = np.mean([found[0].name == found[1].name for found in samples])
    assert abs(same - 1 / 14) < 0.02


def test_p_is_the_chance_of_each_operation():
    counts = Counter(len(found) for found in drawn("rand_augment(p=0.5)", 4000))
    assert abs(counts[0] / 4000 - 0.25) < 0.03
    assert abs(counts[1] / 4000 - 0.5) < 0.03
    assert not any(drawn("rand_augment(p=0)", 50))


def test_magnitude_std_spreads_strengths_around_the_magnitude_and_within_the_scale():
    def degrees(spec: str) -> np.ndarray:
        flat = [operation for found in drawn(spec, 6000) for operation in found]
        return np.array([abs(strength) for name, strength in flat if name == "rotate"])

    assert set(degrees("rand_augment(magnitude=15)")) == {15.0}
    spread = degrees("rand_augment(magnitude=15, magnitude_std=3)")
    assert abs(spread.mean() - 15) < 0.5
    assert abs(spread.std() - 3) < 0.4
    draws = PolicyDraws(canonical("rand_augment(magnitude_std=1)"), (32, 32))
    for unit in (0.0, 1 - 2**-53):
        assert all(np.isfinite(operation.strength) for operation in draws.draw([unit] * N_WORDS))
    clipped = degrees("rand_augment(magnitude=29, magnitude_std=10)")
    assert clipped.min() >= 0
    assert clipped.max() == 30
    assert (clipped == 30).mean() > 0.3


def test_trivial_augment_draws_every_strength_evenly():
    strengths = [
        abs(s) for found in drawn("trivial_augment_wide(num_magnitude_bins=4)", 8000) for n, s in found if n == "rotate"
    ]
    counts = Counter(round(strength, 6) for strength in strengths)
    assert set(counts) == {0.0, 45.0, 90.0, 135.0}
    assert min(counts.values()) > 0.7 * max(counts.values())


def test_strengths_are_torchvisions_at_every_step():
    """Of both policies, for each operation, at each of 31 steps, on sizes whose translations have fractions."""
    v2 = transforms_v2()
    for spec, their in (
        ("rand_augment(magnitude={})", v2.RandAugment),
        ("trivial_augment_wide", v2.TrivialAugmentWide),
    ):
        for height, width in ((224, 224), (96, 130)):
            for step in range(31):
                draws = PolicyDraws(canonical(spec.format(step)), (height, width))
                at = 192 if "rand" in spec else 224
                for number, (name, ours) in enumerate(NAMES.items()):
                    units = [0.0] * N_WORDS
                    units[at], units[at + 1], units[at + 2] = (number + 0.5) / 14, 0.9, (step + 0.5) / 31
                    operation = draws.draw(units)[0]
                    magnitudes = their._AUGMENTATION_SPACE[name][0](31, height, width)
                    expected = 0.0 if magnitudes is None else float(magnitudes[step])
                    if name.startswith("Translate"):
                        expected = int(expected + 1e-3)  # their float32 falls short of some whole numbers
                    elif name == "Solarize":
                        expected *= 255
                    assert operation.name == ours
                    assert operation.strength == pytest.approx(expected, abs=1e-4), (name, step)


def place(image: np.ndarray, operation: Operation, interpolation: str) -> np.ndarray:
    height, width = image.shape[:2]
    turn = inverse_of(operation, height, width)
    assert turn is not None
    geometry = GeometryDraws((), (height, width)).draw((), (height, width))
    moved = type(geometry)((height, width), turn=turn)
    result = np.empty_like(image)
    Placer((height, width), "stretch", interpolation).place(image, moved, None, result)
    return result


@pytest.mark.parametrize(
    "operation",
    [
        Operation(name, sign * strength)
        for name, strength in (
            ("shear_x", 0.29),
            ("shear_y", 0.2),
            ("translate_x", 13.0),
            ("translate_y", 9.0),
            ("rotate", 27.0),
        )
        for sign in (1, -1)
    ],
    ids=lambda operation: f"{operation.name}{operation.strength:+}",
)
def test_moves_are_torchvisions(operation: Operation):
    """The same place to a small part of a pixel: on a smooth image the values agree."""
    v2 = transforms_v2()
    import torch

    image = cv2.GaussianBlur(photograph(60, 80, 2), (0, 0), 2)
    theirs = {ours: name for name, ours in NAMES.items()}[operation.name]
    policy: Any = v2.RandAugment()
    expected = policy._apply_image_or_video_transform(
        torch.from_numpy(image.transpose(2, 0, 1).copy()),
        theirs,
        operation.strength,
        interpolation=v2.InterpolationMode.BILINEAR,
        fill={torch.Tensor: 0},
    )
    difference = np.abs(place(image, operation, "linear").astype(int) - expected.numpy().transpose(1, 2, 0))
    assert np.median(difference) == 0
    inside = difference[2:-2, 2:-2]
    assert (inside > 3).mean() < 0.05  # the rim of what is left empty fades differently


@pytest.mark.parametrize("policy", ["rand_augment(num_ops=3, magnitude=15)", "trivial_augment_wide"])
@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_mask_goes_where_its_image_goes(policy: str, resize: str):
    """The image's pixels are its labels, so where it is not between two labels the mask says the same."""
    rng, size, target = np.random.default_rng(3), (180, 240), (64, 72)
    mask = cv2.resize(rng.integers(1, 3, (6, 8)).astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
    draws = GeometryDraws(canonical(policy + ", random_resized_crop, hflip"), target)
    n_turned = 0
    for sample_id in range(30):
        geometry = draws.draw(RNG.units(0, sample_id, N_WORDS), size)
        n_turned += geometry.turn is not None
        placed, placed_mask = np.empty(target, np.uint8), np.empty(target, np.uint8)
        Placer(target, resize, "linear").place(mask * 100, geometry, geometry.crop, placed)
        Placer.for_masks(target, resize, 0).place(mask, geometry, geometry.crop, placed_mask)
        certain = np.isin(placed, [0, 100, 200])
        assert certain.mean() > 0.5
        assert (placed_mask[certain] * 100 != placed[certain]).mean() < 0.004
    assert 5 < n_turned < 30


def test_keypoints_go_where_the_pixels_go():
    """The map that boxes and keypoints take leads the centre of a bright square to the centre of its pixels."""
    size, target = (200, 260), (96, 128)
    draws = GeometryDraws(canonical("rand_augment(num_ops=4, magnitude=12), hflip"), target)
    n_seen = 0
    for sample_id in range(40):
        geometry = draws.draw(RNG.units(0, sample_id, N_WORDS), size)
        image, placed = np.zeros(size, np.float32), np.empty(target, np.float32)
        image[116:125, 96:105] = 255
        Placer(target, "stretch", "linear").place(image, geometry, None, placed)
        where = placement(geometry, (0, 0, *size), (0, 0, *target), target)
        points, inside = move_keypoints(np.array([[100, 120]]), where)
        if not inside[0] or points.min() < 6 or (points[0] > (target[1] - 7, target[0] - 7)).any():
            continue
        n_seen += geometry.turn is not None
        parts = placed / placed.sum()
        centre = parts.sum(axis=0) @ np.arange(target[1]), parts.sum(axis=1) @ np.arange(target[0])
        np.testing.assert_allclose(points[0], centre, atol=0.3)
    assert n_seen > 10


def test_a_policy_that_moves_nothing_leaves_the_geometry_of_the_others():
    alone = GeometryDraws(canonical("rotate, affine, hflip"), (32, 40))
    together = GeometryDraws(canonical("rotate, affine, hflip, rand_augment(num_ops=1)"), (32, 40))
    policies = PolicyDraws(canonical("rand_augment(num_ops=1)"), (32, 40))
    kinds = set()
    for sample_id in range(200):
        units = RNG.units(0, sample_id, N_WORDS)
        (operation,) = policies.draw(units)
        moves = inverse_of(operation, 32, 40) is not None
        kinds.add(moves)
        same = alone.draw(units, (50, 60)) == together.draw(units, (50, 60))
        assert same is (not moves)
    assert kinds == {True, False}
