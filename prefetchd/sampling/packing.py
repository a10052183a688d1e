"""Which documents lie in which row of a packed epoch: a pure function of (seed, epoch, row).

The documents stand in a table, in an order that is the same in every epoch, and so is the number of rows. Readers map
the table; what they compute of an epoch is small, and kept for the last one or two.

`Concatenation` lays documents end to end and cuts the stream into rows. Shuffled, the table is cut into blocks, and
each epoch puts the blocks, and the documents of each, in a new order. A block has as many tokens in every order, so a
sum over blocks finds any row at once.

`Fitting` fills rows with whole documents by a plan of lengths (see `sampling.first_fit`). Shuffled, each epoch deals
the documents of one length to the places of that length anew.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from prefetchd.sampling.permutation import Permutation, mix, mix_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.sampling.first_fit import Bins

_DEAL, _BLOCKS, _DOCUMENTS, _LENGTHS = 16, 17, 18, 19  # what a key is for
_BLOCK_DOCUMENTS = 512
_MAX_BLOCKS = 1 << 16
_MAX_EPOCHS_KEPT = 2
_MAX_BLOCKS_KEPT = 16
_ROUNDS = 6  # even, so that each half ends on its own side
_LOW_BITS = np.uint64(20)


class Pieces(NamedTuple):
    """Stretches of tokens, in the order of rows and within each from its left: four arrays (pieces,), int64.

    Attributes:
        rows: which of the wanted rows a piece lies in, from 0.
        documents: the number of its document.
        starts: its first token, in the array of all tokens.
        counts: its tokens, 1 or more.
    """

    rows: NDArray[np.int64]
    documents: NDArray[np.int64]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Documents:
    """The table: documents, or parts of long ones, none empty. Arrays (n,) of whole numbers, perhaps of shared memory.

    Attributes:
        numbers: of each document in the data set.
        starts: its first token.
        lengths: its tokens.
    """

    numbers: NDArray[np.integer]
    starts: NDArray[np.integer]
    lengths: NDArray[np.integer]

    def __len__(self) -> int:
        return len(self.numbers)

    def at(self, places: NDArray[np.int64] | slice) -> Documents:
        """Return those at some places."""
        return Documents(self.numbers[places], self.starts[places], self.lengths[places])


class Packing(Protocol):
    """Which documents lie in which row."""

    def pieces(self, epoch: int, rows: NDArray[np.int64]) -> Pieces:
        """Return what lies in these rows of an epoch."""


def dealt(n: int, seed: int) -> NDArray[np.int64]:
    """Return the order, (n,) int64, in which a shuffled concatenation has its documents in the table."""
    deal = Permutation(n, mix(mix(seed) + _DEAL), 0)
    step = 1 << 16  # what fits in a processor's cache takes half the time
    parts = [deal(np.arange(first, min(n, first + step), dtype=np.int64)) for first in range(0, n, step)]
    return np.concatenate(parts)


def block_documents(n: int) -> int:
    """Return how many documents a block of a concatenation has."""
    return max(_BLOCK_DOCUMENTS, -(-n // _MAX_BLOCKS))


def block_totals(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the tokens of each block."""
    firsts = np.arange(0, len(lengths), block_documents(len(lengths)))
    return np.add.reduceat(lengths, firsts, dtype=np.int64)


@dataclass(eq=False)
class Concatenation:
    """Documents end to end, cut into rows of `max_length`.

    Attributes:
        table: the documents; shuffled in the order that `dealt` gives.
        totals: (blocks,) int64, the tokens of each block; see `block_totals`.
        max_length: tokens in a row.
        seed: decides the order of each epoch; `None` for the table's own order.
    """

    table: Documents
    totals: NDArray[np.int64]
    max_length: int
    seed: int | None
    _epochs: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=dict)
    _blocks: dict[tuple[int, int], tuple[Documents, NDArray[np.int64]]] = field(default_factory=dict)

    def pieces(self, epoch: int, rows: NDArray[np.int64]) -> Pieces:
        """Return what lies in these rows of an epoch; the last row may end early."""
        found = [self._stretches(epoch, first) for first in (rows * self.max_length).tolist()]
        counts = [sum(map(len, parts)) for parts in found]
        parts = [part for parts in found for part in parts]
        arrays = ([getattr(part, name) for part in parts] for name in ("numbers", "starts", "lengths"))
        return Pieces(
            np.repeat(np.arange(len(rows)), counts), *(np.concatenate(each).astype(np.int64) for each in arrays)
        )

    def _stretches(self, epoch: int, first: int) -> list[Documents]:
        """Return the documents from token `first` on in the stream of an epoch, up to a row's tokens, cut to them.

        There is one part for each block that they are in.
        """
        order, until = self._epoch(epoch)
        end = min(first + self.max_length, int(until[-1]))
        found = []
        place = int(until.searchsorted(first, "right"))
        while first < end:
            start = int(until[place - 1]) if place else 0
            documents, ends = self._block(epoch, int(order[place]))
            low, high = first - start, min(end, int(until[place])) - start
            within = slice(int(ends.searchsorted(low, "right")), int(ends.searchsorted(high, "left")) + 1)
            starts, counts = documents.starts[within].astype(np.int64), documents.lengths[within].astype(np.int64)
            cut = low - (int(ends[within.start]) - int(counts[0]))  # of the first, in the row before
            starts[0] += cut
            counts[0] -= cut
            counts[-1] -= int(ends[within.stop - 1]) - high
            found.append(Documents(documents.numbers[within], starts, counts))
            first, place = start + high, place + 1
        return found

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the blocks of an epoch in order, and the tokens up to the end of each: two (blocks,) int64."""
        if epoch not in self._epochs:
            order = np.arange(len(self.totals), dtype=np.int64)
            if self.seed is not None:
                order = Permutation(len(order), mix(mix(self.seed) + _BLOCKS), epoch)(order)
            _make_room(self._epochs, _MAX_EPOCHS_KEPT)
            self._epochs[epoch] = order, self.totals[order].cumsum()
        return self._epochs[epoch]

    def _block(self, epoch: int, number: int) -> tuple[Documents, NDArray[np.int64]]:
        """Return the documents of a block in the order of an epoch, and where each ends, from the block's start on."""
        key = epoch, number
        if key not in self._blocks:
            size = block_documents(len(self.table))
            found = self.table.at(slice(number * size, (number + 1) * size))
            if self.seed is not None:
                shuffle = Permutation(len(found), mix(mix(self.seed) + _DOCUMENTS) + number, epoch)
                found = found.at(shuffle(np.arange(len(found), dtype=np.int64)))
            _make_room(self._blocks, _MAX_BLOCKS_KEPT)
            self._blocks[key] = found, found.lengths.cumsum(dtype=np.int64)
        return self._blocks[key]


@dataclass(eq=False)
class Fitting:
    """Whole documents in rows, by a plan of lengths.

    Attributes:
        table: the documents, or parts of `max_length` of longer ones, by length class.
        class_starts: (classes + 1,) int64, where in the table each class begins, and where the last ends.
        bins: the plan, over the same classes.
        seed: decides which document of a class comes where in an epoch; `None` for the table's own order.
    """

    table: Documents
    class_starts: NDArray[np.int64]
    bins: list[Bins]
    seed: int | None

    def __post_init__(self) -> None:
        self._firsts = [each.first for each in self.bins]

    def pieces(self, epoch: int, rows: NDArray[np.int64]) -> Pieces:
        """Return what lies in these rows of an epoch, the longest first."""
        into: list[int] = []
        classes: list[int] = []
        ranks: list[int] = []
        for row, number in enumerate(rows.tolist()):
            bins = self.bins[bisect_right(self._firsts, number) - 1]
            for each in bins.content:
                first = each.first + (number - bins.first) * each.count
                into += [row] * each.count
                classes += [each.length_class] * each.count
                ranks += range(first, first + each.count)
        of_class, places = np.array(classes, np.int64), np.array(ranks, np.int64)
        starts = self.class_starts[of_class]
        if self.seed is not None:
            sizes = self.class_starts[of_class + 1] - starts
            keys = np.uint64(mix(mix(mix(self.seed) + _LENGTHS) + epoch)) + of_class.astype(np.uint64)
            places = permuted(places, sizes, mix_array(keys))
        found = self.table.at(starts + places)
        arrays = (each.astype(np.int64) for each in (found.numbers, found.starts, found.lengths))
        return Pieces(np.array(into, np.int64), *arrays)


def permuted(values: NDArray[np.int64], sizes: NDArray[np.int64], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return each value's place in a permutation of 0..size-1 that its key decides, shape as `values`.

    The network is that of `sampling.permutation`, for many sizes at once.
    """
    width = np.ceil(np.sqrt(sizes)).astype(np.uint64)
    n = sizes.astype(np.uint64)
    height = (n + width - np.uint64(1)) // width
    found = values.astype(np.uint64)
    todo = np.arange(len(found))
    while len(todo):
        across, down, key = width[todo], height[todo], keys[todo]
        left, right = np.divmod(found[todo], across)
        for number in range(_ROUNDS):
            mixed = mix_array(right + mix_array(key + np.uint64(number)))
            left, right = right, ((mixed >> _LOW_BITS) + left) % (across if number % 2 else down)
        found[todo] = left * across + right
        todo = todo[found[todo] >= n[todo]]
    return found.astype(np.int64)


def _make_room(kept: dict[Any, Any], most: int) -> None:
    """Leave out the oldest of what is kept, for one more."""
    while len(kept) >= most:
        del kept[next(iter(kept))]
