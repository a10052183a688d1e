"""What goes with the option `encoded_bytes`, with which images are delivered as they are in their files. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefetchd.config.options import OPTIONS
from prefetchd.errors import ConfigError

# What readers do to pixels, which they do not make then. `image_size` and `layout` are for what decodes.
_OF_PIXELS = (
    "dtype", "scale", "mean", "std", "color", "channels", "resize", "interpolation", "shrink_on_load", "augment",
    "views", "transform", "bucket_sizes", "bucket_file", "cache", "cache_image_size", "cache_format",
)  # fmt: skip
_INSTEAD = {
    **dict.fromkeys(_OF_PIXELS, "leave it out, or let readers decode"),
    "fields": "give a field of kind bytes, and leave encoded_bytes and decode out",
    "target": "give fields, one of kind bytes, or let readers decode",
    "target_transform": "leave it out, or let readers decode",
}


def refuse_beside_encoded(options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a checked option, other than its default, that means nothing for encoded images."""
    for name, instead in _INSTEAD.items():
        if name in options and options[name] != OPTIONS[name].default:
            raise ConfigError(
                f"cannot use {name} with images that are delivered encoded (encoded_bytes, decode='device'): readers "
                f"make no pixels of them; {instead}"
            )
