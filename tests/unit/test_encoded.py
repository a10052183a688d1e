"""The option `encoded_bytes`: what goes with it, and what it changes of the digest."""

from __future__ import annotations

from typing import Any

import pytest

from prefetchd.config.validate import make_config
from prefetchd.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "instead"),
    [
        ({"augment": "hflip"}, "let readers decode"),
        ({"views": 2}, "let readers decode"),
        ({"transform": "module:function"}, "let readers decode"),
        ({"dtype": "float32", "scale": 1 / 255}, "let readers decode"),
        ({"color": "gray"}, "let readers decode"),
        ({"resize": "crop"}, "let readers decode"),
        ({"image_size": ["64", "64x128"]}, "let readers decode"),
        ({"cache": "/c"}, "let readers decode"),
        ({"target": "mask"}, "give fields, one of kind bytes"),
        ({"target": "boxes"}, "give fields, one of kind bytes"),
        ({"target_transform": "module:function"}, "let readers decode"),
        ({"fields": {"a": "image", "mask": "mask"}}, "give a field of kind bytes"),
    ],
)
def test_what_readers_do_to_pixels_is_refused_in_one_line(options: dict[str, Any], instead: str):
    with pytest.raises(ConfigError, match=instead) as caught:
        make_config(source="train.txt", encoded_bytes=1000, **options)
    assert str(caught.value).startswith("cannot use ")
    assert "\n" not in str(caught.value)


def test_the_size_to_decode_to_and_the_layout_go_with_it():
    config = make_config(source="train.txt", encoded_bytes=1000, image_size=64, layout="nchw", shuffle=True)
    assert config.image_size == (64, 64)


def test_digest_follows_it_and_is_the_old_one_without():
    plain, encoded = make_config(source="m"), make_config(source="m", encoded_bytes=1000)
    sizes = {make_config(source="m", encoded_bytes=1000, image_size=size).digest() for size in (64, 128)}
    assert len({plain.digest(), encoded.digest(), *sizes}) == 4
    assert plain.digest() == make_config(source="m", encoded_bytes=None).digest()


def test_limits():
    for wrong in (0, -1, (1 << 30) + 1, "many"):
        with pytest.raises(ConfigError, match="encoded_bytes"):
            make_config(source="m", encoded_bytes=wrong)
