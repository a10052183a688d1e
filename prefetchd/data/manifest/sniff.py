"""Finds out how a list is written, from its first lines, its suffix and the options.

Called once at open, by `open`. The full pass afterwards holds every line against the result: a line that does not fit
is refused there with its number, never read in another way.

The majority of the first `SNIFFED_LINES` samples decides (the earlier kind in a tie), so that one odd line among them
is the one that is refused. The rules look at the end of a text line: one field, or an image's suffix at the end, means
no label; trailing numbers are labels, all of them; anything else is the name of a class.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from prefetchd.config.options import Config
from prefetchd.data.labels import ID_NAMES, LABEL_NAMES, PATH_NAMES, LabelKind
from prefetchd.data.manifest.dialect import Dialect, Line, is_image, is_number, show
from prefetchd.data.manifest.json import JSON_SUFFIXES, is_json_object, sniff_json
from prefetchd.data.manifest.line import tokens, trailing_numbers
from prefetchd.data.manifest.table import SEPARATORS, number_or_class, sniff_table
from prefetchd.data.stores.urls import file_name, is_url
from prefetchd.errors import ManifestError

SNIFFED_LINES = 256
_ASKED_OF_DISK = 8
_HEADERS = frozenset((*PATH_NAMES, *LABEL_NAMES, *ID_NAMES))


class Sniffed(NamedTuple):
    """The dialect, and how many of the first lines are no samples: comments and the header of a table."""

    dialect: Dialect
    skipped: int


def sniff(config: Config, name: str, lines: list[Line], exists: Callable[[bytes], bool]) -> Sniffed:
    """Return the dialect of the list whose first samples are `lines` (at least one).

    Args:
        config: the options, and the suffix of `source`.
        name: the list's name in errors.
        lines: the first sample lines, `SNIFFED_LINES` at most.
        exists: returns whether a path of the list is a file; called for a few lines only.

    Raises:
        ManifestError: if an option names a column that is not there, or the columns are ambiguous.
    """
    raw = [line.raw for line in lines]
    skipped = 0
    if suffix_of(config.source) in JSON_SUFFIXES or is_json_object(raw[0]):
        dialect = sniff_json(config, name, lines)
    elif separator := _table_separator(config, name, raw):
        dialect, skipped = sniff_table(config, name, lines, separator, exists)
        if skipped and dialect.label_kind in ("class", "classes", "none"):
            _refuse_second_header(name, lines[skipped - 1], lines[skipped:])
    else:
        dialect = _sniff_text(config, name, [line.strip() for line in raw], exists)
        if dialect.label_kind in ("class", "classes", "none"):
            _refuse_header(name, [line.strip() for line in raw], dialect.label_count, exists)
    return Sniffed(_with_options(config, name, dialect), skipped)


def _with_options(config: Config, name: str, dialect: Dialect) -> Dialect:
    """Add `label_separator` and `missing_label` to the dialect.

    Raises:
        ManifestError: if they do not go with the labels.
    """
    for option in ("label_separator", "missing_label"):
        if getattr(config, option) and dialect.label_kind in ("none", "path"):
            what = "it has no labels" if dialect.label_kind == "none" else "its labels are masks"
            raise ManifestError(f"cannot use {option} with {name}: {what}; leave the option out")
    if config.missing_label and dialect.label_kind == "number" and not is_number(config.missing_label.encode()):
        raise ManifestError(
            f"cannot use missing_label={config.missing_label!r} with {name}: its labels are numbers; give a number"
        )
    return replace(dialect, label_separator=config.label_separator or "", missing=config.missing_label or None)


def suffix_of(source: str) -> str:
    """Return the suffix of the name of a file or object, in lower case."""
    return os.path.splitext(file_name(source) if is_url(source) else source)[1].lower()


def _table_separator(config: Config, name: str, lines: list[bytes]) -> str:
    """Return the separator if the list is a table, else an empty string."""
    suffix = suffix_of(config.source)
    first = lines[0]
    if suffix == ".tsv":
        return "\t"
    if suffix == ".csv":
        return "," if b"," in first else ";" if b";" in first else "\t" if b"\t" in first else ","
    if config.x_column is not None or config.y_column is not None:
        for separator in SEPARATORS:
            if separator.encode() in first:
                return separator
        raise ManifestError(
            f"cannot use x_column or y_column with {name}: its first line ({show(first)}) has no tab or comma; "
            "separate the columns, or leave the options out"
        )
    if (rows := _columns_by(b"\t", lines)) is not None:
        last = rows[0][-1].split()
        return "" if len(last) > 1 and all(map(is_number, last)) else "\t"
    # A comma may be part of a file's name; after the suffix of an image, in every line, it separates.
    if (rows := _columns_by(b",", lines)) is not None:
        below = rows[1:] or rows
        masks = config.target == "mask"
        if all(is_image(row[0].strip()) and is_image(row[-1].strip()) == masks for row in below):
            return ","
    return ""


def _columns_by(separator: bytes, lines: list[bytes]) -> list[list[bytes]] | None:
    """Return the fields of `lines` if each has the same number of them, two at least, and none is empty."""
    rows = [line.split(separator) for line in lines]
    even = len(rows[0]) > 1 and {len(row) for row in rows} == {len(rows[0])}
    return rows if even and all(field.strip() for row in rows for field in row) else None


def _sniff_text(config: Config, name: str, lines: list[bytes], exists: Callable[[bytes], bool]) -> Dialect:
    wanted = config.label_columns
    if config.target == "mask":
        return Dialect("text", "path", 1)
    if config.label_separator and wanted != 0:
        if config.label_separator.isspace():
            raise ManifestError(
                f"cannot use label_separator={config.label_separator!r} with {name}: white space separates its fields; "
                "separate the labels by another character, or write a table (.csv, .tsv)"
            )
        return Dialect("text", "classes", 1)
    if wanted is not None:
        kind: LabelKind = "none" if wanted == 0 else "number"
        if wanted == 1:
            last = [values[-1] for values in map(_values, lines) if len(values) > 1]
            kind = number_or_class(last)
        return Dialect("text", kind, wanted)
    kinds = Counter(map(_kind_of_line, lines))
    kind, count = kinds.most_common(1)[0][0]
    several = [line for line in lines if len(_values(line)) > 1][:_ASKED_OF_DISK]
    are_paths = bool(several) and all(map(exists, several))
    if kind != "none" and are_paths:
        return Dialect("text", "none", 0)
    if kind == "none" and not are_paths:
        _refuse_label_first(name, lines, exists)
    return Dialect("text", kind, count, exact=kind != "class")


def _refuse_second_header(name: str, header: Line, below: list[Line]) -> None:
    """Raise `ManifestError` if the header comes again, as in joined tables: its title would become a class."""
    again = next((line.number for line in below if line.raw.strip() == header.raw.strip()), None)
    if again is not None:
        raise ManifestError(
            f"cannot use line {again} of {name}: it is the header again ({show(header.raw.strip())}), as in joined "
            "tables; take it out, or put '# ' before it"
        )


def _refuse_header(name: str, lines: list[bytes], label_count: int, exists: Callable[[bytes], bool]) -> None:
    """Raise `ManifestError` if the first text line seems to name the columns: it would be a sample and a class.

    It does if its words are usual names of columns, or if its path alone has no suffix of an image, and is no file.
    Where labels are numbers, a header is refused as a line without one.
    """
    first, *others = [_path_field(line, label_count) for line in lines]
    is_odd = not is_image(first) and all(map(is_image, others))
    is_named = label_count > 0 and _is_header(_values(lines[0]))
    if others and (is_odd or is_named) and not exists(first):
        raise ManifestError(
            f"cannot use {name}: its first line ({show(lines[0])}) looks like a header; put '# ' before it, or "
            "write a table (.csv, .tsv)"
        )


def _path_field(line: bytes, label_count: int) -> bytes:
    """Return the path of a text line by its number of labels, or what stands in its place."""
    values = _values(line)
    if line.startswith(b'"'):
        return values[0]
    return line.rsplit(None, label_count)[0] if len(values) > label_count else line


def _is_header(values: list[bytes]) -> bool:
    """Return whether all fields are usual names of columns."""
    return all(value.decode("utf-8", "replace").strip().lower() in _HEADERS for value in values)


def _refuse_label_first(name: str, lines: list[bytes], exists: Callable[[bytes], bool]) -> None:
    """Raise `ManifestError` if most lines are a label and then a path, which would be read as a path with a space.

    Names of files begin with a number and a space, too: the disk decides, and without an answer the number.
    """
    words = [(line, _values(line)) for line in lines if not line.startswith(b'"')]
    led = [(line, values) for line, values in words if len(values) > 1 and not is_image(values[0])]
    if 2 * len(led) <= len(lines):
        return
    first = led[:_ASKED_OF_DISK]
    if any(exists(line) for line, _ in first):
        return
    rests = [line.split(None, 1)[1] for line, _ in first]
    if all(map(exists, rests)) or all(is_number(values[0]) for _, values in first):
        raise ManifestError(
            f"cannot tell what {show(first[0][0], 60)} is, a line of {name}: a label comes first, or the path has a "
            f"space; write the path first, as in {show(rests[0], 40)[1:-1]} {show(first[0][1][0], 40)[1:-1]}, or give "
            "label_columns=0 if all of it is the path"
        )


def _values(line: bytes) -> list[bytes]:
    return [token[0] for token in tokens(line)]


def _kind_of_line(line: bytes) -> tuple[LabelKind, int]:
    values = _values(line)
    if len(values) == 1 or is_image(values[-1]):
        return "none", 0
    count = trailing_numbers(values)
    return ("number", count) if count else ("class", 1)
