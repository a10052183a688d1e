"""Sizes in bytes as people write and read them: `512MiB`, `1.5GB`, `25%`. Pure."""

from __future__ import annotations

import re

from prefetchd.errors import ConfigError

_FACTORS = {
    "": 1,
    "b": 1,
    "k": 1024,
    "kb": 1000,
    "kib": 1024,
    "m": 1024**2,
    "mb": 1000**2,
    "mib": 1024**2,
    "g": 1024**3,
    "gb": 1000**3,
    "gib": 1024**3,
    "t": 1024**4,
    "tb": 1000**4,
    "tib": 1024**4,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*|%)\s*")


def parse_bytes(text: str, *, whole_bytes: int | None = None) -> int:
    """Return the number of bytes that `text` names; a percentage is taken of `whole_bytes`.

    `KiB`, `MiB`, `GiB`, `TiB` (and a bare `K`, `M`, `G`, `T`) are powers of 1024, `KB` to `TB` powers of 1000.

    Raises:
        ConfigError: if `text` is no size, or is a percentage where none makes sense.
    """
    match = _SIZE.fullmatch(text)
    unit = match[2].lower() if match else ""
    if match and unit == "%" and whole_bytes is not None and 0 < float(match[1]) <= 100:
        return int(float(match[1]) / 100 * whole_bytes)
    if match and unit in _FACTORS:
        return round(float(match[1]) * _FACTORS[unit])  # 0.29 * 10**9 is a little less than 290 MB
    raise ConfigError(f"cannot read the size {text!r}: it is not like 512MiB, 1.5GB or 25%; write it that way")


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
