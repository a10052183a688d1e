"""CSV and TSV files into a table: the columns that the fields name. In the daemon, once a data set.

The first line is a header if it has all the columns' names; columns by number (`"0"`) need none. Labels become numbers
here, so that the table has no text of theirs.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.columns.store import Columns
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.data.files import cannot_open
from prefetchd.data.table.class_lists import label_columns
from prefetchd.data.table.text import TextColumn, array_numbers, check_no_header, label_numbers
from prefetchd.errors import ConfigError, ManifestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.fields import Field

    Reader = Any  # of the module csv, which names no type of it

_BLOCK_ROWS = 1 << 14
_MAX_CELL = 1 << 26
_SNIFFED_BYTES = 1 << 16


def read_csv(path: str, name: str, fields: Mapping[str, Field], *, has_tabs: bool = False) -> tuple[Columns, int]:
    """Return the table, which the caller owns, and the line of its first row; 0 if rows are not lines.

    Args:
        path: of the file.
        name: of the file in errors.
        fields: the option. A label's or an array's column may name several, with commas between them.
        has_tabs: whether tabs separate the columns; else it is found out.

    Raises:
        ManifestError: if the file cannot be read, a row is not as the header, or a label is missing.
        ConfigError: if a column does not exist.
    """
    csv.field_size_limit(_MAX_CELL)
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            delimiter = "\t" if has_tabs else _delimiter(file.readline())
            file.seek(0)
            return _read(csv.reader(file, delimiter=delimiter, strict=True), name, fields)
    except OSError as error:
        raise cannot_open(name, error) from None


def _delimiter(first_line: str) -> str:
    return max(",;\t", key=first_line[:_SNIFFED_BYTES].count)


def _read(reader: Reader, name: str, fields: Mapping[str, Field]) -> tuple[Columns, int]:
    rows = _rows(reader, name)
    header = next(rows, None)
    if header is None:
        raise ManifestError(f"cannot serve {name}: it is empty; give a file with a line for each sample")
    wanted = _wanted(fields)
    has_header = _is_header(header, wanted)
    groups = {column: _places(column, header, name, has_header=has_header) for column in wanted}
    singles = sorted({place for places in groups.values() for place in places})
    texts = {place: TextColumn() for place in singles}
    pending = [] if has_header else [header]
    first_line = 2 if has_header else 1
    n_rows = 0
    for row in rows:
        if len(row) != len(header):
            raise ManifestError(
                f"cannot serve {name}: line {reader.line_num} has {len(row)} columns, and the first one {len(header)}; "
                "mend the line, or put quotes around text with the separator in it"
            )
        pending.append(row)
        n_rows += 1
        if len(pending) >= _BLOCK_ROWS:
            _extend(texts, pending)
            pending = []
    _extend(texts, pending)
    is_a_line_each = reader.line_num == n_rows + 1
    n_rows += first_line == 1  # which is a row, and no header
    if first_line == 1:
        for field_name, field in fields.items():
            if field.kind == "label":
                for place in groups[field.column or field_name]:
                    check_no_header(texts[place], f"column {place} of {name}")
    table = _table(name, fields, groups, texts, n_rows)
    return table, first_line if is_a_line_each else 0


def _rows(reader: Reader, name: str) -> Iterator[list[str]]:
    """Yield the rows that are not empty."""
    try:
        yield from filter(None, reader)
    except csv.Error as error:
        raise ManifestError(f"cannot serve {name}: line {reader.line_num}: {error}; mend the line") from None


def _wanted(fields: Mapping[str, Field]) -> list[str]:
    columns = [field.column or name for name, field in fields.items()]
    return [column for column in (*columns, *label_columns(fields)) if not column.startswith(".")]


def _is_header(line: list[str], wanted: list[str]) -> bool:
    """Return whether the first line names columns: not if all are given by number.

    A sample may hold the number of a column. Only `0,1,2`, or the same behind an index, is a header, as of pandas.
    """
    if not all(part.strip().isdecimal() for column in wanted for part in column.split(",")):
        return True
    titles = [title for title in line if title]
    return titles == [str(number) for number in range(len(titles))]


def _places(column: str, header: list[str], name: str, *, has_header: bool) -> tuple[int, ...]:
    """Return where a column is, or several with commas between them: by name, or by number."""
    parts = [column] if column in header else [part.strip() for part in column.split(",")]
    if all(part.isdecimal() and int(part) < len(header) and not (has_header and part in header) for part in parts):
        return tuple(map(int, parts))
    if not has_header:
        raise ConfigError(f"cannot find the column {column!r} in {name}: its first line has {len(header)}, from 0")
    twice = next((part for part in parts if header.count(part) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"cannot tell which column {twice!r} of {name} is meant: its first line has {header.count(twice)} of this "
            "name; rename one"
        )
    if all(part in header for part in parts):
        return tuple(header.index(part) for part in parts)
    missing = next(part for part in parts if part not in header)
    near = difflib.get_close_matches(missing, header, 1)
    hint = f"did you mean {near[0]!r}" if near else f"there are {', '.join(map(repr, header[:20]))}"
    raise ConfigError(f"cannot find the column {missing!r} in {name}: {hint}; give each field its column")


def _extend(texts: dict[int, TextColumn], rows: list[list[str]]) -> None:
    for place, text in texts.items():
        text.extend([row[place] for row in rows])


def _table(
    name: str,
    fields: Mapping[str, Field],
    groups: dict[str, tuple[int, ...]],
    texts: dict[int, TextColumn],
    n_rows: int,
) -> Columns:
    """Write the table: numbers where a label or an array asks for them, else text."""
    classes: dict[str, list[str]] = {}
    kinds: dict[str, set[str]] = {}
    for field_name, field in fields.items():
        kinds.setdefault(field.column or field_name, set()).add(field.kind)
    for column in label_columns(fields):
        kinds.setdefault(column, set()).add("label")
    with ColumnsWriter(n_rows) as writer:
        for column, places in groups.items():
            if kinds[column] == {"label"} or len(places) > 1 or _is_numeric(kinds[column], texts[places[0]]):
                where = f"the column {column!r} of {name}"
                if "array" in kinds[column]:
                    arrays = [array_numbers(texts[place], n_rows, where) for place in places]
                    writer.add_numbers(column, _stacked(arrays))
                    continue
                found = [label_numbers(texts[place], n_rows, where) for place in places]
                names = [each for _, each in found if each is not None]
                if len(places) > 1 and names:
                    raise ManifestError(
                        f"cannot serve {name}: the columns {column!r} hold text such as {names[0][0]!r}, and several "
                        "columns of one field must be numbers"
                    )
                if names:
                    classes[column] = list(names[0])
                writer.add_numbers(column, _stacked([numbers for numbers, _ in found]))
            else:
                writer.add_strings(column, texts[places[0]].blocks)
        return Columns.attach(*writer.finish({"classes": classes, "is_text": True}))


def _is_numeric(kinds: set[str], text: TextColumn) -> bool:
    """Return whether a column of a field of kind array holds a number a row, and not the paths of files."""
    first = next(iter(text), "")
    try:
        float(first)
    except ValueError:
        return False
    return kinds <= {"array", "label"}


def _stacked(columns: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)
