"""What numpy can tell about a block of whole lines: where they are, which are samples, and which are surely good.

`scan` calls it in a thread of its own: numpy releases the interpreter's lock, and nothing here makes an object for each
line. A line that is not surely good is *doubtful*, and `scan` parses it. So the checks may doubt too much, but must
never be sure of a line that `parse_line` would refuse or read with another kind of label. Many unusual lines (quotes,
spaces in paths without labels) make the pass slower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from prefetchd.data.manifest.block_fields import (
    DOUBT,
    FRACTION,
    INTEGER,
    LONGEST_FIELD_BYTES,
    LONGEST_NUMBER_BYTES,
    SURE,
    WHITE,
    KnownLabels,
    not_a_number_table,
    number_table,
    read_backwards,
    word_table,
)
from prefetchd.data.manifest.dialect import Dialect, is_sample
from prefetchd.data.manifest.line import is_changed_by_float32

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.data.manifest.block_fields import Bytes, Places

_LONGEST_EXACT_BYTES = 8  # an integer of 7 digits, and the byte before it: float32 holds it
_MAX_PADDING = 4  # white space around a string label that is skipped here
_IS_WHITE = np.zeros(256, bool)
_IS_WHITE[list(WHITE)] = True


class Checked(NamedTuple):
    """What the check found in a block.

    Attributes:
        n_lines: number of lines, comments and blank ones too.
        longest: the row of the longest line, and that line's bytes.
        starts: (samples,) where in the block each sample's line begins.
        ends: (samples,) where its line break is.
        rows: (samples,) which of the block's lines it is, from 0.
        doubtful: which of the samples, in rising order, have to be parsed.
        any_fraction: some numeric label of the others is not an integer.
        any_long: some label may be a whole number that float32 does not hold.
        labels: string labels of the others; at least all that may be new.
    """

    n_lines: int
    longest: tuple[int, int]
    starts: Places
    ends: Places
    rows: Places
    doubtful: Places
    any_fraction: bool
    any_long: bool
    labels: set[bytes]


class Lines(NamedTuple):
    """The lines of a block.

    Attributes:
        n_lines, longest, starts, ends, rows: see `Checked`.
        plain: (samples,) whether a line begins without white space, and has no quote, and no carriage return but one at
            its end.
    """

    n_lines: int
    longest: tuple[int, int]
    starts: Places
    ends: Places
    rows: Places
    plain: NDArray[np.bool_]


def find_lines(block: bytes, codes: Bytes, *, hash_rows: bool) -> Lines:
    """Return where the samples of `block` are, whole lines with a line break at the end; `codes` are its bytes."""
    breaks = np.flatnonzero(codes == 10)
    starts = np.empty_like(breaks)
    starts[0] = 0
    np.add(breaks[:-1], 1, out=starts[1:])
    lengths = breaks - starts
    longest = int(lengths.argmax())
    first = codes.take(starts)
    kept = np.ones(len(starts), bool)
    for row in np.flatnonzero((first <= 32) | (first == 35)).tolist():
        kept[row] = is_sample(block[starts[row] : breaks[row]], hash_rows=hash_rows)
    rows = np.flatnonzero(kept)
    ends = breaks
    if len(rows) < len(kept):
        starts, ends, first = starts[kept], ends[kept], first[kept]
    plain = first > 32
    if len(starts) and b'"' in block:
        plain[_lines_with(np.flatnonzero(codes == ord('"')), starts, ends)] = False
    if len(starts) and b"\r" in block:
        returns = np.flatnonzero(codes == 13)
        plain[_lines_with(returns[codes[returns + 1] != 10], starts, ends)] = False
    return Lines(len(kept), (longest, int(lengths[longest])), starts, ends, rows, plain)


class BlockCheck:
    """Checks block after block of one list; for one thread."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._known_labels = KnownLabels()
        self._any_fraction = self._any_long = False
        self._labels: set[bytes] = set()

    def __call__(self, block: bytes) -> Checked:
        """Check `block`, whole lines with a line break at the end."""
        codes = np.frombuffer(block, np.uint8)
        lines = find_lines(block, codes, hash_rows=self._dialect.hash_rows)
        self._any_fraction, self._any_long, self._labels = False, False, set()
        sure = self._sure(block, codes, lines)
        return Checked(
            n_lines=lines.n_lines,
            longest=lines.longest,
            starts=lines.starts,
            ends=lines.ends,
            rows=lines.rows,
            doubtful=np.flatnonzero(~sure),
            any_fraction=self._any_fraction,
            any_long=self._any_long,
            labels=self._labels,
        )

    def _sure(self, block: bytes, codes: Bytes, lines: Lines) -> NDArray[np.bool_]:
        """Return (samples,) whether each line is surely good; adds the labels of those lines, and of no other."""
        kind, starts, ends = self._dialect.kind, lines.starts, lines.ends
        if kind == "tree" or not len(starts):
            return np.ones(len(starts), bool)
        if kind == "json" or self._dialect.label_kind == "path":
            return np.zeros(len(starts), bool)
        sure = lines.plain
        if kind == "table":
            self._table(block, codes, starts, ends, sure)
        else:
            self._text(block, codes, starts, ends, sure)
        return sure

    # Each of these clears `sure` where it is in doubt.

    def _text(self, block: bytes, codes: Bytes, starts: Places, ends: Places, sure: NDArray[np.bool_]) -> None:
        dialect = self._dialect
        if dialect.label_kind in ("class", "classes"):
            states, before = read_backwards(word_table(), codes, ends, LONGEST_FIELD_BYTES)
            sure &= states == SURE
            self._string_labels(block, codes, before + 1, ends, sure)
        elif dialect.label_kind == "number":
            fractions = np.zeros(len(ends), bool)
            table = number_table(WHITE, WHITE)
            for _ in range(dialect.label_count):
                states, before = read_backwards(table, codes, ends, LONGEST_NUMBER_BYTES)
                sure &= states != DOUBT
                fractions |= states == FRACTION
                self._find_long(block, codes, states, before, ends)
                ends = before
            if dialect.exact:
                states, _ = read_backwards(not_a_number_table(), codes, ends, LONGEST_FIELD_BYTES)
                sure &= states == SURE
            self._any_fraction = bool((fractions & sure).any())
        elif dialect.exact:
            # A path with spaces may be a path and a label.
            spaces = np.flatnonzero((codes <= 32) & (codes != 10) & (codes != 13))
            sure[_lines_with(spaces, starts, ends)] = False

    def _table(self, block: bytes, codes: Bytes, starts: Places, ends: Places, sure: NDArray[np.bool_]) -> None:
        dialect = self._dialect
        separators = separator_places(codes, ord(dialect.separator), starts, ends, dialect.columns - 1, sure)
        white = WHITE.replace(dialect.separator.encode(), b"")
        table = number_table(white, dialect.separator.encode() + b"\n")
        path = codes.take(starts if dialect.x == 0 else separators[dialect.x - 1] + 1)
        sure &= (path > 32) & (path != ord(dialect.separator))
        fractions = np.zeros(len(ends), bool)
        for column in dialect.y:
            end = ends if column == dialect.columns - 1 else separators[column]
            if dialect.label_kind == "number":
                states, before = read_backwards(table, codes, end, LONGEST_NUMBER_BYTES)
                sure &= states != DOUBT
                fractions |= states == FRACTION
                self._find_long(block, codes, states, before, end)
            else:
                self._string_labels(block, codes, starts if column == 0 else separators[column - 1] + 1, end, sure)
        self._any_fraction = bool((fractions & sure).any())

    def _find_long(self, block: bytes, codes: Bytes, states: Places, before: Places, ends: Places) -> None:
        """Set `any_long` where float32 may change a whole number; with a point it ends in `.` or `0`."""
        is_long = ends - before > _LONGEST_EXACT_BYTES
        self._any_long |= bool((is_long & (states == INTEGER)).any())
        rows = np.flatnonzero(is_long & (states == FRACTION))
        last = codes.take(ends[rows] - 1)
        last = np.where(_IS_WHITE.take(last), codes.take(ends[rows] - 2), last)
        rows = rows[(last == ord(".")) | (last == ord("0")) | _IS_WHITE.take(last)]
        spans = zip((before[rows] + 1).tolist(), ends[rows].tolist(), strict=True)
        self._any_long = self._any_long or any(is_changed_by_float32(block[start:end].strip()) for start, end in spans)

    def _string_labels(self, block: bytes, codes: Bytes, starts: Places, ends: Places, sure: NDArray[np.bool_]) -> None:
        """Add the labels from `starts` to `ends`, without the white space around them."""
        for _ in range(_MAX_PADDING):
            padded = _IS_WHITE.take(codes.take(starts)) & (starts < ends)
            if not padded.any():
                break
            starts = starts + padded
        for _ in range(_MAX_PADDING):
            padded = _IS_WHITE.take(codes.take(ends - 1)) & (starts < ends)
            if not padded.any():
                break
            ends = ends - padded
        sure &= starts < ends
        sure &= ~(_IS_WHITE.take(codes.take(starts)) | _IS_WHITE.take(codes.take(ends - 1)))
        rows = np.flatnonzero(sure)
        self._labels, refused = self._known_labels.learn(block, starts[rows], ends[rows])
        sure[rows[refused]] = False


def _lines_with(places: Places, starts: Places, ends: Places) -> Places:
    """Return which of the lines have one of `places` in them; places between the lines belong to none."""
    lines = np.minimum(np.searchsorted(ends, places), len(ends) - 1)
    return lines[places >= starts[lines]]


def separator_places(
    codes: Bytes, separator: int, starts: Places, ends: Places, per_line: int, sure: NDArray[np.bool_]
) -> Places:
    """Return (per_line, lines) where the separators are; clears `sure` where a line has more or fewer."""
    found = np.flatnonzero(codes == separator)
    if not per_line:
        sure[_lines_with(found, starts, ends)] = False
        return np.empty((0, len(starts)), np.int64)
    if len(found) == per_line * len(starts):
        places = found.reshape(len(starts), per_line).T
        if (places[0] >= starts).all() and (places[-1] < ends).all():
            return places
    before = np.searchsorted(found, starts)
    sure &= np.searchsorted(found, ends) - before == per_line
    # Doubtful lines get any place.
    found = np.append(found, np.full(per_line, ends[-1] - 1))
    return found[np.minimum(before, len(found) - per_line) + np.arange(per_line)[:, np.newaxis]]
