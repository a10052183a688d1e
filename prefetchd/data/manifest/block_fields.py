"""The labels in a block of lines, in numpy without an object for each: numbers by automata, names as machine words.

`block_check` calls it. `read_backwards` runs a finite automaton over one field of many lines at once. All lines take a
step together: each has a state and a position, a table gives the next state for the byte there, and the position moves
on until the state is final. A step costs some 5 ns a line, so the longest field decides the time; so lines are read
from the end, where the labels are, and an automaton gives up (`DOUBT`) on anything unusual. `line.parse_line` settles a
doubt; an automaton must never be sure of a line that would be refused there.

`KnownLabels` compares string labels. A label of up to 32 bytes is at most four 64-bit words. A table of the labels met
so far, indexed by a hash of the words, is compared with those of all lines at once; labels that are not in it are
looked at one by one and added. Two labels with one place in the table replace each other by turns, so a full table is
slow and never wrong. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from prefetchd.data.manifest.dialect import is_image
from prefetchd.data.manifest.line import NOT_A_NUMBER
from prefetchd.sampling.permutation import mix_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Places = NDArray[np.int64]
    States = NDArray[np.int64]
    Table = NDArray[np.int64]


WHITE = b"\t\v\f\r "
LONGEST_NUMBER_BYTES = 18  # so long, an integer fits int64, and a fraction without a positive exponent float32
LONGEST_FIELD_BYTES = 64

# States are rows of a table of 256 columns, numbered by where they start. The first four are final.
DOUBT, INTEGER, FRACTION, SURE = 0, 256, 512, 768
_FIRST_RUNNING = 1024

_DIGIT = b"0123456789"
_SIGN = b"+-"
# Bytes of what `dialect.is_number` takes for a number, "Infinity" and "nan" too.
_IN_NUMBERS = b"0123456789+-.eEnNaAiIfFtTyY"


def read_backwards(table: Table, codes: Bytes, ends: Places, longest: int) -> tuple[States, Places]:
    """Run an automaton over every line, from the byte before its end, for `longest` bytes and one more at most.

    Args:
        table: the automaton; each of its running states must be left at a line break.
        codes: whole lines, the last byte a line break. A place before the first byte means that last one.
        ends: (lines,) where to begin; the byte there is not looked at.
        longest: a field that takes more bytes is doubtful.

    Returns:
        (lines,) final states, and (lines,) places of the bytes that decided.
    """
    at = np.maximum(ends - 1, -1)
    states = table.take(_FIRST_RUNNING + codes.take(at).astype(np.int64))
    for _ in range(longest):
        running = states >= _FIRST_RUNNING
        if not running.any():
            return states, at
        at -= running
        states = table.take(states + codes.take(at))
    return np.where(states >= _FIRST_RUNNING, DOUBT, states), at


@lru_cache(maxsize=8)
def number_table(white: bytes, before: bytes) -> Table:
    """Return the automaton of a number, which ends with `INTEGER` or `FRACTION` at the byte before it.

    White space on either side is skipped. Doubtful are `nan`, `inf`, and exponents that are not negative, as such
    a number may not fit float32.

    Args:
        white: what may stand around the number.
        before: bytes that end the field before it; where white space is among them, the first such byte decides.
    """
    integer: dict[bytes, str | int] = {white: "integer, white", before: INTEGER}
    fraction: dict[bytes, str | int] = {white: "fraction, white", before: FRACTION}
    return _table(
        {
            "start": {_DIGIT: "digits", b".": "point", white: "start"},
            "digits": {_DIGIT: "digits", b".": "point before digits", b"+": "signed", b"-": "minus", **integer},
            "signed": integer,
            "minus": {b"eE": "exponent", **integer},
            "exponent": {_DIGIT: "digits before exponent", b".": "point"},
            "digits before exponent": {
                _DIGIT: "digits before exponent",
                b".": "point before digits",
                _SIGN: "signed fraction",
                **fraction,
            },
            "point": {_DIGIT: "digits before point"},
            "point before digits": {_DIGIT: "digits before point", _SIGN: "signed fraction", **fraction},
            "digits before point": {_DIGIT: "digits before point", _SIGN: "signed fraction", **fraction},
            "signed fraction": fraction,
            "integer, white": integer,
            "fraction, white": fraction,
        }
    )


@lru_cache(maxsize=1)
def word_table() -> Table:
    """Return the automaton of the last word of a line of text, which ends with `SURE` at the white space before it."""
    any_byte = bytes(set(range(256)) - set(WHITE + b"\n"))
    return _table({"start": {WHITE: "start", any_byte: "word"}, "word": {any_byte: "word", WHITE: SURE}})


@lru_cache(maxsize=1)
def not_a_number_table() -> Table:
    """Return the automaton of a word that is `SURE` if it is the first of its line, or no number."""
    sure = bytes(set(range(256)) - set(WHITE + _IN_NUMBERS))
    return _table(
        {"start": {WHITE: "start", _IN_NUMBERS: "word", sure: SURE}, "word": {_IN_NUMBERS: "word", sure: SURE}}
    )


def _table(rules: Mapping[str, Mapping[bytes, str | int]]) -> Table:
    """Make a table of rules: for each running state, the start first, the state that follows on which bytes.

    A later rule of a state overrides an earlier one; bytes without a rule lead to `DOUBT`.
    """
    numbers = {name: _FIRST_RUNNING + 256 * row for row, name in enumerate(rules)}
    table = np.zeros((_FIRST_RUNNING // 256 + len(rules), 256), np.int64)
    for final in (DOUBT, INTEGER, FRACTION, SURE):
        table[final // 256] = final
    for name, rule in rules.items():
        for codes, follows in rule.items():
            table[numbers[name] // 256, list(codes)] = follows if isinstance(follows, int) else numbers[follows]
    return table.ravel()


_WORDS = 4
_PLACE_BITS = 14
_MULTIPLIERS = tuple(
    np.uint64(odd) for odd in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93)
)
# The bytes of a word, of which the last in memory are kept: none, one, ... eight.
_KEPT = np.array([b"\0" * (8 - count) + b"\xff" * count for count in range(9)], "V8").view(np.uint64)


class KnownLabels:
    """The labels met so far; for one thread."""

    def __init__(self) -> None:
        self._table = np.zeros((_WORDS, 1 << _PLACE_BITS), np.uint64)
        self._used_words = 0  # all words of the table from here on are zero

    def learn(self, block: bytes, starts: Places, ends: Places) -> tuple[set[bytes], Places]:
        """Add the labels of a block that are from `starts` to `ends`, none of which is empty.

        Returns:
            Those that may be new, and the rows of those not added: names of images, and words for no label.
        """
        lengths = ends - starts
        n_words = min(_WORDS, -(-int(lengths.max(initial=1)) // 8))
        words = _last_words(block, ends, lengths, n_words)
        places = (_mixed(words) >> np.uint64(64 - _PLACE_BITS)).astype(np.int64)
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
        doubtful = {label for label in found if is_image(label) or label.lower() in NOT_A_NUMBER}
        refused = rows[:0]
        if doubtful:
            refused = np.array([row for row in rows.tolist() if block[starts[row] : ends[row]] in doubtful], np.int64)
        self._used_words = max(self._used_words, n_words)
        fresh = np.array([row for label, row in found.items() if label not in doubtful], np.int64)
        fresh = fresh[(lengths[fresh] <= 8 * _WORDS) & (ends[fresh] >= 8 * n_words)]
        _, first = np.unique(places[fresh], return_index=True)  # one label a place, whole
        self._table[:, places[fresh[first]]] = 0
        self._table[:n_words, places[fresh[first]]] = words[:, fresh[first]]
        return set(found) - doubtful, refused


def _last_words(block: bytes, ends: Places, lengths: Places, n_words: int) -> NDArray[np.uint64]:
    """Return (n_words, lines): the last eight bytes of each label, those before them, ... and then zeros."""
    every_word = np.ndarray((max(1, len(block) - 7),), np.uint64, buffer=block.ljust(8), strides=(1,))
    words = np.empty((n_words, len(ends)), np.uint64)
    for number in range(n_words):
        kept = np.minimum(np.maximum(lengths - 8 * number, 0), 8)
        # Indexing, as take() would make a copy of all words.
        words[number] = every_word[np.maximum(ends - 8 * (number + 1), 0)] & _KEPT.take(kept)
    return words


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed: NDArray[np.uint64] = words[0] * _MULTIPLIERS[0]
    for word, multiplier in zip(words[1:], _MULTIPLIERS[1:], strict=False):
        mixed += word * multiplier
    return mixed


def hash_labels(block: bytes, starts: Places, ends: Places) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return the hash of each label, and whether it has one: long ones have none, nor some next to the block's start.

    Only the labels are looked at, where `sampling.hashes` goes over the whole block.
    """
    lengths = ends - starts
    has_hash = (lengths > 0) & (lengths <= 8 * _WORDS) & (ends >= 8 * _WORDS)
    n_words = max(1, -(-int(lengths[has_hash].max(initial=1)) // 8))
    return mix_array(_mixed(_last_words(block, ends, lengths, n_words))), has_hash
