"""The order of samples: a pure function from (seed, epoch, position) to sample id.

Shuffling is a keyed pseudo-random permutation computed per position: a balanced Feistel network over the smallest
even number of bits that holds n, with cycle walking for the positions that fall outside (Black and Rogaway, "Ciphers
with Arbitrary Finite Domains", CT-RSA 2002). It takes O(1) memory and any position at once, for ten samples as for a
billion. The round function is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) on 64-bit words.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROUNDS = 6
_BLOCK_POSITIONS = 1 << 13
_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(value: int) -> int:
    """SplitMix64's finaliser on one Python integer."""
    value = (value + _GOLDEN) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def _mix_array(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, elementwise, on uint64 of any shape."""
    values = values + np.uint64(_GOLDEN)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Permutation:
    """A bijection of 0..n-1 keyed by (seed, epoch), computed per position."""

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        if not 1 <= n <= 1 << 62:
            raise ValueError(f"n={n} is not from 1 to 2**62")
        self._n = n
        half_bits = max(1, -(-(n - 1).bit_length() // 2))
        self._half_bits = np.uint64(half_bits)
        self._half_mask = np.uint64((1 << half_bits) - 1)
        key = _mix(_mix(seed & _MASK64) ^ _mix((epoch & _MASK64) ^ 0xA5A5A5A5A5A5A5A5))
        self._round_keys = [np.uint64(_mix(key + round_)) for round_ in range(_ROUNDS)]

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sample ids, shape as `positions`, int64, at `positions` (each from 0 to n-1)."""
        values = self._network(positions.astype(np.uint64))
        while (outside := values >= self._n).any():
            values[outside] = self._network(values[outside])
        return values.astype(np.int64)

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._half_bits, values & self._half_mask
        for key in self._round_keys:
            left, right = right, left ^ (_mix_array(right ^ key) & self._half_mask)
        return (left << self._half_bits) | right


@functools.lru_cache(maxsize=4)
def _shuffled_block(n: int, seed: int, epoch: int, number: int) -> NDArray[np.int64]:
    """Return the sample ids at some thousands of positions, from `number` times as many on; not to be written to.

    Ids are wanted a few dozen at a time, and numpy takes as long for 64 of them (0.9 ms) as for 2000.
    """
    first = number * _BLOCK_POSITIONS
    ids = Permutation(n, seed, epoch)(np.arange(first, min(n, first + _BLOCK_POSITIONS), dtype=np.int64))
    ids.flags.writeable = False
    return ids


@dataclass(frozen=True, slots=True)
class Order:
    """Which samples are in which batch of which epoch.

    Attributes:
        n_samples: samples in the data set.
        batch_size: samples in a full batch.
        drop_last: whether a shorter last batch is left out.
        shuffle: whether each epoch has an order of its own.
        seed: decides the shuffled orders.
    """

    n_samples: int
    batch_size: int
    drop_last: bool
    shuffle: bool
    seed: int

    @property
    def batches_per_epoch(self) -> int:
        """Batches in an epoch over the whole data set; 0 only with `drop_last` and too few samples."""
        if self.drop_last:
            return self.n_samples // self.batch_size
        return -(-self.n_samples // self.batch_size)

    def rows(self, batch: int) -> int:
        """Samples in batch number `batch` (before bad ones are skipped)."""
        return min(self.batch_size, self.n_samples - batch * self.batch_size)

    def sample_ids(self, epoch: int, batch: int, first_row: int, n_rows: int) -> NDArray[np.int64]:
        """Return the ids, shape (n_rows,), int64, of rows `first_row` onwards of a batch."""
        start = batch * self.batch_size + first_row
        if not self.shuffle:
            return np.arange(start, start + n_rows, dtype=np.int64)
        parts = [np.empty(0, np.int64)] if not n_rows else []
        for number in range(start // _BLOCK_POSITIONS, -(-(start + n_rows) // _BLOCK_POSITIONS)):
            block, first = _shuffled_block(self.n_samples, self.seed, epoch, number), number * _BLOCK_POSITIONS
            parts.append(block[max(0, start - first) : start + n_rows - first])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
