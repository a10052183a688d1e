"""The options of one field: those of its data set, but for what the field gives itself. Pure."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefetchd.config.fields import Field
    from prefetchd.config.options import Config

# Augmentations that move pixels and change none; masks and all images of a sample get the same.
_GEOMETRIC = ("random_resized_crop", "hflip", "vflip", "rotate", "affine")
_VALUES = ("dtype", "scale", "mean", "std")


def image_config(config: Config, field: Field) -> Config:
    """Return the options of one image or mask: those of the data set, but for what the field gives itself."""
    changes: dict[str, Any] = {"fields": (), "transform": None}
    given = field.given
    if field.kind == "image":
        if "dtype" in given:
            changes.update(dict.fromkeys(_VALUES))  # numbers for other pixels
        if "channels" in given or "color" in given:
            changes.update(channels=None, color=given.get("color", "unchanged"))
        names = ("color", "channels", "interpolation", *_VALUES)
        changes.update({name: given[name] for name in names if name in given})
        is_changed = not given.keys() & {"channels", "dtype"} if field.jitter is None else field.jitter
        if not is_changed:
            changes["augment"] = tuple(text for text in config.augment if text.partition("(")[0] in _GEOMETRIC)
    changes["image_size"] = field.size or config.image_size
    changes["mask_border"] = config.mask_border if field.border is None else field.border
    return dataclasses.replace(config, **changes)


def objects_config(config: Config, field: Field, **columns: str | None) -> Config:
    """Return the options of a field of boxes or keypoints, as those of a data set with this target.

    Args:
        config: the options of the data set.
        field: of kind boxes or keypoints.
        columns: `x_column` and `y_column`, where there are columns.
    """
    given: dict[str, Any] = {name: value for name, value in field.given.items() if name != "labels"}
    given.update(columns, fields=(), transform=None, target=field.kind)
    return dataclasses.replace(config, **given)
