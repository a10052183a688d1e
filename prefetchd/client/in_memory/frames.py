"""Tables in memory: a dictionary of columns, frames of pandas and polars, pyarrow tables, Hugging Face's `Dataset`."""

from __future__ import annotations

from collections.abc import Mapping, Set
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.client.in_memory.table import Add, check_distinct, check_rows, finish, wanted_columns, write_table
from prefetchd.columns.arrow import add_arrow, add_arrow_column
from prefetchd.columns.passed import PassedTable
from prefetchd.columns.values import add_values, text_blocks
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.config.options import Config
from prefetchd.errors import ConfigError, ManifestError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def of_dict(source: Mapping[Any, Any], config: Config) -> PassedTable:
    """Serve a dictionary of columns: lists, arrays or series of one length."""
    if not source:
        raise ManifestError("cannot serve the dictionary: it has no columns; give {'path': [...], 'label': [...]}")
    check_distinct(map(str, source))
    columns = {str(name): values for name, values in source.items()}
    lengths = {}
    for name, values in columns.items():
        # Text and dictionaries have a length, and are no rows; a set has them in no order.
        is_rows = hasattr(values, "__len__") and getattr(values, "ndim", 1) != 0
        if isinstance(values, str | bytes | Mapping | Set) or not is_rows:
            raise ManifestError(
                f"cannot use the column {name!r} of the dictionary: it has the type {type(values).__name__}; give a "
                "list with a value a row"
            )
        lengths[name] = len(values)
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ManifestError(f"cannot serve the dictionary: its columns differ in length ({listed}); make them alike")
    adds: dict[str, Add] = {}
    for name, values in columns.items():
        adds[name] = partial(_add_any, name=name, values=values)
    n_rows = next(iter(lengths.values()))
    return write_table(f"<dictionary of {n_rows} rows>", n_rows, adds, wanted_columns(config, list(columns)))


def of_pandas(source: Any, config: Config) -> PassedTable:
    """Serve a pandas DataFrame. Its index is no column."""
    if hasattr(source, "compute"):
        raise ConfigError(f"cannot serve this {type(source).__name__}: its rows are not computed; give its compute()")
    names = [str(name) for name in source.columns]
    check_distinct(names)
    adds: dict[str, Add] = {}
    for number, name in enumerate(names):
        adds[name] = partial(_add_series, name=name, series=source.iloc[:, number])
    return write_table(f"<DataFrame of {len(source)} rows>", len(source), adds, wanted_columns(config, names))


def of_polars(source: Any, config: Config) -> PassedTable:
    """Serve a polars DataFrame."""
    adds: dict[str, Add] = {}
    for series in source.get_columns():
        adds[series.name] = partial(_add_polars, name=series.name, series=series)
    return write_table(f"<DataFrame of {source.height} rows>", source.height, adds, wanted_columns(config, list(adds)))


def of_arrow(source: Any, config: Config) -> PassedTable:
    """Serve a pyarrow table or record batch."""
    return _of_arrow(f"<table of {source.num_rows} rows>", source, config, source.num_rows)


def of_hugging_face(source: Any, config: Config) -> PassedTable:
    """Serve a Hugging Face `Dataset`: its rows as `select`, `shuffle` and `filter` left them."""
    if getattr(source, "format", {}).get("type") == "custom":
        raise ConfigError(
            "cannot use the transform of this Dataset (set_transform), a function of this process; call "
            "reset_format(), and give transform='module:function'"
        )
    take = None
    if source._indices is not None:
        take = source._indices.column(0).to_numpy().astype(np.int64)
    table = getattr(source.data, "table", source.data)
    # Features are the data set's truth; the schema of a table may describe an earlier state.
    classes = {name: list(each.names) for name, each in source.features.items() if hasattr(each, "names")}
    return _of_arrow(f"<Dataset of {len(source)} rows>", table, config, len(source), take, classes)


def _of_arrow(
    name: str,
    table: Any,
    config: Config,
    n_rows: int,
    take: NDArray[np.int64] | None = None,
    classes: Mapping[str, list[str]] | None = None,
) -> PassedTable:
    check_rows(name, n_rows)
    names = list(table.schema.names)
    with ColumnsWriter(n_rows) as writer:
        attributes = add_arrow(writer, table, wanted=wanted_columns(config, names), take=take)
        if classes is not None:
            attributes["classes"] = dict(classes)
        return finish(name, writer, {"names": names, **attributes})


def _add_any(writer: ColumnsWriter, name: str, values: Any) -> None:
    """Add a column of any library."""
    if hasattr(values, "iloc"):
        _add_series(writer, name, values)
    elif hasattr(values, "is_null") and hasattr(values, "to_list") and hasattr(values, "dtype"):
        _add_polars(writer, name, values)
    elif hasattr(values, "null_count") and hasattr(values, "type"):
        add_arrow_column(writer, name, values)
    elif isinstance(values, np.ma.MaskedArray):
        if values.ndim > 1 or values.dtype.kind not in "biuf":
            raise ValueError(f"it is a masked array of {values.dtype} with {values.ndim} dimensions")
        writer.add_numbers(name, values.filled(0), np.ma.getmaskarray(values))
    elif hasattr(values, "__array__"):
        add_values(writer, name, _array(values))
    else:
        add_values(writer, name, values if isinstance(values, list | tuple) else list(values))


def _array(values: Any) -> NDArray[Any]:
    """Return an array of any library as numpy's; raises `ValueError` if numpy has no such numbers."""
    try:
        values = values.detach().cpu() if hasattr(values, "detach") else values
        return np.asarray(values)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"it cannot become an array of numpy ({' '.join(str(error).split())[:80]})") from None


def _add_series(writer: ColumnsWriter, name: str, series: Any) -> None:
    """Add a column of pandas."""
    array, dtype = series.array, str(series.dtype)
    if hasattr(array, "__arrow_array__") and "Arrow" in type(array).__name__:
        add_arrow_column(writer, name, array.__arrow_array__())
    elif dtype == "category":
        codes = series.cat.codes.to_numpy()
        values = np.asarray(series.cat.categories)
        if not len(values):
            raise ValueError("all its values are missing")
        taken = values[np.maximum(codes, 0)]
        if values.dtype.kind in "biuf":
            writer.add_numbers(name, taken, codes < 0)
        else:
            taken = taken.astype(object)
            taken[codes < 0] = None
            add_values(writer, name, taken)
    elif hasattr(array, "_mask"):  # whole numbers and truth values that may be missing
        plain = dtype.lower().replace("boolean", "bool")
        writer.add_numbers(name, array.to_numpy(dtype=plain, na_value=0), series.isna().to_numpy())
    else:
        values = series.to_numpy()
        if values.dtype.kind in "mM":
            raise ValueError(f"it holds {dtype}")
        add_values(writer, name, values)


def _add_polars(writer: ColumnsWriter, name: str, series: Any) -> None:
    """Add a column of polars."""
    missing = series.is_null().to_numpy() if series.null_count() else None
    dtype = str(series.dtype)
    if dtype.startswith(("String", "Utf8", "Categorical", "Enum")):
        writer.add_strings(name, text_blocks(_Slices(series)), missing)
    elif dtype.startswith(("Int", "UInt", "Float", "Boolean")) and not dtype.endswith("128"):
        values = series if missing is None else series.fill_null(False if dtype == "Boolean" else 0)
        writer.add_numbers(name, values.to_numpy(), missing)
    elif dtype.startswith(("Binary", "List", "Array")):
        add_values(writer, name, series.to_list())
    else:
        raise ValueError(f"it holds {dtype}")


class _Slices:
    """A series whose slices are lists: not all rows are Python's objects at once."""

    def __init__(self, series: Any) -> None:
        self._series = series

    def __len__(self) -> int:
        return len(self._series)

    def __getitem__(self, rows: slice) -> list[Any]:
        found: list[Any] = self._series[rows].to_list()
        return found
