"""A tile of the contact sheet for a sample with fields: first image and mask, boxes, and what can be written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.cli.views.contact_sheet import Tile, mask_to_display, to_display
from prefetchd.cli.views.marks import Marks, marks_of
from prefetchd.config.fields import image_config, parse_fields
from prefetchd.errors import ConfigError

if TYPE_CHECKING:
    from prefetchd.config.fields import Field
    from prefetchd.config.options import Config

_SHOWN_CHARACTERS = 40


def _first(config: Config, kind: str) -> str | None:
    """Return the name of the first field of a kind."""
    return next((name for name, field in parse_fields(config.fields).items() if field.kind == kind), None)


def shown_size(config: Config) -> tuple[int, int]:
    """Return (height, width) of a picture: the first image, and beside it the first mask.

    Raises:
        ConfigError: if no field is an image.
    """
    fields = parse_fields(config.fields)
    image, mask = _first(config, "image"), _first(config, "mask")
    if image is None:
        raise ConfigError("cannot preview: no field is an image, and there is nothing to draw")
    height, width = image_config(config, fields[image]).image_size
    return (height, width) if mask is None else (height, 2 * width)


def tile_of_fields(batch: Any, config: Config, classes: dict[str, tuple[str, ...]], title: str) -> Tile:
    """Return the tile of a batch's first sample; `classes` are the names of a label's classes, by its field."""
    fields = parse_fields(config.fields)
    image, mask = _first(config, "image"), _first(config, "mask")
    assert image is not None, "shown_size has refused it"
    own = image_config(config, fields[image])
    picture = to_display(batch[image][0], own)
    if mask is not None:
        shown = mask_to_display(batch[mask][0])
        rows = np.linspace(0, len(shown) - 1, len(picture)).astype(int)
        columns = np.linspace(0, shown.shape[1] - 1, picture.shape[1]).astype(int)
        picture = np.hstack([picture, shown[rows][:, columns]])
    words = []
    for name, field in fields.items():
        if field.kind == "label":
            words.append(_label(batch[name][0], classes.get(name)))
        elif field.kind == "text":
            words.append(batch.strings(name)[0][:_SHOWN_CHARACTERS])
        elif field.kind in ("boxes", "keypoints"):
            words.append(f"{int(batch[name]['count'][0])} {field.kind}")
    caption = f"{title}: {', '.join(words)}" if words else title
    return Tile(picture, caption, _marks(batch, own, fields, classes, 0.5 if mask is not None else 1.0))


def _marks(
    batch: Any, own: Config, fields: Mapping[str, Field], classes: dict[str, tuple[str, ...]], part: float
) -> Marks | None:
    """Return all boxes and keypoints, which are drawn into the left `part` of the picture."""
    found = []
    for name, field in fields.items():
        if field.kind in ("boxes", "keypoints"):
            target: Any = field.kind
            config = replace(own, target=target, box_format=field.box_format or own.box_format)
            found.append(marks_of(batch[name], config, classes.get(name)))
    if not found:
        return None
    return Marks(
        np.concatenate([each.boxes for each in found]) * (part, 1, part, 1),
        np.concatenate([each.labels for each in found]),
        tuple(name for each in found for name in each.names),
        np.concatenate([each.points for each in found]) * (part, 1),
    )


def _label(label: Any, classes: tuple[str, ...] | None) -> str:
    values = np.asarray(label).ravel()[:4].tolist()
    if len(values) == 1 and classes is not None and isinstance(values[0], int) and 0 <= values[0] < len(classes):
        return classes[values[0]]
    return " ".join(f"{value:.4g}" for value in values)
