"""A directory or prefix with a folder for each field into a table: `images/a.jpg`, `masks/a.png`, `captions/a.txt`.

Files of one stem, the path below the folder without its suffix, are one sample. The samples are those of the first
field's folder, in sorted order; a sample that another field lacks is refused.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from prefetchd.columns.store import Columns
from prefetchd.columns.values import text_blocks
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.config.fields import parse_fields
from prefetchd.data.kinds import IMAGE_SUFFIXES
from prefetchd.data.stores.urls import is_url
from prefetchd.errors import ConfigError, ManifestError, one_line

if TYPE_CHECKING:
    from prefetchd.config.options import Config

# Suffixes of each kind's files; a file with another one is left out.
_SUFFIXES = {
    "image": IMAGE_SUFFIXES, "mask": IMAGE_SUFFIXES, "bytes": IMAGE_SUFFIXES, "text": (".txt",), "array": (".npy",),
}  # fmt: skip
_SHOWN = 3


class _File(NamedTuple):
    """A file or object: its path from the data set's folder on, and the word of its identity, 0 for a file's."""

    path: str
    word: int


def read_pairs(folder: str, name: str, config: Config) -> tuple[Columns, Mapping[str, Sequence[int]]]:
    """Return the table of a directory or prefix: for each field, the paths of its files from there on.

    With it come the words of objects by column, as `stores.pins` writes them.

    Raises:
        ConfigError: if a field has no folder, or none of its kind can have one.
        ManifestError: if there are no files, two have one stem, or a sample lacks one.
    """
    found: dict[str, dict[str, _File]] = {}
    for field_name, field in parse_fields(config.fields).items():
        column = field.column or field_name
        if column.startswith(".") or column in found:
            continue
        if field.kind not in _SUFFIXES:
            raise ConfigError(
                f"cannot take the field {field_name} of kind {field.kind} from a folder of {name}: folders hold "
                f"{', '.join(_SUFFIXES)}; list the samples in a .csv or .jsonl file"
            )
        files: Iterable[_File]
        if is_url(folder):
            files, n_files = _objects(folder, column)
            if not n_files:
                raise ConfigError(
                    f"cannot take the field {field_name} from {column!r}: {name} has nothing below such a prefix; name "
                    "the field's own as column"
                )
        elif os.path.isdir(os.path.join(folder, column)):
            files = _files(folder, column, name)
        else:
            raise ConfigError(
                f"cannot take the field {field_name} from {column!r}: {name} has no such folder; there are "
                f"{', '.join(_folders(folder)) or 'none'}"
            )
        found[column] = _stems(files, column, _SUFFIXES[field.kind], name)
    if not found:
        raise ConfigError(
            f"cannot serve {name}: no field has a folder of its own; give one the folder's name as column"
        )
    first, stems = next(iter(found.items()))
    if not stems:
        raise ManifestError(f"cannot serve {name}: the folder {first} has no files of its kind; check its suffixes")
    for column, others in found.items():
        if lacking := sorted(stems.keys() - others.keys()):
            shown = ", ".join(map(one_line, lacking[:_SHOWN]))
            raise ManifestError(
                f"cannot serve {name}: {len(lacking)} of {len(stems)} samples of {first} have no file in {column}, "
                f"such as {shown}; complete them, or list the samples in a .csv file"
            )
    in_order = sorted(stems)
    with ColumnsWriter(len(in_order)) as writer:
        for column, others in found.items():
            writer.add_strings(column, text_blocks([others[stem].path for stem in in_order]))
        columns = Columns.attach(*writer.finish({"paths": list(found)}))
    if not is_url(folder):
        return columns, {}
    return columns, {column: array("Q", (files[stem].word for stem in in_order)) for column, files in found.items()}


def _folders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _files(folder: str, column: str, name: str) -> Iterator[_File]:
    """Yield the files below the sub-folder `column`."""

    def refuse(error: OSError) -> None:
        raise ManifestError(f"cannot list {name}: {error.strerror}; check its permissions")

    top = os.path.join(folder, column)
    for parent, folders, files in os.walk(top, onerror=refuse):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for file in sorted(files):
            yield _File(os.path.join(column, os.path.relpath(os.path.join(parent, file), top)), 0)


def _objects(folder: str, column: str) -> tuple[list[_File], int]:
    """Return the objects below the prefix `column`, and how many there are with hidden ones."""
    from prefetchd.data.stores.names import listing
    from prefetchd.data.stores.pins import word_of

    found = [
        _File(url[len(folder) + 1 :], word_of(identity))
        for url, identity in listing(f"{folder}/{column}/")
        if not url.endswith("/")  # which some programs make for a folder
    ]
    shown = [file for file in found if not any(part.startswith(".") for part in file.path.split("/"))]
    return shown, len(found)


def _stems(files: Iterable[_File], column: str, suffixes: tuple[str, ...], name: str) -> dict[str, _File]:
    """Return the file of each stem; those with another suffix are left out."""
    stems: dict[str, _File] = {}
    for file in files:
        base = file.path.rpartition("/")[2]
        if base.startswith(".") or not base.lower().endswith(suffixes):
            continue
        stem = os.path.splitext(file.path[len(column) + 1 :])[0]
        if stem in stems:
            raise ManifestError(
                f"cannot serve {name}: the folder {column} has two files for {one_line(stem)}: "
                f"{one_line(os.path.basename(stems[stem].path))} and {one_line(base)}; remove one"
            )
        stems[stem] = file
    return stems
