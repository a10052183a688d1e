"""Where a sample's pixels come from: its crop, flips and turn, and the map from target to source. Pure.

Called in readers, once a sample, before its image is decoded, since the crop decides how far a JPEG may be reduced. The
same `Geometry` then places the image and its mask.

Coordinates are continuous: pixel (row 0, column 0) covers 0 to 1 both ways, and its centre is at 0.5. A crop is drawn
in the full, upright image and scaled to the decoded one. An affine map is (a, b, c, d, e, f): x' = ax + by + c and
y' = dx + ey + f.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from prefetchd.config.augment import AUGMENTATIONS, parameters
from prefetchd.data.images.policies import Operation, rand_augment, trivial_augment_wide
from prefetchd.sampling.randomness import BLOCK_WORDS, between

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

Map = tuple[float, float, float, float, float, float]
Box = tuple[int, int, int, int]  # top, left, height, width in pixels

IDENTITY: Map = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_CROP_TRIES = 10
FIRST_WORD = {name: block * BLOCK_WORDS for block, name in enumerate(AUGMENTATIONS)}


def n_words(given: Iterable[str]) -> int:
    """Return how many of a sample's random words the augmentations `given` reach into; 0 for none."""
    return max((FIRST_WORD[name] + BLOCK_WORDS for name in given), default=0)


@dataclass(frozen=True, slots=True)
class Geometry:
    """One sample's geometry, for images and masks of any resolution.

    Attributes:
        full_size: (height, width) of the upright image in which `crop` was drawn.
        crop: the box to take; `None` if the option `resize` decides.
        hflip: whether left and right are swapped, after the resize.
        vflip: whether top and bottom are swapped, after the resize.
        turn: the inverse of rotate, affine and the policies' moves: from the finished target to the target before
            them; `None` without.
    """

    full_size: tuple[int, int]
    crop: Box | None = None
    hflip: bool = False
    vflip: bool = False
    turn: Map | None = None

    def crop_in(self, height: int, width: int) -> Box | None:
        """Return the crop in a version of the image with `height` and `width`, to the nearest pixel."""
        if self.crop is None or (height, width) == self.full_size:
            return self.crop
        top, left, tall, wide = self.crop
        full_h, full_w = self.full_size
        up, down = _scaled(top, height, full_h), _scaled(top + tall, height, full_h)
        start, stop = _scaled(left, width, full_w), _scaled(left + wide, width, full_w)
        up, start = min(up, height - 1), min(start, width - 1)
        return up, start, max(1, down - up), max(1, stop - start)

    def reduced_crop(self, reduction: int, height: int, width: int) -> Box | None:
        """Return the crop in the image decoded at 1/`reduction`, whose sides are `height` and `width`.

        A reduced pixel covers exactly `reduction` full ones, even if the image's edge cuts the last one off.
        """
        if self.crop is None or reduction == 1:
            return self.crop
        whole = (height * reduction, width * reduction)
        return Geometry(whole, self.crop).crop_in(height, width)

    def target_map(self, target_h: int, target_w: int) -> Map:
        """Return the map from the finished target back to the target before flips and turn."""
        back = self.turn or IDENTITY
        if self.hflip:
            back = compose((-1.0, 0.0, float(target_w), 0.0, 1.0, 0.0), back)
        if self.vflip:
            back = compose((1.0, 0.0, 0.0, 0.0, -1.0, float(target_h)), back)
        return back

    def forward_map(self, shown: Box, region: Box, target_size: tuple[int, int]) -> Map:
        """Return the map from an image's pixels to those of the finished target, of `target_size` (height, width).

        `shown` is the part of the image that is taken, and `region` the box of the target that it fills before flips
        and turn. Boxes and keypoints are moved by it.
        """
        return invert(compose(_onto(region, shown), self.target_map(*target_size)))


class Draws(Protocol):
    """What chooses a sample's geometry."""

    def draw(self, units: Sequence[float], full_size: tuple[int, int]) -> Geometry:
        """Return the geometry that the sample's random numbers `units` give an upright image of `full_size`."""


class GeometryDraws:
    """Turns a sample's random numbers into its geometry, as one configuration's `augment` says. Pure."""

    def __init__(self, texts: tuple[str, ...], target_size: tuple[int, int]) -> None:
        given = parameters(texts)
        self._crop = given.get("random_resized_crop")
        self._hflip = given.get("hflip")
        self._vflip = given.get("vflip")
        self._rotate = given.get("rotate")
        self._affine = given.get("affine")
        self._policies = PolicyDraws(texts, target_size)
        self._height, self._width = target_size

    def draw(self, units: Sequence[float], full_size: tuple[int, int]) -> Geometry:
        """Return the geometry that the sample's random numbers `units` give an upright image of `full_size`."""
        crop = None
        if self._crop is not None:
            at = FIRST_WORD["random_resized_crop"]
            crop = random_resized_crop(units[at : at + BLOCK_WORDS], *full_size, **self._crop)
        return Geometry(
            full_size,
            crop,
            hflip=self._hflip is not None and units[FIRST_WORD["hflip"]] < self._hflip["p"],
            vflip=self._vflip is not None and units[FIRST_WORD["vflip"]] < self._vflip["p"],
            turn=self._turn(units),
        )

    def _turn(self, units: Sequence[float]) -> Map | None:
        """Return the inverse of rotate, then affine, then what the policies move."""
        back: Map | None = None
        if self._rotate is not None:
            angle = between(units[FIRST_WORD["rotate"]], self._rotate["degrees"])
            back = inverse_affine(self._height, self._width, angle)
        if self._affine is not None:
            at = FIRST_WORD["affine"]
            inverse = _draw_affine(units[at : at + 5], self._affine, self._height, self._width)
            back = inverse if back is None else compose(back, inverse)
        for operation in self._policies.draw(units):
            moved = inverse_of(operation, self._height, self._width)
            if moved is not None:
                back = moved if back is None else compose(back, moved)
        return back


class PolicyDraws:
    """Draws a sample's operations of `rand_augment` and `trivial_augment_wide`, as `augment` says. Pure."""

    def __init__(self, texts: tuple[str, ...], target_size: tuple[int, int]) -> None:
        given = parameters(texts)
        policies: dict[str, Callable[..., list[Operation]]] = {
            "rand_augment": rand_augment,
            "trivial_augment_wide": trivial_augment_wide,
        }
        self._drawn = [(FIRST_WORD[name], draw, given[name]) for name, draw in policies.items() if name in given]
        self._target_size = target_size

    def draw(self, units: Sequence[float]) -> list[Operation]:
        """Return the operations in the order in which they are applied: none without a policy."""
        return [
            operation
            for at, draw, given in self._drawn
            for operation in draw(units[at : at + BLOCK_WORDS], *self._target_size, **given)
        ]


def inverse_of(operation: Operation, height: int, width: int) -> Map | None:
    """Return the inverse of an operation that moves the pixels of a target; `None` for one that does not.

    As in torchvision, shears hold the top left corner, and what is left empty is black.
    """
    name, strength = operation
    if name == "shear_x":
        return 1.0, strength, 0.0, 0.0, 1.0, 0.0
    if name == "shear_y":
        return 1.0, 0.0, 0.0, strength, 1.0, 0.0
    if name == "translate_x":
        return 1.0, 0.0, -strength, 0.0, 1.0, 0.0
    if name == "translate_y":
        return 1.0, 0.0, 0.0, 0.0, 1.0, -strength
    return inverse_affine(height, width, strength) if name == "rotate" else None


def random_resized_crop(
    units: Sequence[float], height: int, width: int, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Return the crop box that `units` choose, as torchvision's `RandomResizedCrop.get_params` does.

    An area is drawn from `scale` and an aspect (width over height) log-uniformly from `ratio`, at most ten times, until
    the box fits. If none fits, it is the largest centred box whose aspect is within `ratio`.
    """
    # The words of all tries come before those of the position, so that the number of tries changes no other draw.
    logs = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(_CROP_TRIES):
        area = height * width * between(units[2 * attempt], scale)
        aspect = math.exp(between(units[2 * attempt + 1], logs))
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            top = int(units[2 * _CROP_TRIES] * (height - tall + 1))
            left = int(units[2 * _CROP_TRIES + 1] * (width - wide + 1))
            return top, left, tall, wide
    wide, tall = width, height
    if width < ratio[0] * height:
        tall = max(1, min(height, round(width / ratio[0])))
    elif width > ratio[1] * height:
        wide = max(1, min(width, round(height * ratio[1])))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def inverse_affine(
    height: int,
    width: int,
    degrees: float,
    translate: tuple[float, float] = (0.0, 0.0),
    scale: float = 1.0,
    shear_degrees: float = 0.0,
) -> Map:
    """Return the inverse of: shear (x += tan(shear) y), scale, turn about the centre, then move.

    Positive `degrees` turn counter-clockwise; `translate` is in pixels, right and down.
    """
    angle = math.radians(degrees)
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    lean = math.tan(math.radians(shear_degrees))
    # Of the 2 x 2 part, scale * [[cos, sin], [-sin, cos]] @ [[1, lean], [0, 1]], the inverse.
    a, b = cos - lean * sin, -sin - lean * cos
    d, e = sin, cos
    centre_x, centre_y = width / 2, height / 2
    from_x, from_y = centre_x + translate[0], centre_y + translate[1]
    return a, b, centre_x - a * from_x - b * from_y, d, e, centre_y - d * from_x - e * from_y


def _draw_affine(units: Sequence[float], given: Mapping[str, Any], height: int, width: int) -> Map:
    right, down = given["translate"]
    return inverse_affine(
        height,
        width,
        between(units[0], given["degrees"]),
        (width * between(units[1], (-right, right)), height * between(units[2], (-down, down))),
        between(units[3], given["scale"]),
        between(units[4], given["shear"]),
    )


def same_aspect(size: tuple[int, int], other: tuple[int, int], *, are_kept: bool = False) -> bool:
    """Return whether two (height, width) have the same aspect, within a pixel of the larger one's long side.

    `are_kept` says that one of them, or both, are of images fitted into `cache_image_size`. JPEG's reduction and the
    fit round their sides, by up to 1.4 pixels each.
    """
    (height, width), (other_h, other_w) = size, other
    n_pixels = 3 if are_kept else 1
    return abs(width * other_h - other_w * height) <= n_pixels * max(height, width, other_h, other_w)


def compose(after: Map, first: Map) -> Map:
    """Return the map that does `first`, then `after`."""
    a, b, c, d, e, f = after
    u, v, w, x, y, z = first
    return a * u + b * x, a * v + b * y, a * w + b * z + c, d * u + e * x, d * v + e * y, d * w + e * z + f


def invert(map_: Map) -> Map:
    """Return the inverse of a map."""
    a, b, c, d, e, f = map_
    size = a * e - b * d
    return e / size, -b / size, (b * f - c * e) / size, -d / size, a / size, (c * d - a * f) / size


def _onto(source: Box, target: Box) -> Map:
    """Return the map that stretches the box `source` onto the box `target`."""
    (top, left, tall, wide), (to_top, to_left, to_tall, to_wide) = source, target
    across, down = to_wide / wide, to_tall / tall
    return across, 0.0, to_left - left * across, 0.0, down, to_top - top * down


def _scaled(position: int, side: int, full_side: int) -> int:
    """Return `position` of `full_side` in a side of `side` pixels, rounded half up."""
    return (2 * position * side + full_side) // (2 * full_side)
