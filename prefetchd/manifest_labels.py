"""Which labels in a block are known already: string labels compared as machine words, without an object for each.

Called by `manifest_block`. A label of up to 32 bytes is at most four 64-bit words; a table of the labels seen so far,
in a place that follows from the words, is compared with those of all lines at once. What is not in the table is looked
at one by one, and goes in. Two labels of one place take turns, so a table that is full is slow and never wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prefetchd.manifest_dialect import is_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.manifest_fields import Places

_WORDS = 4
_PLACE_BITS = 14
_MULTIPLIERS = tuple(
    np.uint64(odd) for odd in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93)
)
# The bytes of a word, of which the last in memory are kept: none, one, ... eight.
_KEPT = np.array([b"\0" * (8 - count) + b"\xff" * count for count in range(9)], "V8").view(np.uint64)


class KnownLabels:
    """The labels seen so far; for one thread."""

    def __init__(self) -> None:
        self._table = np.zeros((_WORDS, 1 << _PLACE_BITS), np.uint64)
        self._used_words = 0  # all words of the table from here on are zero

    def learn(self, block: bytes, starts: Places, ends: Places) -> tuple[set[bytes], Places]:
        """Take in the labels of a block that are from `starts` to `ends`, none of which is empty.

        Returns:
            Those that may be new, and the rows of labels that are images' names, which are not taken in.
        """
        lengths = ends - starts
        n_words = min(_WORDS, -(-int(lengths.max(initial=1)) // 8))
        words = self._words(block, ends, lengths, n_words)
        places = self._places(words)
        known = np.ones(len(starts), bool)
        for word, column in zip(words, self._table, strict=False):
            known &= word == column.take(places)
        # Words that are not looked at must be zero, as no label has zeros in it: then the label ends before them.
        for column in self._table[n_words : self._used_words]:
            known &= column.take(places) == 0
        known &= (lengths <= 8 * _WORDS) & (ends >= 8 * n_words)
        rows = np.flatnonzero(~known)
        spans = zip(rows.tolist(), starts[rows].tolist(), ends[rows].tolist(), strict=True)
        found = {block[start:end]: row for row, start, end in spans}
        images = {label for label in found if is_image(label)}
        refused = rows[:0]
        if images:
            refused = np.array([row for row in rows.tolist() if block[starts[row] : ends[row]] in images], np.int64)
        self._used_words = max(self._used_words, n_words)
        fresh = np.array([row for label, row in found.items() if label not in images], np.int64)
        fresh = fresh[(lengths[fresh] <= 8 * _WORDS) & (ends[fresh] >= 8 * n_words)]
        _, first = np.unique(places[fresh], return_index=True)  # one label a place, whole
        self._table[:, places[fresh[first]]] = 0
        self._table[:n_words, places[fresh[first]]] = words[:, fresh[first]]
        return set(found) - images, refused

    @staticmethod
    def _words(block: bytes, ends: Places, lengths: Places, n_words: int) -> NDArray[np.uint64]:
        """Return (n_words, lines): the last eight bytes of each label, those before them, ... and then zeros."""
        every_word = np.ndarray((max(1, len(block) - 7),), np.uint64, buffer=block.ljust(8), strides=(1,))
        words = np.empty((n_words, len(ends)), np.uint64)
        for number in range(n_words):
            kept = np.minimum(np.maximum(lengths - 8 * number, 0), 8)
            # Indexing, as take() would make a copy of all words.
            words[number] = every_word[np.maximum(ends - 8 * (number + 1), 0)] & _KEPT.take(kept)
        return words

    @staticmethod
    def _places(words: NDArray[np.uint64]) -> Places:
        mixed = words[0] * _MULTIPLIERS[0]
        for word, multiplier in zip(words[1:], _MULTIPLIERS[1:], strict=False):
            mixed += word * multiplier
        places: Places = (mixed >> np.uint64(64 - _PLACE_BITS)).astype(np.int64)
        return places
