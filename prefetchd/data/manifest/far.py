"""Lists and directories that lie in a store of objects: which of them a URL is, and the images below a prefix.

Called by `open`. A prefix is listed as `folder` lists a directory: the same classes and the same order of samples.
Names come a thousand a request, so that a million images take some minutes. The listing tells each one's state, too.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence

from prefetchd.data.kinds import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from prefetchd.data.manifest.folder import LISTS, Listing, is_left_out
from prefetchd.data.manifest.folder_names import (
    LIST_SUFFIXES,
    PEEKED_BYTES,
    TEXT_SUFFIXES,
    check_class_folders,
    names_image,
    refuse_list,
)
from prefetchd.data.manifest.line import escape_path, unescape_path
from prefetchd.data.stores.client import read_bytes
from prefetchd.data.stores.names import exists, listing
from prefetchd.data.stores.pins import word_of
from prefetchd.data.stores.urls import is_web, shown, split
from prefetchd.errors import ManifestError


def is_prefix(url: str) -> bool:
    """Return whether a URL names a prefix, such as a folder, and no object.

    Raises:
        ManifestError: if the store cannot be asked.
    """
    if is_web(url):
        return False
    key = split(url)[1]
    return not key or key.endswith("/") or not exists(url)


def list_prefix(
    prefix: str, name: str, fd: int, *, label_columns: int | None
) -> tuple[tuple[str, ...] | None, Sequence[int]]:
    """Write a `tree` line for each image below `prefix` to `fd`; return the classes, and the words of the images.

    Raises:
        ManifestError: as `folder.list_folder` does, or if the store does not list.
    """
    found = _Listed()
    for url, identity in listing(prefix):
        if not url.startswith(prefix):  # the store leaves empty parts out
            raise ManifestError(f"cannot list {shown(prefix)}: a part of it is empty (//); write it without")
        found.add(url[len(prefix) :], identity)
    if not found.n_keys:
        raise ManifestError(
            f"cannot open {shown(prefix)}: the store has no object of this name, and none below it; check the URL"
        )
    lines = Listing(name, fd, refuse_lists=label_columns is None)
    lines.n_unread = found.n_unread
    folders = sorted(found.folders)
    beside = found.images.pop("", _Images())
    if label_columns is None and (found.images or len(beside.words)):
        _refuse_lists(found, prefix, name)
    words = array("Q")
    classes: tuple[str, ...] | None = None
    if label_columns != 0 and folders:
        if label_columns is None:
            check_class_folders(name, folders)
        lines.n_beside, lines.any_direct, lines.below = len(beside.words), found.any_direct, found.below
        for number, label in enumerate(folders):
            images = found.images.pop(label, _Images())
            if not len(images.words):
                lines.empty.append(label)
            words += images.write(lines, b"%d\t" % number)
        classes = tuple(folders)
    else:
        if label_columns:
            raise ManifestError(
                f"cannot take labels from {name}: it has no class prefixes; give label_columns=0 for none"
            )
        for images in found.images.values():
            beside.extend(images)
        words += beside.write(lines, b"-\t")
    lines.finish(folders, has_classes=classes is not None)
    return classes, words


class _Images:
    """The images below one class prefix, in few bytes each: their escaped paths, and their words."""

    def __init__(self) -> None:
        self._paths = bytearray()
        self.words = array("Q")

    def add(self, path: str, identity: Sequence[int | str]) -> None:
        self._paths += escape_path(path.encode("utf-8", "surrogateescape")) + b"\n"
        self.words.append(word_of(identity))

    def extend(self, other: _Images) -> None:
        self._paths += other._paths
        self.words += other.words

    def write(self, lines: Listing, label: bytes) -> array[int]:
        """Add them to `lines` in the order of a directory; return their words in that order."""
        paths = bytes(self._paths).split(b"\n")[:-1]
        # By the names of the folders, one after another, as a directory is walked through.
        order = sorted(range(len(paths)), key=lambda place: unescape_path(paths[place]).replace(b"/", b"\0"))
        for place in order:
            lines.add(label + paths[place] + b"\n")
        return array("Q", (self.words[place] for place in order))


class _Listed:
    """What lies below a prefix: images by class, and what `folder.Listing` says of a directory."""

    def __init__(self) -> None:
        self.n_keys = 0
        self.folders: set[str] = set()
        self.images: dict[str, _Images] = {}
        self.lists: list[str] = []  # may describe the images
        self.texts: list[tuple[str, Sequence[int | str]]] = []  # may do so, if they name one
        self.n_unread = Listing("", -1, refuse_lists=False).n_unread
        self.any_direct = False
        self.below: set[str] = set()

    def add(self, path: str, identity: Sequence[int | str]) -> None:
        self.n_keys += 1
        *folders, base = path.split("/")
        if any(is_left_out(part.lower()) for part in (*folders, base)):
            return
        if folders:
            self.folders.add(folders[0])
        if len(folders) > 1:
            self.below.add(folders[1])
        lower = base.lower()
        if lower.endswith(IMAGE_SUFFIXES):
            self.any_direct |= len(folders) == 1
            self.images.setdefault(folders[0] if folders else "", _Images()).add(path, identity)
        elif lower in LISTS or (not folders and lower.endswith(LIST_SUFFIXES)):
            self.lists.append(path)
        elif not folders and lower.endswith(TEXT_SUFFIXES):
            self.texts.append((path, identity))
        elif lower.endswith(UNREAD_SUFFIXES):
            self.n_unread[os.path.splitext(lower)[1]] += 1


def _refuse_lists(found: _Listed, prefix: str, name: str) -> None:
    """Raise `ManifestError` if a list that lies beside the images may have their labels."""
    for path in sorted(found.lists):
        raise refuse_list(name, prefix + path)
    for path, identity in sorted(found.texts):
        if names_image(read_bytes(prefix + path, 0, min(PEEKED_BYTES, int(identity[0])), identity)):
            raise refuse_list(name, prefix + path)
