"""Lists of class names, such as the labels of boxes, as lists of class numbers. In the daemon, once a data set."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from prefetchd.data.labels import MAX_CLASSES, sorted_classes

if TYPE_CHECKING:
    from prefetchd.config.fields import Field


def label_columns(fields: Mapping[str, Field]) -> Collection[str]:
    """Return the columns of the labels of boxes."""
    return dict.fromkeys(field.labels for field in fields.values() if field.labels is not None)


def class_lists(values: Sequence[Any]) -> tuple[Sequence[Any], list[str] | None]:
    """Return lists of class numbers, and the classes' names in their order; `values` and `None` if they are no names.

    Names are numbered in sorted order, as `target="boxes"` does.

    Raises:
        ValueError: if some entries are names and others not, or there are too many classes.
    """
    lists = [row for row in values if isinstance(row, list)]
    if len(lists) < len(values) or not any(isinstance(entry, str) for row in lists for entry in row):
        return values, None
    odd = next(
        (row for row, each in enumerate(lists) if not all(isinstance(entry, str) and entry for entry in each)), None
    )
    if odd is not None:
        raise ValueError(f"row {odd} (from 0) has the labels {str(lists[odd])[:80]}, and others have names of classes")
    names = sorted_classes(set(chain.from_iterable(lists)))
    if len(names) > MAX_CLASSES:
        raise ValueError(f"it has {len(names)} classes, and {MAX_CLASSES} at most can be served")
    numbers = {name: number for number, name in enumerate(names)}
    return [[numbers[entry] for entry in row] for row in lists], names
