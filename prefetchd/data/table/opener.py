"""Opens the data set of a configuration with `fields` as a table, of every kind. In the daemon, once a data set."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from prefetchd.config.fields import Field, parse_fields
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
from prefetchd.data.named_files import absolute_root
from prefetchd.data.stores.urls import file_name, is_url, parent
from prefetchd.data.table.class_lists import label_columns
from prefetchd.data.table.field_records import FieldRecords
from prefetchd.data.table.object_records import read_annotated, write_table
from prefetchd.data.table.yolo_files import yolo_folders
from prefetchd.errors import ConfigError, ManifestError, one_line

if TYPE_CHECKING:
    from prefetchd.columns.store import Columns
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


def read_columns(config: Config, kind: str) -> dict[str, Field]:
    """Return the fields, and one of `kind` for each other column that chooses or weighs samples."""
    fields = parse_fields(config.fields)
    columns = {*label_columns(fields), *(field.column or name for name, field in fields.items())}
    chosen_by = sorted(order_columns(config) - columns)
    return {**fields, **{f"={name}": Field(kind, column=name) for name in chosen_by}}  # no field has such a name


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
    path, name = absolute_root(config.source), one_line(config.source)
    suffix = os.path.splitext(file_name(path))[1].lower()
    objects = {field.kind for field in parse_fields(config.fields).values()} & set(OBJECT_TARGETS)
    if objects and kind == "manifest" and suffix == ".json":
        return _open_annotated(config, path, name, with_keypoints="keypoints" in objects)
    is_folder = kind == "manifest" and _is_folder(path, suffix)
    if objects and is_folder and yolo_folders(path) is not None:
        return _open_annotated(config, path, name, with_keypoints="keypoints" in objects)
    if kind == "tar" or is_folder:
        refuse_given(config, ("root",), "lists of paths")
    if is_folder:
        from prefetchd.data.table.pairs import read_pairs

        folder = path.rstrip("/") or path
        columns, words = read_pairs(folder, name, config)
        return FieldRecords.open(config, columns, root=folder, words=words)
    if kind == "tar":
        from prefetchd.data.table.tar import read_tar

        table = read_tar(config.source, name, read_columns(config, "label"), config.index)
        return FieldRecords.open(config, table, root=path)
    if kind == "packed":
        from prefetchd.data.table.packed import read_packed

        refuse_given(config, ("root",), "lists of paths")
        return FieldRecords.open(config, read_packed(config.source, name, read_columns(config, "label")), root=path)
    if kind == "parquet":
        from prefetchd.data.table.parquet import read_parquet

        columns, images, files = read_parquet(config, name, read_columns(config, "array"))
        start = parent(files[0]) if files else path
        root = start if config.root is None else absolute_root(config.root)
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


def _is_folder(path: str, suffix: str) -> bool:
    if not is_url(path):
        return os.path.isdir(path)
    from prefetchd.data.manifest.far import is_prefix

    return suffix not in (*_TEXT, *_JSON, ".json") and is_prefix(path)


def _open_annotated(config: Config, path: str, name: str, *, with_keypoints: bool) -> FieldRecords:
    """Return the records of COCO or YOLO annotations: the columns `path`, `boxes`, `labels` and `keypoints`."""
    found = read_annotated(config, path, with_keypoints=with_keypoints)
    for note in found.notes:
        log.warning("%s: %s", name, note)
    return FieldRecords.open(config, write_table(found, with_keypoints), root=found.folder)


def _open_list(config: Config, path: str, name: str, *, is_json: bool) -> FieldRecords:
    if is_url(path):
        from prefetchd.data.stores.download import download

        fd = download(path)
        try:
            columns, line = _read_list(config, f"/proc/self/fd/{fd}", name, is_json=is_json)
        finally:
            os.close(fd)
    else:
        before = identity_of(path)
        columns, line = _read_list(config, path, name, is_json=is_json)
        try:
            check_complete(path, before, name)
        except ManifestError:
            columns.close()
            raise
    root = parent(path) if config.root is None else absolute_root(config.root)
    return FieldRecords.open(config, columns, root=root, line=line, files=[path])


def _read_list(config: Config, path: str, name: str, *, is_json: bool) -> tuple[Columns, int]:
    """Return the table of a list, which the caller owns, and the line of its first row."""
    if is_json:
        from prefetchd.data.table.jsonl import read_jsonl

        return read_jsonl(path, name, wanted_columns(config), label_columns(parse_fields(config.fields)))
    from prefetchd.data.table.csv import read_csv

    has_tabs = file_name(config.source).lower().endswith(".tsv")
    return read_csv(path, name, read_columns(config, "text"), has_tabs=has_tabs)
