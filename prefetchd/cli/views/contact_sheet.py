"""Contact sheets for `preview`: turn delivered samples back into pictures and draw them in a grid. Writes no file.

Turning back undoes the normalisation and restores the layout and the colours of files.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from prefetchd.cli.views.marks import Marks, draw_marks
from prefetchd.client.pictures import to_display as to_display
from prefetchd.config.options import Config

if TYPE_CHECKING:
    from numpy.typing import NDArray


def views_to_display(views: Sequence[NDArray[Any]], config: Config) -> NDArray[np.uint8]:
    """Return the views of one sample side by side, each fitted into `image_size`, as `to_display` returns one."""
    height, width = config.image_size
    pictures = [to_display(view, config) for view in views]
    return np.hstack([cv2.resize(each, (width, height), interpolation=cv2.INTER_AREA) for each in pictures])


def mask_to_display(mask: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a mask of class numbers as (height, width, 3) uint8: 0 is black, neighbouring numbers differ in colour."""
    colours = np.array(
        [(0, 0, 0)] + [[255 * c for c in colorsys.hsv_to_rgb(n * 0.618 % 1, 0.75, 1)] for n in range(255)]
    ).astype(np.uint8)
    numbers = np.asarray(mask).astype(np.int64)
    return colours[np.where(numbers == 0, 0, (numbers - 1) % 255 + 1)]


_MARGIN_PX = 8
_CAPTION_PX = 20
_MAX_TILE_PX = 224
_MIN_TILE_PX = 96
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FONT_SCALE = 0.42
_INK, _GREY, _BAR, _BAD = (40, 40, 40), (225, 225, 225), (178, 114, 0), (60, 60, 200)


@dataclass(frozen=True, slots=True)
class Tile:
    """One place of the sheet: a picture, (height, width, 3) uint8 BGR, or `None` for a bad sample.

    Attributes:
        marks: boxes and keypoints that are drawn into it.
    """

    picture: NDArray[np.uint8] | None
    caption: str
    marks: Marks | None = None


def draw_sheet(
    rows: Sequence[Sequence[Tile]], size: tuple[int, int], title: str, counts: Sequence[tuple[str, int]]
) -> NDArray[np.uint8]:
    """Return the sheet, (height, width, 3) uint8 BGR.

    Args:
        rows: the tiles, by row.
        size: (height, width) in pixels of the pictures; they are drawn at that size, but from 96 to 224 pixels.
        title: the line at the top.
        counts: (name, count) of the histogram; none if empty.
    """
    factor = min(1.0, _MAX_TILE_PX / max(size))
    factor = max(factor, _MIN_TILE_PX / max(size))
    height, width = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
    across = max((len(row) for row in rows), default=1)
    sheet_width = max(400, _MARGIN_PX + across * (width + _MARGIN_PX))
    top = _CAPTION_PX + _MARGIN_PX
    bars_px = (len(counts) + 1) * _CAPTION_PX + _MARGIN_PX if counts else 0
    sheet = np.full((top + len(rows) * (height + _CAPTION_PX + _MARGIN_PX) + bars_px, sheet_width, 3), 255, np.uint8)
    _write(sheet, _MARGIN_PX, top - 10, title, sheet_width - 2 * _MARGIN_PX)
    for row, tiles in enumerate(rows):
        y = top + row * (height + _CAPTION_PX + _MARGIN_PX)
        for column, tile in enumerate(tiles):
            x = _MARGIN_PX + column * (width + _MARGIN_PX)
            _draw_tile(sheet[y : y + height, x : x + width], tile)
            _write(sheet, x, y + height + 14, tile.caption, width, _INK if tile.picture is not None else _BAD)
    if counts:
        _draw_bars(sheet[-bars_px:], counts)
    return sheet


def _draw_tile(place: NDArray[np.uint8], tile: Tile) -> None:
    height, width = place.shape[:2]
    if tile.picture is None:
        place[:] = _GREY
        cv2.line(place, (0, 0), (width, height), _BAD, 1, cv2.LINE_AA)
        cv2.line(place, (width, 0), (0, height), _BAD, 1, cv2.LINE_AA)
        return
    place = _fitted(place, tile.picture)
    height, width = place.shape[:2]
    shrinks = tile.picture.shape[0] > height
    how = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST  # small images are shown as the pixels that they are
    place[:] = cv2.resize(tile.picture, (width, height), interpolation=how)
    if tile.marks is not None:
        drawn = np.ascontiguousarray(place)
        draw_marks(drawn, tile.marks)
        place[:] = drawn


def _fitted(place: NDArray[np.uint8], picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the part of a tile that a picture of another aspect fills, as one of another bucket does."""
    height, width = place.shape[:2]
    scale = min(height / picture.shape[0], width / picture.shape[1])
    tall, wide = max(1, round(picture.shape[0] * scale)), max(1, round(picture.shape[1] * scale))
    if height - tall <= 1 and width - wide <= 1:
        return place
    place[:] = _GREY
    top, left = (height - tall) // 2, (width - wide) // 2
    return place[top : top + tall, left : left + wide]


def _draw_bars(place: NDArray[np.uint8], counts: Sequence[tuple[str, int]]) -> None:
    _write(place, _MARGIN_PX, 16, "labels", place.shape[1])
    most = max(count for _, count in counts) or 1
    longest = place.shape[1] - 220
    for row, (name, count) in enumerate(counts):
        y = (row + 1) * _CAPTION_PX
        _write(place, _MARGIN_PX, y + 15, name, 120)
        length = max(1, round(longest * count / most)) if count else 0
        place[y + 3 : y + _CAPTION_PX - 2, 140 : 140 + length] = _BAR
        _write(place, 146 + length, y + 15, f"{count:,}", 70)


def _write(sheet: NDArray[Any], x: int, y: int, text: str, width: int, colour: tuple[int, int, int] = _INK) -> None:
    """Write a line, cut to `width` pixels; the font has ASCII letters only."""
    shown = text.encode("ascii", "replace").decode()
    while shown and cv2.getTextSize(shown, _FONT, _FONT_SCALE, 1)[0][0] > width:
        shown = shown[:-1]
    cv2.putText(sheet, shown, (x, y), _FONT, _FONT_SCALE, colour, 1, cv2.LINE_AA)
