"""The protocol between readers and sources."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from prefetchd.ipc.reader_messages import Fault

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prefetchd.data.cache.daemon_side import CacheInDaemon

ReserveMemory = Callable[[int], None]
ALLOWANCE_BYTES = 12 << 20  # working memory that a reader may take without `reserve`


class Source(Protocol):
    """A data set by random access. Opened and checked by the daemon, attached to by each reader."""

    @property
    def n_samples(self) -> int:
        """Samples in the data set."""

    @property
    def digest(self) -> str:
        """A digest of which samples there are, in which order, with which labels."""

    @property
    def versions(self) -> dict[str, str]:
        """What besides the content options decides how a sample becomes a row: the decoder's version and the like."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in the order of their numbers, where labels were text."""

    @property
    def x(self) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of one delivered sample."""

    @property
    def y(self) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of one delivered label."""

    @property
    def shared_bytes(self) -> int:
        """Bytes of memory segments that the source itself holds for all its readers, such as an index."""

    @property
    def max_task_rows(self) -> int:
        """Rows that a reader may fill in one task at most; a report of faults in each of them must fit in a message."""

    @property
    def answers_together(self) -> bool:
        """Whether tasks take so little that the answer to one may wait until the next ones are done."""

    @property
    def reader_bytes(self) -> int:
        """Private memory that it takes in each reader, beyond what every reader has (`budget.READER_BYTES`)."""

    @property
    def cache(self) -> CacheInDaemon | None:
        """The cache of decoded samples, in the daemon, where there is one."""

    @property
    def read_s(self) -> float:
        """Seconds that a sample's read takes where it pays to be told of samples ahead (`expect`); 0 otherwise."""

    @property
    def waited_s(self) -> float:
        """Seconds that `fill` has waited for reads so far, those of all calls together; 0 where it is not known."""

    def expect(self, sample_ids: Iterable[int]) -> None:
        """Begin to fetch samples that `fill` will be asked for next, in this order, if reads are slow; in readers."""

    def check_unchanged(self) -> None:
        """Raise `ManifestError` if the data set is no longer what was opened."""

    def where(self, sample_id: int) -> str:
        """Say where a sample is named and what it is: manifest, line and path."""

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Plain values and descriptors from which a reader attaches."""

    def fill(
        self,
        epoch: int,
        sample_ids: NDArray[np.int64],
        rows: Sequence[int],
        x: NDArray[Any],
        y: NDArray[Any],
        reserve: ReserveMemory,
    ) -> list[Fault]:
        """Write samples, as they are in `epoch`, into rows of `x` and `y`; return those that failed.

        `rows` follow one another. A sample whose reader has died is asked for again, alone. The answer goes out after
        `confirm` only.

        `reserve(n_bytes)` must be called before working memory beyond the reader's allowance is taken, and
        `reserve(0)` after it was given back.
        """

    def confirm(self) -> None:
        """Raise `ManifestError` if what was filled since the last call may not be what was opened."""
