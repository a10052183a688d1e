"""What a field of boxes or keypoints takes from a table beside its own column: labels, ids, sizes. In the daemon."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from prefetchd.data.table.annotated import are_fractions
from prefetchd.errors import ConfigError, ManifestError

if TYPE_CHECKING:
    from prefetchd.columns.store import Columns
    from prefetchd.config.fields import Field
    from prefetchd.data.table.binding import Binding

_POINTS = (2, 3)  # x, y, and visibility


def bind_objects(
    field: Field, binding: Binding, columns: Columns, source: str, first: int
) -> tuple[Binding, list[Binding]]:
    """Return the binding of a field of objects, and those of what it has beside its column, the first number `first`.

    Raises:
        ConfigError: if the columns do not hold such.
        ManifestError: if a row has another number of labels than of boxes.
    """
    name, column = binding.name, columns[binding.column]
    shape = column.layout.shape
    layout_kind = column.layout.kind  # numbers are one object a row
    is_boxes = field.kind == "boxes"
    if (shape != (4,)) if is_boxes else not shape or shape[-1] not in _POINTS or len(shape) > 2:
        wanted = "lists of four numbers" if is_boxes else "lists of points (x, y) or (x, y, visibility)"
        raise ConfigError(
            f"cannot take the field {name} from {binding.column!r} of {source}: its values have the shape {shape}, and "
            f"they must be {wanted}; give another column"
        )
    if not is_boxes and not columns.attributes.get("box_format") and are_fractions(column.values):
        raise ManifestError(
            f"cannot serve the field {name} of {source}: no coordinate of its keypoints is above 1, as in fractions of "
            "the image; write pixels"
        )
    beside = {"labels": field.labels} if field.labels is not None else {}
    written = str(columns.attributes.get("box_format", ""))
    if written:  # a table of annotations has names and sizes
        beside |= {each: each for each in ("ids", "size") if each in columns}
    facts = replace(
        binding.facts,
        longest=int(column.lengths.max(initial=0)),
        written=written,
        beside=tuple((each, first + place) for place, each in enumerate(beside)),
    )
    more = []
    for each, other in beside.items():
        if other not in columns:
            raise ConfigError(
                f"cannot take the labels of the field {name} from {other!r}: {source} has no such column; there are "
                f"{', '.join(map(repr, list(columns)[:20]))}"
            )
        layout = columns[other].layout
        if each == "labels":
            if layout.kind != layout_kind or layout.shape or np.dtype(layout.dtype).kind not in "iu":
                wanted = "a list of class numbers for each row" if layout_kind == "ragged" else "one class for each row"
                raise ConfigError(
                    f"cannot take the labels of the field {name} from {other!r} of {source}: it must have {wanted}; "
                    "give another column"
                )
            odd = columns[other].lengths != column.lengths
            if odd.any():
                row = int(odd.argmax())
                counts = f"{column.lengths[row]} boxes and {columns[other].lengths[row]} labels"
                raise ManifestError(
                    f"cannot serve the field {name} of {source}: row {row} (from 0) has {counts}; complete it, or "
                    "remove the row"
                )
            negative = columns[other].values < 0
            if negative.any():
                at = int(negative.argmax())
                row = int(np.searchsorted(np.cumsum(columns[other].lengths), at, "right"))
                raise ManifestError(
                    f"cannot serve the field {name} of {source}: row {row} (from 0) has the label "
                    f"{columns[other].values[at]}; a class is a number from 0, and -1 stands where there is no box"
                )
            names = columns.attributes.get("classes", {}).get(other)
            facts = replace(facts, classes=None if names is None else tuple(names))
        more.append(replace(binding, name=f"{name}.{each}", column=other, facts=binding.facts))
    return replace(binding, facts=facts), more


def check_box_format(field: Field, option: str | None, binding: Binding, columns: Columns, source: str) -> None:
    """Raise an error if `source_box_format` means nothing for a table, or its boxes look like fractions and not pixels.

    Args:
        field: of kind boxes.
        option: the option of this name, which holds where the field does not say it.
        binding: the field's.
        columns: the table.
        source: the data set's name in errors.
    """
    given = field.source_box_format or option
    if given is None:
        return
    written = columns.attributes.get("box_format")
    if written:
        raise ConfigError(
            f"cannot use source_box_format={given!r} for the field {binding.name} of {source}: its boxes are "
            f"{written}; leave it out"
        )
    values = columns[binding.column].values
    if len(values) and not given.endswith("_normalized") and not (values > 1).any():
        raise ManifestError(
            f"cannot use source_box_format={given!r} for the field {binding.name} of {source}: no number of its "
            f"{len(values)} boxes is above 1, as in fractions of the image; give source_box_format='{given}_normalized'"
        )
