"""What a subset is chosen by: labels, columns, and a hash of each sample's path or key. In the daemon, at open.

Each kind of source has the values at another place. Tables and indexes give whole columns at once; of a list every line
is parsed again, a few microseconds a sample.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.selection import LABEL
from prefetchd.data.arrays.source import MappedSource
from prefetchd.data.images.source import ImageSource
from prefetchd.data.manifest.records import Manifest
from prefetchd.data.mix.source import MixedSource
from prefetchd.data.shards import ShardRecords
from prefetchd.data.table.field_records import FieldRecords
from prefetchd.data.table.object_records import ObjectRecords
from prefetchd.data.table.records import TableRecords
from prefetchd.errors import ConfigError
from prefetchd.sampling.hashes import hash_keys
from prefetchd.sampling.permutation import mix_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.columns.store import Column
    from prefetchd.data.source import Source


def label_values(source: Source, option: str) -> NDArray[Any]:
    """Return the label of each sample, (samples,) int64 or floats.

    Raises:
        ConfigError: if samples have no labels, or other than one number; `option` is what asks for them.
    """
    if isinstance(source, MixedSource):
        return np.concatenate(
            [source.delivered_labels(number, label_values(part, option)) for number, part in enumerate(source.parts)]
        )
    found = _labels(source)
    if found is None or found.ndim != 1 or not np.issubdtype(found.dtype, np.number):
        what = "no labels" if found is None else f"labels of the shape {found.shape[1:]} and dtype {found.dtype}"
        raise ConfigError(
            f"cannot use {option} with labels: samples have {what} here, and it takes one number or class a sample; "
            "leave it out"
        )
    return found


class Labels:
    """The labels of an open data set, made once: `label_values`, which lists take seconds for."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._values: NDArray[Any] | None = None

    def __call__(self, option: str) -> NDArray[Any]:
        """Return the label of each sample; see `label_values`."""
        if self._values is None:
            self._values = label_values(self._source, option)
        return self._values

    def with_key_hashes(self) -> NDArray[np.uint64]:
        """Return the hash of each sample's key, see `key_hashes`; a list's labels are taken in the same pass."""
        records = self._source.records if isinstance(self._source, ImageSource) else None
        both = records.labels_and_path_hashes() if self._values is None and isinstance(records, Manifest) else None
        if both is None:
            return key_hashes(self._source)
        self._values, hashes = both
        return hashes


def _labels(source: Source) -> NDArray[Any] | None:
    if isinstance(source, MappedSource):
        return source.labels()
    assert isinstance(source, ImageSource)
    records = source.records
    if isinstance(records, FieldRecords):
        column = records.first_label()
        if column is None or column.layout.kind == "numbers":
            return None if column is None else column.values
        return column.values.reshape(len(column), -1)  # lists of one length
    if isinstance(records, ObjectRecords):
        return None
    if isinstance(records, TableRecords | ShardRecords | Manifest):
        return records.label_values()
    return None


def class_names(source: Source) -> tuple[str, ...] | None:
    """Return the names of the classes by number, where labels have names: those of `label_values`."""
    if isinstance(source, MixedSource):
        return source.label_classes
    records = source.records if isinstance(source, ImageSource) else None
    return records.first_label_classes() if isinstance(records, FieldRecords) else source.facts.classes


def column_values(source: Source, name: str, option: str) -> Column:
    """Return a named column of the source.

    Raises:
        ConfigError: if it has no such column, or none that has a name.
    """
    records = source.records if isinstance(source, ImageSource) else None
    if not isinstance(records, TableRecords | FieldRecords):
        raise ConfigError(
            f"cannot use {option} with the column {name!r}: of this source only the labels are known by name, "
            f"as {LABEL!r}; give fields= for other columns, or the table in memory (a dict or DataFrame)"
        )
    columns = records.columns
    if name not in columns:
        raise ConfigError(
            f"cannot use {option} with the column {name!r}: the table has {', '.join(map(repr, columns))}; give one of "
            f"them, or {LABEL!r} for the labels"
        )
    return columns[name]


def column_classes(source: Source, name: str) -> tuple[str, ...] | None:
    """Return the names of the classes of a column of numbers, where its text has become numbers, or it has some."""
    records = source.records if isinstance(source, ImageSource) else None
    assert isinstance(records, TableRecords | FieldRecords)
    names = records.columns.attributes.get("classes", {}).get(name)
    return None if names is None else tuple(names)


def texts_are_numbers(source: Source) -> bool:
    """Return whether numbers of the source's columns are text, as in CSV files."""
    records = source.records if isinstance(source, ImageSource) else None
    return isinstance(records, FieldRecords) and bool(records.columns.attributes.get("is_text"))


def key_hashes(source: Source) -> NDArray[np.uint64]:
    """Return a hash of each sample's path or key, (samples,) uint64, which stays as samples are added.

    In a list it is the path as written, in a directory the path below it. In a shard it is the shard's file name and
    the place there. For rows of arrays and tables without paths it is the row's number.
    """
    n = source.facts.n_samples
    if isinstance(source, MixedSource):
        return np.concatenate([key_hashes(part) for part in source.parts])
    if isinstance(source, ImageSource):
        records = source.records
        if isinstance(records, Manifest):
            return _joined(records.path_hashes(), n)
        if isinstance(records, ShardRecords):
            return _place_hashes(records.file_names(), *records.places())
        paths = _path_column(records)
        if paths is not None:
            return _hashed((text.encode("utf-8", "surrogateescape") for text in paths), n)
        in_shards = records.places() if isinstance(records, FieldRecords | ObjectRecords) else None
        if in_shards is not None:
            return _place_hashes(*in_shards)
    return mix_array(np.arange(1, n + 1, dtype=np.uint64))


def _path_column(records: Any) -> Column | None:
    if isinstance(records, TableRecords | FieldRecords | ObjectRecords):
        return records.path_column()
    return None


def _place_hashes(names: Sequence[str], files: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a hash of the name of each sample's file and of its place there."""
    hashes = _hashed(map(os.fsencode, names), len(names))
    return mix_array(hashes[files] + places.astype(np.uint64))


def _hashed(keys: Iterable[bytes], n: int) -> NDArray[np.uint64]:
    return _joined(hash_keys(keys), n)


def _joined(parts: Iterable[NDArray[np.uint64]], n: int) -> NDArray[np.uint64]:
    found = np.empty(n, np.uint64)
    first = 0
    for part in parts:
        found[first : first + len(part)] = part
        first += len(part)
    return found
