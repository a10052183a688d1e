"""Finds out how a table is written: has it a header, and which columns have the path and the labels.

`sniff` calls it once, at open, with the first lines of a list whose columns are separated. What is ambiguous is refused
with the option that settles it; what a rule decides is logged.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

from prefetchd.config.options import Config
from prefetchd.data.labels import (
    ID_NAMES,
    LABEL_NAMES,
    MASK_NAMES,
    PATH_NAMES,
    PLAIN_IDS,
    LabelKind,
    find_named,
    is_id_name,
    is_pandas_index,
    known_label,
    may_be_id,
    plain,
)
from prefetchd.data.manifest.dialect import BadLine, Dialect, Line, is_image, is_number, show
from prefetchd.data.manifest.line import NOT_A_NUMBER, split_columns
from prefetchd.errors import ManifestError

SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon"}
_ASKED_OF_DISK = 8
_COUNTED_ROWS = 3  # so many rows whose first column counts up are numbered
_PATH_TITLES = (*PATH_NAMES, "paths", "images", "files")
_PLAIN_PATHS = frozenset(map(plain, _PATH_TITLES))
_PLAIN_OTHERS = frozenset(map(plain, (*LABEL_NAMES, *ID_NAMES)))
_ONE_HOT = NOT_A_NUMBER | {b"0", b"1", b"-1", b"0.0", b"1.0", b"-1.0"}  # -1 says "uncertain"
_COUNTED = re.compile(r"\d+|[._ -]?[xyz]$")  # what differs in titles of one vector: x1 and x2, eye_x and eye_y

log = logging.getLogger("prefetchd")


def sniff_table(
    config: Config, name: str, lines: Sequence[Line], separator: str, exists: Callable[[bytes], bool]
) -> tuple[Dialect, int]:
    """Return the dialect of a table, and how many of its first lines are comments and header.

    Args:
        config: the options.
        name: the list's name in errors.
        lines: the first lines, one at least.
        separator: what separates the columns.
        exists: returns whether a path of the list is a file; called for a few fields only.

    Raises:
        ManifestError: if an option names a column that is not there, or the columns are ambiguous.
    """
    rows = _rows(name, lines, separator)
    n_comments = _leading_comments(rows)
    rows = rows[n_comments:]
    header = _header(config, name, rows, exists)
    columns = _Columns(name, separator, rows[0], header, [row for row in rows[header:] if len(row) == len(rows[0])])
    x = (
        columns.find("x_column", config.x_column)
        if config.x_column is not None
        else columns.path_column(has_masks=config.target == "mask")
    )
    y = columns.label_columns(config, x)
    kind: LabelKind = "none" if not y else "number"
    if config.target == "mask":
        if len(y) != 1:
            raise ManifestError(
                f"cannot take masks from {name}: beside the path it has {len(y)} columns to choose from; "
                "give the one with the masks as y_column"
            )
        kind = "path"
    elif config.label_separator and y:
        if len(y) != 1:
            raise ManifestError(
                f"cannot use label_separator={config.label_separator!r} with {name}: {len(y)} columns are labels; "
                "give the one with the lists as y_column"
            )
        kind = "classes"
    elif len(y) == 1:
        kind = number_or_class([row[y[0]] for row in columns.data])
    dialect = Dialect("table", kind, len(y), separator=separator, columns=columns.count, x=x, y=y)
    return dialect, n_comments + header


def number_or_class(fields: list[bytes]) -> LabelKind:
    """Return the kind of most of the label fields that are there; numbers in a tie."""
    there = [field for field in fields if field.strip().lower() not in NOT_A_NUMBER]
    return "number" if 2 * sum(map(is_number, there)) >= len(there) else "class"


def _rows(name: str, lines: Sequence[Line], separator: str) -> list[list[bytes]]:
    rows: list[list[bytes]] = []
    for line in lines:
        try:
            rows.append(split_columns(line.raw, separator))
        except BadLine as bad:
            if not rows:
                raise ManifestError(
                    f"cannot use line {line.number} of {name}: {bad.what}: {show(line.raw)}; {bad.remedy}"
                ) from None
    return rows


def _leading_comments(rows: list[list[bytes]]) -> int:
    """Return how many of the first rows begin with `#` and have other columns than the first row that does not."""
    first = next((number for number, row in enumerate(rows) if not row[0].startswith(b"#")), 0)
    number = 0
    while number < first and len(rows[number]) != len(rows[first]):
        number += 1
    return number


def _header(config: Config, name: str, rows: list[list[bytes]], exists: Callable[[bytes], bool]) -> bool:
    """Return whether the first row names the columns.

    By the options, then by suffixes of images, then by names that columns usually have. Paths without a suffix under
    unusual names are asked of the disk. At last, a word above numbers is their name.
    """
    first = rows[0]
    asked = [part for value in (config.x_column, config.y_column) if value for part in value.split(",")]
    if any(not part.strip().isdecimal() for part in asked):
        return True
    if any(map(is_image, first)):
        return False
    titles = {plain(_text(field)) for field in first}
    if titles & _PLAIN_PATHS:
        return True
    below = rows[1 : 1 + _ASKED_OF_DISK]
    if not below:
        return False
    if any(map(is_image, below[0])):
        return True
    if any(field and exists(field) for field in first):
        return False
    if titles & _PLAIN_OTHERS:
        return True
    even = [row for row in rows[1:] if len(row) == len(first)]
    numbers = [column for column in range(len(first)) if even and all(is_number(row[column]) for row in even)]
    is_found = any(field and exists(field) for row in below for field in row)
    if is_found or any(first[column] and not is_number(first[column]) for column in numbers):
        log.warning("%s: its first line (%s) is taken for a header", name, ", ".join(_text(field) for field in first))
        return True
    return False


class _Columns:
    """The columns of a table, by name (if it has a header) or number."""

    def __init__(self, name: str, separator: str, first: list[bytes], header: bool, data: list[list[bytes]]) -> None:
        self.count = len(first)
        self.data = data
        self._name = name
        self._first = [field.strip() for field in first]
        self._header = header
        self._separator = separator
        self._example = data[0] if data else first

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

    def path_column(self, *, has_masks: bool) -> int:
        """Return the column with the path, where no option names it: a usual name among images, images, ids, any."""
        images = [column for column, field in enumerate(self._example) if is_image(field)]
        if not self._header:
            return images[0] if images else 0
        titles = [_text(title) for title in self._first]
        for among in (images, range(self.count)):
            usual = known_label([titles[column] for column in among], _PATH_TITLES)
            if usual is not None:
                return next(column for column in among if titles[column] == usual)
            if among:
                break
        likely = [column for column in images if known_label([titles[column]], MASK_NAMES) is None] or images
        if len(likely) > 1 and not has_masks:
            raise ManifestError(
                f"cannot tell which column of {self._name} has the paths, as {len(likely)} name images: "
                f"{self._listing()}; give x_column"
            )
        if likely:
            return likely[0]
        return next((column for column, title in enumerate(titles) if plain(title) in PLAIN_IDS), 0)

    def label_columns(self, config: Config, x: int) -> tuple[int, ...]:
        """Return the label columns: those named, or the last `label_columns`, or all others if that is clear."""
        wanted = config.label_columns
        named = find_named(config, self._name, self.find)
        if named is not None:
            return named
        others = [column for column in range(self.count) if column != x]
        if self._header:
            others = [column for column in others if not is_pandas_index(_text(self._first[column]))]
        if wanted is not None:
            if wanted > len(others):
                raise ManifestError(
                    f"cannot take label_columns={wanted} from {self._name}: beside the path there are {len(others)} "
                    f"({self._listing()}); give a smaller number"
                )
            return tuple(others[len(others) - wanted :])
        return self._found_labels(others, x, are_masks=config.target == "mask")

    def _found_labels(self, others: list[int], x: int, *, are_masks: bool) -> tuple[int, ...]:
        """Return the label columns among `others`, where no option says which."""
        titles = {column: _text(self._first[column]) if self._header else "" for column in others}
        usual = None if are_masks else known_label(list(titles.values()))
        if usual is not None:
            found = [column for column in others if titles[column] == usual]
            if len(found) > 1:
                raise self._ambiguous(f"{len(found)} columns are called {usual!r}")
        else:
            kinds = {number_or_class([row[column] for row in self.data]) for column in others}
            if len(others) > 1 and "class" in kinds:
                raise self._ambiguous("they are not all numbers")
            found = [column for column in others if not self._header or not is_id_name(titles[column])]
            if not self._header:
                self._check_order(others, x)
            elif others and (not found or any(may_be_id(titles[column]) for column in found)):
                raise self._ambiguous("some are called as what numbers or measures samples")
            elif not self._are_one_vector(found):
                raise self._ambiguous("their names are unlike")
        if self._header and (len(found) > 1 or len(found) < len(others)):
            kept = ", ".join(titles[column] for column in found)
            left = ", ".join(titles[column] for column in others if column not in found)
            plural = "s" if len(found) > 1 else ""
            not_left = f"; not {left}" if left else ""
            log.info("labels of %s: the column%s %s%s (y_column names others)", self._name, plural, kept, not_left)
        return tuple(found)

    def _check_order(self, others: list[int], x: int) -> None:
        """Refuse several columns without names that do not all follow the path: one may number the lines."""
        if x > 0 and 0 in others and len(others) > 1:
            why = "column 0 counts the lines" if self._counts_up(0) else "some stand before the path and have no names"
            raise self._ambiguous(why)

    def _are_one_vector(self, columns: list[int]) -> bool:
        """Return whether columns are one label: numbered siblings, single letters, or 0 and 1 for each class."""
        titles = [plain(_text(self._first[column])) for column in columns]
        siblings = set(Counter(_COUNTED.sub("", title) for title in titles).values())
        if len(titles) <= 1 or (len(siblings) == 1 and 1 not in siblings) or all(len(title) == 1 for title in titles):
            return True
        return all(row[column].strip().lower() in _ONE_HOT for row in self.data for column in columns)

    def _counts_up(self, column: int) -> bool:
        fields = [row[column] for row in self.data]
        if len(fields) < _COUNTED_ROWS or not all(field.isdigit() for field in fields):
            return False
        return all(int(after) == int(before) + 1 for before, after in pairwise(fields))

    def _ambiguous(self, why: str) -> ManifestError:
        return ManifestError(
            f"cannot tell which columns of {self._name} are labels, as {why}: {self._listing()}; "
            "give y_column (names or numbers, separated by commas; x_column has the path), or label_columns=0 for none"
        )

    def _listing(self) -> str:
        shown = [f"{column} {show(field, 40)}" for column, field in enumerate(self._first[:20])]
        more = f" and {self.count - 20} more" if self.count > 20 else ""
        kind = "it has the columns" if self._header else "it has no header, and its first line has the columns"
        plural = kind.replace("columns", "column") if self.count == 1 else kind
        return f"{plural} {', '.join(shown)}{more} (separated by {SEPARATORS[self._separator]}s)"


def _text(field: bytes) -> str:
    return field.decode("utf-8", "surrogateescape").strip()
