"""Random erasing (Zhong et al., 2017): a box of the delivered row is overwritten, after everything else.

Called in readers once `scale`, `mean` and `std` are applied, as torchvision's and timm's recipes do it. So `value` is
in the units of the delivered row: with `mean` and `std` 0 is the mean colour, and for uint8 it is black. Any dtype is
taken. Masks are left as they are, as torchvision leaves them.

`value="random"` draws each value: from the standard normal distribution for floating rows, as torchvision does, and
evenly from all values for integer rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.augment import parameters
from prefetchd.config.augment_values import RANDOM
from prefetchd.data.images.geometry import FIRST_WORD, Box
from prefetchd.sampling.randomness import BLOCK_WORDS, ERASE, SampleRandomness, between

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from prefetchd.config.options import Config

_TRIES = 10
# Normal numbers come from a table of quantiles, indexed by random bits. Formulas such as Box-Muller would give other
# last bits on another processor, since numpy's logarithms differ there.
_QUANTILE_BITS = 12


class Erasing:
    """Applies one configuration's `random_erasing`. One thread; borrows the samples' randomness."""

    def __init__(self, config: Config, rng: SampleRandomness) -> None:
        given = parameters(config.augment)["random_erasing"]
        self._p: float = given["p"]
        self._scale: tuple[float, float] = given["scale"]
        self._ratio: tuple[float, float] = given["ratio"]
        self._size = config.image_size
        self._planar = config.layout == "nchw"
        self._rng = rng
        self._quantiles: NDArray[Any] | None = None
        self._value: NDArray[Any] | None = None
        if given["value"] != RANDOM:
            self._value = np.array(given["value"], config.dtype)
        elif np.dtype(config.dtype).kind == "f":
            from statistics import NormalDist  # takes milliseconds to load

            n = 1 << _QUANTILE_BITS
            self._quantiles = np.array([NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)], config.dtype)

    def apply(self, row: NDArray[Any], units: Sequence[float], epoch: int, sample_id: int, view: int = 0) -> None:
        """Erase a box of `row`, (H, W, C) or (C, H, W) as `layout` says, if the sample's random numbers say so."""
        at = FIRST_WORD["random_erasing"]
        box = erased_box(units[at : at + BLOCK_WORDS], *self._size, p=self._p, scale=self._scale, ratio=self._ratio)
        if box is None:
            return
        top, left, tall, wide = box
        image = row.transpose(1, 2, 0) if self._planar else row
        part = image[top : top + tall, left : left + wide]
        part[...] = self._noise(part.shape, row.dtype, epoch, sample_id, view) if self._value is None else self._value

    def _noise(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], epoch: int, sample_id: int, view: int
    ) -> NDArray[Any]:
        """Return a random value for each of the box's, from a stream of the sample's own."""
        n = math.prod(shape)
        item = np.dtype(np.uint16) if self._quantiles is not None else dtype
        words = self._rng.words(epoch, sample_id, ERASE, -(-n * item.itemsize // 8), view)
        bits = words.astype("<u8", copy=False).view(item)[:n]
        if self._quantiles is not None:
            bits = self._quantiles[bits >> (16 - _QUANTILE_BITS)]
        return bits.reshape(shape)


def erased_box(
    units: Sequence[float], height: int, width: int, *, p: float, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box | None:
    """Return the box that `units` erase, as torchvision's `RandomErasing.make_params` draws it; `None` for none.

    An area is drawn from `scale`, and height over width log-uniformly from `ratio`, at most ten times, until the box is
    smaller than the image both ways. If none is, nothing is erased.
    """
    if units[0] >= p:
        return None
    logs = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(_TRIES):
        area = height * width * between(units[1 + 2 * attempt], scale)
        aspect = math.exp(between(units[2 + 2 * attempt], logs))
        tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if tall < height and wide < width:
            top = int(units[1 + 2 * _TRIES] * (height - tall + 1))
            left = int(units[2 + 2 * _TRIES] * (width - wide + 1))
            return top, left, tall, wide
    return None
