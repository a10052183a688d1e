"""Parquet files into a table: numbers, text and lists are copied, encoded images stay in their row groups.

Each column of images (or of their paths) is served by records of its own (`parquet.records`), which keep a row group
from one image to the next. In the daemon, once a data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prefetchd.columns.arrow import add_arrow
from prefetchd.columns.store import Columns
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.data.files import check_complete, identity_of
from prefetchd.data.kinds import expand
from prefetchd.data.parquet.library import load_pyarrow
from prefetchd.data.parquet.records import ParquetRecords
from prefetchd.data.stores.urls import is_url
from prefetchd.data.table.class_lists import class_lists, label_columns
from prefetchd.errors import ConfigError, ManifestError, one_line

if TYPE_CHECKING:
    from prefetchd.config.fields import Field
    from prefetchd.config.options import Config

_ENCODED = ("image", "mask", "bytes")


def read_parquet(
    config: Config, name: str, fields: Mapping[str, Field]
) -> tuple[Columns, dict[str, ParquetRecords], list[str]]:
    """Return the table, the records of each column of encoded images, and the files; the caller owns both.

    Raises:
        ManifestError: if a file cannot be read, or a column cannot be served.
        ConfigError: if a column does not exist, or pyarrow is not installed.
    """
    pa, parquet = load_pyarrow()
    paths = expand(config.source, "parquet", name)
    is_far = is_url(paths[0])
    before = [] if is_far else [identity_of(path) for path in paths]
    columns = {field.column or each: field for each, field in fields.items() if (field.column or each)[0] != "."}
    plain = [column for column, field in columns.items() if field.kind not in _ENCODED]
    labels = [column for column in label_columns(fields) if column not in columns]
    plain += labels
    try:
        names = _column_names(parquet, paths[0])
        for column in (*columns, *labels):
            if column.partition(".")[0] not in names:
                raise ConfigError(
                    f"cannot find the column {column!r} in {name}: there are {', '.join(map(repr, names))}; "
                    "give each field its column"
                )
        tables, n_rows = _read_far(parquet, paths, plain) if is_far else _read(parquet, paths, plain)
        table = pa.concat_tables(tables)
    except (OSError, ValueError) as error:  # pyarrow's errors are among them
        what = " ".join(str(error).split())[:300]
        raise ManifestError(f"cannot read {name}: {what}; write the files again") from None
    images: dict[str, ParquetRecords] = {}
    try:
        with ColumnsWriter(n_rows) as writer:
            table, classes = _numbered(pa, table, labels)
            attributes: dict[str, Any] = add_arrow(writer, table, wanted=plain) if plain else {}
            attributes.setdefault("classes", {}).update(classes)
            for column in columns.keys() - plain:
                images[column] = ParquetRecords.open(replace(config, fields=(), x_column=column, label_columns=0))
            for path, found in zip(paths, before, strict=not is_far):
                check_complete(path, found, one_line(path))
            # Of objects the columns are copied here, and images are read of what was indexed.
            return Columns.attach(*writer.finish(attributes)), images, [] if is_far else paths
    except BaseException as error:
        for each in images.values():
            each.close()
        if isinstance(error, ValueError):
            raise ManifestError(f"cannot serve {name}: {error}; write the files again") from None
        raise


def _column_names(parquet: Any, path: str) -> list[str]:
    if not is_url(path):
        return list(parquet.read_schema(path).names)
    from prefetchd.data.parquet.far_files import open_far

    with open_far(parquet, path, ()) as (file, _):
        return list(file.schema_arrow.names)


def _read(parquet: Any, paths: list[str], columns: list[str]) -> tuple[list[Any], int]:
    """Return these columns of each file, and how many rows there are."""
    tables = [parquet.read_table(path, columns=columns) for path in paths]
    if columns:
        return tables, sum(table.num_rows for table in tables)
    return tables, sum(parquet.read_metadata(path).num_rows for path in paths)


def _read_far(parquet: Any, urls: list[str], columns: list[str]) -> tuple[list[Any], int]:
    """Return what `_read` does, of objects, many at once."""
    from prefetchd.data.parquet.far_files import open_far_together

    tables, n_rows = [], 0
    for opened in open_far_together(parquet, urls, columns):
        with opened as (file, _):
            tables.append(file.read(columns=columns))
            n_rows += file.metadata.num_rows
    return tables, n_rows


def _numbered(pa: Any, table: Any, labels: list[str]) -> tuple[Any, dict[str, list[str]]]:
    """Return the table with class numbers where labels of boxes are names, and those names by column."""
    classes = {}
    for column in labels:
        kind = str(table.column(column).type) if column in table.column_names else ""
        if "list<" not in kind or "string" not in kind:
            continue
        values, names = class_lists(table.column(column).to_pylist())
        if names is not None:
            place = table.column_names.index(column)
            table = table.set_column(place, column, pa.array(values, pa.list_(pa.int64())))
            classes[column] = names
    return table, classes
