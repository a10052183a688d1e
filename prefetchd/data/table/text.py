"""Columns of text on their way into a table: kept compactly, and turned into numbers or classes where a field asks.

Lists in text files have text alone. A label column becomes whole numbers if every value is one, else fractions if every
value is a number, else classes. numpy goes through the rows, in blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.data.labels import MAX_CLASSES, MISSING
from prefetchd.errors import ManifestError, one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.columns.writer import Block

_BLOCK_ROWS = 1 << 16
_WHOLE = re.compile(r"[+-]?\d{1,300}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|nan|inf|infinity)", re.ASCII | re.IGNORECASE)


class TextColumn:
    """Text of many rows, as UTF-8 in blocks."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []

    def extend(self, values: Sequence[str]) -> None:
        """Add rows; text that is not UTF-8 has surrogate escapes."""
        encoded = [value.encode("utf-8", "surrogateescape") for value in values]
        self.blocks.append((np.fromiter(map(len, encoded), np.int64, len(encoded)), b"".join(encoded)))

    def __iter__(self) -> Iterator[str]:
        for lengths, joined in self.blocks:
            start = 0
            for length in lengths.tolist():
                yield joined[start : start + length].decode("utf-8", "surrogateescape")
                start += length


def label_numbers(
    values: Iterable[str], n_rows: int, where: str, *, are_names: bool = False
) -> tuple[NDArray[np.int64] | NDArray[np.float64], tuple[str, ...] | None]:
    """Return the labels of a column of text as numbers, and their names if they are classes.

    Args:
        values: the text of each row.
        n_rows: how many there are.
        where: the column's name in errors: "the column 'label' of train.csv".
        are_names: whether text that looks like a number is a name: it came from a source that has numbers, too.

    Raises:
        ManifestError: if one is missing or infinite, or there are too many classes.
    """
    numbers, names = _by_name(values, n_rows)
    missing = next((name for name in names if name.strip().lower() in MISSING), None)
    if missing is not None:
        row = int((numbers == names[missing]).argmax())
        raise ManifestError(
            f"cannot take labels from {where}: row {row} (from 0) has {missing!r}; complete the column, or "
            "remove that row"
        )
    values_of = None if are_names else _as_numbers(list(names))
    if values_of is not None:
        _check_held(values_of, list(names), numbers, where)
        if not np.isfinite(values_of).all():
            row = int((~np.isfinite(values_of[numbers])).argmax())
            raise ManifestError(f"cannot take labels from {where}: row {row} (from 0) is not finite; mend it")
        return values_of[numbers], None
    if len(names) > MAX_CLASSES:
        raise ManifestError(f"cannot take labels from {where}: it has {len(names)} classes, and {MAX_CLASSES} at most")
    in_order = sorted(names)
    places = np.empty(len(names), np.int64)
    places[[names[name] for name in in_order]] = np.arange(len(names))
    return places[numbers], tuple(in_order)


def _check_held(values: NDArray[Any], texts: list[str], numbers: NDArray[np.int64], where: str) -> None:
    """Raise `ManifestError` if a whole number among fractions, or beyond 64 bits, became another one."""
    if values.dtype.kind != "f":
        return
    pairs = zip(texts, values.tolist(), strict=True)
    odd = next((text for text, value in pairs if _WHOLE.fullmatch(text.strip()) and int(text) != int(value)), None)
    if odd is not None:
        row = int((numbers == texts.index(odd)).argmax())
        raise ManifestError(
            f"cannot take numbers from {where}: row {row} (from 0) has {odd[:60]!r}, which neither int64 nor float64 "
            "holds as it is; write smaller numbers, or none with fractions"
        )


def _by_name(values: Iterable[str], n_rows: int) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Return for each row the number of its text, in the order in which texts are first met, and those numbers."""
    names: dict[str, int] = {}
    numbers = np.fromiter((names.setdefault(value, len(names)) for value in values), np.int64, n_rows)
    return numbers, names


def check_no_header(values: Iterable[str], where: str) -> None:
    """Raise `ManifestError` if the first of the values is a word, and all others are numbers: it is a title."""
    first, *others = dict.fromkeys(values)
    if others and _as_numbers([first]) is None and _as_numbers(others) is not None:
        raise ManifestError(
            f"cannot take line 1 for a sample: {where} has {one_line(first)[:60]!r} there, and numbers below; give the "
            "columns by their names, or remove that line"
        )


def array_numbers(
    values: Iterable[str], n_rows: int, where: str, remedy: str = "give a column of .npy files"
) -> NDArray[np.int64] | NDArray[np.float64]:
    """Return the numbers of a column of text, one a row.

    Raises:
        ManifestError: if a row has none.
    """
    numbers, names = _by_name(values, n_rows)
    found = _as_numbers(list(names))
    if found is None:
        odd = next(name for name in names if _NUMBER.fullmatch(name.strip()) is None)
        row = int((numbers == names[odd]).argmax())
        raise ManifestError(
            f"cannot take an array from {where}: row {row} (from 0) has {one_line(odd)[:60]!r}, which is no number; "
            f"mend it, or {remedy}"
        )
    _check_held(found, list(names), numbers, where)
    return found[numbers]


def _as_numbers(texts: list[str]) -> NDArray[np.int64] | NDArray[np.float64] | None:
    """Return what the texts say as int64, else as float64; `None` if they are not all numbers.

    Python takes `1_2` for 12, which is the name of a class.
    """
    if not all(_NUMBER.fullmatch(text.strip()) for text in texts):
        return None
    try:
        return np.array([int(text) for text in texts], np.int64)
    except (ValueError, OverflowError):
        return np.array([float(text) for text in texts], np.float64)
