"""Writes the columns of one source, and names what cannot be held; every kind of table goes through here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from prefetchd.columns.passed import PassedTable
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.config.fields import parse_fields
from prefetchd.config.options import Config
from prefetchd.config.selection import order_columns
from prefetchd.errors import ManifestError

Add = Callable[[ColumnsWriter], None]


def wanted_columns(config: Config, names: Sequence[str]) -> Collection[str] | None:
    """Return the columns that the options ask for, by name; `None` where the daemon has to choose among all."""
    if config.fields:
        fields = parse_fields(config.fields)
        labels = {field.labels for field in fields.values() if field.labels is not None}  # of boxes
        more = order_columns(config) & set(names)
        return labels | more | {field.column or name for name, field in fields.items()}
    if config.x_column is None or (config.y_column is None and config.label_columns != 0):
        return None
    asked = [config.x_column, *(config.y_column or "").split(","), *order_columns(config)]
    by_number = {str(number): name for number, name in enumerate(names)}
    return {name if name in names else by_number.get(name, name) for name in map(str.strip, asked) if name}


def check_distinct(names: Iterable[str]) -> None:
    """Raise `ManifestError` if two columns have one name."""
    seen = set()
    for name in names:
        if name in seen:
            raise ManifestError(f"cannot use the column {name!r}: there are two of this name; rename one")
        seen.add(name)


def write_table(
    name: str, n_rows: int, columns: Mapping[str, Add], wanted: Collection[str] | None, **attributes: Any
) -> PassedTable:
    """Return the table of some columns.

    Args:
        name: of the source.
        n_rows: rows of each column.
        columns: by name, what adds the column; it raises `ValueError` for one that cannot be held.
        wanted: the columns to write; `None` for all that can be held, where `left_out` names the others.
        **attributes: plain values that the daemon needs.

    Raises:
        ManifestError: if there are no rows, or a wanted column cannot be held.
    """
    check_rows(name, n_rows)
    left_out = {}
    with ColumnsWriter(n_rows) as writer:
        for column, add in columns.items():
            if wanted is not None and column not in wanted:
                continue
            try:
                add(writer)
            except ValueError as error:
                if wanted is not None:
                    raise ManifestError(
                        f"cannot use the column {column!r} of {name}: {error}; give text, numbers, bytes, or lists of "
                        "numbers of one kind"
                    ) from None
                left_out[column] = str(error)
        return finish(name, writer, {"names": list(columns), "left_out": left_out, **attributes})


def check_rows(name: str, n_rows: int) -> None:
    """Raise `ManifestError` if there are none."""
    if not n_rows:
        raise ManifestError(f"cannot serve {name}: it has no samples; give a row for each")


def finish(name: str, writer: ColumnsWriter, attributes: Mapping[str, Any], kind: str = "table") -> PassedTable:
    """Return what was written; relative paths start in the present working directory."""
    folder = ""
    with contextlib.suppress(OSError):  # it was removed; then paths have to be absolute
        folder = os.getcwd()
    return PassedTable(name, kind, *writer.finish({"folder": folder, **attributes}))
