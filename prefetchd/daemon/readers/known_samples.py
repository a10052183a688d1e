"""What is remembered of samples: those that are bad, and their numbers. Pure; the job tracker owns both."""

from __future__ import annotations

from dataclasses import dataclass

_BLOCK_SAMPLES = 1 << 15


@dataclass(slots=True)
class BadSample:
    """A bad sample, as the log and `status` show it."""

    sample_id: int
    where: str
    reason: str
    detail: str = ""


class SampleSet:
    """Sample numbers from 0 on, in blocks of bits that are made as numbers of theirs come in.

    It takes a bit a sample at most, and nothing where there are none. One bitmap for all samples would be made at the
    start also for no bad sample: 512 MiB for the 2**32 rows of a large array.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, bytearray] = {}

    def add(self, sample_id: int) -> None:
        """Add a number."""
        number, bit = divmod(sample_id, _BLOCK_SAMPLES)
        block = self._blocks.setdefault(number, bytearray(_BLOCK_SAMPLES // 8))
        block[bit // 8] |= 1 << bit % 8

    def __contains__(self, sample_id: int) -> bool:
        number, bit = divmod(sample_id, _BLOCK_SAMPLES)
        block = self._blocks.get(number)
        return block is not None and bool(block[bit // 8] >> bit % 8 & 1)
