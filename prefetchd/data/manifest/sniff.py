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
from typing import NamedTuple

from prefetchd.config.options import Config
from prefetchd.data.labels import PATH_NAMES, LabelKind
from prefetchd.data.manifest.dialect import BadLine, Dialect, is_image, is_number, show
from prefetchd.data.manifest.json import JSON_SUFFIXES, is_json_object, sniff_json
from prefetchd.data.manifest.line import split_columns, tokens, trailing_numbers
from prefetchd.errors import ManifestError

SNIFFED_LINES = 256
_ASKED_OF_DISK = 8
_SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon"}
_PATH_HEADERS = frozenset(name.encode() for name in (*PATH_NAMES, "paths", "images", "files"))


class Line(NamedTuple):
    """A sample line (neither blank nor comment) of the file."""

    number: int
    raw: bytes
    offset: int
    end: int


class Sniffed(NamedTuple):
    """The dialect, and where the samples start."""

    dialect: Dialect
    skip_header: bool


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
    if os.path.splitext(config.source)[1].lower() in JSON_SUFFIXES or is_json_object(lines[0].raw):
        return Sniffed(sniff_json(config, name, [line.raw for line in lines]), False)
    separator = _table_separator(config, name, [line.raw for line in lines])
    if separator:
        return _sniff_table(config, name, lines, separator)
    return Sniffed(_sniff_text(config, [line.raw.strip() for line in lines], exists), False)


def _table_separator(config: Config, name: str, lines: list[bytes]) -> str:
    """Return the separator if the list is a table, else an empty string."""
    suffix = os.path.splitext(config.source)[1].lower()
    first = lines[0]
    if suffix == ".tsv":
        return "\t"
    if suffix == ".csv":
        return "," if b"," in first else ";" if b";" in first else "\t" if b"\t" in first else ","
    if config.x_column is not None or config.y_column is not None:
        for separator in _SEPARATORS:
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


def _sniff_text(config: Config, lines: list[bytes], exists: Callable[[bytes], bool]) -> Dialect:
    wanted = config.label_columns
    if config.target == "mask":
        return Dialect("text", "path", 1)
    if wanted is not None:
        kind: LabelKind = "none" if wanted == 0 else "number"
        if wanted == 1:
            last = [values[-1] for values in map(_values, lines) if len(values) > 1]
            kind = _number_or_class(last)
        return Dialect("text", kind, wanted)
    kinds = Counter(map(_kind_of_line, lines))
    kind, count = kinds.most_common(1)[0][0]
    several = [line for line in lines if len(_values(line)) > 1][:_ASKED_OF_DISK]
    if kind != "none" and several and all(map(exists, several)):
        return Dialect("text", "none", 0)
    return Dialect("text", kind, count, exact=kind != "class")


def _values(line: bytes) -> list[bytes]:
    return [token[0] for token in tokens(line)]


def _kind_of_line(line: bytes) -> tuple[LabelKind, int]:
    values = _values(line)
    if len(values) == 1 or is_image(values[-1]):
        return "none", 0
    count = trailing_numbers(values)
    return ("number", count) if count else ("class", 1)


def _number_or_class(fields: list[bytes]) -> LabelKind:
    return "number" if 2 * sum(map(is_number, fields)) >= len(fields) else "class"


def _sniff_table(config: Config, name: str, lines: list[Line], separator: str) -> Sniffed:
    rows: list[list[bytes]] = []
    for line in lines:
        try:
            rows.append(split_columns(line.raw, separator))
        except BadLine as bad:
            if not rows:
                raise ManifestError(
                    f"cannot use line {line.number} of {name}: {bad.what}: {show(line.raw)}; {bad.remedy}"
                ) from None
    header = _header(config, rows)
    columns = _Columns(name, separator, [field.strip() for field in rows[0]], header)
    data = [row for row in rows[header:] if len(row) == columns.count]
    first = data[0] if data else rows[0]
    x = columns.find("x_column", config.x_column) if config.x_column is not None else columns.path_column(first)
    y = columns.label_columns(config, x, first)
    kind: LabelKind = "none" if not y else "number"
    if config.target == "mask":
        if len(y) != 1:
            raise ManifestError(
                f"cannot take masks from {name}: beside the path it has {len(y)} columns to choose from; "
                "give the one with the masks as y_column"
            )
        kind = "path"
    elif len(y) == 1:
        kind = _number_or_class([row[y[0]] for row in data])
    dialect = Dialect("table", kind, len(y), separator=separator, columns=columns.count, x=x, y=y)
    return Sniffed(dialect, header)


def _header(config: Config, rows: list[list[bytes]]) -> bool:
    """Return whether the first row names the columns."""
    first = rows[0]
    asked = [part for value in (config.x_column, config.y_column) if value for part in value.split(",")]
    if any(not part.strip().isdecimal() for part in asked):
        return True
    if any(map(is_image, first)):
        return False
    if any(field.strip().lower() in _PATH_HEADERS for field in first):
        return True
    return len(rows) > 1 and any(map(is_image, rows[1]))


class _Columns:
    """The columns of a table, by name (if it has a header) or number."""

    def __init__(self, name: str, separator: str, first: list[bytes], header: bool) -> None:
        self.count = len(first)
        self._name = name
        self._first = first
        self._header = header
        self._separator = separator

    def find(self, option: str, wanted: str) -> int:
        """Return the number of the column that `wanted` names or numbers."""
        key = wanted.strip()
        encoded = key.encode("utf-8", "surrogateescape")
        if self._header and encoded in self._first:
            if self._first.count(encoded) > 1:
                raise ManifestError(
                    f"cannot use {option}={key!r} with {self._name}: {self._first.count(encoded)} columns are called "
                    "that; give the column's number, from 0"
                )
            return self._first.index(encoded)
        if key.isdecimal() and int(key) < self.count:
            return int(key)
        raise ManifestError(
            f"cannot find the column {option}={key!r} in {self._name}: {self._listing()}; "
            "give one of them by name or by number, from 0"
        )

    def path_column(self, first: list[bytes]) -> int:
        """Return the column with the path, where no option names it: the first that holds an image, else the first."""
        for column, field in enumerate(first):
            if is_image(field):
                return column
        if self._header:
            for column, title in enumerate(self._first):
                if title.lower() in _PATH_HEADERS:
                    return column
        return 0

    def label_columns(self, config: Config, x: int, first: list[bytes]) -> tuple[int, ...]:
        """Return the label columns: those named, or the last `label_columns`, or all others if that is clear."""
        wanted = config.label_columns
        if config.y_column is not None:
            named = tuple(self.find("y_column", part) for part in config.y_column.split(",") if part.strip())
            if wanted is not None and wanted != len(named):
                raise ManifestError(
                    f"cannot use label_columns={wanted} with {self._name}: y_column names {len(named)}; give one"
                )
            return named
        unnamed_index = self._header and self._first[0] == b"" and x != 0
        others = [column for column in range(self.count) if column != x and not (unnamed_index and column == 0)]
        if wanted is not None:
            if wanted > len(others):
                raise ManifestError(
                    f"cannot take label_columns={wanted} from {self._name}: beside the path there are {len(others)} "
                    f"({self._listing()}); give a smaller number"
                )
            return tuple(others[len(others) - wanted :])
        if len(others) < 2 or all(is_number(first[column]) for column in others):
            return tuple(others)
        raise ManifestError(
            f"cannot tell which columns of {self._name} are labels, as they are not all numbers: {self._listing()}; "
            "give y_column (names or numbers, separated by commas), or label_columns=0 for none"
        )

    def _listing(self) -> str:
        shown = [f"{column} {show(field, 40)}" for column, field in enumerate(self._first[:20])]
        more = f" and {self.count - 20} more" if self.count > 20 else ""
        kind = "it has the columns" if self._header else "it has no header, and its first line has the columns"
        plural = kind.replace("columns", "column") if self.count == 1 else kind
        return f"{plural} {', '.join(shown)}{more} (separated by {_SEPARATORS[self._separator]}s)"
