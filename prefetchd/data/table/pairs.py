"""A directory with a folder for each field into a table: `images/a.jpg`, `masks/a.png`, `captions/a.txt`.

Files of one stem, the path below the folder without its suffix, are one sample. The samples are those of the first
field's folder, in sorted order; a sample that another field lacks is refused.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prefetchd.columns.store import Columns
from prefetchd.columns.values import text_blocks
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.config.fields import parse_fields
from prefetchd.data.kinds import IMAGE_SUFFIXES
from prefetchd.errors import ConfigError, ManifestError, one_line

if TYPE_CHECKING:
    from prefetchd.config.options import Config

# Suffixes of each kind's files; a file with another one is left out.
_SUFFIXES = {
    "image": IMAGE_SUFFIXES, "mask": IMAGE_SUFFIXES, "bytes": IMAGE_SUFFIXES, "text": (".txt",), "array": (".npy",),
}  # fmt: skip
_SHOWN = 3


def read_pairs(folder: str, name: str, config: Config) -> Columns:
    """Return the table of a directory: for each field, the paths of its files from the directory on.

    Raises:
        ConfigError: if a field has no folder, or none of its kind can have one.
        ManifestError: if there are no files, two have one stem, or a sample lacks one.
    """
    found: dict[str, dict[str, str]] = {}
    for field_name, field in parse_fields(config.fields).items():
        column = field.column or field_name
        if column.startswith(".") or column in found:
            continue
        if field.kind not in _SUFFIXES:
            raise ConfigError(
                f"cannot take the field {field_name} of kind {field.kind} from a folder of {name}: folders hold "
                f"{', '.join(_SUFFIXES)}; list the samples in a .csv or .jsonl file"
            )
        if not os.path.isdir(os.path.join(folder, column)):
            raise ConfigError(
                f"cannot take the field {field_name} from {column!r}: {name} has no such folder; there are "
                f"{', '.join(_folders(folder)) or 'none'}"
            )
        found[column] = _stems(folder, column, _SUFFIXES[field.kind], name)
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
            writer.add_strings(column, text_blocks([others[stem] for stem in in_order]))
        return Columns.attach(*writer.finish({"paths": list(found)}))


def _folders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _stems(folder: str, column: str, suffixes: tuple[str, ...], name: str) -> dict[str, str]:
    """Return the path, from `folder` on, of each stem below the sub-folder `column`."""
    top = os.path.join(folder, column)
    stems: dict[str, str] = {}

    def refuse(error: OSError) -> None:
        raise ManifestError(f"cannot list {name}: {error.strerror}; check its permissions")

    for parent, folders, files in os.walk(top, onerror=refuse):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for file in sorted(files):
            if file.startswith(".") or not file.lower().endswith(suffixes):
                continue
            path = os.path.join(parent, file)
            stem = os.path.splitext(os.path.relpath(path, top))[0]
            if stem in stems:
                raise ManifestError(
                    f"cannot serve {name}: the folder {column} has two files for {one_line(stem)}: "
                    f"{one_line(os.path.basename(stems[stem]))} and {one_line(file)}; remove one"
                )
            stems[stem] = os.path.join(column, os.path.relpath(path, top))
    return stems
