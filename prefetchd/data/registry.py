"""The kinds of sources by name: opens one in the daemon, attaches to it in a reader.

To add a kind, return its name from `kinds.kind_of`. For another list of encoded images, write a class that fulfils
`Records` and add it to `_IMAGES`; for anything else, one that fulfils `Source`, added to `_SOURCES`. Modules are
imported when they are needed.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from prefetchd.config.options import Config
from prefetchd.data.first_look import check_some_exist
from prefetchd.data.kinds import (
    ARRAY_OPTIONS,
    MASK_OPTIONS,
    OBJECT_TARGETS,
    SEQUENCE_OPTIONS,
    TAR_OPTIONS,
    kind_of,
    refuse_given,
    refuse_other_targets,
)
from prefetchd.data.records import Records
from prefetchd.data.source import Source
from prefetchd.data.stores.urls import is_url, shown
from prefetchd.errors import ConfigError, ManifestError, one_line
from prefetchd.ipc.loading import LoadingModules

if TYPE_CHECKING:
    from prefetchd.columns.passed import PassedTable
    from prefetchd.data.manifest.dialect import MalformedLine

__all__ = ["Source", "attach_source", "open_source"]

# Module and class of each kind: first those that list encoded images, then other sources.
_IMAGES = {
    "manifest": ("prefetchd.data.manifest.records", "Manifest"),
    "tar": ("prefetchd.data.tar.records", "TarShards"),
    "parquet": ("prefetchd.data.parquet.records", "ParquetRecords"),
    "packed": ("prefetchd.data.packed.records", "PackedRecords"),
    "objects": ("prefetchd.data.table.object_records", "ObjectRecords"),  # with target="boxes" or "keypoints"
    "arrow": ("prefetchd.data.table.arrow_files", "ArrowFiles"),
    "table": ("prefetchd.data.table.records", "TableRecords"),  # from memory, never opened by name
    "fields": ("prefetchd.data.table.field_records", "FieldRecords"),
}
_SOURCES = {
    "arrays": ("prefetchd.data.arrays.source", "ArraySource"),
    "far_arrays": ("prefetchd.data.arrays.far_source", "FarArrays"),  # in a store
    "far_sequences": ("prefetchd.data.arrays.far_sequences", "FarSequences"),
    "memory_arrays": ("prefetchd.data.arrays.memory", "MemoryArrays"),  # never opened by name
    "sequences": ("prefetchd.data.arrays.sequences", "SequenceSource"),
    "packed_sequences": ("prefetchd.data.arrays.packed", "PackedSource"),
}
_SERVED = "prefetchd.data.images.source", "ImageSource"
_VIEWS = "prefetchd.data.images.views", "ViewsSource"
_ENCODED = "prefetchd.data.images.encoded", "EncodedSource"
_FIELDS = "prefetchd.data.fields.source", "FieldsSource"
_INSPECTED_FIELDS = "prefetchd.data.fields.inspection", "InspectedFields"
_INSPECTED = "prefetchd.data.images.inspection", "InspectedImages"  # made by `verify`, never opened by name


def open_source(
    config: Config,
    malformed: list[MalformedLine] | None = None,
    *,
    table: PassedTable | None = None,
    passed: Mapping[str, PassedTable] = MappingProxyType({}),
) -> Source:
    """Open and check the data set that `config.source` names, in the daemon.

    Args:
        config: the options.
        malformed: collects malformed lines of a list, which are left out then; without it they are refused.
        table: the source, if it is in the memory of the daemon's starter; owned.
        passed: what options name that is in that memory, by option; of it the sources of a mixture become owned.

    Raises:
        ManifestError: if it cannot be served, with the reason.
        ConfigError: if an option means nothing for it, or a library that it needs is not installed.
    """
    if config.mix:
        from prefetchd.data.mix.opener import open_mix

        return open_mix(config, passed, open_source)
    if table is not None:
        from prefetchd.data.table.memory import open_memory

        return open_memory(config, table)
    _set_up_stores(config, is_far=False)
    kind: str = kind_of(config.source)
    if config.offsets is not None:
        kind = "packed_sequences" if config.pack is not None else "sequences"
    if kind != "tar":
        refuse_given(config, TAR_OPTIONS, "tar shards")
    if config.fields:
        from prefetchd.data.table.opener import open_fields, open_table

        with_fields = open_table(config, kind)
        _set_up_stores(config, is_far=with_fields.is_far)
        return open_fields(config, with_fields)
    if kind in _SOURCES:
        if is_url(config.source):
            kind = _far_kind(kind, config)
        source: Source = _class(_SOURCES[kind]).open(config)
        return source
    is_list = kind == "manifest"
    _refuse_other_targets(config, is_list, kind)
    refuse_given(config, ARRAY_OPTIONS, "arrays")
    refuse_given(config, SEQUENCE_OPTIONS, "ragged sequences")
    if config.target in OBJECT_TARGETS:
        if is_list and any(map(is_url, (config.source, config.root or ""))):
            raise ManifestError(
                f"cannot take {config.target} of {one_line(config.source)} with images in a store: download them, or "
                "give a list on a disk and fields, whose images may be objects"
            )
        is_list, kind = False, "objects"
    opened = _class(_IMAGES[kind])
    if not is_list and kind != "arrow":
        refuse_given(config, ("missing_label",), "lists of images")
        if config.label_separator:  # an empty one takes labels whole, wherever they are
            refuse_given(config, ("label_separator",), "lists of images")
    records = opened.open(config, malformed) if is_list else opened.open(config)
    _set_up_stores(config, is_far=records.is_far)
    if malformed is None:  # else the caller reports what is missing
        try:
            check_some_exist(records, config)
        except BaseException:
            records.close()
            raise
    from prefetchd.data.images.views import open_images

    return open_images(config, kind, records)


def _far_kind(kind: str, config: Config) -> str:
    """Return the kind of a source of arrays that are in a store."""
    if f"far_{kind}" not in _SOURCES:
        raise ManifestError(
            f"cannot pack {one_line(shown(config.source))}: sequences in a store are not packed; download them, or "
            "leave pack out"
        )
    return f"far_{kind}"


def _refuse_other_targets(config: Config, is_list: bool, kind: str) -> None:
    """Refuse options of targets other than the one that is served, and annotations that are served without them."""
    refuse_other_targets(config)
    if config.target in OBJECT_TARGETS:
        return
    if not is_list and kind != "arrow":
        refuse_given(config, MASK_OPTIONS, "lists of images")
    if is_list and config.source.lower().endswith(".json"):
        from prefetchd.data.table.coco import is_coco

        if is_coco(os.path.expanduser(config.source)):
            raise ManifestError(
                f"cannot take labels from {one_line(config.source)}: it has COCO annotations, and an image has several "
                'objects; give target="boxes" or target="keypoints"'
            )


def attach_source(config: Config, handle: dict[str, Any], fds: list[int]) -> Source:
    """Return, in a reader, the source that the daemon opened; owns `fds`."""
    kind = handle["kind"]
    source: Source
    if kind == "mix":
        from prefetchd.data.mix.opener import attach_mix

        return attach_mix(config, handle, fds, attach_source)
    _set_up_stores(config, is_far=False)
    if kind in _SOURCES:
        source = _class(_SOURCES[kind]).attach(config, handle, fds)
        return source
    at = len(fds) - handle["n_cache_fds"]
    records: Records = _class(_IMAGES[kind]).attach(handle["records"], fds[:at])
    _set_up_stores(config, is_far=records.is_far)
    images = _class(_attached(config, handle))
    source = images.attach(config, handle, records, fds[at:])
    return source


def attach_records(config: Config, handle: dict[str, Any], fds: list[int]) -> Records:
    """Return the records of a source of images, without what decodes them; owns `fds`."""
    _set_up_stores(config, is_far=False)
    at = len(fds) - handle["n_cache_fds"]
    for fd in fds[at:]:
        os.close(fd)
    records: Records = _class(_IMAGES[handle["kind"]]).attach(handle["records"], fds[:at])
    _set_up_stores(config, is_far=records.is_far)
    return records


def _set_up_stores(config: Config, *, is_far: bool) -> None:
    """Prepare this process for reading objects, if it will."""
    named = (config.source, config.root, config.index)
    if is_far or any(each is not None and is_url(each) for each in named):
        from prefetchd.data.stores.client import set_up

        set_up(config)


def attach_index(config: Config, handle: dict[str, Any], fds: list[int]) -> Source:
    """Return a source of images that another process opened, without what reads and decodes; owns `fds`.

    Raises:
        ConfigError: if it is of another kind.
    """
    if handle["kind"] == "mix":
        from prefetchd.data.mix.opener import attach_mix

        return attach_mix(config, handle, fds, attach_index)
    if handle["kind"] not in _IMAGES:
        raise ConfigError("cannot attach to it: it is no source of images")
    records: Records = _class(_IMAGES[handle["kind"]]).attach(handle["records"], fds)
    source: Source = _class(_attached(config, handle))(config, handle["kind"], records, handle["decoder"])
    return source


def _attached(config: Config, handle: dict[str, Any]) -> tuple[str, str]:
    """Return module and class of the source of images, with this handle."""
    if "is_inspected" in handle:
        return _INSPECTED_FIELDS if config.fields else _INSPECTED
    if config.encoded_bytes is not None:
        return _ENCODED
    return _FIELDS if config.fields else _VIEWS if config.views else _SERVED


def _class(home: tuple[str, str]) -> Any:
    module, name = home
    with LoadingModules():
        return getattr(importlib.import_module(module), name)
