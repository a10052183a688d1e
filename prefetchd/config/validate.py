"""Which values of a configuration are out of range, and which contradict each other. Pure.

Called by `config` as it makes one; `names` takes `check_name`, as a name also comes from the environment.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prefetchd.config.convert import wrong
from prefetchd.errors import ConfigError

if TYPE_CHECKING:
    from prefetchd.config.options import Config

MAX_BATCH_SIZE = 1 << 18


def check_config(config: Config) -> None:
    """Raise `ConfigError` for values out of range and for options that contradict each other."""
    ranges: list[tuple[str, float, float]] = [
        ("batch_size", 1, MAX_BATCH_SIZE),
        ("num_workers", 0, 1024),
        ("max_image_pixels", 1, 1 << 34),
        ("reader_timeout", 0.5, 86400),
        ("patience", 0, math.inf),
        ("consumers", 1, 1024),
        ("seed", 0, 2**63 - 1),
        ("mask_border", 0, 65535),
    ]
    for name, low, high in ranges:
        value = getattr(config, name)
        if not low <= value <= high:
            do = "raise it" if value < low else "lower it"
            raise wrong(name, value, f"from {low} to {high}; {do}")
    if config.max_length is not None and not 1 <= config.max_length <= 1 << 40:
        raise wrong("max_length", config.max_length, "1 or more, in tokens; leave it out for the longest one's")
    if config.label_columns is not None and config.label_columns < 0:
        raise wrong("label_columns", config.label_columns, "0 or more; 0 is for no labels")
    for name in ("mean", "std"):
        numbers = getattr(config, name)
        if numbers is not None and len(numbers) not in (1, config.channels):
            raise wrong(name, numbers, f"one number or {config.channels}, one a channel of color={config.color}")
        if numbers is not None and not all(map(math.isfinite, numbers)):
            raise wrong(name, numbers, "finite; give numbers as in 0.485,0.456,0.406")
    if config.scale is not None and not math.isfinite(config.scale):
        raise wrong("scale", config.scale, "finite; give a number as in 1/255")
    if config.std is not None and 0 in config.std:
        raise wrong("std", config.std, "other than 0; give the deviation of the pixels, or leave it out")
    if config.dtype == "uint8" and any(x is not None for x in (config.scale, config.mean, config.std)):
        raise ConfigError(
            "cannot scale uint8 pixels: scale, mean and std give fractions; use dtype=float32 or float16 with them"
        )
    if config.target == "mask" and config.label_columns not in (None, 1):
        raise wrong("label_columns", config.label_columns, "1, or not given, with target=mask: one path a line")
    check_name(config.name)


def check_name(name: str) -> None:
    """Raise `ConfigError` unless `name` can be a daemon's: a file name of harmless characters."""
    if not 1 <= len(name) <= 64 or name.startswith(".") or not all(c.isalnum() or c in "-_." for c in name):
        raise ConfigError(
            f"cannot use name={name!r}: it must be 1 to 64 letters, digits, '-', '_' or '.', and not start with '.'"
        )
