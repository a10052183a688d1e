"""The labels of a table: numbers, vectors, names of classes, lists of names, or paths of masks. Called at open.

The rules are those of `data.labels`, over whole columns at once. Columns that hold the labels as they are delivered are
used as they are. Others (text, several columns, missing labels) become a table of labels of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.columns.store import Column, Columns
from prefetchd.columns.writer import ColumnsWriter
from prefetchd.config.options import Config
from prefetchd.data.kinds import IMAGE_SUFFIXES
from prefetchd.data.labels import (
    MAX_CLASSES,
    MISSING,
    LabelKind,
    check_names,
    sorted_classes,
)
from prefetchd.data.manifest.line import split_classes
from prefetchd.data.table.numbers import number_labels
from prefetchd.errors import ManifestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_VECTOR = 65_536
_BLOCK_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class TableLabels:
    """What the labels of a table are.

    Attributes:
        kind: `classes` are lists of numbers of classes, delivered as a vector of 0 and 1.
        column: the column that has them, in `table` or else in the table itself; empty without labels.
        table: columns made for the labels, owned; `None` if there was no need.
        dtype: `int64` or `float32`.
        shape: of one label.
        classes: names by number.
        digest: hexadecimal digits that follow the labels, and not what held them.
    """

    kind: LabelKind
    column: str
    table: Columns | None
    dtype: str
    shape: tuple[int, ...]
    classes: tuple[str, ...] | None
    digest: str


def make_labels(columns: Columns, names: Sequence[str], config: Config, name: str) -> TableLabels:
    """Return the labels in the columns `names`.

    Raises:
        ManifestError: if a label cannot be served, or an option does not go with the labels.
    """
    makes = _Maker(columns, config, name)
    if not names:
        makes.refuse_options("it has no labels")
        return TableLabels("none", "", None, "int64", (), None, "")
    if config.target == "mask":
        makes.refuse_options("its labels are masks")
        return makes.masks(names)
    texts = [each for each in names if columns[each].layout.kind == "strings"]
    if texts and len(names) > 1:
        raise ManifestError(
            f"cannot take the labels {', '.join(names)} from {name}: they are not all numbers; give one column with "
            "text, or several with numbers, as y_column"
        )
    if texts and config.label_separator:
        return makes.lists(texts[0])
    if config.label_separator:
        raise ManifestError(
            f"cannot use label_separator={config.label_separator!r} with {name}: its labels are numbers; leave it out"
        )
    if texts:
        return makes.names(texts[0])
    found = number_labels(columns, names, config, name)
    dtype = "float32" if found.is_float else "int64"
    if found.is_column:
        digest = _digest(found.values, found.is_float)
        return TableLabels("number", names[0], None, dtype, found.shape, found.classes, digest)
    return _made("number", found.values, dtype, found.shape, found.classes)


class _Maker:
    """Makes the labels of one table; each method is one kind."""

    def __init__(self, columns: Columns, config: Config, name: str) -> None:
        self._columns = columns
        self._config = config
        self._name = name
        self._missing = config.missing_label or None

    def refuse_options(self, what: str) -> None:
        """Raise `ManifestError` for options that concern other labels than `what`."""
        for option in ("label_separator", "missing_label"):
            if getattr(self._config, option):
                raise ManifestError(f"cannot use {option} with {self._name}: {what}; leave the option out")

    def masks(self, names: Sequence[str]) -> TableLabels:
        """Return paths of masks, which stay where they are."""
        column = self._columns[names[0]] if len(names) == 1 else None
        if column is None or column.layout.kind != "strings":
            raise ManifestError(
                f"cannot take masks from {self._name}: {', '.join(names)} are no column of paths; give the one with "
                "the masks as y_column"
            )
        check_present(column, "mask", self._name)
        if not column[0].lower().endswith(IMAGE_SUFFIXES):
            raise ManifestError(
                f"cannot use row 0 of {self._name}: there is no mask: {column[0]!r} is not named as an image; give the "
                "column of masks as y_column"
            )
        return TableLabels("path", names[0], None, "int64", (), None, column.layout.digest)

    def names(self, name: str) -> TableLabels:
        """Return the numbers of classes for one column of names."""
        found, codes = self._distinct(self._columns[name])
        kept = {self._or_missing(text, number, codes) for number, text in enumerate(found)}
        if self._config.label_separator is None:
            check_names(kept, self._name)
        classes = sorted(kept)
        number_of = {text: number for number, text in enumerate(classes)}
        final = np.array([number_of[self._or_missing(text, 0, codes)] for text in found], np.int64)
        return _made("class", final[codes], "int64", (), tuple(classes))

    def lists(self, name: str) -> TableLabels:
        """Return 0/1 vectors for one column, whose text names several classes each."""
        separator = self._config.label_separator or ""
        found, codes = self._distinct(self._columns[name])
        split = []
        for number, text in enumerate(found):
            if text.strip().lower() in MISSING and (text or self._missing is not None):
                text = self._or_missing(text, number, codes)
            parts = split_classes(text.encode("utf-8", "surrogateescape"), separator)
            split.append([part.decode("utf-8", "surrogateescape") for part in parts])
        classes = sorted_classes({part for parts in split for part in parts})
        if not 1 <= len(classes) <= _MAX_VECTOR:
            raise ManifestError(
                f"cannot use label_separator={separator!r} with {self._name}: its labels name {len(classes)} classes, "
                f"and y has a number for each, at most {_MAX_VECTOR}; check the separator and y_column"
            )
        number_of = {text: number for number, text in enumerate(classes)}
        sets = [np.array(sorted({number_of[part] for part in parts}), np.int32) for parts in split]
        lengths = np.array([len(each) for each in sets], np.int64)[codes]
        blocks = (
            (
                lengths[at : at + _BLOCK_ROWS],
                np.concatenate([sets[code] for code in codes[at : at + _BLOCK_ROWS].tolist()]),
            )
            for at in range(0, len(codes), _BLOCK_ROWS)
        )
        with ColumnsWriter(len(codes)) as writer:
            writer.add_ragged("label", blocks, "int32")
            table = Columns.attach(*writer.finish({"classes": classes}))
        digest = table["label"].layout.digest
        return TableLabels("classes", "label", table, "float32", (len(classes),), tuple(classes), digest)

    def _distinct(self, column: Column) -> tuple[list[str], NDArray[np.int64]]:
        """Return the different texts of a column in the order in which they come, and the number of each row's."""
        numbers: dict[str, int] = {}
        codes = np.empty(len(column), np.int64)
        missing = column.missing
        for first in range(0, len(column), _BLOCK_ROWS):
            texts = column.texts(first, min(first + _BLOCK_ROWS, len(column)))
            for text in dict.fromkeys(texts):
                numbers.setdefault(text, len(numbers))
            if len(numbers) > MAX_CLASSES:
                raise ManifestError(
                    f"cannot use {self._name}: its labels name more than {MAX_CLASSES} classes; give label_columns=0 "
                    "for none, or y_column"
                )
            codes[first : first + len(texts)] = np.fromiter(map(numbers.__getitem__, texts), np.int64, len(texts))
        if missing is not None:  # beside an empty text, which they look like
            codes[missing] = numbers.setdefault("", len(numbers))
        return list(numbers), codes

    def _or_missing(self, text: str, number: int, codes: NDArray[np.int64]) -> str:
        """Return the name of a class, or `missing_label` where it says that there is none."""
        if text.strip().lower() not in MISSING:
            return text
        if self._missing is not None:
            return self._missing
        if text and self._config.label_separator == "":  # names are taken as they are
            return text
        row = int((codes == number).argmax())
        shown = f"is missing ({text!r})" if text else "is missing"
        raise ManifestError(
            f"cannot use row {row} of {self._name}: its label {shown}; give missing_label='none' (or another name) for "
            "such rows, or take them out"
        )


def check_present(column: Column, what: str, name: str) -> None:
    """Raise `ManifestError` if a row of a column of text has none, in the data set `name`."""
    empty = column.lengths == 0
    if column.missing is not None:
        empty |= column.missing
    if empty.any():
        raise ManifestError(
            f"cannot use row {int(empty.argmax())} of {name}: there is no {what} in the column {column.layout.name!r}; "
            "take the row out"
        )


def _made(
    kind: LabelKind, values: NDArray[Any], dtype: str, shape: tuple[int, ...], classes: tuple[str, ...] | None
) -> TableLabels:
    """Return labels in a table of their own."""
    is_float = dtype == "float32"
    values = values.astype(np.float64 if is_float else np.int64, copy=False)
    if not shape:
        values = values.reshape(-1)
    with ColumnsWriter(len(values)) as writer:
        writer.add_numbers("label", values)
        table = Columns.attach(*writer.finish(None if classes is None else {"classes": classes}))
    return TableLabels(kind, "label", table, dtype, shape, classes, _digest(values, is_float))


def _digest(values: NDArray[Any], is_float: bool) -> str:
    """Return digits that follow the numbers, and not their dtype."""
    digest = blake2b(repr(values.shape).encode(), digest_size=16)
    for at in range(0, len(values), _BLOCK_ROWS):
        digest.update(values[at : at + _BLOCK_ROWS].astype(np.float64 if is_float else np.int64).tobytes())
    return digest.hexdigest()
