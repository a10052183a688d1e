"""Lists a directory of class folders into a `tree` list in a memfd.

Called by `open`. Folders and files are taken in sorted order, one folder at a time, so that memory is bounded by the
largest folder. Hidden names and folders of operating systems and tools are left out. Links to folders are followed, but
a folder is never entered from inside itself.
"""

from __future__ import annotations

import logging
import os
from collections import Counter

from prefetchd.data.files import write_all
from prefetchd.data.kinds import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from prefetchd.data.manifest.dialect import MAX_LINE_BYTES
from prefetchd.data.manifest.folder_names import check_class_folders, explain_depth, may_list_images, refuse_list
from prefetchd.data.manifest.line import escape_path
from prefetchd.errors import ManifestError, one_line

_WRITE_BYTES = 1 << 20
# Folders that archivers, file managers, file systems and Python leave beside data: neither classes nor data.
_LEFT_OUT = frozenset(
    (
        "__macosx", "__pycache__", "lost+found", "@eadir", "#recycle", "@recycle", "$recycle.bin", "#snapshot",
        "@recently-snapshot", "system volume information",
    )
)  # fmt: skip
# Lists that describe the images beside them at any depth, as Hugging Face's `datasets` writes them. At the top of the
# directory any list may.
LISTS = ("metadata.csv", "metadata.jsonl", "metadata.parquet")

log = logging.getLogger("prefetchd")


def is_left_out(lower: str) -> bool:
    """Return whether the name of a file or folder, in lower case, is hidden, or one of a system or tool."""
    return lower.startswith(".") or lower in _LEFT_OUT


def list_folder(folder: str, name: str, fd: int, *, label_columns: int | None) -> tuple[str, ...] | None:
    """Write a `tree` line for each image under `folder` to `fd`; return the classes.

    The classes are the sorted names of the folders in it; images beside them belong to none and are left out. Without
    folders, or with 0 `label_columns`, all images are taken, without labels, and the classes are `None`.

    Raises:
        ManifestError: if a folder cannot be listed, there are no images, a list beside them may have their labels, or
            the folders are no classes by their names.
    """
    listing = Listing(name, fd, refuse_lists=label_columns is None)
    files, folders = listing.entries(folder, at_top=True)
    if label_columns != 0 and folders:
        if label_columns is None:
            check_class_folders(name, folders)
        listing.n_beside = len(files)
        top = os.stat(folder)
        for number, label in enumerate(folders):
            n_before = listing.lines
            listing.walk(os.path.join(folder, label), label, b"%d\t" % number, ((top.st_dev, top.st_ino),))
            if listing.lines == n_before:
                listing.empty.append(label)
        classes = tuple(folders)
    else:
        if label_columns:
            raise ManifestError(
                f"cannot take labels from the directory {name}: it has no class folders; give label_columns=0 for none"
            )
        listing.n_unread.clear()  # the walk looks at the same folder again
        listing.walk(folder, "", b"-\t", ())
        classes = None
    listing.finish(folders, has_classes=classes is not None)
    return classes


class Listing:
    """Walks through folders; gathers lines and writes them in large pieces.

    Attributes:
        lines: number of lines so far.
        empty: class folders without an image.
        n_beside: number of images that lie beside the class folders.
        n_unread: number of images by suffix that were left out, as OpenCV does not read them.
        any_direct: whether an image lies in a class folder itself, and not in a folder below it.
        below: the names of folders in class folders.
    """

    def __init__(self, name: str, fd: int, *, refuse_lists: bool) -> None:
        self.lines = 0
        self.empty: list[str] = []
        self.n_beside = 0
        self.n_unread: Counter[str] = Counter()
        self.any_direct = False
        self.below: set[str] = set()
        self._name = name
        self._fd = fd
        self._refuse_lists = refuse_lists
        self._pieces = bytearray()

    @property
    def unread(self) -> str:
        """The images that were left out, such as `3 of .heic`."""
        return ", ".join(f"{count} of {suffix}" for suffix, count in self.n_unread.most_common(5))

    def finish(self, folders: list[str], *, has_classes: bool) -> None:
        """Write what is left, and check what was found in the directory and its `folders`.

        Raises:
            ManifestError: if there are no images, or the folders are no classes.
        """
        self.flush()
        if not self.lines:
            beside = f", and {self.n_beside} images beside them" if self.n_beside else ""
            unread = f", and {self.unread} which OpenCV does not read" if self.n_unread else ""
            raise ManifestError(
                f"cannot serve the directory {self._name}: no images in it ({len(folders)} class folders{beside}"
                f"{unread}; suffixes {' '.join(IMAGE_SUFFIXES[:8])} ...); give a directory with a folder of images for "
                "each class"
            )
        if self._refuse_lists:
            if has_classes:
                self.check_depth(folders)
            else:
                log.warning(
                    "%s: there are no class folders, and so no labels: y is each image's number; give the folder "
                    "above it, or label_columns=0 for no labels",
                    self._name,
                )
        self.warn()

    def warn(self) -> None:
        """Log once what was left out."""
        if self.n_unread:
            log.warning("%s: left out %s, which OpenCV does not read; convert them", self._name, self.unread)
        if self.n_beside:
            beside = "an image that lies" if self.n_beside == 1 else f"{self.n_beside} images that lie"
            log.warning("%s: left out %s in no class folder", self._name, beside)
        if self.empty:
            shown = ", ".join(map(one_line, self.empty[:5])) + (", ..." if len(self.empty) > 5 else "")
            log.warning(
                "%s: class folders without images are classes all the same (%d: %s); remove those that are no classes",
                self._name,
                len(self.empty),
                shown,
            )

    def check_depth(self, folders: list[str]) -> None:
        """Log where the class `folders` may be none, or refuse them: there is only one, or no image lies in them."""
        if not self.any_direct:
            log.warning(
                "%s: %s; check the directory", self._name, explain_depth(self._name, folders, sorted(self.below))
            )
        elif len(folders) == 1:
            log.warning(
                "%s: there is only one class folder (%s), and all labels are 0; check the directory",
                self._name,
                one_line(folders[0]),
            )

    def flush(self) -> None:
        """Write the lines gathered so far."""
        write_all(self._fd, self._pieces)
        self._pieces = bytearray()

    def entries(self, folder: str, *, at_top: bool = False) -> tuple[list[str], list[str]]:
        """Return the names of the images and of the folders in `folder`, sorted; count what is left out."""
        files, folders, lists = [], [], []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    lower = entry.name.lower()
                    if is_left_out(lower):
                        continue
                    if entry.is_dir():
                        folders.append(entry.name)
                    elif lower.endswith(IMAGE_SUFFIXES):
                        files.append(entry.name)
                    elif self._refuse_lists and (lower in LISTS or (at_top and may_list_images(entry.path))):
                        lists.append(entry.path)
                    elif lower.endswith(UNREAD_SUFFIXES):
                        self.n_unread[os.path.splitext(lower)[1]] += 1
        except OSError as error:
            where = ascii(folder)[1:-1]
            raise ManifestError(
                f"cannot list the folder {where} of {self._name}: {error.strerror} (errno {error.errno}); "
                "check its permissions, or take it out"
            ) from None
        if lists and (files or folders):
            raise refuse_list(self._name, min(lists))
        return sorted(files), sorted(folders)

    def walk(self, folder: str, inside: str, label: bytes, above: tuple[object, ...]) -> None:
        """Add the images under `folder`, which is `inside` of the directory; `label` is the class and a tab."""
        here = os.stat(folder)
        identity = (here.st_dev, here.st_ino)
        if identity in above:
            return
        files, folders = self.entries(folder)
        if inside and os.sep not in inside:
            self.any_direct |= bool(files)
            self.below.update(folders)
        is_folder = dict.fromkeys(files, False) | dict.fromkeys(folders, True)
        for entry in sorted(is_folder):
            path = os.path.join(inside, entry)
            if is_folder[entry]:
                self.walk(os.path.join(folder, entry), path, label, (*above, identity))
            else:
                self.add(label + escape_path(path.encode("utf-8", "surrogateescape")) + b"\n")

    def add(self, line: bytes) -> None:
        """Add the line of an image."""
        assert len(line) <= MAX_LINE_BYTES
        self._pieces += line
        self.lines += 1
        if len(self._pieces) >= _WRITE_BYTES:
            self.flush()
