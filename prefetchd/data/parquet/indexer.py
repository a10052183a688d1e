"""Indexing Parquet files at open: the column of images or of their paths, the labels, and the place of each row.

`ParquetRecords.open` calls it once, in the daemon. The label and path columns are read row group by row group, so that
memory does not grow with the files. A column of encoded images is not read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from prefetchd.config.options import Config
from prefetchd.data.files import check_complete, identity_of, write_all
from prefetchd.data.labels import PATH_NAMES, BadLabel, Labels, Numbers, find_label
from prefetchd.data.named_files import absolute_root, whole_path
from prefetchd.data.parquet.library import load_pyarrow, refusal
from prefetchd.data.record_index import IndexWriter
from prefetchd.data.stores.urls import file_name, is_url, parent
from prefetchd.errors import ManifestError, one_line
from prefetchd.ipc.descriptors import memfd

_IMAGE_COLUMNS = (
    "image", "img", "images", "jpg", "jpeg", "png", "bytes", "image_bytes", "image_data", "content", "data",
)  # fmt: skip
_PANDAS_INDEX = "__index_level_"  # how pandas names an index in Parquet
_ROWS = 8192


class ParquetIndexer:
    """The state of the pass over all files; `run` fills an `IndexWriter`.

    A row's numbers are (file, row group, row in the group) for images in the column, and (file, row in the file, where
    the path is, its length) for paths.

    Attributes:
        writer: the index.
        paths_fd: a memfd with all paths, one after the other.
        labels: what the labels are.
        digest: of the labels, the paths or the row groups' sizes, in order; not of where the files lie.
        identities: of each file, as `identity` makes it.
        is_bytes: whether the column has encoded images, and not paths.
        any_url: whether some path is the URL of an object.
        is_dictionary: whether its Arrow type is a dictionary, so that pyarrow decodes all of it at once.
        column: the leaf of it that is read, by its dotted name.
        largest_bytes: of the image column in one row group, decompressed and as stored.
        classes: names from the file's own description of its labels (as Hugging Face writes it).
    """

    def __init__(self, config: Config, name: str) -> None:
        if config.label_columns not in (None, 0):
            raise ManifestError(
                f"cannot take label_columns={config.label_columns} from {name}: columns have no order; "
                "name the label columns with y_column, or give label_columns=0 for no labels"
            )
        self.labels = Labels(name, whole=config.label_separator == "")
        self.digest = hashlib.blake2b(digest_size=8)
        self.identities: list[list[Any]] = []
        self.largest_bytes = (0, 0)
        self.classes: list[str] | None = None
        self.is_bytes = self.is_dictionary = False
        self.column = ""
        self._label_columns: list[str] = []
        self._config = config
        self._name = name
        self._paths_bytes = 0
        self.any_url = False
        self.writer = IndexWriter(0, self.labels)
        self.paths_fd = memfd("prefetchd-record-paths")

    def run(self, paths: list[str]) -> None:
        """Index the files at `paths`.

        Raises:
            ManifestError: if a file cannot be read, or a row does not fit.
        """
        _, parquet = load_pyarrow()
        for number, (path, opened) in enumerate(zip(paths, self._opened(parquet, paths), strict=True)):
            with opened as (file, before):
                if number == 0:
                    self._find_columns(file.schema_arrow, file.metadata)
                    self.writer.n_numbers = 3 if self.is_bytes else 4
                else:
                    self._check_columns(file.schema_arrow, path)
                self._file(number, path, file)
            self.identities.append(before)
        if not self.writer.samples:
            raise ManifestError(f"cannot serve {self._name}: it has no rows; write a row for each sample")
        self.digest.update(repr((self.is_bytes, self.labels.kind, list(self.labels.names), self.classes)).encode())

    def _opened(self, parquet: Any, paths: list[str]) -> Iterator[AbstractContextManager[tuple[Any, list[Any]]]]:
        """Yield each file, to be opened; the first says which columns are read of the others."""
        if paths[0].startswith("/"):
            yield from (open_file(parquet, path) for path in paths)
            return
        from prefetchd.data.parquet.far_files import open_far, open_far_together

        with open_far(parquet, paths[0], ()) as (first, _):
            self._find_columns(first.schema_arrow, first.metadata)
        columns = [*self._label_columns, *([] if self.is_bytes else [self.column])]
        yield from open_far_together(parquet, paths, columns)

    def _check_columns(self, schema: Any, path: str) -> None:
        """Raise `ManifestError` if a further file lacks a column, or has paths for images or images for paths."""
        for column in (self.column, *self._label_columns):
            kind = self._type_of(schema, column, "", path)
            if column == self.column and is_bytes(kind) != self.is_bytes:
                first = "encoded images" if self.is_bytes else "paths"
                what = f"{file_name(path)} has {kind} in the column {column!r}, and the first file {first}"
                raise refusal(self._name, what)

    def close(self) -> None:
        """Close the descriptors."""
        self.writer.close()
        os.close(self.paths_fd)

    def _find_columns(self, schema: Any, metadata: Any) -> None:
        import pyarrow as pa

        config = self._config
        found = config.x_column or self._image_column(schema)
        kind = self._type_of(schema, found, "x_column")
        if pa.types.is_struct(kind):  # as Hugging Face stores images: struct<bytes: binary, path: string>
            inner = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
            embedded = "bytes" in inner and not ("path" in inner and _is_null(metadata, f"{found}.bytes"))
            part = "bytes" if embedded else "path"
            if part not in inner:
                raise refusal(self._name, f"column {found!r} is a {kind} without bytes or path")
            found, kind = f"{found}.{part}", inner[part]
        self.column = found
        self.is_bytes, self.is_dictionary = is_bytes(kind), pa.types.is_dictionary(kind)
        if not self.is_bytes and not is_text(pa, kind):
            raise refusal(self._name, f"column {found!r} holds {kind}, neither encoded images nor paths")
        if config.label_columns == 0:
            return
        if config.y_column is not None:
            self._label_columns = [part.strip() for part in config.y_column.split(",") if part.strip()]
        else:
            others = [
                column
                for column in schema.names
                if column not in (found, found.split(".")[0]) and not column.startswith(_PANDAS_INDEX)
            ]
            label = find_label(others, self._name)
            self._label_columns = [] if label is None else [label]
        for column in self._label_columns:
            self._type_of(schema, column, "y_column")
        if len(self._label_columns) == 1:
            self.classes = _class_names(schema, self._label_columns[0])

    def _image_column(self, schema: Any) -> str:
        import pyarrow as pa

        usable = []
        for field in schema:
            kind = field.type
            if is_bytes(kind) or is_text(pa, kind) or pa.types.is_struct(kind):
                usable.append(field.name)
        for name in (*_IMAGE_COLUMNS, *PATH_NAMES):
            if name in usable:
                return name
        raise refusal(
            self._name,
            f"none of its columns ({', '.join(schema.names[:20])}) has a name that images have",
            "give x_column",
        )

    def _type_of(self, schema: Any, column: str, option: str, name: str = "") -> Any:
        first, *rest = column.split(".") if column not in schema.names else [column]
        try:
            kind = schema.field(first).type
            for part in rest:
                kind = kind.field(part).type
        except (KeyError, AttributeError, ValueError):
            if schema.names.count(first) > 1:
                raise refusal(name or self._name, f"it has two columns called {first!r}", "rename one") from None
            listed = ", ".join(f"{field.name} ({field.type})" for field in list(schema)[:20])
            raise ManifestError(
                f"cannot find the column {option and f'{option}='}{column!r} in {name or self._name}: it has {listed}; "
                "give one of them"
            ) from None
        return kind

    def _file(self, number: int, path: str, file: Any) -> None:
        name = file_name(path)
        folder = absolute_root(parent(path) if self._config.root is None else self._config.root)
        columns = [*self._label_columns, *([] if self.is_bytes else [self.column])]
        first_row = 0
        for group in range(file.num_row_groups):
            described = file.metadata.row_group(group)
            if self.is_bytes:
                self._measure(described, name)
            in_group = 0
            for batch in _batches(file, group, columns, described.num_rows, self._name, name):
                n_rows = batch if isinstance(batch, int) else batch.num_rows
                labels = self._labels_of(batch, n_rows, f"{name} row", first_row + in_group)
                rows: list[tuple[int, ...]]
                if self.is_bytes:
                    rows = [(number, group, in_group + row) for row in range(n_rows)]
                else:
                    rows = self._path_rows(batch, number, first_row + in_group, name, folder)
                self.writer.add(rows, labels)
                in_group += n_rows
            first_row += described.num_rows

    def _measure(self, described: Any, name: str) -> None:
        """Learn how large the image column is in a row group."""
        for place in range(described.num_columns):
            column = described.column(place)
            if column.path_in_schema == self.column:
                sizes = column.total_uncompressed_size, column.total_compressed_size
                self.digest.update(b"group %d %d\n" % (described.num_rows, sizes[0]))
                self.largest_bytes = max(self.largest_bytes, sizes)
                return
        raise refusal(self._name, f"{name} has no column {self.column!r}")

    def _path_rows(self, batch: Any, number: int, first: int, name: str, folder: str) -> list[tuple[int, ...]]:
        rows: list[tuple[int, ...]] = []
        content = bytearray()
        for row, value in enumerate(column_of(batch, self.column)):
            if not value:
                raise refusal(self._name, f"{name} row {first + row} has no path")
            path = os.fsencode(whole_path(folder, value))
            self.any_url |= path[:1] != b"/"
            self.digest.update(value.encode("utf-8", "surrogateescape") + b"\0")
            rows.append((number, first + row, self._paths_bytes + len(content), len(path)))
            content += path
        write_all(self.paths_fd, content)
        self._paths_bytes += len(content)
        return rows

    def _labels_of(self, batch: Any, n_rows: int, where: str, first: int) -> list[Numbers]:
        if not self._label_columns:
            return [()] * n_rows
        values = [column_of(batch, column) for column in self._label_columns]
        found = []
        for row, label in enumerate(zip(*values, strict=True)):
            try:
                found.append(self.labels.take(list(label)))
            except BadLabel as bad:
                raise refusal(self._name, f"{where} {first + row}: {bad}") from None
        self.digest.update(repr(found).encode())
        return found


def _is_null(metadata: Any, column: str) -> bool:
    """Return whether a file's statistics say that all values of a column are null."""
    for group in range(metadata.num_row_groups):
        described = metadata.row_group(group)
        columns = [described.column(place) for place in range(described.num_columns)]
        statistics = next((one.statistics for one in columns if one.path_in_schema == column), None)
        if statistics is None or statistics.null_count != described.num_rows:
            return False
    return bool(metadata.num_rows)


def is_bytes(kind: Any) -> bool:
    """Return whether an Arrow type holds encoded images, and not paths."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_text(pa: Any, kind: Any) -> bool:
    """Return whether an Arrow type is text, or a dictionary of it (a pandas category)."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def column_of(batch: Any, column: str) -> list[Any]:
    """Return the values of a column, of a nested one by its dotted name."""
    if column in batch.schema.names:
        return batch.column(column).to_pylist()  # type: ignore[no-any-return]
    first, *rest = column.split(".")
    values = batch.column(first).to_pylist()
    for part in rest:
        values = [value.get(part) if isinstance(value, dict) else None for value in values]
    return values  # type: ignore[no-any-return]


@contextlib.contextmanager
def open_file(parquet: Any, path: str, columns: Sequence[str] = ()) -> Iterator[tuple[Any, list[Any]]]:
    """Open a Parquet file or object for the time of a block; give it and its identity.

    Args:
        parquet: the module.
        path: of it, or URL.
        columns: what will be read of an object.

    Raises:
        ManifestError: if it is damaged.
    """
    if is_url(path):
        from prefetchd.data.parquet.far_files import open_far

        with open_far(parquet, path, columns) as opened:
            yield opened
        return
    before = identity_of(path)
    try:
        file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16)
    except (OSError, ValueError) as error:  # pyarrow's errors are among them
        raise refusal(one_line(path), " ".join(str(error).split())[:300], "write the file again") from None
    with file:
        yield file, before
    check_complete(path, before, one_line(path))


def _batches(file: Any, group: int, columns: list[str], n_rows: int, name: str, file_name: str) -> Iterator[Any]:
    """Yield the batches of `columns` in a row group; numbers of rows where no column is needed."""
    if not columns:
        for first in range(0, n_rows, _ROWS):
            yield min(_ROWS, n_rows - first)
        return
    try:
        yield from file.iter_batches(_ROWS, row_groups=[group], columns=columns, use_threads=False)
    except (OSError, ValueError, KeyError) as error:
        what = " ".join(str(error).split())[:300]
        raise refusal(name, f"{file_name} row group {group}: {what}", "write the file again") from None


def _class_names(schema: Any, column: str) -> list[str] | None:
    """Return the names that Hugging Face's `datasets` describes a label column with."""
    try:
        described = json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]
        names = described["names"]
        return names if all(isinstance(name, str) for name in names) else None
    except (KeyError, TypeError, ValueError):
        return None
