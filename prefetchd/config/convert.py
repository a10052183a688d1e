"""From whatever an option was written as (command line, TOML, Python) to its one checked value. Pure.

Called by `config`, one converter an option: a wrong value is a `ConfigError` that names the option and what would do.
"""

from __future__ import annotations

import contextlib
import os
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from prefetchd.config.units import parse_bytes
from prefetchd.errors import ConfigError


def wrong(name: str, value: object, wanted: str) -> ConfigError:
    """Return the error for a value that is not what is `wanted`."""
    return ConfigError(f"cannot use {name}={value!r}: it must be {wanted}")


def coerce(name: str, value: object, hint: Any) -> Any:
    """Return `value` as the field's type; numbers may come as text, and `None` only where the field allows it."""
    kinds = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise wrong(name, value, "one of " + ", ".join(choices))
        return value
    if kind is str:
        if not isinstance(value, str | Path | int):
            raise wrong(name, value, "text")
        return str(value)
    if kind is bool:
        words = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        raise wrong(name, value, "true or false")
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)  # type: ignore[arg-type]
        if kind is int:
            whole = int(value)  # type: ignore[call-overload]
            if whole != number:
                raise ValueError
            return whole
    except (TypeError, ValueError, OverflowError):
        raise wrong(name, value, "a whole number" if kind is int else "a number") from None
    return number


def num_workers(value: object) -> int:
    """Return the number of readers; 0 for `auto`."""
    return 0 if value == "auto" else int(coerce("num_workers", value, int))


def is_unicode(text: str) -> bool:
    """Whether `text` is what UTF-8 can hold: no surrogate escapes of other bytes in it."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def wire_path(path: str) -> str:
    """Return a path as text that any message can hold; `path` is the inverse.

    One that is not UTF-8 goes as NUL and hexadecimal digits: no path has a NUL of its own.
    """
    return path if is_unicode(path) else "\0" + os.fsencode(path).hex()


def path(value: object) -> str | None:
    """Text, bytes or a `Path`; NUL and hexadecimal digits as `Config.to_wire` makes them."""
    if value is None:
        return None
    if not isinstance(value, str | bytes | os.PathLike):
        # Not the value itself: it may be an array, or a list of a million samples.
        raise ConfigError(
            f"cannot use an object of the type {type(value).__name__} as a path: it must be text; write what is in "
            "memory to a file first, samples as a list file (`path label` a line), arrays with numpy.save"
        )
    if not value:
        raise ConfigError("cannot use the path '': it is empty; give a file or a directory")
    decoded = os.fsdecode(value)
    return os.fsdecode(bytes.fromhex(decoded[1:])) if decoded.startswith("\0") else decoded


def fraction(value: object) -> float:
    """A number, or text such as `1/255`."""
    if isinstance(value, str) and value.count("/") == 1:
        above, below = value.split("/")
        return float(above) / float(below)
    if isinstance(value, bool):
        raise ValueError
    return float(value)  # type: ignore[arg-type]


def scale(value: object) -> float | None:
    """A number or a fraction."""
    try:
        return None if value is None else fraction(value)
    except (TypeError, ValueError, ZeroDivisionError):
        raise wrong("scale", value, "a number, such as 0.5 or 1/255") from None


def image_size(value: object) -> tuple[int, int]:
    """`224`, `"224"`, `"256x320"` or `(256, 320)`, always height before width."""
    parts = value.lower().split("x") if isinstance(value, str) else value
    try:
        if hasattr(parts, "__index__") and not isinstance(parts, bool):
            parts = (parts,)
        sizes = [int(part) for part in parts]  # type: ignore[attr-defined]
        height, width = sizes if len(sizes) == 2 else (sizes[0], sizes[0])
        if len(sizes) > 2 or not (0 < height <= 32768 and 0 < width <= 32768):
            raise ValueError
    except (TypeError, ValueError, IndexError):
        raise wrong("image_size", value, "pixels from 1 to 32768, such as 224 or 256x320 (height x width)") from None
    return height, width


def optional_image_size(value: object) -> tuple[int, int] | None:
    """As `image_size`, or `None`."""
    try:
        return None if value is None else image_size(value)
    except ConfigError:
        raise wrong("cache_image_size", value, "pixels from 1 to 32768, such as 256 or 256x320") from None


def size(value: object) -> str:
    """`auto`, or bytes as a number or as `50GiB`, kept as text."""
    text = str(value)
    if text != "auto" and parse_bytes(text) < 1:
        raise wrong("cache_size", value, "auto, or a size such as 50GiB")
    return text


def channel_numbers(name: str) -> Callable[[object], tuple[float, ...] | None]:
    """Return the converter of the option `name`: one number, or one a channel."""

    def convert(value: object) -> tuple[float, ...] | None:
        if value is None:
            return None
        try:
            if isinstance(value, str):
                return tuple(fraction(part) for part in value.split(","))
            if isinstance(value, int | float):
                return (float(value),)
            return tuple(float(part) for part in value)  # type: ignore[attr-defined]
        except (TypeError, ValueError, ZeroDivisionError):
            raise wrong(name, value, "one number, or one a channel, such as 0.485,0.456,0.406") from None

    return convert


def columns(value: object) -> str | None:
    """Names or numbers of columns, in a list or separated by commas."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return ",".join(str(part) for part in value)
    return str(value)


def function(name: str) -> Callable[[object], str | None]:
    """Return the converter of the option `name`: a function that can be imported by name, or `module:name`."""

    def convert(value: object) -> str | None:
        if value is None or value == "":
            return None
        if isinstance(value, str):
            if not _FUNCTION.fullmatch(value):
                raise wrong(name, value, "written package.module:name, such as my_transforms:augment")
            return value
        module, qualname = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        if not callable(value) or not isinstance(module, str) or not isinstance(qualname, str):
            raise ConfigError(
                f"cannot use {name}={type(value).__name__} object: it has no name to import it by; "
                "give it a name in a module and pass 'module:name'"
            )
        if module == "__main__" or "<" in qualname:
            where = "this script or notebook" if module == "__main__" else f"a function of {module}, or is a lambda"
            raise ConfigError(
                f"cannot use {name}={qualname}: it is defined in {where}, and the readers, processes "
                f"of their own, cannot import it from there; put it at the top level of a module and pass "
                f"'module:{qualname.rpartition('.')[2].strip('<>')}'"
            )
        return convert(f"{module}:{qualname}")

    return convert


_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def folders(value: object) -> tuple[str, ...]:
    """Folders in a list, or in one text as in PATH."""
    if value is None:
        return ()
    if isinstance(value, list | tuple):
        return tuple(folder for part in value if (folder := path(part)) is not None)
    return tuple(part for part in (path(value) or "").split(os.pathsep) if part)


def daemon_name(value: object) -> str:
    """Return the name of a daemon, which is also the name of its files."""
    name = value if isinstance(value, str) else ""
    if not 1 <= len(name) <= 64 or name.startswith(".") or not all(c.isalnum() or c in "-_." for c in name):
        raise wrong("name", value, "1 to 64 letters, digits, '-', '_' or '.', and not start with '.'")
    return name


def comparable(name: str, value: Any) -> Any:
    """Return an option's value so that equal ones compare equal, however they were written."""
    if name in ("memory_budget", "cache_size"):
        with contextlib.suppress(ConfigError):
            return "%" in value, parse_bytes(value, whole_bytes=1 << 50)
    if name in ("root", "labels", "offsets", "cache") and value is not None:
        return os.path.abspath(os.path.expanduser(value))
    if name in ("mean", "std") and value is not None:
        return value[0] if len(set(value)) == 1 else value
    return value
