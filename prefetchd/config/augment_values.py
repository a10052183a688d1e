"""Converters of the parameters of `augment`: from what a user wrote to the one form that a digest follows. Pure.

Each takes a literal, and returns plain numbers or tuples of them. Each raises `WrongValue` with what the value must be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Pair = tuple[float, float]

RANDOM = "random"  # the value of random_erasing that draws each pixel


class WrongValue(Exception):
    """A parameter's value is wrong; the message says what it must be."""


def as_number(value: Any) -> float:
    """Return a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise WrongValue("a number")
    return float(value)


def as_pair(value: Any) -> Pair:
    """Return two numbers, the smaller first."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise WrongValue("two numbers, such as (0.5, 1)")
    low, high = map(as_number, value)
    if low > high:
        raise WrongValue("two numbers, the smaller one first")
    return low, high


def as_probability(value: Any) -> float:
    """Return a number from 0 to 1."""
    return number_within(0, 1, "from 0 to 1")(value)


def number_within(low: float, high: float, what: str) -> Callable[[Any], float]:
    """Return the converter of a number from `low` to `high`."""

    def convert(value: Any) -> float:
        number = as_number(value)
        if not low <= number <= high:
            raise WrongValue(what)
        return number

    return convert


def whole_within(low: int, high: int) -> Callable[[Any], int]:
    """Return the converter of a whole number from `low` to `high`."""

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise WrongValue(f"a whole number from {low} to {high}")
        return value

    return convert


def range_within(low: float, high: float, what: str, *, one: bool = False) -> Callable[[Any], Pair]:
    """Return the converter of a pair of numbers above `low` and up to `high`; with `one`, a number stands for both."""

    def convert(value: Any) -> Pair:
        pair = (as_number(value),) * 2 if one and not isinstance(value, tuple | list) else as_pair(value)
        if not low < pair[0] <= pair[1] <= high:
            raise WrongValue(what)
        return pair

    return convert


def around(centre: float, most: float, what: str) -> Callable[[Any], Pair]:
    """Return the converter of one number n, for (centre - n, centre + n), or a pair, at most `most` from the centre."""

    def convert(value: Any) -> Pair:
        if isinstance(value, tuple | list):
            pair = as_pair(value)
        else:
            number = as_number(value)
            if number < 0:
                raise WrongValue(what)
            pair = (centre - number, centre + number)
        if pair[0] < centre - most or pair[1] > centre + most:
            raise WrongValue(what)
        return pair

    return convert


def as_factors(value: Any) -> Pair:
    """Return a pair of factors from 0; one number n stands for (max(0, 1 - n), 1 + n)."""
    what = "a number n, 0 or more, for factors from 1 - n to 1 + n, or two factors such as (0.5, 1.5)"
    if not isinstance(value, tuple | list):
        number = as_number(value)
        if number < 0:
            raise WrongValue(what)
        value = (max(0.0, 1 - number), 1 + number)
    pair = as_pair(value)
    if pair[0] < 0 or pair[1] > 1000:
        raise WrongValue(what)
    return pair


def as_shift(value: Any) -> Pair:
    """Return two fractions, of the width and of the height; one number stands for both."""
    pair = tuple(map(as_number, value)) if isinstance(value, tuple | list) else (as_number(value),) * 2
    if len(pair) != 2 or not all(0 <= part <= 1 for part in pair):
        raise WrongValue("a fraction from 0 to 1 of the width and height, or two: (of the width, of the height)")
    return pair[0], pair[1]


def as_kernel_size(value: Any) -> tuple[int, int]:
    """Return two odd whole numbers of pixels, across and down; one number stands for both."""
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    odd = [side for side in pair if isinstance(side, int) and side % 2 == 1 and 1 <= side <= 255]
    if len(pair) != 2 or len(odd) != 2 or any(isinstance(side, bool) for side in pair):
        raise WrongValue("an odd whole number of pixels from 1 to 255, or two: (across, down)")
    return odd[0], odd[1]


def as_erased(value: Any) -> str | tuple[float, ...]:
    """Return 'random', or the numbers that are written, one for all channels or one a channel."""
    if isinstance(value, str) and value == RANDOM:
        return RANDOM
    numbers = value if isinstance(value, tuple | list) else (value,)
    most = 65504  # the largest of float16
    if not numbers or any(
        isinstance(n, bool) or not isinstance(n, int | float) or not -most <= n <= most for n in numbers
    ):
        raise WrongValue(f"a number within {most}, one such number a channel as in (0.5, 0.4, 0.3), or 'random'")
    return tuple(map(float, numbers))
