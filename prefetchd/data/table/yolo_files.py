"""The files of a YOLO folder, on a disk or in a store of objects: where images and label files are, and their content.

Called by `yolo`, once, in the daemon. Of a store both prefixes are listed, and label files are read many at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from prefetchd.data.stores.urls import is_url
from prefetchd.errors import ManifestError, one_line


def yolo_folders(source: str) -> tuple[str, str] | None:
    """Return the folders of images and of label files that the folder `source` stands for; `None` if it is no YOLO one.

    They are `source/images` and `source/labels`; or `source` itself, as in `data/images/train`, and the folder whose
    path has `labels` in place of the last `images`. `source` may be a prefix of a store.
    """
    source = source.rstrip("/") if is_url(source) else os.path.abspath(os.path.expanduser(source))
    inside = os.path.join(source, "images"), os.path.join(source, "labels")
    if all(map(_is_folder, inside)):
        return inside
    head, found, tail = source.rpartition(f"{os.sep}images")
    if found and (not tail or tail.startswith(os.sep)) and _is_folder(source):
        beside = f"{head}{os.sep}labels{tail}"
        if _is_folder(beside):
            return source, beside
    return None


def _is_folder(path: str) -> bool:
    if not is_url(path):
        return os.path.isdir(path)
    from prefetchd.data.stores.names import listing

    return next(listing(f"{path}/"), None) is not None


class YoloFiles:
    """The files of a YOLO folder on a disk.

    Args:
        images: the folder of the images.
        labels: that of the label files.
        name: how errors name the data set.
    """

    def __init__(self, images: str, labels: str, name: str) -> None:
        self._images = images
        self._labels = labels
        self._name = name

    images: str
    labels: str
    name: str

    def folders(self) -> list[str]:
        """Return the names of the folders directly below that of the images."""
        return [each.name for each in self._entries(self._images) if each.is_dir()]

    def image_paths(self) -> list[str]:
        """Return the paths of all files below the folder of the images, sorted; hidden ones are passed over."""
        return list(self._walk(self._images))

    def label_paths(self) -> list[str]:
        """Return the same of the label files."""
        return list(self._walk(self._labels))

    def label_files(self, paths: Sequence[str]) -> Iterator[bytes | None]:
        """Yield the content of each label file; `None` for one that is not there."""
        for path in paths:
            try:
                with open(os.path.join(self._labels, path), "rb") as file:
                    yield file.read()
            except FileNotFoundError:
                yield None
            except OSError as error:
                raise ManifestError(
                    f"cannot use {self._name}: the label file {one_line(path)} cannot be read ({error.strerror}); "
                    "mend it"
                ) from None

    def text(self, path: str) -> bytes | None:
        """Return the content of a file that may be there."""
        if not os.path.isfile(path):
            return None
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise ManifestError(
                f"cannot read the classes of {self._name} from {one_line(path)}: {error.strerror}; mend it"
            ) from None

    def _walk(self, folder: str, inside: str = "", depth: int = 0) -> Iterator[str]:
        for entry in sorted(self._entries(os.path.join(folder, inside)), key=lambda each: each.name):
            if entry.name.startswith("."):
                continue
            path = os.path.join(inside, entry.name)
            if not entry.is_dir():
                yield path
            elif depth < 16:  # a link to a folder above would never end
                yield from self._walk(folder, path, depth + 1)

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return list(entries)
        except OSError as error:
            raise ManifestError(
                f"cannot list {one_line(folder)} of {self._name}: {error.strerror}; check the folder"
            ) from None


class FarYoloFiles(YoloFiles):
    """The same of prefixes of a store, each of which is listed once."""

    def __init__(self, images: str, labels: str, name: str) -> None:
        super().__init__(images, labels, name)
        self._image_paths = _listed(images)
        self._label_paths = _listed(labels)

    def folders(self) -> list[str]:
        """Return the first parts of the paths of images."""
        return sorted({path.partition("/")[0] for path in self._image_paths if "/" in path})

    def image_paths(self) -> list[str]:
        """Return the paths below the prefix, in the order of folders on a disk."""
        return self._image_paths

    def label_paths(self) -> list[str]:
        """Return the same of the label files."""
        return self._label_paths

    def label_files(self, paths: Sequence[str]) -> Iterator[bytes | None]:
        """Yield the content of each label file; of those that are not listed nothing is asked for."""
        from prefetchd.data.in_parallel import in_parallel

        known = set(self._label_paths)
        yield from in_parallel(lambda path: self.text(f"{self._labels}/{path}") if path in known else None, paths)

    def text(self, path: str) -> bytes | None:
        """Return the content of an object that may be there."""
        from prefetchd.data.stores.client import read_whole

        return read_whole(path, is_optional=True) if is_url(path) else None


def _listed(prefix: str) -> list[str]:
    from prefetchd.data.stores.names import listing

    paths = [url[len(prefix) + 1 :].split("/") for url, _ in listing(f"{prefix}/")]
    return ["/".join(parts) for parts in sorted(paths) if not any(part.startswith(".") for part in parts)]
