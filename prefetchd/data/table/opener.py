"""Opens the data set of a configuration with `fields` as a table, whatever its kind. In the daemon, once a data set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from prefetchd.columns.store import Columns
from prefetchd.columns.values import text_blocks
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.config.field_options import objects_config
from prefetchd.config.fields import parse_fields
from prefetchd.data.fields.source import FieldsSource
from prefetchd.data.files import check_complete, identity_of
from prefetchd.data.first_look import check_some_exist
from prefetchd.data.kinds import ARRAY_OPTIONS, LIST_OPTIONS, OBJECT_OPTIONS, SEQUENCE_OPTIONS, refuse_given
from prefetchd.data.table.binding import objects_of
from prefetchd.data.table.field_records import FieldRecords
from prefetchd.data.table.object_records import ObjectRecords
from prefetchd.errors import ConfigError, ManifestError, one_line

if TYPE_CHECKING:
    from prefetchd.config.fields import Field
    from prefetchd.config.options import Config

_TEXT = (".csv", ".tsv")
_JSON = (".jsonl", ".ndjson")


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
    fields = parse_fields(config.fields)
    objects = open_objects(config, fields, kind)
    if not objects:
        refuse_given(config, OBJECT_OPTIONS, "fields of kind boxes and keypoints")
    try:
        return _open(config, kind, fields, objects)
    except BaseException:
        for each in objects.values():
            each.close()
        raise


def open_objects(config: Config, fields: Mapping[str, Field], kind: str) -> dict[str, ObjectRecords]:
    """Return the records of each field of boxes or keypoints, by `objects_of` the field; the caller owns them.

    Raises:
        ManifestError: if the objects cannot be read.
        ConfigError: if no field is an image, which they are placed by.
    """
    image = next((field.column or name for name, field in fields.items() if field.kind == "image"), None)
    has_columns = kind == "parquet" or config.source.lower().endswith(_JSON)
    found: dict[str, ObjectRecords] = {}
    for name, field in fields.items():
        if field.kind not in ("boxes", "keypoints"):
            continue
        if image is None:
            raise ConfigError(
                f"cannot serve the field {name}: no field is an image, which its {field.kind} are placed by"
            )
        columns: dict[str, str | None] = {}
        if has_columns:
            labels = f",{field.labels or 'labels'}" if field.kind == "boxes" else ""
            columns = {"x_column": image, "y_column": f"{field.column}{labels}"}
        found[objects_of(name)] = ObjectRecords.open(objects_config(config, field, **columns), with_images=False)
    return found


def _open(config: Config, kind: str, fields: Mapping[str, Field], objects: Mapping[str, ObjectRecords]) -> FieldRecords:
    path, name = os.path.abspath(os.path.expanduser(config.source)), one_line(config.source)
    suffix = os.path.splitext(path)[1].lower()
    plain = {each: field for each, field in fields.items() if objects_of(each) not in objects}
    if objects and (os.path.isdir(path) or suffix == ".json"):
        columns = _annotated(next(iter(objects.values())), plain, name)
        return FieldRecords.open(config, columns, root="/", others=objects)
    if os.path.isdir(path) and kind == "manifest":
        from prefetchd.data.table.pairs import read_pairs

        return FieldRecords.open(config, read_pairs(path, name, config), root=path)
    if kind == "tar":
        from prefetchd.data.table.tar import read_tar

        return FieldRecords.open(config, read_tar(config.source, name, plain), root=path)
    if kind == "parquet":
        from prefetchd.data.table.parquet import read_parquet

        columns, images, files = read_parquet(config, name, plain)
        root = os.path.dirname(files[0])
        return FieldRecords.open(config, columns, root=root, files=files, others={**images, **objects})
    if kind == "manifest" and suffix in (*_TEXT, *_JSON):
        return _open_list(config, path, name, plain, objects)
    raise ConfigError(
        f"cannot serve fields from {name}: give .csv, .tsv, .jsonl, tar or Parquet files, or a folder for each field"
    )


def _annotated(objects: ObjectRecords, plain: Mapping[str, Field], name: str) -> Columns:
    """Return the table of annotated images: their paths, for every field of images."""
    columns = [field.column or each for each, field in plain.items() if field.kind in ("image", "bytes")]
    others = [each for each, field in plain.items() if field.kind not in ("image", "bytes", "text")]
    if others:
        raise ConfigError(
            f"cannot take the field {others[0]} from {name}: annotations have images, boxes and keypoints; list the "
            "samples in JSON lines to have more"
        )
    paths = [sample.path for sample in objects.samples(range(len(objects)))]
    with ColumnsWriter(len(paths)) as writer:
        for column in dict.fromkeys(columns):
            writer.add_strings(column, text_blocks(paths))
        return Columns.attach(*writer.finish())


def _open_list(
    config: Config, path: str, name: str, plain: Mapping[str, Field], objects: Mapping[str, ObjectRecords]
) -> FieldRecords:
    before = identity_of(path)
    if path.lower().endswith(_JSON):
        from prefetchd.data.table.jsonl import read_jsonl

        keys = [field.column or each for each, field in plain.items()]
        columns, line = read_jsonl(path, name, list(dict.fromkeys(key for key in keys if key[0] != ".")))
    else:
        from prefetchd.data.table.csv import read_csv

        columns, line = read_csv(path, name, plain)
    try:
        check_complete(path, before, name)
    except ManifestError:
        columns.close()
        raise
    root = os.path.dirname(path) if config.root is None else os.path.abspath(os.path.expanduser(config.root))
    return FieldRecords.open(config, columns, root=root, line=line, files=[path], others=objects)
