"""Crops, flips and turns: against straightforward implementations, and the same for an image and its mask."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest

from prefetchd.config.augment import canonical
from prefetchd.data.images.decode import choose_reduction
from prefetchd.data.images.geometry import Geometry, GeometryDraws, inverse_affine, random_resized_crop, same_aspect
from prefetchd.data.images.headers.header import ImageHeader
from prefetchd.data.images.resample import Placer, crop_box, fit_box
from prefetchd.sampling.randomness import SampleRandomness
from tests.images import photograph

RNG = SampleRandomness(5)


def draw(spec: str, size: tuple[int, int], target: tuple[int, int], sample_id: int = 0) -> Geometry:
    return GeometryDraws(canonical(spec), target).draw(RNG.units(0, sample_id, 192), size)


def place(image: np.ndarray, geometry: Geometry, target: tuple[int, int], **options: Any) -> np.ndarray:
    options = {"resize": "stretch", "interpolation": "linear", **options}
    result = np.full((*target, *image.shape[2:]), 7, image.dtype)
    crop = geometry.crop_in(image.shape[0], image.shape[1])
    Placer(target, **options).place(image, geometry, crop, result)
    return result


def test_crops_are_within_the_image_and_their_area_and_aspect_within_the_ranges():
    rng = np.random.default_rng(0)
    for sample_id in range(3000):
        height, width = rng.integers(1, 900, 2).tolist()
        units = RNG.units(0, sample_id, 32)
        top, left, tall, wide = random_resized_crop(units, height, width, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        assert 0 <= top <= height - tall
        assert 0 <= left <= width - wide
        assert tall >= 1
        assert wide >= 1
        if min(height, width) > 100 and max(height, width) < 1.3 * min(height, width):
            assert 0.07 < tall * wide / (height * width) <= 1
            assert 0.73 < wide / tall < 1.37


def test_crops_reach_everywhere_and_every_size():
    boxes = [draw("random_resized_crop", (300, 400), (10, 10), n).crop for n in range(3000)]
    areas = np.array([tall * wide for _, _, tall, wide in boxes if tall]) / 120000
    # Areas near the whole are refused more often, as their shape does not fit: below 0.5 they are uniform.
    parts = np.histogram(areas, np.linspace(0.08, 0.5, 7))[0]
    assert parts.min() > 0.8 * parts.max()
    assert areas.max() > 0.95
    assert min(top for top, *_ in boxes) == 0
    assert max(top + tall for top, _, tall, _ in boxes) == 300
    assert max(left + wide for _, left, _, wide in boxes) == 400


def test_crop_that_never_fits_is_the_largest_centred_one_of_the_nearest_aspect():
    units = RNG.units(0, 0, 32)
    assert random_resized_crop(units, 10, 1000, scale=(1, 1), ratio=(3 / 4, 4 / 3)) == (0, 493, 10, 13)
    assert random_resized_crop(units, 1000, 10, scale=(1, 1), ratio=(3 / 4, 4 / 3)) == (493, 0, 13, 10)
    assert random_resized_crop(units, 1, 1, scale=(0.08, 0.09), ratio=(1, 1)) == (0, 0, 1, 1)


def test_adding_an_augmentation_moves_no_others_draws():
    for sample_id in range(50):
        alone = draw("random_resized_crop", (200, 300), (32, 32), sample_id)
        together = draw("hflip, vflip, rotate, affine, random_resized_crop", (200, 300), (32, 32), sample_id)
        assert together.crop == alone.crop
        assert together.hflip == draw("hflip", (9, 9), (5, 5), sample_id).hflip


def test_flips_come_half_the_time_or_as_p_says():
    flipped = [draw("hflip, vflip(p=0.1)", (9, 9), (5, 5), n) for n in range(2000)]
    assert 0.45 < np.mean([geometry.hflip for geometry in flipped]) < 0.55
    assert 0.07 < np.mean([geometry.vflip for geometry in flipped]) < 0.13
    assert not draw("hflip(p=0)", (9, 9), (5, 5)).hflip
    assert draw("hflip(p=1)", (9, 9), (5, 5)).hflip


@pytest.mark.parametrize("interpolation", ["nearest", "linear", "cubic", "area", "lanczos"])
@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_crop_and_flips_are_slice_resize_and_reversal(interpolation: str, resize: str):
    image = photograph(90, 130, 3)
    code = {"nearest": 0, "linear": 1, "cubic": 2, "area": 3, "lanczos": 4}[interpolation]
    options = {"interpolation": interpolation, "resize": resize}
    for spec in ("hflip(p=1)", "vflip(p=1)", "hflip(p=1), vflip(p=1)", "hflip(p=0)"):
        steps = (
            slice(None, None, -1 if "vflip(p=1" in spec else 1),
            slice(None, None, -1 if "hflip(p=1" in spec else 1),
        )
        geometry = draw(spec + ", random_resized_crop", (90, 130), (40, 48))
        top, left, tall, wide = geometry.crop
        expected = cv2.resize(image[top : top + tall, left : left + wide], (48, 40), interpolation=code)
        assert np.array_equal(place(image, geometry, (40, 48), **options), expected[steps])
        whole = np.zeros((40, 48, 3), np.uint8)
        if resize == "crop":
            top, left, tall, wide = crop_box(90, 130, 40, 48)
            whole[...] = cv2.resize(image[top : top + tall, left : left + wide], (48, 40), interpolation=code)
        else:
            top, left, tall, wide = fit_box(90, 130, 40, 48) if resize == "pad" else (0, 0, 40, 48)
            whole[top : top + tall, left : left + wide] = cv2.resize(image, (wide, tall), interpolation=code)
        assert np.array_equal(place(image, draw(spec, (90, 130), (40, 48)), (40, 48), **options), whole[steps])


def test_rotate_by_a_right_angle_is_rot90():
    """Counter-clockwise for positive degrees, about the centre, exactly."""
    image = photograph(64, 64, 4)
    for degrees, turns in ((90, 1), (180, 2), (-90, 3)):
        geometry = draw(f"rotate(degrees=({degrees}, {degrees}))", (64, 64), (64, 64))
        turned = place(image, geometry, (64, 64))
        assert np.abs(turned.astype(int) - np.rot90(image, turns)).max() <= 1


def reference_warp(image: np.ndarray, forward: np.ndarray, target: tuple[int, int], border: float) -> np.ndarray:
    """Bilinear interpolation by the book: each target pixel's centre led back through `forward`, in float64."""
    height, width = image.shape[:2]
    rows, columns = np.mgrid[0 : target[0], 0 : target[1]] + 0.5
    back = np.linalg.inv(forward)
    x = back[0, 0] * columns + back[0, 1] * rows + back[0, 2] - 0.5
    y = back[1, 0] * columns + back[1, 1] * rows + back[1, 2] - 0.5
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    result = np.zeros((*target, 3))
    for dy in (0, 1):
        for dx in (0, 1):
            weight = (1 - np.abs(x - x0 - dx)) * (1 - np.abs(y - y0 - dy))
            inside = (x0 + dx >= 0) & (x0 + dx < width) & (y0 + dy >= 0) & (y0 + dy < height)
            values = np.where(
                inside[..., None], image[np.clip(y0 + dy, 0, height - 1), np.clip(x0 + dx, 0, width - 1)], border
            )
            result += weight[..., None] * values
    return result


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("with_crop", [True, False])
def test_everything_at_once_is_the_product_of_the_single_steps(resize: str, with_crop: bool):
    """Crop, resize, flips, rotate, shear, scale, translate as 3 x 3 matrices, one after the other."""
    image, target = photograph(90, 130, 9), (48, 56)
    spec = (
        "hflip(p=1), vflip(p=1), rotate(degrees=(20, 20)), affine(degrees=(-35, -35), scale=(1.2, 1.2), shear=(9, 9))"
    )
    geometry = draw(spec + ", random_resized_crop" * with_crop, (90, 130), target)
    rotate, affine = (
        inverse_affine(*target, 20.0),
        GeometryDraws(canonical(spec.split(", rotate")[0] + spec[spec.index(", affine") :]), target)
        .draw(RNG.units(0, 0, 192), (90, 130))
        .turn,
    )
    assert rotate is not None
    assert affine is not None
    height, width = target
    region = (0, 0, height, width)
    box = (0, 0, 90, 130)
    if with_crop:
        box = geometry.crop
    elif resize == "crop":
        box = crop_box(90, 130, *target)
    elif resize == "pad":
        region = fit_box(90, 130, *target)
    scale_x, scale_y = region[3] / box[3], region[2] / box[2]
    forward = np.array([[scale_x, 0, region[1]], [0, scale_y, region[0]], [0, 0, 1]])
    forward = np.array([[-1, 0, width], [0, -1, height], [0, 0, 1.0]]) @ forward
    forward = np.linalg.inv(np.array([rotate[:3], rotate[3:], (0, 0, 1)])) @ forward
    forward = np.linalg.inv(np.array([affine[:3], affine[3:], (0, 0, 1)])) @ forward
    cut = image[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
    expected = reference_warp(cut, forward, target, 0)
    placed = place(image, geometry, target, resize=resize)
    # OpenCV's coordinates are to 1/32 of a pixel: at the rim that is a visible part of the step to black.
    difference = np.abs(placed - expected)
    assert np.median(difference) < 1
    assert (difference > 8).mean() < 0.01
    assert (placed == 0).any()


def test_affine_is_shear_then_scale_and_turn_then_move_about_the_centre():
    angle, scale, lean, (dx, dy) = math.radians(25), 1.3, math.tan(math.radians(10)), (4.0, -7.0)
    height, width = 60, 80
    to_centre = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    shear = np.array([[1, lean, 0], [0, 1, 0], [0, 0, 1]])
    turn = np.diag([scale, scale, 1]) @ np.array(
        [[math.cos(angle), math.sin(angle), 0], [-math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
    )
    back = np.array([[1, 0, width / 2 + dx], [0, 1, height / 2 + dy], [0, 0, 1]])
    forward = back @ turn @ shear @ to_centre
    inverse = inverse_affine(height, width, 25, (dx, dy), scale, 10)
    np.testing.assert_allclose(np.array(inverse).reshape(2, 3), np.linalg.inv(forward)[:2], atol=1e-12)


def test_area_and_huge_sides_are_resized_before_they_are_turned():
    spec = "rotate(degrees=(90, 90))"
    image = photograph(128, 128, 2)
    turned = place(image, draw(spec, (128, 128), (32, 32)), (32, 32), interpolation="area")
    expected = np.rot90(cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA))
    assert np.abs(turned.astype(int) - expected).max() <= 1
    strip = np.full((2, 40000, 3), 200, np.uint8)
    assert place(strip, draw(spec, (2, 40000), (32, 32)), (32, 32)).max() == 200


def test_reduced_crop_is_the_same_place_and_still_covers_the_target():
    """For every size and crop: within half a reduced pixel of the full crop's edges, never less than the target."""
    rng = np.random.default_rng(1)
    for sample_id in range(2000):
        height, width, target = *rng.integers(30, 3000, 2).tolist(), int(rng.integers(8, 300))
        geometry = draw("random_resized_crop", (height, width), (target, target), sample_id)
        top, left, tall, wide = geometry.crop
        header = ImageHeader("jpeg", width, height, 3)
        reduction = choose_reduction(header, target, target, "stretch", (tall, wide))
        small_h, small_w = -(-height // reduction), -(-width // reduction)
        box = geometry.reduced_crop(reduction, small_h, small_w)
        assert box[0] + box[2] <= small_h
        assert box[1] + box[3] <= small_w
        if reduction > 1:
            assert min(box[2], box[3]) >= target
        for small, full in zip(
            (box[0], box[0] + box[2], box[1], box[1] + box[3]), (top, top + tall, left, left + wide), strict=True
        ):
            assert abs(small - full / reduction) <= 0.5
        if reduction < 8:
            bigger = reduction * 2
            assert tall // bigger < target or wide // bigger < target


@pytest.mark.parametrize(
    "spec", ["hflip", "random_resized_crop, hflip", "random_resized_crop, hflip, vflip, affine", "rotate(degrees=40)"]
)
@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("mask_scale", [1, 0.5, 2])
def test_mask_goes_where_its_image_goes(spec: str, resize: str, mask_scale: float):
    """The image's pixels are its labels, so wherever the image is not between two labels the mask must say the same."""
    rng, size, target = np.random.default_rng(3), (180, 240), (64, 72)
    blocks = rng.integers(1, 3, (6, 8)).astype(np.uint8)
    image = cv2.resize(blocks * 100, size[::-1], interpolation=cv2.INTER_NEAREST)
    mask = cv2.resize(blocks, (int(size[1] * mask_scale), int(size[0] * mask_scale)), interpolation=cv2.INTER_NEAREST)
    for sample_id in range(12):
        geometry = draw(spec, size, target, sample_id)
        placed = place(image, geometry, target, resize=resize)
        placed_mask = np.empty(target, np.uint8)
        crop = geometry.crop_in(*mask.shape)
        Placer.for_masks(target, resize, 0).place(mask, geometry, crop, placed_mask)
        assert set(np.unique(placed_mask)) <= {0, 1, 2}
        certain = np.isin(placed, [0, 100, 200])
        assert certain.mean() > 0.6
        assert (placed_mask[certain] * 100 != placed[certain]).mean() < (0.002 if mask_scale == 1 else 0.04)


def test_border_of_masks_is_what_the_option_says():
    mask = np.full((50, 100), 3, np.uint16)
    for spec in ("hflip(p=1)", "rotate(degrees=(45, 45))"):
        placed = np.empty((40, 40), np.uint16)
        Placer.for_masks((40, 40), "pad", 60000).place(mask, draw(spec, (50, 100), (40, 40)), None, placed)
        assert set(np.unique(placed)) == {3, 60000}


def test_aspects_agree_to_a_pixel():
    assert same_aspect((480, 640), (480, 640))
    assert same_aspect((240, 320), (480, 640))
    assert same_aspect((375, 500), (187, 250))
    assert same_aspect((375, 500), (188, 250))
    assert not same_aspect((480, 640), (640, 480))
    assert not same_aspect((480, 640), (14, 14))
    assert not same_aspect((480, 640), (480, 600))


def test_a_mask_has_the_aspect_of_its_kept_image_however_that_was_rounded():
    rng = np.random.default_rng(0)
    kept_size = (200, 200)
    n_beyond_a_pixel = 0
    for height, width in rng.integers(100, 3000, (3000, 2)).tolist():
        header = ImageHeader("jpeg", width, height, 3, 8)
        reduction = choose_reduction(header, *kept_size, "pad")
        reduced = -(-height // reduction), -(-width // reduction)
        kept = reduced if max(reduced) <= 200 else fit_box(*reduced, *kept_size)[2:]
        for mask in ((height, width), (height // 2, width // 2), (round(height / 3), round(width / 3))):
            assert same_aspect(mask, kept, are_kept=True), (mask, kept)
            n_beyond_a_pixel += not same_aspect(mask, kept)
        other = (height, round(width * 1.1))
        assert min(kept) < 60 or not same_aspect(other, kept, are_kept=True)
    assert n_beyond_a_pixel


@pytest.mark.parametrize("channels", [2, 4, 6, 130])
def test_many_channels_go_where_one_goes(channels: int):
    image = np.random.default_rng(channels).integers(0, 65536, (40, 31, channels)).astype(np.uint16)
    placer = Placer((24, 20), "stretch", "linear", border=7)
    draws = GeometryDraws(canonical("random_resized_crop, hflip, vflip, affine(degrees=40)"), (24, 20))
    plain = GeometryDraws(canonical("random_resized_crop, hflip, vflip"), (24, 20))
    for epoch in range(6):
        units = SampleRandomness(1).units(epoch, 0, 256)
        for geometry in (draws.draw(units, (40, 31)), plain.draw(units, (40, 31))):
            found = np.empty((24, 20, channels), np.uint16)
            placer.place(image, geometry, geometry.crop, found)
            for channel in range(channels):
                alone = np.empty((24, 20), np.uint16)
                placer.place(np.ascontiguousarray(image[..., channel]), geometry, geometry.crop, alone)
                # By the number of channels, OpenCV places to 1/32 of a pixel or exactly, and these are noise.
                assert np.abs(found[..., channel].astype(int) - alone).max() <= 65536 // 32, (epoch, channel)
