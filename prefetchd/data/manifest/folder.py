"""Lists a directory of class folders into a `tree` list in a memfd.

Called by `open`. Folders and files are taken in sorted order, one folder at a time, so that memory is bounded by the
largest folder. Names that begin with a dot are left out. Links to folders are followed, but a folder is never entered
from inside itself.
"""

from __future__ import annotations

import os

from prefetchd.data.kinds import IMAGE_SUFFIXES
from prefetchd.data.manifest.dialect import MAX_LINE_BYTES
from prefetchd.data.manifest.line import escape_path
from prefetchd.errors import ManifestError

_WRITE_BYTES = 1 << 20


def list_folder(folder: str, name: str, fd: int, *, labels: bool) -> tuple[str, ...] | None:
    """Write a `tree` line for each image under `folder` to `fd`; return the classes.

    The classes are the sorted names of the folders in it; images beside them belong to none and are left out.
    Without folders, or with `labels` false, all images are taken, without labels, and the classes are `None`.

    Raises:
        ManifestError: if a folder cannot be listed, or there are no images.
    """
    files, folders = _entries(folder, name)
    writer = _Writer(fd)
    if labels and folders:
        for number, label in enumerate(folders):
            _walk(os.path.join(folder, label), label, b"%d\t" % number, name, writer, ())
        classes = tuple(folders)
    else:
        _walk(folder, "", b"-\t", name, writer, ())
        classes = None
    writer.flush()
    if not writer.lines:
        beside = f", and {len(files)} images beside them" if files and folders else ""
        raise ManifestError(
            f"cannot serve the directory {name}: no images in it ({len(folders)} class "
            f"folders{beside}; suffixes "
            f"{' '.join(IMAGE_SUFFIXES[:8])} ...); give a directory with a folder of images for each class"
        )
    return classes


class _Writer:
    """Gathers lines and writes them in large pieces."""

    def __init__(self, fd: int) -> None:
        self.lines = 0
        self._fd = fd
        self._pieces = bytearray()

    def add(self, line: bytes) -> None:
        self._pieces += line
        self.lines += 1
        if len(self._pieces) >= _WRITE_BYTES:
            self.flush()

    def flush(self) -> None:
        while self._pieces:
            del self._pieces[: os.write(self._fd, self._pieces)]


def _entries(folder: str, name: str) -> tuple[list[str], list[str]]:
    """Return the names of the images and of the folders in `folder`, sorted, without hidden ones."""
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                    files.append(entry.name)
    except OSError as error:
        where = ascii(folder)[1:-1]
        raise ManifestError(
            f"cannot list the folder {where} of {name}: {error.strerror} (errno {error.errno}); "
            "check its permissions, or take it out"
        ) from None
    return sorted(files), sorted(folders)


def _walk(folder: str, inside: str, label: bytes, name: str, writer: _Writer, above: tuple[object, ...]) -> None:
    here = os.stat(folder)
    identity = (here.st_dev, here.st_ino)
    if identity in above:
        return
    files, folders = _entries(folder, name)
    is_folder = dict.fromkeys(files, False) | dict.fromkeys(folders, True)
    for entry in sorted(is_folder):
        path = os.path.join(inside, entry)
        if is_folder[entry]:
            _walk(os.path.join(folder, entry), path, label, name, writer, (*above, identity))
        else:
            line = label + escape_path(path.encode("utf-8", "surrogateescape")) + b"\n"
            assert len(line) <= MAX_LINE_BYTES
            writer.add(line)
