"""Reads annotations in COCO's format: one JSON file with `images`, `annotations` and `categories`.

Called once, in the daemon. What is ambiguous is refused with its place: ids that are given twice, annotations of
images or categories that are not listed. Polygons are passed over. Objects of category ids 1, 3, 7 are classes 0, 1, 2.
The format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

from codecs import BOM_UTF8
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import numpy as np

from prefetchd.data.files import open_regular
from prefetchd.data.named_files import absolute_root
from prefetchd.data.stores.urls import is_url, parent
from prefetchd.data.table.annotated import AnnotatedImages
from prefetchd.errors import ManifestError, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_Id = int | str
_Item = TypeVar("_Item")
_Number = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
_Side = Annotated[float, msgspec.Meta(ge=0, le=2**31)]


class _Image(msgspec.Struct, gc=False):
    id: _Id
    file_name: str
    width: _Side | None = None
    height: _Side | None = None


class _Annotation(msgspec.Struct, gc=False):
    image_id: _Id
    id: _Number | None = None
    category_id: int | None = None
    bbox: tuple[float, float, float, float] | None = None
    iscrowd: int | bool = 0
    keypoints: list[float] | None = None


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str


class _Coco(msgspec.Struct, gc=False):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category] | None = None


class _Keys(msgspec.Struct, gc=False):
    images: msgspec.Raw
    annotations: msgspec.Raw


def is_coco(path: str) -> bool:
    """Return whether the file at `path` is JSON with `images` and `annotations`; it is read whole."""
    if not path.lower().endswith(".json"):
        return False
    try:
        with open(open_regular(path, one_line(path)), "rb") as file:
            msgspec.json.decode(file.read().removeprefix(BOM_UTF8), type=_Keys)
    except (ManifestError, msgspec.DecodeError, OSError):
        return False
    return True


def read_coco(path: str, folder: str, *, crowds: bool = False, with_keypoints: bool = False) -> AnnotatedImages:
    """Return the images and objects of a COCO file, the images in its order.

    Args:
        path: the file or object.
        folder: the absolute folder that `file_name` starts from.
        crowds: whether objects with `iscrowd` are taken.
        with_keypoints: whether objects are taken for their keypoints; those without a labelled one are left out.

    Raises:
        ManifestError: if it is not in this format, or contradicts itself, with the place.
    """
    name = one_line(path)
    data = _content(path, name)
    try:
        found = msgspec.json.decode(data, type=_Coco)
    except msgspec.ValidationError as error:
        what = str(error).replace(" - at `$", ", at `")
        raise ManifestError(f"cannot use {name} as COCO annotations: {what}; mend it") from None
    except msgspec.DecodeError as error:
        raise ManifestError(
            f"cannot use {name} as COCO annotations: it is not JSON in UTF-8 ({error}); write it "
            "anew, with null in place of NaN and Infinity"
        ) from None
    del data
    images = _numbered(name, "image", [image.id for image in found.images])
    _numbered(name, "file_name", [image.file_name for image in found.images])
    if not images:
        raise ManifestError(f"cannot use {name}: its images are an empty list; name a file that lists some")
    ids = [each.id for each in found.annotations]
    has_ids = None not in ids
    if has_ids:
        _numbered(name, "annotation", ids)
    id_name = "annotation" if has_ids else "annotation number"
    label_of, classes = _classes(name, found)

    chosen = found.annotations if crowds else [each for each in found.annotations if not each.iscrowd]
    notes = []
    if len(chosen) < len(found.annotations):
        notes.append(f"left out {len(found.annotations) - len(chosen)} crowds; crowds=True takes them")
    numbers = {id(each): number for number, each in enumerate(found.annotations)} if not has_ids else {}
    keypoints = None
    if with_keypoints:
        chosen, keypoints, note = _with_keypoints(name, chosen)
        notes += note
    for each in chosen:
        if each.image_id not in images or (label_of is not None and each.category_id not in label_of):
            raise _unknown(name, f"{id_name} {each.id if has_ids else numbers[id(each)]}", each, images)
        if each.bbox is None and not with_keypoints:
            raise ManifestError(
                f"cannot take boxes from {name}: {id_name} {each.id if has_ids else numbers[id(each)]} has no bbox; "
                "name a file of instances, or compute its boxes from the polygons"
            )
    rows = np.array([images[each.image_id] for each in chosen], np.int64)
    order = np.argsort(rows, kind="stable")
    labels = [0 if label_of is None else label_of[each.category_id] for each in chosen]
    made = AnnotatedImages(
        [image.file_name for image in found.images],
        folder,
        np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(images)))]).astype(np.int64),
        np.array([each.bbox or (0.0, 0.0, 0.0, 0.0) for each in chosen], np.float64).reshape(-1, 4)[order],
        "xywh",
        np.array(labels, np.int64)[order],
        np.array([each.id if has_ids else numbers[id(each)] for each in chosen], np.int64)[order],
        id_name,
        None if keypoints is None else keypoints[order],
        np.array([(image.height or 0, image.width or 0) for image in found.images], np.int64),
        classes=classes,
        notes=tuple(notes),
    )
    return made if with_keypoints else made.without_empty()


def _numbered(name: str, what: str, ids: Sequence[_Item]) -> dict[_Item, int]:
    """Return the position of each id, none of which may come twice."""
    found = {each: number for number, each in enumerate(ids)}
    if len(found) != len(ids):
        twice = next(each for number, each in enumerate(ids) if found[each] != number)
        article = "a" if what != "image" and what != "annotation" else "an"
        raise ManifestError(
            f"cannot use {name}: it has {article} {what} {one_line(str(twice))!r} twice, so its objects cannot be told "
            "apart; give each one its own"
        )
    return found


def _classes(name: str, found: _Coco) -> tuple[dict[int | None, int] | None, tuple[str, ...] | None]:
    """Return the class of each category id, and the names; without categories the ids that occur are the classes."""
    if not found.categories:
        ids = sorted({each.category_id for each in found.annotations if each.category_id is not None})
        if not ids:
            return None, None
        return {each: number for number, each in enumerate(ids)}, tuple(map(str, ids))
    _numbered(name, "category", [each.id for each in found.categories])
    named = sorted(found.categories, key=lambda each: each.id)
    return {each.id: number for number, each in enumerate(named)}, tuple(each.name for each in named)


def _with_keypoints(
    name: str, annotations: list[_Annotation]
) -> tuple[list[_Annotation], NDArray[np.float64], list[str]]:
    """Return the annotations with a labelled keypoint, and the keypoints (n, k, 3)."""
    chosen = [each for each in annotations if each.keypoints and any(each.keypoints[2::3])]
    if not chosen:
        raise ManifestError(f"cannot take keypoints from {name}: no annotation has a labelled one; name another file")
    counts = {len(each.keypoints or ()) for each in chosen}
    if len(counts) > 1 or counts.pop() % 3:
        raise ManifestError(
            f"cannot take keypoints from {name}: annotations have {sorted({len(c.keypoints or ()) for c in chosen})} "
            "numbers; each must have x, y and visibility of the same points"
        )
    left = len(annotations) - len(chosen)
    notes = [f"left out {left} annotations without a labelled keypoint"] if left else []
    points: Any = np.array([each.keypoints for each in chosen], np.float64)
    return chosen, points.reshape(len(chosen), -1, 3), notes


def _unknown(name: str, which: str, annotation: _Annotation, images: dict[_Id, int]) -> ManifestError:
    """Return the error for an annotation of an image or a category that is not listed."""
    what, given = "image", annotation.image_id
    if annotation.image_id in images:
        what, given = "category", annotation.category_id  # type: ignore[assignment]
    listed = "images" if what == "image" else "categories"
    return ManifestError(
        f"cannot use {name}: {which} is of {what} {one_line(str(given))}, which its {listed} do not list; "
        f"add the {what}, or take the annotation out"
    )


def _content(path: str, name: str) -> bytes:
    if not is_url(path):
        with open(open_regular(path, name), "rb") as file:
            return file.read().removeprefix(BOM_UTF8)
    from prefetchd.data.stores.client import read_whole

    found = read_whole(path)
    if found is None:
        raise ManifestError(f"cannot open {name}: there is no such object; check the URL")
    return found.removeprefix(BOM_UTF8)


def images_folder(path: str, root: str | None) -> str:
    """Return the folder or prefix that a COCO file's images are in: `root`, or else the file's own."""
    return absolute_root(parent(path) if root is None else root)
