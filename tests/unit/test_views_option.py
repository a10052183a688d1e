"""The option `views`: one canonical form, what it delivers, and refusals in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefetchd.config.datasets import read_config_file
from prefetchd.config.validate import make_config
from prefetchd.config.views import Group, canonical, groups
from prefetchd.data.cache.keys import check_cache
from prefetchd.errors import ConfigError

DINO = [{"size": 224, "count": 2, "scale": (0.4, 1)}, {"size": 96, "count": 6, "scale": (0.05, 0.4)}]
CROP = "random_resized_crop(scale={}, ratio=(0.75, 1.3333333333333333))"


def test_every_way_to_write_them_is_one_form():
    text = "view(size=224, count=2, scale=(0.4, 1)), view(size=(96, 96), count=6, scale=[0.05, 0.4])"
    form = canonical(DINO)
    assert canonical(text) == canonical([text]) == canonical(form) == canonical(list(form)) == form
    assert form == (
        "view(count=2, size=(224, 224), scale=(0.4, 1.0))",
        "view(count=6, size=(96, 96), scale=(0.05, 0.4))",
    )
    assert canonical(2) == canonical("2") == canonical(("2",)) == ("2",)
    assert canonical(None) == canonical(()) == canonical("") == canonical(0) == ()
    config = make_config(source="m", views=DINO)
    assert make_config(**config.to_wire()) == config
    assert config.digest() != make_config(source="m").digest()


def test_groups_say_what_each_array_holds():
    assert groups(make_config(source="m", augment="hflip")) == (Group("x", None, (224, 224), ("hflip(p=0.5)",)),)
    assert groups(make_config(source="m", views=3, image_size=32)) == (Group("x", 3, (32, 32), ()),)
    views = [*DINO, {"augment": "vflip"}, {"scale": (0.5, 1), "ratio": (1, 1), "augment": ""}]
    found = groups(make_config(source="m", views=views, image_size=32, augment="random_resized_crop, hflip"))
    assert found == (
        Group("view0", 2, (224, 224), (CROP.format("(0.4, 1.0)"), "hflip(p=0.5)"), 0),
        Group("view1", 6, (96, 96), (CROP.format("(0.05, 0.4)"), "hflip(p=0.5)"), 2),
        Group("view2", 1, (32, 32), ("vflip(p=0.5)",), 8),
        Group("view3", 1, (32, 32), ("random_resized_crop(scale=(0.5, 1.0), ratio=(1.0, 1.0))",), 9),
    )


@pytest.mark.parametrize(
    ("views", "says"),
    [
        (-1, "the count must be a whole number from 1 to 64"),
        (65, "from 1 to 64"),
        (1.5, "from 1 to 64"),
        ("two", "it cannot be read; write a number, or such as"),
        ("view(224)", "it cannot be read"),
        ("view(size=__import__('os'))", "it cannot be read"),
        ([{"size": 224, "number": 2}], "a view has no 'number'; it has count, size, scale, ratio, augment"),
        ([{"count": 0}], "from 1 to 64"),
        ([{"count": 40}, {"count": 40}], "they are 80 views, and 64 is the most"),
        ([{"scale": (0.5, 2)}], "above 0 and up to 1"),
        ([{"size": "x"}], "pixels from 1 to 32768"),
        ([{"augment": "flop"}], "there is no such augmentation"),
        ([3, 4], "a number or a list"),
        (object(), "a number or a list"),
    ],
)
def test_what_is_no_view_is_refused_in_one_line(views: Any, says: str):
    with pytest.raises(ConfigError) as caught:
        make_config(source="m", views=views)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"views": 2, "target": "boxes"}, "cannot use views with target='boxes'"),
        ({"views": DINO, "target": "mask"}, "cannot use a list of views with target='mask'"),
        ({"views": [{"augment": "solarize"}], "dtype": "uint16"}, "solarize with 3 channels of uint16"),
        ({"views": [{"augment": "random_erasing(value=300)"}]}, "whole numbers from 0 to 255"),
    ],
)
def test_views_that_contradict_other_options_are_refused(options: dict[str, Any], says: str):
    with pytest.raises(ConfigError) as caught:
        make_config(source="m", **options)
    assert says in str(caught.value)


def test_crops_of_views_need_the_size_that_a_cache_keeps():
    with pytest.raises(ConfigError, match="such as cache_image_size"):
        check_cache(make_config(source="m", views=DINO, cache="/c"))
    with pytest.raises(ConfigError, match=r"views of other sizes than image_size=\(224, 224\), such as \(96, 96\)"):
        check_cache(make_config(source="m", views=[{}, {"size": 96}], cache="/c"))
    check_cache(make_config(source="m", views=DINO, cache="/c", cache_image_size=352))
    check_cache(make_config(source="m", views=2, augment="hflip, color_jitter", cache="/c"))


@pytest.mark.parametrize(
    "toml",
    [
        "views = [{size = 224, count = 2, scale = [0.4, 1]}, {size = 96, count = 6, scale = [0.05, 0.4]}]",
        "[[views]]\nsize = 224\ncount = 2\nscale = [0.4, 1]\n[[views]]\nsize = 96\ncount = 6\nscale = [0.05, 0.4]",
        'views = "view(size=224, count=2, scale=(0.4, 1)), view(size=96, count=6, scale=(0.05, 0.4))"',
    ],
)
def test_a_file_of_options_may_have_them(tmp_path: Path, toml: str):
    path = tmp_path / "options.toml"
    path.write_text('source = "m"\n' + toml)
    common, tables = read_config_file(path)
    assert not tables
    assert make_config(**common).views == canonical(DINO)
