"""Which pipelines can be cached, and what a kept image is. Pure; called as a configuration is opened.

The kept image is what is left of a sample when everything that is the same in every epoch has been done: decoded,
upright, in the order of `color`, uint8, and

- resized to `image_size` as `resize` says; or, with `cache_image_size`,
- fitted into that size at its own aspect, never enlarged. Everything else then goes on from it as if it were the file.

So `cache_image_size` decides pixels, with a cache or without; a cache alone changes none.
"""

from __future__ import annotations

from prefetchd.config.augment import parameters
from prefetchd.config.options import Config
from prefetchd.errors import ConfigError

# What draws, for every epoch anew, which part of the file is needed at which scale.
_GEOMETRY = ("random_resized_crop", "rotate", "affine")


def check_cache(config: Config) -> None:
    """Raise `ConfigError` where the options of the cache contradict the others, naming what to set."""
    if config.cache is None and config.cache_size != "auto":
        raise ConfigError("cannot use cache-size without a cache; give cache=DIR, or leave it out")
    if config.target == "mask":
        for name in ("cache", "cache_image_size"):
            if getattr(config, name) is not None:
                raise ConfigError(
                    f"cannot use {name.replace('_', '-')} with target=mask: masks are placed as their images are "
                    "drawn and are not kept; leave it out"
                )
    drawn = [name for name in _GEOMETRY if name in parameters(config.augment)]
    if config.cache is not None and drawn and config.cache_image_size is None:
        height, width = config.image_size
        raise ConfigError(
            f"cannot cache with augment={drawn[0]}, which takes another part of the file each epoch: give "
            f"cache-image-size, the size at which images are kept (such as {_larger(height)}x{_larger(width)})"
        )


def _larger(side: int) -> int:
    """A size that leaves crops some pixels: half as much again, in steps of 32."""
    return -(-side * 3 // 64) * 32
