"""`TableRecords`: the samples of a table of columns (`prefetchd.columns`) by random access.

A sample is a row. Its image is a file whose path a column has, encoded bytes in a column, or a piece of an Arrow file.
The daemon makes the records (`memory`, `arrow_files`); readers attach to the columns: no copy, no second pass.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Self

from prefetchd.columns.store import Column, Columns
from prefetchd.config.options import Config
from prefetchd.data.faults import UnreadableFile
from prefetchd.data.named_files import NamedFiles, absolute_root, has_urls, pins_for
from prefetchd.data.records import Label, Sample, shown_path
from prefetchd.data.shards import STORE_BYTES
from prefetchd.data.stores.urls import is_url
from prefetchd.data.table.choose import choose_columns
from prefetchd.data.table.files import IndexedFiles
from prefetchd.data.table.labels import TableLabels, check_present, make_labels
from prefetchd.errors import ConfigError, ManifestError
from prefetchd.ipc.descriptors import memfd_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.data.files import FileBuffer
    from prefetchd.data.source import ReserveMemory


class TableRecords:
    """The rows of a table; see `Records`. Owns the columns.

    `line` of a sample is its row, from 1. Its place is empty for a file of its own, (row,) for bytes in the table, and
    (file, offset, length) for a piece of an Arrow file.
    """

    def __init__(self, facts: dict[str, Any], columns: Columns, labels: Columns | None, pins_fd: int = -1) -> None:
        """Take over columns and descriptor; `facts` are those of `handle()`. Use `make` or `attach`."""
        self.name: str = facts["name"]
        self.digest: str = facts["digest"]
        self.label_shape: tuple[int, ...] = tuple(facts["label_shape"])
        self.label_dtype: str = facts["label_dtype"]
        self._facts = facts
        self._columns = columns
        self._labels = labels
        self._kind: str = facts["label_kind"]
        self._label: Column | None = None
        if facts["label"]:
            self._label = (columns if labels is None else labels)[facts["label"]]
        self._holder = os.fsdecode(facts["holder"])
        self._named = NamedFiles(os.fsdecode(facts["root"]), pins_fd)
        x = facts["x"]
        images = columns.attributes.get("images", {}).get(x, {})
        self._bytes = columns.get(images.get("bytes", x if _holds(columns, x, "bytes") else ""))
        self._places = columns.get(images.get("place", ""))
        self._paths = columns.get(images.get("path", x if _holds(columns, x, "strings") else ""))
        self._files = IndexedFiles(columns.attributes.get("files", []), self.name)

    @classmethod
    def make(cls, columns: Columns, config: Config, name: str, holder: str | None = None) -> Self:
        """Return the records of a table, checked; owns `columns` from here on, also after an error.

        Args:
            columns: the table.
            config: the options; `root` is where relative paths start.
            name: what errors call it.
            holder: the path of the file that encoded bytes of the table were copied from, if there is one.

        Raises:
            ManifestError: if columns are ambiguous, or a row has no image or no label.
            ConfigError: if they cannot be cached.
        """
        labels: TableLabels | None = None
        try:
            x, y = choose_columns(columns, config, name)
            labels = make_labels(columns, y, config, name)
            facts = {
                "name": name,
                "digest": "",
                "x": x,
                "holder": os.fsencode(name if holder is None else holder),
                "root": os.fsencode(absolute_root(config.root or ".")),
                "label": labels.column,
                "label_kind": labels.kind,
                "label_shape": list(labels.shape),
                "label_dtype": labels.dtype,
            }
            records = cls(facts, columns, labels.table)
            records._find_objects()
            digest = blake2b(digest_size=8)
            records._check_images(digest)
            if config.cache is not None and records._bytes is not None:
                raise ConfigError(
                    f"cannot cache {name}: its images are in memory, and in no file whose changes a cache could see; "
                    "leave cache out"
                )
            meaning = [labels.kind, labels.shape, labels.dtype, labels.classes, labels.digest]
            digest.update(json.dumps(meaning).encode())
        except BaseException:
            columns.close()
            if labels is not None and labels.table is not None:
                labels.table.close()
            raise
        records.digest = facts["digest"] = digest.hexdigest()
        return records

    @classmethod
    def attach(cls, handle: dict[str, Any], fds: list[int]) -> Self:
        """Return the records that `handle()` described, in another process; it owns `fds` from here on."""
        n_tables = len(handle["tables"])
        tables = [Columns.attach(*each) for each in zip(handle["tables"], fds[:n_tables], strict=True)]
        return cls(handle["facts"], tables[0], tables[1] if n_tables > 1 else None, *fds[n_tables:])

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Plain values and descriptors from which a reader attaches."""
        tables = [each.handle() for each in (self._columns, self._labels) if each is not None]
        fds = [*(fd for _, fd in tables), *self._named.fds]
        return {"facts": self._facts, "tables": [table for table, _ in tables]}, fds

    def _find_objects(self) -> None:
        """Find out whether some of the paths are URLs, and note their identities from now on."""
        root = os.fsdecode(self._facts["root"])
        named = [] if self._paths is None else [self._paths]
        if self._kind == "path" and self._label is not None:
            named.append(self._label)
        is_far = bool(named) and (is_url(root) or any(map(has_urls, named)))
        self._named = NamedFiles(root, pins_for(2 * len(self), is_far=is_far))

    def _check_images(self, digest: blake2b) -> None:
        """Raise `ManifestError` unless each row has an image; let `digest` follow which images they are."""
        x, encoded = self._facts["x"], self._places if self._places is not None else self._bytes
        if encoded is None and self._paths is None:
            raise ManifestError(
                f"cannot take images from the column {x!r} of {self.name}: it holds "
                f"{self._columns[x].layout.dtype} numbers; give the column of paths or encoded images as "
                "x_column, or decoded images as arrays (x, y)"
            )
        if encoded is None:
            assert self._paths is not None
            check_present(self._paths, "path", self.name)
            digest.update(self._paths.layout.digest.encode())
            return
        missing = encoded.missing
        if missing is not None and self._paths is not None:
            missing = missing & (self._paths.lengths == 0)
        if missing is not None and missing.any():
            raise ManifestError(
                f"cannot use row {int(missing.argmax())} of {self.name}: there is no image in the column {x!r}; take "
                "the row out"
            )
        if encoded is self._places:  # not where the files lie, nor how a library wrote them
            digest.update(encoded.values[:, 2].tobytes())
            self._files.check_all()
        else:
            digest.update(encoded.layout.digest.encode())
        if self._paths is not None:
            digest.update(self._paths.layout.digest.encode())

    def close(self) -> None:
        """Close the descriptors; may be called twice."""
        self._files.close()
        self._named.close()
        self._columns.close()
        if self._labels is not None:
            self._labels.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._columns.n_rows

    def __repr__(self) -> str:
        return f"<TableRecords {self.name}: {len(self)} samples, {self.label_dtype} labels {self.label_shape}>"

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names: sorted where labels were text, or as the table's own description numbers them."""
        if self._labels is not None:
            names = self._labels.attributes.get("classes")
        else:
            names = self._columns.attributes.get("classes", {}).get(self._facts["label"])
        return None if names is None or self._kind not in ("number", "class", "classes") else tuple(names)

    @property
    def columns(self) -> Columns:
        """The table; it stays these records'."""
        return self._columns

    @property
    def lists_files(self) -> bool:
        """Whether each sample is a file of its own."""
        return self._places is None and self._bytes is None

    @property
    def shared_bytes(self) -> int:
        """The columns, and the identities of objects."""
        tables = sum(each.n_bytes for each in (self._columns, self._labels) if each is not None)
        return tables + sum(map(memfd_bytes, self._named.fds))

    @property
    def reader_bytes(self) -> int:
        """For objects the store's library; readers share the columns."""
        return STORE_BYTES if self.is_far else 0

    @property
    def is_far(self) -> bool:
        """Whether some of them are objects."""
        return self._named.is_far

    @property
    def reads_apart(self) -> bool:
        """Whether no Arrow files are kept open in the order of their use."""
        return self._places is None

    def label_values(self) -> NDArray[Any] | None:
        """Return the labels, (samples,) numbers; `None` where a sample has none, several or a path."""
        if self._label is None or self._kind in ("path", "classes") or self.label_shape:
            return None
        return self._label.values.reshape(len(self))

    def path_column(self) -> Column | None:
        """Return the column of the paths, or `None`."""
        return self._paths

    def samples(self, sample_ids: Iterable[int]) -> list[Sample]:
        """Return the samples of these numbers, in that order; see `Records.samples`."""
        return [self._sample(int(sample_id)) for sample_id in sample_ids]

    def _sample(self, row: int) -> Sample:
        label = self._label_of(row)
        if self._places is not None and not self._places.is_missing(row):
            place = tuple(self._places[row].tolist())
            return Sample(self._files.path(place[0]), label, row + 1, place)
        if self._bytes is not None and not self._bytes.is_missing(row):
            if not 0 <= row < len(self):
                raise IndexError(f"row {row} of {len(self)} in {self.name}")
            return Sample(self._holder, label, row + 1, (row,))
        assert self._paths is not None
        return Sample(self._named.path(self._paths[row]), label, row + 1, pin=row if self.is_far else -1)

    def _label_of(self, row: int) -> Label:
        if self._label is None:
            return None
        value = self._label[row]
        if self._kind == "path":
            return self._named.path(value)
        if self._kind == "classes":
            vector = [0] * self.label_shape[0]
            for number in value.tolist():
                vector[number] = 1
            return tuple(vector)
        if self.label_shape:
            return tuple(value.tolist())
        value = value.item() if hasattr(value, "item") else value  # a vector of one number
        return float(value) if self.label_dtype == "float32" else int(value)

    def read(self, sample: Sample, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
        """Return the encoded bytes of a sample; see `Records.read`. Bytes in the table are a view of it."""
        if not sample.place:
            return self._named.read(sample.path, sample.pin, buffer, reserve)
        if len(sample.place) == 1:
            assert self._bytes is not None
            found: memoryview = self._bytes[sample.place[0]]
            if not found:
                raise UnreadableFile("the image is empty (0 bytes)")
            return found
        file, offset, n_bytes = sample.place
        return self._files.read(file, offset, n_bytes, buffer, reserve)

    def read_label(self, sample: Sample, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
        """Return the bytes of the file that is the sample's label, such as a mask; as `read`."""
        return self._named.read(str(sample.label), len(self) + sample.line - 1, buffer, reserve)

    def object_state(self, sample: Sample, ask: bool) -> bytes | None:
        """Return the state of an object; see `Records.object_state`."""
        return self._named.state(sample.path, sample.pin, ask)

    def where(self, sample: Sample) -> str:
        """Return the table's name, the row from 0, and the path of a file of its own."""
        row = f"{self.name} row {sample.line - 1}"
        if sample.place:
            return row
        return f"{row}: {shown_path(sample.path)}"

    def check_unchanged(self) -> None:
        """Raise `ManifestError` if an Arrow file is not what it was; each call checks some of many."""
        self._files.check_unchanged()


def _holds(columns: Columns, name: str, kind: str) -> bool:
    return name in columns and columns[name].layout.kind == kind
