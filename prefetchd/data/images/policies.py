"""Policies: `rand_augment` and `trivial_augment_wide` draw operations for a sample; some move pixels, some change them.

Pure. The operations and their strengths are torchvision's (`RandAugment`, Cubuk et al., 2019; `TrivialAugmentWide`,
Müller and Hutter, 2021), each drawn evenly and with replacement. Those that move pixels join the sample's one affine
map (`geometry`), so a mask goes where its image goes. The others follow in the order drawn (`pixel_changes`).

A strength is given in steps from 0 to `num_magnitude_bins` - 1. Half of the signed ones are negated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

WORDS_EACH = 4  # of an operation of rand_augment: which, its sign, its strength, whether it is applied

_SMALLEST = 2.0**-54  # for a unit of 0, whose normal number would be infinite


class Operation(NamedTuple):
    """One operation of a policy, and its strength in its own unit (degrees, pixels, bits, a factor's distance to 1)."""

    name: str
    strength: float


# For each operation the strength at a part (0 to 1) of the scale, for a target's height and width, and whether it is
# signed.
Scale = tuple[Callable[[float, int, int], float], bool]


def _scales(shear: float, across: Callable[[int], float], degrees: float, factor: float, bits: int) -> dict[str, Scale]:
    return {
        "identity": (lambda part, height, width: 0.0, False),
        "shear_x": (lambda part, height, width: shear * part, True),
        "shear_y": (lambda part, height, width: shear * part, True),
        # Whole pixels, as torchvision moves images.
        "translate_x": (lambda part, height, width: float(int(across(width) * part)), True),
        "translate_y": (lambda part, height, width: float(int(across(height) * part)), True),
        "rotate": (lambda part, height, width: degrees * part, True),
        "brightness": (lambda part, height, width: factor * part, True),
        "saturation": (lambda part, height, width: factor * part, True),
        "contrast": (lambda part, height, width: factor * part, True),
        "sharpness": (lambda part, height, width: factor * part, True),
        "posterize": (lambda part, height, width: float(round(8 - bits * part)), False),
        "solarize": (lambda part, height, width: 255 * (1 - part), False),
        "auto_contrast": (lambda part, height, width: 0.0, False),
        "equalize": (lambda part, height, width: 0.0, False),
    }


_RAND = _scales(0.3, lambda side: 150 / 331 * side, 30, 0.9, 4)
_TRIVIAL = _scales(0.99, lambda side: 32.0, 135, 0.99, 6)


def rand_augment(
    units: Sequence[float],
    height: int,
    width: int,
    *,
    num_ops: int,
    magnitude: float,
    num_magnitude_bins: int,
    magnitude_std: float,
    p: float,
) -> list[Operation]:
    """Return the operations that the block of random `units` draws for a target of `height` and `width`.

    Args:
        units: the sample's numbers from [0, 1), four for each operation.
        num_ops: how many are drawn.
        magnitude: the strength, in steps.
        num_magnitude_bins: how many steps there are, 0 included.
        magnitude_std: the deviation of a strength drawn normally around `magnitude` (timm's `mstd`), in steps.
        p: the chance of each operation; torchvision's is 1, timm's 0.5.
    """
    found = []
    for at in range(0, WORDS_EACH * num_ops, WORDS_EACH):
        which, sign, deviation, chance = units[at : at + WORDS_EACH]
        step = magnitude
        if magnitude_std:
            step += magnitude_std * _normal(max(deviation, _SMALLEST))
        if chance < p:
            found.append(_operation(_RAND, which, sign, step / (num_magnitude_bins - 1), height, width))
    return found


def _normal(chance: float) -> float:
    """Return the standard normal number that a draw stays below with this `chance`."""
    from statistics import NormalDist  # takes milliseconds to load, and few augmentations draw so

    return NormalDist().inv_cdf(chance)


def trivial_augment_wide(
    units: Sequence[float], height: int, width: int, *, num_magnitude_bins: int
) -> list[Operation]:
    """Return the one operation that the block of random `units` draws, at an evenly drawn strength."""
    which, sign, step = units[:3]
    part = int(step * num_magnitude_bins) / (num_magnitude_bins - 1)
    return [_operation(_TRIVIAL, which, sign, part, height, width)]


def _operation(
    scales: Mapping[str, Scale], which: float, sign: float, part: float, height: int, width: int
) -> Operation:
    name = list(scales)[int(which * len(scales))]
    strength_at, is_signed = scales[name]
    strength = strength_at(min(1.0, max(0.0, part)), height, width)
    return Operation(name, -strength if is_signed and sign < 0.5 else strength)
