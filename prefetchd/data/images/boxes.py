"""Boxes and keypoints: moved as the pixels are, clipped, left out where too little is seen, padded to a fixed number.

Pure: numpy only. Readers call it once a sample, after its image was placed.

Boxes count edges: (0, 0) is the outer corner of the first pixel, and an image is from 0 to its width. Keypoints count
pixels: (0, 0) is the centre of the first pixel, as in COCO's files and in OpenCV. So both stay on the pixels they mark,
however those move, and a left-right flip takes a keypoint's x to width - 1 - x, as torchvision and Albumentations do.

A flip moves points and exchanges no meaning: the left eye of a flipped face is still the point that was given as the
left eye, although it now looks like a right one. Which points to exchange is known to the user alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.data.images.geometry import IDENTITY, Map, compose

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import BoxFormat
    from prefetchd.data.images.geometry import Geometry

    Numbers = NDArray[np.float64]

NO_LABEL = -1
_NORMALIZED = "_normalized"
_MOST_PX = 1e9  # beyond which no side of an image lies


class BadBoxes(ValueError):
    """A sample's boxes or keypoints cannot be used.

    Attributes:
        at: the number of the first bad one in the sample, from 0.
        why: what is wrong, in words that follow its name.
    """

    def __init__(self, kind: str, at: int, why: str) -> None:
        super().__init__(f"{kind} {at} {why}")
        self.at = at
        self.why = why


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one sample's upright image went.

    Attributes:
        forward: the map from the upright image, in pixels, to the delivered one.
        shown: (left, top, right, bottom) of the part of the upright image that was taken; the rest cannot be seen.
        size: (height, width) of the delivered image.
    """

    forward: Map
    shown: tuple[float, float, float, float]
    size: tuple[int, int]


def placement(
    geometry: Geometry,
    shown: tuple[int, int, int, int],
    region: tuple[int, int, int, int],
    size: tuple[int, int],
    scale: tuple[float, float] = (1.0, 1.0),
) -> Placement:
    """Return where an image went.

    Args:
        geometry: its flips and turn.
        shown: (top, left, height, width) of the part of the decoded image that is shown.
        region: (top, left, height, width) of the target that this part fills, before flips and turn.
        size: (height, width) of the target.
        scale: (across, down): pixels of the decoded image for one of the upright image.
    """
    across, down = scale
    top, left, tall, wide = shown
    forward = geometry.forward_map(shown, region, size)
    return Placement(
        compose(forward, (across, 0.0, 0.0, 0.0, down, 0.0)),
        (left / across, top / down, (left + wide) / across, (top + tall) / down),
        size,
    )


def orientation_map(orientation: int, height: int, width: int) -> Map:
    """Return the map from an image as stored, of `height` and `width`, to the upright one (EXIF orientation 1 to 8)."""
    right, bottom = float(width), float(height)
    return {
        2: (-1.0, 0.0, right, 0.0, 1.0, 0.0),
        3: (-1.0, 0.0, right, 0.0, -1.0, bottom),
        4: (1.0, 0.0, 0.0, 0.0, -1.0, bottom),
        5: (0.0, 1.0, 0.0, 1.0, 0.0, 0.0),
        6: (0.0, -1.0, bottom, 1.0, 0.0, 0.0),
        7: (0.0, -1.0, bottom, -1.0, 0.0, right),
        8: (0.0, 1.0, 0.0, -1.0, 0.0, right),
    }.get(orientation, IDENTITY)


def to_corners(boxes: NDArray[Any], box_format: BoxFormat, size: tuple[int, int]) -> Numbers:
    """Return boxes (n, 4) of any format as (left, top, right, bottom) in pixels of an image of `size`, float64.

    Raises:
        BadBoxes: for a number that is not finite, or a negative width or height.
    """
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    _check_finite("box", corners)
    kind = box_format.removesuffix(_NORMALIZED)
    if kind == "cxcywh":
        corners[:, :2] -= corners[:, 2:] / 2
    if kind != "xyxy":
        corners[:, 2:] += corners[:, :2]
    flat = (corners[:, 2:] < corners[:, :2]).any(axis=1)
    if flat.any():
        at = int(np.flatnonzero(flat)[0])
        raise BadBoxes("box", at, f"is {_show(boxes[at])} ({box_format}), with a negative width or height")
    return corners * _per_unit(size) if box_format.endswith(_NORMALIZED) else corners


def from_corners(corners: Numbers, box_format: BoxFormat, size: tuple[int, int]) -> Numbers:
    """Return (left, top, right, bottom) in pixels of an image of `size` as boxes of a format; shape (n, 4)."""
    boxes = corners / _per_unit(size) if box_format.endswith(_NORMALIZED) else corners.copy()
    kind = box_format.removesuffix(_NORMALIZED)
    if kind != "xyxy":
        boxes[:, 2:] -= boxes[:, :2]
    if kind == "cxcywh":
        boxes[:, :2] += boxes[:, 2:] / 2
    return boxes


def hull(corners: Numbers, map_: Map) -> Numbers:
    """Return the smallest upright boxes (n, 4) around `corners`, (left, top, right, bottom), moved by `map_`."""
    moved = np.empty_like(corners)
    for at, (across, down, shift) in enumerate((map_[:3], map_[3:])):
        x, y = across * corners[:, ::2], down * corners[:, 1::2]
        moved[:, at] = x.min(axis=1) + y.min(axis=1) + shift
        moved[:, at + 2] = x.max(axis=1) + y.max(axis=1) + shift
    return moved


def move_boxes(
    corners: Numbers, placed: Placement, full_size: tuple[int, int], min_visible: float
) -> tuple[Numbers, NDArray[np.intp]]:
    """Return the boxes of an upright image that are seen in the delivered one, and which of the given they are.

    A box is first clipped to the image, then to the part of it that is shown; the box around the moved rest is clipped
    to the delivered image. What each clipping leaves is a fraction of the area before it, and a box stays if their
    product is at least `min_visible`. Boxes without an area are left out.

    Args:
        corners: (n, 4), (left, top, right, bottom) in pixels of the upright image.
        placed: where that image went.
        full_size: (height, width) of the upright image.
        min_visible: the least fraction of its area that must be seen of a box.

    Raises:
        BadBoxes: if a box lies wholly outside its image.
    """
    height, width = full_size
    whole = _clip(corners, (0.0, 0.0, float(width), float(height)))
    outside = (corners[:, :2] >= (width, height)).any(axis=1) | (corners[:, 2:] <= 0).any(axis=1)
    # An empty box on the rim is not outside: annotation tools leave such, and they are left out below.
    outside &= (corners[:, 2:] > corners[:, :2]).all(axis=1)
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        ends = f"from {_show(corners[at, :2])} to {_show(corners[at, 2:])}"
        raise BadBoxes("box", at, f"is {ends}, outside its image of {width}x{height} px")
    shown = _clip(whole, placed.shown)
    around = hull(shown, placed.forward)
    seen = _clip(around, (0.0, 0.0, float(placed.size[1]), float(placed.size[0])))
    before, between = _area(whole) * _area(around), _area(shown) * _area(seen)
    kept = np.flatnonzero((between > 0) & (between >= min_visible * before * (1 - 1e-9)))
    return seen[kept], kept


def deliver_boxes(
    corners: Numbers,
    labels: NDArray[np.int64],
    box_format: BoxFormat,
    size: tuple[int, int],
    out: tuple[NDArray[np.float32], NDArray[np.int64]],
) -> int:
    """Write delivered boxes and their labels into a sample's row, the first K of them, and return how many.

    Args:
        corners: (n, 4), in pixels of the delivered image.
        labels: (n,).
        box_format: what a row of `out` holds.
        size: (height, width) of the delivered image.
        out: boxes (K, 4), where 0 fills the rest, and labels (K,), where -1 does.
    """
    boxes, numbers = out
    count = min(len(corners), len(boxes))
    boxes[:count] = from_corners(corners[:count], box_format, size)
    boxes[count:] = 0
    numbers[:count] = labels[:count]
    numbers[count:] = NO_LABEL
    return count


def move_keypoints(points: NDArray[Any], placed: Placement) -> tuple[Numbers, NDArray[np.bool_]]:
    """Return keypoints (n, 2) of the upright image as they are in the delivered one, and which of them are in it."""
    given = np.array(points, np.float64).reshape(-1, 2) + 0.5  # from pixels' centres to edges
    _check_finite("keypoint", given - 0.5)
    a, b, c, d, e, f = placed.forward
    x, y = given[:, 0], given[:, 1]
    moved = np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)
    return moved - 0.5, _within(given, placed.shown) & _within(moved, (0.0, 0.0, placed.size[1], placed.size[0]))


def turn_keypoints(points: NDArray[Any], map_: Map) -> Numbers:
    """Return keypoints (n, 2), which count pixels, moved by a map of edges, such as `orientation_map` gives."""
    a, b, c, d, e, f = map_
    x, y = np.array(points, np.float64).reshape(-1, 2).T + 0.5
    return np.stack([a * x + b * y + c - 0.5, d * x + e * y + f - 0.5], axis=1)


def _check_finite(kind: str, numbers: Numbers) -> None:
    """Raise `BadBoxes` for a row that holds NaN, or what no image is as large as."""
    bad = ~(np.abs(numbers) <= _MOST_PX).all(axis=1)
    if bad.any():
        at = int(np.argmax(bad))
        raise BadBoxes(kind, at, f"is {_show(numbers[at])}, which is not finite or beyond any image")


def _within(points: Numbers, limits: tuple[float, float, float, float]) -> NDArray[np.bool_]:
    left, top, right, bottom = limits
    x, y = points[:, 0], points[:, 1]
    return (x >= left) & (x < right) & (y >= top) & (y < bottom)


def _clip(corners: Numbers, limits: tuple[float, float, float, float]) -> Numbers:
    left, top, right, bottom = limits
    return np.clip(corners, (left, top, left, top), (right, bottom, right, bottom))


def _area(corners: Numbers) -> Numbers:
    area: Numbers = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    return area


def _per_unit(size: tuple[int, int]) -> Numbers:
    height, width = size
    return np.array((width, height, width, height), np.float64)


def _show(numbers: NDArray[Any]) -> str:
    return f"({', '.join(f'{number:.6g}' for number in np.asarray(numbers).tolist())})"
