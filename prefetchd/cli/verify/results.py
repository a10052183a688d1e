"""What an inspection found: a few bytes for each sample, and why the bad ones cannot be had.

Made by `inspection`; `findings` judges it, and `prefetchd verify` prints it. Holds the source that it is about.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.data.images.source import ImageSource
from prefetchd.data.manifest.dialect import MalformedLine
from prefetchd.errors import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What is kept of each sample, in fewer bytes than it travels in.
KEPT = np.dtype(
    [
        ("seen", "?"), ("digest", "i8"), ("n_bytes", "u4"), ("width_px", "u4"), ("height_px", "u4"), ("channels", "u1"),
        ("bits", "u1"), ("format", "u1"), ("progressive", "?"), ("label", "i8"),
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bad:
    """A sample that cannot be had.

    Attributes:
        sample_id: its number.
        line: its line in the manifest, from 1; 0 where there is none.
        path: the file, or the shard, that it is in.
        where: both, in words.
        reason: why it cannot be had.
        judged: whether the content was found to be at fault; else the machine would not let it be decoded.
    """

    sample_id: int
    line: int
    path: str
    where: str
    reason: str
    judged: bool


@dataclass(frozen=True, slots=True)
class Inspected:
    """What an inspection found.

    Attributes:
        source: the samples, owned by whoever holds this.
        malformed: lines of a list file that are no samples; they are left out of it.
        facts: (n samples,) `KEPT`; of a sample that was not reached, or is bad, `seen` is false.
        verdicts: why each bad sample cannot be had, and whether the content was found to be at fault, by number.
        interrupted: whether it was stopped before the end.
        took_s: seconds of it.
        n_readers: how many readers decoded.
    """

    source: ImageSource
    malformed: list[MalformedLine]
    facts: NDArray[Any]
    verdicts: dict[int, tuple[str, bool]]
    interrupted: bool
    took_s: float
    n_readers: int

    def bad(self) -> Iterator[Bad]:
        """The bad samples, in the order of their numbers; a wrong `--root` makes millions of them."""
        records = self.source.records
        for sample_id in sorted(self.verdicts):
            reason, judged = self.verdicts[sample_id]
            sample = records.samples([sample_id])[0]
            path = one_line(sample.path)
            yield Bad(sample_id, sample.line, path, records.where(sample), reason, judged)
