"""One encoded image into its row, after a look at its header. Loaded in readers, by `encoded.EncodedSource`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.data.faults import refuse_larger
from prefetchd.data.images.pipeline import ImageReader

if TYPE_CHECKING:
    from prefetchd.data.records import Sample
    from prefetchd.data.source import ReserveMemory


class EncodedReader(ImageReader):
    """Loads encoded images: its `x` is a row of bytes and the place of their number; see `ImageReader`."""

    def _load(self, sample: Sample, sample_id: int, epoch: int, x: Any, reserve: ReserveMemory) -> Any:
        """Write the bytes of the file, zeros behind them, and their number; return the label."""
        content, length = x
        data, _ = self._encoded(sample, sample_id, reserve)
        n_bytes = len(data)
        refuse_larger(n_bytes, len(content))
        content[:n_bytes] = np.frombuffer(data, np.uint8)
        content[n_bytes:] = 0
        length[...] = n_bytes
        return self._label(sample, sample_id)
