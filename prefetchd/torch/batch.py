"""The batch of tensors that `prefetchd.torch` delivers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prefetchd.client.batch import Batch, InEpoch, Named, class_of, decode_rows, joined

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from prefetchd.ring.layout import BatchLayout


class TensorBatch(InEpoch, Named):  # type: ignore[misc]  # index hides tuple.index, on purpose
    """One batch of tensors: as `prefetchd.Batch`, with tensors in place of arrays.

    It unpacks as `x, y`, or has the fields of the option `fields`; it has `.epoch`, `.index` and `.repeated`.

    Attributes:
        x: the samples; images are (rows, channels, height, width).
        y: the labels, as `prefetchd.batches` delivers them: a tensor, or a named tuple of tensors.
        sample_ids: (rows,) int64, a numpy array: the number of each sample in the data, from 0.
        first_row: how many samples of the whole batch stand before these; 0 except right after some resumes.
    """

    sample_ids: NDArray[np.int64]
    first_row = 0
    _layout: BatchLayout

    if TYPE_CHECKING:
        x: torch.Tensor
        y: torch.Tensor

        def __iter__(self) -> Iterator[torch.Tensor]: ...

    @staticmethod
    def of(
        batch: Batch, layout: BatchLayout, tensors: Sequence[torch.Tensor], sample_ids: NDArray[np.int64]
    ) -> TensorBatch:
        """Return `tensors`, one for each array of `layout`, with the place of `batch`."""
        made: TensorBatch = tuple.__new__(class_of(batch._fields, TensorBatch), joined(layout, tensors))
        made._grant, made.sample_ids, made._layout = batch.place, sample_ids, layout
        made.first_row = batch.first_row
        return made

    @property
    def source(self) -> Any:
        """(rows,) int64, a numpy array: the number of each sample's source, as in `prefetchd.batches`."""
        return self._layout.source_numbers(self.sample_ids)

    def strings(self, name: str) -> list[str]:
        """Return the text of each sample in the field `name`; see `prefetchd.Batch.strings`."""
        content, lengths = self.text_parts(name)
        return decode_rows(content.cpu().numpy(), lengths.cpu().numpy())
