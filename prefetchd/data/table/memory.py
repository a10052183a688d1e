"""Opens a source that is in a trainer's memory: the daemon got its columns by descriptor. Called at open.

`client.in_memory` describes what the trainer gave. Nothing that comes from there is believed: the columns are checked
as they are attached (`columns.store`), and as rows are read.
"""

from __future__ import annotations

from dataclasses import replace

from prefetchd.columns.passed import PassedTable
from prefetchd.columns.store import Columns
from prefetchd.config.convert import absolute_path
from prefetchd.config.options import Config
from prefetchd.data.arrays.memory import MemoryArrays
from prefetchd.data.first_look import check_some_exist
from prefetchd.data.images.views import open_images
from prefetchd.data.kinds import (
    ARRAY_OPTIONS,
    OBJECT_TARGETS,
    SEQUENCE_OPTIONS,
    refuse_given,
    refuse_other_targets,
)
from prefetchd.data.records import Records
from prefetchd.data.source import Source
from prefetchd.data.table.field_records import FieldRecords
from prefetchd.data.table.object_records import ObjectRecords, only_images
from prefetchd.data.table.opener import open_fields
from prefetchd.data.table.records import TableRecords
from prefetchd.errors import ManifestError


def open_memory(config: Config, table: PassedTable) -> Source:
    """Return the source; it owns the memfd from here on.

    Raises:
        ManifestError: if it cannot be served, with the reason.
        ConfigError: if an option means nothing for it.
    """
    try:
        columns = Columns.attach(table.description, table.fd)
    except ValueError as error:
        raise ManifestError(
            f"cannot serve {table.name}: {error}; pass it with prefetchd.batches of the same version"
        ) from None
    try:
        if table.kind == "arrays":
            return MemoryArrays.open(config, columns)
        refuse_given(config, ARRAY_OPTIONS, "arrays")
        refuse_given(config, SEQUENCE_OPTIONS, "ragged sequences")
        folder = str(columns.attributes.get("folder", ""))
        config = config if config.root is not None or not folder else replace(config, root=folder)
        if config.fields:
            with_fields = FieldRecords.open(config, columns, root=absolute_path(config.root or "."))
            _set_up_stores(config, with_fields)
            return open_fields(config, with_fields)
        refuse_other_targets(config)
        has_objects = config.target in OBJECT_TARGETS
        records = TableRecords.make(columns, only_images(config) if has_objects else config, config.source)
    except BaseException:
        columns.close()
        raise
    try:
        _set_up_stores(config, records)
        if records.lists_files:
            check_some_exist(records, config)
        if has_objects:
            return open_images(config, "objects", ObjectRecords.of_table(records, config))
        return open_images(config, "table", records)
    except BaseException:
        records.close()
        raise


def _set_up_stores(config: Config, records: Records) -> None:
    """Prepare this process for reading objects, if the table names some."""
    if records.is_far:
        from prefetchd.data.stores.client import set_up

        set_up(config)
