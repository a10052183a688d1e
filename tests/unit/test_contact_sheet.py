"""Batches turned back into pictures, and the sheet that they are drawn on."""

from __future__ import annotations

import numpy as np
import pytest

from prefetchd.cli.views.contact_sheet import Tile, draw_sheet, mask_to_display, to_display
from prefetchd.config.validate import make_config
from prefetchd.data.images.normalize import Normalizer
from tests.images import photograph


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"dtype": "float32"},
        {"dtype": "float32", "scale": "1/255", "mean": 0.45, "std": 0.225},
        {"dtype": "float16", "scale": "1/255"},
    ],
)
def test_display_undoes_what_delivery_does(layout, color, values):
    config = make_config(source="m", image_size="20x30", layout=layout, color=color, **values)
    image = photograph(20, 30)  # BGR, as it is decoded for `color`
    shown = {"rgb": image[..., ::-1], "bgr": image, "gray": image[..., 0]}[color]
    shape = (20, 30, config.n_channels) if layout == "nhwc" else (config.n_channels, 20, 30)
    x = np.empty(shape, config.dtype)
    Normalizer(config).deliver(np.ascontiguousarray(shown), x)
    back = to_display(x, config)
    wanted = np.repeat(image[..., :1], 3, axis=-1) if color == "gray" else image
    assert back.shape == (20, 30, 3)
    assert np.abs(back.astype(int) - wanted).max() <= (1 if "dtype" in values else 0)


def test_numbers_that_are_no_pixels_are_shown_somehow():
    config = make_config(source="m", image_size=2, dtype="float32")
    assert to_display(np.full((2, 2, 3), np.nan, np.float32), config).max() == 0
    assert to_display(np.full((2, 2, 3), 1e9, np.float32), config).min() == 255


def test_masks_show_background_black_and_neighbouring_classes_apart():
    shown = mask_to_display(np.array([[0, 1, 2, 255]], np.uint8))
    assert shown[0, 0].tolist() == [0, 0, 0]
    assert len({tuple(pixel) for pixel in shown[0].tolist()}) == 4


def test_the_sheet_holds_every_tile_and_marks_what_is_bad():
    red = np.full((100, 100, 3), (0, 0, 255), np.uint8)
    sheet = draw_sheet(
        [[Tile(red, "a"), Tile(None, "b")], [Tile(red, "nächste")]], (100, 100), "t", [("cat", 3), ("dog", 0)]
    )
    is_red = (sheet == (0, 0, 255)).all(axis=-1)
    assert is_red.sum() == 2 * 100 * 100
    assert (sheet == (225, 225, 225)).all(axis=-1).any()


@pytest.mark.parametrize("size", [(1, 1), (1000, 10), (10, 1000), (3000, 3000)])
def test_sheets_of_any_size_can_be_drawn(size):
    picture = np.zeros((*size, 3), np.uint8)
    sheet = draw_sheet([[Tile(picture, "x" * 500)]], size, "y" * 500, [])
    assert max(sheet.shape) <= 600
