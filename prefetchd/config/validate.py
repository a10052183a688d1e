"""From the options that a user gave to one validated `Config`, and whether two sets of options agree. Pure.

`make_config` converts each option (`convert`), checks its range (`options`) and refuses options that contradict each
other. The command line, `prefetchd.batches`, the daemon and its readers all call it, so each checks what it was sent.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

from prefetchd.config import augment, convert
from prefetchd.config.convert import wrong
from prefetchd.config.options import OPTION_TYPES, OPTIONS, Config
from prefetchd.errors import ConfigError

# Options without a converter of their own are converted by their type.
_CONVERTERS: dict[str, Callable[[object], Any]] = {
    "num_workers": convert.num_workers,
    "source": convert.path,
    "root": convert.path,
    "labels": convert.path,
    "offsets": convert.path,
    "image_size": convert.image_size,
    "cache": convert.path,
    "cache_size": convert.size,
    "cache_image_size": convert.optional_image_size,
    "scale": convert.scale,
    "mean": convert.channel_numbers("mean"),
    "std": convert.channel_numbers("std"),
    "augment": augment.canonical,
    "transform": convert.function("transform"),
    "target_transform": convert.function("target_transform"),
    "python_path": convert.folders,
    "x_column": convert.columns,
    "y_column": convert.columns,
    "name": convert.daemon_name,
}


def make_config(**options: Any) -> Config:
    """Return the validated configuration of `options`; values may be text as on a command line.

    Raises:
        ConfigError: for an unknown name, a value of the wrong kind or out of range, or a contradiction.
    """
    checked = check_options(options)
    if "source" not in checked:
        raise ConfigError("cannot serve: no manifest was given; name a list file or a directory of class folders")
    config = Config(**checked)
    _check_together(config)
    return config


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `options`, each as its one checked value; not whether they go together.

    Raises:
        ConfigError: for an unknown name, or a value of the wrong kind or out of range.
    """
    checked: dict[str, Any] = {}
    for name, value in options.items():
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"cannot use the option {name!r}: there is no such option{meant}")
        converter = _CONVERTERS.get(name)
        checked[name] = converter(value) if converter else convert.coerce(name, value, OPTION_TYPES[name])
        _check_limits(name, checked[name])
    return checked


def check_agrees(config: Config, options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` where one of `options`, as a consumer sent them, contradicts `config`."""
    for name, wanted in check_options(options).items():
        served = getattr(config, name)
        if convert.comparable(name, served) != convert.comparable(name, wanted):
            raise ConfigError(
                f"cannot attach with {name}={wanted!r}: the daemon {config.name!r} serves {name}={served!r}, "
                "and its configuration decides; leave the option out, or start a daemon with it"
            )


def _check_limits(name: str, value: Any) -> None:
    limits = OPTIONS[name].metadata["limits"]
    if limits is None or value is None or limits[0] <= value <= limits[1]:
        return
    low, high = limits
    wanted = f"from {low} to {high}" if high != math.inf else f"{low} or more"
    raise wrong(name, value, f"{wanted}; {'raise' if value < low else 'lower'} it")


def _check_together(config: Config) -> None:
    """Raise `ConfigError` for options that contradict each other."""
    for name in ("mean", "std"):
        numbers = getattr(config, name)
        if numbers is not None and len(numbers) not in (1, config.channels):
            raise wrong(name, numbers, f"one number or {config.channels}, one a channel of color={config.color!r}")
        if numbers is not None and not all(map(math.isfinite, numbers)):
            raise wrong(name, numbers, "finite; give numbers as in 0.485,0.456,0.406")
    if config.scale is not None and not math.isfinite(config.scale):
        raise wrong("scale", config.scale, "finite; give a number as in 1/255")
    if config.std is not None and 0 in config.std:
        raise wrong("std", config.std, "other than 0; give the deviation of the pixels, or leave it out")
    if config.dtype == "uint8" and any(x is not None for x in (config.scale, config.mean, config.std)):
        raise ConfigError(
            "cannot scale uint8 pixels: scale, mean and std give fractions; use dtype='float32' or 'float16' with them"
        )
    if config.target == "mask" and config.label_columns not in (None, 1):
        raise wrong("label_columns", config.label_columns, "1, or not given, with target='mask': one path a line")
