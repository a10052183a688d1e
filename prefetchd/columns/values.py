"""Columns of lists and of numpy's arrays: what a list holds is found out, and it is written block by block.

`map`, `set`, `join` and numpy go through the rows, so ten million take seconds. A value that cannot be served is a
`ValueError` that names its row and its type.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from prefetchd.columns.writer import Block, ColumnsWriter

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK_ROWS = 1 << 16
_NUMBERS = (bool, int, float, np.bool_, np.integer, np.floating)
_FRACTIONS = (float, np.floating)
_EXACT = 1 << 53  # float64 holds every whole number up to here
_BYTES = (bytes, bytearray, memoryview)


def add_values(writer: ColumnsWriter, name: str, values: Sequence[Any] | NDArray[Any]) -> None:
    """Add a column of a list or an array: numbers, text (also paths), bytes, or lists of numbers.

    `None` and, beside text, NaN are missing values. Lists of numbers become a ragged column, whether or not they have
    one length; lists of lists of numbers, such as boxes, one with a shape.

    Raises:
        ValueError: if a value is none of these, or another kind than the others; the words follow "cannot use the
            column NAME: ".
    """
    if len(values) != writer.n_rows:
        raise ValueError(f"it has {len(values)} rows, and the table {writer.n_rows}")
    if not isinstance(values, np.ndarray):
        _add_list(writer, name, values)
    elif values.dtype.kind not in "USOT":  # text of numpy's own, and objects
        writer.add_numbers(name, values)
    elif values.ndim > 1:
        raise ValueError(f"it has {values.ndim} dimensions of {values.dtype}")
    else:
        _add_list(writer, name, values.tolist())


def _add_list(writer: ColumnsWriter, name: str, values: Sequence[Any]) -> None:
    types = set(map(type, values))
    missing = None
    if type(None) in types:
        missing = _marks(values, lambda value: value is None)
    present = types - {type(None)}
    if not present:
        raise ValueError("all its values are None")
    is_text = any(issubclass(each, str | os.PathLike) for each in present)
    if is_text and any(issubclass(each, float) for each in present):  # as pandas has it
        missing = _marks(values, lambda value: value is None or value != value)
        present = {each for each in present if not issubclass(each, float)}
        _only(values, lambda value: not isinstance(value, float) or value != value, "text")
    if is_text and all(issubclass(each, str | bytes | os.PathLike) for each in present):
        writer.add_strings(name, text_blocks(values), missing)
    elif all(issubclass(each, _BYTES) for each in present):
        writer.add_bytes(name, bytes_blocks(values), missing)
    elif all(issubclass(each, _NUMBERS) for each in present):
        writer.add_numbers(name, _numbers(values, missing), missing)
    elif all(issubclass(each, list | tuple | np.ndarray) for each in present):
        _add_lists(writer, name, values, missing)
    else:
        kinds = (str | os.PathLike, _NUMBERS, _BYTES, list | tuple | np.ndarray)
        first = next(value for value in values if value is not None)
        kind = next((each for each in kinds if isinstance(first, each)), None)
        if kind is None:
            raise _wrong(values, lambda value: value is None or isinstance(value, str), "text, numbers, bytes or lists")
        raise _wrong(values, lambda value: value is None or isinstance(value, kind), "of the first one's kind")


def offset_blocks(offsets: NDArray[Any], values: Any) -> Iterator[Block]:
    """Yield one block for rows that lie as Arrow has them: row i is `values[offsets[i]:offsets[i + 1]]`.

    Args:
        offsets: (rows + 1), any integers that do not fall.
        values: bytes, or an array of values.
    """
    yield np.diff(offsets), values[int(offsets[0]) : int(offsets[-1])] if len(offsets) else values[:0]


class Slices(Protocol):
    """A list, or what gives slices of it as lists."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, rows: slice, /) -> Sequence[Any]:
        """Return some rows that follow one another."""


def text_blocks(values: Slices) -> Iterator[Block]:
    """Yield blocks of text: `str`, paths and bytes; everything else is empty."""
    for first in range(0, len(values), _BLOCK_ROWS):
        block = values[first : first + _BLOCK_ROWS]
        if set(map(type, block)) != {str}:
            block = [_text(value) for value in block]
        joined = "".join(block)
        if joined.isascii():  # as many bytes as characters
            yield np.fromiter(map(len, block), np.int64, len(block)), joined.encode()
        else:
            yield from bytes_blocks([text.encode("utf-8", "surrogateescape") for text in block])


def bytes_blocks(values: Sequence[Any]) -> Iterator[Block]:
    """Yield blocks of bytes; `None` is empty."""
    for first in range(0, len(values), _BLOCK_ROWS):
        block = [b"" if value is None else value for value in values[first : first + _BLOCK_ROWS]]
        yield np.fromiter(map(len, block), np.int64, len(block)), b"".join(block)


def _text(value: Any) -> str:
    return "" if value is None or isinstance(value, float) else os.fsdecode(value)


def _numbers(values: Sequence[Any], missing: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Return int64, float64 or bool for numbers."""
    if missing is not None:
        values = [False if value is None else value for value in values]  # truth values stay such
    found = np.asarray(values)
    if found.dtype.kind == "f" and found.dtype.itemsize > 8:
        found = found.astype(np.float64)
    is_changed = found.dtype.kind == "f" and not any(issubclass(each, _FRACTIONS) for each in set(map(type, values)))
    if found.dtype.kind not in "biuf" or is_changed:  # whole numbers beyond 64 bits
        raise ValueError("a number does not fit 64 bits")
    _check_whole(found, values)
    return found


def _check_whole(found: NDArray[Any], values: Iterable[Any]) -> None:
    """Raise `ValueError` if numpy made another number of a whole one: beside fractions, or beyond 64 bits."""
    if found.dtype.kind != "f" or not (np.abs(found) >= _EXACT).any():
        return
    for value in _single(values):
        if not isinstance(value, _FRACTIONS) and int(float(value)) != int(value):
            raise ValueError(f"{value} does not fit 64 bits, which hold fractions too")


def _single(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the numbers in lists of lists."""
    for value in values:
        if isinstance(value, list | tuple | np.ndarray):
            yield from _single(value)
        elif value is not None:
            yield value


def _add_lists(writer: ColumnsWriter, name: str, values: Sequence[Any], missing: NDArray[np.bool_] | None) -> None:
    lengths = np.zeros(len(values), np.int64)
    blocks: list[NDArray[Any]] = []
    for first in range(0, len(values), _BLOCK_ROWS):
        rows = [() if value is None else value for value in values[first : first + _BLOCK_ROWS]]
        try:
            lengths[first : first + len(rows)] = np.fromiter(map(len, rows), np.int64, len(rows))
            flat = np.array(list(chain.from_iterable(rows)))
        except (TypeError, ValueError, OverflowError):
            raise ValueError("its lists have entries of unlike lengths, or other than numbers") from None
        if flat.size:
            blocks.append(flat)
    if any(block.dtype.kind not in "biuf" for block in blocks):
        raise ValueError("its lists hold other values than numbers of at most 64 bits")
    if len({block.shape[1:] for block in blocks}) > 1:
        raise ValueError("its lists have entries of unlike lengths")
    dtype = np.result_type(*blocks) if blocks else np.dtype(np.float64)
    shape = blocks[0].shape[1:] if blocks else ()
    whole = np.concatenate(blocks).astype(dtype) if blocks else np.zeros(0)
    _check_whole(whole, values)
    writer.add_ragged(name, [(lengths, whole)], dtype.name, shape, missing)


def _marks(values: Sequence[Any], is_missing: Callable[[Any], bool]) -> NDArray[np.bool_]:
    return np.fromiter(map(is_missing, values), np.bool_, len(values))


def _only(values: Sequence[Any], is_good: Callable[[Any], bool], wanted: str) -> None:
    if not all(map(is_good, values)):
        raise _wrong(values, is_good, wanted)


def _wrong(values: Sequence[Any], is_good: Callable[[Any], bool], wanted: str) -> ValueError:
    row, value = next((row, value) for row, value in enumerate(values) if not is_good(value))
    return ValueError(f"row {row} has the type {type(value).__name__}, and values must be {wanted}")
