"""One batch as the user's loop gets it: `x, y`, and where it stands in the epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prefetchd.layout import BatchLayout
    from prefetchd.mailbox import Granted


class Batch(tuple[Any, Any]):
    """One batch: unpacks as `x, y`, and tells where it stands in the epoch.

    It is made on the way of every batch, so it only keeps what it came with and looks things up when asked.
    """

    _grant: Granted
    _root: NDArray[np.uint8]
    _layout: BatchLayout

    @classmethod
    def over(cls, root: NDArray[np.uint8], rows: int, layout: BatchLayout) -> Batch:
        """Return the batch of `rows` samples in `root`, the bytes of its slot; what it was granted as is to follow."""
        batch = cls(layout.xy(root, rows))
        batch._root, batch._layout = root, layout
        return batch

    @classmethod
    def of(cls, grant: Granted, root: NDArray[np.uint8], layout: BatchLayout) -> Batch:
        """Return the batch of `grant` over `root`."""
        batch = cls.over(root, grant.rows, layout)
        batch._grant = grant
        return batch

    def copy(self) -> Batch:
        """Return the same batch in memory of its own."""
        return Batch.of(self._grant, self._root.copy(), self._layout)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the slot's bytes, once, with everything that the batch tells."""
        return Batch.of, (self._grant, self._root, self._layout)

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 0."""
        return self._grant.epoch

    @property
    def index(self) -> int:  # type: ignore[override]  # hides tuple.index, on purpose
        """Number of the batch in the epoch, from 0, over all shards."""
        return self._grant.batch

    @property
    def repeated(self) -> bool:
        """Whether the batch was wrapped round past the end of the epoch, for even shards."""
        return bool(self._grant.repeated)

    @property
    def sample_ids(self) -> NDArray[np.int64]:
        """(rows,) int64: the number of each sample in the manifest, from 0."""
        return self._layout.sample_ids(self._root, self._grant.rows)

    @property
    def x(self) -> NDArray[Any]:
        """The samples: (rows, height, width, channels), or as the `layout` option says."""
        return self[0]  # type: ignore[no-any-return]

    @property
    def y(self) -> NDArray[Any]:
        """The labels: (rows,) or (rows, k), int64 or float32; masks; or what `target_transform` makes."""
        return self[1]  # type: ignore[no-any-return]
