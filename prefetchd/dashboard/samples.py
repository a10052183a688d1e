"""Samples of a delivered batch for the page: pictures, what is drawn into them, and everything else in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.cli.views.contact_sheet import mask_to_display, to_display
from prefetchd.cli.views.marks import Marks, marks_of
from prefetchd.cli.views.tiles import label_text, with_size_of
from prefetchd.client.batch import Named
from prefetchd.config.fields import image_config, parse_fields
from prefetchd.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.client.batch import Batch
    from prefetchd.config.options import Config

ClassNames = Mapping[str, tuple[str, ...]]

_MOST_CHARACTERS = 2000
_MOST_NUMBERS = 64
_MOST_MARKS = 300
_numbers = count(1)
_LEAST_PX = 2  # of a side of an array of bytes that is shown as a picture


class Samples:
    """The samples of one batch.

    Args:
        batch: in memory of its own.
        config: the options that it was delivered with.
        classes: the names of the classes by number, if they have any.
        names: with the option `fields`, those of each label.
        is_images: whether x holds images.

    Attributes:
        number: tells it from all others of this process.
    """

    def __init__(
        self, batch: Batch, config: Config, classes: tuple[str, ...] | None, names: ClassNames, *, is_images: bool
    ) -> None:
        self.number = next(_numbers)
        self.batch = batch
        self.config = with_size_of(batch, config)
        self._classes = classes
        self._names = names
        self._is_images = is_images
        self._fields = parse_fields(config.fields) if config.fields else {}

    def __len__(self) -> int:
        return len(self.batch.sample_ids)

    def describe(self, row: int) -> dict[str, Any]:
        """Return what the page shows of a row: pictures by name, marks, and (name, text) of all else."""
        one = self.batch.from_row(row)
        pictures = [
            {"name": name, "kind": kind, "height": size[0], "width": size[1]}
            for name, kind, size in self._pictures_of(one)
        ]
        return {
            "row": row,
            "sample_id": int(one.sample_ids[0]),
            "pictures": pictures,
            "marks": _plain_marks(self._marks(one)),
            "words": [{"name": name, "text": text} for name, text in self._words(one)],
        }

    def _pictures_of(self, one: Batch) -> Iterator[tuple[str, str, tuple[int, int]]]:
        """Yield name, kind and (height, width) of each picture of the first row."""
        if self._fields:
            for name, field in self._fields.items():
                if field.kind in ("image", "mask"):
                    yield name, field.kind, self._picture(one, name).shape[:2]
        elif self.config.views:
            for name in one.keys()[:-1]:
                for number, _ in enumerate(one[name][0]):
                    yield f"{name}-{number}", "image", self._picture(one, f"{name}-{number}").shape[:2]
        elif self._is_images:
            yield "x", "image", self._picture(one, "x").shape[:2]
            if self.config.target == "mask" and one.y[0].ndim == 2:
                yield "y", "mask", one.y[0].shape[:2]
        else:
            first = one.keys()[0]
            if not isinstance(one[first], tuple) and _looks_like_picture(one[first][0]):
                yield first, "array", self._picture(one, first).shape[:2]

    def picture(self, row: int, name: str) -> NDArray[np.uint8]:
        """Return a picture of a row, (height, width, 3) uint8 in BGR.

        Raises:
            ConfigError: if the row has no such picture.
        """
        one = self.batch.from_row(row) if 0 <= row < len(self) else None
        if one is None or name not in [known for known, _, _ in self._pictures_of(one)]:
            raise ConfigError(f"cannot show the picture {name!r} of row {row}: the batch has no such picture")
        return self._picture(one, name)

    def _picture(self, one: Batch, name: str) -> NDArray[np.uint8]:
        if self._fields:
            field = self._fields[name]
            if field.kind == "mask":
                return mask_to_display(one[name][0])
            return to_display(one[name][0], image_config(self.config, field))
        if self.config.views:
            view, _, number = name.rpartition("-")
            return to_display(one[view][0][int(number)], self.config)
        if not self._is_images:
            return _array_to_display(one[name][0])
        return mask_to_display(one.y[0]) if name == "y" else to_display(one.x[0], self.config)

    def _marks(self, one: Batch) -> Marks | None:
        """Return boxes and keypoints, which are drawn into the first picture."""
        if not self._fields:
            known = self._is_images and self.config.target in ("boxes", "keypoints")
            return marks_of(one.y, self.config, self._classes) if known else None
        image = next((name for name, field in self._fields.items() if field.kind == "image"), None)
        found = []
        for name, field in self._fields.items():
            if image is not None and field.kind in ("boxes", "keypoints"):
                target: Any = field.kind
                box_format = field.box_format or self.config.box_format
                own = replace(image_config(self.config, self._fields[image]), target=target, box_format=box_format)
                found.append(marks_of(one[name], own, self._names.get(name)))
        if not found:
            return None
        return Marks(
            np.concatenate([each.boxes for each in found]),
            np.concatenate([each.labels for each in found]),
            tuple(name for each in found for name in each.names),
            np.concatenate([each.points for each in found]),
        )

    def _words(self, one: Batch) -> Iterator[tuple[str, str]]:
        """Yield name and text of what is no picture."""
        if not self._fields and self._is_images:
            if self.config.target in ("boxes", "keypoints"):
                yield self.config.target, str(int(one.y["count"][0]))
            elif self.config.target != "mask" or one.y[0].ndim != 2:
                yield "label", label_text(one.y[0], self._classes)
            return
        shown = {name for name, _, _ in self._pictures_of(one)}
        for name, values in one.items():
            kind = self._fields[name].kind if name in self._fields else ""
            if name in shown or (self.config.views and name != one.keys()[-1]):
                continue
            if kind in ("boxes", "keypoints"):
                yield name, str(int(one[name]["count"][0]))
            elif kind == "text":
                yield name, one.strings(name)[0][:_MOST_CHARACTERS]
            elif isinstance(values, Named):
                for part, numbers in values.items():
                    yield f"{name}.{part}", _numbers_text(numbers[0])
            elif np.ndim(values[0]) == 0:
                classes = self._classes if name == one.keys()[-1] else None
                yield name, label_text(values[0], self._names.get(name) or classes)
            else:
                yield name, _numbers_text(values[0])


def _plain_marks(marks: Marks | None) -> dict[str, Any]:
    """Return marks as plain values: boxes as left, top, right, bottom in fractions, with class and name."""
    if marks is None:
        return {"boxes": [], "points": [], "left_out": 0}
    n_boxes, n_points = len(marks.boxes), len(marks.points)
    boxes = [
        [*(round(float(side), 5) for side in box), label, name]
        for box, label, name in zip(marks.boxes[:_MOST_MARKS], marks.labels.tolist(), marks.names, strict=False)
    ]
    points = [[round(float(x), 5), round(float(y), 5)] for x, y in marks.points[:_MOST_MARKS]]
    return {"boxes": boxes, "points": points, "left_out": n_boxes + n_points - len(boxes) - len(points)}


def _looks_like_picture(values: Any) -> bool:
    if not isinstance(values, np.ndarray) or values.dtype != np.uint8:
        return False
    shape = values.shape
    return (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))) and min(shape[:2]) >= _LEAST_PX


def _array_to_display(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return bytes that look like a picture as one in BGR; three channels count as RGB."""
    pixels = values if values.ndim == 3 else values[..., None]
    return np.ascontiguousarray(pixels[..., ::-1] if pixels.shape[-1] == 3 else np.repeat(pixels, 3, axis=-1))


def _numbers_text(values: Any) -> str:
    array = np.asarray(values)
    flat = array.ravel()
    text = " ".join(
        f"{value:.4g}" if isinstance(value, float) else str(value) for value in flat[:_MOST_NUMBERS].tolist()
    )
    size = " x ".join(map(str, array.shape))
    return f"{size} {array.dtype}: {text}{' ...' if len(flat) > _MOST_NUMBERS else ''}" if array.ndim else text
