"""Opens the data set of a configuration with `fields` as a table, whatever its kind. In the daemon, once a data set."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from prefetchd.config.fields import parse_fields
from prefetchd.config.selection import order_columns
from prefetchd.data.fields.source import FieldsSource
from prefetchd.data.files import check_complete, identity_of
from prefetchd.data.first_look import check_some_exist
from prefetchd.data.kinds import (
    ARRAY_OPTIONS,
    LIST_OPTIONS,
    OBJECT_TARGETS,
    SEQUENCE_OPTIONS,
    refuse_given,
)
from prefetchd.data.table.class_lists import label_columns
from prefetchd.data.table.field_records import FieldRecords
from prefetchd.data.table.object_records import read_annotated, write_table
from prefetchd.data.table.yolo import yolo_folders
from prefetchd.errors import ConfigError, ManifestError, one_line

if TYPE_CHECKING:
    from prefetchd.config.options import Config

log = logging.getLogger("prefetchd")

_TEXT = (".csv", ".tsv")
_JSON = (".jsonl", ".ndjson")


def wanted_columns(config: Config) -> list[str]:
    """Return the columns that the fields name, each once, in order; files beside the first image are no columns."""
    fields = parse_fields(config.fields)
    columns = [field.column or name for name, field in fields.items()]
    columns += label_columns(fields)
    columns += sorted(order_columns(config))
    return list(dict.fromkeys(column for column in columns if not column.startswith(".")))


def open_fields(config: Config, records: FieldRecords) -> FieldsSource:
    """Return the source of these records, which it owns.

    Raises:
        ManifestError: if none of the files of a field is there.
        ConfigError: if the options contradict each other or the data.
    """
    try:
        for number, (name, facts) in enumerate(zip(parse_fields(config.fields), records.fields, strict=True)):
            if facts.holds == "files":
                check_some_exist(records, config, (number, name))
        return FieldsSource.open(config, "fields", records)
    except BaseException:
        records.close()
        raise


def open_table(config: Config, kind: str) -> FieldRecords:
    """Return the records of `config.source`, with the columns that its fields name.

    Raises:
        ManifestError: if it cannot be read, or has no samples.
        ConfigError: if a column does not exist, or nothing of this kind can have fields.
    """
    refuse_given(config, (*ARRAY_OPTIONS, *SEQUENCE_OPTIONS), "arrays")
    refuse_given(config, tuple(name for name in LIST_OPTIONS if name != "root"), "samples without fields")
    path, name = os.path.abspath(os.path.expanduser(config.source)), one_line(config.source)
    suffix = os.path.splitext(path)[1].lower()
    objects = {field.kind for field in parse_fields(config.fields).values()} & set(OBJECT_TARGETS)
    if objects and kind == "manifest" and (suffix == ".json" or yolo_folders(path) is not None):
        return _open_annotated(config, path, name, with_keypoints="keypoints" in objects)
    if kind == "tar" or (os.path.isdir(path) and kind == "manifest"):
        refuse_given(config, ("root",), "lists of paths")
    if os.path.isdir(path) and kind == "manifest":
        from prefetchd.data.table.pairs import read_pairs

        return FieldRecords.open(config, read_pairs(path, name, config), root=path)
    if kind == "tar":
        from prefetchd.data.table.tar import read_tar

        table = read_tar(config.source, name, parse_fields(config.fields), config.index)
        return FieldRecords.open(config, table, root=path)
    if kind == "packed":
        from prefetchd.data.table.packed import read_packed

        refuse_given(config, ("root",), "lists of paths")
        return FieldRecords.open(config, read_packed(config.source, name, parse_fields(config.fields)), root=path)
    if kind == "parquet":
        from prefetchd.data.table.parquet import read_parquet

        columns, images, files = read_parquet(config, name, parse_fields(config.fields))
        root = os.path.dirname(files[0]) if config.root is None else os.path.abspath(os.path.expanduser(config.root))
        return FieldRecords.open(config, columns, root=root, files=files, images=images)
    if kind == "manifest" and suffix in (*_TEXT, *_JSON):
        return _open_list(config, path, name, is_json=suffix in _JSON)
    if kind == "arrow":
        from prefetchd.data.table.arrow_files import read_arrow_files

        columns, root, _ = read_arrow_files(config, wanted_columns(config))
        return FieldRecords.open(config, columns, root=os.path.abspath(os.path.expanduser(root)))
    raise ConfigError(
        f"cannot serve fields from {name}: give .csv, .tsv, .jsonl, tar or Parquet files, or a folder for each field; "
        "or, with fields of kind boxes or keypoints, a COCO file (.json) or a YOLO folder"
    )


def _open_annotated(config: Config, path: str, name: str, *, with_keypoints: bool) -> FieldRecords:
    """Return the records of COCO or YOLO annotations: the columns `path`, `boxes`, `labels` and `keypoints`."""
    found = read_annotated(config, path, with_keypoints=with_keypoints)
    for note in found.notes:
        log.warning("%s: %s", name, note)
    return FieldRecords.open(config, write_table(found, with_keypoints), root=found.folder)


def _open_list(config: Config, path: str, name: str, *, is_json: bool) -> FieldRecords:
    before = identity_of(path)
    if is_json:
        from prefetchd.data.table.jsonl import read_jsonl

        columns, line = read_jsonl(path, name, wanted_columns(config), label_columns(parse_fields(config.fields)))
    else:
        from prefetchd.data.table.csv import read_csv

        columns, line = read_csv(path, name, parse_fields(config.fields))
    try:
        check_complete(path, before, name)
    except ManifestError:
        columns.close()
        raise
    root = os.path.dirname(path) if config.root is None else os.path.abspath(os.path.expanduser(config.root))
    return FieldRecords.open(config, columns, root=root, line=line, files=[path])
