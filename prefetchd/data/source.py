"""The protocol between readers and data sources: a `Source` fills rows of a batch with samples."""

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
    """A data set by random access. The daemon opens and checks it; each reader attaches to it."""

    @property
    def n_samples(self) -> int:
        """The number of samples."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that follow which samples there are, in which order, with which labels."""

    @property
    def versions(self) -> dict[str, str]:
        """Versions that decide a row's bytes besides the content options, such as the decoder's."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names by number, where labels were text."""

    @property
    def x(self) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of one delivered sample."""

    @property
    def y(self) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of one delivered label."""

    @property
    def shared_bytes(self) -> int:
        """Bytes of memory segments that the source holds for all its readers, such as an index."""

    @property
    def max_task_rows(self) -> int:
        """Rows that one task may have at most; a report of a fault in each of them must fit in a message."""

    @property
    def answers_together(self) -> bool:
        """Whether tasks are so short that a reader answers several together."""

    @property
    def reader_bytes(self) -> int:
        """Bytes of private memory that it takes in each reader, beyond what every reader has."""

    @property
    def cache(self) -> CacheInDaemon | None:
        """The cache of decoded samples, in the daemon; `None` without one."""

    @property
    def read_s(self) -> float:
        """Seconds that a sample's read takes, where reading ahead (`expect`) pays; 0 otherwise."""

    @property
    def waited_s(self) -> float:
        """Seconds that all calls of `fill` have waited for reads; 0 where it is not known."""

    def expect(self, sample_ids: Iterable[int]) -> None:
        """Begin to fetch the samples that `fill` will need next, in this order, if reads are slow; in readers."""

    def check_unchanged(self) -> None:
        """Raise `ManifestError` if a file is no longer what was opened."""

    def where(self, sample_id: int) -> str:
        """Return where a sample comes from: list, line and path; printable."""

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Return plain values and descriptors from which a reader attaches."""

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

        `rows` follow one another. A sample whose reader died is filled again, alone. The reader answers after `confirm`
        only.

        `fill` calls `reserve(n_bytes)` before it takes working memory beyond the reader's allowance, and `reserve(0)`
        after it gave that back.
        """

    def confirm(self) -> None:
        """Raise `ManifestError` if rows filled since the last call may not be from what was opened."""
