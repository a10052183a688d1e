"""Packed shards (MDS, LitData) into a table: where each image is, and what the other columns say. In the daemon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.columns.store import Columns
from prefetchd.columns.values import add_values
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.data.packed.index import folder_of, read_index
from prefetchd.data.packed.shard import MAX_VALUE_BYTES, is_readable, opened, value_of
from prefetchd.data.table.class_lists import class_lists, label_columns
from prefetchd.data.table.text import label_numbers
from prefetchd.errors import ConfigError, ManifestError, one_line

if TYPE_CHECKING:
    from prefetchd.config.fields import Field

_ENCODED = ("image", "mask", "bytes")


def read_packed(source: str, name: str, fields: Mapping[str, Field]) -> Columns:
    """Return the table of the folder `source`; the caller owns it.

    Raises:
        ManifestError: if a shard cannot be read, or is compressed, or a value does not suit its field.
        ConfigError: if a column does not exist.
    """
    columns, shards = read_index(folder_of(source), name)
    if any(shard.is_zstd for shard in shards):
        raise ManifestError(
            f"cannot serve fields from {name}: its shards are compressed, and their columns have no places in a file; "
            "decompress them (zstd -d)"
        )
    kinds = {field.column or each: field.kind for each, field in fields.items()}
    kinds |= {column: "labels" for column in label_columns(fields) if column not in kinds}
    numbers = {}
    for column, kind in kinds.items():
        if column not in columns.names:
            raise ConfigError(
                f"cannot find the column {column!r} in {name}: there are {', '.join(map(repr, columns.names))}; give "
                "each field its column"
            )
        numbers[column] = columns.names.index(column)
        encoding = columns.encodings[numbers[column]]
        if kind not in _ENCODED and not is_readable(encoding):
            raise ConfigError(f"cannot serve {column!r} of {name} as {kind}: it has {encoding}; leave the field out")
    values: dict[str, list[Any]] = {column: [] for column in kinds}
    files: list[list[Any]] = []
    for number, shard in enumerate(shards):
        with opened(shard, columns) as (content, before):
            for sample, spans in enumerate(content.samples(numbers.values())):
                for column, kind in kinds.items():
                    at, n_bytes = spans[numbers[column]]
                    if kind in _ENCODED:
                        values[column].append((number, at, n_bytes))
                        continue
                    try:
                        if n_bytes > MAX_VALUE_BYTES:
                            raise ValueError(f"it has {n_bytes} bytes, and at most {MAX_VALUE_BYTES} are read")
                        raw = content.read(at, n_bytes)
                        values[column].append(value_of(columns.encodings[numbers[column]], raw))
                    except ValueError as error:
                        where = f"the column {column!r} of {one_line(shard.path)} sample {sample}"
                        raise ManifestError(f"cannot use {where}: {error}; write it again") from None
        files.append([shard.path, *before])
    return _table(values, kinds, files, name)


def _table(values: dict[str, list[Any]], kinds: dict[str, str], files: list[list[Any]], name: str) -> Columns:
    attributes: dict[str, Any] = {"files": files, "images": {}, "classes": {}}
    with ColumnsWriter(len(next(iter(values.values())))) as writer:
        for column, found in values.items():
            try:
                _add(writer, column, found, kinds[column], attributes, name)
            except ValueError as error:
                raise ManifestError(f"cannot use the column {column!r} of {name}: {error}; write it again") from None
        return Columns.attach(*writer.finish(attributes))


def _add(
    writer: ColumnsWriter, column: str, found: list[Any], kind: str, attributes: dict[str, Any], name: str
) -> None:
    if kind in _ENCODED:
        attributes["images"][column] = {"place": column}
        writer.add_numbers(column, np.array(found, np.int64))
        return
    classes: list[str] | None = None
    if kind == "label" and isinstance(found[0], str):
        labels, names = label_numbers(found, len(found), f"the column {column!r} of {name}", are_names=True)
        classes = None if names is None else list(names)
        writer.add_numbers(column, labels)
    else:
        values, classes = class_lists(found) if kind == "labels" else (found, None)
        add_values(writer, column, values)
    if classes is not None:
        attributes["classes"][column] = classes
