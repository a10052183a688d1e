"""The labels of records that are read one by one: are they all of one kind, and which numbers do names get.

Used at open by the indexers of tar shards and Parquet files. The rules are the manifest's: numbers, vectors of a
constant length, or one name of a class; one fraction anywhere makes all labels float32; class numbers follow the
sorted names.
"""

from __future__ import annotations

import math
from typing import Any

from prefetchd.data.manifest.dialect import LabelKind
from prefetchd.data.manifest.json import json_kind
from prefetchd.data.manifest.line import FLOAT32_MAX
from prefetchd.data.manifest.scan import MAX_CLASSES
from prefetchd.errors import ManifestError

Numbers = tuple[int | float, ...]


class BadLabel(Exception):
    """What is wrong with a label, in words that follow "cannot use <sample>: "."""


class Labels:
    """What the labels are, as found out from the first and held against all the others.

    Attributes:
        kind: numbers, names or none; `None` before the first.
        count: numbers in one label.
        any_fraction: whether a label is not an integer.
        names: classes by their provisional numbers, in the order in which they came.
    """

    def __init__(self, name: str) -> None:
        self.kind: LabelKind | None = None
        self.count = 0
        self.any_fraction = False
        self.names: dict[str, int] = {}
        self._name = name

    def take(self, values: list[Any]) -> Numbers:
        """Return the numbers of one label: what was under each of its keys; a name gets a provisional number.

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
            raise BadLabel(f"its label is {json_kind(value)}, and no number")
        if not math.isfinite(value) or abs(value) > FLOAT32_MAX:
            raise BadLabel(f"its label {value} is not finite, or does not fit float32")
        self.any_fraction = True
        return value
