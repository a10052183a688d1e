"""Places of a shuffled order, computed in blocks that are kept for a while. Pure."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from prefetchd.sampling.blocks import places_by_blocks
from prefetchd.sampling.permutation import Permutation

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK_POSITIONS = 1 << 13


@lru_cache(maxsize=8)
def _shuffled_block(n: int, shuffle_block: int, seed: int, epoch: int, number: int) -> NDArray[np.int64]:
    """Return the places at some positions of an epoch, read-only: (up to `_BLOCK_POSITIONS`,) int64.

    A batch needs a few dozen ids, and numpy takes as long for those as for some thousands.
    """
    first = number * _BLOCK_POSITIONS
    positions = np.arange(first, min(n, first + _BLOCK_POSITIONS), dtype=np.int64)
    if shuffle_block:
        ids = places_by_blocks(positions, n, shuffle_block, seed, epoch)
    else:
        ids = Permutation(n, seed, epoch)(positions)
    ids.flags.writeable = False
    return ids


def shuffled_places(
    n: int, shuffle_block: int, seed: int, epoch: int, start: int, n_positions: int
) -> NDArray[np.int64]:
    """Return the places, (n_positions,) int64, at the positions from `start` on of a shuffled order of `n` places."""
    return of_blocks(partial(_shuffled_block, n, shuffle_block, seed, epoch), _BLOCK_POSITIONS, start, n_positions)


def of_blocks(
    block: Callable[[int], NDArray[np.int64]], block_positions: int, start: int, n_positions: int
) -> NDArray[np.int64]:
    """Return `n_positions` places from the position `start` on, of blocks that `block` makes by number."""
    parts = [np.empty(0, np.int64)] if not n_positions else []
    for number in range(start // block_positions, -(-(start + n_positions) // block_positions)):
        first = number * block_positions
        parts.append(block(number)[max(0, start - first) : start + n_positions - first])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
