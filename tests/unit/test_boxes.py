"""Boxes and keypoints go where the pixels go: against pixels, torchvision and Albumentations of the same geometry."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefetchd.config.augment import canonical
from prefetchd.data.images import boxes as bx
from prefetchd.data.images.geometry import Geometry, GeometryDraws, compose, inverse_affine, invert
from prefetchd.data.images.resample import Placer
from prefetchd.sampling.randomness import SampleRandomness
from tests.torchvision_v2 import transforms_v2

FORMATS = ("xyxy", "xywh", "cxcywh", "xyxy_normalized", "xywh_normalized", "cxcywh_normalized")
SIDE = st.integers(20, 300)
PART = st.floats(0, 1, width=32)
BOX = st.tuples(PART, PART, PART, PART)
CORNERS = st.lists(BOX, max_size=6)


def optional(name: str) -> ModuleType:
    """Return a library, or skip the test by its name: also where it is there and cannot be loaded."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{name.partition('.')[0]} cannot be imported: {error}")


def corners_in(parts: list[tuple[float, float, float, float]], height: int, width: int) -> np.ndarray:
    """Return boxes of an image whose corners are at fractions of its sides."""
    x, y = np.array(parts, float).reshape(-1, 2, 2).transpose(2, 0, 1)
    x, y = np.sort(x, axis=1) * width, np.sort(y, axis=1) * height
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1).reshape(-1, 4)


def placed(geometry: Geometry, size: tuple[int, int], target: tuple[int, int], resize: str = "stretch") -> bx.Placement:
    shown, region = Placer(target, resize, "linear").shown(*size, geometry.crop)  # type: ignore[arg-type]
    return bx.placement(geometry, shown, region, target)


def moved(corners: np.ndarray, place: bx.Placement, size: tuple[int, int], min_visible: float = 0.0) -> np.ndarray:
    return bx.move_boxes(corners, place, size, min_visible)[0]


# ---- formats


@given(CORNERS, SIDE, SIDE, st.sampled_from(FORMATS))
def test_formats_there_and_back(parts, height, width, box_format):
    corners = corners_in(parts, height, width)
    there = bx.from_corners(corners, box_format, (height, width))
    np.testing.assert_allclose(bx.to_corners(there, box_format, (height, width)), corners, atol=1e-9)


@given(CORNERS, SIDE, SIDE)
def test_formats_are_those_of_torchvision(parts, height, width):
    ops, torch = tv("ops"), optional("torch")
    corners = corners_in(parts, height, width)
    for name in ("xywh", "cxcywh"):
        theirs = ops.box_convert(torch.from_numpy(corners), "xyxy", name).numpy()
        np.testing.assert_allclose(bx.from_corners(corners, name, (height, width)), theirs, atol=1e-9)


def test_normalized_is_of_width_and_height():
    got = bx.from_corners(np.array([[10.0, 5, 30, 15]]), "cxcywh_normalized", (20, 100))
    np.testing.assert_allclose(got, [[0.2, 0.5, 0.2, 0.5]])


@pytest.mark.parametrize(
    ("box", "box_format", "words"),
    [
        ((1, 2, 0, 5), "xyxy", "box 1 is (1, 2, 0, 5) (xyxy), with a negative width or height"),
        ((1, 2, 5, -1), "xywh", "negative width or height"),
        ((1, 2, float("nan"), 5), "xyxy", "box 1 is (1, 2, nan, 5), which is not finite"),
        ((1, 2, float("inf"), 5), "cxcywh", "not finite"),
    ],
)
def test_boxes_that_are_none_are_named(box, box_format, words):
    with pytest.raises(bx.BadBoxes) as caught:
        bx.to_corners(np.array([(1, 1, 2, 2), box]), box_format, (10, 10))
    assert words in str(caught.value)


def test_box_outside_its_image_is_named_and_an_empty_one_left_out():
    place = placed(Geometry((10, 10)), (10, 10), (10, 10))
    with pytest.raises(bx.BadBoxes, match=r"box 1 is from \(12, 0\) to \(14, 3\), outside its image of 10x10 px"):
        moved(np.array([(0.0, 0, 5, 5), (12, 0, 14, 3)]), place, (10, 10))
    kept = bx.move_boxes(np.array([(0.0, 0, 5, 5), (10, 0, 10, 3), (2, 2, 2, 5), (1, 1, 2, 2)]), place, (10, 10), 0.1)[
        1
    ]
    assert kept.tolist() == [0, 3]


# ---- where the pixels go


def augmented(seed: int, size: tuple[int, int], target: tuple[int, int]) -> Geometry:
    spec = "random_resized_crop(scale=(0.3, 1)), hflip, vflip, rotate(degrees=40), affine(shear=10, translate=0.2)"
    return GeometryDraws(canonical(spec), target).draw(SampleRandomness(seed).units(0, 0, 192), size)


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("turned", [False, True], ids=["upright", "turned"])
def test_box_holds_the_pixels_it_was_drawn_around(resize, turned):
    target = (96, 128)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        size = tuple(rng.integers(150, 400, 2).tolist())
        geometry = Geometry(size, hflip=bool(seed & 1), vflip=bool(seed & 2))
        if turned:
            geometry = augmented(seed, size, target)
        parts = [tuple(rng.uniform(0.2, 0.8, 4))]
        corners = corners_in(parts, *size).round()
        if (corners[:, 2:] - corners[:, :2]).min() < 30:
            continue
        image = np.zeros(size, np.uint8)
        left, top, right, bottom = corners[0].astype(int)
        image[top:bottom, left:right] = 255
        result = np.empty(target, np.uint8)
        Placer(target, resize, "linear").place(image, geometry, geometry.crop, result)
        rows, columns = np.nonzero(result > 127)
        got = moved(corners, placed(geometry, size, target, resize), size)
        if len(rows) == 0:
            assert len(got) == 0 or min(got[0, 2] - got[0, 0], got[0, 3] - got[0, 1]) < 2
            continue
        bright = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        if turned:  # where a corner is cut off, the box around the rest is larger than it must be, never smaller
            assert (got[0, :2] <= bright[:2] + 1).all()
            assert (got[0, 2:] >= bright[2:] - 1).all()
        else:
            np.testing.assert_allclose(got[0], bright, atol=1.01)


def test_keypoint_stays_on_the_pixel_it_marks():
    target = (120, 160)
    for seed in range(60):
        size = tuple(np.random.default_rng(seed).integers(150, 400, 2).tolist())
        geometry = augmented(seed, size, target) if seed % 2 else Geometry(size, hflip=True, vflip=seed % 4 == 0)
        x, y = int(size[1] * 0.4), int(size[0] * 0.55)
        image = np.zeros(size, np.float32)
        image[y - 4 : y + 5, x - 4 : x + 5] = 255
        result = np.empty(target, np.float32)
        Placer(target, "stretch", "linear").place(image, geometry, geometry.crop, result)
        points, inside = bx.move_keypoints(np.array([[x, y]]), placed(geometry, size, target))
        top, left, tall, wide = geometry.crop or (0, 0, *size)
        is_cut = not (left < x - 4 and x + 5 < left + wide and top < y - 4 and y + 5 < top + tall)
        if is_cut or not inside[0] or min(points[0]) < 6 or (points[0] > (target[1] - 7, target[0] - 7)).any():
            continue
        weights = result / result.sum()
        centre = (weights.sum(axis=0) @ np.arange(target[1]), weights.sum(axis=1) @ np.arange(target[0]))
        np.testing.assert_allclose(points[0], centre, atol=0.6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_boxes_as_it_turns_pixels(orientation):
    stored = np.zeros((5, 8), np.uint8)
    stored[1:3, 4:7] = 1
    turns = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).T,
        8: np.rot90(stored),
    }
    rows, columns = np.nonzero(turns[orientation])
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    turn = bx.orientation_map(orientation, 5, 8)
    assert bx.hull(np.array([[4.0, 1, 7, 3]]), turn).tolist() == [expected]
    assert bx.turn_keypoints(np.array([[4, 1]]), turn)[0].tolist() in (
        [expected[0], expected[1]],
        [expected[2] - 1, expected[1]],
        [expected[0], expected[3] - 1],
        [expected[2] - 1, expected[3] - 1],
    )


@given(st.floats(-180, 180), st.floats(0.3, 3), st.floats(-60, 60))
def test_inverse_of_a_map_undoes_it(degrees, scale, shear):
    turn = inverse_affine(100, 130, degrees, (5, -7), scale, shear)
    np.testing.assert_allclose(compose(invert(turn), turn), (1, 0, 0, 0, 1, 0), atol=1e-6)


# ---- what is left out


@given(st.floats(1, 99), st.floats(0.01, 1))
def test_box_stays_as_long_as_enough_of_its_area_is_seen(cut, min_visible):
    size, crop = (100, 100), (0, 0, 100, 50)
    left = 50 - cut / 2
    box = np.array([[left, 10, left + 20, 40]])
    place = placed(Geometry(size, crop=crop), size, (80, 80))
    seen = min(20, max(0.0, 50 - left)) / 20
    kept = bx.move_boxes(box, place, size, min_visible)[1]
    if abs(seen - min_visible) > 1e-6:
        assert len(kept) == (seen > min_visible)


@given(CORNERS, SIDE, SIDE, st.integers(0, 500), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_delivered_boxes_are_within_the_image_and_fewer_with_a_higher_min_visible(parts, height, width, seed, least):
    size, target = (height, width), (64, 48)
    corners = corners_in(parts, height, width)
    place = placed(augmented(seed, size, target), size, target)
    got, kept = bx.move_boxes(corners, place, size, least)
    assert (got >= 0).all()
    assert (got <= (48, 64, 48, 64)).all()
    assert (got[:, 2:] > got[:, :2]).all()
    assert set(kept.tolist()) <= set(bx.move_boxes(corners, place, size, 0)[1].tolist())


def test_rows_are_padded_and_cut_to_k():
    corners = np.array([[0.0, 0, 1, 1], [1, 1, 3, 3], [2, 2, 4, 8]])
    boxes, labels = np.full((2, 4), 7, np.float32), np.full(2, 7)
    assert bx.deliver_boxes(corners, np.array([5, 6, 7]), "xywh", (9, 9), (boxes, labels)) == 2
    assert boxes.tolist() == [[0, 0, 1, 1], [1, 1, 2, 2]]
    assert labels.tolist() == [5, 6]
    assert bx.deliver_boxes(corners[:0], np.array([], np.int64), "xyxy", (9, 9), (boxes, labels)) == 0
    assert not boxes.any()
    assert labels.tolist() == [-1, -1]


# ---- torchvision and Albumentations


def tv(name: str) -> Any:
    transforms_v2()  # makes torchvision importable, or skips
    return importlib.import_module(f"torchvision.{name}")


def their_boxes(corners: np.ndarray, size: tuple[int, int]) -> Any:
    torch = optional("torch")
    points = tv("tv_tensors")
    return points.BoundingBoxes(torch.from_numpy(corners), format="XYXY", canvas_size=size)


@settings(deadline=None, max_examples=60)
@given(CORNERS, SIDE, SIDE, st.booleans(), st.booleans(), st.booleans())
def test_crop_and_flips_as_torchvision(parts, height, width, cropped, hflip, vflip):
    functional = tv("transforms.v2.functional")
    corners, size, target = corners_in(parts, height, width), (height, width), (64, 80)
    crop = (height // 5, width // 4, height // 2, width // 2) if cropped else None
    theirs = their_boxes(corners, size)
    if crop is not None:
        theirs = functional.crop(theirs, *crop)
    theirs = functional.resize(theirs, list(target))
    theirs = functional.horizontal_flip(theirs) if hflip else theirs
    theirs = functional.vertical_flip(theirs) if vflip else theirs
    theirs = functional.clamp_bounding_boxes(theirs).numpy()
    theirs = theirs[((theirs[:, 2:] - theirs[:, :2]) > 0).all(axis=1)]
    ours = moved(corners, placed(Geometry(size, crop, hflip, vflip), size, target), size)
    wide_enough = ((ours[:, 2:] - ours[:, :2]) > 1e-3).all(axis=1)
    np.testing.assert_allclose(
        ours[wide_enough], theirs[((theirs[:, 2:] - theirs[:, :2]) > 1e-3).all(axis=1)], atol=2e-3
    )


@settings(deadline=None, max_examples=60)
@given(st.floats(-180, 180), st.floats(0.5, 2), st.floats(-30, 30), st.integers(-20, 20), st.integers(-20, 20))
def test_turns_as_torchvision(degrees, scale, shear, right, down):
    functional = tv("transforms.v2.functional")
    size = (90, 120)
    corners = corners_in([(0.1, 0.2, 0.5, 0.6), (0.4, 0.4, 0.9, 0.7)], *size)
    turn = inverse_affine(*size, degrees, (right, down), scale, shear)
    ours = bx.hull(corners, placed(Geometry(size, turn=turn), size, size).forward)
    # torchvision's sign of degrees is clockwise, and its shear has the other sign of x.
    theirs = functional.affine(
        their_boxes(corners, size), -degrees, [right, down], scale, [-shear, 0.0], center=[size[1] / 2, size[0] / 2]
    ).numpy()
    theirs = np.clip(theirs, 0, (120, 90, 120, 90))
    np.testing.assert_allclose(np.clip(ours, 0, (120, 90, 120, 90)), theirs, atol=1e-2)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(PART, PART), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_flipped_keypoints_as_albumentations(parts, hflip, vflip):
    size = (60, 90)
    points = np.floor(np.array(parts) * (89, 59))
    ours, inside = bx.move_keypoints(points, placed(Geometry(size, None, hflip, vflip), size, size))
    assert inside.all()
    albumentations = optional("albumentations")
    steps = [albumentations.NoOp(p=1)]
    steps += [albumentations.HorizontalFlip(p=1)] * hflip + [albumentations.VerticalFlip(p=1)] * vflip
    made = albumentations.Compose(steps, keypoint_params=albumentations.KeypointParams("xy", remove_invisible=False))(
        image=np.zeros((*size, 3), np.uint8), keypoints=points
    )
    np.testing.assert_allclose(ours, made["keypoints"], atol=1e-4)


@pytest.mark.parametrize(("hflip", "vflip"), [(True, False), (False, True), (True, True)])
def test_flipped_keypoints_as_torchvision(hflip, vflip):
    functional, tensors, torch = tv("transforms.v2.functional"), tv("tv_tensors"), optional("torch")
    if not hasattr(tensors, "KeyPoints"):
        pytest.skip("torchvision before 0.23 has no keypoints")
    size, points = (60, 90), np.array([[0.0, 0], [89, 59], [12, 40]])
    ours, _ = bx.move_keypoints(points, placed(Geometry(size, None, hflip, vflip), size, size))
    theirs = tensors.KeyPoints(torch.from_numpy(points), canvas_size=size)
    theirs = functional.horizontal_flip(theirs) if hflip else theirs
    theirs = functional.vertical_flip(theirs) if vflip else theirs
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.3, 0.7]), st.booleans())
def test_min_visible_as_albumentations(seed, min_visible, hflip):
    albumentations = optional("albumentations")
    rng, size, crop = np.random.default_rng(seed), (100, 140), (20, 30, 50, 70)
    corners = corners_in([tuple(rng.uniform(0, 1, 4)) for _ in range(6)], *size)
    corners = corners[((corners[:, 2:] - corners[:, :2]) > 2).all(axis=1)]
    top, left, tall, wide = crop
    steps = [albumentations.Crop(left, top, left + wide, top + tall), albumentations.Resize(50, 60)]
    steps += [albumentations.HorizontalFlip(p=1)] * hflip
    made = albumentations.Compose(
        steps, bbox_params=albumentations.BboxParams("pascal_voc", min_visibility=min_visible, label_fields=["labels"])
    )(image=np.zeros((*size, 3), np.uint8), bboxes=corners, labels=np.arange(len(corners)))
    ours, kept = bx.move_boxes(corners, placed(Geometry(size, crop, hflip), size, (50, 60)), size, min_visible)
    assert kept.tolist() == [int(label) for label in made["labels"]]
    np.testing.assert_allclose(ours, np.reshape(made["bboxes"], (-1, 4)), atol=1e-3)


def test_opencv_warps_to_where_keypoints_go():
    turn = inverse_affine(60, 60, 30)
    forward = invert(turn)
    centre = np.array([[20, 41]])
    ours, _ = bx.move_keypoints(centre, placed(Geometry((60, 60), turn=turn), (60, 60), (60, 60)))
    matrix = cv2.getRotationMatrix2D((29.5, 29.5), 30, 1.0)
    np.testing.assert_allclose(ours[0], matrix @ (20, 41, 1), atol=1e-6)
    assert forward != turn
