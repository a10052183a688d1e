"""Fields of boxes and keypoints in a reader: moved by the map of the first image of their sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.data.fields.layouts import objects_of
from prefetchd.data.fields.parts import BadValue, Draw, Rows
from prefetchd.data.images.boxes import NO_LABEL, Placement
from prefetchd.data.images.objects import ObjectTarget
from prefetchd.data.table.object_records import Objects

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.fields import Field
    from prefetchd.config.options import Config
    from prefetchd.data.images.headers.header import ImageHeader
    from prefetchd.data.records import FieldFacts, Sample
    from prefetchd.data.source import ReserveMemory


class ObjectsPart:
    """Boxes with their labels, or keypoints with their visibility.

    Args:
        field: the option.
        number: the field's number.
        config: the options of all fields.
        facts: what its values are.
        placed: returns the header of the sample's first image, and where it went.
    """

    def __init__(
        self,
        field: Field,
        number: int,
        config: Config,
        facts: FieldFacts,
        placed: Callable[[], tuple[ImageHeader, Placement]],
    ) -> None:
        self._number = number
        self._beside = dict(facts.beside)
        self._is_single = facts.holds == "numbers"  # one object a row
        self._placed = placed
        self._names = ("boxes", "labels") if field.kind == "boxes" else ("keypoints", "visibility")
        self._target = ObjectTarget(*objects_of(field, facts, config))
        self._rest = (0, NO_LABEL) if field.kind == "boxes" else (0, 0)
        self._rows: Rows

    def load(self, sample: Sample, draw: Draw, rows: Rows, reserve: ReserveMemory) -> None:
        """Write the objects of the sample as its first image was placed."""
        self._rows = rows
        self._target.write(self._objects(sample.values), *self._placed(), rows)

    def _objects(self, values: tuple[Any, ...]) -> Objects:
        given = np.asarray(values[self._number])
        given = given[None] if self._is_single else given
        size = values[self._beside["size"]].tolist() if "size" in self._beside else (0, 0)
        if self._names[0] == "boxes":
            boxes, points = given, np.zeros((len(given), 0, 3))
        else:
            boxes, points = np.zeros((len(given), 4)), _with_visibility(given)
        labels = np.zeros(len(given), np.int64)
        if "labels" in self._beside:
            labels = np.atleast_1d(values[self._beside["labels"]])
        ids = values[self._beside["ids"]] if "ids" in self._beside else np.arange(len(given))
        return Objects(boxes, labels, ids, points, (int(size[0]), int(size[1])))

    def shown(self) -> dict[str, NDArray[Any]]:
        """Return the objects without padding, by name, as they are delivered."""
        count = int(self._rows[2])
        return {name: row[:count].copy() for name, row in zip(self._names, self._rows, strict=False)}

    def take(self, value: Any) -> None:
        """Write as many objects as there are rows for."""
        if not isinstance(value, Mapping) or set(value) != set(self._names):
            raise BadValue(f"a {type(value).__name__}, and it must be a dictionary with {' and '.join(self._names)}")
        found = []
        for name, row in zip(self._names, self._rows, strict=False):
            try:
                array = np.asarray(value[name])
                array = array.reshape(0, *row.shape[1:]) if array.size == 0 else array
            except (TypeError, ValueError):
                array = np.asarray(None)
            if array.shape[1:] != row.shape[1:] or array.ndim != row.ndim or array.dtype.kind not in "biuf":
                raise BadValue(
                    f"{name} of the shape {array.shape}, and it must be ({', '.join(('n', *map(str, row.shape[1:])))})"
                )
            found.append(array)
        count = len(found[0])
        if len(found[1]) != count or count > len(self._rows[0]):
            raise BadValue(
                f"{count} {self._names[0]} and {len(found[1])} {self._names[1]}; there must be as many, and at most "
                f"{len(self._rows[0])}"
            )
        for array, row, rest in zip(found, self._rows, self._rest, strict=False):
            row[:count] = array
            row[count:] = rest
        self._rows[2][...] = count

    def finish(self) -> None:
        """Do nothing: the rows are written."""


def _with_visibility(points: NDArray[Any]) -> NDArray[np.float64]:
    """Return (objects, points, 3); points without a visibility are visible."""
    points = (points[:, None] if points.ndim == 2 else points).astype(np.float64)
    if points.shape[2] == 3:
        return points
    return np.concatenate([points, np.full((*points.shape[:2], 1), 2.0)], axis=2)
