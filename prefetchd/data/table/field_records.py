"""Records of samples with fields: the rows of a column store, read from any kind of source.

An opener (`csv`, `jsonl`, `pairs`, ...) makes the table in the daemon, or a trainer sent it. Readers attach to it: a
sample's values are read from the map, without a line to parse. Encoded bytes are in a column, in a file of their own,
or a piece of a larger file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from prefetchd.columns.store import Column, Columns
from prefetchd.config.fields import parse_fields
from prefetchd.data.faults import UnreadableFile
from prefetchd.data.files import check_unchanged, identity_of
from prefetchd.data.kinds import refuse_given
from prefetchd.data.named_files import NamedFiles, has_urls, pins_for
from prefetchd.data.records import FieldFacts, Sample, shown_path
from prefetchd.data.shards import STORE_BYTES
from prefetchd.data.stores.urls import file_name, is_url, with_suffix
from prefetchd.data.table.binding import Binding, bind, binding_from_wire
from prefetchd.data.table.bound_objects import check_box_format
from prefetchd.data.table.files import IndexedFiles
from prefetchd.errors import ManifestError, one_line
from prefetchd.ipc.descriptors import memfd_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config
    from prefetchd.data.files import FileBuffer
    from prefetchd.data.parquet.records import ParquetRecords
    from prefetchd.data.source import ReserveMemory


class FieldRecords:
    """The samples of a table; see `RecordsWithFields`. Owns the table's descriptors.

    Args:
        facts: plain values that do not change: `name`, `root`, `line` (of row 0 in a list, 0 for none), `files` (path
            and identity of what the table was read from), `digest`.
        bindings: where the values of each field are.
        columns: the table.
        made: the table of values that were made from it.
        images: records that have encoded images of the same rows, by their column; owned.
        pins_fd: descriptor, owned, of the identities of the objects that fields name; -1 without any.
    """

    def __init__(
        self,
        facts: dict[str, Any],
        bindings: Sequence[Binding],
        columns: Columns,
        made: Columns | None,
        images: Mapping[str, ParquetRecords],
        pins_fd: int = -1,
    ) -> None:
        self._facts = facts
        self._bindings = bindings
        self._columns = columns
        self._made = made
        self._named = NamedFiles(facts["root"], pins_fd)
        self.name: str = facts["name"]
        self.digest: str = facts["digest"]
        self._pieces = IndexedFiles(columns.attributes.get("files", []), self.name)
        self._images = images
        n_files = itertools.accumulate((binding.facts.holds == "files" for binding in bindings), initial=0)
        self._first_pins = [number * columns.n_rows for number in n_files]  # of each field's objects
        self._values = [(self._column(binding), binding.suffix, binding.facts.holds == "files") for binding in bindings]
        checks: dict[str, str] = columns.attributes.get("checks", {})
        self._checks = {column: columns[other] for column, other in checks.items()}
        self._kinds: list[str] = facts["kinds"]
        self._primary = self._kinds.index("image") if "image" in self._kinds else None

    def _column(self, binding: Binding) -> Column | ParquetRecords:
        """Return what has the values of a field."""
        if binding.column in self._images:
            return self._images[binding.column]
        if self._made is not None and binding.column in self._made:
            return self._made[binding.column]
        return self._columns[binding.column]

    @classmethod
    def open(
        cls,
        config: Config,
        columns: Columns,
        *,
        root: str,
        line: int = 0,
        files: Sequence[str] = (),
        images: Mapping[str, ParquetRecords] = MappingProxyType({}),
        words: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> Self:
        """Return, in the daemon, the records of a table that an opener made; they own it.

        Args:
            config: names the fields.
            columns: the table.
            root: the folder or prefix that paths start from.
            line: the line of the first row in a list whose rows follow one another; 0 for none.
            files: what the table was read from, which must not change.
            images: records that have encoded images of the same rows, by their column; owned, too.
            words: the identities of the objects of a column, where they are known, as `stores.pins` has them.

        Raises:
            ConfigError: if a column does not exist, or does not suit its field.
            ManifestError: if there are no samples, or a value is missing.
        """
        name = one_line(config.source)
        try:
            if not columns.n_rows:
                raise ManifestError(f"cannot serve {name}: it has no samples; give a list with a row for each")
            fields = parse_fields(config.fields)
            if "box_format" not in columns.attributes:
                refuse_given(config, ("crowds",), "COCO files")
            bindings, made = bind(fields, columns, name, images)
            for binding, field in zip(bindings, fields.values(), strict=False):
                if field.kind == "boxes":
                    check_box_format(field, config.source_box_format, binding, columns, name)
        except BaseException:
            columns.close()
            for each in images.values():
                each.close()
            raise
        digests = [binding.digest(columns, made) for binding in bindings]
        digests += [each.digest for each in images.values()]
        facts = {
            "name": name,
            "root": root,
            "line": line,
            "files": [[path, identity_of(path)] for path in files if not is_url(path)],  # those were read whole
            "digest": blake2b(repr(digests).encode(), digest_size=8).hexdigest(),
            "kinds": [field.kind for field in fields.values()],
        }
        named = [binding for binding in bindings if binding.facts.holds == "files"]
        is_far = bool(named) and (is_url(root) or any(has_urls(columns[name]) for name in {b.column for b in named}))
        known: list[int] = []
        if words:
            unknown = [0] * columns.n_rows
            for binding in named:
                known += unknown if binding.suffix else words.get(binding.column, unknown)
        pins_fd = pins_for(len(named) * columns.n_rows, known, is_far=is_far)
        return cls(facts, bindings, columns, made, images, pins_fd)

    @classmethod
    def attach(cls, handle: dict[str, Any], fds: list[int]) -> Self:
        """Return the records that `handle()` described, in another process; they own `fds` from here on."""
        bindings = [binding_from_wire(wire) for wire in handle["bindings"]]
        fds = list(fds)
        tables = [Columns.attach(description, fds.pop(0)) for description in handle["tables"]]
        images = {}
        if handle["images"]:
            from prefetchd.data.parquet.records import ParquetRecords

            for column, described, n_fds in handle["images"]:
                images[column] = ParquetRecords.attach(described, [fds.pop(0) for _ in range(n_fds)])
        pins_fd = fds.pop(0) if fds else -1
        return cls(handle["facts"], bindings, tables[0], tables[1] if len(tables) > 1 else None, images, pins_fd)

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Plain values and descriptors from which a reader attaches."""
        tables = [table.handle() for table in (self._columns, self._made) if table is not None]
        images = [(column, *each.handle()) for column, each in self._images.items()]
        handle = {
            "facts": self._facts,
            "bindings": [binding.to_wire() for binding in self._bindings],
            "tables": [description for description, _ in tables],
            "images": [[column, described, len(fds)] for column, described, fds in images],
        }
        return handle, [*(fd for _, fd in tables), *(fd for _, _, fds in images for fd in fds), *self._named.fds]

    def close(self) -> None:
        """Give the descriptors back."""
        self._pieces.close()
        self._named.close()
        self._columns.close()
        if self._made is not None:
            self._made.close()
        for each in self._images.values():
            each.close()

    @property
    def fields(self) -> tuple[FieldFacts, ...]:
        """What the values of each field are."""
        return tuple(binding.facts for binding in self._bindings[: len(self._kinds)])

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names of the first field that has them."""
        return next((names for each in self._bindings if (names := each.facts.classes) is not None), None)

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Of no use here: each field has its own."""
        return ()

    @property
    def label_dtype(self) -> str:
        """Of no use here: each field has its own."""
        return "int64"

    @property
    def shared_bytes(self) -> int:
        """The tables."""
        tables = self._columns.n_bytes + (0 if self._made is None else self._made.n_bytes)
        tables += sum(map(memfd_bytes, self._named.fds))
        return tables + sum(each.shared_bytes for each in self._images.values())

    @property
    def reader_bytes(self) -> int:
        """What records of images take: readers share the table."""
        has_objects = self._pieces.is_far or self._named.is_far
        return sum(each.reader_bytes for each in self._images.values()) + (STORE_BYTES if has_objects else 0)

    @property
    def is_far(self) -> bool:
        """Whether some of what is read are objects, or pieces of them."""
        return self._pieces.is_far or self._named.is_far or any(each.is_far for each in self._images.values())

    @property
    def reads_apart(self) -> bool:
        """Whether no larger files are kept open in the order of their use."""
        return self.is_far or not any(binding.facts.holds == "members" for binding in self._bindings)

    def __len__(self) -> int:
        return self._columns.n_rows

    @property
    def columns(self) -> Columns:
        """The table; it stays these records'."""
        return self._columns

    def first_label(self) -> Column | None:
        """Return the column of the first field of kind label, numbers; `None` without one."""
        column = self._values[self._kinds.index("label")][0] if "label" in self._kinds else None
        return column if isinstance(column, Column) else None

    def first_label_classes(self) -> tuple[str, ...] | None:
        """Return the class names of the first field of kind label, in the daemon; `None` if it has numbers."""
        return self._bindings[self._kinds.index("label")].facts.classes if "label" in self._kinds else None

    def path_column(self) -> Column | None:
        """Return the column of the paths of the first image, or `None`."""
        column = None if self._primary is None else self._values[self._primary][0]
        return column if isinstance(column, Column) and column.layout.kind == "strings" else None

    def places(self) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]] | None:
        """Return the names of the shards, and the shard of each sample and the place of its first image there.

        Without an image in them it is the first field that is; `None` if none is. See `ShardRecords.places`.
        """
        for number in sorted(range(len(self._values)), key=lambda number: number != self._primary):
            column = self._values[number][0]
            if not isinstance(column, Column):
                return column.file_names(), *column.places()
            if self._bindings[number].facts.holds == "members" and column.layout.shape == (3,):
                names = [file_name(path) for path, *_ in self._columns.attributes["files"]]
                return names, column.values[:, 0], column.values[:, 1]
        return None

    def samples(self, sample_ids: Iterable[int]) -> list[Sample]:
        """Return the samples of these rows."""
        return [self._sample(int(sample_id)) for sample_id in sample_ids]

    def _sample(self, row: int) -> Sample:
        values = []
        for column, suffix, is_file in self._values:
            value: Any = column[row] if isinstance(column, Column) else column.samples([row])[0]
            if is_file:
                value = self._named.path(value)
                if suffix:
                    value = with_suffix(value, suffix)
            values.append(value)
        path = values[self._primary] if self._primary is not None else ""
        path = path if isinstance(path, str) else ""
        line = self._facts["line"] and self._facts["line"] + row
        pin = -1 if self._primary is None else self._pin(row, self._primary)
        return Sample(path, None, line, (row,), tuple(values), pin)

    def _pin(self, row: int, number: int) -> int:
        """Return where the identity of a field's object is."""
        return self._first_pins[number] + row if self._named.is_far else -1

    def read(self, sample: Sample, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
        """Return the bytes of the first image."""
        return self.fetch(sample, self._primary or 0, buffer, reserve)

    def part(self, sample: Sample, number: int) -> Sample:
        """Return a field's image as a sample of its own; see `RecordsWithFields.part`."""
        value = sample.values[number]
        if isinstance(value, Sample):
            return value._replace(label=None)
        if isinstance(value, str):
            return Sample(value, None, pin=self._pin(sample.place[0], number))
        file, offset, n_bytes = value.tolist()
        return Sample(self._pieces.path(file), None, place=(offset, n_bytes))

    def fetch(self, sample: Sample, number: int, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
        """Return the encoded bytes of a field; see `RecordsWithFields.fetch`."""
        value = sample.values[number]
        if isinstance(value, str):
            return self._named.read(value, self._pin(sample.place[0], number), buffer, reserve)
        if isinstance(value, Sample):
            return self._images[self._bindings[number].column].read(value, buffer, reserve)
        if isinstance(value, memoryview):
            if not value:
                raise UnreadableFile("it is empty (0 bytes)")
            return value
        file, offset, n_bytes = value.tolist()
        checks = self._checks.get(self._bindings[number].column)
        if checks is None:
            return self._pieces.read(file, offset, n_bytes, buffer, reserve)
        from prefetchd.data.tar.member_check import read_member

        blocks, check = checks[sample.place[0]].tolist()
        return read_member(self._pieces, (file, offset, n_bytes), blocks, check, buffer, reserve, "it")

    def object_state(self, sample: Sample, ask: bool) -> bytes | None:
        """Return the state of a part's object, or of the one that it is in; see `Records.object_state`."""
        if sample.pin >= 0:
            return self._named.state(sample.path, sample.pin, ask)
        return self._pieces.state(sample.path)

    def where(self, sample: Sample) -> str:
        """List, line and path: `train.csv line 7: a.jpg`."""
        line = f" line {sample.line}" if sample.line else f" row {sample.place[0]}"
        path = shown_path(sample.path)
        image = sample.values[self._primary] if self._primary is not None else None
        if isinstance(image, np.ndarray):
            path = f"{one_line(file_name(self._pieces.path(int(image[0]))))} at byte {image[1]}"
        return f"{self.name}{line}{path and f': {path}'}"

    def check_unchanged(self) -> None:
        """Raise `ManifestError` if what the table was read from has changed."""
        for path, identity in self._facts["files"]:
            check_unchanged(path, identity, one_line(path))
        self._pieces.check_unchanged()
        for each in self._images.values():
            each.check_unchanged()
