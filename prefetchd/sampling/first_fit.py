"""First-fit decreasing for documents by the million: it packs how many there are of each length, not one by one. Pure.

First-fit decreasing takes documents from the longest to the shortest, and puts each into the first bin with space
enough (Johnson, "Near-optimal bin packing algorithms", 1973; by histogram of lengths: Krell et al., "Efficient sequence
packing without cross-contamination", 2021). Bins that stand together and hold the same lengths are one entry of the
plan, so it takes as long for a thousand documents as for a billion. What comes out is the same as one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


_BITS = 8  # that lengths of a class may differ by, below their first


@dataclass(frozen=True, slots=True)
class Content:
    """What each of some bins has of one length class.

    Attributes:
        length_class: its number.
        count: documents of it in each bin.
        first: the number, within the class, of the first bin's first; the bins have them one after another.
    """

    length_class: int
    count: int
    first: int


@dataclass(frozen=True, slots=True)
class Bins:
    """Bins beside one another that hold the same lengths.

    Attributes:
        first: the number of the first bin.
        content: what each has, the longest first.
    """

    first: int
    content: tuple[Content, ...]

    def to_wire(self) -> list[Any]:
        """Return it as plain values; `bins_from_wire` is the inverse."""
        return [self.first, *([each.length_class, each.count, each.first] for each in self.content)]


def bins_from_wire(wire: Sequence[Any]) -> Bins:
    """Return what `Bins.to_wire` described."""
    return Bins(wire[0], tuple(Content(*each) for each in wire[1:]))


def length_classes(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the class of each length, shape as `lengths`; longer ones have higher numbers.

    Lengths up to 512 are classes of their own. Longer ones are rounded up to nine significant bits, by less than 1 in
    256, so that a plan of any lengths is short, and documents enough share a class.
    """
    shift = np.maximum(np.frexp(lengths.astype(np.float64))[1] - (_BITS + 1), 0).astype(np.int64)
    found: NDArray[np.int64] = -(-lengths.astype(np.int64) >> shift) + (shift << _BITS)
    return found


def class_sizes(classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the greatest length of each class."""
    shift = np.maximum((classes >> _BITS) - 1, 0)
    found: NDArray[np.int64] = (classes - (shift << _BITS)) << shift
    return found


def first_fit(sizes: Sequence[int], counts: Sequence[int], capacity: int) -> tuple[list[Bins], int]:
    """Return the plan, and the number of bins.

    Args:
        sizes: of the classes, falling, each from 1 to `capacity`.
        counts: documents of each class, 1 or more.
        capacity: of a bin.
    """
    space = np.zeros(0, np.int64)  # left in each bin of an entry
    n_bins = np.zeros(0, np.int64)
    contents: list[list[Content]] = []
    for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        done = 0
        fitting = np.flatnonzero(space >= size)
        each = space[fitting] // size
        until = (each * n_bins[fitting]).cumsum()
        n_full = int(until.searchsorted(count, "right"))  # entries that take as many as they can
        for entry, n in zip(fitting[:n_full].tolist(), each[:n_full].tolist(), strict=True):
            contents[entry].append(Content(number, n, done))
            done += n * int(n_bins[entry])
        space[fitting[:n_full]] -= each[:n_full] * size
        if done < count:
            if n_full < len(fitting):  # some bins of the next entry take the rest
                entry, per_bin = int(fitting[n_full]), int(each[n_full])
            else:  # new bins at the end
                entry, per_bin = len(contents), capacity // size
                space = np.append(space, capacity)
                n_bins = np.append(n_bins, -(-(count - done) // per_bin))
                contents.append([])
            space, n_bins = _split(space, n_bins, contents, entry, Content(number, per_bin, done), count - done, size)
    firsts = (n_bins.cumsum() - n_bins).tolist()
    return [Bins(first, tuple(each)) for first, each in zip(firsts, contents, strict=True)], int(n_bins.sum())


def _split(
    space: NDArray[np.int64],
    n_bins: NDArray[np.int64],
    contents: list[list[Content]],
    entry: int,
    content: Content,
    rest: int,
    size: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Put `rest` documents into the first bins of an entry, which becomes up to three; return space and bins."""
    n_whole, n_more = divmod(rest, content.count)
    n_partial = bool(n_more)
    parts = ((n_whole, content.count), (n_partial, n_more), (int(n_bins[entry]) - n_whole - n_partial, 0))
    new: list[tuple[int, int, list[Content]]] = []  # space, bins, content
    skipped, first = 0, content.first
    for n, per_bin in parts:
        if n:
            now = [
                Content(each.length_class, each.count, each.first + skipped * each.count) for each in contents[entry]
            ]
            added = [Content(content.length_class, per_bin, first)] if per_bin else []
            new.append((int(space[entry]) - per_bin * size, n, now + added))
        skipped += n
        first += n * per_bin
    contents[entry : entry + 1] = [each for _, _, each in new]
    return (
        np.concatenate((space[:entry], [left for left, _, _ in new], space[entry + 1 :])),
        np.concatenate((n_bins[:entry], [n for _, n, _ in new], n_bins[entry + 1 :])),
    )
