"""The option `augment`: from `random_resized_crop(scale=(0.2, 1)), hflip` to one canonical form. Pure.

`validate` calls `canonical`: equal augmentations have equal texts with all defaults, and so equal digests. Geometry and
colour jitter take the numbers from `parameters`. Text is parsed with `ast`, literals only: no code of it ever runs.

The order in which augmentations are written does not matter; they are applied in the order of `AUGMENTATIONS`.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

from prefetchd.errors import ConfigError

Pair = tuple[float, float]


class _Wrong(Exception):
    """A parameter's value is wrong; the message says what it must be."""


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _Wrong("a number")
    return float(value)


def _pair(value: Any) -> Pair:
    """Return two numbers, the smaller first."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise _Wrong("two numbers, such as (0.5, 1)")
    low, high = map(_number, value)
    if low > high:
        raise _Wrong("two numbers, the smaller one first")
    return low, high


def _probability(value: Any) -> float:
    number = _number(value)
    if not 0 <= number <= 1:
        raise _Wrong("from 0 to 1")
    return number


def _range(low: float, high: float, what: str) -> Callable[[Any], Pair]:
    """Return the converter of a pair of numbers above `low` and up to `high`."""

    def convert(value: Any) -> Pair:
        pair = _pair(value)
        if not low < pair[0] <= pair[1] <= high:
            raise _Wrong(what)
        return pair

    return convert


def _around(centre: float, most: float, what: str) -> Callable[[Any], Pair]:
    """Return the converter of one number n, for (centre - n, centre + n), or a pair, at most `most` from the centre."""

    def convert(value: Any) -> Pair:
        if isinstance(value, tuple | list):
            pair = _pair(value)
        else:
            number = _number(value)
            if number < 0:
                raise _Wrong(what)
            pair = (centre - number, centre + number)
        if pair[0] < centre - most or pair[1] > centre + most:
            raise _Wrong(what)
        return pair

    return convert


def _factor(value: Any) -> Pair:
    """Return a pair of factors from 0; one number n stands for (max(0, 1 - n), 1 + n)."""
    what = "a number n, 0 or more, for factors from 1 - n to 1 + n, or two factors such as (0.5, 1.5)"
    if not isinstance(value, tuple | list):
        number = _number(value)
        if number < 0:
            raise _Wrong(what)
        value = (max(0.0, 1 - number), 1 + number)
    pair = _pair(value)
    if pair[0] < 0 or pair[1] > 1000:
        raise _Wrong(what)
    return pair


def _shift(value: Any) -> Pair:
    """Return two fractions, of the width and of the height; one number stands for both."""
    pair = tuple(map(_number, value)) if isinstance(value, tuple | list) else (_number(value),) * 2
    if len(pair) != 2 or not all(0 <= part <= 1 for part in pair):
        raise _Wrong("a fraction from 0 to 1 of the width and height, or two: (of the width, of the height)")
    return pair[0], pair[1]


_TURN = _around(0, 360, "a number of degrees n, for -n to n, or two such as (-10, 30), within 360")
_SHEAR = _around(0, 80, "a number of degrees n, for -n to n, or two such as (-5, 10), within 80")
_HUE = _around(0, 0.5, "a number n, for -n to n, or two such as (-0.1, 0.2), within 0.5")
_PART = _range(0, 1, "two fractions of the image's area, above 0 and up to 1, the smaller one first")
_POSITIVE = _range(0, 1000, "two numbers above 0 and up to 1000, the smaller one first")

# The order decides in which order they are applied, and which block of random words each draws. Add new ones at the
# end, or the randomness of those below changes. The first four have torchvision's defaults.
AUGMENTATIONS: dict[str, dict[str, tuple[Any, Callable[[Any], Any]]]] = {
    "random_resized_crop": {"scale": ((0.08, 1.0), _PART), "ratio": ((3 / 4, 4 / 3), _POSITIVE)},
    "hflip": {"p": (0.5, _probability)},
    "vflip": {"p": (0.5, _probability)},
    "rotate": {"degrees": (15, _TURN)},
    "affine": {
        "degrees": (10, _TURN),
        "translate": (0.1, _shift),
        "scale": ((0.9, 1.1), _POSITIVE),
        "shear": (0, _SHEAR),
    },
    "color_jitter": {
        "brightness": (0.4, _factor),
        "contrast": (0.4, _factor),
        "saturation": (0.4, _factor),
        "hue": (0.1, _HUE),
    },
}
_OTHER_NAMES = {
    "randomresizedcrop": "random_resized_crop", "crop": "random_resized_crop", "horizontal_flip": "hflip",
    "random_horizontal_flip": "hflip", "randomhorizontalflip": "hflip", "flip": "hflip", "vertical_flip": "vflip",
    "random_vertical_flip": "vflip", "randomverticalflip": "vflip", "randomrotation": "rotate",
    "random_rotation": "rotate", "rotation": "rotate", "randomaffine": "affine", "random_affine": "affine",
    "colorjitter": "color_jitter", "colour_jitter": "color_jitter", "jitter": "color_jitter",
}  # fmt: skip


def canonical(value: object) -> tuple[str, ...]:
    """Return the augmentations that `value` names, each as `name(parameter=value, ...)`, all defaults filled in.

    Args:
        value: text with commas between augmentations, or a list of such texts; empty or `None` for none.

    Raises:
        ConfigError: for an unknown name or parameter, a value out of range, or an augmentation named twice.
    """
    if value is None:
        return ()
    if not isinstance(value, str | Sequence) or not all(isinstance(part, str) for part in value):
        raise _refuse(value, "it must be text, or a list of texts, such as 'random_resized_crop, hflip(p=0.5)'")
    found: dict[str, dict[str, Any]] = {}
    for part in [value] if isinstance(value, str) else value:
        for name, given in _parse(part):
            if name in found:
                raise _refuse(value, f"{name} is named twice; give it once")
            found[name] = _checked(name, given)
    return tuple(_write(name, found[name]) for name in AUGMENTATIONS if name in found)


def parameters(texts: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return the parameters in the canonical `texts`, by the name of the augmentation; ranges are pairs of numbers."""
    return {name: given for text in texts for name, given in _parse(text)}


def _refuse(value: object, why: str) -> ConfigError:
    shown = value if isinstance(value, str) else repr(value)
    return ConfigError(
        f"cannot use augment={shown!r}: {why}" if shown is value else f"cannot use augment={shown}: {why}"
    )


def _parse(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the names in `text`, each with the parameters that are given."""
    try:
        tree = ast.parse(f"[{' '.join(text.split())}]", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _refuse(text, "it cannot be read; write names with commas, such as hflip, rotate(degrees=10)") from None
    calls: list[tuple[str, dict[str, Any]]] = []
    for node in tree.elts if isinstance(tree, ast.List) else [tree]:
        keywords: list[ast.keyword] = []
        name = node
        if isinstance(node, ast.Call):
            name, keywords = node.func, node.keywords
            if node.args:
                raise _refuse(text, "parameters are given by name, such as rotate(degrees=10)")
        if not isinstance(name, ast.Name):
            raise _refuse(text, "it must be names with commas between them, such as hflip, rotate(degrees=10)")
        given: dict[str, Any] = {}
        for keyword in keywords:
            try:
                if keyword.arg is None:
                    raise ValueError
                if keyword.arg in given:
                    raise _refuse(text, f"the {keyword.arg} of {name.id} is given twice; give it once")
                given[keyword.arg] = ast.literal_eval(keyword.value)
            except (ValueError, TypeError, MemoryError, RecursionError):
                raise _refuse(text, f"the {keyword.arg or '**'} of {name.id} must be plain numbers") from None
        calls.append((name.id, given))
    return calls


def _checked(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return all parameters of the augmentation `name`, those `given` checked."""
    if name not in AUGMENTATIONS:
        near = difflib.get_close_matches(name, AUGMENTATIONS, 1)
        meant = _OTHER_NAMES.get(name.lower()) or (near[0] if near else None)
        hint = f"did you mean {meant}?" if meant else f"there are {', '.join(AUGMENTATIONS)}"
        raise _refuse(name, f"there is no such augmentation; {hint}")
    known = AUGMENTATIONS[name]
    for parameter in given:
        if parameter not in known:
            near = difflib.get_close_matches(parameter, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise _refuse(name, f"it has no parameter {parameter!r}; {hint}")
    checked = {}
    for parameter, (default, convert) in known.items():
        value = given.get(parameter, default)
        try:
            checked[parameter] = convert(value)
        except _Wrong as wrong:
            raise _refuse(f"{name}({parameter}={value!r})", f"{parameter} must be {wrong}") from None
    return checked


def _write(name: str, given: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{parameter}={value!r}' for parameter, value in given.items())})"
