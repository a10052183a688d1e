"""Where the rows of a task go: the bridge's maps of the slots, and the place of each field's rows in them."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prefetchd.ipc import reader_messages
from prefetchd.remote.travel import bytes_of
from prefetchd.ring.layout import BatchLayout
from prefetchd.ring.segment import map_writable

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Target:
    """Where the rows of a task go: the number of rows, and a view of each field's and of the sample ids' bytes."""

    first_row: int
    n_rows: int
    views: tuple[memoryview, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of all rows."""
        return sum(map(len, self.views))


@dataclass(frozen=True, slots=True)
class _Slot:
    memory: mmap.mmap
    root: NDArray[np.uint8]
    views: dict[tuple[int, int], tuple[memoryview, ...]]  # by data set and layout: the bytes of each field


class Targets:
    """The slots that are mapped.

    Args:
        layouts: of the batches of each data set, by the daemon's number of it; they may come later.
    """

    def __init__(self, layouts: dict[int, Sequence[BatchLayout]]) -> None:
        self._layouts = layouts
        self._slots: dict[int, _Slot] = {}

    def map(self, slot: int, fd: int, n_bytes: int) -> None:
        """Map a slot; `fd` is borrowed."""
        memory = map_writable(fd, n_bytes)
        self._slots[slot] = _Slot(memory, np.frombuffer(memory, np.uint8), {})

    def unmap(self, slots: Sequence[int]) -> None:
        """Forget slots; what is written to them is the caller's affair."""
        for slot in slots:
            del self._slots[slot]

    def of(self, fill: reader_messages.Fill) -> Target:
        """Return where the rows of `fill` go."""
        slot, layout = self._slots[fill.slot], self._layouts[fill.dataset][fill.layout]
        key, n_all = (fill.dataset, fill.layout), layout.batch_size
        if key not in slot.views:
            every = (*layout.arrays(slot.root, n_all), layout.sample_ids(slot.root, n_all))
            slot.views[key] = tuple(bytes_of(each) for each in every)
        first, end = fill.first_row, fill.first_row + fill.n_rows
        views = tuple(view[len(view) // n_all * first : len(view) // n_all * end] for view in slot.views[key])
        return Target(first, fill.n_rows, views)
