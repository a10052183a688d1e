"""A tile of the contact sheet for a sample with fields: its first image, its first mask, and what can be written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.cli.views.contact_sheet import Tile, mask_to_display, to_display
from prefetchd.config.fields import image_config, parse_fields
from prefetchd.errors import ConfigError

if TYPE_CHECKING:
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


def tile_of_fields(batch: Any, config: Config, classes: dict[str, tuple[str, ...]]) -> Tile:
    """Return the tile of a batch's only sample; `classes` are the names of a label's classes, by its field."""
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
    return Tile(picture, f"#{batch.index}: {', '.join(words)}" if words else f"#{batch.index}")


def _label(label: Any, classes: tuple[str, ...] | None) -> str:
    values = np.asarray(label).ravel()[:4].tolist()
    if len(values) == 1 and classes is not None and isinstance(values[0], int) and 0 <= values[0] < len(classes):
        return classes[values[0]]
    return " ".join(f"{value:.4g}" for value in values)
