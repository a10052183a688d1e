"""Boxes and keypoints, drawn into the pictures of a contact sheet at the size in which they are shown."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from prefetchd.data.images.boxes import to_corners
from prefetchd.errors import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.options import Config

_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.36
_TEXT_PX = 11


@dataclass(frozen=True, slots=True)
class Marks:
    """What is drawn into one picture, in fractions of its width and height.

    Attributes:
        boxes: (n, 4), left, top, right, bottom.
        labels: (n,) class numbers.
        names: of the boxes' classes, one a box.
        points: (m, 2), x and y.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    points: NDArray[np.float64]


def marks_of(y: Any, config: Config, classes: tuple[str, ...] | None) -> Marks:
    """Return what to draw of a delivered batch's first sample.

    Args:
        y: the batch's `y`, with boxes or keypoints.
        config: the options it was delivered with.
        classes: the names of the classes.
    """
    height, width = config.image_size
    if config.target == "keypoints":
        seen = y["visibility"][0] > 0
        points = (y["keypoints"][0][seen] + 0.5) / (width, height)
        return Marks(np.zeros((0, 4)), np.zeros(0, np.int64), (), points)
    count = int(y["count"][0])
    labels = y["labels"][0][:count]
    corners = to_corners(y["boxes"][0][:count], config.box_format, (height, width))
    known = classes or ()
    names = [one_line(known[label]) if 0 <= label < len(known) else str(label) for label in labels.tolist()]
    return Marks(corners / (width, height, width, height), labels, tuple(names), np.zeros((0, 2)))


def draw_marks(picture: NDArray[np.uint8], marks: Marks) -> None:
    """Draw into (height, width, 3) uint8 pixels in BGR."""
    height, width = picture.shape[:2]
    corners = (marks.boxes * (width, height, width, height)).round().astype(int)
    for corner, label, name in zip(corners.tolist(), marks.labels.tolist(), marks.names, strict=True):
        left, top, right, bottom = corner
        colour = _colour(label)
        cv2.rectangle(picture, (left, top), (max(left, right - 1), max(top, bottom - 1)), colour, 1)
        shown = name.encode("ascii", "replace").decode()
        if cv2.getTextSize(shown, _FONT, _FONT_SCALE, 1)[0][0] <= width - left:
            cv2.putText(picture, shown, (left + 2, top + _TEXT_PX), _FONT, _FONT_SCALE, colour, 1, cv2.LINE_AA)
    for number, (x, y) in enumerate((marks.points * (width, height)).astype(int).tolist()):
        cv2.circle(picture, (x, y), 2, _colour(number), -1, cv2.LINE_AA)


def _colour(number: int) -> tuple[float, ...]:
    """Return a colour that differs from those of neighbouring numbers."""
    return tuple(255 * part for part in colorsys.hsv_to_rgb(number * 0.618 % 1, 0.8, 1))
