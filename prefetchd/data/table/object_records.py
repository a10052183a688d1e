"""Images with boxes or keypoints, by random access: `ObjectRecords`, of every kind of file or folder.

The daemon calls `open`: it reads the annotations once (`coco`, `yolo`, `listed`) and writes them into a column store.
Readers attach to that, so an image's objects cost a reader two slices. Images of Parquet files, of Arrow files and of
the trainer's memory come from their own records.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prefetchd.columns.store import Column, Columns
from prefetchd.columns.values import text_blocks
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.config.options import BoxFormat, Config
from prefetchd.data.files import read_file
from prefetchd.data.kinds import COLUMN_OPTIONS, expand, kind_of, refuse_given
from prefetchd.data.records import Sample, shown_path
from prefetchd.data.stores.urls import file_name, is_url
from prefetchd.data.table.annotated import AnnotatedImages
from prefetchd.errors import ManifestError, one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.data.files import FileBuffer
    from prefetchd.data.source import ReserveMemory
    from prefetchd.data.table.records import TableRecords

log = logging.getLogger("prefetchd")

# The records that images without paths of their own may have.
_IMAGES = {
    "parquet": ("prefetchd.data.parquet.records", "ParquetRecords"),
    "arrow": ("prefetchd.data.table.arrow_files", "ArrowFiles"),
    "table": ("prefetchd.data.table.records", "TableRecords"),
}
_LISTS = (
    "COCO files (.json), YOLO folders (images/ and labels/), JSON lines, Parquet and Arrow files, and tables in memory"
)


class Objects(NamedTuple):
    """The objects of one image; the arrays may not be written.

    Attributes:
        boxes: (n, 4) float64, as `ObjectFacts.box_format` says.
        labels: (n,) int64.
        ids: (n,) int64, their names, after `ObjectFacts.id_name`.
        keypoints: (n, points, 3) float64: x, y, visibility; (n, 0, 3) without.
        size: the image's stated (height, width); (0, 0) where none is stated.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]
    keypoints: NDArray[np.float64]
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """What is the same for all images.

    Attributes:
        most: objects of the image that has most of them.
        points: keypoints of each object; 0 without.
        box_format: how boxes are written.
        id_name: what the ids are numbers of, such as "annotation".
    """

    most: int
    points: int
    box_format: BoxFormat
    id_name: str


class ObjectRecords:
    """The images in order, each with its objects; see `Records`. Owns its descriptors.

    Args:
        facts: those of `handle()`.
        columns: the table; owned.
        images: the records that have the images, where the table has no paths; owned.
    """

    label_shape: tuple[int, ...] = ()
    label_dtype = "int64"

    def __init__(self, facts: dict[str, Any], columns: Columns, images: Any) -> None:
        self._facts = facts
        self._columns = columns
        self._images = images
        self._folder = os.fsdecode(facts["folder"])
        self.name: str = facts["name"]
        names = columns.attributes["classes"].get("labels")
        self.classes: tuple[str, ...] | None = None if names is None else tuple(names)
        self.objects = ObjectFacts(**{each: columns.attributes[each] for each in ObjectFacts.__slots__})
        content = [columns.digest, "" if images is None else images.digest]
        self.digest = hashlib.blake2b(repr(content).encode(), digest_size=8).hexdigest()

    @classmethod
    def open(cls, config: Config) -> ObjectRecords:
        """Read the annotations that `config.source` names, in the daemon.

        Raises:
            ManifestError: if they cannot be used, with the place.
            ConfigError: if an option means nothing for them.
        """
        kind = kind_of(config.source)
        if kind not in ("parquet", "arrow"):
            path = os.path.abspath(os.path.expanduser(config.source))
            return cls._of(read_annotated(config, path), config, None, "")
        refuse_given(config, ("crowds",), "COCO files")
        found: AnnotatedImages | None = None
        if kind == "parquet":
            from prefetchd.data.table.listed import read_parquet

            found = read_parquet(config, expand(config.source, "parquet", one_line(config.source)))
        images = _class(kind).open(only_images(config))
        try:
            return cls._of(found or _of_columns(config, images), config, images, kind)
        except BaseException:
            images.close()
            raise

    @classmethod
    def of_table(cls, table: TableRecords, config: Config) -> ObjectRecords:
        """Return the records of images and lists in a table; owns `table`, also after an error."""
        try:
            refuse_given(config, ("crowds",), "COCO files")
            return cls._of(_of_columns(config, table), config, table, "table")
        except BaseException:
            table.close()
            raise

    @classmethod
    def _of(cls, found: AnnotatedImages, config: Config, images: Any, kind: str) -> ObjectRecords:
        try:
            columns = write_table(found, config.target == "keypoints")
        except ValueError as error:
            raise ManifestError(f"cannot use {one_line(config.source)}: {error}; check its paths") from None
        for note in found.notes:
            log.warning("%s: %s", one_line(config.source), note)
        facts = {"name": one_line(config.source), "folder": os.fsencode(found.folder), "kind": kind}
        records = cls(facts, columns, images)
        records._warn_of_limit(config)
        return records

    @classmethod
    def attach(cls, handle: dict[str, Any], fds: list[int]) -> ObjectRecords:
        """Return the records that `handle()` described, in another process; it owns `fds` from here on."""
        images = None if handle["images"] is None else _class(handle["kind"]).attach(handle["images"], fds[1:])
        return cls(handle, Columns.attach(handle["columns"], fds[0]), images)

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Plain values and descriptors from which a reader attaches."""
        described, fd = self._columns.handle()
        images, fds = (None, []) if self._images is None else self._images.handle()
        return {**self._facts, "columns": described, "images": images}, [fd, *fds]

    def close(self) -> None:
        """Close the descriptors; may be called twice."""
        self._columns.close()
        if self._images is not None:
            self._images.close()

    def __enter__(self) -> ObjectRecords:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._columns.n_rows

    @property
    def shared_bytes(self) -> int:
        """The table's, and those of the images' records."""
        return self._columns.n_bytes + (0 if self._images is None else self._images.shared_bytes)

    @property
    def reader_bytes(self) -> int:
        """What the images' records take."""
        return 0 if self._images is None else int(self._images.reader_bytes)

    @property
    def is_far(self) -> bool:
        """Whether its images are."""
        return self._images is not None and bool(self._images.is_far)

    @property
    def reads_apart(self) -> bool:
        """Whether each image is a file of its own."""
        return self._images is None or bool(self._images.reads_apart)

    def path_column(self) -> Column | None:
        """Return the column of the images' paths, or `None`."""
        return self._columns.get("path")

    def places(self) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]] | None:
        """Return the names of the files that hold the images, and the file and place of each; see `ShardRecords`."""
        return None if self._images is None else (self._images.file_names(), *self._images.places())

    def samples(self, sample_ids: Iterable[int]) -> list[Sample]:
        """Return the samples of these numbers; the `values` of each are its `Objects`."""
        numbers = [int(sample_id) for sample_id in sample_ids]
        if self._images is not None:
            found = self._images.samples(numbers)
        else:
            paths, lines = self._columns["path"], self._columns.get("line")
            found = [
                Sample(os.path.join(self._folder, paths[number]), None, 0 if lines is None else lines[number])
                for number in numbers
            ]
        return [sample._replace(values=self._objects(number)) for sample, number in zip(found, numbers, strict=True)]

    def _objects(self, number: int) -> Objects:
        columns = self._columns
        height, width = columns["size"][number].tolist() if "size" in columns else (0, 0)
        labels = columns["labels"][number]
        points = columns["keypoints"][number] if "keypoints" in columns else np.zeros((len(labels), 0, 3))
        return Objects(columns["boxes"][number], labels, columns["ids"][number], points, (height, width))

    def class_counts(self) -> NDArray[np.int64]:
        """Return how many objects there are of each class, for people to look at."""
        return np.bincount(self._columns["labels"].values)

    def read(self, sample: Sample, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
        """Return the bytes of the sample's image; see `Records.read`."""
        if self._images is not None:
            return self._images.read(sample, buffer, reserve)  # type: ignore[no-any-return]
        return read_file(sample.path, buffer, reserve=reserve)

    def object_state(self, sample: Sample, ask: bool) -> bytes | None:
        """Return `None`: images with objects are not cached."""
        return None

    def where(self, sample: Sample) -> str:
        """Return list, line and path of a sample."""
        if self._images is not None:
            return str(self._images.where(sample))
        path = shown_path(sample.path)
        return f"{self.name} line {sample.line}: {path}" if sample.line else f"{self.name}: {path}"

    def check_unchanged(self) -> None:
        """Raise `ManifestError` if the images' files changed. The annotations were read whole, and cannot change."""
        if self._images is not None:
            self._images.check_unchanged()

    def _warn_of_limit(self, config: Config) -> None:
        """Log how much `max_boxes` leaves out."""
        lengths = self._columns["labels"].lengths
        if config.max_boxes is not None and config.max_boxes < self.objects.most:
            over = lengths[lengths > config.max_boxes]
            log.warning(
                "%s: max_boxes=%d leaves out up to %d objects of %d images; one has %d",
                self.name,
                config.max_boxes,
                int(over.sum() - config.max_boxes * len(over)),
                len(over),
                self.objects.most,
            )


def only_images(config: Config) -> Config:
    """Return the options that open the images of records, without labels."""
    return replace(config, target="label", y_column=None, label_columns=0)


def _of_columns(config: Config, table: TableRecords) -> AnnotatedImages:
    from prefetchd.data.table.listed import read_columns

    return read_columns(config, table.columns, one_line(config.source))


def _class(kind: str) -> Any:
    module, name = _IMAGES[kind]
    return getattr(importlib.import_module(module), name)


def read_annotated(config: Config, path: str, *, with_keypoints: bool | None = None) -> AnnotatedImages:
    """Return what a COCO file, a YOLO folder or a list of JSON lines says.

    Raises:
        ManifestError: if it cannot be used, with the place.
        ConfigError: if an option means nothing for it.
    """
    with_keypoints = config.target == "keypoints" if with_keypoints is None else with_keypoints
    suffix = os.path.splitext(file_name(path))[1].lower()
    if os.path.isdir(path) or (is_url(path) and suffix != ".json"):
        from prefetchd.data.table.yolo import read_yolo

        for names, concern in (
            (COLUMN_OPTIONS, "tables"),
            (("root",), "lists of images"),
            (("crowds",), "COCO files"),
            (("source_box_format",), "JSON lines and Parquet files"),
        ):
            refuse_given(config, names, concern)
        return read_yolo(path, with_keypoints=with_keypoints)
    if suffix in (".jsonl", ".ndjson"):
        from prefetchd.data.table.listed import read_jsonl

        refuse_given(config, ("crowds",), "COCO files")
        return read_jsonl(config, path)
    if suffix == ".json":
        from prefetchd.data.table.coco import images_folder, read_coco

        refuse_given(config, COLUMN_OPTIONS, "tables")
        refuse_given(config, ("source_box_format",), "JSON lines and Parquet files")
        folder = images_folder(path, config.root)
        return read_coco(path, folder, crowds=config.crowds, with_keypoints=with_keypoints)
    raise ManifestError(
        f"cannot take {config.target} from {one_line(config.source)}: they come from {_LISTS}; name one, or give "
        "fields, of which tar shards and CSV files may have boxes and keypoints, too"
    )


def write_table(found: AnnotatedImages, with_keypoints: bool) -> Columns:
    """Return the table, `path`, `boxes`, `labels`, `ids` and so on; raises `ValueError` if a column does not fit."""
    lengths = np.diff(found.offsets)
    with ColumnsWriter(len(lengths)) as writer:
        if found.paths:
            writer.add_strings("path", text_blocks(found.paths))
        writer.add_ragged("boxes", [(lengths, found.boxes)], "float64", (4,))
        writer.add_ragged("labels", [(lengths, found.labels)], "int64")
        writer.add_ragged("ids", [(lengths, found.ids)], "int64")
        if with_keypoints and found.keypoints is not None:
            writer.add_ragged("keypoints", [(lengths, found.keypoints)], "float64", found.keypoints.shape[1:])
        if found.sizes is not None:
            writer.add_numbers("size", found.sizes)
        if found.lines is not None:
            writer.add_numbers("line", found.lines)
        attributes = {
            "classes": {} if found.classes is None else {"labels": list(found.classes)},
            "most": int(lengths.max(initial=0)),
            "points": 0 if found.keypoints is None else found.keypoints.shape[1],
            "box_format": found.box_format,
            "id_name": found.id_name,
        }
        return Columns.attach(*writer.finish(attributes))
