"""Reading one field of many lines at once, backwards from its end, by finite automata in numpy. Pure.

Called by `manifest_block`. All lines take a step together: each has a state and a position, a table gives the next
state for the byte there, and the position moves on until the state is final. A step costs some 5 ns a line whatever
the bytes are, so what counts is how long the longest field is; that is why lines are read from the end, where the
labels are, and why an automaton gives up (`DOUBT`) on anything unusual. A doubt is settled elsewhere, by
`manifest_format.parse_line`; an automaton must never be sure of a line that would be refused there.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

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
# What can be in a number as `manifest_format.is_number` knows them, "Infinity" and "nan" too.
_IN_NUMBERS = b"0123456789+-.eEnNaAiIfFtTyY"


def read_backwards(table: Table, codes: Bytes, ends: Places, longest: int) -> tuple[States, Places]:
    """Run an automaton over every line, from the byte before its end, for `longest` bytes and one more at most.

    Args:
        table: the automaton; each of its running states must be left at a line break.
        codes: whole lines, the last byte a line break. A place before the first byte means that last one.
        ends: (lines,) where to begin; the byte there is not looked at.
        longest: what takes more bytes than this is doubtful.

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
    """Return the automaton of a number, which ends with `INTEGER` or `FRACTION` at the byte in front of it.

    White space on either side is passed over. Doubtful are `nan`, `inf`, and exponents that are not negative, as such
    a number may not fit float32.

    Args:
        white: what may stand around the number.
        before: what ends the field in front; where that is white space too, the first such byte decides.
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
    """Return the automaton of a word that is `SURE` to be the first of its line, or no number."""
    sure = bytes(set(range(256)) - set(WHITE + _IN_NUMBERS))
    return _table(
        {"start": {WHITE: "start", _IN_NUMBERS: "word", sure: SURE}, "word": {_IN_NUMBERS: "word", sure: SURE}}
    )


def _table(rules: Mapping[str, Mapping[bytes, str | int]]) -> Table:
    """Make a table of rules: for each running state, the first of which is the start, what follows on which bytes.

    A later rule of a state overrides an earlier one, and what no rule names is `DOUBT`.
    """
    numbers = {name: _FIRST_RUNNING + 256 * row for row, name in enumerate(rules)}
    table = np.zeros((_FIRST_RUNNING // 256 + len(rules), 256), np.int64)
    for final in (DOUBT, INTEGER, FRACTION, SURE):
        table[final // 256] = final
    for name, rule in rules.items():
        for codes, follows in rule.items():
            table[numbers[name] // 256, list(codes)] = follows if isinstance(follows, int) else numbers[follows]
    return table.ravel()
