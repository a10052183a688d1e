"""What changes a sample's pixels and moves none: jitter, policies, blur and the rest, in the order of `AUGMENTATIONS`.

Called in readers after the geometry, when the image is smallest, and before the user's functions. `color_jitter`,
`gaussian_blur` and `sharpness` take any pixels. The others take uint8 of one or three channels: `validate` refuses them
for the rest. Masks have the geometry alone.

Each augmentation draws from a block of words of its own, so adding one changes nothing that another does. The order is
fixed: color_jitter, rand_augment, trivial_augment_wide, grayscale, gaussian_blur, solarize, posterize, sharpness,
auto_contrast, equalize. It is SimCLR's, BYOL's and DINO's for the steps that these have.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import cv2

from prefetchd.config.augment import parameters
from prefetchd.data.images import pixel_operations as operations
from prefetchd.data.images.color_jitter import ColorJitter
from prefetchd.data.images.geometry import FIRST_WORD, PolicyDraws
from prefetchd.sampling.randomness import between

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from prefetchd.config.options import Color
    from prefetchd.data.images.policies import Operation

    _Step = Callable[["PixelChanges", NDArray[np.uint8], Mapping[str, Any], float], None]


class PixelChanges:
    """Applies what one configuration's `augment` does to pixels. One thread.

    Args:
        texts: the canonical augmentations.
        target_size: (height, width) of the images.
        color: the order of their channels, or `gray`.
        n_channels: how many; as many as `color` says if not given.
    """

    def __init__(
        self, texts: tuple[str, ...], target_size: tuple[int, int], color: Color, n_channels: int | None = None
    ) -> None:
        given = parameters(texts)
        self._gray = color == "gray" or n_channels == 1
        self._to_gray = cv2.COLOR_BGR2GRAY if color == "bgr" else cv2.COLOR_RGB2GRAY
        self._from_gray = cv2.COLOR_GRAY2BGR if color == "bgr" else cv2.COLOR_GRAY2RGB
        self._jitter = ColorJitter(given.get("color_jitter", {}), color, n_channels)
        self._policies = PolicyDraws(texts, target_size)
        self._steps: list[Callable[[NDArray[np.uint8], Sequence[float]], None]] = []
        if "color_jitter" in given:
            self._steps.append(self._jitter.apply)
        if "rand_augment" in given or "trivial_augment_wide" in given:
            self._steps.append(self._apply_policies)
        self._steps += [
            partial(self._by_chance, FIRST_WORD[name], given[name], step)
            for name, step in _STEPS.items()
            if name in given
        ]

    def __bool__(self) -> bool:
        return bool(self._steps)

    def apply(self, pixels: NDArray[Any], units: Sequence[float]) -> None:
        """Change `pixels`, (H, W, C) or (H, W) for one channel, in place, by the sample's random numbers `units`."""
        for step in self._steps:
            step(pixels, units)

    def _apply_policies(self, pixels: NDArray[np.uint8], units: Sequence[float]) -> None:
        for operation in self._policies.draw(units):
            self.operate(pixels, operation)

    def operate(self, pixels: NDArray[np.uint8], operation: Operation) -> None:
        """Apply one operation of a policy, in place; those that move pixels are in the geometry already."""
        name, strength = operation
        if name == "brightness":
            self._jitter.adjust(pixels, 1 + strength, 1, 1, 0)
        elif name == "contrast":
            self._jitter.adjust(pixels, 1, 1 + strength, 1, 0)
        elif name == "saturation":
            self._jitter.adjust(pixels, 1, 1, 1 + strength, 0)
        elif name == "sharpness":
            operations.sharpness(pixels, 1 + strength)
        elif name == "posterize":
            operations.posterize(pixels, int(strength))
        elif name == "solarize":
            operations.solarize(pixels, strength)
        elif name == "auto_contrast":
            operations.auto_contrast(pixels)
        elif name == "equalize":
            operations.equalize(pixels)

    def _by_chance(
        self, at: int, given: Mapping[str, Any], step: _Step, pixels: NDArray[np.uint8], units: Sequence[float]
    ) -> None:
        """Do `step` if its block's first word, at `at`, is within its chance; the second word is the step's."""
        if units[at] < given["p"]:
            step(self, pixels, given, units[at + 1])

    def _grayscale(self, pixels: NDArray[np.uint8]) -> None:
        if not self._gray:
            operations.grayscale(pixels, self._to_gray, self._from_gray)


# In the order in which they are applied.
_STEPS: dict[str, _Step] = {
    "grayscale": lambda changes, pixels, given, unit: changes._grayscale(pixels),
    "gaussian_blur": lambda changes, pixels, given, unit: operations.gaussian_blur(
        pixels, given["kernel_size"], between(unit, given["sigma"])
    ),
    "solarize": lambda changes, pixels, given, unit: operations.solarize(pixels, given["threshold"]),
    "posterize": lambda changes, pixels, given, unit: operations.posterize(pixels, given["bits"]),
    "sharpness": lambda changes, pixels, given, unit: operations.sharpness(pixels, given["sharpness_factor"]),
    "auto_contrast": lambda changes, pixels, given, unit: operations.auto_contrast(pixels),
    "equalize": lambda changes, pixels, given, unit: operations.equalize(pixels),
}
