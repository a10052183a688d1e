"""From the options that a user gave to one validated `Config`, and whether two sets of options agree. Pure.

`make_config` converts each option (`convert`), checks its range (`options`) and refuses options that contradict each
other. The command line, `prefetchd.batches`, the daemon and its readers all call it, so each checks what it was sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prefetchd.config import augment, convert, fields
from prefetchd.config.convert import wrong
from prefetchd.config.hints import explain_unknown
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
    "dtype": lambda value: convert.coerce("dtype", convert.dtype_name(value), OPTION_TYPES["dtype"]),
    "cache": convert.path,
    "cache_size": convert.cache_size,
    "cache_image_size": convert.cache_image_size,
    "scale": convert.scale,
    "mean": convert.channel_numbers("mean"),
    "std": convert.channel_numbers("std"),
    "augment": augment.canonical,
    "fields": fields.canonical,
    "transform": convert.function("transform"),
    "target_transform": convert.function("target_transform"),
    "python_path": convert.folders,
    "missing_label": convert.columns,
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


def check_options(options: Mapping[str, Any], *, others: Iterable[str] = ()) -> dict[str, Any]:
    """Return `options`, each as its one checked value. Contradictions between them are not looked for.

    Args:
        options: what a user gave, by name.
        others: more names that the user may have meant by an unknown one.

    Raises:
        ConfigError: for an unknown name, or a value of the wrong kind or out of range.
    """
    checked: dict[str, Any] = {}
    for name, value in options.items():
        if name not in OPTIONS:
            raise ConfigError(explain_unknown(name, (*OPTIONS, *others)))
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
    if config.fields:
        _check_fields(config)
    if config.target == "mask" and config.label_columns not in (None, 1):
        raise wrong("label_columns", config.label_columns, "1, or not given, with target='mask': one path a line")


# Options of a sample that is an image and a label, and what says the same of fields.
_OTHERWISE_WITH_FIELDS = {
    "target": "a field of another kind",
    "target_transform": "transform, which has the whole sample",
    "x_column": "the column of each field",
    "y_column": "the column of each field",
    "labels": "the column of each field",
    "label_columns": "the column of each field",
    "label_separator": "the column of each field",
    "missing_label": "a complete column",
    "offsets": "a field of kind array",
}


def _check_fields(config: Config) -> None:
    """Raise `ConfigError` for options that concern samples without fields."""
    for name, instead in _OTHERWISE_WITH_FIELDS.items():
        if getattr(config, name) != OPTIONS[name].default:
            raise ConfigError(f"cannot use {name} together with fields; give {instead}, or leave fields out")


def doubts(config: Config) -> str:
    """Return a warning about options that are allowed and most likely a mistake; empty if there are none."""
    mean, std = config.mean or (), config.std or ()
    changes = any(mean) or any(number != 1 for number in std)
    if config.scale is not None or not changes or any(abs(number) > 1 for number in (*mean, *std)):
        return ""
    given = " and ".join(f"{name}={numbers}" for name, numbers in (("mean", mean), ("std", std)) if numbers)
    return f"{given}: these are for pixels from 0 to 1, and without scale pixels are 0 to 255; pass scale=1/255"
