"""Converters: from an option as it was written (command line, TOML, Python) to its one checked value. Pure.

`validate` calls them, one for each option. They take numbers as text, and the values that programs have at hand: numpy
scalars and arrays, dtypes, paths, lists of any kind. A wrong value is a `ConfigError` that names the option in Python's
spelling, and says what would do.
"""

from __future__ import annotations

import contextlib
import operator
import os
import re
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from prefetchd.config.units import parse_bytes
from prefetchd.errors import ConfigError

_MOST_SHOWN = 300  # characters of a wrong value
_MOST_PIXELS = 32768  # in a row or column of a delivered image
_PATHS = (
    "root", "labels", "offsets", "index", "cache", "keep", "subset", "order", "bucket_file", "token_file", "tls_ca",
    "tls_cert", "tls_key",
)  # fmt: skip
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_WORDS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}


def wrong(name: str, value: object, wanted: str) -> ConfigError:
    """Return the error for a value that is not what is `wanted`."""
    return ConfigError(f"cannot use {name}={shown(value)}: it must be {wanted}")


def shown(value: object) -> str:
    """Return a value as an error shows it, which is not too long."""
    try:
        text = repr(value)
    except ValueError:
        return "<a number of very many digits>"  # which Python refuses to write out
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}... ({len(text)} characters)"


def plain(value: Any) -> Any:
    """Return Python's own number, text or list for a scalar or array of numpy, PyTorch, JAX and the like."""
    if isinstance(value, type) or not hasattr(value, "tolist"):
        return value
    try:
        return value.tolist()
    except (TypeError, ValueError, RuntimeError):  # a tensor without values
        return value


def coerce(name: str, value: object, hint: Any) -> Any:
    """Return `value` as the type `hint`; numbers may come as text, and `None` only where the type allows it."""
    value = plain(value)
    kinds = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if not isinstance(value, str) or value not in choices:
            raise wrong(name, value, "one of " + ", ".join(choices))
        return str(value)
    if kind is str:
        if not isinstance(value, str | Path | int):
            raise wrong(name, value, "text")
        return str(value)
    if kind is bool:
        if isinstance(value, str) and value.lower() in _WORDS:
            return _WORDS[value.lower()]
        if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
            return bool(value)
        raise wrong(name, value, "true or false" + (", or blocks" if name == "shuffle" else ""))
    try:
        return whole_number(value) if kind is int else _number(value)
    except (TypeError, ValueError, OverflowError):
        raise wrong(name, value, "a whole number" if kind is int else "a number") from None


def whole_number(value: object) -> int:
    """Return a whole number, exactly: it never goes through a float, which has 53 bits.

    Raises:
        TypeError, ValueError, OverflowError: if it is not one.
    """
    value = plain(value)
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, str):
        return int(value)
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError
        return int(value)
    return operator.index(value)  # type: ignore[arg-type]


def _number(value: object) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)  # type: ignore[arg-type]


def _fraction(value: object) -> float:
    """Return a number; text such as `1/255` is one too."""
    if isinstance(value, str) and value.count("/") == 1:
        above, below = value.split("/")
        return float(above) / float(below)
    return _number(plain(value))


def num_workers(value: object) -> int:
    """Return the number of readers; 0 for `auto`."""
    return 0 if isinstance(value, str) and value == "auto" else int(coerce("num_workers", value, int))


def dtype_name(value: object) -> object:
    """Return the name of a dtype or scalar class of numpy, PyTorch or TensorFlow; another value as it is."""
    if isinstance(value, str):
        return value
    name = getattr(value, "name", None) or getattr(value, "__name__", None)
    if isinstance(name, str):
        return name
    module, _, last = str(value).rpartition(".")
    return last if module == "torch" else value


def is_unicode(text: str) -> bool:
    """Return whether UTF-8 can hold `text`: it has no surrogate escapes."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def wire_path(path: str) -> str:
    """Return a path as text that any message can hold; `path` is the inverse.

    A path that is not UTF-8 goes as NUL and hexadecimal digits: no path has a NUL of its own.
    """
    return path if is_unicode(path) else "\0" + os.fsencode(path).hex()


_IN_PLACE_OF_PATH = {
    "labels": "give labels in memory beside their samples, batches((x, y)), or write them to a file with numpy.save",
    "offsets": "write them to a file with numpy.save",
}


def path(value: object, name: str = "source") -> str | None:
    """Return a path given as text, bytes or a `Path`, or as `wire_path` makes it; errors call it the option `name`."""
    if value is None:
        return None
    if not isinstance(value, str | bytes | os.PathLike):
        # The message leaves the value out: it may be an array, or a list of a million samples.
        raise ConfigError(
            f"cannot use {name} of the type {type(value).__name__}: it must be a path; "
            f"{_IN_PLACE_OF_PATH.get(name, 'give its name as text')}"
        )
    if not value:
        what = "the path ''" if name == "source" else f"{name}=''"
        raise ConfigError(f"cannot use {what}: it is empty; give a file or a directory")
    decoded = str(os.fsdecode(value))
    if decoded.startswith("\0"):
        with contextlib.suppress(ValueError):
            decoded = os.fsdecode(bytes.fromhex(decoded[1:]))
    if "\0" in decoded:
        what = f"the path {decoded!r}" if name == "source" else f"{name}={decoded!r}"
        raise ConfigError(f"cannot use {what}: no path has a NUL character; give a file or a directory")
    return decoded


def path_of(name: str) -> Callable[[object], str | None]:
    """Return the converter of the option `name`: a path."""
    return lambda value: path(value, name)


_WEB_WITH_QUERY = re.compile(r"https?://[^?#]*[?#]", re.IGNORECASE)


def root(value: object) -> str | None:
    """Return a path as `path` does, or a URL that names can be put behind."""
    found = path(value, "root")
    if found is not None and _WEB_WITH_QUERY.match(found):
        raise ConfigError(
            f"cannot use root={found.partition('#')[0]}: no path can be put behind its query or fragment; leave that "
            "out, or write whole URLs in the list"
        )
    return found


def scale(value: object) -> float | None:
    """Return a number, or a fraction such as `1/255`."""
    try:
        return None if value is None else _fraction(value)
    except (TypeError, ValueError, ZeroDivisionError):
        raise wrong("scale", value, "a number, such as 0.5 or 1/255") from None


def image_size(value: object) -> tuple[int, int]:
    """Return (height, width) for `224`, `"224"`, `"256x320"` or `(256, 320)`."""
    parts = value.lower().split("x") if isinstance(value, str) else plain(value)
    try:
        sizes = [whole_number(part) for part in (parts if isinstance(parts, Sequence) else (parts,))]
        height, width = sizes if len(sizes) == 2 else (sizes[0], sizes[0])
        if len(sizes) > 2 or not (0 < height <= _MOST_PIXELS and 0 < width <= _MOST_PIXELS):
            raise ValueError
    except (TypeError, ValueError, OverflowError, IndexError):
        wanted = f"pixels from 1 to {_MOST_PIXELS}, such as 224 or 256x320 (height x width)"
        raise wrong("image_size", value, wanted) from None
    return height, width


def cache_image_size(value: object) -> tuple[int, int] | None:
    """Return (height, width) as `image_size`, or `None`."""
    try:
        return None if value is None else image_size(value)
    except ConfigError:
        raise wrong("cache_image_size", value, f"pixels from 1 to {_MOST_PIXELS}, such as 256 or 256x320") from None


def size_limit(name: str) -> Callable[[object], str]:
    """Return the converter of the option `name`: `auto`, or bytes given as a number or as `50GiB`, as text."""

    def convert(value: object) -> str:
        text = str(plain(value))
        if text != "auto" and parse_bytes(text) < 1:
            raise wrong(name, value, "auto, or a size such as 50GiB")
        return text

    return convert


def channel_numbers(name: str) -> Callable[[object], tuple[float, ...] | None]:
    """Return the converter of the option `name`: one number, or one a channel."""

    def convert(value: object) -> tuple[float, ...] | None:
        parts = value.split(",") if isinstance(value, str) else plain(value)
        if parts is None:
            return None
        try:
            return tuple(_fraction(part) for part in (parts if isinstance(parts, Sequence) else (parts,)))
        except (TypeError, ValueError, ZeroDivisionError):
            raise wrong(name, value, "one number, or one a channel, such as 0.485,0.456,0.406") from None

    return convert


def columns(value: object) -> str | None:
    """Return names or numbers of columns, given in a list or separated by commas, with commas between them."""
    value = plain(value)
    if value is None:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return ",".join(str(part) for part in value)
    return str(value)


_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def function(name: str) -> Callable[[object], str | None]:
    """Return the converter of the option `name`: `module:name`, or a function that can be imported by its name."""

    def convert(value: object) -> str | None:
        if value is None or value == "":
            return None
        if isinstance(value, str):
            if not _FUNCTION.fullmatch(value):
                raise wrong(name, value, "written package.module:name, such as my_transforms:augment")
            return str(value)
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
                f"'module:{'name' if qualname.endswith('>') else qualname.rpartition('.')[2]}'"
            )
        return convert(f"{module}:{qualname}")

    return convert


def local_path(name: str) -> Callable[[object], str | None]:
    """Return the converter of the option `name`: a path of this machine, which is written to."""

    def convert(value: object) -> str | None:
        found = path(value, name)
        if found is not None and _SCHEME.match(found):
            raise ConfigError(f"cannot use {name}={shown(found)}: it is written to, and so a path of this machine")
        return found

    return convert


def folders(value: object) -> tuple[str, ...]:
    """Return folders given in a list, or in one text as in PATH."""
    if value is None:
        return ()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(folder for part in value if (folder := path(part, "python_path")) is not None)
    return tuple(part for part in (path(value, "python_path") or "").split(os.pathsep) if part)


def daemon_name(value: object) -> str:
    """Return the name of a daemon, which is also the name of its files."""
    name = value if isinstance(value, str) else ""
    if not 1 <= len(name) <= 64 or name.startswith(".") or not all(c.isalnum() or c in "-_." for c in name):
        raise wrong("name", value, "1 to 64 letters, digits, '-', '_' or '.', and not start with '.'")
    return str(name)


def absolute_path(path: str) -> str:
    """Return the absolute path, with `~` expanded.

    Raises:
        ConfigError: if it is relative, and the working directory was removed or cannot be read.
    """
    if "://" in path:
        return path
    try:
        return os.path.abspath(os.path.expanduser(path))
    except OSError as error:
        raise ConfigError(
            f"cannot find {path}: the working directory cannot be read ({error.strerror}); change to one that exists, "
            "or give an absolute path"
        ) from None


def comparable(name: str, value: Any) -> Any:
    """Return an option's value in a form in which two spellings of one value are equal."""
    if name in ("memory_budget", "cache_size", "keep_size"):
        with contextlib.suppress(ConfigError):
            return "%" in value, parse_bytes(value, whole_bytes=1 << 50)
    if name in _PATHS and value is not None:
        return absolute_path(value)
    if name in ("mean", "std") and value is not None:
        return value[0] if len(set(value)) == 1 else value
    return value
