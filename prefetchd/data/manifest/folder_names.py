"""What the top of a directory says about its class folders: whether they are classes at all.

`folder` calls it at open, unless an option says what the labels are. A split, a folder of images beside a folder of
annotations, and a list of labels all look like class folders, and train a wrong model.
"""

from __future__ import annotations

import os
import re

from prefetchd.data.kinds import IMAGE_SUFFIXES
from prefetchd.errors import ManifestError, one_line

_SPLITS = frozenset(
    ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "holdout", "trainval")
)
_IMAGES = frozenset(("image", "images", "img", "imgs", "jpegimages"))
_BESIDE_IMAGES = frozenset(
    ("label", "labels", "annotation", "annotations", "mask", "masks", "segmentationclass", "imagesets")
)
LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".xlsx", ".xls")
# A text file is a list if an image's name ends a word or stands before a comma; a README that names one is, too.
TEXT_SUFFIXES = (".txt", ".lst", ".list")
PEEKED_BYTES = 1 << 16
_IMAGE_NAME = re.compile(
    rb"\w(?:" + b"|".join(re.escape(suffix.encode()) for suffix in IMAGE_SUFFIXES) + rb")(?=[\s,;\"']|$)", re.IGNORECASE
)
_SETTLE = "give label_columns=1 if the folders are the classes all the same, or label_columns=0 for no labels"


def may_list_images(path: str) -> bool:
    """Return whether the file at `path` may list images with labels, by its suffix, and a text file by its start."""
    lower = path.lower()
    if lower.endswith(LIST_SUFFIXES):
        return True
    if not lower.endswith(TEXT_SUFFIXES):
        return False
    try:
        # A pipe would wait for its writer.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            return names_image(file.read(PEEKED_BYTES))
    except OSError:
        return False


def names_image(start: bytes) -> bool:
    """Return whether the start of a text file names an image."""
    return _IMAGE_NAME.search(start) is not None


def refuse_list(name: str, path: str) -> ManifestError:
    """Return the error for a list at `path` beside images or their class folders, which may have the labels."""
    shown = one_line(path)
    return ManifestError(
        f"cannot tell the labels of {name}: {shown} lies beside the images and may have them; serve that list "
        "instead, or give label_columns=1 for the class folders, or label_columns=0 for no labels"
    )


def check_class_folders(name: str, folders: list[str]) -> None:
    """Refuse folders at the top of the directory `name` that are no classes by their names.

    Raises:
        ManifestError: if all are splits, or some are images and others what describes them.
    """
    by_name = {folder.lower(): folder for folder in folders}
    if by_name.keys() <= _SPLITS:
        raise ManifestError(
            f"cannot take classes from {name}: its folders are splits ({_listing(folders)}); name one, as in "
            f"{one_line(os.path.join(name, folders[0]))!r}, or {_SETTLE}"
        )
    images, beside = sorted(by_name.keys() & _IMAGES), sorted(by_name.keys() & _BESIDE_IMAGES)
    if images and beside:
        raise ManifestError(
            f"cannot take classes from {name}: {one_line(by_name[beside[0]])} seems to describe the images in "
            f"{one_line(by_name[images[0]])}, and neither is a class; write a list with a line `path label` (or "
            f'`path mask`) for each image, give target="boxes" for a YOLO folder, or {_SETTLE}'
        )


def explain_depth(name: str, folders: list[str], below: list[str]) -> str:
    """Return what to say of the class `folders`, whose images all lie in the folders `below` them.

    Raises:
        ManifestError: if there is only one, which leads to the classes.
    """
    if len(folders) == 1 and len(below) > 1:
        raise ManifestError(
            f"cannot take classes from {name}: all images lie in folders below its only folder ({_listing(below)}); "
            f"give {one_line(os.path.join(name, folders[0]))!r} if those are the classes, or {_SETTLE}"
        )
    return f"all images lie in folders below the class folders ({_listing(below)}), which are no classes"


def _listing(folders: list[str]) -> str:
    return ", ".join(map(one_line, folders[:5])) + (", ..." if len(folders) > 5 else "")
