"""The protocol between readers and data sources: a `Source` fills rows of a batch with samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from prefetchd.ipc.reader_messages import Fault
from prefetchd.ring.layout import FieldLayout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prefetchd.data.cache.daemon_side import CacheInDaemon
    from prefetchd.data.cache.several import SeveralCaches

ReserveMemory = Callable[[int], None]
ALLOWANCE_BYTES = 12 << 20  # working memory that a reader may take without `reserve`


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """What is the same of a source as long as it is open. Only the daemon's may be relied on beyond `n_samples`.

    Attributes:
        n_samples: the number of samples.
        digest: 16 hexadecimal digits that follow which samples there are, in which order, with which labels.
        versions: versions that decide a row's bytes besides the content options, such as the decoder's.
        fields: what it delivers: names, shapes and dtypes, in order.
        classes: class names by number, where labels were text.
        shared_bytes: of memory segments that the source holds for all its readers, such as an index.
        reader_bytes: of private memory that it takes in each reader, beyond what every reader has.
        max_task_rows: rows that one task may have at most; a report of a fault in each of them must fit in a message.
        answers_together: whether tasks are so short that a reader answers several together.
        sources: of a mixture, the name of each source and the number of its first sample.
        padding: of packed rows, the part of their tokens that is padding.
        is_far: whether some of it is read from a store of objects.
        bucket_fields: `fields` as batches of each bucket have them, by the bucket's number; empty without buckets.
    """

    n_samples: int
    digest: str
    versions: dict[str, str]
    fields: tuple[FieldLayout, ...]
    classes: tuple[str, ...] | None = None
    shared_bytes: int = 0
    reader_bytes: int = 0
    max_task_rows: int = 64
    answers_together: bool = False
    sources: tuple[tuple[str, int], ...] = ()
    padding: float | None = None
    is_far: bool = False
    bucket_fields: tuple[tuple[FieldLayout, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Saving:
    """What buckets save.

    Attributes:
        what: what is lost of images or batches of another shape, such as `padding`.
        before: the part that would be lost without buckets, 0 to 1.
        after: the part that is.
    """

    what: str
    before: float
    after: float


@dataclass(frozen=True, slots=True, eq=False)
class Bucketing:
    """Which sample is in which bucket.

    Attributes:
        numbers: (samples,) the bucket of each sample.
        names: of the buckets, such as `224x224`.
        saving: what they save for the samples of these numbers, or of a slice; `None` if that is not known.
        whole: the name of the one shape that all samples would have without buckets.
    """

    numbers: NDArray[np.integer[Any]]
    names: list[str]
    saving: Callable[[NDArray[np.int64] | slice], Saving | None]
    whole: str


class Bucketed(Protocol):
    """What a `Source` with `bucket_fields` has more, in the daemon."""

    def put_into_buckets(self) -> Bucketing:
        """Return the bucket of each sample; images are looked at for it."""


class Source(Protocol):
    """A data set by random access. The daemon opens and checks it; each reader attaches to it."""

    @property
    def facts(self) -> SourceFacts:
        """What never changes of it."""

    @property
    def cache(self) -> CacheInDaemon | SeveralCaches | None:
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
        arrays: Sequence[NDArray[Any]],
        reserve: ReserveMemory,
    ) -> list[Fault]:
        """Write samples, as they are in `epoch`, into rows of `arrays`; return those that failed.

        `arrays` are those of `facts.fields`, in that order. `rows` follow one another. A sample whose reader died is
        filled again, alone. The reader answers after `confirm` only.

        `fill` calls `reserve(n_bytes)` before it takes working memory beyond the reader's allowance, and `reserve(0)`
        after it gave that back.
        """

    def confirm(self) -> None:
        """Raise `ManifestError` if rows filled since the last call may not be from what was opened."""
