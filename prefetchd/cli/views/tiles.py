"""A tile of the contact sheet for one sample of a delivered batch, with what it holds beside its image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.cli.views.contact_sheet import Tile, mask_to_display, to_display, views_to_display
from prefetchd.errors import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.client.batch import Batch
    from prefetchd.config.options import Config


def tile_of(
    row: Batch,
    config: Config,
    classes: tuple[str, ...] | None,
    class_names: Mapping[str, tuple[str, ...]],
    title: str,
) -> Tile:
    """Return the tile of the first sample in `row`.

    Args:
        row: a batch, or its rest from one row on (`Batch.from_row`).
        config: the options it was delivered with.
        classes: the names of the classes by number, if they have any.
        class_names: with the option `fields`, those of each label.
        title: begins the caption.
    """
    config = with_size_of(row, config)
    if config.target_transform is not None:
        classes = None  # y is no class's number any more
    if config.fields:
        from prefetchd.cli.views.fields_tile import tile_of_fields

        return tile_of_fields(row, config, dict(class_names), title)
    if config.views:
        views = [view for name in row.keys()[:-1] for view in row[name][0]]
        return Tile(views_to_display(views, config), f"{title}: {label_text(row.y[0], classes)}")
    picture = to_display(row.x[0], config)
    if config.target == "mask" and row.y[0].shape[:2] == picture.shape[:2]:
        return Tile(np.hstack([picture, mask_to_display(row.y[0])]), title)
    if config.target in ("boxes", "keypoints"):
        from prefetchd.cli.views.marks import marks_of

        count = int(row.y["count"][0])
        what = config.target if count != 1 else config.target.removesuffix("es" if config.target == "boxes" else "s")
        return Tile(picture, f"{title}: {count} {what}", marks_of(row.y, config, classes))
    return Tile(picture, f"{title}: {label_text(row.y[0], classes)}")


def with_size_of(batch: Batch, config: Config) -> Config:
    """Return the options with the size that the images of a batch have; with buckets it is that of theirs."""
    if not config.bucket_sizes:
        return config
    from prefetchd.config.fields import parse_fields

    images = [name for name, field in parse_fields(config.fields).items() if field.kind == "image"]
    sides = batch[images[0] if images else "x"].shape[1:]
    return dataclasses.replace(config, image_size=sides[:2] if config.layout == "nhwc" else sides[1:], bucket_sizes=())


def label_text(label: NDArray[Any] | np.generic, classes: tuple[str, ...] | None) -> str:
    """Return a label in printable words: the name of a class, or numbers, of many the first."""
    if np.ndim(label) == 0:
        value = label.item()
        if classes is not None and isinstance(value, int) and 0 <= value < len(classes):
            return one_line(classes[value])
        return str(value) if isinstance(value, int) else f"{value:.4g}"
    flat = np.asarray(label).ravel()
    return " ".join(f"{value:.3g}" for value in flat[:8].tolist()) + (" ..." if len(flat) > 8 else "")
