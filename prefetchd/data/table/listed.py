"""Boxes and keypoints that lists write for each image: JSON lines, and columns of lists.

Called once, in the daemon. `ObjectLists` checks what a row has and gathers it; `read_jsonl`, `read_parquet` and
`read_columns` go through the rows. How boxes are written cannot be seen: four numbers are two corners, or a corner and
a size. So `source_box_format` must say it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.data.files import open_regular
from prefetchd.data.labels import LABEL_NAMES, PATH_NAMES, json_kind, sorted_classes
from prefetchd.data.table.annotated import AnnotatedImages, are_fractions
from prefetchd.errors import ManifestError, one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.columns.store import Columns
    from prefetchd.config.options import Config

_BOX_NAMES = ("boxes", "bboxes", "bbox", "box")
_KEYPOINT_NAMES = ("keypoints", "points", "landmarks")
_OBJECTS = "objects"  # as Hugging Face's data sets nest them: {"objects": {"bbox": ..., "category": ...}}
_CLASS_NAMES = ("labels", "categories", "classes", "category_ids", "class_ids", *LABEL_NAMES)


class BadRow(Exception):
    """What a row has cannot be used; the message goes on after its name."""


class ObjectLists:
    """Gathers the objects of row after row.

    Args:
        name: of the list, for errors.
        with_keypoints: whether rows have keypoints, and not boxes with labels.
    """

    def __init__(self, name: str, *, with_keypoints: bool) -> None:
        self._name = name
        self._with_keypoints = with_keypoints
        self._lengths: list[int] = []
        self._boxes: list[NDArray[np.float64]] = []
        self._points: list[NDArray[np.float64]] = []
        self._labels: list[int | str] = []

    def add(self, objects: Any, labels: Any) -> None:
        """Take the next row's boxes with their labels (`None` if all are of one class), or its keypoints.

        Raises:
            BadRow: if they are no lists of numbers, or not as many.
        """
        if self._with_keypoints:
            points = _points(objects)
            if len(points) and self._points and points.shape[1:] != self._points[0].shape[1:]:
                raise BadRow(f"its objects have {points.shape[1]} keypoints, and others {self._points[0].shape[1]}")
            if len(points):
                self._points.append(points)
            self._lengths.append(len(points))
            return
        boxes = _array(objects, "boxes", "a list of four numbers for each box")
        if boxes.size == 0:
            boxes = boxes.reshape(0, 4)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise BadRow(f"its boxes have the shape {boxes.shape}; there must be four numbers for each box")
        if labels is None:
            labels = [0] * len(boxes)
        if not isinstance(labels, list):
            raise BadRow(f"its labels are {json_kind(labels)}, and not a list with one for each box")
        if len(labels) != len(boxes):
            raise BadRow(f"it has {len(boxes)} boxes and {len(labels)} labels")
        for label in labels:
            wanted = type(self._labels[0]) if self._labels else type(labels[0])
            if type(label) is not wanted or wanted not in (int, str):
                raise BadRow(f"it has the label {label!r}; labels are whole numbers, or all of them names")
            if label == "" or (isinstance(label, int) and not 0 <= label < 2**63):
                raise BadRow(f"it has the label {label!r}; a class is a number from 0, or a name")
        self._lengths.append(len(boxes))
        self._boxes.append(boxes)
        self._labels += labels

    def finish(
        self,
        config: Config,
        paths: list[str],
        folder: str,
        sizes: list[tuple[int, int]] | None = None,
        lines: list[int] | None = None,
        named: Sequence[str] | None = None,
    ) -> AnnotatedImages:
        """Return all rows; `named` has the classes' names where the file describes them.

        Raises:
            ManifestError: if there is none, or how boxes are written was not said.
        """
        if not self._lengths:
            raise ManifestError(f"cannot use {self._name}: it lists no images; write a row for each")
        offsets = np.concatenate([[0], np.cumsum(self._lengths)]).astype(np.int64)
        total = int(offsets[-1])
        classes: tuple[str, ...] | None = None if named is None else tuple(named)
        if self._labels and isinstance(self._labels[0], str):
            classes = tuple(sorted_classes({str(label) for label in self._labels}))
            numbers = {label: number for number, label in enumerate(classes)}
            labels = np.array([numbers[str(label)] for label in self._labels], np.int64)
        else:
            labels = np.array(self._labels if not self._with_keypoints else [0] * total, np.int64)
        if classes is not None and len(labels) and labels.max() >= len(classes):
            raise ManifestError(
                f"cannot use {self._name}: it has the label {labels.max()}, and names {len(classes)} classes; mend it"
            )
        made = AnnotatedImages(
            paths,
            folder,
            offsets,
            np.concatenate(self._boxes) if self._boxes else np.zeros((total, 4)),
            config.source_box_format or "xyxy",
            labels,
            np.arange(total) - np.repeat(offsets[:-1], self._lengths),
            "box" if not self._with_keypoints else "object",
            self._all_points() if self._with_keypoints else None,
            None if sizes is None else np.array(sizes, np.int64).reshape(-1, 2),
            None if lines is None else np.array(lines, np.int64),
            classes,
        )
        if made.keypoints is not None:
            if are_fractions(made.keypoints):
                raise ManifestError(
                    f"cannot take keypoints from {self._name}: no coordinate is above 1, as in fractions of the image; "
                    "write pixels"
                )
            return made
        if config.source_box_format is None:
            raise ManifestError(
                f"cannot tell how {self._name} writes boxes: four numbers are two corners (xyxy), a corner and a size "
                "(xywh) or a centre and a size (cxcywh); give source_box_format='xyxy' or another"
            )
        given = config.source_box_format
        if total and not given.endswith("_normalized") and not (made.boxes > 1).any():
            raise ManifestError(
                f"cannot use source_box_format={given!r} with {self._name}: no number of its {total} boxes is above 1, "
                f"as in fractions of the image; give source_box_format='{given}_normalized'"
            )
        return made.without_empty()

    def _all_points(self) -> NDArray[np.float64]:
        if not self._points:
            raise ManifestError(f"cannot take keypoints from {self._name}: no row has any; give y_column")
        return np.concatenate(self._points)


def read_jsonl(config: Config, path: str) -> AnnotatedImages:
    """Return the images and objects of a list of JSON lines.

    Raises:
        ManifestError: if a line does not fit, with its number.
    """
    from prefetchd.data.manifest.dialect import BadLine
    from prefetchd.data.manifest.json import json_object, json_value

    name = one_line(config.source)
    lists = ObjectLists(name, with_keypoints=config.target == "keypoints")
    paths: list[str] = []
    sizes: list[tuple[int, int]] = []
    lines: list[int] = []
    keys: tuple[str, str, str | None] | None = None
    with open(open_regular(path, name), "rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                found = json_object(line.strip())
                if keys is None:
                    path_key = config.x_column or _first(PATH_NAMES, found, name, "path", "x_column")
                    keys = (path_key, *object_columns(config, _names(found), name))
                image = json_value(found, keys[0])
                if not isinstance(image, str) or not image:
                    raise BadRow(f"the path under {keys[0]!r} is {json_kind(image)}")
                lists.add(json_value(found, keys[1]), None if keys[2] is None else json_value(found, keys[2]))
            except (BadLine, BadRow) as bad:
                what = bad.what if isinstance(bad, BadLine) else str(bad)
                raise ManifestError(f"cannot use line {number} of {name}: {what}; mend the line") from None
            paths.append(image)
            lines.append(number)
            size = found.get("height"), found.get("width")
            sizes.append(size if all(type(side) is int and side > 0 for side in size) else (0, 0))  # type: ignore[arg-type]
    root = config.root if config.root is not None else os.path.dirname(path)
    folder = os.path.abspath(os.path.expanduser(root))
    return lists.finish(config, paths, folder, sizes, lines)


def read_parquet(config: Config, files: Sequence[str]) -> AnnotatedImages:
    """Return the objects of the rows of Parquet files, without paths: the rows' images are those of their records.

    Raises:
        ManifestError: if a row does not fit, with file and number.
    """
    from prefetchd.data.parquet.indexer import column_of, open_file
    from prefetchd.data.parquet.library import load_pyarrow

    _, parquet = load_pyarrow()
    name = one_line(config.source)
    lists = ObjectLists(name, with_keypoints=config.target == "keypoints")
    keys: tuple[str, str | None] | None = None
    for path in files:
        with open_file(parquet, path, [key for key in keys or () if key]) as (file, _):
            keys = keys or object_columns(config, _columns(file.schema_arrow), name)
            wanted = [key for key in keys if key is not None]
            row = 0
            try:
                for batch in file.iter_batches(8192, columns=wanted, use_threads=False):
                    values = [column_of(batch, key) for key in wanted]
                    for each in zip(*values, strict=True):
                        lists.add(each[0], each[1] if len(each) > 1 else None)
                        row += 1
            except BadRow as bad:
                raise ManifestError(
                    f"cannot use row {row} of {one_line(os.path.basename(path))} in {name}: {bad}; mend the row"
                ) from None
            except (OSError, ValueError, KeyError) as error:
                what = " ".join(str(error).split())[:300]
                raise ManifestError(f"cannot read {one_line(path)}: {what}; write the file again") from None
    return lists.finish(config, [], "")


def read_columns(config: Config, columns: Columns, name: str) -> AnnotatedImages:
    """Return the objects of the rows of a table, without paths: the rows' images are those of their records.

    Raises:
        ManifestError: if a row does not fit, with its number.
    """
    lists = ObjectLists(name, with_keypoints=config.target == "keypoints")
    left_out = columns.attributes.get("left_out", {})
    objects, labels = object_columns(config, [*columns, *left_out], name)
    for key in (objects, labels):
        if key in left_out:
            raise ManifestError(f"cannot use the column {key!r} of {name}: {left_out[key]}; give lists of numbers")
        if key is not None and columns[key].layout.kind != "ragged":
            raise ManifestError(f"cannot use the column {key!r} of {name}: it has no lists; give y_column")
    for row in range(columns.n_rows):
        try:
            lists.add(columns[objects][row].tolist(), None if labels is None else columns[labels][row].tolist())
        except BadRow as bad:
            raise ManifestError(f"cannot use row {row} of {name}: {bad}; mend the row") from None
    return lists.finish(config, [], "")


def object_columns(config: Config, names: Iterable[str], name: str) -> tuple[str, str | None]:
    """Return the columns of the objects and of their labels, as `y_column` says or by their usual names.

    Raises:
        ManifestError: if they cannot be told.
    """
    names = list(names)
    is_boxes = config.target == "boxes"
    what = "boxes" if is_boxes else "keypoints"
    if config.y_column is not None:
        parts = [part.strip() for part in config.y_column.split(",") if part.strip()]
        if not 1 <= len(parts) <= (2 if is_boxes else 1):
            wanted = "the boxes' and the labels', such as 'boxes,labels'" if is_boxes else "the keypoints'"
            raise ManifestError(f"cannot take {what} from y_column={config.y_column!r} of {name}: name {wanted}")
        missing = [part for part in parts if part not in names]
        if missing:
            raise ManifestError(
                f"cannot find y_column={missing[0]!r} in {name}: it has {', '.join(map(one_line, names[:20]))}"
            )
        return parts[0], parts[1] if len(parts) > 1 else None
    objects = _usual(_BOX_NAMES if is_boxes else _KEYPOINT_NAMES, names)
    labels = _usual(_CLASS_NAMES, names) if is_boxes else None
    if objects is None or (is_boxes and labels is None):
        missing_one = what if objects is None else "boxes' labels"
        remedy = "'boxes,labels'" if is_boxes else "'keypoints'"
        one_class = f", or y_column={objects!r} if all are of one class" if objects is not None and is_boxes else ""
        raise ManifestError(
            f"cannot tell where {name} has the {missing_one}: it has {', '.join(map(one_line, names[:20]))}; "
            f"give y_column, such as {remedy}{one_class}"
        )
    return objects, labels


def _usual(usual: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the first of the usual names that is there, at the top or under `objects`."""
    for each in usual:
        for found in (each, f"{_OBJECTS}.{each}"):
            if found in names:
                return found
    return None


def _first(usual: Sequence[str], found: dict[str, Any], name: str, what: str, option: str) -> str:
    for key in usual:
        if isinstance(found.get(key), str):
            return key
    raise ManifestError(f"cannot tell where {name} has the {what}: it has {', '.join(list(found)[:20])}; give {option}")


def _names(found: dict[str, Any]) -> list[str]:
    """Return the keys of an object, those of nested objects with dots."""
    names = []
    for key, value in found.items():
        names.append(key)
        if isinstance(value, dict):
            names += [f"{key}.{inner}" for inner in value]
    return names


def _columns(schema: Any) -> list[str]:
    """Return the columns of a Parquet file, those of structs with dots."""
    import pyarrow as pa

    names = []
    for field in schema:
        names.append(field.name)
        if pa.types.is_struct(field.type):
            names += [f"{field.name}.{field.type.field(at).name}" for at in range(field.type.num_fields)]
    return names


def _array(value: Any, what: str, wanted: str) -> NDArray[np.float64]:
    if value is None:
        value = []
    if not isinstance(value, list):
        raise BadRow(f"its {what} are {json_kind(value)}, and not {wanted}")
    try:
        return np.array(value, np.float64)
    except (TypeError, ValueError):
        raise BadRow(f"its {what} are {json_kind(value)}, and not {wanted}") from None


def _points(value: Any) -> NDArray[np.float64]:
    """Return (objects, points, 3) of a list of points, each an object of its own, or of such a list for each object."""
    points = _array(value, "keypoints", "a list of points (x, y) or (x, y, visibility)")
    if points.size == 0:
        return np.zeros((0, 0, 3))
    if points.ndim == 2:
        points = points[:, None]
    if points.ndim != 3 or points.shape[2] not in (2, 3):
        raise BadRow(f"its keypoints have the shape {points.shape}; a point is (x, y) or (x, y, visibility)")
    if points.shape[2] == 2:
        points = np.concatenate([points, np.full((*points.shape[:2], 1), 2.0)], axis=2)
    return points
