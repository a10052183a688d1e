"""The shuffle by blocks: places that lie together stay near one another, so that storage is read in long runs. Pure.

The places are cut into blocks, the last one shorter. A keyed permutation puts the blocks in a new order each epoch, and
another shuffles the positions within each window of `WINDOW_BLOCKS` blocks. Both are computed per position, so any
position is known at once, in no memory.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from prefetchd.sampling.permutation import Permutation, mix

if TYPE_CHECKING:
    from numpy.typing import NDArray

WINDOW_BLOCKS = 16
_WINDOWS, _BLOCKS = 1, 2  # what a key is for


@lru_cache(maxsize=8)
def _permutation(n: int, seed: int, epoch: int, purpose: int, number: int) -> Permutation:
    """Return the permutation of the blocks, or of the positions in one window."""
    return Permutation(n, mix(mix(seed) + purpose) + number, epoch)


def places_by_blocks(positions: NDArray[np.int64], n: int, block: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the places at some positions of an epoch, shape (k,) as `positions`, int64.

    Args:
        positions: rising, each from 0 to n - 1.
        n: how many places there are.
        block: places in a block.
        seed, epoch: decide the order.
    """
    n_blocks = -(-n // block)
    window = WINDOW_BLOCKS * block
    within = np.empty_like(positions)
    numbers = positions // window
    for number in np.unique(numbers).tolist():
        rows = numbers == number
        length = min(window, n - number * window)
        shuffle = _permutation(length, seed, epoch, _WINDOWS, number)
        within[rows] = shuffle(positions[rows] - number * window) + number * window
    # The short block stands anywhere among the others: what comes behind it is that much nearer.
    order = _permutation(n_blocks, seed, epoch, _BLOCKS, 0)
    missing = n_blocks * block - n
    if missing:
        at = _place_of_last(n_blocks, seed, epoch)
        within = within + np.where(within >= at * block + block - missing, missing, 0)
    blocks, rest = np.divmod(within, block)
    return order(blocks) * block + rest


def positions_by_blocks(places: NDArray[np.int64], n: int, block: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the positions of an epoch at which these places stand: the inverse of `places_by_blocks`."""
    n_blocks = -(-n // block)
    blocks, rest = np.divmod(places, block)
    within = _permutation(n_blocks, seed, epoch, _BLOCKS, 0).inverse(blocks) * block + rest
    missing = n_blocks * block - n
    if missing:
        within -= np.where(within >= (_place_of_last(n_blocks, seed, epoch) + 1) * block, missing, 0)
    window = WINDOW_BLOCKS * block
    positions = np.empty_like(within)
    numbers = within // window
    for number in np.unique(numbers).tolist():
        rows = numbers == number
        length = min(window, n - number * window)
        shuffle = _permutation(length, seed, epoch, _WINDOWS, number)
        positions[rows] = shuffle.inverse(within[rows] - number * window) + number * window
    return positions


@lru_cache(maxsize=8)
def _place_of_last(n_blocks: int, seed: int, epoch: int) -> int:
    """Return where in the order of blocks the last one stands."""
    order = _permutation(n_blocks, seed, epoch, _BLOCKS, 0)
    step = 1 << 16
    for first in range(0, n_blocks, step):
        found = order(np.arange(first, min(n_blocks, first + step), dtype=np.int64)) == n_blocks - 1
        if found.any():
            return first + int(found.argmax())
    raise AssertionError("a permutation leaves nothing out")
