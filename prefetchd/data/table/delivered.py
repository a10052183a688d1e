"""Whether the numbers of a field are delivered as they are: a dtype that would make others of them is refused.

Called in the daemon, once a data set, over whole columns. Fractions are rounded to the dtype's precision, as anybody
expects; whole numbers are not, since they may be ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.data.labels import FLOAT64_EXACT
from prefetchd.errors import ConfigError, ManifestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.columns.store import Column
    from prefetchd.config.fields import Field

_BLOCK_VALUES = 1 << 20


def delivered_dtype(field: Field, dtype: str) -> str:
    """Return the dtype that a field of kind label or array delivers, given that of its data."""
    if field.dtype is not None:
        return field.dtype
    if field.kind == "label":
        return "float32" if dtype.startswith("float") else "int64"
    return "float32" if dtype == "float64" else dtype


def check_delivered(name: str, field: Field, column: Column, source: str) -> None:
    """Raise an error if a number of a column would be delivered as another, or a label is missing or infinite.

    Args:
        name: of the field.
        field: a field of kind label or array.
        column: the column that it takes its numbers from.
        source: the data set's name in errors.

    Raises:
        ConfigError: if the dtype cannot hold a number.
        ManifestError: if a label is missing or infinite.
    """
    dtype = np.dtype(delivered_dtype(field, column.layout.dtype))
    values = column.values.reshape(-1)
    for first in range(0, len(values), _BLOCK_VALUES):
        block = values[first : first + _BLOCK_VALUES]
        if field.kind == "label" and not np.isfinite(block).all():
            at = int(np.argmin(np.isfinite(block)))
            what = "is missing" if np.isnan(block[at]) else f"is {block[at]}"
            raise ManifestError(
                f"cannot serve the field {name} of {source}: row {_row(column, first + at)} (from 0) has a label that "
                f"{what}; complete the column, or remove the row"
            )
        changed = _changed(block, dtype)
        if changed.any():
            at = int(np.argmax(changed))
            raise ConfigError(
                f"cannot deliver the field {name} of {source} as dtype={dtype.name!r}: row "
                f"{_row(column, first + at)} (from 0) has {block[at]}, which it does not hold; give a dtype that does"
            )


def _changed(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[np.bool_]:
    """Return which values become others: whole numbers that are not the same, fractions that become infinite."""
    if np.can_cast(values.dtype, dtype, "safe"):
        return np.zeros(len(values), np.bool_)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(dtype)
    if values.dtype.kind != "f":
        if dtype.kind != "f":  # numpy compares whole numbers of any two dtypes exactly
            return np.asarray(cast != values)
        with np.errstate(over="ignore", invalid="ignore"):
            # One beyond the largest number would come back as the smallest, so its float is compared with the limit.
            limit = float(np.iinfo(values.dtype).max) if values.dtype.kind != "b" else 2.0
            same: NDArray[np.bool_] = (np.abs(cast) < limit) & (cast.astype(values.dtype) == values)
        return ~same
    if dtype.kind != "f":
        return np.asarray(cast != values)
    size = np.abs(values)
    whole = (size < FLOAT64_EXACT) & (np.floor(values) == values)
    changed: NDArray[np.bool_] = np.isfinite(values) & (np.isinf(cast) | (whole & (cast != values)))
    return changed


def _row(column: Column, at: int) -> int:
    """Return the row of a value by its number among all of the column."""
    width = int(np.prod(column.layout.shape, dtype=np.int64))
    if column.layout.kind == "numbers":
        return at // max(1, width)
    return int(np.searchsorted(np.cumsum(column.lengths), at // max(1, width), "right"))
