"""Indexing packed shards at open: where the image of each sample is, and its label. In the daemon, once a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from prefetchd.config.options import Config
from prefetchd.data.labels import BadLabel, Labels, Numbers, find_label, known_label
from prefetchd.data.packed.index import PackedColumns, PackedShard
from prefetchd.data.packed.shard import IMAGE_ENCODINGS, MAX_VALUE_BYTES, OpenShard, Span, is_readable, opened, value_of
from prefetchd.data.record_index import IndexWriter
from prefetchd.errors import ManifestError, one_line

_ROWS = 4096
_IMAGE_NAMES = ("image", "img", "x", "jpg", "jpeg", "png", "picture", "data", "pixel_values")


class PackedIndexer:
    """The pass over all shards; `run` fills an `IndexWriter`.

    Attributes:
        writer: the index; a row's numbers are (shard, where the image starts, its bytes), in the decompressed shard.
        digest: of samples, their sizes and labels in order; not of where the shards lie.
        identities: of each shard's file.
    """

    def __init__(self, config: Config, columns: PackedColumns, name: str) -> None:
        self._columns = columns
        self._name = name
        self._image = self._image_column(config.x_column)
        self._label_columns = self._find_labels(config)
        self.labels = Labels(name, whole=config.label_separator == "")
        self.digest = hashlib.blake2b(digest_size=8)
        self.identities: list[list[int]] = []
        self.writer = IndexWriter(3, self.labels)

    def run(self, shards: list[PackedShard]) -> None:
        """Index the shards.

        Raises:
            ManifestError: if one cannot be read, or a sample does not fit.
        """
        for number, shard in enumerate(shards):
            with opened(shard, self._columns) as (content, before):
                self._samples(number, one_line(shard.path), content)
            self.identities.append(before)
        self.digest.update(repr((self.labels.kind, self.labels.count, list(self.labels.names))).encode())

    def _samples(self, number: int, shard: str, content: OpenShard) -> None:
        rows: list[tuple[int, int, int]] = []
        labels: list[Numbers] = []
        for sample, spans in enumerate(content.samples((self._image, *self._label_columns))):
            rows.append((number, *spans[self._image]))
            labels.append(self._label(content, spans, f"{shard} sample {sample}"))
            if len(rows) == _ROWS:
                self._add(rows, labels)
        self._add(rows, labels)

    def _add(self, rows: list[tuple[int, int, int]], labels: list[Numbers]) -> None:
        self.writer.add(rows, labels)
        self.digest.update(repr((rows, labels)).encode())
        rows.clear()
        labels.clear()

    def _label(self, content: OpenShard, spans: Sequence[Span], where: str) -> Numbers:
        values = []
        try:
            for column in self._label_columns:
                at, n_bytes = spans[column]
                if n_bytes > MAX_VALUE_BYTES:
                    raise BadLabel(f"its label has {n_bytes} bytes")
                values.append(value_of(self._columns.encodings[column], content.read(at, n_bytes)))
            return self.labels.take(values) if values else ()
        except (BadLabel, ValueError) as error:
            raise ManifestError(
                f"cannot use {where}: {error}; write it again, or name another column with y_column"
            ) from None

    def _image_column(self, wanted: str | None) -> int:
        """Return the number of the column of encoded images."""
        names, encodings = self._columns.names, self._columns.encodings
        if wanted is not None:
            number = self._number(wanted, "x_column")
            if encodings[number] not in IMAGE_ENCODINGS:
                raise ManifestError(
                    f"cannot take images from the column {wanted!r} of {self._name}: it has {encodings[number]}; write "
                    "them encoded, as jpeg, png or bytes"
                )
            return number
        found = [number for number, encoding in enumerate(encodings) if encoding in ("jpeg", "png")]
        found = found or [number for number, encoding in enumerate(encodings) if encoding == "bytes"]
        if len(found) > 1:
            usual = known_label([names[number] for number in found], _IMAGE_NAMES)
            found = [number for number in found if names[number] == usual] or found
        if len(found) != 1:
            listed = ", ".join(f"{name} ({encoding})" for name, encoding in zip(names, encodings, strict=True))
            what = "several columns" if found else "no column"
            raise ManifestError(
                f"cannot serve {self._name}: {what} of encoded images (jpeg, png or bytes) among {listed}; "
                + (f"give x_column={names[found[0]]!r} or another" if found else "write the images encoded")
            )
        return found[0]

    def _find_labels(self, config: Config) -> list[int]:
        """Return the numbers of the columns of labels."""
        if config.label_columns == 0:
            return []
        if config.label_columns is not None:
            raise ManifestError(
                f"cannot take label_columns={config.label_columns} from {self._name}: name the columns with y_column, "
                "or give label_columns=0 for no labels"
            )
        if config.y_column is not None:
            wanted = [part.strip() for part in config.y_column.split(",")]
        else:
            usual = find_label([name for n, name in enumerate(self._columns.names) if n != self._image], self._name)
            wanted = [] if usual is None else [usual]
        numbers = [self._number(name, "y_column") for name in wanted]
        for number in numbers:
            if not is_readable(self._columns.encodings[number]):
                raise ManifestError(
                    f"cannot take labels from the column {self._columns.names[number]!r} of {self._name}: it has "
                    f"{self._columns.encodings[number]}; write numbers or text, or give label_columns=0 for no labels"
                )
        return numbers

    def _number(self, name: str, option: str) -> int:
        if name not in self._columns.names:
            there = ", ".join(map(repr, self._columns.names))
            raise ManifestError(f"cannot find the column {name!r} of {self._name}: there are {there}; see {option}")
        return self._columns.names.index(name)
