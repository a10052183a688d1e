"""Which numbers the values of `where` stand for, and which numbers of a column are one of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.errors import ConfigError, one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHOWN_NAMES = 10
_KEPT_TEXTS = 1 << 16


def wanted_number(
    column: str, text: str, names: Sequence[str] | None = None, values: NDArray[Any] | None = None
) -> int | float:
    """Return the number that a value stands for.

    Args:
        column: for errors.
        text: a number as it is written; of a class its name, its number, or `#` and its number. Where `values` are true
            and false, these words too.
        names: of the classes by number.
        values: the labels, which may have numbers that are no class's, such as -1.

    Raises:
        ConfigError: if it is none, or could be one class's name and another one's number.
    """
    number = _read(text.removeprefix("#") if names is not None else text)
    if names is None:
        if number is None and values is not None and values.dtype == bool:
            number = {"true": 1, "false": 0}.get(text.lower())
        if number is None:
            raise _cannot(column, text, f"{text!r} is not a number; correct it")
        return number
    named = names.index(text) if text in names else None
    if text.startswith("#") and named is None:
        named = number if isinstance(number, int) else None
    elif number is not None and named != number and any(_read(name) is not None for name in names):
        at = f"; class {number} is {names[int(number)]!r}" if number in range(len(names)) else ""
        if named is None:
            raise _cannot(column, text, f"no class has this name{at}; where names are numbers, write '#{text}' for a "
                          "class's number")  # fmt: skip
        if at:
            raise _cannot(column, text, f"it is the name of class {named}, and a number too{at}; write '#{named}' for "
                          f"the one, or '#{number}' for the other")  # fmt: skip
    found = number if named is None else named
    if found is None:
        more = ", ..." if len(names) > _SHOWN_NAMES else ""
        raise _cannot(column, text, f"{text!r} is not a class ({', '.join(names[:_SHOWN_NAMES])}{more}); correct it")
    if found not in range(len(names)) and (values is None or not is_one_of(values, [found]).any()):
        raise _cannot(column, text, f"there are {len(names)} classes; give a name, or a number to {len(names) - 1}")
    return found


def _cannot(column: str, text: str, why: str) -> ConfigError:
    return ConfigError(one_line(f"cannot use where={column}={text}: {why}"))


def _read(text: str) -> int | float | None:
    try:
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        return None


class TextMatch(dict[str, bool]):
    """Whether a text is one of those wanted, looked at once for each different text.

    With `are_numbers` one that is an equal number is too: `1.50` in a CSV file is 1.5.
    """

    def __init__(self, wanted: Sequence[str], *, are_numbers: bool) -> None:
        super().__init__()
        self._texts = frozenset(wanted)
        self._numbers = {number for text in wanted if (number := _read(text)) is not None} if are_numbers else set()

    def __missing__(self, text: str) -> bool:
        found = text in self._texts or (bool(self._numbers) and _read(text.strip()) in self._numbers)
        if len(self) < _KEPT_TEXTS:
            self[text] = found
        return found


def is_one_of(values: NDArray[Any], wanted: Sequence[int | float]) -> NDArray[np.bool_]:
    """Return which numbers are one of `wanted`, shape as `values`: as the column's dtype holds them.

    So 0.1 is found in a column of float32, whose number is another than Python's, and a whole number in a column of
    64 bits never goes through a float.
    """
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.isin(values, np.array(wanted, np.float64).astype(values.dtype))
    low, high = (0, 1) if values.dtype == bool else (np.iinfo(values.dtype).min, np.iinfo(values.dtype).max)
    whole = [int(each) for each in wanted if low <= each <= high and each == int(each)]
    # The table that numpy 2.0 would choose here overflows with large numbers of uint64.
    return np.isin(values, np.array(whole, values.dtype), kind="sort")
