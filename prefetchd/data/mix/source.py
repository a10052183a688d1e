"""`MixedSource`: several sources as one. Their samples have numbers one after another.

    sample number -> part, and its own number -> the part's `fill` -> classes by the names of all parts -> the batch

The daemon opens each part as it would alone, and each reader attaches to it. The parts deliver the same fields
(`opener` refuses others). What a part knows of its samples, such as where one is listed, it is asked.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from prefetchd.data.source import ReserveMemory, Source, SourceFacts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.columns.store import Columns
    from prefetchd.data.cache.several import SeveralCaches
    from prefetchd.ipc.reader_messages import Fault

_SCRATCH_BYTES = 1 << 20  # of rows on their way into a batch; a part of a reader's allowance
# By the number of an array of the batch: the number among all classes of each class of the part.
Renumbering = Mapping[int, "NDArray[np.int64]"]


class MixedSource:
    """A `Source` of several.

    Args:
        parts: the sources; owned.
        facts: of all together.
        renumbered: of each part, the classes that have another number among those of all parts.
        first_label: the number of the array with the labels that `where` and the logs count; -1 for none.
        label_classes: the names of their classes; `None` where they are numbers.
        numbers_rows: whether samples have no labels, so that y is the sample's number.
        named: the names of the classes of each field, with the option `fields`.
        columns: `renumbered`, for the readers; owned. `None` where no class has another number.
    """

    def __init__(
        self,
        parts: Sequence[Source],
        facts: SourceFacts,
        renumbered: Sequence[Renumbering],
        *,
        first_label: int = -1,
        label_classes: tuple[str, ...] | None = None,
        numbers_rows: bool = False,
        columns: Columns | None = None,
        named: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.parts = tuple(parts)
        self.facts = facts
        self._firsts = [first for _, first in facts.sources]
        self._renumbered = renumbered
        self._first_label = first_label
        self.label_classes = label_classes
        self._numbers_rows = numbers_rows
        self._columns = columns
        self._named = dict(named or {})
        self._cache: SeveralCaches | None = None
        caches = {number: cache for number, part in enumerate(parts) if (cache := part.cache) is not None}
        if caches:
            from prefetchd.data.cache.several import SeveralCaches

            self._cache = SeveralCaches(caches)

    def delivered_labels(self, part: int, labels: NDArray[Any]) -> NDArray[Any]:
        """Return labels of a part, (samples,), as batches have them."""
        table = self._renumbered[part].get(self._first_label)
        return labels if table is None else renumber(labels, table)

    def class_names(self) -> dict[str, tuple[str, ...]]:
        """Return the names of the classes of each field that has some; with the option `fields` alone."""
        return self._named

    @property
    def cache(self) -> SeveralCaches | None:
        """The caches of the parts, in the daemon."""
        return self._cache

    @property
    def read_s(self) -> float:
        """Seconds that a read of the slowest part takes, where reading ahead pays."""
        return max(part.read_s for part in self.parts)

    @property
    def waited_s(self) -> float:
        """Seconds that all parts have waited for reads."""
        return sum(part.waited_s for part in self.parts)

    def part_of(self, sample_id: int) -> tuple[int, int]:
        """Return the part of a sample, and its number there."""
        part = bisect_right(self._firsts, sample_id) - 1
        return part, sample_id - self._firsts[part]

    def expect(self, sample_ids: Iterable[int]) -> None:
        """Let each part whose reads are slow begin to fetch its samples."""
        by_part: dict[int, list[int]] = {}
        for sample_id in sample_ids:
            part, own = self.part_of(int(sample_id))
            by_part.setdefault(part, []).append(own)
        for part, own_ids in by_part.items():
            if self.parts[part].read_s:
                self.parts[part].expect(own_ids)

    def check_unchanged(self) -> None:
        """Raise `ManifestError` if a file is no longer what was opened."""
        for part in self.parts:
            part.check_unchanged()

    def confirm(self) -> None:
        """Raise `ManifestError` if rows filled since the last call may not be from what was opened."""
        for part in self.parts:
            part.confirm()

    def where(self, sample_id: int) -> str:
        """Return where a sample comes from, as its part says it."""
        part, own = self.part_of(sample_id)
        return self.parts[part].where(own)

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Return plain values and descriptors from which a reader attaches."""
        handles, fds = [], []
        for part in self.parts:
            handle, own = part.handle()
            handles.append([handle, len(own)])
            fds += own
        table = None
        if self._columns is not None:
            table, fd = self._columns.handle()
            fds.append(fd)
        return {"kind": "mix", "parts": handles, "table": table, "numbers_rows": self._numbers_rows}, fds

    def fill(
        self,
        epoch: int,
        sample_ids: NDArray[np.int64],
        rows: Sequence[int],
        arrays: Sequence[NDArray[Any]],
        reserve: ReserveMemory,
    ) -> list[Fault]:
        """Have each part fill the rows that are its own; images go into the batch where they stand."""
        faults: list[Fault] = []
        ids = np.asarray(sample_ids, np.int64)
        numbers = np.searchsorted(self._firsts, ids, "right") - 1
        if not self.facts.answers_together:
            for part, low, high in _runs(numbers):
                faults += self._fill_part(part, epoch, ids[low:high], rows[low:high], arrays, reserve)
        else:
            # A call costs as much as some hundred rows of arrays, and each fills rows that follow one another.
            step = max(1, _SCRATCH_BYTES // sum(array[:1].nbytes for array in arrays))
            for part in np.unique(numbers).tolist():
                own = np.flatnonzero(numbers == part)
                for places in (own[first : first + step] for first in range(0, len(own), step)):
                    scratch = [np.empty((len(places), *array.shape[1:]), array.dtype) for array in arrays]
                    found = self._fill_part(part, epoch, ids[places], range(len(places)), scratch, reserve)
                    into = places + rows[0]
                    for array, filled in zip(arrays, scratch, strict=True):
                        array[into] = filled
                    faults += [msgspec.structs.replace(fault, row=int(into[fault.row])) for fault in found]
        # Tracebacks of many rows would not fit in a message.
        return faults if len(ids) == 1 else [msgspec.structs.replace(fault, detail="") for fault in faults]

    def _fill_part(
        self,
        part: int,
        epoch: int,
        ids: NDArray[np.int64],
        rows: Sequence[int],
        arrays: Sequence[NDArray[Any]],
        reserve: ReserveMemory,
    ) -> list[Fault]:
        """Have one part fill rows that follow one another, with the numbers of classes as batches have them."""
        first = self._firsts[part]
        found = self.parts[part].fill(epoch, ids - first, rows, arrays, reserve)
        into = slice(rows[0], rows[0] + len(ids))
        for number, table in self._renumbered[part].items():
            arrays[number][into] = renumber(arrays[number][into], table)
        if self._numbers_rows:
            arrays[-1][into] = ids
        return [msgspec.structs.replace(fault, sample_id=fault.sample_id + first) for fault in found]


def _runs(parts: NDArray[np.intp]) -> Iterator[tuple[int, int, int]]:
    """Yield each stretch of equal numbers: the number, its first place, and the place behind it."""
    ends = [*(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(parts)]
    low = 0
    for high in ends:
        if high > low:
            yield int(parts[low]), low, high
        low = high


def renumber(labels: NDArray[Any], table: NDArray[np.int64]) -> NDArray[Any]:
    """Return the numbers of classes among those of all parts; other numbers, such as `missing_label`'s, stay."""
    inside = (labels >= 0) & (labels < len(table))
    return np.where(inside, table[np.where(inside, labels, 0)], labels)
