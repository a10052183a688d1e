"""Sizes in bytes as people write and read them: `512MiB`, `1.5GB`, `25%`. Pure."""

from __future__ import annotations

import math
import re

from prefetchd.errors import ConfigError

_FACTORS: dict[str, int] = {"": 1, "b": 1} | {
    f"{letter}{end}": base**power
    for power, letter in enumerate("kmgt", 1)
    for end, base in (("", 1024), ("b", 1000), ("ib", 1024))
}
_MOST_BYTES = 1 << 62  # file sizes and addresses stay below it
_SHOWN_CHARACTERS = 40
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*|%)\s*")


def parse_bytes(text: str, *, whole_bytes: int | None = None) -> int:
    """Return the number of bytes that `text` names; a percentage is taken of `whole_bytes`.

    `KiB`, `MiB`, `GiB`, `TiB` (and a bare `K`, `M`, `G`, `T`) are powers of 1024, `KB` to `TB` powers of 1000.

    Raises:
        ConfigError: if `text` is no size, or is a percentage where none makes sense.
    """
    match = _SIZE.fullmatch(text)
    unit = match[2].lower() if match else ""
    number = float(match[1]) if match else math.nan
    if unit == "%" and whole_bytes is not None:
        if 0 < number <= 100:
            return int(number / 100 * whole_bytes)
        raise ConfigError(
            f"cannot take the size {_shortened(text)!r}: it must be above 0% and up to 100%; give a share"
        )
    if unit in _FACTORS and number * _FACTORS[unit] < _MOST_BYTES:
        return round(number * _FACTORS[unit])  # since 0.29 * 10**9 is a little less than 290 MB
    if match and unit in _FACTORS:
        raise ConfigError(
            f"cannot take the size {_shortened(text)!r}: it must be below {format_bytes(_MOST_BYTES)}; give less"
        )
    like = "512MiB, 1.5GB or 25%" if whole_bytes is not None else "512MiB or 1.5GB"
    raise ConfigError(f"cannot read the size {_shortened(text)!r}: it is not like {like}; write it that way")


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def format_bytes(n_bytes: float) -> str:
    """Return `n_bytes` in the largest binary unit that keeps it at 1 or more, such as `9.2 MiB`."""
    size = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_count(n: int, noun: str) -> str:
    """Return `1 reader`, `2 readers`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
