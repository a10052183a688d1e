"""One batch as the user's loop gets it: `x, y`, and its place in the epoch.

It is a named tuple, and so a tree of two leaves to every framework: `jax.tree`, `torch.utils._pytree`, `optree`,
`keras.tree` and `tf.nest` map over it, and Lightning, Accelerate and `jax.device_put` move it between devices as it is.
A tuple of any other class would be one opaque leaf to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prefetchd.ring.layout import BatchLayout
    from prefetchd.ring.queues import Grant


class InEpoch:
    """The place of a batch: epoch and number. A mixin of the named tuples that loaders deliver.

    A batch that a framework's tree function has made from another one has no place.
    """

    _grant: Grant | None = None

    @property
    def place(self) -> Grant:
        """The grant that the batch came with."""
        if self._grant is None:
            raise AttributeError(
                "cannot tell the batch's place in the epoch: it was made from another batch; ask the one that the "
                "loader delivered"
            )
        return self._grant

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 0."""
        return self.place.epoch

    @property
    def index(self) -> int:
        """Number of the batch in the epoch, from 0, over all shards."""
        return self.place.batch

    @property
    def repeated(self) -> bool:
        """Whether the batch was wrapped round past the end of the epoch, for even shards."""
        return bool(self.place.repeated)


class _Arrays(NamedTuple):
    x: NDArray[Any]
    y: NDArray[Any]


class Batch(InEpoch, _Arrays):  # type: ignore[misc]  # index hides tuple.index, on purpose
    """One batch: unpacks as `x, y`, and has its place in the epoch.

    Making one is part of the handoff of every batch, so it computes nothing before it is asked.

    Attributes:
        x: the samples: (rows, height, width, channels), or as the `layout` option says.
        y: the labels: (rows,) or (rows, k), int64 or float32; masks; or what `target_transform` makes.
        root: (bytes,) uint8, all the bytes of the batch, which the others are views of.
    """

    root: NDArray[np.uint8]
    _layout: BatchLayout

    @classmethod
    def over(cls, root: NDArray[np.uint8], rows: int, layout: BatchLayout) -> Batch:
        """Return the batch of `rows` samples in `root`, the bytes of its slot; the caller adds its grant."""
        batch = tuple.__new__(cls, layout.arrays(root, rows))
        batch.root, batch._layout = root, layout
        return batch

    @classmethod
    def of(cls, grant: Grant, root: NDArray[np.uint8], layout: BatchLayout) -> Batch:
        """Return the batch of `grant` over `root`."""
        batch = cls.over(root, grant.rows, layout)
        batch._grant = grant
        return batch

    def copy(self) -> Batch:
        """Return the same batch in memory of its own."""
        return Batch.of(self.place, self.root.copy(), self._layout)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the slot's bytes once, and the place of the batch."""
        if self._grant is None:
            return Batch, tuple(self)
        return Batch.of, (self._grant, self.root, self._layout)

    @property
    def sample_ids(self) -> NDArray[np.int64]:
        """(rows,) int64: the number of each sample in the manifest, from 0."""
        return self._layout.sample_ids(self.root, self.place.rows)
