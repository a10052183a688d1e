"""Fields of boxes and keypoints in a reader: placed by the map of the sample's first image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.field_options import objects_config
from prefetchd.data.fields.parts import BadValue, Draw, Rows
from prefetchd.data.images.boxes import NO_LABEL
from prefetchd.data.images.objects import ObjectTarget

if TYPE_CHECKING:
    from prefetchd.config.fields import Field
    from prefetchd.config.options import Config
    from prefetchd.data.fields.pixels import ImagePart
    from prefetchd.data.records import Sample
    from prefetchd.data.source import ReserveMemory
    from prefetchd.data.table.object_records import ObjectFacts


class ObjectPart:
    """Boxes with their labels, or keypoints with their visibility."""

    def __init__(self, field: Field, number: int, config: Config, facts: ObjectFacts, first: ImagePart) -> None:
        self._number = number
        self._target = ObjectTarget(objects_config(config, field), facts)
        self._first = first
        self._names = ("boxes", "labels") if field.kind == "boxes" else ("keypoints", "visibility")
        self._padding = 0, NO_LABEL if field.kind == "boxes" else 0
        self._rows: Rows

    def load(self, sample: Sample, draw: Draw, rows: Rows, reserve: ReserveMemory) -> None:
        """Write the objects of the sample as its first image shows them."""
        self._rows = rows
        self._target.write(sample.values[self._number], *self._first.reader.placed(), rows)

    def shown(self) -> dict[str, Any]:
        """Return the objects, without padding: `boxes` (n, 4) and `labels` (n,), or `keypoints` and `visibility`."""
        count = int(self._rows[2])
        return {name: row[:count].copy() for name, row in zip(self._names, self._rows[:2], strict=True)}

    def take(self, value: Any) -> None:
        """Write objects in the same form; there may be fewer or more, up to the field's number."""
        if not isinstance(value, Mapping) or not value.keys() >= set(self._names):
            raise BadValue(f"a {type(value).__name__}, and it must be a dictionary of {' and '.join(self._names)}")
        made = []
        for name, row in zip(self._names, self._rows[:2], strict=True):
            found = np.asarray(value[name])
            found = found.reshape(len(found), *row.shape[1:]) if found.size == 0 or found.ndim == row.ndim else found
            if found.shape[1:] != row.shape[1:] or len(found) > len(row):
                raise BadValue(f"{name} of {found.shape}, and there can be {row.shape}")
            made.append(found)
        if len(made[0]) != len(made[1]):
            raise BadValue(f"{len(made[0])} {self._names[0]} and {len(made[1])} {self._names[1]}")
        for found, row, padding in zip(made, self._rows[:2], self._padding, strict=True):
            row[: len(found)] = found
            row[len(found) :] = padding
        self._rows[2][...] = len(made[0])

    def finish(self) -> None:
        """Do nothing: the rows are written."""
