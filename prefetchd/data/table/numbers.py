"""Labels that are numbers: one column or several, with missing ones filled, checked to be delivered unchanged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prefetchd.columns.store import Column, Columns
from prefetchd.config.options import Config
from prefetchd.data.labels import FLOAT32_EXACT, FLOAT32_MAX, FLOAT64_EXACT, refuse_large
from prefetchd.errors import ManifestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK_ROWS = 1 << 16
_FILL = "give missing_label=-1 (or another) where there is none"


class NumberLabels(NamedTuple):
    """The labels.

    Attributes:
        values: (rows,) or (rows, k).
        is_column: whether they are what the only column holds.
        is_float: whether one of them is a fraction, so that all are delivered as float32.
        shape: of one label.
        classes: names of the numbers, where the table describes them.
    """

    values: NDArray[Any]
    is_column: bool
    is_float: bool
    shape: tuple[int, ...]
    classes: tuple[str, ...] | None


def number_labels(columns: Columns, names: Sequence[str], config: Config, name: str) -> NumberLabels:
    """Return the labels in the columns `names` of the data set `name`.

    Raises:
        ManifestError: if a number is missing, or cannot be delivered.
    """
    return _Numbers(columns, config, name).take(names)


class _Numbers:
    """The columns of one table, as numbers."""

    def __init__(self, columns: Columns, config: Config, name: str) -> None:
        self._columns = columns
        self._name = name
        self._missing = config.missing_label or None

    def take(self, names: Sequence[str]) -> NumberLabels:
        """Return the labels in one column of numbers, or in several; raises as `number_labels`."""
        columns = [self._columns[each] for each in names]
        fill = self._fill_value()
        arrays = [self._filled(column, self._array(column), fill) for column in columns]
        is_float = any(array.dtype.kind == "f" for array in arrays)
        shape = self._check(arrays, names, is_float=is_float, nan_allowed=isinstance(fill, float))
        classes = self._described_classes(names, arrays)
        if len(names) == 1:
            return NumberLabels(arrays[0], arrays[0] is columns[0].values, is_float, shape, classes)
        wide = [array.reshape(len(array), -1).astype(np.float64 if is_float else np.int64) for array in arrays]
        return NumberLabels(np.concatenate(wide, axis=1), False, is_float, shape, classes)

    def _filled(self, column: Column, array: NDArray[Any], fill: int | float | None) -> NDArray[Any]:
        """Return the numbers of a column with `fill` where there is none; the same array if all are there."""
        missing = column.missing
        if array.dtype.kind == "f" and np.isnan(array).any():
            nan = np.isnan(array).reshape(len(array), -1).any(axis=1)
            missing = nan if missing is None else missing | nan
        if missing is None or not missing.any():
            return array
        if fill is None:
            raise ManifestError(
                f"cannot use row {int(missing.argmax())} of {self._name}: its label is missing; {_FILL}"
            )
        is_float = array.dtype.kind == "f" or isinstance(fill, float)
        filled = array.astype(np.float64 if is_float else np.int64)
        filled[missing] = fill
        return filled

    def _array(self, column: Column) -> NDArray[Any]:
        """Return a column as (rows,) or (rows, k) numbers."""
        name = column.layout.name
        if column.layout.kind == "bytes":
            raise ManifestError(
                f"cannot take labels from the column {name!r} of {self._name}: it holds bytes; give numbers or names"
            )
        values = column.values
        if column.layout.kind == "ragged":
            lengths = column.lengths
            if lengths.min() != lengths.max() or not lengths[0] or values.ndim > 1:
                odd = int((lengths != lengths[0]).argmax())
                raise ManifestError(
                    f"cannot use row {odd} of {self._name}: its label has {lengths[odd]} numbers, and the first has "
                    f"{lengths[0]}; give all as many"
                )
            values = values.reshape(len(column), -1)
        if values.ndim > 2 or values.dtype.kind not in "biuf":
            raise ManifestError(
                f"cannot take labels from the column {name!r} of {self._name}: it holds {values.dtype} of the shape "
                f"{values.shape[1:]} a row; give numbers, or vectors of them"
            )
        return values

    def _fill_value(self) -> int | float | None:
        """Return the number that stands for a missing label; `None` if there is none."""
        if self._missing is None:
            return None
        try:
            return int(self._missing)
        except ValueError:
            pass
        try:
            return float(self._missing)
        except ValueError:
            raise ManifestError(
                f"cannot use missing_label={self._missing!r} with {self._name}: its labels are numbers; give a number"
            ) from None

    def _check(
        self, arrays: Sequence[NDArray[Any]], names: Sequence[str], *, is_float: bool, nan_allowed: bool
    ) -> tuple[int, ...]:
        """Raise `ManifestError` for numbers that cannot be delivered; return the shape of one label."""
        for array, name in zip(arrays, names, strict=True):
            if array.dtype.kind == "f":
                bad = ~(np.abs(array) <= FLOAT32_MAX) if array.itemsize > 4 else ~np.isfinite(array)
                if nan_allowed:
                    bad &= ~np.isnan(array)
                if bad.any():
                    row = int(bad.reshape(len(array), -1).any(axis=1).argmax())
                    raise ManifestError(
                        f"cannot use row {row} of {self._name}: its label in {name!r} is not finite, or does not fit "
                        "float32; mend it"
                    )
            elif array.dtype == np.uint64 and array.size and int(array.max()) >= 1 << 63:
                raise ManifestError(f"cannot use the labels {name!r} of {self._name}: they do not fit 64 bits with a "
                                    "sign; give smaller numbers")  # fmt: skip
            if is_float and (changed := _changed_by_float32(array)) is not None:
                raise ManifestError(refuse_large(self._name, changed))
        width = sum(array.shape[1] if array.ndim > 1 else 1 for array in arrays)
        return () if len(arrays) == 1 and (arrays[0].ndim == 1 or width == 1) else (width,)

    def _described_classes(self, names: Sequence[str], arrays: Sequence[NDArray[Any]]) -> tuple[str, ...] | None:
        """Return the names that the table's own description gives to whole numbers."""
        found = self._columns.attributes.get("classes", {}).get(names[0]) if len(names) == 1 else None
        if found is None or arrays[0].dtype.kind not in "iu" or arrays[0].ndim > 1:
            return None
        if int(arrays[0].max()) >= len(found):
            row = int(arrays[0].argmax())
            raise ManifestError(
                f"cannot use row {row} of {self._name}: its label is {int(arrays[0].max())}, and {names[0]!r} has "
                f"{len(found)} classes; mend the labels or the names"
            )
        return tuple(found)


def _changed_by_float32(array: NDArray[Any]) -> str | None:
    """Return a whole number that float32 does not hold; `None` if there is none."""
    for at in range(0, len(array), _BLOCK_ROWS):
        block = array[at : at + _BLOCK_ROWS].reshape(-1)
        with np.errstate(invalid="ignore"):
            size = np.abs(block.astype(np.float64))
            whole = (size > FLOAT32_EXACT) & (np.floor(size) == size)
            if array.dtype.kind == "f":
                whole &= size < FLOAT64_EXACT
        for value in block[whole].tolist():
            if math.isfinite(value) and int(np.float32(value)) != int(value):
                return str(int(value))
    return None
