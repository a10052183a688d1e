"""Lists of samples: `[("a.jpg", 0), ...]`, paths alone, or a dictionary a sample; and `.samples` of class folders."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from prefetchd.client.in_memory.table import Add, check_rows, wanted_columns, write_table
from prefetchd.columns.passed import PassedTable
from prefetchd.columns.values import add_values
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.config.options import Config
from prefetchd.errors import ManifestError

_MOST_VALUES = 4096


def of_rows(rows: Sequence[Any], config: Config) -> PassedTable:
    """Serve a list whose entries are samples: a path or bytes, a tuple of it and labels, or a dictionary."""
    check_rows("the list", len(rows))
    rows = rows if isinstance(rows, list | tuple) else list(rows)
    first = rows[0]
    if isinstance(first, Mapping):
        return _of_dictionaries(rows, config)
    if isinstance(first, str | bytes | os.PathLike):
        return _table(f"<list of {len(rows)} samples>", {"path": rows})
    if not isinstance(first, tuple | list):
        raise ManifestError(
            f"cannot serve the list: row 0 has the type {type(first).__name__}; give a path, encoded bytes, or a tuple "
            "(path, label) a row"
        )
    _check_widths(rows, len(first))
    labels = ["label"] if len(first) == 2 else [f"label {number}" for number in range(len(first) - 1)]
    columns = {name: list(map(itemgetter(number), rows)) for number, name in enumerate(["path", *labels])}
    kind = {1: "samples", 2: "pairs"}.get(len(first), "rows")
    return _table(f"<list of {len(rows)} {kind}>", columns)


def of_folder(samples: Sequence[tuple[str, int]], classes: list[str], kind: str) -> PassedTable:
    """Serve the samples of a torchvision `ImageFolder` or `DatasetFolder`, or a part of them."""
    check_rows(f"the {kind}", len(samples))
    columns = {name: list(map(itemgetter(number), samples)) for number, name in enumerate(("path", "label"))}
    return _table(f"<{kind} of {len(samples)} samples>", columns, classes={"label": classes})


def _check_widths(rows: Sequence[Any], width: int) -> None:
    """Raise `ManifestError` unless all rows are tuples or lists of `width` values."""
    if not 0 < width <= _MOST_VALUES:
        what = (
            f"has {width} values, as if columns were meant; give a dict of columns, or" if width else "is empty; give"
        )
        raise ManifestError(f"cannot serve the list: row 0 {what} a tuple (path, label) a row")
    if set(map(type, rows)) <= {tuple, list} and set(map(len, rows)) == {width}:
        return
    for number, row in enumerate(rows):
        if not isinstance(row, tuple | list):
            raise ManifestError(
                f"cannot serve the list: row {number} has the type {type(row).__name__}, and the first is a tuple; "
                "give a tuple (path, label) a row"
            )
        if len(row) != width:
            raise ManifestError(
                f"cannot serve the list: row {number} has {len(row)} values, and the first {width}; give all rows as "
                "many, and several labels as a list"
            )


def _of_dictionaries(rows: Sequence[Any], config: Config) -> PassedTable:
    keys = list(rows[0])
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or row.keys() != rows[0].keys():
            raise ManifestError(
                f"cannot serve the list: row {number} has other keys than the first ({', '.join(map(str, keys))}); "
                "give each key in every row, with None where there is no value"
            )
    adds: dict[str, Add] = {}
    for key in keys:
        adds[str(key)] = partial(_add_key, rows=rows, key=key)
    return write_table(f"<list of {len(rows)} dictionaries>", len(rows), adds, wanted_columns(config, list(adds)))


def _add_key(writer: ColumnsWriter, rows: Sequence[Any], key: Any) -> None:
    add_values(writer, str(key), [row[key] for row in rows])


def _table(name: str, columns: dict[str, Any], **attributes: Any) -> PassedTable:
    """Return the table of a list, whose first column is the path and whose others are labels."""
    adds: dict[str, Add] = {}
    for column, values in columns.items():
        adds[column] = partial(add_values, name=column, values=values)
    first, *others = columns
    return write_table(name, len(columns[first]), adds, set(columns), x=first, y=others, **attributes)
