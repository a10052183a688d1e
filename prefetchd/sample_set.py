"""A set of sample numbers that takes a bit a sample at most, and nothing where there are none. Pure; the filler's."""

from __future__ import annotations

_BLOCK_SAMPLES = 1 << 15


class SampleSet:
    """Sample numbers from 0 on. Blocks of bits are made as numbers of theirs come in.

    One bitmap for all samples would be made at start whatever is in it: 512 MiB for the 2**32 rows of a large array.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, bytearray] = {}

    def add(self, sample_id: int) -> None:
        """Put a number in."""
        number, bit = divmod(sample_id, _BLOCK_SAMPLES)
        block = self._blocks.setdefault(number, bytearray(_BLOCK_SAMPLES // 8))
        block[bit // 8] |= 1 << bit % 8

    def __contains__(self, sample_id: int) -> bool:
        number, bit = divmod(sample_id, _BLOCK_SAMPLES)
        block = self._blocks.get(number)
        return block is not None and bool(block[bit // 8] >> bit % 8 & 1)
