"""Arrays in memory: `(x, y)` of numpy, or of what becomes an array without a copy, such as tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.client.in_memory import frames
from prefetchd.client.in_memory.table import check_rows, finish
from prefetchd.columns.passed import PassedTable
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.config.options import Config
from prefetchd.errors import ConfigError, ManifestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NUMBERS = "biufc"


def are_arrays(source: tuple[Any, ...]) -> bool:
    """Return whether a tuple holds columns, `(x, y)`, and not rows: arrays, or two lists."""
    if any(hasattr(each, "__array__") or hasattr(each, "iloc") for each in source):
        return all(
            hasattr(each, "__len__") and getattr(each, "ndim", 1) and not isinstance(each, str | bytes)
            for each in source
        )
    return len(source) == 2 and all(isinstance(each, list) for each in source)


def of_tuple(source: tuple[Any, ...], config: Config) -> PassedTable:
    """Serve `(x,)` or `(x, y)`: arrays of numbers, or paths and labels."""
    if not 1 <= len(source) <= 2:
        raise ManifestError(f"cannot serve a tuple of {len(source)} arrays: give (x, y)")
    x, *y = source
    if _numbers(x) is None:
        _check_paths(x)
        return frames.of_dict(dict(zip(("path", "label"), source, strict=False)), config)
    _check_options(config)
    return of_arrays(x, *y)


def _check_options(config: Config) -> None:
    """Raise `ConfigError` for options that name columns: arrays have none."""
    for name in ("x_column", "y_column", "label_columns"):
        if getattr(config, name) is not None:
            raise ConfigError(f"cannot use {name} with arrays: they have no columns; give x, or (x, y)")
    if config.fields:
        raise ConfigError(
            'cannot take fields from arrays: they have no names; give a dictionary, such as {"x": x, "y": y}'
        )


def of_dict(source: Mapping[Any, Any], config: Config) -> PassedTable | None:
    """Serve a dictionary of arrays; `None` if x, or the column that `x_column` names, is no array of several axes."""
    x_name = config.x_column or "x"
    x = _numbers(source.get(x_name))
    if x is None or x.ndim < 2:
        return None
    y_name = config.y_column or ("y" if "y" in source and config.label_columns != 0 else None)
    if y_name is None:
        return of_arrays(x)
    if y_name not in source:
        raise ManifestError(f"cannot find y_column={y_name!r} in the dictionary: it has {', '.join(map(str, source))}")
    return of_arrays(x, source[y_name])


def of_one(source: Any, config: Config) -> PassedTable:
    """Serve one array: rows of numbers, or paths."""
    x = _numbers(source)
    if x is None:
        _check_paths(source)
        return frames.of_dict({"path": source}, config)
    _check_options(config)
    return of_arrays(x)


def of_arrays(x: Any, y: Any = None) -> PassedTable:
    """Serve rows of x, and of y where it is given; else y is the row's number."""
    columns = {"x": x} if y is None else {"x": x, "y": y}
    found = {}
    for name, values in columns.items():
        array = _numbers(values)
        if array is None:
            raise ManifestError(
                f"cannot serve {name} from memory: its values ({type(values).__name__}) are no numbers of one shape; "
                "give an array of numbers"
            )
        path = getattr(array, "filename", None)
        if path is not None:
            raise ManifestError(
                f"cannot copy {name} into memory: it is mapped from {path}; give the file's name, which is served "
                "without a copy"
            )
        if isinstance(array, np.ma.MaskedArray):
            masked = int(np.ma.getmaskarray(array).sum())
            if masked:
                raise ManifestError(
                    f"cannot serve {name} from memory: {masked} of its numbers are masked; "
                    "give filled(...) of it, or its rows without them"
                )
            array = np.ma.getdata(array)
        found[name] = array
    n_rows = len(found["x"])
    check_rows("x", n_rows)
    if y is not None and len(found["y"]) != n_rows:
        raise ManifestError(
            f"cannot serve: x has {n_rows} rows and y has {len(found['y'])}; give as many labels as samples"
        )
    name = f"<arrays of {n_rows} rows>"
    with ColumnsWriter(n_rows) as writer:
        for column, array in found.items():
            try:
                writer.add_numbers(column, array)
            except ValueError as error:
                raise ManifestError(f"cannot serve {column} from memory: {error}") from None
        return finish(name, writer, {}, "arrays")


def _check_paths(values: Any) -> None:
    """Raise `ManifestError` for an array of neither numbers nor what may be paths, such as bfloat16 or records."""
    dtype = getattr(values, "dtype", None)
    if dtype is None or hasattr(values, "iloc"):
        return
    n_axes: int = getattr(values, "ndim", 1)
    held = "sparse numbers" if "sparse" in str(getattr(values, "layout", "")) else str(dtype)
    if getattr(dtype, "kind", "V") == "O" and getattr(values, "size", 0):
        first = np.asarray(values).flat[0]
        if first is None or isinstance(first, str | bytes | bytearray | memoryview | os.PathLike):
            return
        held = f"objects ({type(first).__name__})"
    if getattr(dtype, "kind", "V") in "UST" and n_axes:
        return
    if not n_axes:
        held = "one value, without an axis of rows"
    raise ManifestError(
        f"cannot serve this {type(values).__name__}: it holds {held}; give an array of numbers, such as float32, with "
        "a row for each sample, or paths"
    )


def _numbers(values: Any) -> NDArray[Any] | None:
    """Return an array of numbers with an axis of rows, without a copy where that can be; `None` for other values."""
    if values is None or isinstance(values, str | bytes | Mapping):
        return None
    if hasattr(values, "detach"):  # a tensor that may need a gradient, or be on a device
        values = values.detach().cpu()
    try:
        array = np.asanyarray(values)
    except (TypeError, ValueError, RuntimeError):
        return None
    return array if array.ndim and array.dtype.kind in _NUMBERS else None
