"""The parameters of each kind of field, and their converters to one checked value. Pure; `fields` calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from prefetchd.config import convert
from prefetchd.config.options import MAX_OBJECTS, BoxFormat
from prefetchd.errors import ConfigError

_DTYPES = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32",
           "float64")  # fmt: skip


class Wrong(Exception):
    """A parameter's value is wrong; the message says what it must be."""


def _one_of(*choices: str) -> Callable[[Any], str]:
    def convert_choice(value: Any) -> str:
        named = convert.dtype_name(value)
        if named not in choices:
            raise Wrong("one of " + ", ".join(choices))
        return str(named)

    return convert_choice


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def convert_number(value: Any) -> int:
        try:
            number = convert.whole_number(value)
        except (TypeError, ValueError, OverflowError):
            number = low - 1
        if not low <= number <= high:
            raise Wrong(f"a whole number from {low} to {high}")
        return number

    return convert_number


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Wrong("True or False")
    return value


def _fraction(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise Wrong("a number from 0 to 1")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise Wrong("the name of a column")
    return value


def _from_option(converter: Callable[[object], Any], what: str) -> Callable[[Any], Any]:
    """Return the converter of an option as that of a parameter."""

    def convert_value(value: Any) -> Any:
        try:
            return converter(value)
        except ConfigError:
            raise Wrong(what) from None

    return convert_value


def _shape(value: Any) -> tuple[int, ...]:
    sides = convert.plain(value)
    try:
        shape = tuple(map(convert.whole_number, sides if isinstance(sides, tuple | list) else (sides,)))
    except (TypeError, ValueError, OverflowError):
        shape = (0,)
    if len(shape) > 8 or not all(1 <= side <= 1 << 32 for side in shape):
        raise Wrong("a shape such as (3, 4), of sides from 1")
    return shape


_SIZE = _from_option(convert.image_size, "a side in pixels, or (height, width)")
_NUMBERS = "one number, or one a channel"
# The parameters of each kind, and their converters. What is not given is as the option of that name says, or as the
# data says.
PARAMETERS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "image": {
        "size": _SIZE,
        "color": _one_of("rgb", "bgr", "gray", "unchanged"),
        "channels": _whole(1, 512),
        "dtype": _one_of("uint8", "uint16", "float32", "float16"),
        "scale": _from_option(convert.scale, "a number, such as 1/255"),
        "mean": _from_option(convert.channel_numbers("mean"), _NUMBERS),
        "std": _from_option(convert.channel_numbers("std"), _NUMBERS),
        "interpolation": _one_of("nearest", "linear", "cubic", "area", "lanczos"),
        "jitter": _flag,
    },
    "mask": {"size": _SIZE, "dtype": _one_of("uint8", "uint16"), "border": _whole(0, 65535)},
    "label": {"dtype": _one_of(*_DTYPES)},
    "array": {"shape": _shape, "dtype": _one_of(*_DTYPES)},
    "boxes": {
        "labels": _text,
        "box_format": _one_of(*get_args(BoxFormat)),
        "source_box_format": _one_of(*get_args(BoxFormat)),
        "max_boxes": _whole(1, MAX_OBJECTS),
        "min_visible": _fraction,
    },
    "keypoints": {"max_boxes": _whole(1, MAX_OBJECTS)},
    "text": {"max_bytes": _whole(1, 1 << 32), "truncate": _flag},
    "bytes": {"max_bytes": _whole(1, 1 << 32)},
}
