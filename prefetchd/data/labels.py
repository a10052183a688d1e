"""What labels may be, whatever lists them: numbers, vectors of a constant length, or names of classes.

The rules and the names of columns that lists, tar shards and Parquet files share. `Labels` checks labels that come
one by one; the indexers of tar shards and Parquet files call it at open. Pure.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from prefetchd.errors import ManifestError

LabelKind = Literal["none", "number", "class", "path"]

FLOAT32_MAX = 3.4028234663852886e38
MAX_CLASSES = 1_000_000
# Names under which paths, labels and masks are found without an option, the most usual first.
PATH_NAMES = (
    "path", "image", "file", "filename", "file_name", "filepath", "file_path", "image_path", "image_file", "img",
    "img_path", "image_name",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "class", "target", "targets", "category", "class_id", "class_name", "label_id", "label_name",
    "category_id",
)  # fmt: skip
MASK_NAMES = ("mask", "mask_path", "segmentation", "annotation", "label", "target")

Numbers = tuple[int | float, ...]


class BadLabel(Exception):
    """Says what is wrong with a label, in words that follow "cannot use <sample>: "."""


class Labels:
    """The labels of records that come one by one; the first decides the kind, and all others must be like it.

    Attributes:
        kind: numbers or names; `None` before the first.
        count: numbers in one label.
        any_fraction: whether a label is not an integer.
        names: provisional numbers of the classes, in the order in which they came.
    """

    def __init__(self, name: str) -> None:
        self.kind: LabelKind | None = None
        self.count = 0
        self.any_fraction = False
        self.names: dict[str, int] = {}
        self._name = name

    def take(self, values: list[Any]) -> Numbers:
        """Return the numbers of one label, given the value under each of its keys; a name gets a provisional number.

        Raises:
            BadLabel: if it is not as the others are.
        """
        flat: list[Any] = []
        for value in values:
            flat += value if isinstance(value, list) else [value]
        kind: LabelKind = "class" if len(flat) == 1 and isinstance(flat[0], str) else "number"
        if self.kind is None:
            if kind == "number":
                checked = tuple(map(self._number, flat))  # the first label decides only if it is one
                if not checked:
                    raise BadLabel("its label is empty")
            self.kind, self.count = kind, len(flat)
        if self.kind == "class":
            if kind != "class":
                raise BadLabel(
                    f"its label is {json_kind(flat[0] if len(flat) == 1 else flat)}, and the first is a name"
                )
            return (self._class(flat[0]),)
        numbers = tuple(map(self._number, flat))
        if len(numbers) != self.count:
            raise BadLabel(f"its label has {len(numbers)} numbers, and the first has {self.count}")
        return numbers

    def _class(self, label: str) -> int:
        if not label:
            raise BadLabel("its label is empty")
        number = self.names.setdefault(label, len(self.names))
        if number >= MAX_CLASSES:
            raise ManifestError(
                f"cannot use {self._name}: its labels name more than {MAX_CLASSES} classes; "
                "give label_columns=0 for none, or y_column"
            )
        return number

    def _number(self, value: Any) -> int | float:
        if isinstance(value, int):  # bool too: 0 or 1
            if not -(2**63) <= value < 2**63:
                raise BadLabel(f"its label {value} does not fit 64 bits")
            return int(value)
        if not isinstance(value, float):
            raise BadLabel(f"its label is {json_kind(value)}, and not a number")
        if not math.isfinite(value) or abs(value) > FLOAT32_MAX:
            raise BadLabel(f"its label {value} is not finite, or does not fit float32")
        self.any_fraction = True
        return value


def json_kind(value: Any) -> str:
    """Return what a JSON value is, for errors."""
    if value is None or value in ("", [], {}):
        return "null" if value is None else "empty"
    kinds = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    kind, text = kinds.get(type(value), f"of the type {type(value).__name__}"), repr(value)
    return f"{kind} ({text if len(text) <= 60 else text[:57] + '...'})"
