"""Reads a YOLO folder: `images/`, a text file for each image in `labels/`, and the names of the classes.

Called once, in the daemon. A line of a label file is a class number, centre x and y, width and height, as fractions of
the upright image. `yolo_files` finds and reads the files, `yolo_names` the names of the classes.
"""

from __future__ import annotations

import os
import re
from codecs import BOM_UTF8
from typing import TYPE_CHECKING

import numpy as np

from prefetchd.data.kinds import IMAGE_SUFFIXES
from prefetchd.data.stores.urls import is_url
from prefetchd.data.table.annotated import AnnotatedImages
from prefetchd.data.table.yolo_files import FarYoloFiles, YoloFiles, yolo_folders
from prefetchd.data.table.yolo_names import read_names
from prefetchd.errors import ManifestError, one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SPLITS = re.compile(r"(train|val|valid|validation|test|dev|minival)(\d{4})?", re.IGNORECASE)
_LEFT_OUT = ("classes.txt", "readme.txt", "notes.txt")  # beside label files, as LabelImg and Label Studio write them
_BOX_FIELDS = 5
_MOST_CLASSES = 1 << 31


def read_yolo(source: str, *, with_keypoints: bool = False) -> AnnotatedImages:
    """Return the images and objects of a YOLO folder; images sorted by path, objects in the order of the lines.

    Args:
        source: the folder, or a prefix of a store.
        with_keypoints: whether lines go on with keypoints, as the `kpt_shape` of a data.yaml says.

    Raises:
        ManifestError: if it is not in this format, with the file and the line.
    """
    name = one_line(source)
    folders = yolo_folders(source)
    if folders is None:
        raise ManifestError(f"cannot use {name} as a YOLO folder: it must have images/ and labels/; name another")
    images, labels = folders
    files = FarYoloFiles(images, labels, name) if is_url(images) else YoloFiles(images, labels, name)
    splits = [each for each in files.folders() if _SPLITS.fullmatch(each)]
    if len(splits) > 1:
        one = os.path.join(one_line(images), sorted(splits)[0])
        raise ManifestError(f"cannot use {name}: its images are splits ({', '.join(sorted(splits))}); name one: {one}")
    above = images.rpartition(f"{os.sep}images")[0]
    classes, shape = read_names((above, labels, os.path.dirname(above)), files.text, name)
    if with_keypoints and shape is None:
        raise ManifestError(
            f"cannot take keypoints from {name}: no data.yaml says how many points a line has; write one with "
            "kpt_shape: [17, 3]"
        )
    paths = [path for path in files.image_paths() if path.lower().endswith(IMAGE_SUFFIXES)]
    if not paths:
        raise ManifestError(f"cannot use {name}: {one_line(images)} has no images; name another folder")
    read = _LabelFiles(name, _BOX_FIELDS + (0 if shape is None else shape[0] * shape[1]))
    stems = [os.path.splitext(path)[0] for path in paths]
    _check_stems(name, stems, paths)
    labelled = [f"{stem}.txt" for stem in stems]
    for path, content in zip(labelled, files.label_files(labelled), strict=True):
        read.add(path, content)
    notes = _notes(files.label_paths(), name, labelled, read)
    found = read.numbers()
    read.check_classes(found[:, 0], len(classes) if classes is not None else None)
    return AnnotatedImages(
        paths,
        images,
        np.array(read.offsets, np.int64),
        found[:, 1:_BOX_FIELDS],
        "cxcywh_normalized",
        found[:, 0].astype(np.int64),
        np.array(read.lines, np.int64),
        "line",
        _keypoints(found[:, _BOX_FIELDS:], shape) if with_keypoints and shape is not None else None,
        classes=classes,
        notes=tuple(notes),
    ).without_empty()


class _LabelFiles:
    """Gathers the fields of all label files, to make numbers of them at once.

    Attributes:
        offsets: where the lines of each file begin, and the end.
        lines: the number of each line in its file, from 1.
        n_missing: files that are not there.
    """

    def __init__(self, name: str, n_fields: int) -> None:
        self.offsets = [0]
        self.lines: list[int] = []
        self.n_missing = 0
        self._name = name
        self._n_fields = n_fields
        self._fields: list[bytes] = []
        self._files: list[str] = []

    def add(self, path: str, content: bytes | None) -> None:
        """Take the label file of the next image; without one, the image has no objects."""
        self._files.append(path)
        self.n_missing += content is None
        for number, line in enumerate((content or b"").removeprefix(BOM_UTF8).splitlines(), 1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) != self._n_fields:
                raise self._refuse(path, number, f"has {len(fields)} fields, {_explain(len(fields), self._n_fields)}")
            self._fields += fields
            self.lines.append(number)
        self.offsets.append(len(self.lines))

    def numbers(self) -> NDArray[np.float64]:
        """Return the fields of all lines, (total, fields)."""
        try:
            flat = np.array(self._fields, np.bytes_).astype(np.float64)
        except ValueError:
            at = next(at for at, field in enumerate(self._fields) if not _is_number(field))
            shown = one_line(self._fields[at].decode("utf-8", "replace"))
            raise self._at(at // self._n_fields, f"has {shown!r}, which is not a number") from None
        return flat.reshape(-1, self._n_fields)

    def check_classes(self, given: NDArray[np.float64], n_classes: int | None) -> None:
        """Raise `ManifestError` for a class that is not whole, negative, or has no name."""
        bad = ~((given == np.floor(given)) & (given >= 0) & (given < (n_classes or _MOST_CLASSES)))
        if bad.any():
            at = int(np.argmax(bad))
            known = "a whole number from 0" if n_classes is None else f"a whole number from 0 to {n_classes - 1}"
            raise self._at(at, f"has the class {given[at]:g}, and it must be {known}")

    def _at(self, line: int, what: str) -> ManifestError:
        image = int(np.searchsorted(self.offsets, line, "right")) - 1
        return self._refuse(self._files[image], self.lines[line], what)

    def _refuse(self, path: str, number: int, what: str) -> ManifestError:
        return ManifestError(f"cannot use line {number} of {one_line(path)} in {self._name}: it {what}; mend it")


def _explain(count: int, wanted: int) -> str:
    if wanted == _BOX_FIELDS and count > _BOX_FIELDS + 1:
        return (
            "as polygons and keypoints have; a box has 5, and kpt_shape in a data.yaml says how many keypoints follow"
        )
    return f"and a line has {wanted}: class, centre x, centre y, width, height" + (
        " and keypoints" if wanted > _BOX_FIELDS else ""
    )


def _keypoints(fields: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return (total, points, 3); points without a visibility are visible unless they are at (0, 0), as in YOLO."""
    points = fields.reshape(-1, *shape)
    if shape[1] == 3:
        return points
    labelled = points.any(axis=2, keepdims=True) * 2.0
    return np.concatenate([points, labelled], axis=2)


def _check_stems(name: str, stems: list[str], paths: list[str]) -> None:
    owner: dict[str, str] = {}
    for stem, path in zip(stems, paths, strict=True):
        other = owner.setdefault(stem, path)
        if other != path:
            raise ManifestError(
                f"cannot use {name}: {one_line(other)} and {one_line(path)} share the label file {one_line(stem)}.txt; "
                "rename one"
            )


def _notes(found: list[str], name: str, labelled: list[str], read: _LabelFiles) -> list[str]:
    """Return notes of images without label files, and of files in `found` that are not among these, `labelled`."""
    notes = []
    if read.n_missing:
        notes.append(f"{read.n_missing} of {len(labelled)} images have no label file, and so no boxes")
    known = set(labelled)
    texts = [path for path in found if path.lower().endswith(".txt")]
    texts = [path for path in texts if os.path.basename(path).lower() not in _LEFT_OUT]
    lost = [path for path in texts if path not in known]
    if texts and len(lost) == len(texts):
        raise ManifestError(
            f"cannot use {name}: none of its {len(texts)} label files belongs to an image, such as "
            f"{one_line(lost[0])}; a label file has its image's name and folder, and ends in .txt"
        )
    if lost:
        notes.append(f"left out {len(lost)} label files without an image, such as {one_line(lost[0])}")
    return notes


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
